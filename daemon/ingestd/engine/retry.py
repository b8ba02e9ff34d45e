"""When, and whether, an event that failed is tried again.

Exponential back-off with full jitter: the delay is drawn between nothing and a ceiling that doubles. (Marc Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015: of the usual schemes it ends a contended load soonest.)
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The schedule of the retry queue.

    With the defaults the ceilings are 30 s, 1 min, … 16 min, 30 min: an event is given up after an hour at most, and
    half of that on the average.
    """

    attempts: int = 8
    """The most tries of one event."""
    first: float = 30.0
    """The ceiling of the first delay, in seconds."""
    most: float = 1800.0
    """The ceiling that no delay exceeds."""

    def next(self, attempt: int, wait: float | None) -> float | None:
        """Return the seconds until the next try, or None: there is none.

        Args:
            attempt: The number of the try that failed, from 1.
            wait: What the other side asked for; it wins over our own delay.
        """
        if attempt >= self.attempts:
            return None
        if wait is not None:
            return wait
        ceiling = min(self.most, self.first * 2 ** min(attempt - 1, 30))
        return random.uniform(0.0, ceiling)  # noqa: S311 - jitter, no secret
