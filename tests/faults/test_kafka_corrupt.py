"""A batch of records that is damaged in a broker's log."""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING

import crc32c
import pytest
from kafka.record import MemoryRecordsBuilder
from tests.faults.kafka_place import NOTICED, Place, record, says
from tests.fixtures.brokers import produce
from tests.fixtures.mock_cluster import MOCK_OPTIONS

if TYPE_CHECKING:
    from tests.fixtures.daemon import Workplace
    from tests.fixtures.mock_cluster import Mock

pytestmark = [pytest.mark.lite, pytest.mark.kafka]


@pytest.mark.parametrize(("damage", "said"), [("checksum", "offset 1 "), ("header", "reading fails")])
def test_a_damaged_batch_is_named_and_hangs_nothing(
    workplace: Workplace, mock_cluster: Mock, damage: str, said: str
) -> None:
    """/readyz says where it is, what is before it and beside it is written, and the daemon ends when asked to.

    A record that the client itself chokes on (a header's name that is no UTF-8) is no end of the process either: it
    would be one at every start.
    """
    consumer = {"api_version": [2, 0], "session_timeout_ms": 6000}
    place = Place(workplace, mock_cluster.bootstrap, partitions=0, consumer=consumer)
    mock_cluster.create_topic(place.topic, 2)
    good = [record("before", 0), record("beside", 1)]
    produce(mock_cluster.bootstrap, place.topic, good, **MOCK_OPTIONS)
    _produce_damaged(mock_cluster.bootstrap, place.topic, damage)
    with workplace.daemon() as daemon:
        daemon.until_said("ready")
        daemon.until(lambda: said in (says(daemon) or ""), "/readyz says so", NOTICED)
        produce(mock_cluster.bootstrap, place.topic, [record("later", 1)], **MOCK_OPTIONS)
        daemon.until_settled(3)
        assert {"before", "beside", "later"} == workplace.documents()
        assert daemon.stop(20) == 0


def _produce_damaged(bootstrap: str, topic: str, damage: str) -> None:
    """Put a damaged batch into partition 0: no client does that, so the request is made by hand."""
    builder = MemoryRecordsBuilder(2, 0, 1 << 16)
    value = json.dumps({"id": "damaged", "text": "A text."}).encode()
    builder.append(timestamp=None, key=None, value=value, headers=[("name", b"x")])
    builder.close()
    batch = bytearray(builder.buffer())
    if damage == "checksum":
        batch[17] ^= 0xFF  # its first byte, after offset, length, leader's epoch and magic
    else:
        at = batch.index(b"name")
        batch[at : at + 4] = b"\xff\xfe\xfd\xfc"
        batch[17:21] = struct.pack(">I", crc32c.crc32c(bytes(batch[21:])))
    name = topic.encode()
    request = struct.pack(">hhih", 0, 3, 1, -1) + struct.pack(">hhi", -1, 1, 5000)
    request += struct.pack(">ih", 1, len(name)) + name + struct.pack(">iii", 1, 0, len(batch)) + batch
    host, _, port = bootstrap.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as broker:
        broker.sendall(struct.pack(">i", len(request)) + request)
        answer = broker.recv(4096)
    error = struct.unpack(">h", answer[8 + 4 + 2 + len(name) + 4 + 4 :][:2])[0]
    assert error == 0, answer
