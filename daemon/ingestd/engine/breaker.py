"""Breakers: an outage is not a bad document.

A call against a dependency that raises UnavailableError opens that dependency's breaker: the pipelines behind it take
nothing in, the batch in hand is kept and tried again with back-off, and no document's retries are spent. The breaker
closes when a call gets through.

*Unavailable* stands only while a probe (an empty query, a fixed text) fails too. Probe good and batch bad three times
in a row means that the batch only looks like an outage: ``Suspect`` is raised, and the caller halves the batch until
the bad document stands alone; that one is Transient.
"""

from __future__ import annotations

import random
import threading
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
    most: float = 30.0

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        ceiling = min(self.most, self.first * 2 ** min(failures - 1, 30))
        return float(ceiling * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret


@dataclass(slots=True)
class _Outage:
    message: str
    scopes: set[str | None]
    """The pipelines that found out; None is all of them."""


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
        self._known: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Let every held call raise Stopped."""
        self._stop.set()

    def passes(self, scope: str) -> bool:
        """Return whether nothing behind a pipeline is known to be down."""
        with self._lock:
            return not any(scope in outage.scopes or None in outage.scopes for outage in self._open.values())

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
        """Note that a dependency is down, as a pipeline found out."""
        with self._lock:
            new = error.dependency not in self._open
            outage = self._open.setdefault(error.dependency, _Outage("", set()))
            outage.message = str(error)
            outage.scopes.add(scope)
        if new:
            log.warning("dependency down, intake paused", dependency=error.dependency, error=str(error))
            self._on_change(error.dependency, True)

    def reset(self, dependency: str, scope: str | None = None) -> None:
        """Note that a dependency answers, as a pipeline found out. It is back when all say so who said it was not."""
        with self._lock:
            outage = self._open.get(dependency)
            if outage is not None:
                outage.scopes.discard(scope)
            closed = outage is not None and not outage.scopes
            if closed:
                del self._open[dependency]
        if closed:
            log.info("dependency is back", dependency=dependency)
            self._on_change(dependency, False)

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
        while True:
            calling()
            try:
                result = call()
            except UnavailableError as error:
                failures += 1
                tripped.add(error.dependency)
                calling()
                if probe is not None and self._answers(probe):
                    suspicions += 1
                    if suspicions >= SUSPECT_AFTER:
                        self._reset_all(tripped, scope)
                        self._suspect(error, scope)
                        raise Suspect(str(error)) from error
                else:
                    suspicions = 0
                    self.trip(error, scope)
                self._wait(max(self._backoff.delay(failures), error.wait or 0.0), beat)
            except Exception:
                self._reset_all(tripped, scope)  # whatever else is wrong, the dependency answered
                raise
            else:
                self._reset_all(tripped, scope)
                self._suspects.pop(scope, None)
                return result

    def patience(self, scope: str, beat: Callable[[], None], calling: Callable[[], None] = lambda: None) -> Patience:
        """Return ``hold`` for threads of a pipeline."""
        return Patience(self, scope, beat, calling)

    def _suspect(self, error: UnavailableError, scope: str | None) -> None:
        """Note that a batch is suspected. Too many in a row, and it is the dependency after all that is not well."""
        count = self._suspects[scope] = self._suspects.get(scope, 0) + 1
        log.warning("a batch fails where a probe passes; it is halved", dependency=error.dependency, error=str(error))
        if count >= STORM:
            self.trip(error, scope)

    def _reset_all(self, dependencies: set[str], scope: str | None) -> None:
        for dependency in dependencies:
            self.reset(dependency, scope)

    def _answers(self, probe: Callable[[], object]) -> bool:
        try:
            probe()
        except (ConfigError, FatalError):
            raise
        except IngestError:
            return False  # a probe is no document: whatever is wrong with it is the dependency's
        return True

    def _wait(self, seconds: float, beat: Callable[[], None]) -> None:
        remaining = seconds
        while remaining > 0:
            beat()
            step = min(1.0, remaining)
            if self._stop.wait(step):
                raise Stopped("held call")
            remaining -= step
        if self._stop.is_set():
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
