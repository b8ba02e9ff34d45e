"""Where the time goes: how long each stage works, and how long it waits for room in front of the next one.

The stage that is the limit is busy all the time, those before it wait for room, and those behind it for something to
do. A profile says more and costs more; this is always on, and is two looks at the clock for a batch.
"""

from __future__ import annotations

import time
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

WINDOW = 60.0
"""Seconds that shares are of."""
EVERY = 5.0
"""Seconds between two samples."""
IS_LIMIT = 0.6
"""The least share that the busiest stage works for it to be called the limit."""


class State(Enum):
    """What a thread does."""

    IDLE = auto()
    """Waits for something to do."""
    BUSY = auto()
    BLOCKED = auto()
    """Waits for room in front of the next stage."""


class Spent(NamedTuple):
    """Seconds, or shares of the time."""

    busy: float = 0.0
    blocked: float = 0.0


class Meter:
    """How one thread spends its time: it enters states, and any thread may read.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Replaced whole, so that a reader never sees half of a step.
        self._at = (Spent(), State.IDLE, clock())

    def enter(self, state: State) -> None:
        """Do something else from now on."""
        now = self._clock()
        self._at = (_until(now, *self._at), state, now)

    def spent(self) -> Spent:
        """Return the seconds until now, those of a step that is not over included."""
        return _until(self._clock(), *self._at)


def _until(now: float, spent: Spent, state: State, since: float) -> Spent:
    if state is State.BUSY:
        return Spent(spent.busy + now - since, spent.blocked)
    if state is State.BLOCKED:
        return Spent(spent.busy, spent.blocked + now - since)
    return spent


class Workload:
    """How the stages of a pipeline spend their time. Safe to read from any thread; one of them samples.

    Args:
        meters: Those of each stage's threads, by stage, in the documents' order.
        clock: Seconds, monotonic.
    """

    def __init__(self, meters: Mapping[str, Sequence[Meter]], clock: Callable[[], float] = time.monotonic) -> None:
        self._meters = meters
        self._clock = clock
        self._samples: deque[tuple[float, Mapping[str, Spent]]] = deque([(clock(), self.spent())])

    def threads(self) -> dict[str, int]:
        """Return how many threads run each stage."""
        return {stage: len(meters) for stage, meters in self._meters.items()}

    def spent(self) -> dict[str, Spent]:
        """Return each stage's seconds since the start, over all of its threads."""
        return {stage: _sum([meter.spent() for meter in meters]) for stage, meters in self._meters.items()}

    def sample(self) -> None:
        """Take note of where the time went, now and then: to be called at least as often as ``EVERY``."""
        now = self._clock()
        if now - self._samples[-1][0] < EVERY:
            return
        self._samples.append((now, self.spent()))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()

    @property
    def window(self) -> float:
        """How many seconds shares are of: a minute or a little more, and less after the start."""
        return self._clock() - self._samples[0][0]

    def shares(self) -> dict[str, Spent]:
        """Return which share of the last minute each stage's threads worked, and waited for room: 0 to 1."""
        since, before = self._samples[0]
        elapsed = self._clock() - since
        if elapsed <= 0:
            return dict.fromkeys(self._meters, Spent())
        shares = {}
        for stage, spent in self.spent().items():
            whole = elapsed * len(self._meters[stage])
            # A step that began before the first sample is in both.
            shares[stage] = Spent(
                (spent.busy - before[stage].busy) / whole, (spent.blocked - before[stage].blocked) / whole
            )
        return shares

    def limit(self) -> str | None:
        """Return the stage that the others wait for; None: none works so much that it could be."""
        shares = self.shares()
        stage = max(shares, key=lambda name: shares[name].busy)
        return stage if shares[stage].busy >= IS_LIMIT else None


def _sum(parts: Sequence[Spent]) -> Spent:
    return Spent(sum(part.busy for part in parts), sum(part.blocked for part in parts))
