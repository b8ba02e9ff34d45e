"""``ingestd run``: the daemon itself."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click
import structlog
from tqdm import tqdm

from ingestd import flow, operations
from ingestd.cli.common import config_option, ends, json_option, load, needs_sources
from ingestd.cli.front import Front
from ingestd.cli.reload import Reload
from ingestd.engine.runner import Exit
from ingestd.errors import Stopped
from ingestd.model import Totals
from ingestd.ops.control import SOCKET_NAME, ControlServer
from ingestd.ops.image import Image, Reloads
from ingestd.ops.log import adopt
from ingestd.ops.signals import Signals
from ingestd.ops.start import Late
from ingestd.parts import private_state

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.engine.health import Health
    from ingestd.metrics import Metrics

_SWITCH = 0.02
"""Seconds that a thread may hold the interpreter's lock when others want it: longer than most batches take a stage."""

log = structlog.get_logger(__name__)


@click.command()
@config_option
@click.option("--once", is_flag=True, help="Work off what is there, and end.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=None, help="With --once: seconds.")
@json_option
@click.pass_obj
@ends
def run(image: Image | None, config_file: Path | None, timeout: float | None, *, once: bool, as_json: bool) -> Exit:
    """Keep the collections equal to the documents behind them.

    SIGTERM and Ctrl-C drain and end. SIGHUP has the configuration read again: a good one takes over, a bad one is
    refused, and the old one goes on.
    """
    if timeout is not None and not once:
        raise click.UsageError("--timeout goes with --once")
    image = image or Image.now(os.environ)

    def not_started(why: Stopped) -> Exit:
        if isinstance(why, Late):
            log.warning("not started within the timeout; ingestd check says why", timeout_seconds=timeout)
        else:
            log.info("stopped while starting")
        return _unfinished(as_json=as_json) if once else Exit.DONE

    signals = Signals(reloads=not once, timeout=timeout, give_up=not_started)
    again: Reloads | None = None
    try:
        code, again = _run(image, signals, config_file, timeout, once=once, as_json=as_json)
    except Stopped as why:
        code = not_started(why)
    finally:
        signals.end()
    if again is None or signals.stopping:
        return code
    log.info("begins again with the new configuration")
    image.replace(again)
    return Exit.FAILURE


def _run(
    image: Image, signals: Signals, config_file: Path | None, timeout: float | None, *, once: bool, as_json: bool
) -> tuple[Exit, Reloads | None]:
    """Run the daemon until its end.

    Returns:
        The exit code, and, where the process is to be begun again, what the next image is to know.

    Raises:
        Stopped: The daemon was asked to stop while it started.
        Late: It did not start within the timeout.
    """
    began = time.monotonic()
    settings = load(config_file)
    needs_sources(settings)
    with ExitStack() as stack:
        if settings.stateless:
            settings = replace(settings, state_dir=stack.enter_context(private_state()))
        front = Front(settings, stack, image.reloads, once=once)
        reload = Reload(config_file, settings, image, front, signals.leave)
        stack.callback(reload.close)

        def beginning(name: str, health: Health, metrics: Metrics) -> None:
            front.step(name, health, metrics)
            if name == flow.FIRST_STEP:
                signals.on_hangup(reload.ask)

        try:
            with signals.start.guarded():
                begun = flow.daemon(settings, once=once, beginning=beginning, still=front.still, start=signals.start)
                daemon = stack.enter_context(begun)
                front.serve("control", ControlServer(settings.state_dir / SOCKET_NAME, operations.commands(daemon)))
                adopt()  # pymilvus has brought log handlers of its own
                signals.hand_over(daemon.runner.ask_to_stop)
        except Stopped:
            if not reload.accepted:
                raise
            return Exit.DONE, front.applied()
        reload.know(daemon.embedders)
        calm_interpreter()
        daemon.runner.start()
        front.up(daemon)
        progress = _Progress(once=once)
        stack.callback(progress.close)
        left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))

        def tick() -> None:
            front.tick(daemon)
            progress.show(daemon.tally.totals())

        def stopping() -> None:
            front.down(daemon, reloading=reload.accepted and not signals.stopping)

        code = daemon.runner.run(once=once, timeout=left, tick=tick, stopping=stopping)
        totals = daemon.tally.totals()
    log.info("ended", exit_code=int(code), **asdict(totals))
    if as_json:
        click.echo(json.dumps({"totals": asdict(totals)}))
    return code, front.applied() if reload.accepted and code is Exit.DONE else None


def calm_interpreter() -> None:
    """Have the interpreter interrupt the work less often.

    Nothing here makes cycles while documents flow: with the default threshold of 700 the garbage collector walks all
    that is in flight again and again, a seventh of the processor time. And with the default of 5 ms, threads that all
    have something to do take the interpreter's lock from one another in the middle of it: on a machine that has other
    things to do as well, where who has the lock may not be running, a fifth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    sys.setswitchinterval(_SWITCH)


def _unfinished(*, as_json: bool) -> Exit:
    """End ``--once`` before it has begun: nothing was done."""
    if as_json:
        click.echo(json.dumps({"totals": asdict(Totals())}))
    return Exit.FAILURE


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
