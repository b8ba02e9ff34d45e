"""``ingestd audit``: what differs between sources, ledger and Milvus, and have it mended."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from ingestd import flow, operations
from ingestd.audit.beside import RunningDaemon
from ingestd.audit.compare import Kind
from ingestd.audit.looking import audit as go_over
from ingestd.audit.opening import lookers
from ingestd.audit.repairing import Repair
from ingestd.audit.scratch import Scratch
from ingestd.cli.common import config_option, ends, json_option, load, say, table
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError, FatalError, IngestError
from ingestd.model import Fingerprints
from ingestd.ops.control import SOCKET_NAME, ControlServer
from ingestd.ops.log import adopt
from ingestd.parts import NoPast, SystemClock, is_shared

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from ingestd.audit.looking import Counts, Looker
    from ingestd.audit.scratch import Difference
    from ingestd.config import Settings
    from ingestd.ports import Source

_ENDED = "the daemon that this command ran ended by itself, and its log says why; what it has not mended is as it was"
PATIENCE = 30.0
"""Seconds to wait for documents that a running daemon is at work on."""


@click.command()
@click.option("--repair", is_flag=True, help="Mend what differs, and wait until it is mended.")
@click.option("--collection", default=None, help="Only this collection.")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="The most lines of each kind.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="With --repair: seconds to wait for it.",
)
@config_option
@json_option
@ends
def audit(
    config_file: Path | None, collection: str | None, limit: int, timeout: float, *, repair: bool, as_json: bool
) -> Exit:
    """Compare sources, ledger and Milvus: missing, stale, orphan and duplicate chunks; exit 4 when something differs.

    It changes nothing without --repair, and works beside a running daemon. With --repair that daemon mends; while none
    runs, this command runs one itself until it is done.
    """
    settings = load(config_file, level="warning")
    names = _chosen(settings, collection)
    if repair and settings.stateless:
        raise ConfigError(
            "state_dir: this configuration has none, and a repair needs one: INGESTD_STATE_DIR=DIRECTORY ingestd audit "
            "--repair makes this command a member with a state of its own for as long as it takes"
        )
    with closing(Scratch()) as scratch:
        counts = _look(settings, names, scratch)
        broken: Exception | None = None
        if repair and scratch.left():
            try:
                _repair(settings, names, scratch, timeout)
            except Exception as error:  # noqa: BLE001 - raised below: what was found is worth knowing all the same
                broken = error
        if as_json:
            _print_json(scratch, counts, repaired=repair)
        else:
            _print(scratch, counts, limit, repaired=repair)
        if broken is not None:
            raise broken
        if scratch.left():
            return Exit.DIFFERENCES
    return Exit.FAILURE if any(found.unknown or found.undecided for found in counts.values()) else Exit.DONE


def _chosen(settings: Settings, collection: str | None) -> list[str]:
    if collection is None:
        return list(settings.collections)
    if collection not in settings.collections:
        known = ", ".join(sorted(settings.collections)) or "none"
        raise ConfigError(f"there is no collection {collection!r} in the configuration; there is {known}")
    return [collection]


def _look(settings: Settings, names: list[str], scratch: Scratch) -> dict[str, Counts]:
    """Go over the collections; say what could not be judged."""
    counts = {}
    with lookers(settings, names, _sources(settings)) as opened:
        for looker in opened:
            daemon = RunningDaemon(settings.state_dir / SOCKET_NAME)
            beside = daemon if not settings.stateless and daemon.runs() else None
            found = counts[looker.collection] = go_over(looker, scratch, beside, patience=PATIENCE)
            _tell(looker, found)
    return counts


def _tell(looker: Looker, found: Counts) -> None:
    name = looker.collection
    for source, documents in sorted(found.strangers.items()):
        cure = f"put the source back, or ingestd forget --source {source}"
        say(
            f"{name}: {documents} documents of {source!r}, which does not feed it, were not looked at: {cure}", err=True
        )
    for reason in found.unknown.values():
        say(f"{name}: nothing can be said about files: {reason}", err=True)
    if found.undecided:
        waiting = "something was under way for them, or they wait for another try (ingestd retries list)"
        say(f"{name}: {found.undecided} documents that seem to differ were not judged: {waiting}", err=True)


def _sources(settings: Settings) -> Mapping[str, Source]:
    """Make the sources, to look at what is there: none of them runs."""
    scope = flow.Scope(SystemClock(), NoPast(), settings.limits.max_bytes, Fingerprints("", ""))
    return {name: plugin.build(name, scope) for name, plugin in settings.sources.items()}


def _repair(settings: Settings, names: list[str], scratch: Scratch, timeout: float) -> None:
    daemon = RunningDaemon(settings.state_dir / SOCKET_NAME)
    with ExitStack() as stack:
        sources = _sources(settings)
        if not daemon.runs():
            different = {name for name in names if any(scratch.counts(name).values())}
            stack.enter_context(_own_daemon(settings, _needed(settings, sources, different)))
        opened = stack.enter_context(lookers(settings, names, sources))
        daemon.look()
        for looker in opened:
            Repair(looker, scratch, daemon).run(timeout)


def _needed(settings: Settings, sources: Mapping[str, Source], different: Collection[str]) -> list[str]:
    """Return the sources that have to run for these collections to be mended.

    A topic's records are read again without a member of the group, but where other members write the collection: there
    only one that holds the partition may write.
    """
    return [
        name
        for name, source in sources.items()
        if source.collection in different and (source.survey() is not None or is_shared(settings, source.collection))
    ]


@contextmanager
def _own_daemon(settings: Settings, only: Collection[str]) -> Iterator[None]:
    """Run a daemon of these sources in this process, with its control socket and without a status page."""
    with (
        flow.daemon(settings, once=False, beginning=lambda _name, _health, _metrics: None, only=only) as daemon,
        closing(ControlServer(settings.state_dir / SOCKET_NAME, operations.commands(daemon))) as server,
    ):
        adopt()  # pymilvus has brought log handlers of its own
        server.start()
        daemon.runner.start()
        daemon.health.up()  # from here on it says how its sources are
        codes: list[Exit] = []

        def watch() -> None:
            codes.append(daemon.runner.run(once=False, timeout=None, tick=lambda: None))
            server.close()  # whoever asks it now is told at once

        thread = threading.Thread(target=watch, name="runner")
        thread.start()
        try:
            yield
        except IngestError as error:
            if codes:
                raise FatalError(_ENDED) from error
            raise
        finally:
            daemon.runner.ask_to_stop()
            thread.join()
        if codes != [Exit.DONE]:
            raise FatalError(_ENDED)


def _print_json(scratch: Scratch, counts: Mapping[str, Counts], *, repaired: bool) -> None:
    """Print one object on one line, a difference at a time: there may be as many as rows."""
    click.echo(f'{{"collections": {json.dumps(_rows(scratch, counts, repaired=repaired))}, "differences": [', nl=False)
    comma = ""
    for name in counts:
        for kind in Kind:
            for found in scratch.differences(name, kind):
                click.echo(comma + json.dumps(_listed(found)), nl=False)
                comma = ", "
    click.echo("]}")


def _listed(found: Difference) -> dict[str, Any]:
    return {
        "collection": found.collection,
        "kind": found.fault.kind.value,
        "document_id": found.document_id,
        "chunk_id": found.fault.chunk_id or None,
        "detail": _detail(found),
    }


def _detail(found: Difference) -> str:
    if found.outcome is None:
        return found.fault.detail
    return f"{found.fault.detail}; {f'not mended: {found.outcome}' if found.outcome else 'mended'}"


def _print(scratch: Scratch, counts: Mapping[str, Counts], limit: int, *, repaired: bool) -> None:
    rows = _rows(scratch, counts, repaired=repaired)
    for line in table(rows, list(rows[0])) if rows else ["no collection is configured"]:
        say(line)
    for row in rows:
        for kind in Kind:
            if not row[kind.value]:
                continue
            say("")
            say(f"{row['name']}: {row[kind.value]} {kind.value}")
            for found in scratch.differences(row["name"], kind, limit):
                say(f"  {found.document_id}  {found.fault.chunk_id or '(all of it)'}")
                say(f"    {_detail(found)}")
            if row[kind.value] > limit:
                say(f"  … and {row[kind.value] - limit} more; --limit and --json show them")


def _rows(scratch: Scratch, counts: Mapping[str, Counts], *, repaired: bool) -> list[dict[str, Any]]:
    """Return a row a collection: what was gone over, and how many differences of each kind there are."""
    rows = []
    for name, found in counts.items():
        kinds = {kind.value: count for kind, count in scratch.counts(name).items()}
        mended = {"repaired": scratch.mended(name)} if repaired else {}
        there = {"name": name, "documents": found.documents, "rows": found.rows}
        rows.append({**there, **kinds, "undecided": found.undecided, **mended})
    return rows
