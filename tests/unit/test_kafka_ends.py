"""Where partitions end: asked for now and then; one that nobody leads holds up no other, nor the consumer's thread."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kafka.errors import KafkaTimeoutError
from kafka.structs import TopicPartition

from ingestd.sources._kafka.ends import SECONDS, Ends
from ingestd.sources._kafka.tracker import Tracker
from ingestd.sources._kafka.view import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

A, B, C = (TopicPartition("t", number) for number in range(3))


class Client:
    """As much of kafka-python's consumer as is asked: three partitions, each led by a broker of its own."""

    def __init__(self) -> None:
        self.leaders = {A: 1, B: 2, C: 3}
        self.away: set[int] = set()
        """Brokers that do not answer."""
        self.asked: list[list[TopicPartition]] = []
        self._cluster = self
        self.read: int | None = None
        """Where a fetch says that a partition ends; None: nothing was fetched."""

    def leader_for_partition(self, partition: TopicPartition) -> int:
        """Return the leader, as the client's metadata say it."""
        return self.leaders[partition]

    def end_offsets(self, partitions: Sequence[TopicPartition], timeout_ms: float) -> dict[TopicPartition, int]:
        """Return the ends, if all of their brokers answer."""
        del timeout_ms
        self.asked.append(sorted(partitions))
        if {self.leaders[partition] for partition in partitions} & {*self.away, -1}:
            raise KafkaTimeoutError("no answer")
        return {partition: 10 + partition.partition for partition in partitions}

    def highwater(self, partition: TopicPartition) -> int | None:
        """Return what the last fetch said."""
        del partition
        return self.read


class Bench:
    """The ends of three partitions."""

    def __init__(self) -> None:
        self.client = Client()
        client: Any = self.client
        self.ends = Ends(client)

    def look(self, now: float) -> list[list[TopicPartition]]:
        """Return what is asked for now."""
        self.client.asked.clear()
        self.ends.look([A, B, C], now)
        return list(self.client.asked)


@pytest.fixture
def bench() -> Bench:
    """Return ends that nobody has asked for."""
    return Bench()


def test_a_partition_without_a_leader_holds_up_nothing(bench: Bench) -> None:
    """The others' ends are known, and it is not asked for in every turn: that took seconds of each."""
    bench.client.leaders[B] = -1
    asked = [question for turn in range(50) for question in bench.look(100 + turn * 0.2)]
    assert len(asked) == 2 * (10 / SECONDS)
    assert not any(B in question for question in asked)
    assert (bench.ends.said(A), bench.ends.said(B), bench.ends.said(C)) == (10, None, 12)


def test_a_broker_that_does_not_answer_costs_one_question_a_look(bench: Bench) -> None:
    """Those that answer are asked first; of several that do not, each has its turn."""
    bench.client.away = {1, 2}
    found = [bench.look(100 + turn * SECONDS) for turn in range(6)]
    assert all(sum(question != [C] for question in asked) == 1 for asked in found)
    assert all([C] in asked for asked in found[2:])
    assert {asked[-1][0] for asked in found[2:4]} == {A, B}
    bench.client.away.clear()
    bench.look(200.0)
    assert (bench.ends.said(A), bench.ends.said(B), bench.ends.unanswered(200.0 + PATIENCE)) == (10, 11, None)


def test_a_partition_that_is_new_is_asked_for_at_once(bench: Bench) -> None:
    """Not before its time for those that are known."""
    bench.ends.look([A], 100.0)
    assert bench.look(100.1) == [[B], [C]]
    assert bench.look(100.2) == []
    assert bench.look(100.0 + SECONDS) == [[A], [B], [C]]


def test_what_is_not_said_for_long_is_told(bench: Bench) -> None:
    """With the partition and the reason; no more once it is not held."""
    bench.client.leaders[B] = -1
    bench.look(100.0)
    assert bench.ends.unanswered(100.0 + PATIENCE - 0.1) is None
    bench.look(100.0 + SECONDS)
    message = bench.ends.unanswered(100.0 + PATIENCE)
    assert message == "no broker has said where t/1 ends for 18 s: it has no leader"
    bench.ends.forget(frozenset({A, C}))
    assert bench.ends.unanswered(1000.0) is None


def test_what_was_there_is_done_though_more_keeps_coming(bench: Bench) -> None:
    """On a topic that never rests there is always a record that is not done, and it is not one of those.

    The broker said 10, and a fetch 12: some brokers say the first offset of their last batch.
    """
    bench.look(0.0)
    tracker = Tracker()
    tenure: Any = SimpleNamespace(partition=A, tracker=tracker)
    bench.client.read = 12
    for offset in range(13):
        tracker.take(offset, 0.0)
        assert not bench.ends.is_worked_off(tenure, 0.0)
        if offset < 11:
            tracker.done(offset)
    bench.client.read = 100
    tracker.done(11)
    assert tracker.open == 1
    assert bench.ends.is_worked_off(tenure, 0.0)
