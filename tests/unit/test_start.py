"""The start of the daemon: left at its next step, whatever it waits for."""

from __future__ import annotations

import threading

import pytest

from ingestd.errors import ConfigError, Stopped
from ingestd.ops.start import Late, Start


def test_a_start_is_left_at_its_next_step() -> None:
    """With the first reason; later ones do not count."""
    start = Start()
    start.check()
    assert start.leave(Late())
    assert start.leave(Stopped("the start"))
    with pytest.raises(Late):
        start.check()


def test_waits_are_ended_the_newest_first() -> None:
    """Each once, on another thread; one that breaks does not keep the others from being ended."""
    start, ended, done = Start(), [], threading.Event()

    def end(name: str) -> None:
        ended.append((name, threading.current_thread() is threading.main_thread()))
        if name == "newest":
            raise OSError("it broke")
        if name == "oldest":
            done.set()

    for name in ("oldest", "newest"):
        start.on_leave(lambda name=name: end(name))  # type: ignore[misc]
    start.leave(Stopped())
    assert done.wait(10)
    assert ended == [("newest", False), ("oldest", False)]


def test_a_wait_that_begins_too_late_does_not_begin() -> None:
    """Who says how a wait is ended is told that it is not to begin."""
    start = Start()
    start.leave(Stopped())
    with pytest.raises(Stopped):
        start.on_leave(lambda: None)


def test_what_breaks_because_it_is_left_is_no_error() -> None:
    """What a closed connection or a killed child raises is not what people are told."""
    start = Start()
    with pytest.raises(ConfigError), start.guarded():
        raise ConfigError("this one is the user's")
    start.leave(Stopped())
    with pytest.raises(Stopped), start.guarded():
        raise ConfigError("the model's process died")


def test_a_start_that_is_over_is_not_left() -> None:
    """What breaks then is what it is; and one that is left already is not over."""
    start = Start()
    start.end()
    assert not start.leave(Stopped())
    start.check()
    left = Start()
    left.leave(Stopped())
    with pytest.raises(Stopped):
        left.end()
