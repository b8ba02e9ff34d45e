"""Where the time goes: seconds and shares of stages, by a clock that the test moves."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.fakes import ManualClock
from tests.fixtures.daemon import wait_for

from ingestd.engine.channel import Channel
from ingestd.engine.pulse import Pulse
from ingestd.engine.stage import Appetite, StageThread
from ingestd.engine.workload import EVERY, IS_LIMIT, WINDOW, Meter, Spent, State, Workload
from ingestd.metrics import Metrics
from ingestd.ports import always

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock(1000.0)


def test_time_is_counted_by_what_was_done(clock: ManualClock) -> None:
    """Waiting for something to do is neither work nor waiting for room."""
    meter = Meter(clock.monotonic)
    for state, seconds in ((State.IDLE, 1), (State.BUSY, 2), (State.BLOCKED, 4), (State.BUSY, 8), (State.IDLE, 16)):
        meter.enter(state)
        clock.advance(seconds)
    assert meter.spent() == Spent(busy=10, blocked=4)


def test_a_long_step_shows_before_it_ends(clock: ManualClock) -> None:
    """A model that takes minutes for a batch is seen to be at work meanwhile."""
    meter = Meter(clock.monotonic)
    meter.enter(State.BUSY)
    clock.advance(90)
    assert meter.spent() == Spent(busy=90)
    meter.enter(State.IDLE)
    clock.advance(5)
    assert meter.spent() == Spent(busy=90)


def test_shares_are_of_the_last_minute_and_of_all_threads(clock: ManualClock) -> None:
    """What was longer ago does not count; two threads of which one works are half at work."""
    one, other, write = (Meter(clock.monotonic) for _ in range(3))
    workload = Workload({"embed": [one, other], "write": [write]}, clock.monotonic)
    write.enter(State.BUSY)
    _pass(clock, workload, 600)
    assert workload.shares() == {"embed": Spent(), "write": Spent(busy=1.0)}
    assert workload.limit() == "write"
    write.enter(State.IDLE)
    one.enter(State.BUSY)
    other.enter(State.BLOCKED)
    _pass(clock, workload, WINDOW / 2)
    assert workload.shares()["write"].busy == pytest.approx(0.5, abs=0.05)
    _pass(clock, workload, WINDOW / 2 + EVERY)
    assert workload.shares() == {"embed": Spent(busy=0.5, blocked=0.5), "write": Spent()}
    assert workload.threads() == {"embed": 2, "write": 1}
    assert workload.limit() is None


def test_the_limit_is_the_stage_that_works_the_most(clock: ManualClock) -> None:
    """Those before it wait for room, however full of work they look; nobody is where all wait for documents."""
    chunk, embed = Meter(clock.monotonic), Meter(clock.monotonic)
    workload = Workload({"chunk": [chunk], "embed": [embed]}, clock.monotonic)
    assert workload.limit() is None
    chunk.enter(State.BLOCKED)
    embed.enter(State.BUSY)
    _pass(clock, workload, WINDOW * IS_LIMIT)
    assert workload.limit() == "embed"
    embed.enter(State.IDLE)
    _pass(clock, workload, WINDOW)
    assert workload.limit() is None


def test_counters_only_grow(clock: ManualClock) -> None:
    """Seconds by state, as Prometheus wants them: once for each second, however often they are read."""
    metrics, meter = Metrics("0"), Meter(clock.monotonic)
    meter.enter(State.BUSY)
    for _ in range(3):
        clock.advance(2)
        for _ in range(2):
            metrics.worked("articles", "embed", 2, meter.spent()._asdict())
    labels = {"collection": "articles", "stage": "embed"}
    assert metrics.registry.get_sample_value("ingestd_stage_seconds_total", labels | {"state": "busy"}) == 6
    assert metrics.registry.get_sample_value("ingestd_stage_seconds_total", labels | {"state": "blocked"}) == 0
    assert metrics.registry.get_sample_value("ingestd_stage_threads", labels) == 2


class _Slow:
    """Takes as long as it is let."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def process(self, batch: Sequence[int], flush: Callable[[], None] = always) -> Iterator[int]:
        """Pass the batch on, once it may."""
        del flush
        self.begun.set()
        assert self.go.wait(20)
        yield from batch


def test_a_stage_says_what_it_does() -> None:
    """Idle, at work, and waiting for room: each while it lasts, and none of the others."""
    inbound: Channel[int] = Channel("in", None)
    work, room = _Slow(), threading.Event()

    def fail(name: str, error: BaseException) -> None:
        raise AssertionError(name) from error

    thread = StageThread(
        "c/embed",
        work,
        inbound,
        Appetite(10),
        pass_on=lambda _items: None,
        gate=lambda _rank: room.is_set(),
        settle=lambda _outcomes: None,
        pulse=Pulse(ManualClock()),
        fail=fail,
    )
    thread.start()
    assert _grows(thread.meter) == Spent()
    inbound.put(1)
    wait_for(lambda: _grows(thread.meter).blocked > 0, "it waits for room")
    assert _grows(thread.meter).busy == 0
    room.set()
    inbound.nudge()
    assert work.begun.wait(20)
    assert _grows(thread.meter).busy > 0 == _grows(thread.meter).blocked
    work.go.set()
    inbound.close()
    assert thread.join(20)
    assert _grows(thread.meter) == Spent()


def _grows(meter: Meter) -> Spent:
    """Return what grows while time goes by."""
    before = meter.spent()
    time.sleep(0.05)
    after = meter.spent()
    return Spent(after.busy - before.busy, after.blocked - before.blocked)


def _pass(clock: ManualClock, workload: Workload, seconds: float) -> None:
    for _ in range(int(seconds)):
        clock.advance(1)
        workload.sample()
