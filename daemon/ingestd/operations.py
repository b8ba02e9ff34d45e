"""What an operator can have done: in the running daemon, over its control socket, or without one, on the state itself.

The same functions serve both, so that ``ingestd dead-letters replay`` means the same thing day and night.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from ingestd.errors import ConfigError
from ingestd.model import Role, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ingestd.flow import Daemon
    from ingestd.model import Check, ChunkId, DeadLetter, Json, ModelInfo
    from ingestd.ports import Embedder, Sink
    from ingestd.store.sqlite import SqliteStore

KEYS = 1_000
"""Rows that are deleted at a time."""


def replay(store: SqliteStore, ids: Sequence[int]) -> dict[str, int]:
    """Move dead letters to the retry queue, due now; return how many there were, by source."""
    return dict(store.requeue(ids))


def forget(store: SqliteStore, sinks: Mapping[str, Sink], source: str) -> dict[str, Json]:
    """Delete all rows of a source, and all that is known of it.

    Args:
        store: The state.
        sinks: By collection.
        source: Not configured any more, or nothing would keep it from coming back.

    Raises:
        ConfigError: Nothing is known of the source, or one of its collections is not configured.
    """
    collections = [collection for name, collection, _documents in store.sources() if name == source]
    if not collections:
        known = ", ".join(sorted({name for name, _collection, _documents in store.sources()})) or "none"
        raise ConfigError(f"nothing is known of a source {source!r}; known: {known}")
    absent = [collection for collection in collections if collection not in sinks]
    if absent:
        raise ConfigError(
            f"the collection {', '.join(absent)} of the source {source!r} is not in the configuration, "
            "so its rows cannot be reached; put it back, and then forget the source"
        )
    documents = rows = 0
    for collection in collections:
        batch: list[ChunkId] = []
        for entry in store.collection_entries(collection):
            if entry.source != source:
                continue
            documents += not entry.deleted
            batch += [*entry.present, *entry.doubtful]
            if len(batch) >= KEYS:
                sinks[collection].delete(batch)
                rows += len(batch)
                batch = []
        if batch:
            sinks[collection].delete(batch)
            rows += len(batch)
        store.forget(source, collection)
    return {"source": source, "documents": documents, "rows": rows}


def commands(daemon: Daemon) -> dict[str, Callable[[Mapping[str, Json]], Json]]:
    """Return what the control socket of a running daemon offers."""

    def replay_here(arguments: Mapping[str, Json]) -> Json:
        moved = replay(daemon.store, _ids(arguments))
        for source, count in moved.items():
            daemon.tally.requeue(source, count)
        return {"replayed": sum(moved.values())}

    def discard(arguments: Mapping[str, Json]) -> Json:
        return {"discarded": daemon.store.discard(_ids(arguments))}

    def hasten(_arguments: Mapping[str, Json]) -> Json:
        return {"hastened": daemon.store.hasten(daemon.clock.time())}

    def forget_here(arguments: Mapping[str, Json]) -> Json:
        source = str(arguments["source"])
        if source in daemon.sources:
            raise ConfigError(
                f"the source {source!r} is configured and running: its documents would come back; "
                "take it out of the configuration and restart the daemon first"
            )
        return forget(daemon.store, {name: pipeline.sink for name, pipeline in daemon.pipelines.items()}, source)

    def confirm(arguments: Mapping[str, Json]) -> Json:
        name = str(arguments["source"])
        if name not in daemon.sources:
            raise ConfigError(f"there is no source {name!r}; there is {', '.join(sorted(daemon.sources))}")
        return {"source": name, "confirmed": daemon.sources[name].confirm()}

    def embed(arguments: Mapping[str, Json]) -> Json:
        return embedded(daemon.embedders, arguments)

    return {
        "status": lambda _arguments: status(daemon),
        "models": lambda _arguments: {name: _model(embedder.info()) for name, embedder in daemon.embedders.items()},
        "embed": embed,
        "replay": replay_here,
        "discard": discard,
        "hasten": hasten,
        "forget": forget_here,
        "confirm": confirm,
    }


def status(daemon: Daemon) -> dict[str, Json]:
    """Return how a running daemon is."""
    checks = daemon.health.ready()
    return {
        "running": True,
        "ready": all(check.ok for check in checks),
        "checks": [_plain(check) for check in checks],
        "totals": cast("Json", asdict(daemon.health.totals())),
        **daemon.health.overview(),
    }


def embedded(embedders: Mapping[str, Embedder], arguments: Mapping[str, Json]) -> dict[str, Json]:
    """Embed queries with models that are loaded already: ``embedder``, ``texts``, ``kind``."""
    name, texts = str(arguments["embedder"]), arguments["texts"]
    if name not in embedders or not isinstance(texts, list):
        raise ConfigError(f"the running daemon has no embedder {name!r}")
    kind = VectorKind(str(arguments["kind"]))
    vectors = embedders[name].embed([str(text) for text in texts], Role.QUERY, frozenset({kind}))[kind]
    if isinstance(vectors, SparseVectors):
        pointers = cast("list[Json]", vectors.indptr.tolist())
        return {"indptr": pointers, "indices": vectors.indices.tolist(), "values": vectors.values.tolist()}
    return {"dense": vectors.tolist()}


def _model(info: ModelInfo) -> dict[str, Json]:
    return {
        "kinds": [kind.value for kind in sorted(info.kinds)],
        "dimension": info.dimension,
        "space": info.space,
        "dtype": info.dtype,
        "device": info.device,
    }


def listed(letters: Iterable[DeadLetter]) -> Iterator[dict[str, Json]]:
    """Yield what ``dead-letters list`` says of each."""
    for letter in letters:
        yield {
            "id": letter.id,
            "document_id": letter.key.document_id,
            "source": letter.source,
            "position": letter.position,
            "stage": letter.failure.stage.value,
            "error": letter.failure.error,
            "message": letter.failure.message,
            "attempts": letter.attempts,
            "first_failed_at": letter.first_failed_at,
            "last_failed_at": letter.last_failed_at,
        }


def _plain(check: Check) -> dict[str, Json]:
    return {"name": check.name, "ok": check.ok, "detail": check.detail, "cure": check.cure}


def _ids(arguments: Mapping[str, Json]) -> list[int]:
    ids = arguments["ids"]
    if not isinstance(ids, list) or not all(isinstance(number, int) for number in ids):
        raise ConfigError("ids: must be a list of numbers")
    return cast("list[int]", ids)
