"""Debezium's change events in JSON: rows become documents, whatever the converter put around them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from ingestd.model import Content, Op, Record
from ingestd.sources._values.config import DebeziumFormat, Fields, OpValues, decoder
from ingestd.sources._values.decoded import Decoded, UnreadableError, ValueLimits
from ingestd.sources._values.mapping import UNAVAILABLE

if TYPE_CHECKING:
    from ingestd.sources._values.identity import IdFrom

LIMITS = ValueLimits(max_value_bytes=1024 * 1024, max_bytes=1024 * 1024)
FIELDS = Fields(id="$.id", text="$.body", title="$.title", rest=True)
ROW = {"id": 5, "body": "x", "title": "t", "lang": "de"}
SOURCE = {"connector": "postgresql", "lsn": 33, "scn": "44"}


def envelope(op: object, before: object, after: object) -> dict[str, Any]:
    """Return an envelope."""
    return {"before": before, "after": after, "source": SOURCE, "op": op, "ts_ms": 1}


def read(
    value: object, key: object = None, id_from: IdFrom = "auto", fields: Fields = FIELDS, **settings: Any
) -> Decoded:
    """Return what a record says; key and value are sent as JSON unless they are bytes."""
    sent_key, sent = (one if isinstance(one, bytes | None) else json.dumps(one).encode() for one in (key, value))
    record = Record("db.public.pages", 0, 4, 0, sent_key, sent)
    config = DebeziumFormat(fields=fields, **settings)
    return decoder(config, id_from=id_from, source="db", limits=LIMITS).decode(record)


@pytest.mark.parametrize("op", ["c", "r", "u"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_row(op: str, wrapped: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Created, read in a snapshot, or updated: the row after it is the document, with or without its schema."""
    value: Any = envelope(op, ROW if op == "u" else None, ROW)
    key: Any = {"id": 5}
    if wrapped:
        value, key = {"schema": {"type": "struct"}, "payload": value}, {"schema": {}, "payload": key}
    found = read(value, key)
    assert (found.document_id, found.op, found.version) == ("5", Op.UPSERT, None)
    assert found.payload is not None
    assert found.payload.read() == Content(b"x", "5", None, "t", {"lang": "de"}, None, "x")


@pytest.mark.parametrize("before", [ROW, {"id": 5}, None])
def test_a_delete_and_its_tombstone(before: object) -> None:
    """The row before it, its key alone, or the record's key say what is deleted; the tombstone deletes it again."""
    deleted = Decoded("5", Op.DELETE, None, None, 0)
    assert read(envelope("d", before, None), {"id": 5}) == deleted
    assert read(None, {"id": 5}) == deleted
    assert read(None, {"schema": {}, "payload": {"id": 5}}) == deleted
    assert read({"schema": None, "payload": None}, {"id": 5}) == deleted


@pytest.mark.parametrize(("path", "version"), [("$.source.lsn", 33), ("$.source.scn", 44), ("$.ts_ms", 1)])
def test_versions_come_from_the_envelope(path: str, version: int) -> None:
    """For a delete too, which the row's own version would make look like a replay."""
    assert read(envelope("u", ROW, ROW), {"id": 5}, version=path).version == version
    assert read(envelope("d", ROW, None), {"id": 5}, version=path).version == version
    with pytest.raises(UnreadableError, match=r"nothing at '\$\.source\.none'"):
        read(envelope("u", ROW, ROW), {"id": 5}, version="$.source.none")
    with pytest.raises(ValidationError, match="a path in the envelope"):
        DebeziumFormat(fields=Fields(text="$.body", version="$.v"))


def test_keys() -> None:
    """Structures with the field that is named, scalars, text, and what a registry's serializer put before them."""
    row = envelope("c", None, ROW)
    fields = Fields(text="$.body")
    assert read(row, {"tenant": 1, "uid": "u"}, fields=fields, key_id="$.uid").document_id == "u"
    assert read(row, "k", fields=fields).document_id == "k"
    assert read(row, b"k:1", fields=fields, key_format="text").document_id == "k:1"
    assert read(row, b'\0\0\0\0\x07{"id": 5}', fields=fields).document_id == "5"
    for key, why in (
        ({"a": 1, "b": 2}, "2 fields; say with key_id"),
        ({}, "0 fields"),
        ({"id": None}, "is null"),
        ([1], "is an array"),
        (b"k:1", "its key is no JSON"),
    ):
        with pytest.raises(UnreadableError, match=why):
            read(row, key, fields=fields)
    with pytest.raises(UnreadableError, match="nothing at key_id"):
        read(row, {"a": 1}, fields=fields, key_id="$.b")


def test_row_and_key_disagree() -> None:
    """Refused, unless it is said which counts."""
    with pytest.raises(UnreadableError, match="says that it is '5', its key '6'"):
        read(envelope("c", None, ROW), {"id": 6})
    assert read(envelope("c", None, ROW), {"id": 6}, "value").document_id == "5"
    assert read(envelope("c", None, ROW), {"id": 6}, "key").document_id == "6"


def test_soft_deletes() -> None:
    """A flag in the row can make an update a delete."""
    fields = Fields(id="$.id", op="$.gone", text="$.body")
    words = OpValues(upsert=(False,), delete=(True,))
    value = envelope("u", None, {**ROW, "gone": True})
    assert read(value, {"id": 5}, fields=fields, op_values=words, version="$.source.lsn") == Decoded(
        "5", Op.DELETE, None, 33, 0
    )


@pytest.mark.parametrize("column", ["body", "title", "lang"])
def test_columns_that_were_not_logged(column: str) -> None:
    """Debezium's placeholder for them is no text."""
    with pytest.raises(UnreadableError, match=r"placeholder.*REPLICA IDENTITY FULL") as caught:
        read(envelope("u", None, {**ROW, column: UNAVAILABLE}), {"id": 5})
    assert caught.value.document_id == "5"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (envelope("t", None, None), "truncated table"),
        (envelope("m", None, None), "a message that was written to the log"),
        (envelope("x", None, ROW), "'op' is 'x'"),
        (envelope(5, None, ROW), "'op' is a number"),
        (envelope("c", None, None), "'after' is empty"),
        (envelope("c", None, "SECRET"), "its row is a string"),
        (ROW, "ExtractNewRecordState"),
        ([], "no Debezium envelope"),
        (b"SECRET", "no JSON"),
    ],
)
def test_what_is_refused(value: object, why: str) -> None:
    """It says what is wrong, and the document by the key."""
    with pytest.raises(UnreadableError, match=f"^db.public.pages/0@4: .*{why}") as caught:
        read(value, {"id": 5})
    assert caught.value.document_id == "5"
    assert "SECRET" not in str(caught.value)
