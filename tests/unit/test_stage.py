"""The loop of a stage: what it hands over, in which order, and when."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.fakes import upsert

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
        self._wait = wait

    def process(self, batch: Sequence[int], flush: Callable[[], None] = always) -> Iterator[int | Outcome]:
        """Yield a result for each number; before 4 it says that it will take long."""
        for number in batch:
            if number == 4:
                flush()
            self._wait(number)
            yield number if number % 2 == 0 else Outcome(upsert(str(number), "text", 1), Verdict.UNCHANGED)


class Bench:
    """A stage, and what it handed over: lists, as they came."""

    def __init__(self, work: Halves) -> None:
        self.inbound: Channel[int] = Channel("in", None)
        self.passed: list[list[int]] = []
        self.settled: list[list[str]] = []
        self.errors: list[BaseException] = []
        self.came = threading.Semaphore(0)
        self.waits = False
        """Whether there is no room for a while."""
        self.pulse = Pulse(SystemClock())
        self.thread = StageThread(
            "c/stage",
            work,
            self.inbound,
            Appetite(100),
            pass_on=self._pass_on,
            settle=lambda outcomes: self.settled.append([outcome.event.key.document_id for outcome in outcomes]),
            pulse=self.pulse,
            fail=lambda _name, error: self.errors.append(error),
        )

    def _pass_on(self, items: Sequence[int], beat: Callable[[], None]) -> None:
        if self.waits:
            beat()
        self.passed.append(list(items))
        self.came.release()

    def run(self, numbers: Sequence[int]) -> None:
        """Begin with a batch of numbers; no more will come."""
        self.inbound.extend(numbers)
        self.inbound.close()
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


def test_who_waited_for_room_is_allowed_its_own_silence_again() -> None:
    """Waiting is said beat by beat; what comes after it may take as long as the stage may."""
    said: list[str] = []

    def slowly(number: int) -> None:
        if number == 2:
            time.sleep(2 * stage.HOLD)

    bench = Bench(Halves(slowly))
    bench.waits = True
    bench.pulse.busy = lambda *_said: said.append("busy")  # type: ignore[method-assign]
    bench.pulse.beat = lambda *_said: said.append("beat")  # type: ignore[method-assign]
    bench.run([0, 2, 6])
    assert bench.thread.join(DEADLINE)
    assert bench.passed == [[0, 2], [6]]
    assert said[-5:] == ["beat", "busy", "beat", "busy", "beat"]
