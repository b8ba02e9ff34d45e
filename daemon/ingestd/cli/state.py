"""``status``, ``dead-letters``, ``retries``, ``forget``: what an operator looks at and does."""

from __future__ import annotations

import time
from dataclasses import asdict
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
    refuse_stateless,
    table,
)
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError
from ingestd.flow import Scope
from ingestd.model import Fingerprints, Totals
from ingestd.ops.control import SOCKET_NAME, NotRunning, call
from ingestd.parts import SystemClock, feeds, is_shared, milvus, models, schema_of
from ingestd.sinks.milvus import MilvusSink
from ingestd.store.holdings import Counts
from ingestd.store.lock import in_use

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.config import Settings
    from ingestd.model import Json

STATUS_TIMEOUT = 10.0
STARTING = "a daemon starts or ends: it has the state directory, and takes no commands"
STEP = "its log and its /readyz say what it is at"
STAGES = ("recall", "extract", "extract_long", "chunk", "embed", "write")
"""What documents wait for, as a running daemon names it."""


@click.command()
@config_option
@json_option
@ends
def status(config_file: Path | None, *, as_json: bool) -> Exit:
    """Say how the running daemon is; exit 1 when none runs, or when it is not ready."""
    settings = load(config_file, level="warning")
    refuse_stateless(settings)
    try:
        found = cast("dict[str, Any]", call(settings.state_dir / SOCKET_NAME, "status", {}, STATUS_TIMEOUT))
    except NotRunning:
        found = _resting(settings)
        if settings.state_dir.exists() and in_use(settings.state_dir):
            check = {"name": "started", "ok": False, "detail": STARTING, "cure": STEP}
            found |= {"running": True, "checks": [check]}
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
        "stages": [
            {"collection": name, "stage": stage, "busy_share": 0.0, "blocked_share": 0.0, "waits": 0}
            for name in rows
            for stage in STAGES
        ],
        "collections": [
            {"name": name, "rows": count, "in_flight": 0, "limit": None, **waiting} for name, count in rows.items()
        ],
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
    for name in ("sources", "collections", *(["stages"] if found["running"] else [])):
        rows = found[name]
        if rows:
            yield ""
            yield from table(rows, list(dict.fromkeys(key for row in rows for key in row)))


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
        try:
            absent = settings.sources[source].build(source, scope).absent()
        except OSError as error:
            raise ConfigError(f"sources.{source}: nothing can be said about deletes: {error}") from error
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
        shared = [collection for collection in settings.collections if is_shared(settings, collection)]
        return operations.forget(store, sinks, feeds(settings), source, shared=shared)
