"""Where partitions end, as their brokers say: for the lag, and for knowing when what was there is worked off.

Each broker is asked for the partitions that it leads, and one that does not answer is enough for one look: it is the
consumer's thread that waits. A partition without a leader is asked for of nobody; together with others it would keep
theirs from being said as well.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import structlog
from kafka.errors import KafkaError

from ingestd.sources._kafka.connection import leader
from ingestd.sources._kafka.errors import told
from ingestd.sources._kafka.view import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.tenure import Tenure

SECONDS = 5.0
"""Between two looks."""
ANSWER_MS = 2_000.0
"""For the broker's answer."""
QUIET_SECONDS = 3.0
"""Without a record for so long, a partition that is past the end it had is at its end, whatever a fetch says."""

log = structlog.get_logger(__name__)


class _Silent(NamedTuple):
    """A partition of which it is not said where it ends."""

    since: float
    asked: float
    """When it was asked for last."""
    reason: str


class Ends:
    """The ends of the partitions that one consumer holds."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._now: dict[TopicPartition, int] = {}
        self._first: dict[TopicPartition, int] = {}
        """Where partitions ended when they were first looked at."""
        self._first_read: dict[TopicPartition, int] = {}
        """The same as a fetch said, when it first did: that is right also where the broker's answer is too low."""
        self._moved_at: dict[TopicPartition, float] = {}
        self._due = 0.0
        self._silent: dict[TopicPartition, _Silent] = {}

    def look(self, partitions: Iterable[TopicPartition], now: float) -> None:
        """Ask where partitions end, if it is time; at once for those that were never asked for."""
        wanted = [one for one in partitions if now >= self._due or not (one in self._first or one in self._silent)]
        if not wanted:
            return
        if now >= self._due:
            self._due = now + SECONDS
        by_leader: dict[int | None, list[TopicPartition]] = {}
        for partition in wanted:
            by_leader.setdefault(leader(self._consumer, partition), []).append(partition)
        self._not_said(by_leader.pop(None, []), now, "it has no leader")
        # Those that answered come first, then the one that was asked longest ago.
        for found in sorted(by_leader.values(), key=lambda one: max(self._asked(partition) for partition in one)):
            if not self._ask(found, now):
                break

    def _asked(self, partition: TopicPartition) -> float:
        silent = self._silent.get(partition)
        return -math.inf if silent is None else silent.asked

    def _ask(self, partitions: list[TopicPartition], now: float) -> bool:
        """Ask one broker; return whether it answered."""
        try:
            found = self._consumer.end_offsets(partitions, timeout_ms=ANSWER_MS)
        except (KafkaError, KeyError) as error:  # KeyError: of one of them nothing was said
            log.debug("the ends of the partitions are not known now", error=told(error))
            self._not_said(partitions, now, told(error))
            return False
        for partition, end in found.items():
            self._now[partition] = end
            self._first.setdefault(partition, end)
            self._moved_at.setdefault(partition, now)
            self._silent.pop(partition, None)
        return True

    def _not_said(self, partitions: list[TopicPartition], now: float, reason: str) -> None:
        for partition in partitions:
            before = self._silent.get(partition)
            self._silent[partition] = _Silent(now if before is None else before.since, now, reason)

    def moved(self, partition: TopicPartition, now: float) -> None:
        """Take note that records came."""
        self._moved_at[partition] = now

    def forget(self, held: frozenset[TopicPartition]) -> None:
        """Forget partitions that are not held."""
        for known in (self._now, self._first, self._first_read, self._moved_at, self._silent):
            for partition in known.keys() - held:
                del known[partition]

    def unanswered(self, now: float) -> str | None:
        """Return of which partition it has not been said for too long where it ends, and why; None: of none."""
        partition, silent = min(self._silent.items(), key=lambda one: one[1].since, default=(None, None))
        if partition is None or silent is None or now - silent.since < PATIENCE:
            return None
        name = f"{partition.topic}/{partition.partition}"
        return f"no broker has said where {name} ends for {now - silent.since:.0f} s: {silent.reason}"

    def said(self, partition: TopicPartition) -> int | None:
        """Return a partition's end as its broker last said it; records of open transactions are beyond it."""
        return self._now.get(partition)

    def of(self, partition: TopicPartition) -> int | None:
        """Return a partition's end; None: not known. A fetch knows it later, and better than some brokers' answer."""
        known = [self._now.get(partition), self._highwater(partition)]
        return max((end for end in known if end is not None), default=None)

    def first(self, partition: TopicPartition) -> int | None:
        """Return where a partition ended when it was first looked at; None: not known yet."""
        return self._first.get(partition)

    def is_worked_off(self, tenure: Tenure, now: float) -> bool:
        """Return whether all that was there when the partition was first looked at is done."""
        partition, watermark = tenure.partition, tenure.tracker.watermark
        first, highwater = self._first.get(partition), self._highwater(partition)
        if first is None:
            return False
        if highwater is not None and watermark is not None:
            first_read = self._first_read.setdefault(partition, highwater)
            if watermark >= max(first, first_read):
                return True  # however much has come since
        if tenure.tracker.open:
            return False
        position = None
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
