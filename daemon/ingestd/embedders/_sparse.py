"""Sparse vectors that a model leaves empty.

Milvus refuses an empty sparse vector, and the row with it: the chunk would be lost to the dense search too. So a
document's empty vector gets one tiny weight on an index that no query's vector has: the first one behind the
model's vocabulary. An index of the vocabulary (that of ``[PAD]``, say) was turned down: a model may give it weight.
A query's empty vector stays empty: it meets no document, and the search has nothing to ask.
"""

from __future__ import annotations

import numpy as np

from ingestd.model import SparseVectors

TINY = np.float32(1e-6)
"""Positive, as Milvus wants it; no query has the index, so it never counts."""


def mark_empty(vectors: SparseVectors, index: int) -> SparseVectors:
    """Return the vectors with one weight, ``TINY`` at ``index``, in each that was empty.

    Args:
        vectors: A batch of documents' vectors.
        index: Above all indices that the model knows.
    """
    lengths = np.diff(vectors.indptr)
    empty = lengths == 0
    if not empty.any():
        return vectors
    at = vectors.indptr[:-1][empty]
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths + empty, dtype=np.int64)])
    return SparseVectors(indptr, np.insert(vectors.indices, at, np.uint32(index)), np.insert(vectors.values, at, TINY))
