"""What all commands share: the options, how an error ends a command, and how an answer is printed."""

from __future__ import annotations

import functools
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from ingestd import config
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError, IngestError, Stopped
from ingestd.ops import log
from ingestd.ops.control import SOCKET_NAME, NotRunning, call
from ingestd.parts import SystemClock, open_store
from ingestd.store.opening import DATABASE
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ingestd.config import Settings
    from ingestd.model import Json

P = ParamSpec("P")
R = TypeVar("R")

COMMAND_TIMEOUT = 60.0
"""Seconds that a running daemon may take for a command."""

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(
        readable=False, path_type=Path
    ),  # what cannot be read is a fault of the configuration, not of usage
    default=None,
    help="The configuration; default: $INGESTD_CONFIG, then config/ingestd.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def ends(command: Callable[P, Exit | None]) -> Callable[P, None]:
    """Make a command end with the exit code that it returns, or that its error stands for."""

    @functools.wraps(command)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> None:
        try:
            code = command(*arguments, **named)
        except ConfigError as error:
            for fault in error.faults:
                say(fault, err=True)
            code = Exit.CONFIG
        except Stopped:
            code = Exit.DONE  # asked to stop before anything was begun
        except IngestError as error:
            say(str(error), err=True)
            code = Exit.FAILURE
        sys.exit(int(code or Exit.DONE))

    return wrapped


def load(config_file: Path | None, *, level: str | None = None) -> Settings:
    """Read the configuration, and set the logs up as it says (or as a command that only answers wants them)."""
    settings = config.load(config_file)
    form = {"json": True, "text": False}.get(settings.log.format)
    log.configure(level or settings.log.level, json=form)
    return settings


def needs_sources(settings: Settings) -> None:
    """Refuse a daemon that would have nothing to do.

    Raises:
        ConfigError: No source is configured.
    """
    if not settings.sources:
        raise ConfigError("sources: none is configured, so there is nothing to do; add a [sources.NAME]")


def say(line: str, *, err: bool = False) -> None:
    """Print a line for people. All text goes through here: what documents hold cannot steer the terminal."""
    click.echo(log.printable(line), err=err)


def answer(value: Any, *, as_json: bool, text: Callable[[Any], Iterable[str]]) -> None:  # noqa: ANN401 - whatever JSON takes
    """Print an answer: as JSON on one line, in ASCII (the rest escaped), or as the lines for people."""
    if as_json:
        click.echo(json.dumps(value))
        return
    for line in text(value):
        say(line)


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    """Yield rows as the lines of aligned columns under a heading."""
    lines = [[column.replace("_", " ") for column in columns]]
    # A cell is made printable here already: it is as wide as what is printed of it.
    lines += [
        ["" if (cell := row.get(column)) is None else log.printable(str(cell)) for column in columns] for row in rows
    ]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def refuse_stateless(settings: Settings) -> None:
    """Refuse a command about a member's own state where members have none.

    Raises:
        ConfigError: They have none.
    """
    if settings.stateless:
        raise ConfigError(
            "state_dir: this configuration has none, so no member can be asked from here; its /readyz and /metrics "
            "say how it is"
        )


def ask(settings: Settings, name: str, arguments: Mapping[str, Json], *, otherwise: Callable[[], Json]) -> Json:
    """Have the running daemon carry out a command; where none runs, do it here.

    Args:
        settings: The configuration: it names the state directory.
        name: The command.
        arguments: Its arguments.
        otherwise: Does the same where no daemon runs.
    """
    refuse_stateless(settings)
    try:
        return call(settings.state_dir / SOCKET_NAME, name, arguments, COMMAND_TIMEOUT)
    except NotRunning:
        return otherwise()


@contextmanager
def own_store(settings: Settings) -> Iterator[SqliteStore]:
    """Lock and open the state, for a command that changes it while no daemon runs."""
    store = open_store(settings, SystemClock())
    try:
        yield store
    finally:
        # No run began, so none ends: what the last one left in doubt stays in doubt.
        store.close(clean=False)


@contextmanager
def read_store(settings: Settings) -> Iterator[SqliteStore | None]:
    """Open the state to look at it, also while a daemon uses it; None where there is none yet."""
    if not (settings.state_dir / DATABASE).exists():
        yield None
        return
    store = SqliteStore.read_only(settings.state_dir, clock=SystemClock())
    try:
        yield store
    finally:
        store.close(clean=False)
