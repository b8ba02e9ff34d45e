"""What is kept of hints, and what watchdog's reader tells of losses."""

from __future__ import annotations

import os
from pathlib import Path

from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, WatchDescriptor

from ingestd.sources._globs import Globs
from ingestd.sources._tree import Tree
from ingestd.sources._watch import Hints, Watcher


def descriptors() -> int:
    """Return how many are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_hints_are_bounded_and_say_so() -> None:
    """A storm costs one overflow and a rescan, and no more memory than the bound."""
    hints = Hints(bound=3)
    for number in range(10):
        hints.path(b"%d" % number, closed=False)
    hinted = hints.take()
    assert (len(hinted.paths), hinted.rescan, hinted.overflows) == (3, True, 1)
    assert hints.take() == type(hinted)({}, rescan=False, overflows=0)


def test_a_path_is_closed_until_it_is_written_again() -> None:
    """The last hint counts; one about time stamps or permissions changes nothing."""
    hints = Hints()
    hints.path(b"a", closed=False)
    hints.path(b"a", closed=True)
    hints.path(b"a", closed=None)
    hints.path(b"b", closed=True)
    hints.path(b"b", closed=False)
    assert hints.take().paths == {b"a": True, b"b": False}


def test_the_kernels_overflow_is_heard(tmp_path: Path) -> None:
    """In watchdog it is only a line in the log: here it asks for a rescan."""
    watcher = Watcher(Tree(os.fsencode(tmp_path), Globs(["**/*"], [])))
    watcher.start()
    try:
        assert watcher._reader is not None
        watcher._reader.handle_event(InotifyEvent(WatchDescriptor(-1), InotifyConstants.IN_Q_OVERFLOW, 0, b""))
        hinted = watcher.take()
        assert (hinted.rescan, hinted.overflows) == (True, 1)
        assert watcher.fault() is None
    finally:
        watcher.stop()
    assert watcher.fault() == "it is not running"


def test_a_stopped_watch_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither threads nor descriptors, over many restarts."""
    tree = Tree(os.fsencode(tmp_path), Globs(["**/*"], []))
    before = descriptors()
    for _ in range(20):
        watcher = Watcher(tree)
        watcher.start()
        watcher.stop()
    assert descriptors() == before
