"""What the topics that are held are to the brokers: which ones, in how many partitions, and whether that has changed.

Offsets compare within one partition of one topic of one cluster (``domain``), and a name says little: a topic can be
made anew under it. The client's picture of the brokers can lack things for a while, and then what it said last stands.
Owns what is known, and the marks of partitions that turned out to be others where the brokers give topics no ids. A
mark lasts as long as its consumer: what was read before it compares again after a restart, which only ids can mend.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ingestd.sources._kafka.connection import cluster_id, partition_count, topic_id

if TYPE_CHECKING:
    from collections.abc import Collection

    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition


class Change(StrEnum):
    """What a look at a topic finds."""

    ANOTHER = "made anew"
    """It was made anew under its name."""
    REPARTITIONED = "other partitions"
    """It has other partitions than before: documents are in others than they were."""
    BETTER_KNOWN = "known better"
    """It is the same, and what its offsets compare within has another name now."""


@dataclass(frozen=True, slots=True)
class _Topic:
    """What is known of a topic; None: nothing was said yet."""

    cluster: str | None
    id: str | None
    partitions: int | None


class Topology:
    """The topics that one consumer reads.

    Args:
        consumer: Ours.
    """

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._known: dict[str, _Topic] = {}
        self._marks: dict[TopicPartition, str] = {}

    def domain(self, partition: TopicPartition) -> str:
        """Return what offsets of a partition compare within: changes only in ``look``, and by ``mark``."""
        if partition.topic not in self._known:
            self.look(partition.topic)
        known = self._known[partition.topic]
        mark = self._marks.get(partition, "")
        return f"kafka:{known.cluster or '-'}/{known.id or partition.topic}/{partition.partition}{mark}"

    def look(self, topic: str) -> Change | None:
        """Look at a topic again; return what is different, the first time nothing."""
        before, said = self._known.get(topic, _Topic(None, None, None)), self._said(topic)
        now = _Topic(
            said.cluster or before.cluster, said.id or before.id, said.partitions or before.partitions
        )  # what is not said now was not taken back
        first = topic not in self._known
        self._known[topic] = now
        if first or now == before:
            return None
        if before.id is not None and now.id != before.id:
            return Change.ANOTHER
        if before.partitions is not None and now.partitions != before.partitions:
            return Change.REPARTITIONED
        return Change.BETTER_KNOWN

    def nameless(self, topic: str) -> bool:
        """Return whether no id of a topic is known."""
        known = self._known.get(topic)
        return known is None or known.id is None

    def mark(self, partition: TopicPartition) -> None:
        """Take note that a partition is another one than it was, where no id will say so."""
        if self.nameless(partition.topic):
            self._marks[partition] = f"#{uuid.uuid4().hex[:12]}"

    def forget(self, held: Collection[str]) -> None:
        """Forget what is known of topics that are not held: they may be others when they come back."""
        for topic in self._known.keys() - held:
            del self._known[topic]

    def _said(self, topic: str) -> _Topic:
        consumer = self._consumer
        return _Topic(cluster_id(consumer), topic_id(consumer, topic), partition_count(consumer, topic))
