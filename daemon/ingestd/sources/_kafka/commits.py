"""Commits of watermarks: every so often, when partitions are taken from us, and at the end.

A commit that is refused costs nothing but that its records come again: it is counted, and the next one says more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from ingestd.sources._kafka.errors import told
from ingestd.sources._kafka.view import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.holdings import Holdings

log = structlog.get_logger(__name__)


class Commits:
    """What one consumer has committed.

    Args:
        source: The source's name, for the log.
        consumer: Ours.
        holdings: What it holds.
        seconds: Between two commits.
    """

    def __init__(self, source: str, consumer: KafkaConsumer, holdings: Holdings, seconds: float) -> None:
        self._source = source
        self._consumer = consumer
        self._holdings = holdings
        self._seconds = seconds
        self._committed: dict[TopicPartition, int] = {}
        self._due = 0.0
        self.highest: dict[TopicPartition, int] = {}
        """The highest commits of all partitions that were ever held, as far as they were answered well."""
        self._owed: dict[TopicPartition, tuple[int, float]] = {}
        """What was to be committed and is not yet, and since when. A rejoin, which puts a partition back to what is
        committed, does not change it: a group that refuses each commit has the same records done again and again."""
        self.refused = 0
        """Commits that were refused."""
        self.error: KafkaError | None = None
        """Why the last one was; None: it was not."""

    def when_due(self, now: float) -> None:
        """Send what is done and not committed, if it is time; the answer is awaited by nobody."""
        if now < self._due:
            return
        self._due = now + self._seconds
        offsets = self._watermarks()
        if not offsets:
            return
        for partition, offset in offsets.items():
            self._owed.setdefault(partition, (offset.offset, now))
        try:
            self._consumer.commit_async(offsets, callback=self._answered)
        except KafkaError as error:  # what an earlier one has met comes out here, too
            self._answered(offsets, error)

    def have(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Return whether so much is committed, as the group has said; what was not sent yet is hastened."""
        if all(self._committed.get(partition, -1) >= end for partition, end in ends.items()):
            return True
        if not self._owed:  # or it was sent, and goes again when it is due
            self._due = 0.0
        return False

    def unanswered(self, now: float) -> str | None:
        """Return why nothing has been committed for too long, though there is something; None: it has been."""
        longest = max((now - since for _offset, since in self._owed.values()), default=0.0)
        if longest < PATIENCE:
            return None
        reason = "no answer" if self.error is None else told(self.error)
        return f"what is done cannot be committed, for {longest:.0f} s: {reason}"

    async def at_once(self) -> None:
        """Commit on the client's own thread, before partitions go (``commit`` itself may not be called there)."""
        offsets = self._watermarks()
        if not offsets:
            return
        try:
            await self._consumer.commit_async(offsets)
        except KafkaError as error:
            self._answered(offsets, error)
        else:
            self._answered(offsets, None)

    def last(self, timeout_ms: float) -> None:
        """Commit, and wait for the answer."""
        offsets = self._watermarks()
        if not offsets:
            return
        try:
            # Without a time-out it could wait for ever.
            self._consumer.commit(offsets, timeout_ms=timeout_ms)
        except KafkaError as error:
            self._answered(offsets, error)

    def forget(self, held: frozenset[TopicPartition]) -> None:
        """Forget what was committed of partitions that are not held: others commit there now."""
        self._committed = {partition: offset for partition, offset in self._committed.items() if partition in held}
        self._owed = {partition: owed for partition, owed in self._owed.items() if partition in held}

    def _watermarks(self) -> dict[TopicPartition, OffsetAndMetadata]:
        found = {}
        for tenure in self._holdings.tenures():
            watermark = tenure.tracker.watermark
            if watermark is not None and watermark != self._committed.get(tenure.partition):
                found[tenure.partition] = OffsetAndMetadata(watermark, "", -1)
        return found

    def _answered(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], answer: object) -> None:
        if isinstance(answer, KafkaError):
            self.refused += 1
            self.error = answer
            log.info("a commit was refused; its records may come again", source=self._source, error=told(answer))
        else:
            self.error = None
            for partition, offset in offsets.items():
                self._committed[partition] = offset.offset
                self.highest[partition] = max(offset.offset, self.highest.get(partition, 0))
                if partition in self._owed and offset.offset >= self._owed[partition][0]:
                    del self._owed[partition]
