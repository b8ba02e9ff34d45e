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
from ingestd.sources._kafka.connection import Group, pause_loop, refresh
from ingestd.sources._kafka.ends import Ends
from ingestd.sources._kafka.holdings import Holdings
from ingestd.sources._kafka.placing import Placing
from ingestd.sources._kafka.progress import Progress
from ingestd.sources._kafka.tenure import Gate
from ingestd.sources._kafka.topology import Change, Topology

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
        self.topology = Topology(consumer)
        self.holdings = Holdings(self.gate, self.topology.domain, consumer.seek)
        self.commits = Commits(source, consumer, self.holdings, config.commit_seconds)
        self.ends = Ends(consumer)
        self.placing = Placing(consumer, config.start)
        self.progress = Progress(consumer, self.ends)
        self.rebalances = 0
        self.failed: Exception | None = None
        """What a callback failed with: a fault of ours, for the client makes an error of its own of it."""
        self._source = source
        self._config = config
        self._eager = config.assignment == "eager"
        self._take_note = take_note
        self._leaving = False

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
        """Begin partitions anew whose topics are not what they were.

        Nothing else says that a topic was made anew: the client goes on asking for the offsets after the last one of
        the old topic, and would pass over as many of the new one. And where partitions were added, documents go to
        others from now on: what was written here of one can be overtaken there, so that nothing of it is to be relied
        on any more.
        """
        held = self.holdings.tenures()
        topics = {tenure.partition.topic for tenure in held}
        self.topology.forget(topics)
        for topic in topics:
            change = self.topology.look(topic)
            if change is None:
                continue
            log.warning(
                "a topic has changed; its partitions begin anew", source=self._source, topic=topic, how=change.value
            )
            for tenure in held:
                if tenure.partition.topic == topic:
                    self._changed(tenure.partition, change)

    def _changed(self, partition: TopicPartition, change: Change) -> None:
        if change is not Change.ANOTHER:
            self.holdings.again(partition)
            return
        self.anew(partition)
        with suppress(ValueError):  # it is not assigned any more, and we are about to hear of it
            self.consumer.seek(partition, 0)

    def falls(self, tenure: Tenure, offset: int) -> bool:
        """Return whether the first record of a tenure is before what we have committed, where no id says why.

        The topic was away in between, and nobody sets a group back that has members: it was made anew.
        """
        partition, first = tenure.partition, tenure.tracker.next is None
        return first and self.topology.nameless(partition.topic) and offset < self.commits.highest.get(partition, 0)

    def fallen(self, partition: TopicPartition) -> Tenure:
        """Begin a partition anew whose offsets fell without a seek of ours: what they counted is not there any more."""
        self.topology.mark(partition)
        self.commits.highest.pop(partition, None)
        return self.anew(partition)

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
                self._forget()
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
            self.holdings.assigned(assigned, self.group.generation(), all_at_once=self._eager)
            self._forget()
            # Others may know already that there are more partitions, and read in them what was read here.
            refresh(self.consumer)
            if self._config.start != "earliest":
                self.consumer.pause(*self.holdings.placed)
            self.rebalances += 1
            log.info("partitions assigned", source=self._source, partitions=len(self.holdings))
            self.gate.open()
        except Exception as error:
            self.failed = error
            raise

    def _forget(self) -> None:
        held = frozenset(tenure.partition for tenure in self.holdings.tenures())
        self.commits.forget(held)
        self.ends.forget(held)

    async def _calls_end(self) -> None:
        # Not for ever: a member that does not answer is taken for dead, and would lose all that it holds.
        until = time.monotonic() + min(CALLS_SECONDS, self.group.session_seconds / 3)
        while self.gate.calls and time.monotonic() < until:
            await pause_loop(self.consumer, 0.02)
