"""The loop that every stage runs in: take a batch, process it, pass on what comes out.

A batch is of one rank, and is only taken where there is room for what becomes of it. What takes long stops between its
steps (``flush``) for what is more urgent, and for room.

A stage never raises over a document: a failure is an Outcome that flows to settle. What a stage does raise is not
about a document, and it ends the process: nothing limps on.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ingestd.engine.channel import TURNS, always_open
from ingestd.engine.workload import Meter, State
from ingestd.errors import Stopped
from ingestd.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ingestd.engine.channel import Batch, Channel, Gate
    from ingestd.engine.pulse import Pulse

In = TypeVar("In")
Out = TypeVar("Out")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)

SAYING = 0.5
"""Seconds between two heartbeats of a stage whose results come quickly: each costs as much as a small document."""
HOLD = 0.002
"""Seconds for which quick results are kept to be handed over together: one by one, that costs more than they do."""
PATIENCE = 1.0
"""Seconds that a stage waits for something to do before it beats again."""


class Work(Protocol[In_contra, Out_co]):
    """What a stage does."""

    def process(self, batch: Sequence[In_contra], flush: Callable[[], None] = ...) -> Iterable[Out_co | Outcome]:
        """Yield, for each item, what the next stage takes, or the event's outcome.

        Args:
            batch: The items.
            flush: To be called before what takes long and follows on results: they are handed over, and do not wait.
                What is more urgent goes first, so ``process`` may be called again from within, for other documents.
        """
        ...


@dataclass(frozen=True, slots=True)
class Appetite:
    """How much a stage takes at a time."""

    limit: int
    """The most weight, as its inbound channel weighs."""
    linger: float = 0.0
    """Seconds to wait for a batch to fill."""
    silence: float = 60.0
    """Seconds that a batch may take before its first result and between results: the timeouts of its calls."""
    more: Callable[[], bool] = lambda: True
    """Asked whether there is anything that is worth waiting for."""
    wants: Callable[[], int] | None = None
    """Asked for the limit, where it changes; never more than ``limit``."""
    gives_way: bool = False
    """Whether what is more urgent goes first between the steps of a batch."""


class StageThread(Generic[In, Out]):
    """A stage on its thread.

    Args:
        name: Unique in the process: ``articles/embed``.
        work: What it does.
        inbound: Where its items come from.
        appetite: How much it takes at a time.
        pass_on: Takes what the next stage takes, in its order.
        gate: Says for which ranks there is room for that.
        settle: Takes outcomes, in their order.
        pulse: Takes its heartbeats.
        fail: Called with the exception that ended the stage.
    """

    def __init__(
        self,
        name: str,
        work: Work[In, Out],
        inbound: Channel[In],
        appetite: Appetite,
        *,
        pass_on: Callable[[Sequence[Out]], None],
        gate: Gate = always_open,
        settle: Callable[[Sequence[Outcome]], None],
        pulse: Pulse,
        fail: Callable[[str, BaseException], None],
    ) -> None:
        self.name = name
        self._work = work
        self._inbound = inbound
        self._appetite = appetite
        self._pass_on = pass_on
        self._gate = gate
        self._settle = settle
        self._pulse = pulse
        self._fail = fail
        self._said = 0.0
        self.meter = Meter()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._pulse.beat(self.name)
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end; return whether it ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop()
        except Stopped:
            pass  # the daemon is stopping: what was in hand has moved no position
        except BaseException as error:  # noqa: BLE001 - whatever ended the stage ends the process
            self._fail(self.name, error)
        finally:
            self._pulse.end(self.name)

    def _loop(self) -> None:
        while True:
            self._beat()
            batch = self._inbound.take(
                self._limit(),
                self._appetite.linger,
                PATIENCE,
                gate=self._gate,
                more=self._appetite.more,
                waits=self._wait,
            )
            if batch is None:
                return
            if batch:
                self._begin()
                self.meter.enter(State.BUSY)
                self._work_on(batch)
                self.meter.enter(State.IDLE)

    def _work_on(self, batch: Batch[In]) -> None:
        results: list[Out | Outcome] = []
        since = self._said

        def hand_over() -> None:
            nonlocal results, since
            if results:
                held, results = results, []
                self._hand_over(held)
            since = time.monotonic()

        def flush() -> None:
            hand_over()
            if self._appetite.gives_way:
                self._give_way(batch.rank)

        try:
            for result in self._work.process(batch, flush):
                results.append(result)
                now = time.monotonic()
                if now - since > HOLD:
                    hand_over()
                if now - self._said > SAYING:
                    self._begin()
        except BaseException:
            with suppress(Stopped):  # what ends the stage is what is told
                hand_over()  # an outcome that is known counts, whatever comes after it
            raise
        hand_over()

    def _give_way(self, rank: int) -> None:
        """Work on what is more urgent, and wait until there is room for more of this rank."""
        gave_way, turns = False, 0
        while True:
            # Not for ever, but for as long as there is nothing else that can be done.
            more = turns < TURNS or not self._gate(rank)
            batch = self._inbound.urgent(self._limit(), rank, self._gate) if more else None
            if batch:
                turns += 1
                self._work_on(batch)
            elif self._gate(rank):
                break
            else:
                self._wait(blocked=True)
                self._beat()
                self._inbound.wait(rank, self._gate, PATIENCE)
            self.meter.enter(State.BUSY)
            gave_way = True
        if gave_way:
            self._begin()  # whoever waited was allowed less silence meanwhile

    def _limit(self) -> int:
        return self._appetite.limit if self._appetite.wants is None else self._appetite.wants()

    def _wait(self, blocked: bool) -> None:  # noqa: FBT001 - Channel calls it so
        self.meter.enter(State.BLOCKED if blocked else State.IDLE)

    def _hand_over(self, results: Sequence[Out | Outcome]) -> None:
        outcomes: list[Outcome] = []
        others: list[Out] = []
        for result in results:
            if isinstance(result, Outcome):
                outcomes.append(result)
            else:
                others.append(result)
        if outcomes:
            self._settle(outcomes)
        if others:
            self._pass_on(others)

    def _beat(self) -> None:
        self._pulse.beat(self.name)

    def _begin(self) -> None:
        self._said = time.monotonic()
        self._pulse.busy(self.name, "a batch", self._appetite.silence)
