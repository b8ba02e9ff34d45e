"""What the outside sees of the daemon: the health server, the control socket, and systemd."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from ingestd import flow
from ingestd.errors import ConfigError
from ingestd.milvus.client import LOAD_SECONDS
from ingestd.model import Check
from ingestd.ops.http import HealthServer
from ingestd.ops.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from ingestd.config import Settings
    from ingestd.engine.health import Health
    from ingestd.metrics import Metrics
    from ingestd.ops.control import ControlServer
    from ingestd.ops.image import Reloads

REFRESH = 2.0
"""Seconds between two looks at what the gauges show."""
START_STEP = 120.0
"""Seconds that systemd is asked for at each step of the start, and for the end, beyond the longest that one part of a
step may take: a model, or a collection, to load."""
STILL = 10.0
"""Seconds after which it is asked again, in a step that takes long."""
_CONFIGURATION = "configuration"

log = structlog.get_logger(__name__)


class Front:
    """Says how the daemon is, from its first step on.

    Args:
        settings: The configuration.
        stack: Closes the servers.
        reloads: What became of the wishes for a new configuration so far.
        once: Whether the daemon ends by itself.
    """

    def __init__(self, settings: Settings, stack: ExitStack, reloads: Reloads, *, once: bool) -> None:
        self._settings = settings
        self._once = once
        self._stack = stack
        self._reloads = reloads
        self._read_at = _now()
        self._notifier = Notifier.from_environment(os.environ)
        self._servers: dict[str, HealthServer | ControlServer] = {}
        self._health: Health | None = None
        self._metrics: Metrics | None = None
        self._is_up = False
        self._fed = self._refreshed = self._extended = 0.0

    def applied(self) -> Reloads:
        """Return what became of the wishes for a new configuration, counting one that takes over now."""
        return replace(self._reloads, applied=self._reloads.applied + 1)

    def step(self, name: str, health: Health, metrics: Metrics) -> None:
        """Say what the start is at; the first step opens the health server."""
        if name == flow.FIRST_STEP:
            self._begin(health, metrics)
        log.info(name)
        self._extend()
        self._notifier.status(name)

    def still(self) -> None:
        """Say that a step of the start goes on: before each part of it that may take long."""
        if time.monotonic() - self._extended >= STILL:
            self._extend()

    def _begin(self, health: Health, metrics: Metrics) -> None:
        self._health, self._metrics = health, metrics
        metrics.configuration.reloads.labels(result="applied").inc(self._reloads.applied)
        metrics.configuration.reloads.labels(result="refused").inc(self._reloads.refused)
        health.note(Check(_CONFIGURATION, ok=True, detail=f"read at {self._read_at}"))
        try:
            server = HealthServer(self._settings.http.listen, health, metrics.registry)
        except ConfigError as error:
            if not self._once:
                raise
            log.warning("no status page for this run", reason=str(error))  # it ends by itself, and says how
            return
        self.serve("health", server)
        log.info("status page", url=f"http://{server.address}/")

    def serve(self, name: str, server: HealthServer | ControlServer) -> None:
        """Start a server, and watch it from now on."""
        self._stack.callback(server.close)
        server.start()
        self._servers[name] = server

    def up(self, daemon: flow.Daemon) -> None:
        """Say that the start is over."""
        daemon.health.up()
        self._is_up = True
        log.info("ready", collections=sorted(daemon.pipelines), sources=sorted(daemon.sources))
        self._notifier.ready("watching")

    def tick(self, daemon: flow.Daemon) -> None:
        """Feed the watchdog, while all threads go round; a server that died ends the process."""
        now = time.monotonic()
        if now - self._refreshed >= REFRESH:
            daemon.refresh()
            self._refreshed = now
        for name, server in self._servers.items():
            if not server.alive:
                daemon.faults.fail(name, RuntimeError("the server ended by itself"))
        interval = self._notifier.watchdog_interval()
        if interval is not None and now - self._fed >= interval / 2 and all(check.ok for check in daemon.health.live()):
            self._notifier.watchdog()
            self._fed = now

    def reading_again(self) -> None:
        """Say that the configuration is being read again."""
        log.info("reading the configuration again")
        if self._is_up:  # who has not said READY=1 is still at its start
            self._notifier.reloading("checking the new configuration")

    def refuse(self, faults: Sequence[str]) -> None:
        """Say what is wrong with the new configuration, and that all goes on as it was."""
        log.error("config refused; the old one goes on", faults=list(faults))
        self._reloads = replace(self._reloads, refused=self._reloads.refused + 1)
        if self._metrics is not None:
            self._metrics.configuration.reloads.labels(result="refused").inc()
        if self._health is not None:
            detail = f"read at {self._read_at}; a newer one was refused at {_now()}, and the log says why"
            cure = "correct it and send SIGHUP again; a restart would be refused too"
            self._health.note(Check(_CONFIGURATION, ok=True, detail=detail, cure=cure))
        if self._is_up:
            self._notifier.ready("watching; a new configuration was refused, the log says why")

    def down(self, daemon: flow.Daemon, *, reloading: bool) -> None:
        """Say that the daemon is being taken down.

        Args:
            daemon: The daemon.
            reloading: Whether it begins again, with a new configuration.
        """
        daemon.health.down("reloading" if reloading else "stopping")
        if not reloading:
            self._notifier.stopping("stopping")
            return
        self._notifier.reloading("draining, to begin again with the new configuration")
        # Until the first step of the next image nobody else says anything.
        self._notifier.extend(self._settings.shutdown.drain_seconds + self._patience(), watched=True)

    def _extend(self) -> None:
        self._extended = time.monotonic()
        self._notifier.extend(self._patience(), watched=self._reloads.applied > 0)

    def _patience(self) -> float:
        return START_STEP + max(self._settings.embedding.load_timeout_seconds, LOAD_SECONDS)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
