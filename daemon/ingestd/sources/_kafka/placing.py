"""Where a group begins that has committed nothing yet: at the earliest record, the latest, a time, or given offsets.

What is found is committed at once: a member that is started again before its first record has come goes on from
there, and loses nothing that came meanwhile.

"Latest" is for the past before the group. What comes to a partition that is added later, or to a topic that comes to
match, before a member notices it, is none of that: there, it begins at the earliest record. How to tell? The commit of
a place says so, and how many partitions the topic had then; a group that has any other commit, or one of fewer
partitions, is going on. Where two members begin at once and one is much slower, that one may read its past as well:
too much, and nothing is lost.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from kafka.structs import OffsetAndMetadata, TopicPartition

from ingestd.sources._kafka.connection import committed, partition_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import KafkaConsumer

    from ingestd.sources._kafka.start import Start

SECONDS = 10.0
"""For each question to a broker."""
_BEGUN = "ingestd begins, partitions: "
"""In the metadata of the commit of a place, before how many partitions the topic has."""


class Placing:
    """Where one consumer's partitions begin.

    Args:
        consumer: Ours.
        start: Where to begin.
    """

    def __init__(self, consumer: KafkaConsumer, start: Start) -> None:
        self._consumer = consumer
        self._start = start
        self._round: set[TopicPartition] = set()
        """What has just been placed: some brokers keep no metadata."""

    def place(self, partition: TopicPartition) -> int | None:
        """Seek to where a partition begins, and commit that, where the group has committed nothing.

        Args:
            partition: One that the consumer has.

        Returns:
            The offset; None: the group goes on where it was.

        Raises:
            KafkaError: A broker does not answer, or refuses.
        """
        found = committed(self._consumer, self._looked_at(partition), SECONDS)
        if partition in found:
            return None
        start = self._start
        if start == "latest" and self._goes_on(partition, found):
            start = "earliest"
        offset = _found(self._consumer, partition, start)
        self._consumer.seek(partition, offset)
        count = partition_count(self._consumer, partition.topic) or partition.partition + 1
        self._consumer.commit({partition: OffsetAndMetadata(offset, f"{_BEGUN}{count}", -1)}, timeout_ms=SECONDS * 1000)
        self._round.add(partition)
        return offset

    def done(self) -> None:
        """Take note that all that was to be placed is."""
        self._round.clear()

    def _looked_at(self, partition: TopicPartition) -> set[TopicPartition]:
        """Return of which partitions the group's commits are asked for."""
        if self._start != "latest":
            return {partition}
        counts = {topic: partition_count(self._consumer, topic) or 0 for topic in self._consumer.subscription() or ()}
        return {partition, *(TopicPartition(topic, number) for topic in counts for number in range(counts[topic]))}

    def _goes_on(self, partition: TopicPartition, found: Mapping[TopicPartition, OffsetAndMetadata]) -> bool:
        """Return whether the group began before the partition was there."""
        for other, commit in found.items():
            if other in self._round:
                continue
            count = (commit.metadata or "").removeprefix(_BEGUN)
            if count == commit.metadata or not count.isdigit():
                return True
            if other.topic == partition.topic and partition.partition >= int(count):
                return True
        return False


def _found(consumer: KafkaConsumer, partition: TopicPartition, start: Start) -> int:
    if isinstance(start, datetime):
        # Before the question for the time: what comes between the two is not older.
        end = int(consumer.end_offsets([partition], timeout_ms=SECONDS * 1000)[partition])
        found = consumer.offsets_for_times({partition: int(start.timestamp() * 1000)}, timeout_ms=SECONDS * 1000)
        answer: Any = found.get(partition)
        return end if answer is None else int(answer.offset)
    if isinstance(start, dict):
        named = start.get(f"{partition.topic}/{partition.partition}")
        if named is not None:
            return named
        start = "earliest"
    ends = consumer.end_offsets if start == "latest" else consumer.beginning_offsets
    return int(ends([partition], timeout_ms=SECONDS * 1000)[partition])
