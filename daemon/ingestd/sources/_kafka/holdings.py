"""The partitions that a member holds, and what becomes of them in a rebalance.

Revoked and lost differ: what is revoked was ours until this moment, so that its watermark can still be committed, and
a partition that comes back in the very next generation was never anybody else's: its tenure goes on, with all that is
in flight. What is lost was perhaps another member's for a while: it begins anew, from what the group has committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from ingestd.sources._kafka.tenure import Tenure
from ingestd.sources._kafka.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.tenure import Gate

log = structlog.get_logger(__name__)


class Holdings:
    """The tenures of one member. Changed by one thread at a time: the consumer's, or its callbacks while that waits.

    Args:
        gate: The source's.
        domain_of: Says what offsets of a partition compare within.
        seek: Has a partition read again from an offset; ValueError: it is not assigned to us any more.
    """

    def __init__(
        self,
        gate: Gate,
        domain_of: Callable[[TopicPartition], str],
        seek: Callable[[TopicPartition, int], None],
    ) -> None:
        self._gate = gate
        self._domain_of = domain_of
        self._seek = seek
        self._tenures: dict[TopicPartition, Tenure] = {}
        self._by_id: dict[str, Tenure] = {}
        self._generation: int | None = None
        """At the last revocation; None: nothing is being decided."""
        self.ended: set[str] = set()
        """Ids of tenures that ended, whose parked events are to be withdrawn."""
        self.placed: set[TopicPartition] = set()
        """Newly held, and not looked at yet: where do they begin?"""

    def __len__(self) -> int:
        """Return the number of partitions that are held."""
        return len(self._tenures)

    def tenures(self) -> Collection[Tenure]:
        """Return all tenures that go on."""
        return list(self._tenures.values())

    def of(self, partition: TopicPartition) -> Tenure | None:
        """Return a partition's tenure, if it is held."""
        return self._tenures.get(partition)

    def known(self, tenure_id: str) -> Tenure | None:
        """Return a tenure that goes on, by its id. Safe to call from any thread."""
        return self._by_id.get(tenure_id)

    def revoked(self, partitions: Iterable[TopicPartition], generation: int, *, all_at_once: bool) -> None:
        """Take note that partitions are taken from us.

        Args:
            partitions: Which.
            generation: The group's, in which they were ours.
            all_at_once: Whether everything is, to be given out anew (eager): whether it is the end is not said yet.
        """
        if all_at_once:
            self._generation = generation
            return
        for partition in partitions:
            self._end(partition)

    def lost(self, partitions: Iterable[TopicPartition]) -> None:
        """Take note that partitions were taken from us some time ago."""
        self._generation = None
        for partition in partitions:
            self._end(partition)

    def assigned(self, partitions: Iterable[TopicPartition], generation: int, *, all_at_once: bool) -> None:
        """Take note of what we hold from now on.

        Args:
            partitions: All (eager), or what is new.
            generation: The group's, in which they are ours.
            all_at_once: Whether these are all.
        """
        wanted = set(partitions)
        before, self._generation = self._generation, None
        # A generation was missed: in between anybody may have had what was ours.
        broken = before is not None and generation != before + 1
        if all_at_once:
            for partition in list(self._tenures):
                if partition not in wanted:
                    self._end(partition)
                elif broken:
                    self.again(partition)
        for partition in sorted(wanted - self._tenures.keys()):
            self._begin(partition)
            self.placed.add(partition)

    def again(self, partition: TopicPartition) -> None:
        """Begin a partition anew, from its watermark: something in it was given back, or it is not what it was.

        One that the client has dropped already is left as it is: it is taken from us, as we are about to hear.
        """
        watermark, unplaced = self._tenures[partition].tracker.watermark, partition in self.placed
        if watermark is not None:
            try:
                self._seek(partition, watermark)
            except ValueError:
                return
        self._end(partition)
        tenure = self._begin(partition)
        if unplaced:
            self.placed.add(partition)
        if watermark is not None:
            tenure.tracker.passed(watermark)  # what comes from before that is not of our seek

    def anew(self, partition: TopicPartition) -> Tenure:
        """Begin a partition anew where it is: its offsets do not go on from those that we know."""
        self._end(partition)
        return self._begin(partition)

    def end_all(self) -> None:
        """Give everything up."""
        for partition in list(self._tenures):
            self._end(partition)

    def _begin(self, partition: TopicPartition) -> Tenure:
        tenure = Tenure(partition, self._domain_of(partition), Tracker(), self._gate)
        self._tenures[partition] = self._by_id[tenure.id] = tenure
        return tenure

    def _end(self, partition: TopicPartition) -> None:
        tenure = self._tenures.pop(partition, None)
        self.placed.discard(partition)
        if tenure is not None:
            tenure.end()
            self._by_id.pop(tenure.id, None)
            self.ended.add(tenure.id)
