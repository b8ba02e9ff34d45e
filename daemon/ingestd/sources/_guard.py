"""The mass-delete guard: many documents that vanish together are more likely a mount that is gone than an edit.

It counts over a window, so that a folder that empties in small batches does not get past it, and it remembers that it
holds: what was held does not go through merely because the window has moved on. Comparing two scans was turned down for
the first reason: a hint-driven source hardly ever sees a hundred files vanish at one moment.
"""

from __future__ import annotations

from collections import deque


class DeleteGuard:
    """Decides whether deletes may go on.

    Args:
        share: The greatest share of the known documents that may go within a window.
        documents: The guard acts from this many known documents up.
        window: Seconds.
    """

    def __init__(self, share: float, documents: int, window: float) -> None:
        self._share = share
        self._documents = documents
        self._window = window
        self._let_go: deque[tuple[float, int]] = deque()
        self._carried = 0
        self.holding = False

    def allows(self, gone: int, known: int, now: float) -> bool:
        """Return whether documents that are gone may be deleted now.

        Args:
            gone: Documents that are absent, whether or not each is certain to be.
            known: Documents that are not deleted yet, those that are gone included.
            now: Seconds of a clock that only runs forward.
        """
        while self._let_go and self._let_go[0][0] <= now - self._window:
            self._let_go.popleft()
        # While deletes are held the window stands still: they wait for a person or for the files, not for the clock.
        before = self._carried if self.holding else sum(count for _, count in self._let_go)
        lost, base = gone + before, known + before
        self.holding = base >= self._documents and lost > self._share * base
        self._carried = before if self.holding else 0
        return not self.holding

    def let_go(self, count: int, now: float) -> None:
        """Note that this many deletes went on without anybody's leave."""
        if count:
            self._let_go.append((now, count))

    def confirmed(self) -> None:
        """Note that a person let go of what was held: the count begins anew."""
        self._let_go.clear()
        self._carried = 0
        self.holding = False
