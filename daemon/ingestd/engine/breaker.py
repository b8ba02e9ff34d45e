"""Breakers: an outage is not a bad document.

A call against a dependency that raises UnavailableError opens that dependency's breaker: the pipelines behind it take
nothing in, the batch in hand is kept and tried again with back-off, and no document's retries are spent. The breaker
closes when a call gets through.

*Unavailable* stands only while a probe (an empty query, a fixed text) fails too. Probe good and batch bad three times
in a row means that the batch only looks like an outage: ``Suspect`` is raised, and the caller halves the batch until
the bad document stands alone; that one is Transient. Where the dependency itself says that it refuses (a quota, a rate
limit), there is nothing to suspect: a server that is out of disk may well answer reads and deletes.

Whoever found a dependency down says so until they got through themselves: a probe that passes says nothing about the
writes of a call that is held. What it does is wake that call, so that the way back is no longer than a probe's round.
A dependency that is known to be down is asked once a second at most, by all that wait for it together.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from ingestd.errors import ConfigError, FatalError, IngestError, Stopped, Suspect, UnavailableError
from ingestd.model import Check

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")

SUSPECT_AFTER = 3
"""Failures in a row with a good probe after each, before the batch itself is suspected."""

STORM = 12
"""Suspected batches in a row that count as an outage. Halving a thousand rows down to a bad one takes eleven."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double up to a bound, each drawn between half of itself and all of it."""

    first: float = 0.5
    most: float = 15.0
    """While the daemon starts nothing wakes a call that waits: it has to be back within half a minute all the same."""
    pace: float = 1.0
    """Seconds between two requests to a dependency that is known to be down, whoever makes them."""

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        ceiling = min(self.most, self.first * 2 ** min(failures - 1, 30))
        return float(ceiling * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret


@dataclass(slots=True)
class _Outage:
    message: str
    said: set[tuple[str | None, object]]
    """Who found out: the pipeline (None is all of them), and the call that is held (None is a probe)."""
    next: float = 0.0
    """When it may be asked again."""


class Breakers:
    """The breakers of all dependencies, by name. Safe to call from any thread.

    Args:
        on_change: Called with (dependency, whether it is open) whenever that changes.
        backoff: Between tries.
    """

    def __init__(
        self, on_change: Callable[[str, bool], None] = lambda _name, _open: None, backoff: Backoff | None = None
    ) -> None:
        self._on_change = on_change
        self._backoff = backoff or Backoff()
        self._open: dict[str, _Outage] = {}
        self._suspects: dict[str | None, int] = {}
        """Batches that were suspected in a row, by pipeline."""
        self._storms: set[tuple[str, str | None, int]] = set()
        """Dependency, pipeline and thread of storms. No call is held for them: the thread's next success ends them."""
        self._known: set[str] = set()
        self._woken: Counter[tuple[str, str | None]] = Counter()
        """How often a dependency's probe has passed, by pipeline."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = False

    def stop(self) -> None:
        """Let every held call raise Stopped."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def passes(self, scope: str) -> bool:
        """Return whether nothing behind a pipeline is known to be down."""
        with self._lock:
            said = {pipeline for outage in self._open.values() for pipeline, _ in outage.said}
            return not said & {scope, None}

    def register(self, dependency: str) -> None:
        """Name a dependency, so that ``checks`` speaks of it while it is well."""
        with self._lock:
            self._known.add(dependency)

    def checks(self) -> list[Check]:
        """Return one check for each dependency."""
        with self._lock:
            known = sorted(self._known | set(self._open))
            return [
                Check(
                    name=name,
                    ok=name not in self._open,
                    detail=self._open[name].message if name in self._open else "answers",
                    cure=""
                    if name not in self._open
                    else f"intake is paused and goes on by itself once {name} answers",
                )
                for name in known
            ]

    def trip(self, error: UnavailableError, scope: str | None = None) -> None:
        """Note that a dependency is down, as a probe for a pipeline found out."""
        self._trip(error, scope, None)

    def reset(self, dependency: str, scope: str | None = None) -> None:
        """Note that a dependency answers a pipeline's probe. It is back when all say so who said it was not.

        Calls that the pipeline holds (None: all of them) are tried again at once, or when the time has come that they
        were told.
        """
        self._reset(dependency, scope, None)
        with self._changed:
            self._woken[dependency, scope] += 1
            self._changed.notify_all()

    def unheld(self) -> list[str]:
        """Return the dependencies that count as down though no call is held: nobody but a probe finds them well."""
        with self._lock:
            return sorted(
                name for name, outage in self._open.items() if all(holder is None for _, holder in outage.said)
            )

    def forgive(self, dependency: str) -> None:
        """Note that a dependency answers a probe that speaks for all pipelines."""
        with self._lock:
            outage = self._open.get(dependency)
            scopes = {scope for scope, _ in outage.said} if outage is not None else set()
            self._storms = {storm for storm in self._storms if storm[0] != dependency}
        for scope in scopes:
            self.reset(dependency, scope)

    def turn(self, dependency: str, beat: Callable[[], None]) -> None:
        """Wait until a dependency may be asked: at once, unless it is known to be down and was just asked.

        Raises:
            Stopped: The daemon is stopping.
        """
        with self._lock:
            outage = self._open.get(dependency)
            now = time.monotonic()
            at = now if outage is None else max(now, outage.next)
            if outage is not None:
                outage.next = at + self._backoff.pace
        self._wait(at, beat, lambda: self._open.get(dependency) is not outage)

    def hold(
        self,
        call: Callable[[], R],
        probe: Callable[[], object] | None = None,
        *,
        beat: Callable[[], None],
        calling: Callable[[], None] = lambda: None,
        scope: str | None = None,
    ) -> R:
        """Make a call, holding on to it while its dependency is down.

        Args:
            call: Idempotent.
            probe: A small call against the same dependency; None where there is none: the call is never suspected.
            beat: Called while waiting.
            calling: Called before each call: it may rightly take long.
            scope: The pipeline that waits; None: everything does.

        Raises:
            Suspect: The dependency answers, and this call alone fails.
            Stopped: The daemon is stopping.
        """
        failures = suspicions = 0
        tripped: set[str] = set()
        holder = object()
        while True:
            for dependency in sorted(tripped):
                self.turn(dependency, beat)
            calling()
            try:
                result = call()
            except UnavailableError as error:
                failures += 1
                tripped.add(error.dependency)
                if not error.refused and probe is not None and self._answers(probe, error.dependency, beat, calling):
                    suspicions += 1
                    if suspicions >= SUSPECT_AFTER:
                        self._reset_all(tripped, scope, holder)
                        self._suspect(error, scope)
                        raise Suspect(str(error)) from error
                else:
                    suspicions = 0
                    self._trip(error, scope, holder)
                self._rest(error, failures, scope, beat)
            except Exception:
                # Whatever else is wrong, the dependency answered.
                self._reset_all(tripped, scope, holder)
                raise
            else:
                self._reset_all(tripped, scope, holder)
                self._suspects.pop(scope, None)
                self._end_storms(scope)
                return result

    def patience(self, scope: str, beat: Callable[[], None], calling: Callable[[], None] = lambda: None) -> Patience:
        """Return ``hold`` for threads of a pipeline."""
        return Patience(self, scope, beat, calling)

    def _suspect(self, error: UnavailableError, scope: str | None) -> None:
        """Note that a batch is suspected. Too many in a row, and it is the dependency after all that is not well."""
        count = self._suspects[scope] = self._suspects.get(scope, 0) + 1
        log.warning("a batch fails where a probe passes; it is halved", dependency=error.dependency, error=str(error))
        if count >= STORM:
            with self._lock:
                self._storms.add((error.dependency, scope, threading.get_ident()))
            self.trip(error, scope)

    def _end_storms(self, scope: str | None) -> None:
        """Note that a batch got through where batch after batch did not: on this thread, to the same dependencies."""
        if not self._storms:
            return
        thread = threading.get_ident()
        with self._lock:
            over = {storm for storm in self._storms if storm[1:] == (scope, thread)}
            self._storms -= over
        for dependency, _, _ in over:
            self._reset(dependency, scope, None)

    def _trip(self, error: UnavailableError, scope: str | None, holder: object) -> None:
        with self._lock:
            new = error.dependency not in self._open
            if new:
                self._open[error.dependency] = _Outage("", set(), time.monotonic() + self._backoff.pace)
            outage = self._open[error.dependency]
            outage.message = str(error)
            outage.said.add((scope, holder))
        if new:
            log.warning("dependency down, intake paused", dependency=error.dependency, error=str(error))
            self._on_change(error.dependency, True)

    def _reset(self, dependency: str, scope: str | None, holder: object) -> None:
        with self._changed:
            outage = self._open.get(dependency)
            if outage is not None:
                outage.said -= {(scope, holder), (scope, None)}
            closed = outage is not None and not outage.said
            if closed:
                del self._open[dependency]
                self._changed.notify_all()
        if closed:
            log.info("dependency is back", dependency=dependency)
            self._on_change(dependency, False)

    def _reset_all(self, dependencies: set[str], scope: str | None, holder: object) -> None:
        for dependency in dependencies:
            self._reset(dependency, scope, holder)

    def _answers(
        self, probe: Callable[[], object], dependency: str, beat: Callable[[], None], calling: Callable[[], None]
    ) -> bool:
        self.turn(dependency, beat)
        calling()
        try:
            probe()
        except (ConfigError, FatalError):
            raise
        except IngestError:
            return False  # a probe is no document: whatever is wrong with it is the dependency's
        return True

    def _rest(self, error: UnavailableError, failures: int, scope: str | None, beat: Callable[[], None]) -> None:
        """Wait before a held call is tried again: as long as was asked, and then until it is woken or time is up."""
        began = time.monotonic()
        woken = self._wakings(error.dependency, scope)
        asked = error.wait or 0.0
        self._wait(began + asked, beat, lambda: False)
        until = began + max(self._backoff.delay(failures), asked)
        self._wait(until, beat, lambda: self._wakings(error.dependency, scope) != woken)

    def _wakings(self, dependency: str, scope: str | None) -> int:
        return self._woken[dependency, scope] + self._woken[dependency, None]

    def _wait(self, until: float, beat: Callable[[], None], over: Callable[[], bool]) -> None:
        """Wait for a time, or until ``over``, which must take no lock.

        Raises:
            Stopped: The daemon is stopping.
        """
        while (left := until - time.monotonic()) > 0:
            beat()
            with self._changed:
                if self._changed.wait_for(lambda: self._stopped or over(), min(1.0, left)):
                    break
        if self._stopped:
            raise Stopped("held call")


@dataclass(frozen=True, slots=True)
class Patience:
    """``Breakers.hold`` for one thread."""

    breakers: Breakers
    scope: str
    beat: Callable[[], None]
    calling: Callable[[], None]

    def hold(self, call: Callable[[], R], probe: Callable[[], object] | None) -> R:
        """Make a call, holding on to it while its dependency is down."""
        return self.breakers.hold(call, probe, beat=self.beat, calling=self.calling, scope=self.scope)
