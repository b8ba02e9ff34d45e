"""Brokers and Milvus are away while records flow: it is said, nothing is lost or blamed, and all goes on by itself."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.faults.kafka_place import NOTICED, SESSION_MS, Place, metric, says
from tests.fixtures.brokers import Noida, create_topic
from tests.fixtures.daemon import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.brokers import Tansu
    from tests.fixtures.daemon import Daemon, Workplace
    from tests.fixtures.lite_server import LiteServer

pytestmark = [pytest.mark.lite, pytest.mark.kafka]


def test_a_broker_that_hangs_costs_nothing(workplace: Workplace, own_tansu: Tansu) -> None:
    """Stopped amid the work for longer than a session: /readyz says so, and no document is tried twice for it."""
    place = Place(workplace, own_tansu.bootstrap, 2)
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.05)
    documents = place.produce(100)
    with workplace.daemon() as daemon:
        daemon.until(lambda: daemon.totals.get("written", 0) >= 10, "it is amid the work")
        own_tansu.send(signal.SIGSTOP)
        daemon.until(lambda: says(daemon), "/readyz says that the broker is away", NOTICED)
        assert daemon.get("/readyz")[0] == 503
        own_tansu.send(signal.SIGCONT)
        daemon.until_ready()
        documents |= place.produce(10)
        place.until_committed()
        _nothing_is_blamed(daemon)
        assert documents == workplace.documents()
        assert daemon.stop() == 0


@pytest.fixture
def late_noida(tmp_path: Path) -> Iterator[Noida]:
    """A broker that is not started yet, and keeps its data over a stop."""
    broker = Noida(tmp_path / "noida")
    yield broker
    broker.kill()


def test_a_broker_may_come_late_and_go_for_a_while(workplace: Workplace, late_noida: Noida) -> None:
    """Not there at the start, and later stopped and started again: the daemon waits, says so, and reads on."""
    place = Place(workplace, late_noida.bootstrap, partitions=0)
    with workplace.daemon() as daemon:
        daemon.until_said("ready")
        daemon.until(lambda: says(daemon), "/readyz says that no broker answers", NOTICED)
        late_noida.start()
        place.partitions = 1
        create_topic(late_noida.bootstrap, place.topic)
        documents = place.produce(20)
        daemon.until_ready()
        place.until_committed()
        late_noida.stop()
        daemon.until(lambda: says(daemon), "/readyz says that the broker is away", NOTICED)
        late_noida.start()
        documents |= place.produce(20)
        place.until_committed()
        daemon.until_ready()
        _nothing_is_blamed(daemon)
        assert documents == workplace.documents()


def test_milvus_away_for_longer_than_a_poll_may_take(
    workplace: Workplace, tansu: Tansu, lite_server: LiteServer
) -> None:
    """Intake pauses and polling goes on: the member keeps its partitions, and nothing is done twice or blamed."""
    consumer = {"session_timeout_ms": SESSION_MS, "max_poll_interval_ms": SESSION_MS}
    place = Place(workplace, tansu.bootstrap, 2, consumer=consumer)
    for key in ("timeout_seconds", "connect_timeout_seconds"):
        workplace.configure(f"milvus.{key}", 2)
    workplace.configure("milvus.uri", lite_server.uri)
    lite_server.start()
    documents = place.produce(20)
    with workplace.daemon() as daemon:
        daemon.until_settled(20)
        lite_server.pause()
        over = time.monotonic() + 2 * SESSION_MS / 1000
        documents |= place.produce(40)
        daemon.until(lambda: says(daemon, "milvus"), "/readyz says that Milvus is away", NOTICED)
        documents |= place.produce(40)
        daemon.until(lambda: metric(daemon, "ingestd_kafka_paused") == 1, "reading is paused")
        wait_for(lambda: time.monotonic() > over, "two poll intervals are over")
        lite_server.go_on()
        daemon.until_settled(100)  # and no more: nothing came twice
        place.until_committed()
        assert metric(daemon, "ingestd_kafka_rebalances_total") == 1
        _nothing_is_blamed(daemon)
        assert documents == workplace.documents(lite_server.uri)


def _nothing_is_blamed(daemon: Daemon) -> None:
    totals = daemon.totals
    assert totals["dead_lettered"] == totals["retrying"] == 0, totals
    assert metric(daemon, "ingestd_events_settled_total", 'verdict="retrying"') == 0
