"""The loop of a stage: what it hands over, in which order, and when."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tests.fakes import upsert

from ingestd.engine import stage
from ingestd.engine.channel import Channel
from ingestd.engine.pulse import Pulse
from ingestd.engine.stage import Appetite, StageThread
from ingestd.model import Outcome, Verdict
from ingestd.parts import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest

DEADLINE = 20.0


class Halves:
    """Passes even numbers on, and settles odd ones; what ``wait`` returns for each comes first."""

    def __init__(self, wait: Callable[[int], object] = lambda _number: None) -> None:
        self._wait = wait

    def process(self, batch: Sequence[int]) -> Iterator[int | Outcome]:
        """Yield a result for each number."""
        for number in batch:
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
        self.thread = StageThread(
            "c/stage",
            work,
            self.inbound,
            Appetite(100),
            pass_on=self._pass_on,
            settle=lambda outcomes: self.settled.append([outcome.event.key.document_id for outcome in outcomes]),
            pulse=Pulse(SystemClock()),
            fail=lambda _name, error: self.errors.append(error),
        )

    def _pass_on(self, items: Sequence[int], _beat: Callable[[], None]) -> None:
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
    bench.run(range(6))
    assert bench.thread.join(DEADLINE)
    assert (bench.passed, bench.settled, bench.errors) == ([[0, 2, 4]], [["1", "3", "5"]], [])


def test_what_is_done_does_not_wait_for_what_takes_long() -> None:
    """A result that took its time goes on at once, with those before it: not when the whole batch is through."""
    go = threading.Event()

    def slowly(number: int) -> None:
        if number == 2:
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
