"""When to look at which document again.

Owns two questions that only time answers: which documents are due for a look, and whether a file that was just seen has
come to rest. A thread or a timer a file was turned down: twenty thousand files can be waiting at once.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.sources._tree import Found

GRACE = 0.03
"""Seconds that a file that was closed has to be at rest: more than the granularity of a file system's time stamps (a
kernel tick, at most 10 ms), so that a write after the look cannot leave the same signature behind."""


class Agenda:
    """Documents to look at, each once, at the earliest time that it was put down for. Not for several threads."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Return how many documents are to be looked at."""
        return len(self._due)

    def __contains__(self, document: str) -> bool:
        """Return whether a document is to be looked at. Safe to call from any thread."""
        return document in self._due

    def put(self, document: str, at: float) -> None:
        """Put a document down for a time."""
        known = self._due.get(document)
        if known is None or at < known:
            self._due[document] = at
            heapq.heappush(self._heap, (at, document))

    def due(self, now: float, limit: int) -> Iterator[str]:
        """Yield, and cross out, documents whose time has come: at most ``limit``."""
        while limit and self._heap and self._heap[0][0] <= now:
            at, document = heapq.heappop(self._heap)
            if self._due.get(document) == at:  # or else it was put down again for an earlier time, and is done
                del self._due[document]
                limit -= 1
                yield document

    def next(self) -> float | None:
        """Return when the next document is due, or None."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


@dataclass(slots=True)
class _Watched:
    shape: tuple[int, ...]
    since: float
    closed: bool


class Settling:
    """Files that were changed a moment ago, and since when each has looked the same.

    Args:
        seconds: How long a file's size and mtime have to stay the same.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._grace = min(GRACE, seconds)
        self._watched: dict[str, _Watched] = {}

    def __len__(self) -> int:
        """Return how many files are being waited for."""
        return len(self._watched)

    def __contains__(self, document: str) -> bool:
        """Return whether a file is being waited for."""
        return document in self._watched

    def rests_at(self, document: str, found: Found, *, closed: bool, wall: float, now: float) -> float:
        """Return from when on the file counts as settled: ``now`` or earlier if it does already.

        A time stamp that lies in the future (another machine's clock, ``touch -d``) settles nothing and delays nothing:
        what counts then is how long the file has been seen to stay the same.

        Args:
            document: The document.
            found: What it looks like now.
            closed: Whether its writer was seen to close it, or to move it here, since it last changed.
            wall: Seconds since 1970.
            now: Seconds of a clock that only runs forward.
        """
        age = wall - found.newest
        if age >= self._seconds:
            return now
        watched = self._watched.get(document)
        if watched is None or watched.shape != found.shape:
            watched = self._watched[document] = _Watched(found.shape, now, closed)
        watched.closed = watched.closed or closed
        if not watched.closed:
            return watched.since + self._seconds
        return now if age >= self._grace else watched.since + self._grace

    def forget(self, document: str) -> None:
        """Stop waiting for a file."""
        self._watched.pop(document, None)
