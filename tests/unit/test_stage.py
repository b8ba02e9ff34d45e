"""The loop of a stage: what it hands over, in which order, and when."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from tests.fakes import upsert
from tests.fixtures.daemon import wait_for

from ingestd.engine import stage
from ingestd.engine.channel import Channel
from ingestd.engine.pulse import Pulse
from ingestd.engine.stage import Appetite, StageThread
from ingestd.errors import FatalError, Stopped
from ingestd.model import Outcome, Verdict
from ingestd.parts import SystemClock
from ingestd.ports import always

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE = 20.0


class Halves:
    """Passes even numbers on, and settles odd ones; what ``wait`` returns for each comes first."""

    def __init__(self, wait: Callable[[int], object] = lambda _number: None) -> None:
        self.wait = wait

    def process(self, batch: Sequence[int], flush: Callable[[], None] = always) -> Iterator[int | Outcome]:
        """Yield a result for each number; before those that end in 4 it says that it will take long."""
        for number in batch:
            if number % 10 == 4:
                flush()
            self.wait(number)
            yield number if number % 2 == 0 else Outcome(upsert(str(number), "text", 1), Verdict.UNCHANGED)


class Bench:
    """A stage, and what it handed over: lists, as they came."""

    def __init__(self, work: Halves) -> None:
        self.work = work
        self.inbound: Channel[int] = Channel("in", None, rank=lambda number: number // 100)
        self.passed: list[list[int]] = []
        self.settled: list[list[str]] = []
        self.errors: list[BaseException] = []
        self.came = threading.Semaphore(0)
        self.room = {0, 1, 2}
        """The ranks that there is room for behind it."""
        self.pulse = Pulse(SystemClock())
        self.thread = StageThread(
            "c/stage",
            work,
            self.inbound,
            Appetite(100, gives_way=True),
            pass_on=self._pass_on,
            gate=lambda rank: rank in self.room,
            settle=lambda outcomes: self.settled.append([outcome.event.key.document_id for outcome in outcomes]),
            pulse=self.pulse,
            fail=lambda _name, error: self.errors.append(error),
        )

    def _pass_on(self, items: Sequence[int]) -> None:
        self.passed.append(list(items))
        self.came.release()

    def run(self, numbers: Sequence[int]) -> None:
        """Begin with a batch of numbers; no more will come."""
        self.inbound.extend(numbers)
        self.inbound.close()
        self.thread.start()

    def run_open(self, numbers: Sequence[int]) -> None:
        """Begin with a batch of numbers; more may come."""
        self.inbound.extend(numbers)
        self.thread.start()


def test_quick_results_are_handed_over_together_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """One lock and one wake-up for a batch, and what ended of it goes to settle."""
    monkeypatch.setattr(stage, "HOLD", DEADLINE)
    bench = Bench(Halves())
    bench.run([0, 1, 2, 3, 6, 5])
    assert bench.thread.join(DEADLINE)
    assert (bench.passed, bench.settled, bench.errors) == ([[0, 2, 6]], [["1", "3", "5"]], [])


@pytest.mark.parametrize("slow", [2, 4], ids=["a result of its own", "said to take long"])
def test_what_is_done_does_not_wait_for_what_takes_long(slow: int) -> None:
    """A result that took its time goes on at once, with those before it; and so do quick ones before a long call."""
    go = threading.Event()

    def slowly(number: int) -> None:
        if number == 2 == slow:
            threading.Event().wait(2 * stage.HOLD)
        if number == 4:
            assert go.wait(DEADLINE)

    bench = Bench(Halves(slowly))
    bench.run([0, 2, 4])
    assert bench.came.acquire(timeout=DEADLINE)
    assert bench.passed == [[0, 2]]
    go.set()
    assert bench.thread.join(DEADLINE)
    assert (bench.passed, bench.errors) == ([[0, 2], [4]], [])


@pytest.mark.parametrize("error", [FatalError("the state is gone"), Stopped("c")])
def test_what_is_known_counts_though_the_stage_ends(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Outcomes were written to Milvus: without them the same would be done, and paid for, once more."""
    monkeypatch.setattr(stage, "HOLD", DEADLINE)

    def fail(number: int) -> None:
        if number == 4:
            raise error

    bench = Bench(Halves(fail))
    bench.run([0, 1, 3, 4])
    assert bench.thread.join(DEADLINE)
    assert (bench.passed, bench.settled) == ([[0]], [["1", "3"]])
    assert bench.errors == ([] if isinstance(error, Stopped) else [error])


def test_what_is_more_urgent_goes_between_two_steps() -> None:
    """Live documents wait for one step of a backfill, not for its end, and nothing of it is done twice or lost."""
    bench = Bench(Halves(lambda number: bench.inbound.extend([2, 104]) if number == 202 else None))
    bench.run_open([202, 204, 206])
    assert bench.came.acquire(timeout=DEADLINE)
    bench.inbound.close()
    assert bench.thread.join(DEADLINE)
    assert (bench.passed, bench.errors) == ([[202], [2], [104], [204, 206]], [])


def test_a_step_waits_for_room_behind_it_and_what_is_more_urgent_does_not() -> None:
    """Whoever waited is allowed its own silence again, and said meanwhile that it lives."""
    said: list[str] = []
    bench = Bench(Halves())
    bench.pulse.busy = lambda *_said: said.append("busy")  # type: ignore[method-assign]
    bench.pulse.beat = lambda *_said: said.append("beat")  # type: ignore[method-assign]

    def leave_no_room(number: int) -> None:
        if number == 202:
            bench.room.discard(2)

    bench.work.wait = leave_no_room
    bench.run_open([202, 204])
    assert bench.came.acquire(timeout=DEADLINE)
    said.clear()
    wait_for(lambda: "beat" in said, "it waits")
    bench.inbound.put(2)
    assert bench.came.acquire(timeout=DEADLINE)
    assert bench.passed == [[202], [2]]
    wait_for(lambda: bench.thread.meter.spent().blocked > 0, "it says that it waits for room")
    bench.room.add(2)
    bench.inbound.nudge()
    assert bench.came.acquire(timeout=DEADLINE)
    bench.inbound.close()
    assert bench.thread.join(DEADLINE)
    assert (bench.passed, bench.errors) == ([[202], [2], [204]], [])
    assert "busy" in said[said.index("beat") :]


def test_what_never_ends_is_given_way_to_for_a_while() -> None:
    """A backfill goes on, a step at a time, however many live documents come."""
    live = itertools.count(2, 2)
    bench = Bench(Halves(lambda number: bench.inbound.put(next(live) * 10) if number < 100 else None))
    bench.inbound.put(0)
    bench.run_open([202, 204, 206])
    wait_for(lambda: any(206 in some for some in bench.passed), "the backfill is done")
    bench.work.wait = lambda _number: None
    bench.inbound.close()
    assert bench.thread.join(DEADLINE)
    assert bench.errors == []


def test_what_there_is_no_room_for_is_not_begun() -> None:
    """It stays where it is, and what there is room for passes it."""
    bench = Bench(Halves())
    bench.room = {1}
    bench.run_open([202, 2, 102])
    assert bench.came.acquire(timeout=DEADLINE)
    bench.room = {0, 2}
    bench.inbound.nudge()
    bench.inbound.close()
    assert bench.thread.join(DEADLINE)
    assert bench.passed == [[102], [2], [202]]


def test_an_error_amid_what_is_more_urgent_ends_the_stage_once() -> None:
    """What was done before it counts."""

    def fail(number: int) -> None:
        if number == 202:
            bench.inbound.put(2)
        if number == 2:
            raise FatalError("the state is gone")

    bench = Bench(Halves(fail))
    bench.run_open([201, 202, 204])
    assert bench.thread.join(DEADLINE)
    assert (bench.passed, bench.settled) == ([[202]], [["201"]])
    assert [str(error) for error in bench.errors] == ["the state is gone"]
