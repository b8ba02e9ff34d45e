"""What an operator can have done: in the running daemon, over its control socket, or without one, on the state itself.

The same functions serve both, so that ``ingestd dead-letters replay`` means the same thing day and night.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from ingestd.audit.looking import Feeds
from ingestd.audit.mending import Mender
from ingestd.errors import ConfigError
from ingestd.model import DocumentKey, Role, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from ingestd.flow import Daemon
    from ingestd.model import Check, ChunkId, DeadLetter, Json, ModelInfo
    from ingestd.ports import Embedder, Sink
    from ingestd.store.sqlite import SqliteStore

KEYS = 1_000
"""Rows that are deleted at a time."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of dead letters that were to be tried again."""

    by_source: Mapping[str, int]
    """How many more wait in the retry queue now."""
    taken: tuple[int, ...]
    left: tuple[int, ...]
    """Those of a source that is not configured any more, or feeds another collection now: they stay."""

    def said(self) -> dict[str, Json]:
        """Return it as the command prints it."""
        return {"replayed": len(self.taken), "left": list(self.left)}


def replay(store: SqliteStore, feeds: Collection[tuple[str, str]], ids: Sequence[int]) -> Replayed:
    """Move dead letters to the retry queue, due now.

    Args:
        store: The state.
        feeds: Which configured source feeds which collection.
        ids: The letters; those that are not there are left out.
    """
    letters = list(store.dead_letters(ids, data=False))
    ours = tuple(letter.id for letter in letters if (letter.source, letter.key.collection) in feeds)
    left = tuple(letter.id for letter in letters if (letter.source, letter.key.collection) not in feeds)
    return Replayed(dict(store.requeue(ours)), ours, left)


def forget(
    store: SqliteStore,
    sinks: Mapping[str, Sink],
    feeds: Collection[tuple[str, str]],
    source: str,
    *,
    shared: Collection[str] = (),
) -> dict[str, Json]:
    """Delete all rows of a source, and all that is known of it, in collections that it does not feed any more.

    Args:
        store: The state.
        sinks: By collection.
        feeds: Which configured source feeds which collection: there its documents would come back.
        source: The source's name.
        shared: The collections that other members write too: there the rows themselves say whose they are, and
            everywhere where the state knows nothing of the source.

    Raises:
        ConfigError: There is nothing to forget, or one of its collections is not configured.
    """
    known = [collection for name, collection, _documents in store.sources() if name == source]
    # Of a source that the state does not know, rows may be anywhere: an audit has named them.
    elsewhere = {name: held for name in (shared if known else sinks) if (held := _rows_of(sinks[name], source))}
    known = list(dict.fromkeys([*known, *elsewhere]))
    collections = [collection for collection in known if (source, collection) not in feeds]
    if known and not collections:
        raise ConfigError(
            f"the source {source!r} is configured, so its documents would come back; "
            "take it out of the configuration first (and restart the daemon, if one runs)"
        )
    if not collections:
        names = ", ".join(sorted({name for name, _collection, _documents in store.sources()})) or "none"
        raise ConfigError(f"nothing is known of a source {source!r}; known: {names}")
    absent = [collection for collection in collections if collection not in sinks]
    if absent:
        raise ConfigError(
            f"the collection {', '.join(absent)} of the source {source!r} is not in the configuration, "
            "so its rows cannot be reached; put it back, and then forget the source"
        )
    counts = [_forget_in(store, sinks[collection], source, elsewhere.get(collection, {})) for collection in collections]
    documents, rows = (sum(column) for column in zip(*counts, strict=True))
    return {"source": source, "documents": documents, "rows": rows}


def _rows_of(sink: Sink, source: str) -> dict[ChunkId, str]:
    """Return the rows of a source in a collection, each with its document."""
    return {row.id: row.document_id for row in sink.stored() if row.source == source}


def _forget_in(store: SqliteStore, sink: Sink, source: str, held: Mapping[ChunkId, str]) -> tuple[int, int]:
    """Delete a source's rows in one collection; return the number of documents and of rows.

    Args:
        store: The state.
        sink: The collection.
        source: The source's name.
        held: Rows that the collection itself says are the source's, each with its document.
    """
    documents = set(held.values())
    ids = set(held)
    for entry in store.collection_entries(sink.collection):
        if entry.source == source:
            ids.update(entry.present, entry.doubtful)
            if not entry.deleted:
                documents.add(entry.key.document_id)
    wanted = sorted(ids)
    for at in range(0, len(wanted), KEYS):
        sink.delete(wanted[at : at + KEYS])
    store.forget(source, sink.collection)
    return len(documents), len(wanted)


def commands(daemon: Daemon) -> dict[str, Callable[[Mapping[str, Json]], Json]]:
    """Return what the control socket of a running daemon offers."""
    feeds = {(name, source.collection) for name, source in daemon.sources.items()}

    def replay_here(arguments: Mapping[str, Json]) -> Json:
        moved = replay(daemon.store, feeds, _ids(arguments))
        for source, count in moved.by_source.items():
            daemon.tally.requeue(source, count)
        return moved.said()

    def discard(arguments: Mapping[str, Json]) -> Json:
        return {"discarded": daemon.store.discard(_ids(arguments))}

    def hasten(_arguments: Mapping[str, Json]) -> Json:
        return {"hastened": daemon.store.hasten(daemon.clock.time())}

    def forget_here(arguments: Mapping[str, Json]) -> Json:
        sinks = {name: pipeline.sink for name, pipeline in daemon.pipelines.items()}
        return forget(daemon.store, sinks, feeds, _name(arguments, "source"), shared=daemon.shared)

    def confirm(arguments: Mapping[str, Json]) -> Json:
        name = _name(arguments, "source")
        if name not in daemon.sources:
            raise ConfigError(f"there is no source {name!r}; there is {', '.join(sorted(daemon.sources))}")
        return {"source": name, "confirmed": daemon.sources[name].confirm()}

    def embed(arguments: Mapping[str, Json]) -> Json:
        return embedded(daemon.embedders, arguments)

    def mend(arguments: Mapping[str, Json]) -> Json:
        collection = _collection(daemon, arguments)
        done = menders[collection].mend(_texts(arguments, "documents"), frozenset(_texts(arguments, "files")))
        return {document: {"done": mended.done.value, "why": mended.why} for document, mended in done.items()}

    menders = {name: _mender(daemon, name) for name in daemon.pipelines}
    return {
        "status": lambda _arguments: status(daemon),
        "models": lambda _arguments: {name: told(embedder.info()) for name, embedder in daemon.embedders.items()},
        "embed": embed,
        "replay": replay_here,
        "discard": discard,
        "hasten": hasten,
        "forget": forget_here,
        "confirm": confirm,
        "look": lambda _arguments: {name: source.look() for name, source in daemon.sources.items()},
        "unsettled": lambda arguments: cast("Json", sorted(_unsettled(daemon, arguments))),
        "mend": mend,
    }


def _mender(daemon: Daemon, collection: str) -> Mender:
    """Make what mends the documents of a collection."""
    pipeline = daemon.pipelines[collection]
    sources = {name: source for name, source in daemon.sources.items() if source.collection == collection}
    return Mender(
        pipeline.sink,
        daemon.store,
        pipeline.lanes,
        feeds=Feeds(frozenset(sources), daemon.own & sources.keys(), collection in daemon.shared),
        sources=sources,
        requeued=daemon.tally.requeue,
        clock=daemon.clock,
        forgets_after=daemon.forgets_after,
    )


def _unsettled(daemon: Daemon, arguments: Mapping[str, Json]) -> set[str]:
    """Return the documents that something is under way for; of those whose files count, also what is yet to come."""
    collection, documents = _collection(daemon, arguments), _texts(arguments, "documents")
    files, looks = _texts(arguments, "files"), arguments.get("looks")
    busy = daemon.pipelines[collection].lanes.busy(DocumentKey(collection, document) for document in documents)
    found = {key.document_id for key in busy} | daemon.store.parked_of(collection, documents)
    for name, source in daemon.sources.items():
        survey = source.survey() if files and source.collection == collection else None
        if survey is not None:
            look = looks.get(name, 0) if isinstance(looks, dict) else 0
            number = look if isinstance(look, int) else 0
            found |= source.behind([document for document in files if survey.owns(document)], number)
    return found


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
    name, texts, kind_name = _name(arguments, "embedder"), arguments.get("texts"), _name(arguments, "kind")
    if name not in embedders or not isinstance(texts, list) or kind_name not in set(VectorKind):
        raise ConfigError(f"the running daemon cannot embed with {name!r}")
    kind = VectorKind(kind_name)
    vectors = embedders[name].embed([str(text) for text in texts], Role.QUERY, frozenset({kind}))[kind]
    if isinstance(vectors, SparseVectors):
        pointers = cast("list[Json]", vectors.indptr.tolist())
        return {"indptr": pointers, "indices": vectors.indices.tolist(), "values": vectors.values.tolist()}
    return {"dense": vectors.tolist()}


def told(info: ModelInfo) -> dict[str, Json]:
    """Return what a model is, in plain values."""
    return {
        "kinds": [kind.value for kind in sorted(info.kinds)],
        "dimension": info.dimension,
        "space": info.space,
        "dtype": info.dtype,
        "cosine": info.cosine,
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
    ids = arguments.get("ids")
    if not isinstance(ids, list) or not all(type(number) is int and 0 <= number < 1 << 63 for number in ids):
        raise ConfigError("ids: must be a list of dead letters' numbers")
    return cast("list[int]", ids)


def _collection(daemon: Daemon, arguments: Mapping[str, Json]) -> str:
    name = _name(arguments, "collection")
    if name not in daemon.pipelines:
        raise ConfigError(
            f"the running daemon has no collection {name!r}; it has {', '.join(sorted(daemon.pipelines))}"
        )
    return name


def _texts(arguments: Mapping[str, Json], key: str) -> list[str]:
    texts = arguments.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{key}: must be a list of documents")
    return cast("list[str]", texts)


def _name(arguments: Mapping[str, Json], key: str) -> str:
    value = arguments.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"{key}: must be a name")
    return value
