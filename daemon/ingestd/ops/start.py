"""The daemon's start, and how it is left before its end: by a signal, at its time limit, for a new configuration.

Owns the wish to leave. The thread that starts the daemon looks for it at every step (``check``), and what it waits for
in between is ended from another thread by whoever knows how (``on_leave``): calls that are held, processes that are
loading, connections.

Raising from a signal's handler was turned down. It comes between any two instructions, so also between the taking of
a lock and the block that lets go of it (``threading.Condition`` takes its lock in Python code); whoever wants that
lock next, to unwind, waits for ever.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from ingestd.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = structlog.get_logger(__name__)


class Late(Stopped):
    """The daemon did not start within its timeout."""


class Start:
    """A start that is under way. ``leave`` may be called from any thread, all else from the one that starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._why: Stopped | None = None
        self._over = False
        self._unblocks: list[Callable[[], None]] = []

    @property
    def why(self) -> Stopped | None:
        """What it is left with; None: it is not left."""
        return self._why

    def leave(self, why: Stopped) -> bool:
        """Have the start left. Returns at once; only the first wish counts.

        Args:
            why: What the starting thread is to raise.

        Returns:
            Whether it is left: not, where it is over.
        """
        with self._lock:
            if self._over or self._why is not None:
                return not self._over
            self._why = why
            unblocks = self._unblocks[::-1]
        thread = threading.Thread(target=_all, args=(unblocks,), name="leave", daemon=True)
        try:
            thread.start()  # closing may wait a while, and the next signal has to be heard
        except RuntimeError:  # the machine has no more threads
            _all(unblocks)
        return True

    def check(self) -> None:
        """Raise what the start is left with, if it is."""
        if self._why is not None:
            raise self._why

    def on_leave(self, unblock: Callable[[], None]) -> None:
        """Say how a wait is ended that begins after this; it is called once, from another thread, and may wait."""
        with self._lock:
            self._unblocks.append(unblock)
        self.check()

    def end(self) -> None:
        """Say that the start is over, and left no more; or raise what it is left with."""
        with self._lock:
            self.check()
            self._over = True

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Have what breaks in the block because the start is left end with what it is left with."""
        try:
            yield
        except BaseException as error:
            if self._why is None or error is self._why or self._over:
                raise
            raise self._why from error


def _all(unblocks: list[Callable[[], None]]) -> None:
    for unblock in unblocks:
        try:
            unblock()
        except Exception:
            log.exception("a part of the start could not be stopped")
