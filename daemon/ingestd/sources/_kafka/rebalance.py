"""One consumer in its group: what it holds, and what happens when the group gives partitions out anew.

The group's callbacks run on the client's own thread, but only while ours is inside ``poll`` or ``close``: what they
change needs no lock.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from kafka import AsyncConsumerRebalanceListener
from kafka.errors import KafkaError

from ingestd.sources._kafka.commits import Commits
from ingestd.sources._kafka.connection import Group, domain_of, pause_loop, topic_id
from ingestd.sources._kafka.ends import Ends
from ingestd.sources._kafka.holdings import Holdings
from ingestd.sources._kafka.progress import Progress
from ingestd.sources._kafka.tenure import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.tenure import Tenure
    from ingestd.sources.kafka import Config

CALLS_SECONDS = 10.0
"""The longest that a rebalance waits for calls to Milvus that have begun."""
CLOSE_MS = 2_000.0
"""For the last commit, and for leaving the group."""

log = structlog.get_logger(__name__)


class Seat(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """A consumer's seat in its group.

    Args:
        source: The source's name, for the log.
        consumer: Connected, not yet subscribed.
        config: The settings.
        take_note: Brings the trackers up to date with what was settled.
    """

    def __init__(
        self, source: str, consumer: KafkaConsumer, config: Config, take_note: Callable[[Holdings], None]
    ) -> None:
        self.consumer = consumer
        self.group = Group(consumer)
        self.gate = Gate(self.group)
        self.holdings = Holdings(self.gate, lambda partition: domain_of(consumer, *partition), consumer.seek)
        self.commits = Commits(source, consumer, self.holdings, config.commit_seconds)
        self.ends = Ends(consumer)
        self.progress = Progress(consumer, self.ends)
        self.rebalances = 0
        self.failed: Exception | None = None
        """What a callback failed with: a fault of ours, for the client makes an error of its own of it."""
        self._source = source
        self._config = config
        self._eager = config.assignment == "eager"
        self._take_note = take_note
        self._leaving = False
        self._topic_ids: dict[str, str] = {}

    def subscribe(self) -> None:
        """Ask the group for partitions."""
        if self._config.topics:
            self.consumer.subscribe(list(self._config.topics), listener=self)
        else:
            self.consumer.subscribe(pattern=self._config.topic_pattern, listener=self)

    def close(self) -> None:
        """Commit, and leave the group."""
        self._leaving = True
        try:
            if self.gate.holds():
                self.commits.last(CLOSE_MS)
        finally:
            self.holdings.end_all()
            with suppress(KafkaError, OSError):
                self.consumer.close(autocommit=False, timeout_ms=CLOSE_MS)

    def look_at_topics(self) -> None:
        """Begin topics at their first record that were made anew under the name that they had.

        Nothing else says that they were: the client goes on asking for the offsets after the last one of the old topic,
        and would pass over as many of the new one.
        """
        for tenure in self.holdings.tenures():
            topic, now = tenure.partition.topic, topic_id(self.consumer, tenure.partition.topic)
            if now is not None and self._topic_ids.setdefault(topic, now) != now:
                log.warning("a topic was made anew, and is read from its beginning", source=self._source, topic=topic)
                self._topic_ids[topic] = now
                for partition in [one.partition for one in self.holdings.tenures() if one.partition.topic == topic]:
                    self.anew(partition)
                    self.consumer.seek(partition, 0)

    def anew(self, partition: TopicPartition) -> Tenure:
        """Begin a partition anew where it is: its offsets do not go on from those that we know."""
        others = frozenset(tenure.partition for tenure in self.holdings.tenures()) - {partition}
        self.commits.forget(others)
        self.ends.forget(others)
        return self.holdings.anew(partition)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let calls end, commit, and give up."""
        if self._leaving:
            return
        try:
            self.gate.close()
            await self._calls_end()
            self._take_note(self.holdings)
            await self.commits.at_once()
            self.holdings.revoked(revoked, self.group.generation(), all_at_once=self._eager)
            if not self._eager:
                self.gate.open()
        except Exception as error:
            self.failed = error
            raise

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Give up: whatever is done from here on is another member's."""
        log.warning("the group has given our partitions to others", source=self._source, partitions=len(lost))
        self.holdings.lost(lost)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin what is new, and go on with what stayed."""
        try:
            self.group.joined()
            self.holdings.assigned(assigned, self.group.generation(), all_at_once=self._eager)
            held = frozenset(tenure.partition for tenure in self.holdings.tenures())
            self.commits.forget(held)
            self.ends.forget(held)
            topics = {partition.topic for partition in held}
            self._topic_ids = {topic: known for topic, known in self._topic_ids.items() if topic in topics}
            if self._config.start != "earliest":
                self.consumer.pause(*self.holdings.placed)
            self.rebalances += 1
            log.info("partitions assigned", source=self._source, partitions=len(held))
            self.gate.open()
        except Exception as error:
            self.failed = error
            raise

    async def _calls_end(self) -> None:
        # Not for ever: a member that does not answer is taken for dead, and would lose all that it holds.
        until = time.monotonic() + min(CALLS_SECONDS, self.group.session_seconds / 3)
        while self.gate.calls and time.monotonic() < until:
            await pause_loop(self.consumer, 0.02)
