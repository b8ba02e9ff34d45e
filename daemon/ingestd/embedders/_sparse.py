"""Sparse vectors from weights of tokens, and those that a model leaves empty.

Models with a weight for each token of the text (BGE-M3, mGTE) count a token once, with its greatest weight, and
special tokens not at all. This is done on pairs of token and weight: a matrix of texts by vocabulary, as the
libraries have it for training, is a gigabyte for a thousand texts and 250,000 tokens, nearly all of it zeros.

Milvus refuses an empty sparse vector, and the row with it: the chunk would be lost to the dense search too. So a
document's empty vector gets one tiny weight on an index that no query's vector has: the first one behind the
model's vocabulary. An index of the vocabulary (that of ``[PAD]``, say) was turned down: a model may give it weight.
A query's empty vector stays empty: it meets no document, and the search has nothing to ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingestd.model import SparseVectors

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

TINY = np.float32(1e-6)
"""Positive, as Milvus wants it; no query has the index, so it never counts."""


def greatest(weights: NDArray[np.float32], tokens: NDArray[np.int64], unused: Collection[int]) -> SparseVectors:
    """Return, for each text, the greatest positive weight of each of its tokens.

    Args:
        weights: Shape (texts, tokens), float32.
        tokens: The tokens' ids, of the same shape.
        unused: Ids that have no weight: special tokens, padding among them.
    """
    texts, width = tokens.shape
    rows, ids, values = np.repeat(np.arange(texts), width), tokens.ravel(), weights.ravel()
    counts = (values > 0) & ~np.isin(ids, list(unused))
    rows, ids, values = rows[counts], ids[counts], values[counts]
    order = np.lexsort((-values, ids, rows))
    rows, ids, values = rows[order], ids[order], values[order]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (rows[1:] != rows[:-1]) | (ids[1:] != ids[:-1])
    lengths = np.bincount(rows[first], minlength=texts)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return SparseVectors(indptr, ids[first].astype(np.uint32), values[first])


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
