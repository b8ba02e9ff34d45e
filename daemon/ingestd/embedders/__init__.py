"""Models that turn texts into vectors: one file, one plug-in.

In a device worker: ``sentence_transformers``, ``instructor`` and ``model2vec`` (dense), ``splade`` (sparse), ``bge_m3``
and ``mgte`` (both in one pass). ``hashing`` is free and for trying things out. Shared: ``_local`` (the daemon's side of
a local model), ``_passes`` (the worker's, for all of torch), ``_forward`` (for those of sentence-transformers),
``_dense`` and ``_hybrid`` (for those of one kind and of both), ``_gte`` and ``_nomic`` (old checkpoints in the terms
of transformers' own classes), ``_location`` and ``_folder`` (where a model is and what its files say), ``_batches``,
``_sparse``, ``_tokenizer``.
"""
