"""Whether records come that are there.

The client keeps most errors of a fetch to itself and asks again for ever: a partition without a leader, a broker that
refuses fetches while the group's coordinator answers every heartbeat. So what is looked at is the effect: the broker
says that there is more, we ask for it, and our place does not move.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kafka.errors import KafkaError

from ingestd.sources._kafka.view import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.ends import Ends
    from ingestd.sources._kafka.tenure import Tenure

SECONDS = 2.0
"""Between two looks."""
ANSWER_MS = 100.0
LOOK_SECONDS = 0.5
"""The longest that one look asks for places: those of the partitions that it does not get to stay as they were."""


class Progress:
    """Where the partitions are that one consumer holds, and for how long they have been there.

    Args:
        consumer: Ours.
        ends: Where the partitions end.
    """

    def __init__(self, consumer: KafkaConsumer, ends: Ends) -> None:
        self._consumer = consumer
        self._ends = ends
        self._at: dict[TopicPartition, int | None] = {}
        self._still: dict[TopicPartition, float] = {}
        """Seconds in which records were asked for and did not come."""
        self._looked = 0.0

    def look(self, tenures: Iterable[Tenure], now: float, *, paused: bool) -> None:
        """Look at all partitions, if it is time. Nothing is asked for while they are paused."""
        elapsed = min(now - self._looked, 2 * SECONDS)
        if elapsed < SECONDS:
            return
        self._looked = now
        if paused:
            return
        held = {tenure.partition: tenure for tenure in tenures}
        for gone in self._at.keys() - held.keys():
            del self._at[gone]
            self._still.pop(gone, None)
        until = time.monotonic() + LOOK_SECONDS
        for tenure in held.values():
            if time.monotonic() < until:
                self._look_at(tenure, elapsed)

    def stuck(self) -> str | None:
        """Return which partition has records that do not come; None: none."""
        partition, seconds = max(self._still.items(), key=lambda one: one[1], default=(None, 0.0))
        if partition is None or seconds < PATIENCE:
            return None
        at = self._at[partition]
        where = "" if at is None else f" from offset {at} on"
        return f"records of {partition.topic}/{partition.partition}{where} do not come, for {seconds:.0f} s"

    def _look_at(self, tenure: Tenure, elapsed: float) -> None:
        partition, position = tenure.partition, tenure.tracker.next
        end = self._ends.said(partition)
        if end is not None and (position is None or position < end):
            # Markers of transactions are passed over, and never handed to us: the client's place is the true one.
            position = self._position(partition)
            if position is not None:
                tenure.tracker.passed(position)
        if end is None or (position is not None and (position >= end or position != self._at.get(partition))):
            self._still.pop(partition, None)
        else:
            self._still[partition] = self._still.get(partition, 0.0) + elapsed
        self._at[partition] = position

    def _position(self, partition: TopicPartition) -> int | None:
        try:
            found: int | None = self._consumer.position(partition, timeout_ms=ANSWER_MS)
        except KafkaError:  # it cannot be asked for now, or was taken from us meanwhile
            return None
        return found
