"""``ingestd check``: whether the daemon could start here, a line for each thing, each with its cure."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ingestd import __version__
from ingestd.cli.common import answer, config_option, ends, json_option, load
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError, IngestError
from ingestd.flow import Scope
from ingestd.model import Check, Fingerprints
from ingestd.ops.control import SOCKET_NAME, NotRunning, call
from ingestd.parts import SystemClock, milvus, models, open_store, schema_of, strangers
from ingestd.sinks.milvus import MilvusSink
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ingestd.config import Settings
    from ingestd.model import ModelInfo
    from ingestd.ports import Embedder


@click.command()
@config_option
@json_option
@ends
def check(config_file: Path | None, *, as_json: bool) -> Exit:
    """Check the configuration, the models, Milvus, the sources and the state, and change nothing."""
    settings = load(config_file, level="error")
    checks = [Check("configuration", ok=True, detail=f"valid (ingestd {__version__})")]
    if not as_json:
        click.echo(_line(checks[0]))
    for found in _checks(settings):
        checks.append(found)
        if not as_json:
            click.echo(_line(found))
    ok = all(found.ok for found in checks)
    if as_json:
        answer({"ok": ok, "checks": [asdict(found) for found in checks]}, as_json=True, text=str)
    return Exit.DONE if ok else Exit.FAILURE


def _checks(settings: Settings) -> Iterator[Check]:
    yield _state(settings)
    yield from _sources(settings)
    with models(settings) as embedders:
        infos: dict[str, ModelInfo] = {}
        for name, embedder in embedders.items():
            found, info = _model(name, embedder)
            yield found
            if info is not None:
                infos[name] = info
        yield from _milvus(settings, infos)


def _state(settings: Settings) -> Check:
    name = "state"
    try:
        call(settings.state_dir / SOCKET_NAME, "status", {}, 10.0)
    except NotRunning:
        pass
    except IngestError as error:
        return Check(name, ok=False, detail=str(error), cure="see the log of the running daemon")
    else:
        return Check(name, ok=True, detail=f"{settings.state_dir} is in use by the running daemon")
    try:
        store = open_store(settings, SystemClock())
    except ConfigError as error:
        return Check(name, ok=False, detail=str(error))
    try:
        store.probe()
    except IngestError as error:
        return Check(name, ok=False, detail=str(error), cure=f"make room on the disk of {settings.state_dir}")
    finally:
        store.close(clean=False)
    return Check(name, ok=True, detail=f"{settings.state_dir} is writable")


def _sources(settings: Settings) -> Iterator[Check]:
    known: list[tuple[str, str, int]] = []
    try:
        store = SqliteStore.read_only(settings.state_dir, clock=SystemClock())
    except ConfigError as error:
        yield Check("sources", ok=False, detail=str(error))
        return
    try:
        known = strangers(settings, store)
        nothing = Fingerprints("", "")
        scope = Scope(SystemClock(), store, settings.limits.max_bytes, nothing)
        for name, plugin in settings.sources.items():
            yield from plugin.build(name, scope).probe()
    finally:
        store.close(clean=False)
    for name, collection, documents in known:
        detail = f"does not feed {collection} any more; its {documents} documents there stay"
        yield Check(f"source:{name}", ok=True, detail=detail, cure=f"ingestd forget --source {name} deletes them")


def _model(name: str, embedder: Embedder) -> tuple[Check, ModelInfo | None]:
    try:
        info = embedder.info()
    except IngestError as error:
        return Check(f"model:{name}", ok=False, detail=str(error)), None
    size = f", {info.dimension} dimensions" if info.dimension else ""
    detail = f"{' and '.join(sorted(info.kinds))}{size}, {info.dtype} on {info.device}"
    return Check(f"model:{name}", ok=True, detail=detail), info


def _milvus(settings: Settings, infos: Mapping[str, ModelInfo]) -> Iterator[Check]:
    try:
        with milvus(settings) as connection:
            version = connection.capabilities().name
            yield Check("milvus", ok=True, detail=f"{settings.milvus.uri} answers ({version})")
            for collection, configured in settings.collections.items():
                if {vector.embedder for vector in configured.vectors.values()} <= infos.keys():
                    sink = MilvusSink(connection, schema_of(settings, collection, infos))
                    yield _collection(sink)
    except IngestError as error:
        yield Check("milvus", ok=False, detail=str(error), cure="see milvus.uri in the configuration; is it running?")


def _collection(sink: MilvusSink) -> Check:
    name = f"collection:{sink.collection}"
    try:
        differences = sink.plan()
    except ConfigError as error:
        return Check(name, ok=False, detail=str(error))
    left = [difference for difference in differences if not difference.fixable]
    if left:
        return Check(name, ok=False, detail="; ".join(map(str, left)))
    if differences:
        return Check(name, ok=True, detail="will be created")
    return Check(name, ok=True, detail="is as configured")


def _line(found: Check) -> str:
    mark = "ok  " if found.ok else "FAIL"
    return f"{mark} {found.name}: {found.detail}" + (f"\n       {found.cure}" if found.cure else "")
