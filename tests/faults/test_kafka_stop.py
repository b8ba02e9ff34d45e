"""Daemons that are asked to end while their group is deciding who owns what."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.faults.kafka_place import Place
from tests.fixtures.daemon import workplace_in

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.brokers import Tansu
    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = [pytest.mark.lite, pytest.mark.kafka]

DRAIN = 4.0
END = 10.0
"""Seconds beyond the drain for leaving the group, for Milvus, and for a machine that is busy."""


@pytest.mark.timeout(600)
def test_a_stop_amid_a_rebalance(workplace: Workplace, tansu: Tansu, tmp_path: Path) -> None:
    """SIGTERM to one that holds partitions, Ctrl-C to one that waits to be let in: both end in time, and all is done
    by whoever comes next.
    """  # noqa: D205 - one sentence
    place = Place(workplace, tansu.bootstrap, 2)
    workplace.configure("shutdown.drain_seconds", DRAIN)
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.1)
    documents = place.produce(100)
    with workplace_in(tmp_path / "other") as other:
        other.settings = workplace.settings
        with workplace.daemon() as first, other.daemon() as second:
            first.until(lambda: first.totals.get("written", 0) >= 5 or second.totals.get("written", 0) >= 5, "at work")
            first.until_said("partitions assigned")
            second.until_said("consuming")
            first.send(signal.SIGTERM)
            second.send_group(signal.SIGINT)
            asked = time.monotonic()
            assert [0, 0] == [daemon.wait(DRAIN + END) for daemon in (first, second)]
            assert time.monotonic() - asked < DRAIN + END
        for one in (workplace, other):
            one.until_gone()
        workplace.configure("embedders.hash.delay_seconds_per_text", 0.0)
        with workplace.daemon() as last:
            last.until_ready()
            place.until_committed(240)  # Tansu leaves whoever comes after such an end unanswered for minutes, at times
            assert last.totals["dead_lettered"] == 0
        workplace.until_gone()  # or else its Milvus is asked while it ends
        assert documents == workplace.documents() | other.documents()


def test_a_second_signal_does_not_wait_for_the_drain(workplace: Workplace, tansu: Tansu) -> None:
    """It ends at once, leaves no process behind, and commits nothing of what it had begun."""
    place = Place(workplace, tansu.bootstrap)
    workplace.configure("embedders.hash.delay_seconds_per_text", 5.0)
    place.produce(3)
    with workplace.daemon() as daemon:
        daemon.until(lambda: _all_begun(daemon, 3), "all are at the model")
        daemon.send(signal.SIGTERM)
        daemon.until_said("draining")
        pause = time.monotonic() + 1.2
        daemon.until(lambda: time.monotonic() > pause, "the next signal is one of its own")
        daemon.send(signal.SIGTERM)
        assert daemon.wait(5) == 1
        workplace.until_gone()
    assert place.committed() == 0


def _all_begun(daemon: Daemon, count: int) -> bool:
    """Return whether so many documents are under way, and none waits for any stage, for as long as two looks take."""

    def none_waits() -> bool:
        (collection,) = daemon.status().get("collections") or [{"in_flight": 0}]
        return collection["in_flight"] == count and not any(
            depth for key, depth in collection.items() if key.startswith("waits_for")
        )

    if not none_waits():
        return False
    look = time.monotonic() + 0.5
    daemon.until(lambda: time.monotonic() > look, "the next look")
    return none_waits()
