"""What is given up of what is parked: all that is too far behind or too old, at once, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from kafka.structs import TopicPartition
from tests.unit.test_kafka_holdings import Membership

from ingestd.sources._kafka.parking import SECONDS, Parking
from ingestd.sources._kafka.tenure import Gate, Tenure
from ingestd.sources._kafka.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_LAG, MAX_SECONDS = 100, 1000.0


class Intake:
    """Remembers what was hastened (as much of ``ports.Intake`` as is needed)."""

    def __init__(self) -> None:
        self.hastened: list[str] = []

    def hasten(self, positions: Collection[str]) -> None:
        """Remember."""
        self.hastened += sorted(positions, key=lambda position: int(position.rpartition("@")[2]))


class Bench:
    """The parked records of one partition."""

    def __init__(self) -> None:
        self.parking = Parking("s", MAX_LAG, MAX_SECONDS)
        self.intake = Intake()
        self.tenure = Tenure(TopicPartition("t", 0), "domain", Tracker(), Gate(Membership()))

    def take(self, offset: int, now: float, *, parked: bool) -> None:
        """Take a record that is parked, or done."""
        self.tenure.tracker.take(offset, now)
        if parked:
            self.parking.park(f"t/0@{offset}", self.tenure, offset)
        else:
            self.tenure.tracker.done(offset)

    def look(self, now: float) -> list[str]:
        """Return what is given up now."""
        self.intake.hastened.clear()
        self.parking.unstick([self.tenure], cast("Any", self.intake), now)
        return list(self.intake.hastened)


def test_all_that_is_too_far_behind_is_given_up_at_once() -> None:
    """One in ten is parked, more than the limit has been taken: those beyond it go in one look, and none other.

    One at a time, everything stood still for as many looks as there are parked records behind the limit.
    """
    bench = Bench()
    for offset in range(150):
        bench.take(offset, 0.0, parked=offset % 10 == 0)
    late = [f"t/0@{offset}" for offset in range(0, 50, 10)]
    assert bench.look(SECONDS) == late
    assert bench.parking.expired == set(late)
    assert bench.look(2 * SECONDS) == [], "each is hastened once"
    for position in late:
        bench.parking.done(position)
    assert (bench.tenure.tracker.watermark, bench.parking.expired) == (50, frozenset())


def test_all_that_is_too_old_is_given_up_at_once() -> None:
    """Whatever came after it, and whether or not it is the one that holds the watermark."""
    bench = Bench()
    bench.tenure.tracker.take(0, 0.0)  # under way
    for offset in range(1, 4):
        bench.take(offset, float(offset), parked=True)
    assert bench.look(MAX_SECONDS + 1.0) == []
    assert bench.look(MAX_SECONDS + 3.0) == ["t/0@1", "t/0@2"]


def test_what_is_under_way_is_not_given_up() -> None:
    """Only what waits for a next try can go without one, however far behind it is."""
    bench = Bench()
    bench.tenure.tracker.take(0, 0.0)
    bench.take(1, 0.0, parked=True)
    bench.take(500, 0.0, parked=True)
    assert bench.look(SECONDS) == ["t/0@1"]
