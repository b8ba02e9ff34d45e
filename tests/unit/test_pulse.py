"""Heartbeats: a silent thread is noticed, a busy one is not taken for dead."""

from __future__ import annotations

from tests.fakes import ManualClock

from ingestd.engine.pulse import SILENCE, Pulse


def stale(pulse: Pulse) -> list[str]:
    """Return the names of the checks that fail."""
    return [check.name for check in pulse.checks() if not check.ok]


def test_a_silent_thread_is_noticed_within_30_seconds() -> None:
    """A thread that stopped going round its loop makes the daemon not live; one that beats does not."""
    clock = ManualClock()
    pulse = Pulse(clock)
    pulse.beat("articles/embed")
    pulse.beat("articles/write")
    clock.advance(SILENCE)
    pulse.beat("articles/write")
    assert stale(pulse) == []
    clock.advance(0.1)
    assert SILENCE + 0.1 < 30
    assert stale(pulse) == ["threads", "thread:articles/embed"]
    assert pulse.checks()[0].detail == "1 of 2 alive"


def test_a_call_with_a_timeout_may_be_silent_for_so_long() -> None:
    """A long call says how long it may take: after that it counts as dead, and the check says at what."""
    clock = ManualClock()
    pulse = Pulse(clock)
    pulse.busy("articles/embed", "a batch", 300.0)
    clock.advance(300.0)
    assert stale(pulse) == []
    clock.advance(1.0)
    assert pulse.checks()[1].detail == "silent for 301 s, busy with a batch"
    assert pulse.checks()[1].cure


def test_a_beat_ends_what_a_thread_was_busy_with() -> None:
    """The long patience is for the one call alone."""
    clock = ManualClock()
    pulse = Pulse(clock)
    pulse.busy("articles/embed", "a batch", 300.0)
    pulse.beat("articles/embed")
    clock.advance(SILENCE + 1)
    assert stale(pulse) == ["threads", "thread:articles/embed"]


def test_a_thread_that_ended_as_it_should_is_forgotten() -> None:
    """Its end is no silence."""
    clock = ManualClock()
    pulse = Pulse(clock)
    pulse.beat("source/inbox")
    clock.advance(5)
    assert pulse.ages() == {"source/inbox": 5.0}
    pulse.end("source/inbox")
    pulse.end("never there")
    clock.advance(SILENCE * 10)
    assert (stale(pulse), pulse.ages()) == ([], {})
