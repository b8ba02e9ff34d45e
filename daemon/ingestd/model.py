"""Every type that flows, from the event that a source hands in to the outcome that settle makes durable.

An event travels alone in its envelope: ``Event → Extracted → Chunked → Embedded → Outcome``. A participle names
the state that a document is in after the stage of that verb. All of them are frozen: a stage makes the next one
from the last, and nothing that is in flight changes under anybody's feet. Counting acknowledgements of fragments
was turned down: chunks live and die inside their document's envelope.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, overload

from ingestd.immutable import value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Metadata: TypeAlias = "Mapping[str, Json]"
ChunkId: TypeAlias = str
"""A chunk's primary key: 32 lower-case hexadecimal digits."""
Digest: TypeAlias = bytes
"""16 bytes over all that a row holds beside its key and its vectors."""
UNKNOWN_DIGEST: Digest = bytes(16)
"""Of a row of which only the key is known: whatever the row should be, it is rewritten."""

BEFORE_ALL = -(2**63)
"""A version's number that every other one comes after: 0 is an offset."""
EXPLICIT = "explicit"
"""The domain of the versions that producers give their documents themselves."""
_CHUNK_ID = re.compile("[0-9a-f]{32}")
CHUNK_ID_SCHEME = 1
"""Goes into every chunk's key. A change of the scheme re-embeds everything: raise it knowingly."""


class Op(StrEnum):
    """What an event asks for."""

    UPSERT = "upsert"
    DELETE = "delete"


class Verdict(StrEnum):
    """How an event ended. RETRYING and RETURNED are no ends."""

    WRITTEN = "written"
    DELETED = "deleted"
    UNCHANGED = "unchanged"
    SUPERSEDED = "superseded"
    DEAD_LETTERED = "dead_lettered"
    RETRYING = "retrying"
    RETURNED = "returned"
    """Given back untouched, or half done: where it came from belongs to another member now, who does it again."""


class Stage(StrEnum):
    """Where in the pipeline something happened."""

    SOURCE = "source"
    EXTRACT = "extract"
    CHUNK = "chunk"
    EMBED = "embed"
    WRITE = "write"


class VectorKind(StrEnum):
    """The two kinds of vectors that a collection can have."""

    DENSE = "dense"
    SPARSE = "sparse"


class Role(StrEnum):
    """Documents and queries are different inputs: models have a prompt, or a tower, for each."""

    DOCUMENT = "document"
    QUERY = "query"


@value(frozen=True, slots=True)
class DocumentKey:
    """What an event is about: the lane that it takes."""

    collection: str
    document_id: str


@value(frozen=True, slots=True, order=True)
class Version:
    """A version of a document. Numbers compare only where the domains are equal."""

    number: int
    domain: str


@value(frozen=True, slots=True)
class Content:
    """The bytes of a document and what its source says about them."""

    data: bytes
    name: str
    """The file's name, or the record's: its extension is a hint at the kind."""
    content_type: str | None = None
    title: str | None = None
    metadata: Metadata = field(default_factory=dict)
    signature: str | None = None
    """What the source saw when it read these bytes (a file's stat), to be remembered with the outcome."""
    text: str | None = None
    """The document's text where the source has it already, and ``data`` is that in UTF-8: nothing to extract."""

    def digest(self) -> str:
        """Return a hash of the bytes and of all that was said about them."""
        # What canonical_json makes of the list of these, in a third of the time: most documents have no metadata.
        said = f"[{_said(self.name)},{_said(self.content_type)},{_said(self.title)},{_object(self.metadata)}]"
        return hashlib.sha256(hashlib.sha256(self.data).digest() + said.encode("ascii")).hexdigest()


class Payload(Protocol):
    """How to get at a document's bytes. They are read when the pipeline has room, not when the event arrives.

    One that is fetched from a server has a method ``probe()`` too, which asks that server something small and raises
    UnavailableError where it does not answer: then ``read`` may raise that as well, and is held while the server is
    away. Such documents are read where nobody waits for them.
    """

    @property
    def at_hand(self) -> Content | None:
        """What ``read`` would return, where it is in memory already; None: it has to be fetched."""
        ...

    def read(self) -> Content:
        """Return the bytes and what the source says about them.

        Raises:
            DocumentError: It cannot be read, and will not become readable by itself.
            TransientError: Reading failed in a way that may pass.
            Superseded: The document changed or went away meanwhile; the source sends, or sent, a newer event.
            UnavailableError: The server that has it is down. Only where there is a ``probe``.
        """
        ...


@value(frozen=True, slots=True)
class Record:
    """A record of a Kafka topic, as it came: what a dead letter keeps, and a retry begins from again."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds since 1970, as the producer or the broker set it; -1: none."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def position(self) -> str:
        """Where it is, for people: ``topic/partition@offset``."""
        return f"{self.topic}/{self.partition}@{self.offset}"

    @property
    def size(self) -> int:
        """The bytes that it holds."""
        said = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + said


class Lease(Protocol):
    """A source's right to change what its events are about. It can end at any moment: a partition is moved."""

    id: str
    """Random, of this tenure: what was written under it without a break can be relied on."""

    lent: bool
    """Whether it is only as good as none: for what an operator has tried again, wherever it belongs by now."""

    @property
    def ended(self) -> bool:
        """Whether the right is gone for good, as far as is known without asking anybody."""
        ...

    def enter(self) -> bool:
        """Begin a call that changes Milvus; ``leave`` ends it. False: the right is gone, make no call.

        While it is being decided who owns what (a rebalance), this waits, for seconds. A rebalance in turn waits
        for the calls that have begun.
        """
        ...

    def leave(self) -> None:
        """End a call that ``enter`` allowed."""
        ...


@value(frozen=True, slots=True)
class Failure:
    """Why an event did not get through."""

    stage: Stage
    error: str
    """The name of the error's class."""
    message: str
    traceback: str | None = None
    """Only for errors that nobody foresaw."""


class Priority(IntEnum):
    """What goes first, of different documents. Of one document everything goes in order."""

    LIVE = 0
    """Somebody has just changed something, and waits to find it."""
    RETRY = 1
    """It failed before, and was away for a while already."""
    BACKFILL = 2
    """It was there before, and there may be a lot of it."""


@value(frozen=True, slots=True)
class Event:
    """One change of one document, as a source hands it in."""

    key: DocumentKey
    op: Op
    source: str
    """The name of the configured source."""
    position: str
    """Where the event came from, for people: a path, or ``topic/partition@offset``."""
    payload: Payload | None
    """How to get at the bytes; None for a delete."""
    version: Version | None = None
    """None: the version is made when the event is written, later than the last one (folders)."""
    size: int = 0
    """Bytes that the payload will take in memory, as far as the source knows."""
    signature: str | None = None
    """What the source saw when it made the event; a payload that was read has a better one."""
    attempt: int = 1
    first_failed_at: float | None = None
    """Seconds since 1970."""
    lease: Lease | None = None
    """What allows this event to change Milvus; None: nothing can take that away (folders)."""
    record: Record | None = None
    """The record that it was made of."""
    fault: Failure | None = None
    """Why it is a dead letter, where its source knows that already."""
    keyed: bool = False
    """Whether its document's id is the key of its record: then all records of the document are in one partition."""
    again: bool = False
    """Tried again by an operator: it is older than whatever the document is by now."""
    priority: Priority = Priority.LIVE


@value(frozen=True, slots=True)
class Document:
    """A document's text, as its extractor read it."""

    text: str
    title: str | None = None
    metadata: Metadata = field(default_factory=dict)


class Span(NamedTuple):
    """A chunk's place in its document's text, in characters: ``text[start:end]``."""

    start: int
    end: int


@value(frozen=True, slots=True)
class Entry:
    """What the ledger knows of a document: the version that is applied, and the rows that are in Milvus.

    ``present`` rows are acknowledged and no attempt has touched them since; ``doubtful`` ids were to be written,
    rewritten or deleted by an attempt whose end is not known. Only ``present`` is ever reused.
    """

    key: DocumentKey
    source: str
    version: Version
    fingerprint: str
    """Of the processing (extractor, chunker, their settings) that made the rows."""
    content: str
    """``Content.digest`` of the version that is applied; empty for a delete."""
    present: Mapping[ChunkId, Digest] = field(default_factory=dict)
    doubtful: frozenset[ChunkId] = frozenset()
    deleted: bool = False
    """A tombstone: an older version must not bring the document back."""
    tenure: str = ""
    """The lease (``Lease.id``) under which this was written; empty: none was needed."""
    begun: frozenset[ChunkId] = frozenset()
    """Of the doubtful ids, rows that an earlier attempt at the very event's version wrote beside the old version's:
    if it fails now, they go. Only in an entry that was read from Milvus."""


@value(frozen=True, slots=True)
class Row:
    """A row of the collection. ``vectors`` is empty for a row whose vectors stay as they are."""

    id: ChunkId
    document_id: str
    version: int
    domain: str
    chunk_index: int
    text: str
    source: str
    fields: Metadata
    """The declared fields."""
    metadata: Metadata
    """Everything else that is known about the document."""
    vectors: Mapping[str, DenseVector | SparseVector] = field(default_factory=dict)

    def with_vectors(self, vectors: Mapping[str, DenseVector | SparseVector]) -> Row:
        """Return the row with its vectors: what ``dataclasses.replace`` does, in a fifth of the time."""
        return Row(
            self.id,
            self.document_id,
            self.version,
            self.domain,
            self.chunk_index,
            self.text,
            self.source,
            self.fields,
            self.metadata,
            vectors,
        )

    def digest(self) -> Digest:
        """Return a digest of all that an upsert would change beside the vectors.

        The version counts in the row of the first chunk only: an edit then touches one row and the changed ones,
        and the document's latest version can still be read from Milvus alone, as the greatest of its rows'.
        """
        return digests((self,))[0]


@value(frozen=True, slots=True)
class Recalled:
    """An event whose document is to be read, and what is known of it."""

    event: Event
    version: Version
    entry: Entry | None
    """What is applied: it cannot change while the event holds its lane."""


@value(frozen=True, slots=True)
class Extracted:
    """An event whose document was read. ``document`` is None for a delete."""

    event: Event
    version: Version
    entry: Entry | None
    """The ledger's entry: it cannot change while the event holds its lane."""
    content: Content | None
    digest: str
    document: Document | None


@value(frozen=True, slots=True)
class Chunked:
    """A document in rows, held against what the ledger says is in Milvus already."""

    extracted: Extracted
    new: tuple[Row, ...]
    """To be embedded and written."""
    kept: Mapping[ChunkId, Digest]
    """In Milvus, and as they should be."""
    rewritten: tuple[Row, ...]
    """In Milvus, with the right vectors; another field differs."""
    stale: tuple[ChunkId, ...]
    """In Milvus, perhaps, and no longer wanted."""
    digests: Mapping[ChunkId, Digest]
    """Of all rows that the document should have."""

    @property
    def event(self) -> Event:
        """The event that all this is about."""
        return self.extracted.event


@value(frozen=True, slots=True)
class Embedded:
    """A window of a document's new rows, with their vectors. The last window completes the document."""

    chunked: Chunked
    rows: tuple[Row, ...]
    first: bool
    last: bool

    @property
    def event(self) -> Event:
        """The event that all this is about."""
        return self.chunked.event


@value(frozen=True, slots=True)
class Outcome:
    """The end of an event (or of this try): what settle makes durable in one transaction."""

    event: Event
    verdict: Verdict
    entry: Entry | None = None
    """The ledger's new entry; None leaves it as it is."""
    content: Content | None = None
    """The original, for a dead letter, as far as it was read."""
    failure: Failure | None = None
    wait: float | None = None
    """RETRYING: seconds that the other side asked for; None leaves it to the retry policy."""
    embedded: int = 0
    reused: int = 0
    published: bool = False
    """A dead letter that a topic keeps: the state keeps none."""
    tried: bool = True
    """RETRYING: whether this was a try. What could not be begun spends none."""


@value(frozen=True, slots=True)
class Settled:
    """What a settlement ended beside its own events."""

    superseded: int = 0
    """Parked events that an outcome took the place of."""
    replaced: tuple[Parked, ...] = field(default=(), compare=False)
    """Those events, without their failures: their sources are to know."""
    mended: int = 0
    """Dead letters that a later, good event of the same document made pointless."""


@value(frozen=True, slots=True)
class Fingerprints:
    """The two fingerprints of a collection's processing."""

    processing: str
    """Extractors, chunker, their settings: a difference is redone."""
    configuration: str
    """The same and the limits: a dead letter is tried again when it differs."""


@value(frozen=True, slots=True)
class Seen:
    """What a source that can be looked at again (a folder) saw of a document when that was settled."""

    source: str
    document_id: str
    signature: str
    verdict: Verdict
    fingerprint: str
    """Processing, or for a dead letter the whole configuration that the verdict rests on."""


@value(frozen=True, slots=True)
class Abandoned:
    """A document that failed after some of its windows went on: write takes them back, and then passes on why."""

    chunked: Chunked
    outcome: Outcome

    @property
    def event(self) -> Event:
        """The event that all this is about."""
        return self.chunked.event


@value(frozen=True, slots=True)
class Parked:
    """An event in the retry queue. Files are references: the source reads them again."""

    key: DocumentKey
    op: Op
    source: str
    position: str
    attempt: int
    """The number of the next try."""
    first_failed_at: float
    due_at: float
    """Seconds since 1970."""
    failure: Failure
    version: Version | None = None
    record: Record | None = None
    """The record that it came from: a copy, for the topic keeps it."""
    tenure: str = ""
    """The lease under which it failed (``Lease.id``): it is withdrawn when that ends, and comes from the topic again.
    Empty: it waits here and nowhere else."""


class Again(NamedTuple):
    """What brings a document once more, for its rows to be mended."""

    document_id: str
    position: str
    record: Record | None
    """The record that made the version that it has; None: the source looks at the document itself."""


@value(frozen=True, slots=True)
class DeadLetter:
    """An event that failed for good, with all that is needed to see why and to try it again."""

    id: int
    key: DocumentKey
    op: Op
    source: str
    position: str
    failure: Failure
    attempts: int
    first_failed_at: float
    last_failed_at: float
    version: Version | None
    fingerprint: str
    """The configuration that was in force."""
    name: str | None = None
    content_type: str | None = None
    metadata: Metadata = field(default_factory=dict)
    size: int | None = None
    """Of the original, in bytes, where it was read."""
    data: bytes | None = None
    """The original bytes; None: too large, or never read (see ``position``)."""
    record: Record | None = None
    """The record that it came from, with ``data`` as its value."""


@value(frozen=True, slots=True)
class StoredRow:
    """What is read back of a row to rebuild a ledger from Milvus."""

    id: ChunkId
    document_id: str
    version: Version
    source: str


class Detail(NamedTuple):
    """What a close look at a row tells beside its digest."""

    place: int
    source: str
    said: Digest
    """Of all that the rows of one document have in common: its source, declared fields and metadata."""
    genuine: bool
    """Whether its text is the one that its key stands for."""
    copies: int = 1
    """How often its key is there: a server keeps two rows where somebody inserts a key again, and answers with one."""


@value(frozen=True, slots=True)
class Held:
    """What Milvus holds of a document: what is relied on where the ledger is not."""

    rows: Mapping[ChunkId, Digest]
    """Empty: the document has none."""
    versions: frozenset[Version]
    """Those of the rows: several, when a version was left half written, or where an edit left rows alone."""
    source: str
    """The source of its first chunk."""
    tombstone: Version | None = None
    """The version that deleted it, where one did and is remembered."""
    made: Mapping[ChunkId, Version] = field(default_factory=dict)
    """The version of each row."""
    firsts: frozenset[Version] = frozenset()
    """The versions of its first chunk: of several rows, where a version was left half written."""
    details: Mapping[ChunkId, Detail] = field(default_factory=dict)
    """Of each row, where they were looked at closely."""

    @property
    def spoilt(self) -> frozenset[ChunkId]:
        """Rows that are not what their keys say, or are there more than once: none can be reused."""
        return frozenset(at for at, detail in self.details.items() if not detail.genuine or detail.copies > 1)


@value(frozen=True, slots=True)
class Tombstone:
    """A delete, as members of a group tell one another of it."""

    document_id: str
    version: Version


@value(frozen=True, slots=True)
class Hit:
    """A chunk that answers a query."""

    id: ChunkId
    document_id: str
    chunk_index: int
    score: float
    text: str
    source: str
    metadata: Metadata


@value(frozen=True, slots=True)
class Check:
    """One line of a health answer, or of ``ingestd check``."""

    name: str
    ok: bool
    detail: str = ""
    cure: str = ""


@value(frozen=True, slots=True)
class Totals:
    """What became of the events of this run. Every accepted event is in exactly one of the others."""

    accepted: int = 0
    written: int = 0
    deleted: int = 0
    unchanged: int = 0
    superseded: int = 0
    dead_lettered: int = 0
    retrying: int = 0
    in_flight: int = 0
    chunks_embedded: int = 0
    chunks_reused: int = 0


@value(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model says of itself."""

    kinds: frozenset[VectorKind]
    dimension: int | None
    """Of the dense vectors; None for a model that has none."""
    space: str
    """Fingerprint of the vector space: weights, pooling, prompts, normalisation, dimension. Not the dtype."""
    dtype: str
    device: str
    replicas: int = 1
    """How many copies of it work at a time."""
    cosine: float | None = None
    """The least cosine between a sample text's vectors and those in float32; None: they are in float32, or somebody
    else's, or it was not measured."""


DenseVector: TypeAlias = "NDArray[np.float32]"
DenseVectors: TypeAlias = "NDArray[np.float32]"
"""Shape (texts, dimension), dtype float32."""


@value(frozen=True, slots=True)
class SparseVector:
    """One sparse vector: ``indices`` uint32 and ``values`` float32, of equal length."""

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


@value(frozen=True, slots=True)
class SparseVectors:
    """Sparse vectors in CSR form: row i is ``indices[indptr[i]:indptr[i + 1]]`` and the values there.

    ``indptr`` is int64 of length n + 1, ``indices`` uint32, ``values`` float32.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.indptr) - 1

    @overload
    def __getitem__(self, at: int) -> SparseVector: ...
    @overload
    def __getitem__(self, at: slice) -> SparseVectors: ...
    def __getitem__(self, at: int | slice) -> SparseVector | SparseVectors:
        """Return one vector, or a run of them."""
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step != 1:
                raise ValueError("sparse vectors are sliced without a step")
            pointers = self.indptr[start : max(start, stop) + 1]
            low, high = int(pointers[0]), int(pointers[-1])
            return SparseVectors(pointers - low, self.indices[low:high], self.values[low:high])
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        low, high = int(self.indptr[at % len(self)]), int(self.indptr[at % len(self) + 1])
        return SparseVector(self.indices[low:high], self.values[low:high])

    def __iter__(self) -> Iterator[SparseVector]:
        """Yield the vectors in order."""
        return (self[at] for at in range(len(self)))

    @staticmethod
    def of(rows: Sequence[SparseVector]) -> SparseVectors:
        """Return the rows as one CSR block."""
        import numpy as np  # noqa: PLC0415 - half of an extraction worker's start, and no use to it

        lengths = np.fromiter((len(row.indices) for row in rows), dtype=np.int64, count=len(rows))
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        if not rows:
            return SparseVectors(indptr, np.zeros(0, np.uint32), np.zeros(0, np.float32))
        indices = np.concatenate([row.indices for row in rows]).astype(np.uint32, copy=False)
        values = np.concatenate([row.values for row in rows]).astype(np.float32, copy=False)
        return SparseVectors(indptr, indices, values)


Vectors: TypeAlias = "DenseVectors | SparseVectors"
"""One vector a text, in the texts' order; ``len(v)`` and ``v[i]`` work on both."""


def digests(rows: Iterable[Row]) -> list[Digest]:
    """Return each row's digest (``Row.digest``). What the rows of a document share is written down once."""
    made, last, fields, metadata = [], None, "{}", "{}"
    for row in rows:
        if last is None or row.fields is not last.fields or row.metadata is not last.metadata:
            last, fields, metadata = row, _object(row.fields), _object(row.metadata)
        version = f"{row.version},{_said(row.domain)}" if row.chunk_index == 0 else ""
        # What canonical_json makes of the list of these.
        said = f"[{_said(row.document_id)},{row.chunk_index},{_said(row.source)},{fields},{metadata},[{version}]]"
        made.append(hashlib.sha256(said.encode("ascii")).digest()[:16])
    return made


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
"""Made once: ``json.dumps`` makes one for each call with options."""


def canonical_json(value: object) -> bytes:
    """Return one and the same UTF-8 text for equal values: sorted keys, no spaces, surrogates escaped."""
    return _CANONICAL.encode(value).encode("ascii")


def _said(text: str | None) -> str:
    return "null" if text is None else _CANONICAL.encode(text)


def _object(value: Metadata) -> str:
    return _CANONICAL.encode(dict(value)) if value else "{}"


def is_chunk_id(key: str) -> bool:
    """Return whether a row's key can be a chunk's. Rows that others inserted have any: no entry can hold those."""
    return _CHUNK_ID.fullmatch(key) is not None


def chunk_ids(document_id: str, texts: Iterable[str]) -> list[ChunkId]:
    """Return the primary keys of a document's chunks.

    A key hashes, length-prefixed, a scheme number, the document's id, all that the embedder sees of the chunk, and
    which of its equals within the document it is. It does not depend on the chunk's place, so an edit leaves the
    keys of all other chunks as they were.

    Args:
        document_id: The document.
        texts: What the embedder sees of each chunk, in the document's order.
    """
    occurrences: dict[str, int] = {}
    document = hashlib.sha256(_SCHEME + _prefixed(document_id))
    ids = []
    for text in texts:
        occurrence = occurrences.get(text, 0)
        occurrences[text] = occurrence + 1
        hasher = document.copy()
        hasher.update(_prefixed(text))
        hasher.update(_prefixed(str(occurrence)) if occurrence else _FIRST)
        ids.append(hasher.hexdigest()[:32])
    return ids


class ChunkKeys:
    """The keys that a text can have in a document: one for each time that it is there. Keeps no text.

    Args:
        document_id: The document.
        text: What the embedder sees.
    """

    def __init__(self, document_id: str, text: str) -> None:
        self._hasher = hashlib.sha256(_SCHEME + _prefixed(document_id) + _prefixed(text))

    def __getitem__(self, occurrence: int) -> ChunkId:
        """Return the key of the text's first (0), second (1), … occurrence."""
        complete = self._hasher.copy()
        complete.update(_prefixed(str(occurrence)))
        return complete.hexdigest()[:32]


def _prefixed(text: str) -> bytes:
    """Return a text in UTF-8 behind its length, so that no two lists of texts run together to the same bytes."""
    encoded = text.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "big") + encoded


_SCHEME = _prefixed(str(CHUNK_ID_SCHEME))
_FIRST = _prefixed("0")
