"""Whatever bytes a record holds, every format decodes it or refuses it, and what it hands on can be worked with."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import fastavro
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from ingestd.model import Op, Record, canonical_json
from ingestd.sources._values.config import (
    AvroFormat,
    CloudEventsFormat,
    DebeziumFormat,
    Fields,
    JsonFormat,
    JsonSchemaFormat,
    OpValues,
    RawFormat,
    decoder,
)
from ingestd.sources._values.decoded import UnreadableError, ValueLimits
from ingestd.sources._values.registry import Schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.sources._values.decoded import Decoded, Decoder
    from ingestd.sources._values.identity import IdFrom

LIMITS = ValueLimits(max_value_bytes=100_000, max_bytes=100_000)
EVERYTHING = Fields(
    id="$.id",
    op="$.op",
    text="$..text",
    content="$.content",
    uri="$.uri",
    content_type="$.content_type",
    title="$.title",
    version="$.version",
    metadata={"m": "$.metadata", "f": "$.tags[?@.x > 1]"},
    rest=True,
)
ROWS = Fields(id="$.id", text="$.text", title="$.title", rest=True)
TYPES = {
    "id": ["null", "string", "long"],
    "text": ["null", "string"],
    "at": ["null", {"type": "long", "logicalType": "timestamp-millis"}],
    "n": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2},
    "key": {"type": "string", "logicalType": "uuid"},
    "tags": {"type": "map", "values": {"type": "array", "items": "double"}},
    "kind": {"type": "enum", "name": "E", "symbols": ["a", "b"]},
    "next": ["null", "R"],
}
LARGE = {"type": "record", "name": "R", "fields": [{"name": name, "type": one} for name, one in TYPES.items()]}
SMALL = {"type": "record", "name": "D", "fields": [{"name": name, "type": TYPES[name]} for name in ("id", "text")]}
CHANGE = {
    "type": "record",
    "name": "C",
    "fields": [
        {"name": "op", "type": "string"},
        {"name": "before", "type": ["null", SMALL]},
        {"name": "after", "type": ["null", "D"]},
    ],
}
KEY = ["null", "long", "string"]
AVRO: list[Any] = [LARGE, SMALL, CHANGE, KEY]
IN_JSON = {"properties": {"id": {"type": ["string", "integer"]}, "text": {"maxLength": 5}}}
SCHEMAS = [
    *(Schema(number, "AVRO", json.dumps(schema), ()) for number, schema in enumerate(AVRO)),
    Schema(4, "JSON", json.dumps(IN_JSON), ()),
]


class Shelf:
    """A registry that has its schemas at hand."""

    def schema(self, schema_id: int) -> Schema:
        """Return one of them, whatever is asked for."""
        return SCHEMAS[schema_id % len(SCHEMAS)]


def formats() -> Iterator[tuple[str, Any]]:
    """Yield every format in its variants."""
    yield "json", JsonFormat(uris=("https://example.com/", "file:///srv/"))
    yield "fields", JsonFormat(fields=EVERYTHING, op_values=OpValues(delete=(True, 1, "delete")))
    yield (
        "raw",
        RawFormat(title_header="title", metadata_headers={"a": "ce_id"}, name_header="file-name", content_type="x/y"),
    )
    for mode in ("auto", "structured", "binary"):
        yield f"cloudevents-{mode}", CloudEventsFormat(mode=mode, version="v", metadata={"a": "source"})
    yield "cloudevents-document", CloudEventsFormat(data="document", id="data")
    yield "cloudevents-fields", CloudEventsFormat(data="document", fields=EVERYTHING, id="source+id")
    yield "debezium", DebeziumFormat(fields=ROWS, key_id="$.id", version="$.ts_ms")
    yield "debezium-text-key", DebeziumFormat(fields=EVERYTHING.model_copy(update={"version": None}), key_format="text")
    yield "avro", AvroFormat()
    yield "avro-fields", AvroFormat(fields=EVERYTHING, key_format="avro")
    yield "avro-debezium", AvroFormat(envelope="debezium", fields=ROWS, key_format="json")
    yield "json_schema", JsonSchemaFormat(key_format="json")
    yield "json_schema-debezium", JsonSchemaFormat(envelope="debezium", fields=ROWS, key_format="avro")


def decoders() -> Iterator[tuple[str, Decoder]]:
    """Yield a decoder of every format for every rule of ids that it knows."""
    shelf: Any = Shelf()
    rules: tuple[IdFrom, ...] = ("auto", "key", "value")
    for name, config in formats():
        for rule in rules:
            if rule != "value" or not isinstance(config, RawFormat):
                yield f"{name}, {rule}", decoder(config, id_from=rule, source="s", limits=LIMITS, registry=shelf)


DECODERS = list(decoders())
WORDS = """id op text content uri content_type title metadata version tags x source type specversion subject data
    data_base64 datacontenttype before after schema payload v ts_ms"""
words = st.sampled_from(WORDS.split())
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5)
    | st.sampled_from(["1.0", "a", "delete", "upsert", "c", "d", "text/plain", "https://example.com/x", "AP8="])
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4),
    max_leaves=6,
)
documents = st.fixed_dictionaries(
    {"text": st.text(max_size=6)},
    optional={
        "id": st.sampled_from(["a", 5, "5", ""]),
        "version": st.integers(-(2**63), 2**63),
        "title": scalars,
        "metadata": st.dictionaries(words, trees, max_size=2),
    },
)
objects = documents | st.dictionaries(words, trees, max_size=5)
EVENT = {"specversion": "1.0", "id": "e", "source": "/s"}
events = st.fixed_dictionaries(
    {**{name: st.just(value) for name, value in EVENT.items()}, "type": st.sampled_from(["x.changed", "x.deleted"])},
    optional={"subject": st.just("a"), "data": objects | trees, "datacontenttype": scalars, "v": scalars},
)
changes = st.fixed_dictionaries(
    {"op": st.sampled_from("cudrt"), "before": objects | st.none(), "after": objects | st.none()},
    optional={"ts_ms": st.integers() | scalars},
)
texts = (objects | trees | events | changes).map(lambda tree: json.dumps(tree).encode())


def framed(number: int, data: bytes) -> bytes:
    """Return something in the registry's wire format."""
    return b"\0" + number.to_bytes(4, "big") + data


def in_avro(number: int, value: object) -> bytes:
    """Return a value that was written with one of the schemas."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(AVRO[number]), value)
    return framed(number, out.getvalue())


rows = st.fixed_dictionaries({"id": st.sampled_from(["a", 5, None]), "text": st.text(max_size=6) | st.none()})
written = (
    rows.map(lambda row: in_avro(1, row))
    | st.builds(lambda op, a, b: in_avro(2, {"op": op, "before": a, "after": b}), st.sampled_from("cud"), rows, rows)
    | st.sampled_from([None, 5, "a", ""]).map(lambda key: in_avro(3, key))
    | texts.map(lambda text: framed(4, text))
    | st.builds(framed, st.integers(0, 5), st.binary(max_size=40))
)
cut = st.builds(lambda data, at, byte: data[:at] + byte, written | texts, st.integers(0, 40), st.binary(max_size=2))
blobs = st.none() | st.binary(max_size=20) | texts | written | cut
keys = st.sampled_from([None, b"", b"a", b"5", b'"a"', b'{"id":5}', in_avro(3, "a"), in_avro(3, 5)]) | blobs
binary = [(f"ce_{name}", value.encode()) for name, value in EVENT.items()]
header = st.tuples(
    st.sampled_from(["content-type", "Content-Type", "ce_type", "ce_subject", "ce_v", "title", "file-name"]),
    st.none() | st.binary(max_size=5) | st.sampled_from([b"application/json", b"text/plain", b"x.deleted", b"a"]),
)
headers = st.builds(
    lambda good, more: (*good, *more),
    st.sampled_from(
        [[], [("content-type", b"application/cloudevents+json")], [*binary, ("ce_type", b"x")], binary[:2]],
    ),
    st.lists(header, max_size=3),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(key=keys, value=blobs, said=headers)
@example(key=b"a", value=b"[" * 50_000, said=())
@example(key=b"[" * 50_000, value=None, said=())
@example(key=b"\0\0\0\0\0" + b"\xff" * 30, value=b"\0\0\0\0\0" + b"\xff" * 30, said=())
@example(key=b"a", value=b"\0\0\0\0\0" + b"\x02\x02" * 40_000, said=())
@example(key=b"a", value=b'{"specversion":"1.0","id":"e","source":"/","type":"t","data":1e999}', said=())
def test_whatever_comes(key: bytes | None, value: bytes | None, said: Any) -> None:
    """It decodes, or is refused with its position; what is decoded has an id that can be one, and JSON as metadata.

    Every format sees every record: drawing them costs more than decoding them.
    """
    record = Record("t", 1, 2, 0, key, value, said)
    for name, decode in DECODERS:
        note(name)
        try:
            found = decode.decode(record)
        except UnreadableError as error:
            check_refusal(error)
        else:
            check_decoded(found)


def check_refusal(error: UnreadableError) -> None:
    """Check what is said of a record that is refused."""
    assert str(error).startswith("t/1@2: ")
    assert error.document_id is None or 0 < len(error.document_id.encode()) <= 4096


def check_decoded(found: Decoded) -> None:
    """Check that what a record says can be worked with."""
    assert 0 < len(found.document_id.encode()) <= 4096
    assert "\0" not in found.document_id
    assert found.version is None or -(2**63) <= found.version < 2**63
    assert (found.payload is None) == (found.op is Op.DELETE)
    content = None if found.payload is None else found.payload.at_hand
    if content is not None:
        assert content.text is None or content.text.encode() == content.data
        assert len(content.data) <= found.size
        json.dumps(content.metadata, allow_nan=False, ensure_ascii=False).encode()
        assert canonical_json([content.digest(), content.title, content.content_type])


@given(
    document=st.fixed_dictionaries(
        {"text": st.text(max_size=20)},
        optional={
            "id": st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
            "title": st.text(max_size=9),
            "version": st.integers(-(2**63), 2**63 - 1),
            "metadata": st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3),
        },
    )
)
def test_what_is_sent_arrives(document: dict[str, Any]) -> None:
    """A good document in JSON is decoded as it was sent, whatever its characters are, escaped or not."""
    decode = decoder(JsonFormat(), id_from="value" if "id" in document else "key", source="s", limits=LIMITS)
    for escaped in (True, False):
        value = json.dumps(document, ensure_ascii=escaped).encode()
        found = decode.decode(Record("t", 1, 2, 0, b"k", value))
        assert found.payload is not None
        content = found.payload.read()
        assert (found.document_id, found.version) == (document.get("id", "k"), document.get("version"))
        assert (content.text, content.data) == (document["text"], document["text"].encode())
        assert (content.title, content.metadata) == (document.get("title"), document.get("metadata", {}))
