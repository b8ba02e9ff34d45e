"""Avro and JSON Schema with a registry: a small server that answers as Confluent's does, and the ways it can fail."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import ssl
import sys
import threading
import time
import uuid
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import fastavro
import pytest
import trustme
from pydantic import ValidationError
from tests.fakes import ManualClock

from ingestd.errors import ConfigError, UnavailableError
from ingestd.model import Content, Op, Record
from ingestd.sources._values import registry as registry_module
from ingestd.sources._values.config import (
    AvroFormat,
    DebeziumFormat,
    Fields,
    JsonSchemaFormat,
    SchemaRegistry,
    decoder,
)
from ingestd.sources._values.decoded import Decoded, UnreadableError, ValueLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ingestd.sources._values.decoded import Decoder
    from ingestd.sources._values.registry import Registry

LIMITS = ValueLimits(max_value_bytes=1024 * 1024, max_bytes=1024 * 1024)
DOCUMENT = {
    "type": "record",
    "name": "Document",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "text", "type": ["null", "string"], "default": None},
        {"name": "content", "type": ["null", "bytes"], "default": None},
        {"name": "op", "type": {"type": "enum", "name": "Op", "symbols": ["upsert", "delete"]}, "default": "upsert"},
        {"name": "version", "type": ["null", "long"], "default": None},
    ],
}


class Answers(BaseHTTPRequestHandler):
    """Confluent's registry, as far as it is asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer, or fail in the way that the server was told to."""
        server: Any = self.server
        server.asked.append(self.path)
        if server.fault == "slow":
            server.over.wait(30)
        fault = server.fault
        if fault == "garbage":
            self._answer(200, b"<html>welcome</html>")
        elif fault == "other-json":
            self._answer(200, b'{"hello": "world"}')
        elif isinstance(fault, int):
            self._answer(fault, b'{"error_code": %d, "message": "no"}' % fault)
        elif server.credentials is not None and self.headers.get("Authorization") != server.credentials:
            self._answer(401, b"Unauthorized")
        else:
            self._answer(*self._found(server, [unquote(part) for part in urlsplit(self.path).path[1:].split("/")]))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _found(self, server: Any, parts: list[str]) -> tuple[int, bytes]:  # noqa: PLR0911 - a page each
        match parts:
            case ["schemas", "types"]:
                return 200, b'["AVRO", "JSON", "PROTOBUF"]'
            case ["subjects"]:
                return 200, b"[]"
            case ["schemas", "ids", number] if int(number) in server.schemas:
                return 200, json.dumps(server.schemas[int(number)]).encode()
            case ["schemas", "ids", _]:
                return 404, b'{"error_code": 40403, "message": "Schema not found"}'
            case ["subjects", subject, "versions", version] if (subject, int(version)) in server.subjects:
                return 200, json.dumps(server.subjects[subject, int(version)]).encode()
            case ["subjects", *_]:
                return 404, b'{"error_code": 40401, "message": "Subject not found"}'
        return 404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves what it is given, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, Answers)
        self.asked: list[str] = []
        self.schemas: dict[int, object] = {}
        self.subjects: dict[tuple[str, int], object] = {}
        self.fault: str | int | None = None
        self.credentials: str | None = None
        self.over = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        """Stop."""
        self.over.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def avro(self, number: int, schema: object, references: object = None, kind: str | None = None) -> None:
        """Register a schema; Confluent leaves the type of Avro out."""
        told = {"schema": json.dumps(schema), "references": references, "schemaType": kind}
        self.schemas[number] = {key: value for key, value in told.items() if value is not None}


class Setup:
    """A server, a registry that asks it, and a clock in hand."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.clock = ManualClock()
        self.registries: list[Registry] = []

    def registry(self, *urls: str, **settings: Any) -> Registry:
        """Return a registry, closed at the end."""
        config = SchemaRegistry(urls=urls or (self.server.url,), **{"timeout_seconds": 5, **settings})
        made = config.build("cms", self.clock)
        self.registries.append(made)
        return made

    def decoder(self, config: Any = None, registry: Registry | None = None, **settings: Any) -> Decoder:
        """Return a decoder, of Avro unless told otherwise."""
        config = AvroFormat() if config is None else config
        settings = {"id_from": "auto", "source": "cms", "limits": LIMITS, **settings}
        return decoder(config, registry=self.registry() if registry is None else registry, **settings)


@pytest.fixture
def setup() -> Iterator[Setup]:
    """Provide a server and what asks it."""
    with Server() as server:
        made = Setup(server)
        yield made
        server.over.set()
        for registry in made.registries:
            registry.close()


def avro(number: int, schema: Any, value: object) -> bytes:
    """Return a value in Confluent's wire format."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()


def record(value: bytes | None, key: bytes | None = b"a") -> Record:
    """Return a record."""
    return Record("documents", 0, 8, 0, key, value)


def answered(ask: Callable[[], Any], seconds: float = 10) -> Any:
    """Return an answer, asked again while a schema is being fetched: as the consumer's thread does."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except UnavailableError as error:
            if "is being fetched" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.005)


def failure(ask: Callable[[], Any]) -> str:
    """Return the message of what is unavailable once it is known why."""
    with pytest.raises(UnavailableError) as caught:
        answered(ask)
    assert caught.value.dependency == "registry:cms"
    return str(caught.value)


def content(decoded: Decoded) -> Content:
    """Return what an upsert brings."""
    assert decoded.payload is not None
    return decoded.payload.read()


def test_a_document_in_avro(setup: Setup) -> None:
    """Our own document, with null for what is absent, raw bytes as content, an enum for what is asked."""
    setup.server.avro(7, DOCUMENT)
    decode = setup.decoder()
    text = record(avro(7, DOCUMENT, {"id": "a", "text": "x", "op": "upsert", "version": 3}))
    found = answered(lambda: decode.decode(text))
    assert (found.document_id, found.version, content(found)) == ("a", 3, Content(b"x", "a", text="x"))
    raw = decode.decode(record(avro(7, DOCUMENT, {"id": "a", "content": b"\xff\0"})))
    assert content(raw) == Content(b"\xff\0", "a")
    gone = decode.decode(record(avro(7, DOCUMENT, {"id": "a", "op": "delete"})))
    assert gone == Decoded("a", Op.DELETE, None, None, 0)
    assert decode.decode(record(None)) == gone
    assert setup.server.asked == ["/schemas/ids/7"]


def test_decoding_never_waits(setup: Setup) -> None:
    """An unknown schema is fetched in the background: the call returns at once, and one fetch serves all that ask."""
    setup.server.avro(7, DOCUMENT)
    setup.server.fault = "slow"
    decode = setup.decoder()
    one = record(avro(7, DOCUMENT, {"id": "a", "text": "x"}))
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(UnavailableError, match="schema 7 is being fetched"):
            decode.decode(one)
    assert time.monotonic() - began < 1
    setup.server.fault = None
    setup.server.over.set()
    assert answered(lambda: decode.decode(one)).document_id == "a"
    assert len(setup.server.asked) == 1


def test_ids_that_are_not_there(setup: Setup) -> None:
    """Refused, believed for a minute, and then asked again: it may have been registered meanwhile."""
    decode = setup.decoder()
    one = record(avro(9, DOCUMENT, {"id": "a", "text": "x"}))
    for _ in range(3):
        with pytest.raises(UnreadableError, match=r"^documents/0@8: the registry has no schema 9") as caught:
            answered(lambda: decode.decode(one))
        assert caught.value.document_id == "a"
    assert len(setup.server.asked) == 1
    setup.server.avro(9, DOCUMENT)
    setup.clock.advance(registry_module.MISSING_SECONDS - 1)
    with pytest.raises(UnreadableError):
        decode.decode(one)
    setup.clock.advance(2)
    assert answered(lambda: decode.decode(one)).document_id == "a"
    assert len(setup.server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (500, "answers 500"),
        (503, "answers 503"),
        (404, "answers 404"),
        (302, "answers 302"),
        (429, "answers 429"),
        ("garbage", "no JSON"),
        ("other-json", "without a schema"),
    ],
)
def test_an_outage_is_no_bad_document(setup: Setup, fault: str | int, why: str) -> None:
    """Whatever answers and is no registry's answer: unavailable, with back-off, and good again by itself."""
    setup.server.avro(7, DOCUMENT)
    setup.server.fault = fault
    decode = setup.decoder()
    one = record(avro(7, DOCUMENT, {"id": "a", "text": "x"}))
    assert why in failure(lambda: decode.decode(one))
    for _ in range(20):
        assert why in failure(lambda: decode.decode(one))
        assert not setup.registries[0]._wanted
    assert len(setup.server.asked) == 1
    setup.server.fault = None
    setup.clock.advance(registry_module.FIRST_BACKOFF)
    assert recovered(lambda: decode.decode(one)).document_id == "a"


def recovered(ask: Callable[[], Any], seconds: float = 10) -> Any:
    """Return an answer once whatever was unavailable is back; the clock is not moved."""
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (UnavailableError, ConfigError):
            if time.monotonic() > until:
                raise
            time.sleep(0.005)


def test_back_off_grows(setup: Setup) -> None:
    """Each failure waits twice as long as the last, give or take a quarter, up to a bound; and it says how long."""
    setup.server.fault = 500
    registry = setup.registry()
    for failures in range(9):
        wait = 0.0
        until = time.monotonic() + 10
        while not wait and time.monotonic() < until:
            with pytest.raises(UnavailableError) as caught:
                registry.schema(1)
            wait = caught.value.wait or 0.0
        expected = min(registry_module.LONGEST_BACKOFF, registry_module.FIRST_BACKOFF * 2**failures)
        assert expected * 0.74 <= wait <= expected * 1.01
        assert len(setup.server.asked) == failures + 1
        setup.clock.advance(wait)


def test_a_registry_that_is_down(setup: Setup) -> None:
    """Nobody listens; when somebody does, it goes on."""
    with Server() as other:
        url, address = other.url, other.server_address
    registry = setup.registry(url)
    decode = setup.decoder(registry=registry)
    one = record(avro(7, DOCUMENT, {"id": "a", "text": "x"}))
    assert url in failure(lambda: decode.decode(one))
    assert not registry.check().ok
    with Server((str(address[0]), int(address[1]))) as other:
        other.avro(7, DOCUMENT)
        setup.clock.advance(registry_module.FIRST_BACKOFF)
        assert recovered(lambda: decode.decode(one)).document_id == "a"


def test_a_registry_that_is_slow(setup: Setup) -> None:
    """An answer that does not come in time is an outage."""
    setup.server.fault = "slow"
    decode = setup.decoder(registry=setup.registry(timeout_seconds=0.2))
    assert "timed out" in failure(lambda: decode.decode(record(avro(7, DOCUMENT, {"id": "a"}))))


def test_the_next_address_is_asked(setup: Setup) -> None:
    """One of several is enough, and the one that answered is asked first from then on."""
    with Server() as down:
        url = down.url
    setup.server.avro(7, DOCUMENT)
    with Server() as broken:
        broken.fault = 500
        decode = setup.decoder(registry=setup.registry(url, broken.url, setup.server.url + "/"))
        one = record(avro(7, DOCUMENT, {"id": "a", "text": "x"}))
        assert answered(lambda: decode.decode(one)).document_id == "a"
        with pytest.raises(UnreadableError, match="no schema 8"):
            answered(lambda: decode.decode(record(avro(8, DOCUMENT, {"id": "a"}))))
        assert len(broken.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials(setup: Setup, status: int) -> None:
    """A wrong set-up, said as such, until the registry takes them."""
    setup.server.avro(7, DOCUMENT)
    setup.server.fault = status
    decode = setup.decoder()
    one = record(avro(7, DOCUMENT, {"id": "a", "text": "x"}))
    for _ in range(3):
        with pytest.raises(ConfigError, match=f"^sources.cms.schema_registry: .*refuses the credentials .{status}"):
            answered(lambda: decode.decode(one))
    assert len(setup.server.asked) == 1
    setup.server.fault = None
    setup.clock.advance(registry_module.FIRST_BACKOFF)
    assert recovered(lambda: decode.decode(one)).document_id == "a"


def test_credentials(setup: Setup) -> None:
    """They are sent, in UTF-8, and the password is shown nowhere."""
    setup.server.credentials = "Basic " + base64.b64encode("ü:pä€".encode()).decode()
    registry = setup.registry(username="ü", password="pä€")
    assert registry.check().ok
    assert not setup.registry(username="ü", password="other").check().ok
    assert "pä€" not in repr(registry._config)


def test_check(setup: Setup) -> None:
    """It says whether a registry answers, also one that is too old for the page that is asked first."""
    registry = setup.registry()
    check = registry.check()
    assert (check.name, check.ok, check.detail) == ("registry:cms", True, setup.server.url)
    for fault, why in (
        (500, "500"),
        (401, "credentials"),
        ("garbage", "no JSON"),
        ("other-json", "no schema registry"),
    ):
        setup.server.fault = fault
        check = registry.check()
        assert (check.ok, why in check.detail, bool(check.cure)) == (False, True, True)
    setup.server.fault = None
    old = setup.registry(f"{setup.server.url}/old")
    assert not old.check().ok


def test_tls(setup: Setup, tmp_path: Path) -> None:
    """A registry with a certificate of one's own needs ``ca_file``; without it, it is not trusted."""
    authority, strangers = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    strangers.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    setup.server.socket = context.wrap_socket(setup.server.socket, server_side=True)
    url = setup.server.url.replace("http", "https")
    assert setup.registry(url, ca_file=tmp_path / "ca.pem").check().ok
    refused = setup.registry(url, ca_file=tmp_path / "other.pem").check()
    assert (refused.ok, "certificate" in refused.detail.lower()) == (False, True)
    with pytest.raises(ConfigError, match="ca_file"):
        setup.registry(url, ca_file=tmp_path / "none.pem")


@pytest.mark.parametrize(
    "settings",
    [
        {"urls": ()},
        {"urls": ("registry:8081",)},
        {"urls": ("http://u:p@registry:8081",)},
        {"urls": ("http://registry:8081?x",)},
        {"urls": ("http://registry",), "username": "u"},
        {"urls": ("http://registry",), "password": "p"},
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    """Addresses that are none, or that hold the credentials, and half of the credentials."""
    with pytest.raises(ValidationError):
        SchemaRegistry(**settings)


def test_closing_ends_the_thread(setup: Setup) -> None:
    """Nothing runs on, and what asks then is told that it is not there."""
    setup.server.avro(7, DOCUMENT)
    registry = setup.registry()
    answered(lambda: registry.schema(7))
    registry.close()
    assert "registry:cms" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(UnavailableError):
        registry.schema(8)


def test_absent_ids_are_bounded(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records can name any number of them; memory does not grow with it."""
    monkeypatch.setattr(registry_module, "MISSING_IDS", 3)
    decode = setup.decoder()
    for number in range(6):
        with pytest.raises(UnreadableError):
            answered(lambda: decode.decode(record(avro(number, "string", "x"))))  # noqa: B023 - called at once
    registry = setup.registries[0]
    assert len(registry._missing) == 3


ADDRESS = {"type": "record", "name": "org.x.Address", "fields": [{"name": "city", "type": "org.x.City"}]}
CITY = {"type": "record", "name": "City", "namespace": "org.x", "fields": [{"name": "name", "type": "string"}]}


@pytest.mark.parametrize("union", [False, True])
def test_avro_references(setup: Setup, union: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """What a schema refers to is fetched, what that refers to before it; also where the schema is no record."""
    person = {
        "type": "record",
        "name": "Person",
        "fields": [{"name": "body", "type": "string"}, {"name": "home", "type": "org.x.Address"}],
    }
    schema: Any = ["null", person] if union else person
    setup.server.avro(3, schema, [{"name": "org.x.Address", "subject": "addr/ess", "version": 2}])
    setup.server.subjects["addr/ess", 2] = {
        "id": 2,
        "schema": json.dumps(ADDRESS),
        "references": [{"name": "org.x.City", "subject": "city", "version": 1}],
    }
    setup.server.subjects["city", 1] = {"id": 1, "schema": json.dumps(CITY)}
    decode = setup.decoder(AvroFormat(fields=Fields(text="$.body", metadata={"city": "$.home.city.name"})))
    body = b"\x02x\x04Ulm"  # by hand, so that fastavro's writer does not vouch for its reader
    value = b"\0\0\0\0\x03" + (b"\x02" if union else b"") + body
    value = value.replace(b"\x04Ulm", b"\x06Ulm")
    found = content(answered(lambda: decode.decode(record(value))))
    assert (found.text, found.metadata) == ("x", {"city": "Ulm"})


def test_a_reference_that_is_gone(setup: Setup) -> None:
    """A schema that cannot be put together is refused by its name."""
    setup.server.avro(3, ADDRESS, [{"name": "org.x.City", "subject": "city", "version": 1}])
    decode = setup.decoder()
    with pytest.raises(UnreadableError, match=r"schema 3 refers to 'org.x.City', version 1 of 'city'"):
        answered(lambda: decode.decode(record(b"\0\0\0\0\x03")))


def test_references_in_a_circle(setup: Setup) -> None:
    """They end."""
    setup.server.avro(3, "string", [{"name": "a", "subject": "a", "version": 1}])
    for name, other in (("a", "b"), ("b", "a")):
        references = [{"name": other, "subject": other, "version": 1}]
        setup.server.subjects[name, 1] = {"schema": '"string"', "references": references}
    registry = setup.registry()
    assert [name for name, _ in answered(lambda: registry.schema(3)).references] == ["b", "a"]


def test_logical_types(setup: Setup) -> None:
    """Times, decimals, UUIDs and bytes are metadata as JSON has them; a UUID is an id, a point in time a version."""
    types = {
        "key": {"type": "string", "logicalType": "uuid"},
        "at": {"type": "long", "logicalType": "timestamp-micros"},
        "day": {"type": "int", "logicalType": "date"},
        "price": {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2},
        "raw": "bytes",
        "tags": {"type": "map", "values": {"type": "array", "items": "float"}},
        "body": "string",
    }
    schema = {"type": "record", "name": "R", "fields": [{"name": name, "type": one} for name, one in types.items()]}
    setup.server.avro(1, schema)
    key = uuid.UUID(int=5)
    at = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    row = {"key": key, "at": at, "day": at.date(), "price": Decimal("1.50"), "raw": b"\xff", "tags": {"a": [0.5]}}
    fields = Fields(id="$.key", text="$.body", version="$.at", rest=True, metadata={"when": "$.at"})
    decode = setup.decoder(AvroFormat(fields=fields))
    value = record(avro(1, schema, {**row, "body": "x"}), None)
    found = answered(lambda: decode.decode(value))
    assert (found.document_id, found.version) == (str(key), int(at.timestamp() * 1_000_000))
    assert content(found).metadata == {
        "day": "2026-01-02",
        "price": "1.50",
        "raw": "/w==",
        "tags": {"a": [0.5]},
        "when": "2026-01-02T03:04:05.000006+00:00",
    }


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "it is 0 bytes"),
        (b"\0\0\0\0", "it is 4 bytes"),
        (b"\x01\0\0\0\x07x", "begins with the byte 0x01"),
        (b'{"id": "a", "text": "SECRET"}', "begins with the byte 0x7b"),
        (b"\0\0\0\0\x07", "no record of schema 7"),
        (avro(7, DOCUMENT, {"id": "a", "text": "SECRET"})[:-9], "no record of schema 7"),
        (avro(7, DOCUMENT, {"id": "a", "text": "SECRET"}) + b"\0\0", "goes on for 2 bytes"),
        (b"\0\0\0\0\x07\x02a\x08", "no record of schema 7"),
        (b"\0\0\0\0\x07\xfe\xff\xff\xff\xff\xff\xff\xff\x7f", "no record of schema 7"),
        (avro(7, DOCUMENT, {"id": "a"}), "exactly one"),
    ],
)
def test_values_that_are_no_avro(setup: Setup, value: bytes, why: str) -> None:
    """Short, long, of another format, or damaged: refused, and the text is not quoted."""
    setup.server.avro(7, DOCUMENT)
    decode = setup.decoder()
    with pytest.raises(UnreadableError, match=f"^documents/0@8: .*{why}") as caught:
        answered(lambda: decode.decode(record(value)))
    assert caught.value.document_id == "a"
    assert "SECRET" not in str(caught.value)


LIST = {
    "type": "record",
    "name": "List",
    "fields": [{"name": "body", "type": "string"}, {"name": "next", "type": ["null", "List"]}],
}


def test_a_schema_that_contains_itself(setup: Setup) -> None:
    """It is read, and one that is nested a hundred thousand levels deep is refused instead of ending the process."""
    setup.server.avro(4, LIST)
    decode = setup.decoder(AvroFormat(fields=Fields(text="$.body", metadata={"more": "$.next.body"})))
    value = record(avro(4, LIST, {"body": "x", "next": {"body": "y", "next": None}}))
    assert content(answered(lambda: decode.decode(value))).metadata == {"more": "y"}
    deep = b"\0\0\0\0\x04" + b"\x02x\x02" * 100_000 + b"\x02x\0"
    assert sys.getrecursionlimit() < 100_000
    with pytest.raises(UnreadableError, match=r"no record of schema 4 .RecursionError"):
        decode.decode(record(deep))


@pytest.mark.parametrize(
    ("schema", "kind", "why"),
    [
        ({"type": "array", "items": "null"}, None, "items that take no bytes"),
        (
            {"type": "array", "items": {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}]}},
            None,
            "items that take no bytes",
        ),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, None, "items that take no bytes"),
        ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "Unknown"}]}, None, "UnknownType"),
        ({"type": "nonsense"}, None, "cannot be used"),
        ({"type": "object"}, "JSON", "schema 5 is 'JSON'"),
        ("message X {}", "PROTOBUF", "schema 5 is 'PROTOBUF'"),
    ],
)
def test_schemas_that_cannot_be_used(setup: Setup, schema: object, kind: str | None, why: str) -> None:
    """Of another kind, broken, or one that makes any number of items out of nothing."""
    setup.server.avro(5, schema, kind=kind)
    decode = setup.decoder()
    with pytest.raises(UnreadableError, match=why):
        answered(lambda: decode.decode(record(b"\0\0\0\0\x05\xfe\xff\xff\xff\xff\xff\xff\xff\x7f")))


KEY = {"type": "record", "name": "Key", "fields": [{"name": "tenant", "type": "int"}, {"name": "id", "type": "int"}]}


def test_avro_keys(setup: Setup) -> None:
    """A key in the wire format gives the id, of tombstones and bad values too; its schema is fetched likewise."""
    setup.server.avro(6, KEY)
    decode = setup.decoder(AvroFormat(key_format="avro", key_id="$.id"))
    key = avro(6, KEY, {"tenant": 1, "id": 44})
    found = answered(lambda: decode.decode(record(None, key)))
    assert found == Decoded("44", Op.DELETE, None, None, 0)
    late = setup.decoder(AvroFormat(key_format="avro", key_id="$.id"))
    with pytest.raises(UnreadableError, match="its value is not in the registry's wire format") as caught:
        answered(lambda: late.decode(record(b"{}", key)))
    assert caught.value.document_id == "44"
    with pytest.raises(UnreadableError, match="its key is no record of schema 6"):
        decode.decode(record(None, key[:-1]))
    with pytest.raises(UnreadableError, match="its key is not in the registry's wire format"):
        decode.decode(record(None, b"44"))


ROW = {"type": "record", "name": "Value", "fields": [{"name": "id", "type": "int"}, {"name": "body", "type": "string"}]}
ENVELOPE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", ROW]},
        {"name": "after", "type": ["null", "Value"]},
        {
            "name": "source",
            "type": {"type": "record", "name": "Source", "fields": [{"name": "lsn", "type": ["null", "long"]}]},
        },
        {"name": "op", "type": "string"},
    ],
}


def test_debezium_in_avro(setup: Setup) -> None:
    """The envelope is read as the JSON one is, keys and versions too."""
    setup.server.avro(6, KEY)
    setup.server.avro(8, ENVELOPE)
    config = AvroFormat(
        envelope="debezium",
        fields=Fields(id="$.id", text="$.body"),
        key_format="avro",
        key_id="$.id",
        version="$.source.lsn",
    )
    decode = setup.decoder(config)
    key, row = avro(6, KEY, {"tenant": 1, "id": 44}), {"id": 44, "body": "x"}

    def change(op: str, before: object, after: object) -> Record:
        value = {"before": before, "after": after, "source": {"lsn": 9}, "op": op}
        return record(avro(8, ENVELOPE, value), key)

    found = answered(lambda: decode.decode(change("c", None, row)))
    assert (found.document_id, found.version, content(found).text) == ("44", 9, "x")
    assert decode.decode(change("d", row, None)) == Decoded("44", Op.DELETE, None, 9, 0)
    assert decode.decode(change("d", None, None)) == Decoded("44", Op.DELETE, None, 9, 0)
    with pytest.raises(UnreadableError, match="truncated"):
        decode.decode(change("t", None, None))


def test_debezium_in_json_with_avro_keys(setup: Setup) -> None:
    """Keys and values can be of different converters."""
    setup.server.avro(6, KEY)
    decode = setup.decoder(DebeziumFormat(fields=Fields(text="$.body"), key_format="avro", key_id="$.id"))
    value = json.dumps({"op": "c", "before": None, "after": {"body": "x"}}).encode()
    one = record(value, avro(6, KEY, {"tenant": 1, "id": 44}))
    assert answered(lambda: decode.decode(one)).document_id == "44"


PAGE = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$id": "http://example.com/page.json",
    "type": "object",
    "required": ["text"],
    "properties": {"text": {"type": "string", "maxLength": 10}, "metadata": {"$ref": "meta.json"}},
}
META = {"type": "object", "properties": {"lang": {"enum": ["de", "en"]}}, "additionalProperties": False}


def in_json(number: int, value: object) -> Record:
    """Return a record with a value in the wire format."""
    return record(b"\0" + number.to_bytes(4, "big") + json.dumps(value).encode())


def test_json_schema(setup: Setup) -> None:
    """Values are validated, by what the schema refers to as well; what breaks it is named, and not quoted."""
    setup.server.avro(2, PAGE, [{"name": "meta.json", "subject": "meta", "version": 1}], "JSON")
    setup.server.subjects["meta", 1] = {"schema": json.dumps(META), "schemaType": "JSON"}
    decode = setup.decoder(JsonSchemaFormat())
    good = in_json(2, {"text": "x", "metadata": {"lang": "de"}})
    found = content(answered(lambda: decode.decode(good)))
    assert (found.text, found.metadata) == ("x", {"lang": "de"})
    for value, why in (
        ({"text": "SECRET SECRET"}, r"'maxLength' at '\$\.text'"),
        ({"text": "SECRET", "metadata": {"lang": "SECRET"}}, r"'enum' at '\$\.metadata\.lang'"),
        ({"text": "SECRET", "metadata": {"x": "SECRET"}}, "'additionalProperties'"),
        ({"id": "SECRET"}, "'required'"),
        ("SECRET", "'type'"),
    ):
        with pytest.raises(UnreadableError, match=f"breaks schema 2: .*{why}") as caught:
            decode.decode(in_json(2, value))
        assert "SECRET" not in str(caught.value)
    with pytest.raises(UnreadableError, match="no JSON"):
        decode.decode(record(b"\0\0\0\0\x02{"))


@pytest.mark.parametrize(
    ("schema", "kind", "why"),
    [
        ({"$ref": "http://127.0.0.1:9/never.json"}, "JSON", "schema 2 cannot be applied"),
        ({"$ref": "#"}, "JSON", "schema 2 cannot be applied: RecursionError"),
        ({"type": 5}, "JSON", "schema 2 cannot be used"),
        (DOCUMENT, None, "schema 2 is 'AVRO'"),
    ],
)
def test_json_schemas_that_cannot_be_used(setup: Setup, schema: object, kind: str | None, why: str) -> None:
    """Broken, round and round, of another kind, or leading to where nothing is fetched from."""
    setup.server.avro(2, schema, kind=kind)
    decode = setup.decoder(JsonSchemaFormat())
    with pytest.raises(UnreadableError, match=why):
        answered(lambda: decode.decode(in_json(2, {"text": "x"})))


def test_without_a_registry() -> None:
    """A format that needs one says so before anything is read."""
    with pytest.raises(ConfigError, match="schema_registry"):
        decoder(AvroFormat(), id_from="auto", source="cms", limits=LIMITS)


@pytest.mark.parametrize(("config", "missing"), [(AvroFormat(), "fastavro"), (JsonSchemaFormat(), "jsonschema")])
def test_without_the_extra(setup: Setup, monkeypatch: pytest.MonkeyPatch, config: Any, missing: str) -> None:
    """The message says what to install."""
    for name in ("avro", "json_schema"):
        monkeypatch.delitem(sys.modules, f"ingestd.sources._values.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"{missing}.*pip install 'milvus-ingestd\[schemas\]'"):
        setup.decoder(config)
