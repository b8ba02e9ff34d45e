"""Records that cannot be read, and a schema registry that is away, through the whole daemon."""

from __future__ import annotations

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import confluent_kafka
import fastavro
import pytest
from tests.faults.kafka_place import NOTICED, SOURCE, Place, record, says
from tests.fixtures.brokers import create_topic, free_port, produce

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.brokers import Record, Tansu
    from tests.fixtures.daemon import Workplace

pytestmark = [pytest.mark.lite, pytest.mark.kafka]

LARGEST = 11_000_000
SCHEMA = {
    "type": "record",
    "name": "Document",
    "fields": [{"name": "id", "type": "string"}, {"name": "text", "type": "string"}],
}


def _json(**value: object) -> bytes:
    return json.dumps(value).encode()


BAD: dict[str, tuple[bytes | None, bytes | None]] = {
    "JSON": (b"k", b'{"id": "a", '),
    "UTF-8": (b"l", b'{"id": "\xff\xfe"}'),
    "text": (None, _json(id="types", text=7)),
    "id": (None, _json(text="Whose text is this?")),
    "bytes": (None, _json(id="x" * 5000, text="A text.")),
    "max_value_bytes": (None, _json(id="large", text="x" * 10_000_000)),
    "op": (None, _json(id="op", op="explode", text="A text.")),
    "base64": (None, _json(id="base64", content="***", content_type="text/plain")),
    "application/x-nobody": (
        None,
        _json(id="type", content=base64.b64encode(b"\0\1").decode(), content_type="application/x-nobody"),
    ),
}
"""Key and value of a bad record, by what its dead letter has to speak of. The last one is made below."""
NEITHER = "key"
"""What the dead letter of a record with neither key nor value has to speak of."""


def test_each_bad_record_has_its_letter_and_the_others_go_on(workplace: Workplace, tansu: Tansu) -> None:
    """Beside them, records in Avro wait while their registry is away, and go on when it is there."""
    place = Place(workplace, tansu.bootstrap)
    bad: list[Record] = [(key, value, (), 0) for key, value in BAD.values()]
    place.produce_records([record("before"), *bad], max_request_size=LARGEST)
    _produce_nothing(place.topic, tansu.bootstrap)
    place.count += 1
    place.produce_records([record("after")])
    port, avro = free_port(), f"{place.topic}-avro"
    create_topic(tansu.bootstrap, avro)
    produce(tansu.bootstrap, avro, [_avro("avro-1"), (None, b"\7" + bytes(20), (), 0), _avro("avro-2")])
    workplace.settings["sources"]["avro"] = {
        **workplace.settings["sources"][SOURCE],
        "topics": [avro],
        "group_id": avro,
        "format": {"type": "avro"},
        "schema_registry": {"urls": [f"http://127.0.0.1:{port}"]},
    }
    with workplace.daemon() as daemon:
        daemon.until_said("ready")
        daemon.until(lambda: says(daemon, "avro:registry"), "/readyz says that the registry is away", NOTICED)
        assert daemon.get("/readyz")[0] == 503
        daemon.until_settled(place.count)
        letters = workplace.letters()
        by_position = {letter["position"]: letter for letter in letters}
        assert len(by_position) == len(letters) == len(BAD) + 1
        for offset, word in enumerate([*BAD, NEITHER], 1):
            letter = by_position[f"{place.topic}/0@{offset}"]
            assert word in letter["message"], letter
            assert letter["source"] == SOURCE
        assert {"before", "after"} == workplace.documents()
        place.until_committed()
        with _registry(port):
            daemon.until_settled(place.count + 3)
            daemon.until_ready()
        added = [letter for letter in workplace.letters() if letter["position"] not in by_position]
        assert [f"{avro}/0@1"] == [letter["position"] for letter in added]
        assert "wire format" in added[0]["message"], added
        assert {"before", "after", "avro-1", "avro-2"} == workplace.documents()
        assert daemon.totals["retrying"] == 0


def _produce_nothing(topic: str, bootstrap: str) -> None:
    """Produce a record with neither key nor value, which kafka-python refuses to do."""
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap})
    producer.produce(topic, partition=0)
    assert producer.flush(20) == 0


def _avro(document: str) -> Record:
    written = io.BytesIO(b"\0" + (1).to_bytes(4))
    written.seek(5)
    fastavro.schemaless_writer(written, SCHEMA, {"id": document, "text": f"The text of {document}."})
    return None, written.getvalue(), (), 0


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"schema": json.dumps(SCHEMA)}).encode()
        self.send_response(200 if self.path.startswith("/schemas/ids/1") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@contextmanager
def _registry(port: int) -> Iterator[None]:
    """Serve one schema, as a registry does."""
    with ThreadingHTTPServer(("127.0.0.1", port), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
