"""The brokers of the tests are what the tests take them for."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer
from kafka.errors import KafkaError, TopicAuthorizationFailedError
from tests.fixtures.brokers import MOCK_OPTIONS, Position, create_topic, produce
from tests.fixtures.daemon import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.brokers import Mock, Noida, TlsProxy, _Process

pytestmark = pytest.mark.kafka

PRODUCE, NOT_ALLOWED = 0, 29
RECORDS: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]], int | None]] = [
    (b"a", b"one", [("h", b"1")], 0),
    (b"b", b"two", [], 1),
    (b"a", None, [], 0),
]


@pytest.fixture(params=["own_tansu", "own_noida"])
def broker(request: pytest.FixtureRequest) -> _Process:
    """Each broker that is a process, in turn, for one test."""
    found: _Process = request.getfixturevalue(request.param)
    return found


def _consumed(bootstrap: str, topic: str, count: int, **options: Any) -> list[Any]:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=bootstrap.split(","),
        group_id=f"group-{uuid.uuid4()}",
        auto_offset_reset="earliest",
        session_timeout_ms=6000,
        heartbeat_interval_ms=500,
        enable_auto_commit=False,
        **options,
    )
    found: list[Any] = []

    def poll() -> bool:
        found.extend(record for records in consumer.poll(timeout_ms=500).values() for record in records)
        return len(found) >= count

    try:
        wait_for(poll, f"{count} records of {topic}", 30)
        consumer.commit(timeout_ms=10_000)
    finally:
        consumer.close(autocommit=False)
    return sorted(found, key=lambda record: (record.partition, record.offset))


def _check(bootstrap: str, **options: Any) -> None:
    positions = produce(bootstrap, "t", RECORDS, **options)
    assert [Position(0, 0), Position(1, 0), Position(0, 1)] == positions
    first, second, third = _consumed(bootstrap, "t", 3, **options)
    assert (b"a", b"one", [("h", b"1")]) == (first.key, first.value, list(first.headers))
    assert (b"a", None) == (second.key, second.value)
    assert (b"b", b"two") == (third.key, third.value)


def test_a_broker_keeps_records_for_a_group(broker: _Process) -> None:
    """Topics have the partitions asked for; a group gets keys, values, headers and tombstones; its end is an end."""
    create_topic(broker.bootstrap, "t", 2)
    _check(broker.bootstrap)
    pid = broker.pid
    broker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_noida_keeps_its_data_over_a_restart(own_noida: Noida) -> None:
    """What was there before SIGTERM is there after it, on the same port."""
    create_topic(own_noida.bootstrap, "t", 1)
    produce(own_noida.bootstrap, "t", [(b"k", b"before", [], None)])
    own_noida.restart()
    assert [b"before"] == [record.value for record in _consumed(own_noida.bootstrap, "t", 1)]


def test_the_mock_keeps_records_for_a_group(mock_cluster: Mock) -> None:
    """With the one version that it speaks, a client produces and a group consumes."""
    mock_cluster.create_topic("t", 2)
    _check(mock_cluster.bootstrap, **MOCK_OPTIONS)


def test_the_mock_errs_as_told(mock_cluster: Mock) -> None:
    """A pushed error meets the next request of its kind, once; a broker that is down answers nobody until it is up."""
    mock_cluster.create_topic("t", 1)
    mock_cluster.push_errors(PRODUCE, NOT_ALLOWED)
    with pytest.raises(TopicAuthorizationFailedError):
        produce(mock_cluster.bootstrap, "t", [(b"k", b"v", [], 0)], **MOCK_OPTIONS)
    mock_cluster.push_slow(1, PRODUCE, NOT_ALLOWED, 50)
    with pytest.raises(TopicAuthorizationFailedError):
        produce(mock_cluster.bootstrap, "t", [(b"k", b"v", [], 0)], **MOCK_OPTIONS)
    mock_cluster.down()
    with pytest.raises(KafkaError):
        produce(mock_cluster.bootstrap, "t", [(b"k", b"v", [], 0)], max_block_ms=500, **MOCK_OPTIONS)
    mock_cluster.up()
    assert [Position(0, 0)] == produce(mock_cluster.bootstrap, "t", [(b"k", b"v", [], 0)], **MOCK_OPTIONS)


def test_a_group_consumes_through_the_tls_proxy(tls_tansu: TlsProxy, tmp_path: Path) -> None:
    """Clients that trust the proxy's authority get all the way through it, since the broker advertises the proxy."""
    path = tmp_path / "authority.pem"
    tls_tansu.authority.cert_pem.write_to_path(str(path))
    options = {"security_protocol": "SSL", "ssl_cafile": str(path)}
    create_topic(tls_tansu.address, "t", 2, **options)
    _check(tls_tansu.address, **options)
