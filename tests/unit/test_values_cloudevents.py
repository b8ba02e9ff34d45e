"""CloudEvents 1.0, structured and binary, as the official SDK writes and reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cloudevents.core.bindings import kafka
from cloudevents.core.v1.event import CloudEvent

from ingestd.model import Content, Op, Record
from ingestd.sources._values.config import CloudEventsFormat, EventTypes, Fields, decoder
from ingestd.sources._values.decoded import Decoded, UnreadableError, ValueLimits

if TYPE_CHECKING:
    from ingestd.sources._values.identity import IdFrom

LIMITS = ValueLimits(max_value_bytes=1024 * 1024, max_bytes=1024 * 1024)
ATTRIBUTES = {"id": "e1", "source": "/cms", "type": "com.example.document.changed", "subject": "doc/ü"}
STRUCTURED = (("content-type", b"application/cloudevents+json; charset=utf-8"),)
DATA: tuple[tuple[Any, str | None], ...] = (
    ({"a": [1, "ü"]}, None),
    ({"a": 1}, "application/json"),
    ({"a": 1}, "application/vnd.x+json"),
    ("Grüße", "text/plain"),
    ("<p>", "text/html"),
    (b"\x00\xff", "application/pdf"),
)


def read(
    value: bytes | None,
    headers: tuple[tuple[str, bytes | None], ...],
    key: bytes | None = None,
    id_from: IdFrom = "auto",
    **settings: Any,
) -> Decoded:
    """Return what a record says."""
    record = Record("events", 0, 9, 0, key, value, headers)
    return decoder(CloudEventsFormat(**settings), id_from=id_from, source="cms", limits=LIMITS).decode(record)


def structured(event: dict[str, Any], key: bytes | None = None, id_from: IdFrom = "auto", **settings: Any) -> Decoded:
    """Return what a structured event says; what it lacks to be one is added."""
    return read(
        json.dumps({"specversion": "1.0", **ATTRIBUTES, **event}).encode(), STRUCTURED, key, id_from, **settings
    )


def binary(
    value: bytes | None, content_type: str | None = None, key: bytes | None = None, **attributes: str | None
) -> Decoded:
    """Return what a binary event says; what it lacks to be one is added."""
    all_of_them = {"specversion": "1.0", **ATTRIBUTES, **attributes}
    headers = [(f"ce_{name}", said.encode()) for name, said in all_of_them.items() if said is not None]
    if content_type is not None:
        headers.append(("content-type", content_type.encode()))
    return read(value, tuple(headers), key)


def content(decoded: Decoded) -> Content:
    """Return what an upsert brings."""
    assert decoded.payload is not None
    return decoded.payload.read()


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize(("data", "content_type"), DATA)
def test_events_as_the_sdk_writes_them(mode: str, data: Any, content_type: str | None) -> None:
    """Id, op and data of an event are what the SDK put into it, in either mode."""
    attributes: dict[str, Any] = dict(ATTRIBUTES) | ({} if content_type is None else {"datacontenttype": content_type})
    write = kafka.to_structured_event if mode == "structured" else kafka.to_binary_event
    message = write(CloudEvent(attributes, data))
    oracle = kafka.from_kafka_event(message)
    found = read(message.value, tuple(message.headers.items()))
    assert (found.document_id, found.op) == (oracle.get_subject(), Op.UPSERT)
    expected = oracle.get_data()
    if isinstance(expected, dict):
        assert json.loads(content(found).data) == expected
    else:
        assert content(found).data == (expected.encode() if isinstance(expected, str) else expected)
    assert content(found).content_type in {content_type, "application/json"}


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion", "subject", "datacontenttype", "dataschema"])
@pytest.mark.parametrize("value", ["", 5, None])
def test_bad_attributes_are_refused_where_the_sdk_refuses_them(name: str, value: object) -> None:
    """Required attributes have to be there, and none may be empty or of another type.

    One difference is known: the JSON format says that null is the same as absent, and the SDK does not know that.
    """
    event = {"specversion": "1.0", **ATTRIBUTES, "data": {}, name: value}
    message = kafka.KafkaMessage(dict(STRUCTURED), None, json.dumps(event).encode())
    with pytest.raises(Exception):  # noqa: B017, PT011 - it raises all kinds
        kafka.from_structured_event(message)
    if value is None and name in {"subject", "datacontenttype", "dataschema"}:
        assert read(message.value, STRUCTURED, b"k", "key").op is Op.UPSERT
        return
    with pytest.raises(UnreadableError, match=f"^events/0@9: .*{name}"):
        read(message.value, STRUCTURED, b"k")


@pytest.mark.parametrize("version", ["0.3", "1.1", "2.0"])
def test_other_versions_are_refused(version: str) -> None:
    """1.0 alone is read."""
    with pytest.raises(UnreadableError, match="specversion is '"):
        structured({"specversion": version, "data": "x"})
    with pytest.raises(UnreadableError, match="specversion is '"):
        binary(b"x", specversion=version)


def test_text_is_text() -> None:
    """A string of plain text is handed on as text, and JSON's data stays JSON."""
    assert content(structured({"data": "ü", "datacontenttype": "text/plain"})).text == "ü"
    assert content(structured({"data": "ü"})) == Content('"ü"'.encode(), "doc/ü", "application/json")


def test_base64_is_bytes() -> None:
    """``data_base64`` is what it packs."""
    found = structured({"data_base64": "AP8=", "datacontenttype": "application/pdf"})
    assert content(found) == Content(b"\x00\xff", "doc/ü", "application/pdf")


@pytest.mark.parametrize("kind", ["com.example.document.deleted", "x.removed"])
def test_types_of_deletes(kind: str) -> None:
    """What ends in ``.deleted`` or ``.removed`` deletes, with data, without, or with data that is none."""
    deleted = Decoded("doc/ü", Op.DELETE, None, None, 0)
    assert structured({"type": kind}) == deleted
    assert structured({"type": kind, "data": {"any": 1}}, data="document") == deleted
    assert binary(None, type=kind) == deleted
    assert binary(b"", type=kind) == deleted
    assert binary(b"\xff", "image/png", type=kind) == deleted


def test_configured_types() -> None:
    """Exact names and endings; with upserts named, what is neither is refused."""
    types = EventTypes(upsert=("a", "*.b"), delete=("a.deleted",))
    assert structured({"type": "a", "data": 1}, types=types).op is Op.UPSERT
    assert structured({"type": "x.b", "data": 1}, types=types).op is Op.UPSERT
    assert structured({"type": "a.deleted"}, types=types).op is Op.DELETE
    with pytest.raises(UnreadableError, match=r"type 'x\.deleted' is neither"):
        structured({"type": "x.deleted"}, types=types)


def test_tombstones() -> None:
    """A record with neither value nor event deletes what its key names."""
    assert read(None, (), b"k") == Decoded("k", Op.DELETE, None, None, 0)
    assert read(None, STRUCTURED, b"k") == Decoded("k", Op.DELETE, None, None, 0)


@pytest.mark.parametrize(
    ("rule", "document"), [("subject", "doc/ü"), ("id", "e1"), ("source+id", "/cms|e1"), ("data", "d")]
)
def test_what_the_id_is(rule: str, document: str) -> None:
    """The subject, the event's id, source and id together, or the document's own id."""
    found = structured({"data": {"id": "d", "text": "x"}}, data="document", id=rule)
    assert found.document_id == document


def test_no_subject() -> None:
    """Then the key says which document it is; and where both say, they agree or one is configured."""
    assert structured({"subject": None, "data": 1}, b"k").document_id == "k"
    assert structured({"data": 1}, b"k", "value").document_id == "doc/ü"
    assert structured({"data": 1}, b"k", "key").document_id == "k"
    with pytest.raises(UnreadableError, match="its key 'k'; set id_from"):
        structured({"data": 1}, b"k")


def test_data_that_is_a_document() -> None:
    """Our own document or what fields map, structured and binary, with the attributes that are asked for."""
    document = {"text": "x", "title": "t", "metadata": {"m": 1}, "version": 4}
    found = structured(
        {"data": document, "lang": "de", "sequence": "8"},
        data="document",
        metadata={"l": "lang", "no": "no"},
        version="sequence",
    )
    assert (found.version, content(found)) == (8, Content(b"x", "doc/ü", None, "t", {"m": 1, "l": "de"}, None, "x"))
    headers = tuple((f"ce_{name}", said.encode()) for name, said in {"specversion": "1.0", **ATTRIBUTES}.items())
    found = read(b'{"b": "y", "v": 5}', headers, data="document", fields=Fields(text="$.b", version="$.v"))
    assert (found.version, content(found).text) == (5, "y")


def test_a_delete_keeps_its_documents_version() -> None:
    """Documents with explicit versions need one on their deletes too."""
    gone = structured({"type": "x.deleted", "data": {"version": 5, "text": "old"}}, data="document")
    assert gone == Decoded("doc/ü", Op.DELETE, None, 5, 0)


@pytest.mark.parametrize(
    ("event", "settings", "why"),
    [
        ({}, {}, "it has no data"),
        ({"data": None}, {}, "it has no data"),
        ({"data": None}, {"data": "document"}, "it has no data"),
        ({"data": 1, "data_base64": "AA=="}, {}, "both 'data' and 'data_base64'"),
        ({"data_base64": "?"}, {}, "'data_base64' is no base64"),
        ({"data": {"a": "SECRET"}, "datacontenttype": "text/plain"}, {}, "its data is an object"),
        ({"data": "\ud800", "datacontenttype": "text/plain"}, {}, "half a character"),
        ({"data": {"a": "\ud800"}}, {}, "half a character"),
        ({"data": "SECRET"}, {"data": "document"}, "a string, and has to be an object"),
        ({"data": "SECRET", "datacontenttype": "text/plain"}, {"data": "document"}, "wants JSON"),
        ({"data": {"txt": "SECRET"}}, {"data": "document"}, "did you mean 'text'"),
        ({"source": "a|b", "data": 1}, {"id": "source+id"}, "no URI"),
        ({"data": 1, "v": "x"}, {"version": "v"}, "'version' is a string"),
    ],
)
def test_what_is_refused(event: dict[str, Any], settings: dict[str, Any], why: str) -> None:
    """It says what is wrong, without the data."""
    with pytest.raises(UnreadableError, match=f"^events/0@9: .*{why}") as caught:
        structured(event, **settings)
    assert "SECRET" not in str(caught.value)


def test_records_that_are_no_events() -> None:
    """Values without an event around them, and kinds of structured events that are not read."""
    with pytest.raises(UnreadableError, match="no specversion; structured events have the content type"):
        read(b'{"specversion": "1.0"}', (("content-type", b"application/json"),), b"k")
    with pytest.raises(UnreadableError, match="cloudevents-batch"):
        read(b"[]", (("content-type", b"application/cloudevents-batch+json"),), b"k")
    with pytest.raises(UnreadableError, match="an array, and a structured"):
        read(b"[]", STRUCTURED, b"k")
    with pytest.raises(UnreadableError, match="'ce_type' is no UTF-8"):
        read(b"x", (("ce_specversion", b"1.0"), ("ce_type", b"\xff")), b"k")


def test_modes_that_are_configured() -> None:
    """Producers that leave the content type out can be read in the mode that is configured."""
    event = json.dumps({"specversion": "1.0", **ATTRIBUTES, "data": "x"}).encode()
    assert read(event, (), mode="structured").document_id == "doc/ü"
    with pytest.raises(UnreadableError, match="no specversion"):
        read(event, STRUCTURED, b"k", mode="binary")
