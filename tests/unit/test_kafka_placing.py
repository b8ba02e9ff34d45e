"""Where partitions begin of which the group has committed nothing: by ``start``, or, added later, at the earliest."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from kafka.structs import OffsetAndMetadata, OffsetAndTimestamp, TopicPartition

from ingestd.sources._kafka.placing import Placing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ingestd.sources._kafka.start import Start

A, B, OTHER = TopicPartition("t", 0), TopicPartition("t", 1), TopicPartition("u", 0)
FIRST, END = 3, 10


class Brokers:
    """What the brokers know, of topics whose partitions have the offsets 3 to 9."""

    def __init__(self, *, metadata: bool = True) -> None:
        self.counts = {"t": 2, "u": 1}
        self.commits: dict[TopicPartition, OffsetAndMetadata] = {}
        self.metadata = metadata
        """Whether what a commit says beside its offset is kept."""
        self.end = END

    def progress(self, partition: TopicPartition) -> None:
        """Have the group commit what it has done."""
        self.commits[partition] = OffsetAndMetadata(END, "", -1)


class Client:
    """As much of kafka-python's consumer as is asked."""

    def __init__(self, brokers: Brokers) -> None:
        self.brokers = brokers
        self.sought: dict[TopicPartition, int] = {}
        self._cluster = self._coordinator = self

    def subscription(self) -> set[str]:
        """Return the topics."""
        return set(self.brokers.counts)

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Return the partitions' numbers."""
        return set(range(self.brokers.counts[topic]))

    def fetch_committed_offsets(
        self, partitions: Iterable[TopicPartition], timeout_ms: float
    ) -> Mapping[TopicPartition, OffsetAndMetadata]:
        """Return the group's commits."""
        del timeout_ms
        return {one: self.brokers.commits[one] for one in partitions if one in self.brokers.commits}

    def beginning_offsets(self, partitions: Iterable[TopicPartition], timeout_ms: float) -> dict[TopicPartition, int]:
        """Return the first offsets."""
        del timeout_ms
        return dict.fromkeys(partitions, FIRST)

    def end_offsets(self, partitions: Iterable[TopicPartition], timeout_ms: float) -> dict[TopicPartition, int]:
        """Return the ends."""
        del timeout_ms
        return dict.fromkeys(partitions, self.brokers.end)

    def offsets_for_times(
        self, times: Mapping[TopicPartition, int], timeout_ms: float
    ) -> Mapping[TopicPartition, OffsetAndTimestamp | None]:
        """Return that all records are older."""
        del timeout_ms
        self.brokers.end += 1  # and one comes right after that
        return dict.fromkeys(times)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Remember."""
        self.sought[partition] = offset

    def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], timeout_ms: float) -> None:
        """Keep the group's commits."""
        del timeout_ms
        for partition, said in offsets.items():
            self.brokers.commits[partition] = (
                said if self.brokers.metadata else OffsetAndMetadata(said.offset, None, -1)
            )


def member(brokers: Brokers, start: Start = "latest") -> Placing:
    """Return what a member places with."""
    client: Any = Client(brokers)
    return Placing(client, start)


def test_a_new_group_begins_at_the_end_of_all_partitions() -> None:
    """Those that are placed first are no sign of a group that goes on, whichever member placed them."""
    brokers = Brokers()
    one, other = member(brokers), member(brokers)
    assert [END, END, END] == [one.place(A), other.place(B), one.place(OTHER)]
    assert [None, None] == [one.place(B), other.place(A)], "they have begun"


def test_brokers_that_keep_no_metadata_do_for_one_member() -> None:
    """What it has placed just now it knows by itself."""
    placing = member(Brokers(metadata=False))
    assert [END, END, END] == [placing.place(A), placing.place(B), placing.place(OTHER)]


def test_a_partition_that_is_added_begins_at_its_earliest_record() -> None:
    """Although the group has done nothing since it began, or nothing is kept of how it did."""
    for metadata in (True, False):
        brokers = Brokers(metadata=metadata)
        brokers.counts["t"] = 1
        placing = member(brokers)
        assert [END, END] == [placing.place(A), placing.place(OTHER)]
        placing.done()
        brokers.counts["t"] = 2
        assert placing.place(B) == FIRST


@pytest.mark.parametrize("topic", [B, OTHER])
def test_in_a_group_that_goes_on_what_is_new_begins_at_its_earliest_record(topic: TopicPartition) -> None:
    """A partition, or a topic that has come to match: nothing of it was there before the group."""
    brokers = Brokers()
    brokers.progress(A)
    assert member(brokers).place(topic) == FIRST


def test_offsets_and_earliest_are_what_they_say() -> None:
    """Whatever the group has committed elsewhere."""
    brokers = Brokers()
    brokers.progress(A)
    assert member(brokers, {"t/1": 7}).place(B) == 7
    assert member(brokers, {"t/1": 7}).place(OTHER) == FIRST


def test_what_comes_while_a_time_is_asked_for_is_not_older() -> None:
    """All records are older, and one comes before the end is asked for: it is read."""
    assert member(Brokers(), datetime(2026, 1, 1, tzinfo=UTC)).place(A) == END
