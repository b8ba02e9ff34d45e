"""``ingestd run``: the daemon itself."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click
import structlog
from tqdm import tqdm

from ingestd import flow, operations
from ingestd.cli.common import config_option, ends, json_option, load
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError, Stopped
from ingestd.model import Totals
from ingestd.ops.control import SOCKET_NAME, ControlServer
from ingestd.ops.http import HealthServer
from ingestd.ops.log import adopt
from ingestd.ops.notify import Notifier
from ingestd.parts import private_state

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from ingestd.config import Settings
    from ingestd.engine.health import Health
    from ingestd.engine.runner import Runner
    from ingestd.metrics import Metrics

ONE_SIGNAL = 1.0
"""Seconds within which equal signals count as one: a terminal and ``make`` both pass on a Ctrl-C."""
REFRESH = 2.0
"""Seconds between two looks at what the gauges show."""
START_STEP = 120.0
"""Seconds that systemd is asked for at each step of the start, beyond the model's own time to load."""

log = structlog.get_logger(__name__)


@click.command()
@config_option
@click.option("--once", is_flag=True, help="Work off what is there, and end.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=None, help="With --once: seconds.")
@json_option
@ends
def run(config_file: Path | None, timeout: float | None, *, once: bool, as_json: bool) -> Exit:
    """Keep the collections equal to the documents behind them."""
    if timeout is not None and not once:
        raise click.UsageError("--timeout goes with --once")
    signals = _Signals()
    settings = load(config_file)
    if not settings.sources:
        raise ConfigError("sources: none is configured, so there is nothing to do; add a [sources.NAME]")
    began = time.monotonic()
    with ExitStack() as stack:
        stack.callback(signals.end)  # the last thing that happens
        if settings.stateless:
            settings = replace(settings, state_dir=stack.enter_context(private_state()))
        front = _Front(settings, stack, once=once)
        try:
            signals.begin(timeout)
            daemon = stack.enter_context(flow.daemon(settings, once=once, beginning=front.step))
            front.serve("control", ControlServer(settings.state_dir / SOCKET_NAME, operations.commands(daemon)))
            adopt()  # pymilvus has brought log handlers of its own
            signals.hand_over(daemon.runner)
        except Stopped:
            log.info("stopped while starting")
            return _unfinished(as_json=as_json) if once else Exit.DONE
        except _Late:
            log.warning("not started within the timeout; ingestd check says why", timeout_seconds=timeout)
            return _unfinished(as_json=as_json)
        calm_collector()
        daemon.runner.start()
        front.up(daemon)
        progress = _Progress(once=once)
        stack.callback(progress.close)
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))

        def tick() -> None:
            front.tick(daemon)
            progress.show(daemon.tally.totals())

        code = daemon.runner.run(once=once, timeout=left, tick=tick, stopping=lambda: front.down(daemon))
        totals = daemon.tally.totals()
    log.info("ended", exit_code=int(code), **asdict(totals))
    if as_json:
        click.echo(json.dumps({"totals": asdict(totals)}))
    return code


def calm_collector() -> None:
    """Have the garbage collector look less often: nothing here makes cycles while documents flow.

    With the default threshold of 700 it walks all that is in flight again and again: a seventh of the processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _unfinished(*, as_json: bool) -> Exit:
    """End ``--once`` before it has begun: nothing was done."""
    if as_json:
        click.echo(json.dumps({"totals": asdict(Totals())}))
    return Exit.FAILURE


class _Front:
    """What the outside sees of the daemon: the health server and systemd."""

    def __init__(self, settings: Settings, stack: ExitStack, *, once: bool) -> None:
        self._settings = settings
        self._once = once
        self._stack = stack
        self._notifier = Notifier.from_environment(os.environ)
        self._servers: dict[str, HealthServer | ControlServer] = {}
        self._fed = self._refreshed = 0.0

    def step(self, name: str, health: Health, metrics: Metrics) -> None:
        """Say what the start is at; the first step opens the health server."""
        if name == flow.FIRST_STEP:
            self._listen(health, metrics)
        log.info(name)
        self._notifier.extend(START_STEP + self._settings.embedding.load_timeout_seconds)
        self._notifier.status(name)

    def _listen(self, health: Health, metrics: Metrics) -> None:
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

    def down(self, daemon: flow.Daemon) -> None:
        """Say that the daemon is stopping."""
        daemon.health.down()
        self._notifier.stopping("stopping")


class _Signals:
    """SIGTERM, SIGINT and SIGHUP: the first drains, a second one ends the process at once."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._first: float | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it ignored
                signal.signal(number, self._asked)

    def begin(self, timeout: float | None) -> None:
        """Bound the start as well."""
        if timeout is not None:
            signal.signal(signal.SIGALRM, self._late)
            signal.setitimer(signal.ITIMER_REAL, timeout)

    def hand_over(self, runner: Runner) -> None:
        """Let the runner drain from now on."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._runner = runner
        if self._first is not None:
            runner.ask_to_stop()

    def end(self) -> None:
        """Have further signals ignored: while the interpreter ends it puts the defaults back, and those kill."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            if self._runner is None:
                raise Stopped(signal.Signals(number).name)
            self._runner.ask_to_stop()
        elif now - self._first > ONE_SIGNAL:
            # Not sys.exit: nothing may delay it. Children end with their pipes, and no position has moved.
            os._exit(int(Exit.FAILURE))

    def _late(self, _number: int, _frame: FrameType | None) -> None:
        raise _Late


class _Late(BaseException):
    """The daemon did not start within its timeout."""


class _Progress:
    """A bar on a terminal, for ``--once``."""

    def __init__(self, *, once: bool) -> None:
        self._bar = tqdm(total=0, unit="doc", desc="documents") if once and sys.stderr.isatty() else None

    def show(self, totals: Totals) -> None:
        """Bring the bar up to date."""
        if self._bar is None:
            return
        self._bar.total = totals.accepted
        self._bar.n = totals.accepted - totals.in_flight - totals.retrying
        self._bar.set_postfix(embedded=totals.chunks_embedded, dead=totals.dead_lettered, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
