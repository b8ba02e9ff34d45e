"""How old the group's last answer is: counted from when it was asked, by a clock that runs while the machine sleeps."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.coordinator.heartbeat import Heartbeat
from kafka.structs import MemberState

from ingestd.sources._kafka import connection
from ingestd.sources._kafka.connection import Group

SESSION = 45.0
HOUR = 3600.0


class Bench:
    """A member's place in its group: the client's own heartbeat, and the answers of a group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.state = MemberState.STABLE
        self.completed: list[int] = []
        monkeypatch.setattr(connection, "boot_time", lambda: self.now)
        self.beats = Heartbeat(group_id="g", session_timeout_ms=int(SESSION * 1000))
        self.coordinator = SimpleNamespace(
            heartbeat=self.beats,
            _process_join_group_response=lambda _response, _at: None,
            _on_join_complete_async=self._complete,
        )
        consumer: Any = SimpleNamespace(
            config={"session_timeout_ms": int(SESSION * 1000), "heartbeat_interval_ms": 3000},
            _coordinator=self.coordinator,
            group_metadata=lambda: SimpleNamespace(generation_id=5, state=self.state),
        )
        self.group = Group(consumer)

    async def _complete(self, generation: int, *_more: object) -> None:
        self.completed.append(generation)

    def join(self, *, asking: float, giving: float) -> None:
        """Join as the client does, with so many seconds until the group lets us in, and until it gives us our part."""
        self.now += asking
        self.coordinator._process_join_group_response(None, 0.0)
        self.now += giving
        asyncio.run(self.coordinator._on_join_complete_async(5, "member", "range", b""))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a member that has heard nothing yet."""
    return Bench(monkeypatch)


def test_an_answer_is_as_old_as_its_question(bench: Bench) -> None:
    """The machine slept between a heartbeat and its answer: the group has long given up on us.

    The client's own note of when it sent it is on a clock that stood still meanwhile, and says: just now.
    """
    assert bench.group.heartbeat_age() is None
    bench.beats.sent_heartbeat()
    bench.now += HOUR
    bench.beats.received_heartbeat()
    assert bench.group.heartbeat_age() == HOUR
    bench.beats.sent_heartbeat()
    bench.now += 1.0
    bench.beats.received_heartbeat()
    assert bench.group.heartbeat_age() == 1.0


def test_a_join_is_heard_although_nothing_was_added(bench: Bench) -> None:
    """Cooperative: the listener is not called then, and the last heartbeat was before the rebalance."""
    bench.join(asking=20.0, giving=0.5)
    assert (bench.group.heartbeat_age(), bench.completed) == (0.5, [5])


def test_a_join_that_the_machine_slept_in_does_not_count_as_now(bench: Bench) -> None:
    """It is as old as the question for our part; waiting to be let in is not counted, for the group waits too."""
    bench.join(asking=HOUR, giving=0.0)
    assert bench.group.heartbeat_age() == 0.0
    bench.join(asking=0.0, giving=HOUR)
    assert bench.group.heartbeat_age() == HOUR


def test_an_older_answer_takes_nothing_back(bench: Bench) -> None:
    """A heartbeat that was sent before we joined is answered after it."""
    bench.beats.sent_heartbeat()
    bench.join(asking=5.0, giving=0.0)
    bench.beats.received_heartbeat()
    assert bench.group.heartbeat_age() == 0.0


def test_a_group_that_was_asked_nothing_is_not_silent(bench: Bench) -> None:
    """For lack of a topic the client joins no group: that is no silence, and no reason to make the consumer anew."""
    bench.now += HOUR
    assert bench.group.gone()
    bench.group.excuse(bench.now)
    assert bench.group.silence()[0] == 0.0
    assert not bench.group.gone()
    bench.group.excuse(bench.now - HOUR)
    assert bench.group.silence()[0] == 0.0
    assert (bench.group.heartbeat_age(), bench.group.heard_at()) == (None, None)


def test_whoever_has_partitions_is_alive_a_session_after_they_were_given_out(bench: Bench) -> None:
    """Until then a dead member may have them. Each time they are given out the session counts anew."""
    assert not bench.group.has_decided()
    for _ in range(2):
        bench.join(asking=1.0, giving=0.5)
        bench.now += SESSION
        assert not bench.group.has_decided()
    bench.now += 3.0 + connection.HEARD_SECONDS + 0.1
    assert bench.group.has_decided()
    bench.state = MemberState.REBALANCING
    assert not bench.group.has_decided()
