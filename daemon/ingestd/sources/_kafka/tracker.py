"""Which of a partition's records are done: a commit may only pass those.

Kafka remembers one number for a partition, and records end in any order: what is committed is the offset below which
all are done (the watermark). The base is the first offset received, or the place where the client waits for it; offsets
that never came (compaction, transaction markers) count as done. Keeping done offsets and merging ranges was turned
down: what is not done yet is few, what is done is many.
"""

from __future__ import annotations

from collections import OrderedDict


class Tracker:
    """The records of one partition under one lease. Not safe to share between threads."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, float] = OrderedDict()
        """Taken and not done, in the order of their offsets, with when they were taken."""
        self._parked: set[int] = set()
        self._next: int | None = None
        """The offset after the last one taken."""

    @property
    def next(self) -> int | None:
        """The offset after the last record taken, or passed; None: it is not known where it begins."""
        return self._next

    @property
    def watermark(self) -> int | None:
        """The offset below which all is done: what may be committed; None: it is not known where it begins."""
        return next(iter(self._open), self._next)

    @property
    def lag(self) -> int:
        """The number of offsets from the watermark to the last record taken."""
        return 0 if self._next is None else self._next - (self.watermark or 0)

    @property
    def open(self) -> int:
        """The number of records that were taken and are not done."""
        return len(self._open)

    @property
    def oldest(self) -> tuple[int, float] | None:
        """The first record that is not done, and when it was taken; None: all are done."""
        return next(iter(self._open.items()), None)

    def take(self, offset: int, now: float) -> bool:
        """Take note of a record that was received.

        Returns:
            False where the offset is not after the last one: the partition is another one by the same name, or was
            read again from an earlier place, and needs a tracker of its own.
        """
        if self._next is not None and offset < self._next:
            return False
        self._open[offset] = now
        self._next = offset + 1
        return True

    def passed(self, position: int) -> None:
        """Take note of where the client is: what lies before that and never came is nothing that could be done."""
        self._next = position if self._next is None else max(self._next, position)

    def park(self, offset: int) -> None:
        """Take note of a record that waits for its next try."""
        if offset in self._open:
            self._parked.add(offset)

    def overdue(self, most: int, since: float) -> list[int]:
        """Return the parked records that are too far behind, or were taken too long ago.

        Args:
            most: The most offsets from such a record to the last one taken.
            since: When those were taken that are not too old.
        """
        found, first = [], (self._next or 0) - most
        for offset, taken in self._open.items():  # in the order of both
            if offset >= first and taken >= since:
                break
            if offset in self._parked:
                found.append(offset)
        return found

    def done(self, offset: int) -> None:
        """Take note of a record that ended. One that is not known changes nothing."""
        self._open.pop(offset, None)
        self._parked.discard(offset)
