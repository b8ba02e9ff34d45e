"""Records of transactions, and partitions that end in their markers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaProducer
from tests.integration.kafka.conftest import Rig, offsets, records, value

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kafka


@contextmanager
def _producer(rig: Rig) -> Iterator[Any]:
    producer = KafkaProducer(bootstrap_servers=rig.bootstrap, transactional_id=f"x-{rig.topic}")
    producer.init_transactions()
    try:
        yield producer
    finally:
        producer.close(timeout=5)


def _send(producer: Any, rig: Rig, *documents: str) -> None:
    for document in documents:
        producer.send(rig.topic, value(document), document.encode(), partition=0)
    producer.flush(10)


def test_records_of_aborted_transactions_never_come(on_noida: Rig) -> None:
    """Only what was committed is read; a marker at the end is no record that is missing: the lag is 0 and stays so."""
    on_noida.make()
    with _producer(on_noida) as producer:
        producer.begin_transaction()
        _send(producer, on_noida, "committed")
        producer.commit_transaction()
        producer.begin_transaction()
        _send(producer, on_noida, "aborted")
        producer.abort_transaction()
        producer.begin_transaction()
        _send(producer, on_noida, "last")
        producer.commit_transaction()
    with on_noida.running() as engine:
        engine.until_settled(2)
        partition = (on_noida.topic, 0)
        lag = "ingestd_kafka_lag_records"
        engine.until(lambda: engine.gauge(lag, partition) == 0, "the markers are no lag")
        on_noida.produce((b"x", value("x"), [], 0))
        engine.until_settled(3)
        engine.until(lambda: engine.gauge(lag, partition) == 0, "nothing is left")
    assert ["committed", "last", "x"] == engine.documents()
    assert {0: [0, 4, 6]} == offsets(engine)


def test_once_does_not_wait_for_an_open_transaction(on_noida: Rig) -> None:
    """What is before it is done, and nothing behind it is: not now, and not lost when it is committed later."""
    on_noida.make()
    on_noida.produce(*records(2))
    with _producer(on_noida) as producer:
        producer.begin_transaction()
        _send(producer, on_noida, "open")
        on_noida.produce((b"behind", value("behind"), [], 0))
        assert ["d0", "d1"] == on_noida.once().documents()
        assert 2 == on_noida.committed()
        producer.commit_transaction()
    assert ["open", "behind"] == on_noida.once().documents()


def test_uncommitted_records_come_where_that_is_asked_for(on_noida: Rig) -> None:
    """With ``isolation = "read_uncommitted"`` aborted records come too."""
    on_noida.make()
    with _producer(on_noida) as producer:
        producer.begin_transaction()
        _send(producer, on_noida, "aborted")
        producer.abort_transaction()
    on_noida.produce((b"x", value("x"), [], 0))
    assert ["aborted", "x"] == on_noida.once(isolation="read_uncommitted").documents()
