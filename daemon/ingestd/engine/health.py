"""How the daemon is: what the probes, the status page and ``ingestd status`` say.

Liveness is about our own threads alone; readiness is about whether documents get through. While the daemon starts,
the running parts are not there yet, and the step that it is at is all there is to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.model import Check, Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestd.engine.pulse import Pulse
    from ingestd.model import Json
    from ingestd.ports import Clock

BEGINNING = "reading the state"


class Health:
    """What is known of a daemon, from its first step on. Safe to call from any thread.

    Args:
        pulse: The heartbeats.
        clock: For the uptime.
        version: The daemon's own.
    """

    def __init__(self, pulse: Pulse, clock: Clock, version: str) -> None:
        self._pulse = pulse
        self._clock = clock
        self._version = version
        self._began = clock.monotonic()
        self._step: str | None = BEGINNING
        self._checks: Callable[[], Sequence[Check]] = tuple
        self._totals: Callable[[], Totals] = Totals
        self._overview: Callable[[], Mapping[str, Json]] = dict
        self._notes: Mapping[str, Check] = {}

    def at(self, step: str) -> None:
        """Say what the start is at."""
        self._step = step

    def know(
        self,
        *,
        checks: Callable[[], Sequence[Check]],
        totals: Callable[[], Totals],
        overview: Callable[[], Mapping[str, Json]],
    ) -> None:
        """Say who knows how the daemon is, once it is up."""
        self._checks, self._totals, self._overview = checks, totals, overview

    def up(self) -> None:
        """Say that the start is over: the parts run."""
        self._step = None

    def down(self, step: str) -> None:
        """Say that the daemon is being taken down, and what for."""
        self._step = step

    def note(self, check: Check) -> None:
        """Say something beside what the running parts say, in place of what was said under that name before."""
        self._notes = {**self._notes, check.name: check}

    def live(self) -> Sequence[Check]:
        """Return whether the daemon's own threads go round."""
        return self._pulse.checks()

    def ready(self) -> Sequence[Check]:
        """Return whether documents get through now."""
        if self._step is not None:
            return [*self.started(), *self._notes.values()]  # the parts are not up yet, or being taken down
        return [*self.started(), *self._checks(), *self._notes.values()]

    def started(self) -> Sequence[Check]:
        """Return whether the start is over."""
        return [Check("started", self._step is None, self._step or "models loaded, collections as configured")]

    def totals(self) -> Totals:
        """Return what became of the events of this run."""
        return self._totals()

    def overview(self) -> Mapping[str, Json]:
        """Return what else there is to say."""
        uptime = round(self._clock.monotonic() - self._began, 1)
        return {"version": self._version, "uptime_seconds": uptime, **self._overview()}
