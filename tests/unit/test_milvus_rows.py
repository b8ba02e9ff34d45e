"""Rows are checked against the stricter of server and Lite before they are sent, and cut into requests by bytes."""

from __future__ import annotations

import numpy as np
import pytest

from ingestd.errors import DocumentError
from ingestd.milvus.rows import Encoded, batches, check, encode
from ingestd.milvus.schema import FieldConfig, VectorConfig, VectorSpec, wanted
from ingestd.model import Row, SparseVector, VectorKind

TYPES = {
    "lang": {"type": "VARCHAR", "max_length": 4},
    "must": {"type": "BOOL", "nullable": False},
    "tiny": {"type": "INT8"},
    "large": {"type": "INT64"},
    "single": {"type": "FLOAT"},
    "double": {"type": "DOUBLE"},
}
TARGET = wanted(
    "articles",
    {
        "dense": VectorSpec(VectorConfig(embedder="d"), VectorKind.DENSE, 3, "s"),
        "sparse": VectorSpec(VectorConfig(embedder="s"), VectorKind.SPARSE, None, "s"),
    },
    {name: FieldConfig.model_validate(field) for name, field in TYPES.items()},
)


def _sparse(indices: list[int], values: list[float]) -> SparseVector:
    return SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))


def _row(**changes: object) -> Row:
    values: dict[str, object] = {
        "id": "0" * 32,
        "document_id": "inbox/a.txt",
        "version": 1,
        "domain": "d",
        "chunk_index": 2,
        "text": "text",
        "source": "inbox",
        "fields": {"must": True},
        "metadata": {"a": 1},
        "vectors": {"dense": np.array([1, 0, 0], np.float32), "sparse": _sparse([1, 5], [0.5, 1.0])},
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]  # the tests name what they change


def test_a_good_row_has_every_column() -> None:
    """Rows of one request must have equal keys: fields that a document lacks are sent as null."""
    entity = encode(TARGET, _row(), vectors=True).entity
    assert list(entity) == [column.name for column in TARGET.columns]
    assert entity["lang"] is None
    assert entity["must"] is True
    assert entity["sparse"] == {1: 0.5, 5: 1.0}
    assert "dense" not in encode(TARGET, _row(vectors={}), vectors=False).entity


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"document_id": "é" * 2049}, "document_id: 4098 bytes of UTF-8"),
        ({"text": "x" * 65536}, "text: 65536 bytes"),
        ({"text": "half \ud800"}, "text: character 5 is half a character"),
        ({"source": "s" * 257}, "source: 257 bytes"),
        ({"version": 2**63}, "version: 9223372036854775808 does not fit INT64"),
        ({"fields": {"must": True, "lang": "ééé"}}, "lang: 6 bytes"),
        ({"fields": {"must": True, "lang": 7}}, "lang: a number, where the field takes text"),
        ({"fields": {}}, "must: every document must have it"),
        ({"fields": {"must": None}}, "must: every document must have it"),
        ({"fields": {"must": 1}}, "must: a number, where the field takes true or false"),
        ({"fields": {"must": True, "tiny": 128}}, "tiny: 128 does not fit INT8"),
        ({"fields": {"must": True, "tiny": True}}, "tiny: a true or false, where the field takes a number"),
        ({"fields": {"must": True, "large": 1.5}}, "large: 1.5, where the field takes whole numbers"),
        ({"fields": {"must": True, "single": 1e39}}, "single: the number does not fit FLOAT"),
        ({"fields": {"must": True, "double": float("nan")}}, "double: the number does not fit DOUBLE"),
        ({"fields": {"must": True, "double": 10**400}}, "double: the number does not fit DOUBLE"),
        ({"fields": {"must": True, "other": 1}}, "other: the collection declares no such field"),
        ({"metadata": {"a": "x" * 65536}}, "metadata: 65544 bytes of JSON"),
        ({"metadata": {"a": float("inf")}}, "metadata: cannot be kept as JSON"),
        ({"metadata": {"a": [2**64]}}, "metadata: the number 18446744073709551616 has more than 64 bits"),
        ({"metadata": {"a": "\udfff"}}, "metadata: character"),
    ],
)
def test_a_value_that_does_not_fit(changes: dict[str, object], field: str) -> None:
    """The message names document, chunk and field; nothing is sent."""
    with pytest.raises(DocumentError) as caught:
        check(TARGET, _row(**changes))
    assert f"chunk 2, field {field}" in str(caught.value)


@pytest.mark.parametrize(
    ("vectors", "fault"),
    [
        ({"dense": np.array([1, np.nan, 0], np.float32)}, "dense: the vector has a value that is not finite"),
        ({"dense": np.zeros(3, np.float32)}, "dense: the vector is zero, and COSINE has no meaning for it"),
        ({"dense": np.ones(4, np.float32)}, "dense: a vector of shape (4,), where the field takes (3,)"),
        ({"dense": None}, "dense: the vector is missing"),
        ({"sparse": _sparse([], [])}, "sparse: the sparse vector is empty"),
        ({"sparse": _sparse([1], [0.0])}, "sparse: the sparse vector has a value that is not positive"),
        ({"sparse": _sparse([1], [-1.0])}, "sparse: the sparse vector has a value that is not positive"),
        ({"sparse": _sparse([1], [float("nan")])}, "sparse: the sparse vector has a value that is not positive"),
        ({"sparse": _sparse([1, 1], [1.0, 2.0])}, "sparse: the sparse vector has an index twice"),
        ({"sparse": _sparse([2**32 - 1], [1.0])}, "sparse: the sparse vector has an index over"),
    ],
)
def test_a_vector_that_a_server_would_refuse(vectors: dict[str, object], fault: str) -> None:
    """Lite takes most of these, a server none."""
    good = _row().vectors
    with pytest.raises(DocumentError) as caught:
        encode(TARGET, _row(vectors={**good, **vectors}), vectors=True)
    assert fault in str(caught.value)


def test_requests_are_cut_by_bytes_and_rows() -> None:
    """No request is over either limit, but for a row that is too large alone; order stays."""
    rows = [Encoded(str(at), {}, size) for at, size in enumerate([5, 5, 5, 20, 1, 1, 1, 1])]
    assert [[row.size for row in batch] for batch in batches(rows, 10, 3)] == [[5, 5], [5], [20], [1, 1, 1], [1]]
    assert list(batches([], 10, 3)) == []


def test_the_size_is_no_less_than_what_goes_over_the_wire() -> None:
    """Text, JSON and vectors count with the bytes that they take."""
    small = encode(TARGET, _row(), vectors=True).size
    assert encode(TARGET, _row(text="é" * 1000), vectors=True).size == small + 2000 - 4
    assert encode(TARGET, _row(metadata={"a": "x" * 100}), vectors=True).size == small + 101
