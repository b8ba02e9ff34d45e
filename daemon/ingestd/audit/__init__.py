"""Audit: holds sources, ledger and Milvus against one another, chunk by chunk, and has what differs mended.

``compare`` says what is wrong with one document, and ``files`` what its file says to that; ``looking`` goes over whole
collections and decides what counts beside a daemon that is at work; ``mending`` is the daemon's part in putting it
right. Nothing here writes a document: what has to be written comes again through its source and the pipeline, in its
lane, so that every promise holds for a repair too.
"""
