"""Hints that something happened in a folder: watchdog on inotify, with what it does not say.

A hint is a path at which to look, never a fact: inotify loses events when its queue overflows, watches of directories
that could not be made are missing without a word, and a directory that was moved out goes on sending events under its
old name. So this module only collects paths, in a bounded set, and says when they are not all there is: the set or the
kernel's queue overflowed, a thread died, the root was replaced, a limit was reached. The rescan does the rest.

watchdog tells of an overflow and of a limit only in its log. Two methods of its reader are extended here to see them;
parsing the log was turned down, and so was an inotify binding of our own.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from watchdog.events import (
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver, EventDispatcher
from watchdog.observers.inotify import InotifyFullEmitter
from watchdog.observers.inotify_c import InotifyFD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from watchdog.observers.inotify_c import (
        CallbackId,
        InotifyEvent,
        Mask,
        WatchCallback,
        WatchDescriptor,
    )

    from ingestd.sources._tree import Identity, Tree

log = structlog.get_logger(__name__)

BOUND = 10_000
"""The most paths that are kept; beyond it one rescan is cheaper than that many looks."""
GHOSTS = 1_000
"""The most watches beyond twice those at the start: what is moved out stays watched until the watch is made anew."""
JOIN = 5.0
"""Seconds to wait for a thread that was told to end; they are daemon threads, and hold nothing."""
LIMITS = Path("/proc/sys/fs/inotify")
CURE_LIMIT = 'raise fs.inotify.max_user_watches and fs.inotify.max_user_instances (sysctl), or set watch = "poll"'

# No event for mere reading: it would only fill the queues.
_EVENTS: list[type[FileSystemEvent]] = [
    DirAttribEvent,
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileAttribEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


@dataclass(frozen=True, slots=True)
class Hinted:
    """What was hinted at since it was last asked."""

    paths: Mapping[bytes, bool]
    """Path of a file below the root, and whether its writer closed it (or moved it here) and let it rest since."""
    rescan: bool
    """Something happened that single looks do not cover: to a directory, or more than there is room for."""
    overflows: int


class Hints:
    """The bounded set between watchdog's threads and the source's."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._lock = threading.Lock()
        self._paths: dict[bytes, bool] = {}
        self._rescan = False
        self._overflows = 0
        self._overflowed = False
        self._noted = threading.Event()

    def wait(self, seconds: float) -> None:
        """Wait until something is noted that was not taken yet."""
        self._noted.wait(seconds)

    def path(self, path: bytes, *, closed: bool | None) -> None:
        """Note a path at which something happened; ``closed`` None leaves what was known of that."""
        with self._lock:
            if path in self._paths:
                self._paths[path] = self._paths[path] if closed is None else closed
            elif len(self._paths) < self._bound:
                self._paths[path] = bool(closed)
            else:
                self._overflow()
            self._noted.set()

    def directory(self) -> None:
        """Note that something happened to a directory."""
        with self._lock:
            self._rescan = True
            self._noted.set()

    def overflow(self) -> None:
        """Note that hints were lost."""
        with self._lock:
            self._overflow()
            self._noted.set()

    def take(self) -> Hinted:
        """Return what was noted, and begin anew."""
        with self._lock:
            hinted = Hinted(self._paths, self._rescan, self._overflows)
            self._paths, self._rescan, self._overflows, self._overflowed = {}, False, 0, False
            self._noted.clear()
        return hinted

    def _overflow(self) -> None:
        self._rescan = True
        self._overflows += not self._overflowed  # a storm is one overflow, not one for each path of it
        self._overflowed = True


class _Handler(FileSystemEventHandler):
    """Puts paths into the set, and does nothing else: an exception here would end watchdog's dispatcher."""

    def __init__(self, hints: Hints, root: bytes) -> None:
        self._hints = hints
        self._above = root.rstrip(b"/") + b"/"

    def dispatch(self, event: FileSystemEvent) -> None:
        if event.is_directory:
            self._hints.directory()
        elif isinstance(event, FileMovedEvent):
            self._put(event.src_path, closed=False)
            self._put(event.dest_path, closed=True)
        elif isinstance(event, FileAttribEvent):
            self._put(event.src_path, closed=None)  # cp -p and rsync close first, and set the time stamps then
        else:
            self._put(event.src_path, closed=isinstance(event, FileClosedEvent))

    def _put(self, path: bytes | str, *, closed: bool | None) -> None:
        raw = os.fsencode(path)
        if raw.startswith(self._above):
            self._hints.path(raw.removeprefix(self._above), closed=closed)


class _Reader(InotifyFD):
    """watchdog's reader of the kernel's queue, telling what it otherwise only logs or swallows."""

    def __init__(self, hints: Hints) -> None:
        super().__init__()
        self._hints = hints
        self.watches: set[int] = set()
        self.refused: str | None = None

    def handle_event(self, event: InotifyEvent) -> None:
        if event.is_queue_overflow:
            self._hints.overflow()
        if event.is_ignored:
            self.watches.discard(event.wd)
        super().handle_event(event)

    def add_callback(self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId) -> WatchDescriptor:
        try:
            descriptor = super().add_callback(path, mask, callback, id_)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.ENOMEM}:
                self.refused = error.strerror
            raise
        self.watches.add(descriptor)
        return descriptor


class _Observer(BaseObserver):
    """watchdog's InotifyObserver, but for the reader.

    It tells of moves as such where only one end is watched: a file that is moved in from outside is whole, and one that
    is created has yet to be written.
    """

    def __init__(self, reader: _Reader) -> None:
        super().__init__(InotifyFullEmitter, inotify_fd=reader)
        self._reader = reader

    def on_thread_stop(self) -> None:
        super().on_thread_stop()
        self._reader.stop()
        self._reader.join()


class Watcher:
    """A watch on a folder, from ``start`` until ``stop``. ``fault`` may be asked from any thread.

    Args:
        tree: The folder.
        bound: The most paths that are kept between two takes.
    """

    def __init__(self, tree: Tree, bound: int = BOUND) -> None:
        self._tree = tree
        self._hints = Hints(bound)
        self._reader: _Reader | None = None
        self._observer: _Observer | None = None
        self._root: Identity | None = None
        self._watches_at_start = 0

    def start(self) -> None:
        """Watch the root and, where the tree is recursive, all directories below it.

        Raises:
            RootGoneError: The root is not there.
            OSError: The root cannot be watched; ENOSPC and EMFILE are inotify's limits.
        """
        self._root = self._tree.identity()
        # The root may be a symlink. Others are never followed here: what they may lead to lies below the root and is
        # watched there, and watchdog's walk through links that form loops would not end in a lifetime.
        root = os.path.realpath(self._tree.root)
        reader = _Reader(self._hints)
        observer = _Observer(reader)
        observer.schedule(
            _Handler(self._hints, root), os.fsdecode(root), recursive=self._tree.recursive, event_filter=_EVENTS
        )
        reader.start()
        try:
            observer.start()
        except BaseException:
            reader.stop()
            reader.join()
            raise
        self._reader, self._observer, self._watches_at_start = reader, observer, len(reader.watches)

    def take(self) -> Hinted:
        """Return what was hinted at since the last call."""
        return self._hints.take()

    def wait(self, seconds: float) -> None:
        """Wait until there is something to take."""
        self._hints.wait(seconds)

    def fault(self) -> str | None:
        """Return why the watch has to be made anew, or None."""
        reader, observer = self._reader, self._observer
        if reader is None or observer is None:
            return "it is not running"
        if not (reader.is_alive() and observer.is_alive() and all(one.is_alive() for one in tuple(observer.emitters))):
            return "one of its threads ended"
        if len(reader.watches) > 2 * self._watches_at_start + GHOSTS:
            return "it may go on watching directories that were moved away"
        return None

    def watches(self, root: Identity) -> bool:
        """Return whether it is this directory that is watched, and not one that once had its place."""
        return self._root == root

    def refused(self) -> str | None:
        """Return why some directories are not watched, or None."""
        return None if self._reader is None else self._reader.refused

    def stop(self) -> None:
        """End the threads."""
        reader, observer = self._reader, self._observer
        self._reader = self._observer = None
        if reader is None or observer is None:
            return
        try:
            observer.stop()
        except (KeyError, OSError, RuntimeError):
            # Its books are not in order, which may be why it is stopped. The threads end by the two lines below.
            log.exception("the watch could not be taken down in order", root=os.fsdecode(self._tree.root))
            observer.event_queue.put(EventDispatcher.stop_event)
        reader.stop()
        reader.join(JOIN)
        observer.join(JOIN)


def watch_limit() -> int | None:
    """Return the most inotify watches that a user may have, or None where the kernel does not say."""
    try:
        return int((LIMITS / "max_user_watches").read_text("ascii"))
    except (OSError, ValueError):
        return None
