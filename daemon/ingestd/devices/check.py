"""Every vector is looked at before it goes on: a count that differs, NaN or zeros would be stored and never found.

Used on the daemon's side for every embedder, local or remote. Milvus was not left to find them: its answer is about
the whole request, and a real server and Lite accept different ones (NaN in a dense vector passes on Lite).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingestd.errors import DocumentError
from ingestd.model import Role, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingestd.model import DenseVectors, Vectors

LARGEST_INDEX = 2**32 - 2
"""Milvus takes indices of sparse vectors below 2**32 - 1."""


class BadVectorsError(DocumentError):
    """An embedder returned vectors that must not be stored.

    Args:
        message: What is wrong.
        faults: What is wrong with the vector of which text, by the text's place in the batch. Empty when it is the
            batch that is wrong and no text can be blamed: the caller halves.
    """

    def __init__(self, message: str, faults: Mapping[int, str]) -> None:
        super().__init__(message)
        self.faults = faults


def check(vectors: Vectors, kind: VectorKind, count: int, dimension: int | None, *, role: Role = Role.DOCUMENT) -> None:
    """Check what an embedder returned for a batch of texts.

    Args:
        vectors: One vector a text, as the port says.
        kind: What they should be.
        count: How many texts there were.
        dimension: Of dense vectors; None for sparse ones.
        role: A document's vector is never empty. A query's sparse vector may be: it meets no document.

    Raises:
        BadVectorsError: Of wrong type, count or shape (no ``faults``), or not finite, zero, empty, with indices that
            are repeated, out of order or out of range, or with weights that are not positive (one fault a text).
    """
    if isinstance(vectors, SparseVectors) != (kind is VectorKind.SPARSE):
        raise BadVectorsError(f"the embedder returned {type(vectors).__name__} for {kind} vectors", {})
    faults = (
        _sparse_faults(vectors, count, empty=role is Role.QUERY)
        if isinstance(vectors, SparseVectors)
        else _dense_faults(vectors, count, dimension)
    )
    if faults:
        place, fault = next(iter(faults.items()))
        raise BadVectorsError(
            f"the embedder returned {len(faults)} bad {kind} vectors of {count}: that of text {place} {fault}", faults
        )


def _dense_faults(vectors: DenseVectors, count: int, dimension: int | None) -> dict[int, str]:
    if vectors.shape != (count, dimension) or vectors.dtype != np.float32:
        raise BadVectorsError(
            f"the embedder returned dense vectors of shape {vectors.shape} and dtype {vectors.dtype}; "
            f"({count}, {dimension}) and float32 were due",
            {},
        )
    finite = np.isfinite(vectors).all(axis=1)
    # In float32, as the server reckons: the squares of tiny numbers vanish, those of huge ones overflow.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        norms = np.square(vectors).sum(axis=1, dtype=np.float32)
    faults = dict.fromkeys(np.flatnonzero(~finite).tolist(), "is not finite")
    faults |= dict.fromkeys(np.flatnonzero(finite & (norms == 0)).tolist(), "is zero")
    faults |= dict.fromkeys(np.flatnonzero(finite & np.isinf(norms)).tolist(), "is too long to have a norm")
    return dict(sorted(faults.items()))


def _sparse_faults(vectors: SparseVectors, count: int, *, empty: bool) -> dict[int, str]:
    pointers, indices, values = vectors.indptr, vectors.indices, vectors.values
    lengths = np.diff(pointers)
    sound = (
        [array.dtype.name for array in (pointers, indices, values)] == ["int64", "uint32", "float32"]
        and pointers.shape == (count + 1,)
        and indices.shape == values.shape == (pointers[-1],)
        and pointers[0] == 0
        and bool((lengths >= 0).all())
    )
    if not sound:
        raise BadVectorsError(f"the embedder returned sparse vectors that are not {count} rows in CSR form", {})
    rows = np.repeat(np.arange(count), lengths)
    repeated = np.zeros(len(indices), dtype=bool)
    repeated[1:] = (rows[1:] == rows[:-1]) & (indices[1:] <= indices[:-1])
    faults = {} if empty else dict.fromkeys(np.flatnonzero(lengths == 0).tolist(), "is empty")
    faults |= dict.fromkeys(rows[repeated].tolist(), "repeats an index or has them out of order")
    faults |= dict.fromkeys(rows[indices > LARGEST_INDEX].tolist(), f"has an index above {LARGEST_INDEX}")
    faults |= dict.fromkeys(rows[~(np.isfinite(values) & (values > 0))].tolist(), "has a weight that is not positive")
    return dict(sorted(faults.items()))
