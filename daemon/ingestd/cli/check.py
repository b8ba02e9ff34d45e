"""``ingestd check``: whether the daemon could start here, a line for each thing, each with its cure."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ingestd import __version__
from ingestd.cli.common import answer, config_option, ends, json_option, load, say
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError, IngestError
from ingestd.flow import Scope
from ingestd.model import Check, Fingerprints
from ingestd.ops.control import SOCKET_NAME, NotRunning, call
from ingestd.parts import (
    NoPast,
    SystemClock,
    build_embedder,
    device_pool,
    is_shared,
    milvus,
    open_store,
    schema_of,
    strangers,
    tokenizer_of,
)
from ingestd.sinks.milvus import MilvusSink
from ingestd.store.opening import DATABASE
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ingestd.config import Settings
    from ingestd.devices.pool import Pool
    from ingestd.milvus.client import Connection
    from ingestd.model import ModelInfo
    from ingestd.ports import SeenStore


@click.command()
@config_option
@json_option
@ends
def check(config_file: Path | None, *, as_json: bool) -> Exit:
    """Check the configuration, the models, Milvus, the sources and the state. Nothing is made, no document touched."""
    settings = load(config_file, level="error")
    checks = [Check("configuration", ok=True, detail=f"valid (ingestd {__version__})")]
    if not as_json:
        _tell(checks[0])
    for found in _checks(settings):
        checks.append(found)
        if not as_json:
            _tell(found)
    ok = all(found.ok for found in checks)
    if as_json:
        answer({"ok": ok, "checks": [asdict(found) for found in checks]}, as_json=True, text=lambda _found: ())
    return Exit.DONE if ok else Exit.FAILURE


def _checks(settings: Settings) -> Iterator[Check]:
    none = Check("state", ok=True, detail="none: a member without a disk")
    state = none if settings.stateless else _state(settings)
    yield state
    yield from _sources(settings, tell=state.ok)
    infos: dict[str, ModelInfo] = {}
    with device_pool(settings) as pool:
        for name in settings.used_embedders():
            found, info = _model(settings, name, pool)
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
    if not (settings.state_dir / DATABASE).exists():
        return makeable(name, settings.state_dir, "state_dir")
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


def makeable(name: str, folder: Path, key: str) -> Check:
    """Say whether the daemon could make a folder, or write in it if it is there, without doing so."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        return Check(name, ok=False, detail=f"{there} is no folder", cure=f"move it away, or set {key}")
    if not os.access(there, os.W_OK | os.X_OK):
        cure = f"let the daemon's user write there, or set {key}"
        return Check(name, ok=False, detail=f"{there} is not writable", cure=cure)
    return Check(name, ok=True, detail=f"{folder} is writable" if folder.exists() else f"{folder} will be made")


def _sources(settings: Settings, *, tell: bool) -> Iterator[Check]:
    """Probe the sources, with their past where it can be read.

    Args:
        settings: The configuration.
        tell: Whether to say that it cannot be.
    """
    if not settings.sources:
        yield Check("sources", ok=False, detail="none is configured", cure="add a [sources.NAME] to the configuration")
    if not (settings.state_dir / DATABASE).exists():
        yield from _probes(settings, NoPast())
        return
    try:
        store = SqliteStore.read_only(settings.state_dir, clock=SystemClock())
    except ConfigError as error:
        if tell:
            yield Check("state", ok=False, detail=str(error))
        yield from _probes(settings, NoPast())
        return
    try:
        yield from _probes(settings, store)
        known = strangers(settings, store)
    finally:
        store.close(clean=False)
    for name, collection, documents in known:
        detail = f"does not feed {collection} any more; its {documents} documents there stay"
        yield Check(f"source:{name}", ok=True, detail=detail, cure=f"ingestd forget --source {name} deletes them")


def _probes(settings: Settings, seen: SeenStore) -> Iterator[Check]:
    scope = Scope(SystemClock(), seen, settings.limits.max_bytes, Fingerprints("", ""))
    for name, plugin in settings.sources.items():
        try:
            yield from plugin.build(name, scope).probe()
        except IngestError as error:
            cure = f"see sources.{name} in the configuration"
            yield Check(f"source:{name}", ok=False, detail=str(error), cure=cure)


def _model(settings: Settings, name: str, pool: Pool) -> tuple[Check, ModelInfo | None]:
    try:
        info = build_embedder(settings, name, pool).info()
    except IngestError as error:
        return Check(f"model:{name}", ok=False, detail=str(error)), None
    size = f", {info.dimension} dimensions" if info.dimension else ""
    detail = f"{' and '.join(sorted(info.kinds))}{size}, {info.dtype} on {info.device}"
    if info.cosine is not None:
        detail += f", cosine to float32 at least {info.cosine:.4f}"
    return Check(f"model:{name}", ok=True, detail=detail), info


def _milvus(settings: Settings, infos: Mapping[str, ModelInfo]) -> Iterator[Check]:
    path = settings.milvus.path
    if path is not None and not path.exists():
        # Looking at a Milvus Lite starts it, and starting it makes its folder.
        yield makeable("milvus", path, "milvus.uri")
        for name in settings.collections:
            yield collection_check(settings, name, infos, None)
        return
    try:
        with milvus(settings) as connection:
            version = connection.capabilities().name
            yield Check("milvus", ok=True, detail=f"{settings.milvus.uri} answers ({version})")
            for name in settings.collections:
                yield collection_check(settings, name, infos, connection)
    except IngestError as error:
        yield Check("milvus", ok=False, detail=str(error), cure="see milvus.uri in the configuration; is it running?")


def collection_check(
    settings: Settings, name: str, infos: Mapping[str, ModelInfo], connection: Connection | None
) -> Check:
    """Compare a collection with what is wanted; None: there is no Milvus yet, so there is no collection either."""
    title = f"collection:{name}"
    missing = sorted(set(settings.collections[name].embedders()) - infos.keys())
    if missing:
        return Check(title, ok=False, detail=f"cannot be looked at without its model {', '.join(missing)}")
    try:
        tokenizer_of(settings, name)
        target = schema_of(settings, name, infos)
        differences = (
            None if connection is None else MilvusSink(connection, target, shared=is_shared(settings, name)).plan()
        )
    except ConfigError as error:
        return Check(title, ok=False, detail=str(error))
    left = [difference for difference in differences or () if not difference.fixable]
    if left:
        return Check(title, ok=False, detail="; ".join(map(str, left)))
    return Check(title, ok=True, detail="is as configured" if differences == () else "will be created")


def _tell(found: Check) -> None:
    say(f"{'ok  ' if found.ok else 'FAIL'} {found.name}: {found.detail}")
    if found.cure:
        say(f"       {found.cure}")
