"""Models that turn texts into vectors: one file, one plug-in.

``sentence_transformers``, ``model2vec`` (dense) and ``splade`` (sparse) run in a device worker; ``hashing`` is free and
for trying things out. Shared: ``_local`` (the daemon's side of a local model), ``_passes`` (the worker's, for all of
torch), ``_forward`` (for those of sentence-transformers), ``_location`` and ``_folder`` (where a model is and what its
files say), ``_batches``, ``_sparse``, ``_tokenizer``.
"""
