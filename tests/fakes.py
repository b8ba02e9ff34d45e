"""Fakes of the ports that stand between the engine and the world, and the four stages put together in one thread.

Only what is outside the engine is faked: Milvus (``MemorySink``, held to the sink's contract), the clock, a source, a
model, extraction. The ledger is always the real ``SqliteStore``; breakers, lanes and stages are the real ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ingestd.engine.breaker import Backoff, Breakers
from ingestd.errors import Difficult, DocumentError, UnavailableError
from ingestd.milvus.expression import keepable
from ingestd.milvus.holdings import Holdings
from ingestd.milvus.schema import LONGEST_DOCUMENT_ID
from ingestd.model import (
    Again,
    Content,
    Document,
    DocumentKey,
    Event,
    Extracted,
    Fingerprints,
    Hit,
    ModelInfo,
    Op,
    Outcome,
    Recalled,
    Span,
    SparseVector,
    SparseVectors,
    StoredRow,
    VectorKind,
    Version,
)
from ingestd.ports import always
from ingestd.stages.chunk import Chunk
from ingestd.stages.embed import Embed, VectorField
from ingestd.stages.extract import Extract
from ingestd.stages.recall import Recall
from ingestd.stages.write import Write
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ingestd.metrics import SourceMetrics
    from ingestd.model import (
        Abandoned,
        Check,
        ChunkId,
        DeadLetter,
        Embedded,
        Held,
        Metadata,
        Parked,
        Role,
        Row,
        Tombstone,
        Vectors,
    )
    from ingestd.ports import Clock, Intake

T = TypeVar("T")

NOW = 1_800_000_000.0
COLLECTION = "articles"
FINGERPRINT = "processing"
DIMENSION = 4
QUICK = Backoff(first=0.001, most=0.002, pace=0.0)
"""So that a held call is tried again at once."""


class Killed(BaseException):
    """The process was killed here: nothing catches it."""


class ManualClock:
    """A clock that stands still until it is moved (``ports.Clock``)."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def time(self) -> float:
        """Return the time that it was moved to."""
        return self.now

    def monotonic(self) -> float:
        """Return the same."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move it."""
        self.now += seconds


class ManualLease:
    """A right that lasts until the test says otherwise (``model.Lease``)."""

    def __init__(self, name: str = "tenure", *, lent: bool = False) -> None:
        self.id = name
        self.lent = lent
        self.ended = False
        self.allowed = True
        """What ``enter`` answers: a right can be gone before it is known to be."""
        self.calls = 0
        """Calls that are on their way."""
        self.begun = 0
        """Calls that were ever allowed."""
        self.entering: Callable[[], None] = lambda: None
        """Called first thing in ``enter``."""

    def enter(self) -> bool:
        """Begin a call, if it is allowed."""
        self.entering()
        if self.ended or not self.allowed:
            return False
        self.calls += 1
        self.begun += 1
        return True

    def leave(self) -> None:
        """End a call."""
        self.calls -= 1


@dataclass(frozen=True, slots=True)
class Step:
    """An operation on a sink, and what a search could find right after it."""

    operation: str
    ids: tuple[ChunkId, ...]
    searchable: Mapping[str, tuple[str, ...]]
    """By document: its rows' texts, sorted by their place."""


class MemorySink:
    """A collection in memory (``ports.Sink``), with faults.

    A request that holds a row that is refused writes nothing, as a server does. ``before`` and ``touch`` let a test
    look at the state at that moment, raise what a dependency raises, or kill the process there.
    """

    def __init__(self, collection: str = COLLECTION, *, shared: bool = False) -> None:
        self.collection = collection
        self.shared = shared
        """Whether deletes are noted for other members, and theirs are read."""
        self.rows: dict[ChunkId, Row] = {}
        self.tombstones: dict[str, Version] = {}
        """By document."""
        self.copies: dict[ChunkId, int] = {}
        """Keys that somebody inserted once more."""
        self.history: list[Step] = []
        self.made: str | None = "made once"
        """The collection's random id; None: somebody dropped it."""
        self.outage = 0
        """The number of calls, probes too, that fail from now on."""
        self.refuses: Callable[[Row], bool] = lambda _row: False
        """A row that the server refuses."""
        self.poisonous: Callable[[Row], bool] = lambda _row: False
        """A row that takes every request that it is in down with it."""
        self.before: Callable[[str, Sequence[ChunkId]], None] = lambda _operation, _ids: None
        """Called before each operation, and before each row's turn with that row alone (``row``)."""

    def upsert(self, rows: Sequence[Row], *, allow: Callable[[], None] = always) -> None:
        """Write rows."""
        self._begin("upsert", rows)
        allow()
        if any(not row.vectors for row in rows):
            raise ValueError("an upsert without vectors")
        for row in rows:
            self.before("row", [row.id])
            self.rows[row.id] = row
            self.copies.pop(row.id, None)
        self._end("upsert", [row.id for row in rows])

    def rewrite(self, rows: Sequence[Row], *, allow: Callable[[], None] = always) -> frozenset[ChunkId]:
        """Write all but the vectors of rows that are there."""
        self._begin("rewrite", rows)
        allow()
        there = [row for row in rows if row.id in self.rows]
        for row in there:
            self.before("row", [row.id])
            self.rows[row.id] = replace(row, vectors=self.rows[row.id].vectors)
        self._end("rewrite", [row.id for row in there])
        return frozenset(row.id for row in rows) - self.rows.keys()

    def delete(self, ids: Sequence[ChunkId], *, allow: Callable[[], None] = always) -> None:
        """Delete rows."""
        self._call("delete", ids)
        allow()
        for chunk_id in ids:
            self.before("row", [chunk_id])
            self.rows.pop(chunk_id, None)
            self.copies.pop(chunk_id, None)
        self._end("delete", ids)

    def existing(self, ids: Sequence[ChunkId]) -> frozenset[ChunkId]:
        """Return which of the ids are there."""
        self._call("existing", ids)
        return frozenset(ids) & self.rows.keys()

    def stored(self) -> Iterator[StoredRow]:
        """Yield every row."""
        self._call("stored", ())
        for row in list(self.rows.values()):
            yield StoredRow(row.id, row.document_id, Version(row.version, row.domain), row.source)

    def held(self, documents: Sequence[str], *, closely: bool = False) -> Mapping[str, Held]:
        """Return what is there of these documents."""
        self._call("held", documents)
        found = Holdings(closely=closely)
        for row in self.rows.values():
            found.add(row)
        found.repeated(self.copies)
        buried = self.tombstones if self.shared else {}
        held = {document: found.of(document, buried.get(document)) for document in documents}
        return {document: there for document, there in held.items() if there is not None}

    def bury(self, tombstones: Sequence[Tombstone]) -> None:
        """Note deletes, where there are other members."""
        if self.shared:
            buried = {tombstone.document_id: tombstone.version for tombstone in tombstones}
            documents = keepable(buried, LONGEST_DOCUMENT_ID)
            self._call("bury", documents)
            self.tombstones |= {document: buried[document] for document in documents}
            self._end("bury", documents)

    def count(self) -> int:
        """Return the number of rows."""
        self._call("count", ())
        return len(self.rows)

    def identity(self) -> str | None:
        """Return its random id."""
        self._call("identity", ())
        return self.made

    def probe(self) -> None:
        """Answer, unless there is an outage."""
        self._call("probe", ())

    def validate(self, row: Row) -> None:
        """Refuse a text over 65,535 bytes."""
        if len(row.text.encode()) > 65_535:
            raise DocumentError(f"{row.document_id}: field text: too long")

    def search(self, field: str, vectors: Vectors, limit: int) -> Sequence[Sequence[Hit]]:
        """Return the nearest rows: dense ones by the cosine, as collections are by default; sparse by inner product."""
        self._call("search", ())
        return [self._nearest(field, vectors[at], limit) for at in range(len(vectors))]

    def texts(self) -> dict[str, tuple[str, ...]]:
        """Return each document's chunks, in order: what a search could find."""
        found: dict[str, list[Row]] = {}
        for row in self.rows.values():
            found.setdefault(row.document_id, []).append(row)
        return {
            document: tuple(row.text for row in sorted(rows, key=lambda row: (row.chunk_index, row.text)))
            for document, rows in found.items()
        }

    def _nearest(self, field: str, query: object, limit: int) -> list[Hit]:
        scored = [(_score(row.vectors[field], query), row) for row in self.rows.values()]
        if isinstance(query, SparseVector):
            scored = [(score, row) for score, row in scored if score > 0]
        scored.sort(key=lambda pair: -pair[0])
        return [
            Hit(
                id=row.id,
                document_id=row.document_id,
                chunk_index=row.chunk_index,
                score=score,
                text=row.text,
                source=row.source,
                metadata={**row.metadata, **row.fields},
            )
            for score, row in scored[:limit]
        ]

    def _begin(self, operation: str, rows: Sequence[Row]) -> None:
        ids = [row.id for row in rows]
        if len(set(ids)) != len(ids):
            raise ValueError("a key is in the request twice")
        self._call(operation, ids)
        if any(self.poisonous(row) for row in rows):
            raise UnavailableError("milvus", "the connection broke")
        for row in rows:
            if self.refuses(row):
                raise DocumentError(f"{row.document_id}: the server refuses its chunk {row.chunk_index}")

    def _call(self, operation: str, ids: Sequence[ChunkId]) -> None:
        self.before(operation, ids)
        if self.outage:
            self.outage -= 1
            raise UnavailableError("milvus", "no answer")

    def _end(self, operation: str, ids: Sequence[ChunkId]) -> None:
        self.history.append(Step(operation, tuple(ids), self.texts()))


def _score(stored: object, query: object) -> float:
    if isinstance(stored, SparseVector) and isinstance(query, SparseVector):
        weights = dict(zip(stored.indices.tolist(), stored.values.tolist(), strict=True))
        pairs = zip(query.indices.tolist(), query.values.tolist(), strict=True)
        return float(sum(weights.get(index, 0.0) * value for index, value in pairs))
    one, other = np.asarray(stored), np.asarray(query)
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


class StubEmbedder:
    """A model that makes vectors of nothing but a text's hash (``ports.Embedder``), with faults."""

    def __init__(self, name: str = "stub", kinds: AbstractSet[VectorKind] = frozenset({VectorKind.DENSE})) -> None:
        self.name = name
        self.kinds = frozenset(kinds)
        self.errors: dict[str, Exception] = {}
        """What a batch fails with that holds this text."""
        self.calls: list[tuple[str, ...]] = []
        """The texts of each call, probes too."""
        self.outage = 0
        """The number of calls that fail from now on."""
        self.bad: set[str] = set()
        """Texts whose vector is not a number."""

    def info(self) -> ModelInfo:
        """Return what it is."""
        dimension = DIMENSION if VectorKind.DENSE in self.kinds else None
        return ModelInfo(self.kinds, dimension, f"space of {self.name}", "float32", "none")

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return a vector a text."""
        self.calls.append(tuple(texts))
        if self.outage:
            self.outage -= 1
            raise UnavailableError("device:none", "the worker is gone")
        for text in texts:
            if text in self.errors:
                raise self.errors[text]
        vectors: dict[VectorKind, Vectors] = {}
        if VectorKind.DENSE in kinds:
            dense = np.stack([dense_vector(text) for text in texts])
            dense[[at for at, text in enumerate(texts) if text in self.bad]] = np.nan
            vectors[VectorKind.DENSE] = dense
        if VectorKind.SPARSE in kinds:
            vectors[VectorKind.SPARSE] = SparseVectors.of([_sparse_vector(text) for text in texts])
        return vectors

    def close(self) -> None:
        """Do nothing."""


def dense_vector(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the vector that ``StubEmbedder`` makes of a text."""
    hashed = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.frombuffer(hashed[:DIMENSION], np.uint8).astype(np.float32) + np.float32(1.0)


def _sparse_vector(text: str) -> SparseVector:
    return SparseVector(np.array([len(text)], np.uint32), np.array([1.0], np.float32))


class PlainExtraction:
    """Text as it is (``ports.Extraction``), with faults."""

    def __init__(self) -> None:
        self.fingerprint = "plain"
        self.errors: dict[str, BaseException] = {}
        """What reading a document of this name fails with."""
        self.read: list[str] = []
        """The names of the documents that were read."""
        self.difficult: set[str] = set()
        """The names of documents that are given back to those in a hurry."""

    def extract(
        self, content: Content, *, hurried: bool = False, waiting: Callable[[], None] = lambda: None
    ) -> Document:
        """Return the text."""
        if hurried and content.name in self.difficult:
            raise Difficult
        self.read.append(content.name)
        if content.name in self.errors:
            raise self.errors[content.name]
        return Document(content.data.decode())

    def close(self) -> None:
        """Do nothing."""


class LineChunker:
    """A chunk a line (``ports.Chunker``)."""

    def split(self, text: str) -> Sequence[Span]:
        """Return the places of the lines that are not blank."""
        spans, at = [], 0
        for line in text.split("\n"):
            if line.strip():
                spans.append(Span(at, at + len(line)))
            at += len(line) + 1
        return spans


@dataclass(frozen=True, slots=True)
class Bytes:
    """A payload that is there (``model.Payload``)."""

    data: bytes
    name: str
    metadata: Metadata = field(default_factory=dict)
    at_hand: Content | None = None

    def read(self) -> Content:
        """Return it."""
        return self.at_hand or Content(self.data, self.name, metadata=self.metadata)


@dataclass(frozen=True, slots=True)
class Broken:
    """A payload that cannot be had (``model.Payload``)."""

    error: BaseException
    at_hand: Content | None = None

    def read(self) -> Content:
        """Raise why."""
        raise self.error


def upsert(
    document: str,
    text: str,
    number: int | None = None,
    *,
    source: str = "cms",
    domain: str = "topic/0",
    metadata: Metadata | None = None,
) -> Event:
    """Return an event that brings a document: of a topic where it has a number, of a folder where it has none."""
    return Event(
        DocumentKey(COLLECTION, document),
        Op.UPSERT,
        source,
        f"/{document}" if number is None else f"{domain}@{number}",
        Bytes(text.encode(), document, metadata or {}),
        version=None if number is None else Version(number, domain),
        size=len(text),
    )


def delete(document: str, number: int | None = None, *, source: str = "cms", domain: str = "topic/0") -> Event:
    """Return an event that takes a document away."""
    return replace(upsert(document, "", number, source=source, domain=domain), op=Op.DELETE, payload=None)


class ListSource:
    """A source that hands in a list of events (``ports.Source``)."""

    def __init__(self, events: Iterable[Event], name: str = "cms", collection: str = COLLECTION) -> None:
        self.name = name
        self.collection = collection
        self.events = list(events)
        self.outcomes: list[Outcome] = []
        self.held: list[Check] = []
        """Checks to report."""
        self.late: frozenset[str] = frozenset()
        """Documents that it has not come to."""
        self.end: Callable[[Intake], None] = lambda _intake: None
        """What it does after it has handed in its events."""

    def run(self, intake: Intake, *, once: bool) -> None:
        """Hand in the events; with ``once`` wait until each had an outcome, else go on until stopped."""
        for event in self.events:
            intake.submit(event)
        self.end(intake)
        while not once or len(self.outcomes) < len(self.events):
            intake.wait(0.01)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Remember them."""
        self.outcomes.extend(outcomes)

    def revive(self, parked: Parked | DeadLetter) -> Event | None:
        """Return the event that came from the same place."""
        return next((event for event in self.events if event.position == parked.position), None)

    def checks(self) -> Sequence[Check]:
        """Return what the test put there."""
        return self.held

    def export(self, metrics: SourceMetrics) -> None:
        """It has no metrics."""

    def absent(self) -> frozenset[str]:
        """Return nothing: a list loses nothing."""
        return frozenset()

    def probe(self) -> Sequence[Check]:
        """Return nothing."""
        return ()

    def survey(self) -> None:
        """It cannot be looked at again."""

    def look(self) -> int:
        """It has nothing to look at."""
        return 0

    def behind(self, documents: Collection[str], look: int) -> frozenset[str]:
        """Return what the test put there."""
        return self.late & frozenset(documents)

    def again(self, versions: Mapping[str, Version]) -> Iterator[Again]:
        """Yield the documents of its events of just these versions."""
        for event in self.events:
            document = event.key.document_id
            if document in versions and versions[document] == event.version:
                yield Again(document, event.position, event.record)

    def confirm(self) -> int:
        """Hold nothing."""
        return 0

    def letter_topic(self) -> None:
        """It has none: its dead letters are in the state."""


def open_store(folder: Path, clock: Clock | None = None) -> SqliteStore:
    """Open the real state in a folder."""
    return SqliteStore.open(folder, clock=clock or ManualClock(), wait=0.0)


class Assembly:
    """The four stages of a collection, joined in one thread. What ends is settled in the real store.

    Args:
        store: The ledger.
        sink: The collection.
        window: The most rows that go through the model at a time.
        shared: Whether other processes write the collection too.
        shared_ids: Whether two sources may write the same document.
        most: The most chunks of a document.
    """

    def __init__(
        self,
        store: SqliteStore,
        sink: MemorySink,
        *,
        window: int = 100,
        shared: bool = False,
        shared_ids: bool = False,
        most: int = 20_000,
    ) -> None:
        self.store = store
        self.sink = sink
        self.clock = ManualClock()
        self.breakers = Breakers(backoff=QUICK)
        self.extraction = PlainExtraction()
        self.embedder = StubEmbedder()
        patience = self.breakers.patience(COLLECTION, lambda: None)
        self.recall = Recall(
            store,
            sink,
            fingerprint=FINGERPRINT,
            clock=self.clock,
            shared=shared,
            shared_ids=shared_ids,
            patience=patience,
        )
        self.extract = Extract(self.extraction, fingerprint=FINGERPRINT, shared=shared, patience=patience, hurried=True)
        self.extract_long = Extract(self.extraction, fingerprint=FINGERPRINT, shared=shared, patience=patience)
        self.chunk = Chunk(LineChunker(), fields=["lang"], validate=sink.validate, max_chunks=most)
        dense = VectorField("dense", VectorKind.DENSE, self.embedder, DIMENSION)
        self.embed = Embed([dense], window=window, patience=patience)
        self.write = Write(sink, store, fingerprint=FINGERPRINT, shared=shared, patience=patience)

    def run(self, *events: Event, windows_at_a_time: int = 1000) -> list[Outcome]:
        """Take events of different documents through all stages, and settle them together.

        Args:
            events: Of different documents, as lanes see to it.
            windows_at_a_time: How many the last stage gets at once.

        Returns:
            The outcomes, in the order in which they ended.
        """
        ended: list[Outcome] = []
        extracted = self.extracted(events, ended)
        chunked = _passed(self.chunk.process(extracted), ended)
        windows: list[Embedded | Abandoned] = _passed(self.embed.process(chunked), ended)
        for at in range(0, len(windows), windows_at_a_time):
            ended += self.write.process(windows[at : at + windows_at_a_time])
        self.settle(ended)
        return ended

    def windows(self, *events: Event) -> list[Embedded | Abandoned]:
        """Take events as far as the last stage, which gets nothing yet. None may end before it."""
        ended: list[Outcome] = []
        extracted = self.extracted(events, ended)
        chunked = _passed(self.chunk.process(extracted), ended)
        windows: list[Embedded | Abandoned] = _passed(self.embed.process(chunked), ended)
        assert not ended
        return windows

    def extracted(self, events: Sequence[Event], ended: list[Outcome]) -> list[Extracted]:
        """Take events as far as their texts, past the second stage where those are at hand."""
        known: list[Recalled | Extracted] = _passed(self.recall.process(events), ended)
        for extract in (self.extract, self.extract_long):
            left = [item for item in known if isinstance(item, Recalled)]
            read: list[Recalled | Extracted] = _passed(extract.process(left), ended)
            known = [*(item for item in known if isinstance(item, Extracted)), *read]
        return [item for item in known if isinstance(item, Extracted)]

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Make outcomes durable, as the settle thread does."""
        due = [outcome if outcome.wait is not None else replace(outcome, wait=0.0) for outcome in outcomes]
        self.store.settle(due, {COLLECTION: Fingerprints(FINGERPRINT, "configuration")})


def _passed(results: Iterable[T | Outcome], ended: list[Outcome]) -> list[T]:
    passed: list[T] = []
    for result in results:
        if isinstance(result, Outcome):
            ended.append(result)
        else:
            passed.append(result)
    return passed
