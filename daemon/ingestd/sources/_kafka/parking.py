"""Which of a member's records wait in the retry queue, and which of them have held the watermark for too long.

A parked record stays uncommitted, and so does all that is done behind it. One stuck document must not keep that up for
ever: after a time, or when too much has gathered behind it, it gets no further try and becomes a dead letter. All that
are that far behind go at once: one at a time, a partition with many of them would stand still for as many looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from ingestd.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingestd.ports import Intake
    from ingestd.sources._kafka.tenure import Tenure

SECONDS = 1.0
"""Between two looks."""

log = structlog.get_logger(__name__)


class Parking:
    """The parked records of one source. Used by one thread, but for ``expired``.

    Args:
        source: The source's name, for the log.
        max_lag: The most offsets from a parked record to the last one taken.
        max_seconds: The longest that a record may be parked.
    """

    def __init__(self, source: str, max_lag: int, max_seconds: float) -> None:
        self._source = source
        self._max_lag = max_lag
        self._max_seconds = max_seconds
        self._parked: dict[str, tuple[Tenure, int]] = {}
        """By position."""
        self._hastened: set[str] = set()
        self.expired: frozenset[str] = frozenset()
        """Positions of records that get no further try. Looked at by other threads."""
        self._everything = True
        """What an earlier run parked is still there: its records come from the topic again."""
        self._due = 0.0

    def park(self, position: str, tenure: Tenure, offset: int) -> None:
        """Take note of a record that waits for its next try."""
        tenure.tracker.park(offset)
        self._parked[position] = (tenure, offset)

    def done(self, position: str) -> None:
        """Take note that a record ended; if it was parked, it is done for its tracker as well."""
        place = self._parked.pop(position, None)
        if place is not None:
            place[0].tracker.done(place[1])
            self._hastened.discard(position)
            self.expired -= {position}

    def withdraw(self, intake: Intake, ended: set[str]) -> None:
        """Take out of the retry queue what the topic brings again; empties ``ended`` when that is done."""
        try:
            if self._everything:
                intake.withdraw(None)
                self._everything = False
            if ended:
                intake.withdraw(frozenset(ended))
                self._parked = {at: place for at, place in self._parked.items() if place[0].id not in ended}
                self._hastened &= self._parked.keys()
                self.expired &= self._parked.keys()
                ended.clear()
        except UnavailableError as error:
            log.warning("the retry queue cannot be changed now", source=self._source, error=str(error))

    def unstick(self, tenures: Iterable[Tenure], intake: Intake, now: float) -> None:
        """Give up, every so often, all that has held a watermark for too long."""
        if now < self._due:
            return
        self._due = now + SECONDS
        stuck = {
            (tenure.id, offset)
            for tenure in tenures
            for offset in tenure.tracker.overdue(self._max_lag, now - self._max_seconds)
        }
        self.expired |= {at for at, (tenure, offset) in self._parked.items() if (tenure.id, offset) in stuck}
        wanted = self.expired - self._hastened
        if not wanted:
            return
        try:
            intake.hasten(wanted)
            self._hastened |= wanted
        except UnavailableError as error:
            log.warning("the retry queue cannot be changed now", source=self._source, error=str(error))
