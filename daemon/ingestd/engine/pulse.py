"""Heartbeats: how the daemon knows that its own threads are alive.

A thread beats whenever it goes round its loop. Before a call that may rightly take long (a model, a server) it says
what it is busy with and for how long at most, since a timeout bounds every such call. A thread that is silent for
longer is stale: the daemon is not ready, and systemd's watchdog is not fed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingestd.model import Check

if TYPE_CHECKING:
    from ingestd.ports import Clock

SILENCE = 20.0
"""Seconds without a beat after which a thread counts as stale; promised: within 30."""


@dataclass(slots=True)
class _Beat:
    at: float
    limit: float
    doing: str


class Pulse:
    """The heartbeats of all threads of the daemon. Safe to call from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beats: dict[str, _Beat] = {}
        self._lock = threading.Lock()

    def beat(self, name: str) -> None:
        """Say that a thread is alive."""
        self._note(name, SILENCE, "")

    def busy(self, name: str, doing: str, limit: float) -> None:
        """Say that a thread may be silent for up to ``limit`` seconds until its next beat, and why."""
        self._note(name, limit, doing)

    def end(self, name: str) -> None:
        """Say that a thread ended as it should."""
        with self._lock:
            self._beats.pop(name, None)

    def ages(self) -> dict[str, float]:
        """Return the seconds since each thread's last beat."""
        now = self._clock.monotonic()
        with self._lock:
            return {name: now - beat.at for name, beat in self._beats.items()}

    def checks(self) -> list[Check]:
        """Return one check for all threads that beat, and one for each that is stale."""
        now = self._clock.monotonic()
        with self._lock:
            stale = [
                (name, now - beat.at, beat.doing) for name, beat in self._beats.items() if now - beat.at > beat.limit
            ]
            alive = len(self._beats)
        checks = [
            Check(
                name=f"thread:{name}",
                ok=False,
                detail=f"silent for {age:.0f} s" + (f", busy with {doing}" if doing else ""),
                cure="the process is restarted by systemd's watchdog; otherwise restart it, and report the log",
            )
            for name, age, doing in stale
        ]
        return [Check("threads", not stale, f"{alive - len(stale)} of {alive} alive"), *checks]

    def _note(self, name: str, limit: float, doing: str) -> None:
        with self._lock:
            self._beats[name] = _Beat(self._clock.monotonic(), limit, doing)
