"""Rows that are read back have the digests of their writer, as far as a column says what it was given."""

from __future__ import annotations

import numpy as np
import pytest

from ingestd.milvus.holdings import Holdings, columns, read
from ingestd.milvus.schema import FieldConfig, VectorConfig, VectorSpec, wanted
from ingestd.model import Held, Row, VectorKind, Version

TARGET = wanted(
    "articles",
    {"dense": VectorSpec(VectorConfig(embedder="d"), VectorKind.DENSE, 3, "s")},
    {
        "lang": FieldConfig.model_validate({"type": "VARCHAR", "max_length": 16}),
        "price": FieldConfig.model_validate({"type": "FLOAT"}),
        "score": FieldConfig.model_validate({"type": "DOUBLE"}),
    },
)
FIELDS = {"lang": None, "price": None, "score": None}


def _row(**changes: object) -> Row:
    values: dict[str, object] = {
        "id": "0" * 32,
        "document_id": "inbox/a.txt",
        "version": 1,
        "domain": "d",
        "chunk_index": 0,
        "text": "text",
        "source": "inbox",
        "fields": FIELDS,
        "metadata": {"a": 1.0, "b": [None, {"c": "é"}]},
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]  # the tests name what they change


def _stored(row: Row) -> dict[str, object]:
    """Return a row as servers give it back: numbers in the precision of their columns."""
    found: dict[str, object] = {name: getattr(row, name) for name in columns(TARGET) if hasattr(row, name)}
    price, score = row.fields["price"], row.fields["score"]
    found["lang"] = row.fields["lang"]
    found["price"] = None if price is None else float(np.float32(price))  # type: ignore[arg-type]  # a number
    found["score"] = None if score is None else float(score)  # type: ignore[arg-type]  # a number
    return found


def test_all_that_a_digest_covers_is_read_and_no_more() -> None:
    """Neither text nor vectors: the answer for a batch of documents stays small."""
    expected = ["id", "document_id", "version", "domain", "chunk_index", "source", "metadata", "lang", "price", "score"]
    assert columns(TARGET) == expected


@pytest.mark.parametrize("value", [None, 0, 1, -7, 0.1, 9.99, -0.0, 1e-3, 123456, 0.333333, 1.5e30, 2.5e-30])
def test_a_number_counts_as_what_was_sent(value: float | None) -> None:
    """Up to six digits, whole numbers as whole numbers."""
    row = _row(fields={**FIELDS, "price": value, "score": value})
    assert read(TARGET, _stored(row)).digest() == row.digest()


@pytest.mark.parametrize("value", [1 / 3, -123456789.125, 5e-324, 1e300])
def test_a_double_is_exact(value: float) -> None:
    """A DOUBLE says every digit."""
    row = _row(fields={**FIELDS, "score": value})
    assert read(TARGET, _stored(row)).digest() == row.digest()


@pytest.mark.parametrize("fields", [{"price": 1 / 3}, {"price": 2.0}, {"score": 2.0}, {"score": 10**17}])
def test_where_it_cannot_be_told_the_row_is_rewritten(fields: dict[str, float]) -> None:
    """More digits than a FLOAT has, or 2.0 for 2: the digest differs, which costs a rewrite and no more."""
    row = _row(fields={**FIELDS, **fields})
    assert read(TARGET, _stored(row)).digest() != row.digest()


def test_documents_are_put_together() -> None:
    """Rows of several documents, in any order: each has its own, and none has nothing."""
    rows = [_row(id=f"{n:032x}", document_id=f"{n % 2}.txt", chunk_index=n // 2, source=f"s{n}") for n in (3, 0, 2, 1)]
    holdings = Holdings()
    for row in rows:
        holdings.add(read(TARGET, _stored(row)))
    for n in range(2):
        expected = {row.id: row.digest() for row in rows if row.document_id == f"{n}.txt"}
        version = Version(1, "d")
        made, firsts = dict.fromkeys(expected, version), frozenset({version})
        found = Held(expected, frozenset({version}), f"s{n}", made=made, firsts=firsts)
        assert holdings.of(f"{n}.txt", None) == found
    assert holdings.of("2.txt", None) is None
    assert holdings.of("2.txt", Version(4, "d")) == Held({}, frozenset(), "", Version(4, "d"))
