"""The group of all commands."""

from __future__ import annotations

import click

from ingestd import __version__
from ingestd.cli.audit import audit
from ingestd.cli.check import check
from ingestd.cli.letters import dead_letters
from ingestd.cli.produce import produce
from ingestd.cli.run import run
from ingestd.cli.schema import schema
from ingestd.cli.search import search
from ingestd.cli.show import configuration
from ingestd.cli.state import forget, retries, status
from ingestd.ops.signals import release


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ingestd")
@click.pass_context
def main(context: click.Context) -> None:
    """Keep Milvus collections equal to the documents behind them.

    Exit codes: 0 done, 1 failure or something left undone, 2 usage, 3 done with dead letters, 4 audit found
    differences, 5 schema plan is not empty, 78 configuration.
    """
    if context.invoked_subcommand != run.name:
        release()  # only the daemon takes its signals by itself


for command in (run, check, search, status, audit, schema, dead_letters, retries, forget, configuration, produce):
    main.add_command(command)
