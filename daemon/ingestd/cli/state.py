"""``status``, ``dead-letters``, ``retries``, ``forget``: what an operator looks at and does."""

from __future__ import annotations

import base64
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import click

from ingestd import __version__, operations
from ingestd.cli.common import (
    answer,
    ask,
    config_option,
    ends,
    json_option,
    load,
    own_store,
    read_store,
    table,
)
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError
from ingestd.flow import Scope
from ingestd.model import Fingerprints, Totals
from ingestd.ops.control import SOCKET_NAME, NotRunning, call
from ingestd.parts import SystemClock, feeds, milvus, models, schema_of
from ingestd.sinks.milvus import MilvusSink
from ingestd.store.holdings import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ingestd.config import Settings
    from ingestd.model import DeadLetter, Json

STATUS_TIMEOUT = 10.0
STAGES = ("recall", "extract", "chunk", "embed", "write")
"""What documents wait for, as a running daemon names it."""


@click.command()
@config_option
@json_option
@ends
def status(config_file: Path | None, *, as_json: bool) -> Exit:
    """Say how the running daemon is; exit 1 when none runs, or when it is not ready."""
    settings = load(config_file, level="warning")
    try:
        found = cast("dict[str, Any]", call(settings.state_dir / SOCKET_NAME, "status", {}, STATUS_TIMEOUT))
    except NotRunning:
        found = _resting(settings)
    answer(found, as_json=as_json, text=_status_text)
    return Exit.DONE if found["running"] and found["ready"] else Exit.FAILURE


def _resting(settings: Settings) -> dict[str, Any]:
    """Return what is known while no daemon runs, under the same keys as a running one's."""
    with read_store(settings) as store:
        counts = {} if store is None else store.counts()
        rows = {name: None if store is None else store.rows(name) for name in settings.collections}
    types = {name: source.type for name, source in settings.sources.items()}
    fed = dict(feeds(settings))
    sources = [
        {"name": name, "type": types.get(name), "collection": fed.get(name), **asdict(counts.get(name, Counts()))}
        for name in dict.fromkeys([*types, *counts])
    ]
    waiting = {f"waits_for_{stage}": 0 for stage in STAGES}
    return {
        "running": False,
        "ready": False,
        "checks": [],
        "totals": asdict(Totals()),
        "version": __version__,
        "uptime_seconds": None,
        "milvus": settings.milvus.uri,
        "sources": sources,
        "collections": [{"name": name, "rows": count, "in_flight": 0, **waiting} for name, count in rows.items()],
    }


def _status_text(found: dict[str, Any]) -> Iterator[str]:
    if not found["running"]:
        yield "no daemon runs on this state directory"
    else:
        yield "ready" if found["ready"] else "NOT READY"
        for check in found["checks"]:
            if not check["ok"]:
                yield f"  {check['name']}: {check['detail']}" + f" ({check['cure']})" * bool(check["cure"])
        yield "  ".join(f"{name.replace('_', ' ')} {count}" for name, count in found["totals"].items())
    for name in ("sources", "collections"):
        rows = found[name]
        if rows:
            yield ""
            yield from table(rows, list(dict.fromkeys(key for row in rows for key in row)))


def letter_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose dead letters."""
    for option in reversed(
        [
            click.option("--source", default=None, help="Only of this source."),
            click.option("--collection", default=None, help="Only of this collection."),
            click.option("--stage", default=None, help="Only those that failed in this stage."),
            click.option("--error", default=None, help="Only of this class of error."),
        ]
    ):
        command = option(command)
    return command


@click.group("dead-letters")
def dead_letters() -> None:
    """What failed for good, and why."""


@dead_letters.command("list")
@letter_filters
@config_option
@json_option
@ends
def list_letters(config_file: Path | None, *, as_json: bool, **filters: str | None) -> None:
    """List dead letters, oldest first."""
    settings = load(config_file, level="warning")
    with read_store(settings) as store:
        letters = [] if store is None else list(_chosen(store.dead_letters(data=False), filters))
        rows = list(operations.listed(letters))
    columns = ["id", "document_id", "stage", "error", "attempts", "message"]
    answer(rows, as_json=as_json, text=lambda _rows: table(rows, columns) if rows else ["no dead letters"])


@dead_letters.command("show")
@click.argument("letter_id", metavar="ID", type=int)
@config_option
@json_option
@ends
def show_letter(letter_id: int, config_file: Path | None, *, as_json: bool) -> None:
    """Show a dead letter with its original and its traceback."""
    settings = load(config_file, level="warning")
    with read_store(settings) as store:
        letter = next(iter(store.dead_letters([letter_id])), None) if store is not None else None
    if letter is None:
        raise click.UsageError(f"there is no dead letter {letter_id}; see ingestd dead-letters list")
    answer(_letter(letter), as_json=as_json, text=_letter_text)


@dead_letters.command("replay")
@click.argument("ids", metavar="[ID]…", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the filters leave.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@letter_filters
@config_option
@json_option
@ends
def replay_letters(
    ids: tuple[int, ...],
    config_file: Path | None,
    *,
    everything: bool,
    dry_run: bool,
    as_json: bool,
    **filters: str | None,
) -> None:
    """Try dead letters again: in the running daemon at once, otherwise when it next runs."""
    settings = load(config_file, level="warning")
    numbers = _numbers(settings, ids, filters, everything=everything)
    if dry_run:
        answer({"would_replay": numbers}, as_json=as_json, text=lambda _found: [f"would replay: {_list(numbers)}"])
        return

    def otherwise() -> Json:
        with own_store(settings) as store:
            return operations.replay(store, feeds(settings), numbers).said()

    found = cast("dict[str, Any]", ask(settings, "replay", {"ids": cast("Json", numbers)}, otherwise=otherwise))
    answer(found, as_json=as_json, text=_replay_text)


@dead_letters.command("discard")
@click.argument("ids", metavar="[ID]…", type=int, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the filters leave.")
@letter_filters
@config_option
@json_option
@ends
def discard_letters(
    ids: tuple[int, ...], config_file: Path | None, *, everything: bool, as_json: bool, **filters: str | None
) -> None:
    """Throw dead letters away. The documents stay as they are in Milvus."""
    settings = load(config_file, level="warning")
    numbers = _numbers(settings, ids, filters, everything=everything)

    def otherwise() -> Json:
        with own_store(settings) as store:
            return {"discarded": store.discard(numbers)}

    found = cast("dict[str, int]", ask(settings, "discard", {"ids": cast("Json", numbers)}, otherwise=otherwise))
    answer(found, as_json=as_json, text=lambda value: [f"{value['discarded']} discarded"])


@click.group()
def retries() -> None:
    """What failed and will be tried again."""


@retries.command("list")
@config_option
@json_option
@ends
def list_retries(config_file: Path | None, *, as_json: bool) -> None:
    """List parked events, soonest first."""
    settings = load(config_file, level="warning")
    with read_store(settings) as store:
        parked = [] if store is None else store.parked()
    rows: list[dict[str, Any]] = [
        {
            "document_id": event.key.document_id,
            "collection": event.key.collection,
            "source": event.source,
            "attempt": event.attempt,
            "due_at": event.due_at,
            "first_failed_at": event.first_failed_at,
            "stage": event.failure.stage.value,
            "error": event.failure.error,
            "message": event.failure.message,
        }
        for event in parked
    ]
    now = time.time()
    shown = [{**row, "due": f"in {max(0.0, row['due_at'] - now):.0f} s"} for row in rows]
    columns = ["document_id", "attempt", "due", "stage", "error", "message"]
    answer(rows, as_json=as_json, text=lambda _rows: table(shown, columns) if rows else ["nothing is waiting"])


@retries.command("now")
@config_option
@json_option
@ends
def hasten(config_file: Path | None, *, as_json: bool) -> None:
    """Try all parked events again at once."""
    settings = load(config_file, level="warning")

    def otherwise() -> Json:
        with own_store(settings) as store:
            return {"hastened": store.hasten(SystemClock().time())}

    found = cast("dict[str, int]", ask(settings, "hasten", {}, otherwise=otherwise))
    answer(found, as_json=as_json, text=lambda value: [f"{value['hastened']} due now"])


@click.command()
@click.option("--source", required=True, help="The source.")
@click.option("--absent", is_flag=True, help="Only what its held deletes are about: confirms them.")
@config_option
@json_option
@ends
def forget(source: str, config_file: Path | None, *, absent: bool, as_json: bool) -> None:
    """Delete all rows of a source that is not configured any more; or confirm the deletes that a source holds."""
    settings = load(config_file, level="warning")
    if absent:
        found = ask(settings, "confirm", {"source": source}, otherwise=lambda: _confirm(settings, source))
        answer(found, as_json=as_json, text=_confirm_text)
        return
    found = ask(settings, "forget", {"source": source}, otherwise=lambda: _forget(settings, source))
    answer(found, as_json=as_json, text=lambda value: [f"{value['documents']} documents, {value['rows']} rows deleted"])


def _confirm(settings: Settings, source: str) -> Json:
    if source not in settings.sources:
        raise ConfigError(f"there is no source {source!r}; there is {', '.join(sorted(settings.sources)) or 'none'}")
    with own_store(settings) as store:
        scope = Scope(SystemClock(), store, settings.limits.max_bytes, Fingerprints("", ""))
        absent = settings.sources[source].build(source, scope).absent()
        store.confirm(source, absent)
    return {"source": source, "confirmed": len(absent)}


def _confirm_text(found: dict[str, Any]) -> list[str]:
    count = found["confirmed"]
    return [f"{count} deletes go on" if count else "no deletes are held: nothing was changed"]


def _forget(settings: Settings, source: str) -> Json:
    with own_store(settings) as store, milvus(settings) as connection, models(settings) as embedders:
        infos = {name: embedder.info() for name, embedder in embedders.items()}
        sinks = {}
        for collection in settings.collections:
            sink = MilvusSink(connection, schema_of(settings, collection, infos))
            sink.prepare(create=False)
            sinks[collection] = sink
        return operations.forget(store, sinks, feeds(settings), source)


def _replay_text(found: dict[str, Any]) -> list[str]:
    text = f"{found['replayed']} to be tried again"
    if found["left"]:
        text += f"; left, since no configured source feeds their collection any more: {_list(found['left'])}"
    return [text]


def _chosen(letters: Iterator[DeadLetter], filters: dict[str, str | None]) -> Iterator[DeadLetter]:
    for letter in letters:
        has = {
            "source": letter.source,
            "collection": letter.key.collection,
            "stage": letter.failure.stage.value,
            "error": letter.failure.error,
        }
        if all(wanted is None or has[name] == wanted for name, wanted in filters.items()):
            yield letter


def _numbers(
    settings: Settings, ids: tuple[int, ...], filters: dict[str, str | None], *, everything: bool
) -> list[int]:
    """Return the ids that a command is about."""
    if not ids and not everything and not any(filters.values()):
        raise click.UsageError("name dead letters by ID, by a filter, or with --all")
    with read_store(settings) as store:
        letters = [] if store is None else list(store.dead_letters(ids or None, data=False))
    unknown = sorted(set(ids) - {letter.id for letter in letters})
    if unknown:
        raise click.UsageError(f"there is no dead letter {_list(unknown)}; see ingestd dead-letters list")
    return [letter.id for letter in _chosen(iter(letters), filters)]


def _letter(letter: DeadLetter) -> dict[str, Any]:
    listed = next(operations.listed([letter]))
    return {
        **listed,
        "collection": letter.key.collection,
        "op": letter.op.value,
        "version": None if letter.version is None else asdict(letter.version),
        "fingerprint": letter.fingerprint,
        "name": letter.name,
        "content_type": letter.content_type,
        "metadata": dict(letter.metadata),
        "size": letter.size,
        "traceback": letter.failure.traceback,
        "content": None if letter.data is None else base64.b64encode(letter.data).decode("ascii"),
    }


def _letter_text(letter: dict[str, Any]) -> Iterator[str]:
    trace = letter.pop("traceback")
    content = letter.pop("content")
    for name in ("first_failed_at", "last_failed_at"):
        letter[name] = datetime.fromtimestamp(letter[name], UTC).isoformat(sep=" ", timespec="seconds")
    for name, value in letter.items():
        if value not in (None, {}, ""):
            yield f"{name.replace('_', ' '):>16}: {value}"
    yield f"{'original':>16}: " + ("not kept" if content is None else "kept; --json shows it in base64")
    if trace:
        yield ""
        yield from trace.split("\n")


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
