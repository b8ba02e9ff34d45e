"""What was read of the topics and not handed in yet: records first, then events.

It exists because the thread that owns the consumer must never wait: not for room in the pipeline, and not for a schema
registry. While anything is left here, partitions are paused.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ingestd.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.model import Event
    from ingestd.ports import Intake
    from ingestd.sources._kafka.tenure import Tenure

READY = 1_000
"""Events that are made ahead."""


class Backlog:
    """Records and events on their way in. Used by one thread.

    Args:
        event_of: Makes an event of a record under its tenure; raises UnavailableError where it cannot be said now.
    """

    def __init__(self, event_of: Callable[[Any, Tenure], Event]) -> None:
        self._event_of = event_of
        self._records: deque[tuple[Any, Tenure]] = deque()
        self._events: list[Event] = []
        self.waits_for: str | None = None
        """Why the next record cannot be made an event of now."""

    def __len__(self) -> int:
        """Return the number of records and events that wait."""
        return len(self._records) + len(self._events)

    def put(self, record: Any, tenure: Tenure) -> None:  # noqa: ANN401 - kafka-python has no types
        """Add a record."""
        self._records.append((record, tenure))

    def hand_in(self, intake: Intake) -> None:
        """Hand in what there is room for; what belongs to a tenure that has ended is dropped, others have it."""
        self._decode()
        if any(event.lease is not None and event.lease.ended for event in self._events):
            self._events = [event for event in self._events if event.lease is None or not event.lease.ended]
        if self._events:
            accepted = intake.offer(self._events)
            del self._events[:accepted]

    def _decode(self) -> None:
        self.waits_for = None
        while self._records and len(self._events) < READY:
            record, tenure = self._records[0]
            if not tenure.ended:
                try:
                    self._events.append(self._event_of(record, tenure))
                except UnavailableError as error:
                    self.waits_for = str(error)
                    return
            self._records.popleft()
