"""Rows that are read back have the digests of their writer, as far as a column says what it was given."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ingestd.milvus.holdings import Holdings, as_kept, columns, read
from ingestd.milvus.schema import FieldConfig, VectorConfig, VectorSpec, wanted
from ingestd.model import Held, Row, VectorKind, Version, chunk_ids

if TYPE_CHECKING:
    from ingestd.model import Json

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


@pytest.mark.parametrize(
    "fields",
    [{"price": 1 / 3}, {"price": 2.0}, {"price": 2**60}, {"price": 16777217}, {"score": 2.0}, {"score": 10**17}],
)
def test_a_number_that_its_column_cannot_tell_from_others_is_kept_in_one_form(fields: dict[str, float]) -> None:
    """More digits than a FLOAT has, or 2.0 for 2: what is written is brought into the form that comes back."""
    row = _row(fields={**FIELDS, **fields})
    assert read(TARGET, _stored(row)).digest() != row.digest()
    kept = {name: as_kept(TARGET.column(name), value) for name, value in row.fields.items()}
    settled = replace(row, fields=kept)
    assert read(TARGET, _stored(settled)).digest() == settled.digest()
    assert kept == {name: as_kept(TARGET.column(name), value) for name, value in kept.items()}


@pytest.mark.parametrize("value", ["2", True, None, [1], float("nan"), float("inf"), 10**400, 1e39])
def test_what_a_column_does_not_take_stays_as_it_is(value: Json) -> None:
    """It is refused as what it was, and not as something else."""
    assert as_kept(TARGET.column("price"), value) is value


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


def _chunks(document: str, *texts: str) -> list[Row]:
    """Return the rows of a document, as they are written."""
    ids = chunk_ids(document, texts)
    return [
        _row(id=at, document_id=document, chunk_index=place, text=text)
        for place, (at, text) in enumerate(zip(ids, texts, strict=True))
    ]


def _closely(*rows: Row) -> Held:
    """Look closely at the rows of one document."""
    holdings = Holdings(closely=True)
    for row in rows:
        holdings.add(row)
    found = holdings.of(rows[0].document_id, None)
    assert found is not None
    return found


def test_a_close_look_holds_texts_against_keys() -> None:
    """Each text stands for its key, the second and the third of equal ones too, in whatever order they come."""
    rows = _chunks("a", "one", "two", "one", "one")
    for order in (rows, rows[::-1]):
        found = _closely(*order)
        assert [(row.id, row.chunk_index) for row in order] == [(at, d.place) for at, d in found.details.items()]
        assert all(detail.genuine and detail.copies == 1 for detail in found.details.values())
        assert found.spoilt == frozenset()
    assert _closely(*rows).rows == {row.id: row.digest() for row in rows}


def test_an_equal_chunk_is_known_where_those_before_it_are_missing() -> None:
    """Of 300 equal chunks the last one alone is left: its key still stands for its text."""
    assert _closely(_chunks("a", *["same"] * 300)[-1]).spoilt == frozenset()


def test_a_text_that_is_not_its_keys_is_seen() -> None:
    """Another text, or another document's row: the row is not what its key says, and no other is blamed."""
    one, two, three = _chunks("a", "one", "two", "three")
    assert _closely(one, replace(two, text="zwei"), three).spoilt == {two.id}
    (strange,) = _chunks("b", "one")
    assert _closely(replace(strange, document_id="a"), two).spoilt == {strange.id}


def test_a_close_look_tells_what_rows_have_in_common() -> None:
    """Metadata, fields and source are those of all rows of a document; place and version are not."""
    one, two, three = _chunks("a", "one", "two", "three")
    found = _closely(one, replace(two, version=9), replace(three, metadata={}))
    said = [found.details[row.id].said for row in (one, two, three)]
    assert said[0] == said[1] != said[2]


def test_a_key_that_is_there_twice_is_spoilt() -> None:
    """The server said so; it answers with either of the rows."""
    rows = _chunks("a", "one", "two")
    holdings = Holdings(closely=True)
    for row in rows:
        holdings.add(row)
    assert set(holdings.ids()) == {row.id for row in rows}
    holdings.repeated({rows[1].id: 2})
    found = holdings.of("a", None)
    assert found is not None
    assert {rows[1].id} == found.spoilt
    assert found.details[rows[1].id].copies == 2
