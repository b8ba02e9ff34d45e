"""Where partitions end, as their brokers say: for the lag, and for knowing when what was there is worked off."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from kafka.errors import KafkaError

from ingestd.sources._kafka.errors import told

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.tenure import Tenure

SECONDS = 5.0
"""Between two looks."""
ANSWER_MS = 2_000.0
"""For the broker's answer."""
SILENCE = 18.0
"""Seconds without an answer after which it is said; promised: within 30."""
QUIET_SECONDS = 3.0
"""Without a record for so long, a partition that is past the end it had is at its end, whatever a fetch says."""

log = structlog.get_logger(__name__)


class Ends:
    """The ends of the partitions that one consumer holds."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._now: dict[TopicPartition, int] = {}
        self._first: dict[TopicPartition, int] = {}
        """Where partitions ended when they were first looked at."""
        self._moved_at: dict[TopicPartition, float] = {}
        self._due = 0.0
        self._failing: tuple[float, str] | None = None
        """Since when there has been no answer, and why."""

    def look(self, partitions: Iterable[TopicPartition], now: float) -> None:
        """Ask where partitions end, if it is time, or if one was never asked for."""
        wanted = list(partitions)
        if not wanted or (now < self._due and all(partition in self._first for partition in wanted)):
            return
        self._due = now + SECONDS
        try:
            found = self._consumer.end_offsets(wanted, timeout_ms=ANSWER_MS)
        except (KafkaError, KeyError) as error:  # KeyError: of one of them nothing was said
            log.debug("the ends of the partitions are not known now", error=told(error))
            self._failing = (now if self._failing is None else self._failing[0], told(error))
            return
        self._failing = None
        for partition, end in found.items():
            self._now[partition] = end
            self._first.setdefault(partition, end)
            self._moved_at.setdefault(partition, now)

    def moved(self, partition: TopicPartition, now: float) -> None:
        """Take note that records came."""
        self._moved_at[partition] = now

    def forget(self, held: frozenset[TopicPartition]) -> None:
        """Forget partitions that are not held."""
        for known in (self._now, self._first, self._moved_at):
            for partition in known.keys() - held:
                del known[partition]

    def unanswered(self, now: float) -> str | None:
        """Return why the ends have not been said for too long; None: they have been."""
        if self._failing is None or now - self._failing[0] < SILENCE:
            return None
        return f"no broker has said where partitions end for {now - self._failing[0]:.0f} s: {self._failing[1]}"

    def said(self, partition: TopicPartition) -> int | None:
        """Return a partition's end as its broker last said it; records of open transactions are beyond it."""
        return self._now.get(partition)

    def of(self, partition: TopicPartition) -> int | None:
        """Return a partition's end; None: not known. A fetch knows it later, and better than some brokers' answer."""
        known = [self._now.get(partition), self._highwater(partition)]
        return max((end for end in known if end is not None), default=None)

    def is_worked_off(self, tenure: Tenure, now: float) -> bool:
        """Return whether all that was there when the partition was first looked at is done."""
        partition = tenure.partition
        first = self._first.get(partition)
        if first is None or tenure.tracker.open:
            return False
        position, highwater = None, self._highwater(partition)
        with suppress(KafkaError, AssertionError):
            position = self._consumer.position(partition, timeout_ms=ANSWER_MS)
        if position is None or position < first:
            return False
        if highwater is not None and position >= highwater:
            return True
        # An open transaction, or markers that are no records: nothing more comes, and there is no other sign of it.
        return now - self._moved_at.get(partition, now) > QUIET_SECONDS

    def _highwater(self, partition: TopicPartition) -> int | None:
        try:
            found: int | None = self._consumer.highwater(partition)
        except KafkaError:  # it was taken from us meanwhile
            return None
        return found
