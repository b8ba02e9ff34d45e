"""The protocols between the engine and everything that can be plugged into it.

A plug-in is one file in ``sources``, ``extractors``, ``chunkers``, ``embedders`` or ``sinks``. Its name is the
``type`` in the configuration, and it holds a frozen pydantic model called ``Config`` with a ``build`` method
that returns the thing itself; ``build``'s arguments are given below, at each port. A third party's plug-in is an
entry point in the group ``ingestd.sources`` (``.extractors``, …) that names such a module.

Protocols, not base classes: a plug-in imports the types that flow and nothing of the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import numpy as np
    from numpy.typing import NDArray

    from ingestd.metrics import SourceMetrics
    from ingestd.model import (
        Again,
        Check,
        ChunkId,
        Content,
        DeadLetter,
        DenseVector,
        Document,
        DocumentKey,
        Entry,
        Event,
        Fingerprints,
        Held,
        Hit,
        ModelInfo,
        Outcome,
        Parked,
        Role,
        Row,
        Seen,
        Settled,
        Span,
        SparseVector,
        StoredRow,
        Tombstone,
        VectorKind,
        Vectors,
        Verdict,
        Version,
    )

R = TypeVar("R")


class Clock(Protocol):
    """Time, so that tests can drive it."""

    def time(self) -> float:
        """Return seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that only runs forward."""
        ...


class Intake(Protocol):
    """What the engine offers to a source. Safe to call from any thread."""

    def submit(self, event: Event) -> None:
        """Accept an event. Blocks while the pipeline is full, a breaker behind it is open, or the source is halted.

        Raises:
            Stopped: The daemon is stopping; the event was not accepted.
        """
        ...

    def offer(self, events: Sequence[Event]) -> int:
        """Accept events from the first on, as many as there is room for now, and return how many. Never blocks.

        They are of one priority. A source that is halted has room for none.

        Raises:
            Stopped: The daemon is stopping; none was accepted.
        """
        ...

    def skip(self, verdict: Verdict, count: int = 1) -> None:
        """Count documents that were looked at and need no event: they are as they were settled."""
        ...

    def withdraw(self, tenures: Collection[str] | None = None) -> None:
        """Take this source's events out of the retry queue that were parked under leases that have ended.

        Args:
            tenures: The leases' ids; None: all that were ever parked under one.

        Raises:
            UnavailableError: The state takes nothing now; nothing was taken out.
        """
        ...

    def hasten(self, positions: Collection[str]) -> None:
        """Have this source's parked events of these positions brought back now.

        Raises:
            UnavailableError: The state takes nothing now.
        """
        ...

    def drained(self, seconds: float) -> bool:
        """Wait a little after ``Stopped``; return whether all that was begun is settled, or given up."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep, and say that the source is alive.

        Raises:
            Stopped: The daemon is stopping.
        """
        ...


class Source(Protocol):
    """Where events come from.

    Built by ``Config.build(name: str, scope: SourceScope)``. A ``Config`` may have ``clash(other: BaseModel) -> str |
    None``: why the source must not run beside another one of that configuration.
    """

    name: str
    collection: str

    def run(self, intake: Intake, *, once: bool) -> None:
        """Hand in events until ``intake`` raises Stopped, on a thread of the source's own.

        With ``once``: hand in what is there now, wait until it is settled, and return.
        """
        ...

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of this source's outcomes, which are durable now. Called by settle's thread; must not block."""
        ...

    def revive(self, parked: Parked | DeadLetter) -> Event | None:
        """Return the event of a parked record or a dead letter, or None if there is nothing left to try again.

        Raises:
            UnavailableError: It cannot be said now; the record stays parked.
        """
        ...

    def checks(self) -> Sequence[Check]:
        """Say how the source is: one line for each thing that can be wrong. Called from any thread."""
        ...

    def export(self, metrics: SourceMetrics) -> None:
        """Bring the source's metrics up to date. Called from one thread, now and then."""
        ...

    def probe(self) -> Sequence[Check]:
        """Say whether the source could start: what ``ingestd check`` prints. Changes nothing.

        Raises:
            ConfigError: What it is set up with is refused; as it runs, that would end the process.
        """
        ...

    def absent(self) -> frozenset[str]:
        """Return the documents that are known and are not there now. For a source that does not run; changes nothing.

        Raises:
            ConfigError: It cannot be said.
        """
        ...

    def survey(self) -> Survey | None:
        """Return a look at all that is there now, whether or not the source runs; None: it cannot be looked at again.

        A topic cannot: what it says of a document may have been dropped long ago.
        """
        ...

    def look(self) -> int:
        """Have the running source look at all that is there, soon; return the number of that look, for ``behind``."""
        ...

    def behind(self, documents: Collection[str], look: int) -> frozenset[str]:
        """Return those of these documents that the running source has not come to, as of a look that was asked for.

        All of them as long as that has not ended; then those that it found to need something and has not handed in, or
        that are not settled. What is held until somebody confirms it does not count. Called from any thread.
        """
        ...

    def again(self, versions: Mapping[str, Version]) -> Iterator[Again]:
        """Yield, of documents whose rows are to be mended, what brings them again; those that are gone are left out.

        Args:
            versions: By document, the version that it has. Where the source can be looked at again it does not count.

        Raises:
            UnavailableError: It cannot be said now.
        """
        ...

    def confirm(self) -> int:
        """Let deletes go on that were held because there were too many at once; return how many were held."""
        ...

    def letter_topic(self) -> LetterTopic | None:
        """Return where this source's dead letters are kept; None: in the state."""
        ...


class Survey(Protocol):
    """All that is there now of a source that can be looked at again. Changes nothing. Not for several threads.

    Every call raises UnavailableError where nothing can be said: a folder that is not mounted is not empty.
    """

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (document, signature) of everything that is there, as far as it can be looked at, before it raises."""
        ...

    def owns(self, document: str) -> bool:
        """Return whether a document of that id can be this source's."""
        ...

    def signature(self, document: str) -> str | None:
        """Return a document's signature; None: it is not there."""
        ...

    def leaves(self, verdict: Verdict | None) -> bool:
        """Return whether a document that was last settled so is meant to stay when it is not there any more."""
        ...

    def digest(self, document: str) -> str | None:
        """Return the ``Content.digest`` of a document as it is now; None: it is changing, or gone.

        Raises:
            DocumentError: It cannot be read, and why.
        """
        ...


class LetterTopic(Protocol):
    """Dead letters on a topic: for members without a disk, and for who wants them beside the records."""

    def probe(self) -> None:
        """Return if the topic is there, as far as that can be told without writing to it.

        Raises:
            UnavailableError: It is not, or no broker answers.
        """
        ...

    def publish(self, letters: Sequence[Outcome]) -> None:
        """Write dead letters; returns when all are acknowledged. A second time makes doubles, which readers drop.

        Raises:
            UnavailableError: Not all were acknowledged.
        """
        ...

    def letters(self, *, values: bool = True) -> Iterator[DeadLetter]:
        """Yield the letters that are there, one for each position, without those tried again.

        Args:
            values: Whether their originals are wanted too: one at a time is held, and they come in no order of time.
                Without, they come oldest first.

        Raises:
            UnavailableError: It cannot be read.
        """
        ...

    def replay(self, letters: Iterable[DeadLetter]) -> int:
        """Have letters tried again by whoever reads their topics, as the versions that they were; return how many.

        Raises:
            UnavailableError: Some could not be; doing it again is harmless.
            ConfigError: Some cannot be, whose records are not whole or not taken by their topics; all others are.
        """
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class SourceScope(Protocol):
    """What a source may know of the rest, given to its ``Config.build``."""

    clock: Clock
    seen: SeenStore
    max_bytes: int
    """The most bytes that a document may have: a source refuses a larger one before it reads it."""
    shared: bool
    """Whether other processes write the source's collection too."""

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the fingerprint that a document that was settled with this verdict must have to be left alone."""
        ...


class SeenStore(Protocol):
    """What a source reads of its own past when it starts."""

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """Yield what was seen of every document of the source.

        Args:
            source: The source.
            collection: Only what was settled in this one: a source that was pointed at another collection has seens
                of both.
        """
        ...

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """Yield the ids of the source's documents that the ledger holds (no tombstones), and whether each is whole.

        A document with doubtful rows is not whole: it has to be sent again.

        Args:
            source: The source.
            collection: Only those in it; None: in any.
        """
        ...

    def waiting(self, owned: Collection[tuple[str, str]]) -> int:
        """Return the number of parked events, due or not, of these (source, collection). Cheap."""
        ...

    def letter(self, source: str, document_id: str, collection: str) -> DeadLetter | None:
        """Return a document's last dead letter, without its original; None: there is none.

        Raises:
            UnavailableError: The state does not answer now.
        """
        ...

    def confirmed(self, source: str) -> frozenset[str]:
        """Return, once, the documents whose deletes an operator confirmed while no daemon ran."""
        ...


def always() -> None:
    """Allow every request."""


@runtime_checkable
class Extractor(Protocol):
    """Bytes of one kind to text. Runs in a limited child process.

    Built by ``Config.build()``. ``Config`` declares the class variables ``kinds`` (the media types that it reads)
    and ``revision`` (raised when the same bytes would give another text).
    """

    def extract(self, content: Content) -> Document:
        """Return the document's text.

        Raises:
            DocumentError: The bytes are not what they say they are, or beyond a limit.
        """
        ...


class Extraction(Protocol):
    """All extractors of a daemon, in limited child processes. Safe to call from several threads."""

    fingerprint: str

    def extract(self, content: Content, *, hurried: bool = False, waiting: Callable[[], None] = always) -> Document:
        """Decide the kind, and return the text.

        Args:
            content: What to read.
            hurried: Whether others wait: a document that takes long is given back.
            waiting: Called every so often until a child process begins with it: others may come first.

        Raises:
            DocumentError: No extractor for the kind, bad bytes, or a limit was reached (time, memory).
            Difficult: It is to be read again without hurry. Only where ``hurried``.
            UnavailableError: No child process can be started.
            Stopped: The child processes were ended before the text was there.
        """
        ...

    def close(self) -> None:
        """End the child processes."""
        ...


class Tokenizer(Protocol):
    """An embedder's own tokenizer, without its model. Safe to call from several threads."""

    limit: int | None
    """The most tokens of a text that the model sees: its length less special tokens and the prompt."""
    digest: str

    def count(self, text: str) -> int:
        """Return the number of tokens: as many as ``offsets`` has rows, for less."""
        ...

    def offsets(self, text: str) -> NDArray[np.int64]:
        """Return where each token starts and ends in the text, in characters: shape (tokens, 2).

        No special tokens, never truncated. Characters that belong to no token (white space) are in no row.
        """
        ...


@runtime_checkable
class Chunker(Protocol):
    """Text to spans.

    Built by ``Config.build(tokenizer: Tokenizer)``; the configuration and ``Config.revision`` (a class variable,
    raised when the same text would be cut elsewhere) make the chunker's part of the processing fingerprint.

    It may have ``exceeds(text: str, chunks: int) -> bool``: whether a text certainly has more chunks than so many,
    found out for much less than cutting it costs.
    """

    def split(self, text: str) -> Sequence[Span]:
        """Return the chunks' places, in order, none empty or of white space only. Empty for a text without any."""
        ...


class Embedder(Protocol):
    """A model that turns texts into vectors of one or more kinds.

    Built by ``Config.build(name: str, devices: DevicePool)``; ``Config.tokenizer()`` returns its Tokenizer without
    loading the model. Safe to call from several threads.
    """

    name: str

    def info(self) -> ModelInfo:
        """Return what the model is, loading it if need be (seconds to minutes).

        Raises:
            ConfigError: The model cannot be loaded as configured.
        """
        ...

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind.

        Raises:
            DocumentError: The model cannot embed one of the texts; the caller halves to find it.
            UnavailableError: The device or the provider is down.
        """
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


class DevicePool(Protocol):
    """The worker processes that hold models, one process a device."""

    def load(self, name: str, module: str, options: Mapping[str, object], device: str | Sequence[str]) -> Device:
        """Have the worker of each device load a model by ``module``'s ``load(options, device)``.

        Args:
            name: The embedder's name, for messages.
            module: A module with ``load(options: Mapping, device: str)`` that returns a ``devices.Model``.
            options: Picklable.
            device: ``auto`` (all GPUs, or the CPU), ``cpu``, ``cuda``, ``cuda:1``, …, or several of these.
        """
        ...

    def checks(self) -> Sequence[Check]:
        """Say how the workers are."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class Device(Protocol):
    """One model, in one worker or several. Safe to call from several threads."""

    texts_cut: int
    """How many texts were longer than it sees, since it was first asked for something."""

    def info(self) -> ModelInfo:
        """Wait until the model is loaded, and return what it is."""
        ...

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """As Embedder.embed."""
        ...


class VectorCache(Protocol):
    """Vectors that were made before. It may forget any; what it returns is what was put. Safe from several threads."""

    def get(self, space: str, kind: VectorKind, texts: Sequence[str]) -> Mapping[str, DenseVector | SparseVector]:
        """Return the vectors that it has, by text.

        Args:
            space: What they depend on beside their texts.
            kind: Of the vectors.
            texts: Any number.
        """
        ...

    def put(self, space: str, kind: VectorKind, vectors: Mapping[str, DenseVector | SparseVector]) -> None:
        """Take vectors, by text."""
        ...


class Sink(Protocol):
    """One collection. Every call is idempotent, has a timeout, and raises by the errors' verdicts:

    DocumentError when the server refuses one of the rows (the caller halves to find it), UnavailableError, or
    ConfigError when the set-up is refused. Calls that carry only keys are no document's fault: they raise the latter
    two alone. Safe to call from several threads.
    """  # noqa: D415 - the colon introduces the second paragraph

    collection: str

    def upsert(self, rows: Sequence[Row], *, allow: Callable[[], None] = always) -> None:
        """Write rows with their vectors, split into requests by bytes and rows. Keys are unique.

        Args:
            rows: The rows.
            allow: Called right before each request that changes something; what it raises goes through.
        """
        ...

    def rewrite(self, rows: Sequence[Row], *, allow: Callable[[], None] = always) -> frozenset[ChunkId]:
        """Write all but the vectors of rows that are there.

        Args:
            rows: The rows.
            allow: As for ``upsert``: reading vectors back may take long.

        Returns:
            The ids that turned out not to be there: the ledger was wrong, and they have to be embedded again.
        """
        ...

    def delete(self, ids: Sequence[ChunkId], *, allow: Callable[[], None] = always) -> None:
        """Delete rows by key; those that are not there count as deleted. ``allow``: as for ``upsert``."""
        ...

    def existing(self, ids: Sequence[ChunkId]) -> frozenset[ChunkId]:
        """Return which of the ids are there, read with Strong consistency."""
        ...

    def stored(self) -> Iterator[StoredRow]:
        """Yield every row of the collection: what a ledger is rebuilt from."""
        ...

    def held(self, documents: Sequence[str], *, closely: bool = False) -> Mapping[str, Held]:
        """Return what is there of these documents, rows and tombstones, read with Strong consistency.

        Documents of which there is nothing are left out.

        Args:
            documents: Their ids.
            closely: Whether each row's text is held against its key, and keys are looked for that are there twice:
                ``Held.details``. It moves the texts.
        """
        ...

    def bury(self, tombstones: Sequence[Tombstone]) -> None:
        """Note deletes for the other members, before the rows are deleted."""
        ...

    def count(self) -> int:
        """Return the number of rows, read with Strong consistency."""
        ...

    def identity(self) -> str | None:
        """Return the random id of the collection as it is now; None if it is not there.

        The server is asked each time: a collection that was dropped and made again has another one.
        """
        ...

    def probe(self) -> None:
        """Ask something small: returns if the collection answers, raises UnavailableError if not."""
        ...

    def validate(self, row: Row) -> None:
        """Check what a row without vectors can already be refused for: lengths in bytes, types of declared fields.

        Raises:
            DocumentError: Which field, and why.
        """
        ...

    def search(self, field: str, vectors: Vectors, limit: int) -> Sequence[Sequence[Hit]]:
        """Return the nearest rows for each query vector, best first (Bounded consistency)."""
        ...


class Ledger(Protocol):
    """What is applied, per document. Reads may come from any thread."""

    def entries(self, keys: Sequence[DocumentKey]) -> Mapping[DocumentKey, Entry]:
        """Return what is known of these documents."""
        ...

    def write_ahead(self, entries: Sequence[Entry]) -> None:
        """Make these entries durable before Milvus is touched. Returns when they are on disk."""
        ...

    def binding(self, collection: str) -> str | None:
        """Return the random id of the Milvus collection that the entries are about, if any."""
        ...

    def bind(self, collection: str, identity: str, entries: Iterable[Entry]) -> None:
        """Void the collection's entries and seens, and start again from these, in one transaction."""
        ...

    def doubt(self, collection: str) -> None:
        """Note, durably, that nothing but the keys of a collection's entries is believed, and have all read again."""
        ...

    def doubted(self, collection: str) -> bool:
        """Return whether ``doubt`` was called, by any run, and ``undoubted`` was not since."""
        ...

    def undoubted(self, collection: str) -> None:
        """Note that the entries say it themselves."""
        ...

    def collection_entries(self, collection: str) -> Iterator[Entry]:
        """Yield all entries of a collection."""
        ...

    def rows(self, collection: str) -> int:
        """Return the number of present rows that the ledger knows in a collection."""
        ...

    def sources(self) -> Sequence[tuple[str, str, int]]:
        """Return (source, collection, documents that are not deleted) for all of which anything is known.

        Also where that is a tombstone, a seen, a parked event or a dead letter alone.
        """
        ...


class Store(Ledger, SeenStore, Protocol):
    """Ledger, retry queue and dead letters in one place, so that moving an event between them is atomic."""

    def settle(self, outcomes: Sequence[Outcome], fingerprints: Mapping[str, Fingerprints]) -> Settled:
        """Make outcomes durable in one transaction: ledger entries, seens, parked events, dead letters.

        Args:
            outcomes: Of any collections and sources, in the order in which they ended.
            fingerprints: By collection.

        Returns:
            What else it ended.

        Raises:
            UnavailableError: Nothing was stored: the disk is full or gone, or no more dead letters are allowed.
        """
        ...

    def due(self, now: float, limit: int, owned: Collection[tuple[str, str]] | None = None) -> Sequence[Parked]:
        """Return parked events that are due, soonest first, without tracebacks and records, and without taking them.

        Args:
            now: Seconds since 1970.
            limit: The most to return.
            owned: Only those of these (source, collection); None: all.
        """
        ...

    def next_due(self) -> float | None:
        """Return when the next parked event is due, or None if nothing is parked."""
        ...

    def parked(self, *, limit: int | None = None) -> Sequence[Parked]:
        """Return parked events, soonest first."""
        ...

    def hasten(self, now: float, source: str | None = None, positions: Collection[str] | None = None) -> int:
        """Make parked events due now; return how many there are.

        Args:
            now: Seconds since 1970.
            source: Only those of this source; None: all.
            positions: Only those of these positions of the source; None: all.
        """
        ...

    def postpone(self, parked: Sequence[Parked], due_at: float) -> int:
        """Let parked events wait on, with the tries that they have; return how many of them are there.

        Args:
            parked: The events.
            due_at: Until when, in seconds since 1970.
        """
        ...

    def parked_of(self, collection: str, documents: Sequence[str]) -> frozenset[str]:
        """Return those of these documents that have events in the retry queue."""
        ...

    def mend(self, entries: Sequence[Entry], parked: Sequence[Parked]) -> Mapping[str, int]:
        """Put entries right, and have their documents' events brought back, in one transaction.

        An event takes the place of what waits for the same document, source and position.

        Returns:
            How many events wait beyond those that did, by source.
        """
        ...

    def whole(self, parked: Parked) -> Parked:
        """Return a parked event with the copy of its record, if one is kept."""
        ...

    def rename(self, parked: Parked, key: DocumentKey) -> None:
        """Have a parked event wait under another document, in place of what waits there from the same position."""
        ...

    def withdraw(self, source: str, tenures: Collection[str] | None) -> Sequence[Parked]:
        """Remove a source's events that were parked under these leases; return them, without failures and records.

        Args:
            source: The source.
            tenures: The leases' ids; None: all that were parked under any.
        """
        ...

    def dead_letters(self, ids: Sequence[int] | None = None) -> Iterator[DeadLetter]:
        """Yield dead letters, oldest first."""
        ...

    def discard(self, ids: Sequence[int]) -> int:
        """Remove dead letters; return how many were there."""
        ...

    def requeue(self, ids: Sequence[int]) -> Mapping[str, int]:
        """Move dead letters to the retry queue, due now, with all their tries before them.

        An event waits once: a letter takes the place of what waits for the same document, source and position.

        Returns:
            How many events wait beyond those that did, by source; a source for which that is none may be left out.
        """
        ...

    def forget(self, source: str, collection: str) -> None:
        """Remove all that is known of a source: entries, seens, parked events and dead letters."""
        ...

    def confirm(self, source: str, documents: Collection[str]) -> None:
        """Note that an operator confirmed the deletes of these documents, and of no others."""
        ...


class Patience(Protocol):
    """Makes calls against dependencies that may be down."""

    def hold(self, call: Callable[[], R], probe: Callable[[], object] | None) -> R:
        """Make a call, and again with back-off while it raises UnavailableError and the probe fails too.

        Args:
            call: Idempotent.
            probe: A small call against the same dependency; None: the call is never suspected.

        Raises:
            Suspect: The dependency answers its probe, and this call alone fails: halve the batch.
            Stopped: The daemon is stopping.
        """
        ...
