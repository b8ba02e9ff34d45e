"""What the check of vectors lets through, and what it finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ingestd.devices.check import LARGEST_INDEX, BadVectorsError, check
from ingestd.embedders._sparse import TINY, mark_empty
from ingestd.errors import DocumentError
from ingestd.model import Role, SparseVector, SparseVectors, VectorKind

DENSE, SPARSE = VectorKind.DENSE, VectorKind.SPARSE


def dense(*rows: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Rows of three numbers."""
    return np.array(rows, np.float32).reshape(len(rows), 3)


def sparse(*rows: dict[int, float]) -> SparseVectors:
    """Rows from index to weight, in the order given."""
    return SparseVectors.of(
        [SparseVector(np.array(list(row), np.uint32), np.array(list(row.values()), np.float32)) for row in rows]
    )


def test_good_vectors_pass() -> None:
    """Sound vectors of both kinds, and batches of none, pass."""
    check(dense([1, 0, 0], [0, -2, 1]), DENSE, 2, 3)
    check(dense(), DENSE, 0, 3)
    check(sparse({0: 1.0, 7: 0.5}, {LARGEST_INDEX: 2.0}), SPARSE, 2, None)
    check(sparse(), SPARSE, 0, None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([np.nan, 1, 1], "not finite"),
        ([np.inf, 1, 1], "not finite"),
        ([0, 0, 0], "zero"),
        ([1e-30, 0, 0], "zero"),
        ([1e30, 1e30, 0], "too long"),
    ],
)
def test_bad_dense_vector(row: list[float], said: str) -> None:
    """A dense vector that Milvus would refuse, or never find again, is reported with its text's place."""
    with pytest.raises(BadVectorsError, match=said) as caught:
        check(dense([1, 1, 1], row, [1, 2, 3]), DENSE, 3, 3)
    assert list(caught.value.faults) == [1]
    assert isinstance(caught.value, DocumentError)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "is empty"),
        ({3: 0.0}, "not positive"),
        ({3: -1.0}, "not positive"),
        ({3: np.nan}, "not positive"),
        ({3: np.inf}, "not positive"),
        ({2**32 - 1: 1.0}, "an index above"),
        ({5: 1.0, 4: 1.0}, "out of order"),
    ],
)
def test_bad_sparse_vector(row: dict[int, float], said: str) -> None:
    """The same for sparse vectors."""
    with pytest.raises(BadVectorsError, match=said) as caught:
        check(sparse({1: 1.0}, row, {1: 1.0}), SPARSE, 3, None)
    assert list(caught.value.faults) == [1]


def test_repeated_index() -> None:
    """An index that comes twice in one vector is found; the same index in the next vector is fine."""
    twice = SparseVector(np.array([4, 4], np.uint32), np.array([1, 1], np.float32))
    once = SparseVector(np.array([4], np.uint32), np.array([1], np.float32))
    with pytest.raises(BadVectorsError) as caught:
        check(SparseVectors.of([once, once, twice]), SPARSE, 3, None)
    assert list(caught.value.faults) == [2]


def test_every_bad_text_is_named() -> None:
    """All bad texts of a batch are named at once: the others need no second try."""
    with pytest.raises(BadVectorsError, match="2 bad dense vectors of 4: that of text 1") as caught:
        check(dense([1, 1, 1], [0, 0, 0], [1, 1, 1], [np.nan, 0, 0]), DENSE, 4, 3)
    assert list(caught.value.faults) == [1, 3]


def test_query_may_be_empty() -> None:
    """A query's sparse vector may be empty; it may still not be wrong."""
    check(sparse({}, {1: 1.0}), SPARSE, 2, None, role=Role.QUERY)
    with pytest.raises(BadVectorsError):
        check(sparse({1: -1.0}), SPARSE, 1, None, role=Role.QUERY)


def test_batch_that_is_wrong_blames_no_text() -> None:
    """A wrong count, dimension, dtype or kind is nobody's in particular."""
    good = sparse({1: 1.0})
    wrong = [
        (dense([1, 1, 1]), DENSE, 2, 3),
        (dense([1, 1, 1]), DENSE, 1, 4),
        (dense([1, 1, 1]).astype(np.float64), DENSE, 1, 3),
        (dense([1, 1, 1]), SPARSE, 1, None),
        (good, DENSE, 1, 3),
        (good, SPARSE, 2, None),
        (replace(good, indptr=np.array([0, 2], np.int64)), SPARSE, 1, None),
        (replace(good, indices=good.indices.astype(np.int32)), SPARSE, 1, None),
    ]
    for vectors, kind, count, dimension in wrong:
        with pytest.raises(BadVectorsError) as caught:
            check(vectors, kind, count, dimension)  # type: ignore[arg-type] # a wrong dtype is the point
        assert caught.value.faults == {}


def test_empty_vectors_are_marked() -> None:
    """Each empty vector gets one tiny weight on the given index; the others stay as they are, in their places."""
    marked = mark_empty(sparse({}, {1: 1.0, 2: 3.0}, {}, {}, {5: 1.0}, {}), 9)
    check(marked, SPARSE, 6, None)
    rows = [dict(zip(row.indices.tolist(), row.values.tolist(), strict=True)) for row in marked]
    tiny = {9: float(TINY)}
    assert rows == [tiny, {1: 1.0, 2: 3.0}, tiny, tiny, {5: 1.0}, tiny]
    assert len(mark_empty(sparse(), 9)) == 0
