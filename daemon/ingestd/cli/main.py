"""The group of all commands."""

from __future__ import annotations

import gc
from importlib import import_module

import click

from ingestd import __version__
from ingestd.ops.signals import release

COMMANDS = {
    "run": "run:run",
    "check": "check:check",
    "search": "search:search",
    "status": "state:status",
    "audit": "audit:audit",
    "schema": "schema:schema",
    "dead-letters": "letters:dead_letters",
    "retries": "state:retries",
    "forget": "state:forget",
    "config": "show:configuration",
    "produce": "produce:produce",
    "embedders": "embedders:embedders",
    "embed": "embedders:embed",
}
"""Where each is; a command is imported when it is asked for, as most need little of what the daemon is made of."""


class _Commands(click.Group):
    """The group. Its commands are those of ``COMMANDS``."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names, in the order in which they are shown."""
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Return a command; None: there is none of that name."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        gc.disable()  # nothing of what is imported is garbage, and looking for it takes a tenth of a second
        try:
            command: click.Command = getattr(import_module(f"ingestd.cli.{module}"), attribute)
        finally:
            gc.enable()
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ingestd")
@click.pass_context
def main(context: click.Context) -> None:
    """Keep Milvus collections equal to the documents behind them.

    Exit codes: 0 done, 1 failure or something left undone, 2 usage, 3 done with dead letters, 4 audit found
    differences, 5 schema plan is not empty, 78 configuration.
    """
    if context.invoked_subcommand != "run":
        release()  # only the daemon takes its signals by itself
