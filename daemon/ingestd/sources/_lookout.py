"""Whether, and how, a folder is watched: starts the watch, finds out that it is dead, makes it anew, and says so.

Owns the one ``Watcher`` of a source. Looks at the threads at every turn and at the root every second, so that a watch
that died, or that went on watching a directory that was replaced, is noticed at once and not at the next rescan.
Trusting ``observer.is_alive()`` was turned down: after the root is deleted the emitter is dead and the observer lives.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import structlog

from ingestd.model import Check
from ingestd.sources._mounts import file_system, is_network
from ingestd.sources._tree import RootGoneError
from ingestd.sources._watch import CURE_LIMIT, Hinted, Watcher, watch_limit

if TYPE_CHECKING:
    from ingestd.ports import Clock
    from ingestd.sources._tree import Identity, Tree

log = structlog.get_logger(__name__)

ROOT_SECONDS = 1.0
"""Seconds between two looks at which directory the root is."""


class Lookout:
    """The watch of one source. ``tend``, ``take`` and ``stop`` are for the source's thread, ``check`` for any.

    Args:
        name: The source's.
        tree: The folder.
        mode: ``auto``, ``inotify`` or ``poll``.
        retry_seconds: Seconds between two attempts to make a watch that could not be made.
        clock: Time.
    """

    def __init__(self, name: str, tree: Tree, mode: str, retry_seconds: float, clock: Clock) -> None:
        self._name = name
        self._tree = tree
        self._mode = mode
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._watcher: Watcher | None = None
        self._root: Identity | None = None
        self._root_at = self._try_at = 0.0
        self._started_at = 0.0
        self._off: str | None = None
        self._problem: str | None = None
        self._tended = False
        self.overflows = 0
        self.restarts = 0

    def tend(self) -> bool:
        """Keep the watch alive.

        Returns:
            Whether something may have gone unnoticed: a scan is due.
        """
        now = self._clock.monotonic()
        unnoticed = False
        if now >= self._root_at:
            self._root_at = now + ROOT_SECONDS
            unnoticed = self._look_at_root(now)
        if self._watcher is not None:
            fault = self._watcher.fault()
            if fault is None and self._watcher.refused() is not None and now >= self._try_at:
                fault = "it may be possible now to watch all directories"
            if fault is not None:
                unnoticed = True
                self._drop(fault, now)
        if self._watcher is None and self._root is not None and now >= self._try_at:
            self._try_at = now + self._retry_seconds
            unnoticed = self._start() or unnoticed
        self._tended = True
        return unnoticed

    def take(self) -> Hinted | None:
        """Return what was hinted at since the last call; None without a watch."""
        if self._watcher is None:
            return None
        hinted = self._watcher.take()
        self.overflows += hinted.overflows
        if hinted.overflows:
            log.warning("file events were lost, the folder is scanned instead", source=self._name)
        return hinted

    def wait(self, seconds: float) -> bool:
        """Wait for a hint; return False where none can come, at once."""
        if self._watcher is None:
            return False
        self._watcher.wait(seconds)
        return True

    def stop(self) -> None:
        """End the watch."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def check(self) -> Check:
        """Say how the watch is."""
        name, watcher = f"{self._name}:watch", self._watcher
        if self._off is not None or not self._tended:
            return Check(name, ok=True, detail=self._off or "not watched yet")
        if watcher is None:
            return Check(name, ok=False, detail=self._problem or "the folder is gone", cure=_cure(self._problem))
        fault, refused = watcher.fault(), watcher.refused()
        if fault is not None:
            return Check(name, ok=False, detail=f"the watch is made anew: {fault}", cure="none needed, if it passes")
        if refused is not None:
            return Check(name, ok=False, detail=f"some directories are only scanned: {refused}", cure=CURE_LIMIT)
        return Check(name, ok=True, detail="inotify")

    def probe(self, directories: int) -> Check:
        """Say whether a watch can be made of that many directories."""
        name, off, limit = f"{self._name}:watch", self._why_off(), watch_limit()
        if off is not None:
            return Check(name, ok=True, detail=off)
        if limit is not None and directories > limit:
            detail = f"{directories} directories, and a user may watch {limit}"
            return Check(name, ok=False, detail=detail, cure=CURE_LIMIT)
        watcher = Watcher(self._tree)
        try:
            watcher.start()
        except (OSError, RootGoneError) as error:
            return Check(name, ok=False, detail=_said(error), cure=CURE_LIMIT)
        refused = watcher.refused()
        watcher.stop()
        if refused is not None:
            return Check(name, ok=False, detail=refused, cure=CURE_LIMIT)
        return Check(name, ok=True, detail=f"inotify, {directories} directories")

    def _why_off(self) -> str | None:
        """Return why the folder is not to be watched, or None."""
        if self._mode == "poll":
            return "not watched, as configured: scans alone"
        kind = file_system(self._tree.root)
        if not is_network(kind):
            return None
        if self._mode == "auto":
            return f"the file system is {kind}, where other machines' changes give no events: scans alone"
        return None

    def _look_at_root(self, now: float) -> bool:
        try:
            identity = self._tree.identity()
        except RootGoneError:
            identity = None
        if identity == self._root:
            return False
        before, self._root = self._root, identity
        self._try_at = now
        if self._watcher is not None and (identity is None or not self._watcher.watches(identity)):
            self._drop("the folder was replaced" if identity else "the folder is gone", now)
        return before is not None or identity is not None

    def _start(self) -> bool:
        self._off = self._why_off()
        if self._off is not None:
            return False
        watcher, failed = Watcher(self._tree), self._problem
        try:
            watcher.start()
        except (OSError, RootGoneError) as error:
            self._problem = _said(error)
            if failed != self._problem:
                log.warning("the folder cannot be watched, scans alone", source=self._name, error=self._problem)
            return False
        self._watcher, self._problem, self._started_at = watcher, None, self._clock.monotonic()
        return True

    def _drop(self, fault: str, now: float) -> None:
        log.warning("the watch on the folder is made anew", source=self._name, reason=fault)
        self.stop()
        self.restarts += 1
        self._try_at = max(now, self._started_at + ROOT_SECONDS)


def _said(error: OSError | RootGoneError) -> str:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EMFILE}:
        return error.strerror or str(error)  # watchdog's own words: "inotify watch limit reached"
    return str(error)


def _cure(problem: str | None) -> str:
    return CURE_LIMIT if problem else "create or mount the folder"
