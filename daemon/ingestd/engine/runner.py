"""The runner: starts everything in order, watches it, and stops it in order.

Start: settle, pipelines, retry queue, sources. Stop: sources first, so that nothing new comes in; then what the models
have begun is drained, and all else is left for the next start; then settle, last, so that every outcome is made
durable. A thread that ends by itself ends the process:
systemd starts it again, and the ledger knows what was under way.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import structlog

from ingestd.errors import ConfigError, FatalError, Stopped, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestd.engine.breaker import Breakers
    from ingestd.engine.halts import Halts
    from ingestd.engine.pipeline import Pipeline
    from ingestd.engine.pulse import Pulse
    from ingestd.engine.settle import Settle
    from ingestd.engine.sources import RetryQueue, SourceThread
    from ingestd.engine.tally import Tally
    from ingestd.model import Check
    from ingestd.ports import Source

TICK = 0.2
PROBE_SECONDS = 5.0
"""Between two probes of each collection, so that an idle daemon notices an outage too."""
PROBE_LIMIT = 300.0
"""Seconds that a probe may take: its timeouts, and a Milvus Lite that starts again."""
HEAL_LIMIT = 1800.0
"""Seconds that a model may take to load again."""
LAST_SECONDS = 5.0
"""For threads to end after the drain."""
WRITE_SECONDS = 2.0
"""For what has its vectors to be written, where the drain was given up: to compute them again is what costs."""

log = structlog.get_logger(__name__)


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    DEAD_LETTERS = 3
    DIFFERENCES = 4
    PLAN = 5
    CONFIG = 78


class Faults:
    """The first thing that ended a thread, and with it the process. Safe to call from any thread."""

    def __init__(self) -> None:
        self.happened = threading.Event()
        self.cause: BaseException | None = None
        """What ended the first thread that ended."""
        self.ended_well = False
        """Whether the daemon stopped in order: the state's mark of a clean end."""
        self.closing = False
        """Whether what still runs is having the ground taken from under it."""

    def fail(self, name: str, error: BaseException) -> None:
        """Take note that a thread ended by itself."""
        if self.closing:
            return  # what was not drained in time: nothing has moved
        if isinstance(error, ConfigError):
            log.error("the set-up is wrong, and the process ends", thread=name, error=str(error))
        else:
            log.error("a thread ended, and the process ends with it", thread=name, exc_info=error)
        self.cause = self.cause or error
        self.happened.set()


@dataclass(frozen=True, slots=True)
class Parts:
    """What a runner runs."""

    pulse: Pulse
    breakers: Breakers
    halts: Halts
    faults: Faults
    tally: Tally
    settle: Settle
    pipelines: Mapping[str, Pipeline]
    sources: Mapping[str, Source]
    threads: Mapping[str, SourceThread]
    retries: RetryQueue
    heal: Callable[[], None]
    """Asks what is not well, state and models, whether it is again; never raises UnavailableError."""
    stop: threading.Event
    """Sources and retry queue unwind when it is set."""


class Runner:
    """A daemon, put together.

    Args:
        parts: All that runs.
        drain_seconds: How long begun documents may take to finish once the daemon stops.
    """

    def __init__(self, parts: Parts, *, drain_seconds: float) -> None:
        self._parts = parts
        self._drain_seconds = drain_seconds
        self._asked = False
        self._probing = threading.Thread(target=self._probe, name="probe", daemon=True)

    def ask_to_stop(self) -> None:
        """Drain and end. A signal handler may call it: it takes no lock, and the next tick sees it."""
        self._asked = True

    def start(self) -> None:
        """Start everything."""
        parts = self._parts
        parts.settle.start()
        for pipeline in parts.pipelines.values():
            pipeline.start()
        parts.retries.start()
        for thread in parts.threads.values():
            thread.start()
        self._probing.start()

    def run(
        self,
        *,
        once: bool,
        timeout: float | None,
        tick: Callable[[], None],
        stopping: Callable[[], None] = lambda: None,
    ) -> Exit:
        """Watch until asked to stop, or, with ``once``, until all is worked off; then stop.

        Args:
            once: End when nothing is left to do.
            timeout: Seconds after which ``once`` gives up.
            tick: Called about five times a second.
            stopping: Called before the drain.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            finished = self._watch(once=once, deadline=deadline, tick=tick)
        finally:
            stopping()
            self._shut(drain=not self._parts.faults.happened.is_set(), tick=tick)
        tick()
        return self._verdict(once=once, finished=finished)

    def _watch(self, *, once: bool, deadline: float | None, tick: Callable[[], None]) -> bool:
        """Return whether ``once`` worked everything off."""
        faults = self._parts.faults.happened
        while not self._asked and not faults.is_set():
            faults.wait(TICK)
            for pipeline in self._parts.pipelines.values():
                pipeline.workload.sample()
            tick()
            if once and self._worked_off():
                return True
            if once and deadline is not None and time.monotonic() > deadline:
                log.error("not done within the timeout")
                break
        return False

    def checks(self) -> Sequence[Check]:
        """Return what /readyz answers of the running parts."""
        parts = self._parts
        checks = [*parts.pulse.checks(), *parts.breakers.checks()]
        for source in parts.sources.values():
            checks.extend(source.checks())
        return [*checks, *parts.settle.checks(), *parts.halts.checks()]

    def _verdict(self, *, once: bool, finished: bool) -> Exit:
        if self._parts.faults.happened.is_set():
            wrong = isinstance(self._parts.faults.cause, ConfigError)  # credentials that are refused, for one
            return Exit.CONFIG if wrong else Exit.FAILURE
        self._parts.faults.ended_well = True
        if not once:
            return Exit.DONE
        checks = [check for source in self._parts.sources.values() for check in source.checks()]
        held = [check for check in [*checks, *self._parts.halts.checks()] if not check.ok]
        for check in held:
            log.error("left undone", check=check.name, detail=check.detail, cure=check.cure)
        if not finished or held:
            return Exit.FAILURE
        return Exit.DEAD_LETTERS if self._parts.tally.totals().dead_lettered else Exit.DONE

    def _worked_off(self) -> bool:
        parts = self._parts
        if any(thread.alive and not thread.halted for thread in parts.threads.values()):
            return False  # a source that is halted does not end by itself: it has more, and may not hand it in
        try:
            return parts.tally.totals().in_flight == 0 and parts.retries.waiting() == 0
        except UnavailableError:
            return False  # the state cannot be asked now; settle holds what it has, and says so

    def _shut(self, *, drain: bool, tick: Callable[[], None]) -> None:
        parts = self._parts
        parts.stop.set()
        log.info("draining")
        for pipeline in parts.pipelines.values():
            pipeline.give_up()
        deadline = time.monotonic() + (self._drain_seconds if drain else 0.0)
        drained = False
        while not drained:
            drained = all(pipeline.lanes.wait_idle(TICK) for pipeline in parts.pipelines.values())
            tick()
            if time.monotonic() >= deadline:
                break
        left = sum(pipeline.dropped for pipeline in parts.pipelines.values())
        if drained:
            log.info("drained", left_for_the_next_start=left)
        else:
            log.warning("not drained in time: begun documents are begun again after the next start")
        parts.faults.closing = True
        parts.breakers.stop()
        for thread in parts.threads.values():
            thread.release()
        for thread in parts.threads.values():
            thread.join(LAST_SECONDS)
        parts.retries.join(LAST_SECONDS)
        for pipeline in parts.pipelines.values():
            pipeline.stop(LAST_SECONDS if drained else WRITE_SECONDS)
        parts.settle.close(LAST_SECONDS)

    def _probe(self) -> None:
        """Ask each collection something small, every so often, and what else is not well whether it is again."""
        parts = self._parts
        while not parts.stop.wait(PROBE_SECONDS):
            try:
                for name, pipeline in parts.pipelines.items():
                    parts.pulse.busy("probe", "Milvus", PROBE_LIMIT)
                    self._probe_collection(name, pipeline)
                parts.pulse.busy("probe", "state and models", HEAL_LIMIT)
                parts.heal()
            except Stopped:
                break
            except Exception as error:  # noqa: BLE001 - nothing is what it was when we started
                parts.faults.fail("probe", error)
                break
        parts.pulse.end("probe")

    def _probe_collection(self, name: str, pipeline: Pipeline) -> None:
        try:
            self._parts.breakers.turn("milvus", lambda: None)
            identity = pipeline.sink.identity()
            if identity == pipeline.identity:
                pipeline.sink.probe()
        except UnavailableError as error:
            self._parts.breakers.trip(error, name)
            return
        if identity != pipeline.identity:
            raise FatalError(
                f"the collection {name} was dropped or made again: this process ends. The next start writes the "
                "documents of folders anew; committed records of Kafka topics come again only to a new group_id"
            )
        self._parts.breakers.reset("milvus", name)
        pipeline.lanes.wake()
