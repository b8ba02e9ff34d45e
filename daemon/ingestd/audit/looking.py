"""Goes over a collection, and decides what counts as a difference beside a daemon that is at work.

Every document that the ledger, Milvus or a source knows is looked at once. What seems wrong is a suspect: between a
question to the ledger and one to Milvus a document may have been written, and one that is in flight differs rightly.
A difference counts only when the same is found again in a document that nothing is under way for, before and after the
look, whose entry stands still. (Stopping the daemon for the time of an audit was turned down, and so was a snapshot of
both: Milvus has none.)
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ingestd.audit.compare import Fault, faults
from ingestd.audit.files import fault_of
from ingestd.errors import UnavailableError
from ingestd.model import DocumentKey, canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from ingestd.audit.scratch import Scratch, Weighed
    from ingestd.model import Entry, Held, Seen, StoredRow
    from ingestd.ports import Survey

DOCUMENTS = 500
ROWS = 4_000
"""The most documents, and about the most rows, of one look: what a question to Milvus takes."""
PAGE = 5_000
AT_REST = 10.0
"""Seconds between two looks at a document that other members may be writing: nobody can be asked about those."""
PAUSE = 0.5
"""Seconds between two rounds of looks."""


class Past(Protocol):
    """What an audit reads of the state."""

    def entries(self, keys: Sequence[DocumentKey]) -> Mapping[DocumentKey, Entry]:
        """See ``ports.Ledger``."""
        ...

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """See ``ports.SeenStore``."""
        ...

    def seen_of(self, source: str, collection: str, documents: Sequence[str]) -> Mapping[str, Seen]:
        """Return what a source saw of these documents."""
        ...

    def parked_of(self, collection: str, documents: Sequence[str]) -> frozenset[str]:
        """See ``ports.Store``."""
        ...

    def letters_of(self, collection: str, documents: Sequence[str]) -> frozenset[str]:
        """Return those of these documents that have dead letters."""
        ...


class Rows(Protocol):
    """What an audit reads of a collection."""

    collection: str

    def stored(self) -> Iterator[StoredRow]:
        """See ``ports.Sink``."""
        ...

    def held(self, documents: Sequence[str], *, closely: bool = False) -> Mapping[str, Held]:
        """See ``ports.Sink``."""
        ...


class Beside(Protocol):
    """The daemon that is at work on the collections meanwhile, or nobody."""

    def look(self) -> None:
        """Have its sources look at all that is there; ``unsettled`` waits for that."""
        ...

    def unsettled(self, collection: str, documents: Sequence[str], files: Collection[str]) -> frozenset[str]:
        """Return the documents that something is under way for.

        Args:
            collection: Their collection.
            documents: Which.
            files: Those of them whose files count too.
        """
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """A document as it was looked at."""

    faults: tuple[Fault, ...]
    mark: bytes
    """Equal for the same faults of the same version."""
    moved: bool
    """Whether its entry changed meanwhile, or it waits for another try: what was found says nothing."""


@dataclass(frozen=True, slots=True)
class Feeds:
    """Who writes a collection."""

    sources: frozenset[str]
    """The sources that are configured to feed it."""
    own: frozenset[str]
    """Those of them whose documents only this daemon writes."""
    shared: bool
    """Whether other members write the collection too."""

    def alone(self, source: str) -> bool:
        """Return whether only this daemon writes a source's documents."""
        return not self.shared or source in self.own


class Looker:
    """Looks at one collection's documents.

    Args:
        sink: The collection.
        past: The state.
        feeds: Who writes it.
        surveys: What can be looked at of its sources, by source.
    """

    def __init__(self, sink: Rows, past: Past, feeds: Feeds, surveys: Mapping[str, Survey]) -> None:
        self.collection = sink.collection
        self._sink = sink
        self.feeds = feeds
        self._past = past
        self._surveys = surveys
        self.strangers: Counter[str] = Counter()
        """See ``Counts``."""
        self.unknown: dict[str, str] = {}
        """See ``Counts``."""

    def there(self) -> Iterator[dict[str, int]]:
        """Yield all documents that anybody knows of, in pages, with so many rows in Milvus each."""
        page: Counter[str] = Counter()
        for row in self._sink.stored():
            page[row.document_id] += 1
            if len(page) >= PAGE:
                yield page
                page = Counter()
        yield page
        for source in sorted(self.feeds.sources):
            yield from _pages(document for document, _whole in self._past.documents(source, self.collection))
        for source, survey in self._surveys.items():
            yield from _pages(self._surveyed(source, survey))

    def _surveyed(self, source: str, survey: Survey) -> Iterator[str]:
        try:
            for document, _signature in survey:
                yield document
        except UnavailableError as error:
            self.unknown[source] = str(error)

    def looks(self, documents: Iterable[Weighed]) -> Iterator[dict[str, Look]]:
        """Look at many documents, a batch at a time."""
        batch: list[str] = []
        rows = 0
        for document in documents:
            if batch and (len(batch) >= DOCUMENTS or rows + document.rows > ROWS):
                yield self.look(batch)
                batch, rows = [], 0
            batch.append(document.id)
            rows += document.rows
        if batch:
            yield self.look(batch)

    def look(self, documents: Sequence[str]) -> dict[str, Look]:
        """Look at some documents; those of sources that do not feed the collection are left out."""
        keys = {document: DocumentKey(self.collection, document) for document in documents}
        before = self._past.entries(list(keys.values()))
        held = self._sink.held(documents, closely=True)
        ours = {
            document: before.get(key)
            for document, key in keys.items()
            if self._is_ours(before.get(key), held.get(document))
        }
        files = self._files(ours)
        after = self._past.entries([keys[document] for document in ours])
        moved = self._past.parked_of(self.collection, list(ours))
        moved |= {document for document, entry in ours.items() if entry != after.get(keys[document])}
        looks = {}
        for document, entry in ours.items():
            found = self._faults(entry, held.get(document), files.get(document))
            looks[document] = Look(tuple(found), _mark(entry, found), document in moved)
        return looks

    def letters(self, documents: Sequence[str]) -> frozenset[str]:
        """Return those of these documents that have dead letters."""
        return self._past.letters_of(self.collection, documents)

    def owner(self, document: str) -> str | None:
        """Return the source that can be looked at and that a document of that id is of; None: none of them."""
        return next((source for source, survey in self._surveys.items() if survey.owns(document)), None)

    def _faults(self, entry: Entry | None, held: Held | None, file: Fault | None) -> list[Fault]:
        found = faults(entry, held, alone=self.feeds.alone(_source(entry, held)))
        return found if file is None else [*found, file]

    def _is_ours(self, entry: Entry | None, held: Held | None) -> bool:
        """Return whether a document is any source's that feeds the collection; one that nobody knows is."""
        source = _source(entry, held)
        strange = source not in self.feeds.sources and bool(source) and (entry is not None or self.feeds.shared)
        if strange:
            self.strangers[source] += 1
        return not strange

    def _files(self, entries: Mapping[str, Entry | None]) -> dict[str, Fault]:
        """Return what the sources that can be looked at say to some documents."""
        found: dict[str, Fault] = {}
        letters = self._past.letters_of(self.collection, list(entries))
        for source, survey in self._surveys.items():
            documents = [document for document in entries if survey.owns(document)]
            seens = self._past.seen_of(source, self.collection, documents)
            for document in documents:
                try:
                    fault = fault_of(
                        survey,
                        document,
                        entries[document],
                        seens.get(document),
                        source=source,
                        failed=document in letters,
                    )
                except UnavailableError as error:
                    self.unknown.setdefault(source, str(error))
                    continue
                if fault is not None:
                    found[document] = fault
        return found


@dataclass(frozen=True, slots=True)
class Counts:
    """What was gone over."""

    documents: int
    rows: int
    undecided: int
    """Documents that seem to differ, and that something was under way for all the time."""
    strangers: Mapping[str, int]
    """Documents of sources that do not feed the collection any more, by source: these were held against nothing."""
    unknown: Mapping[str, str]
    """Sources that could not be looked at, and why."""


def audit(
    looker: Looker,
    scratch: Scratch,
    beside: Beside | None,
    *,
    patience: float,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Counts:
    """Go over a collection, and note in ``scratch`` what differs.

    Args:
        looker: The collection.
        scratch: Gets the differences.
        beside: The daemon that is at work; None: none is.
        patience: Seconds to wait for documents that something is under way for, where a daemon is at work.
        wait: Waits so many seconds.
        clock: Runs forward.
    """
    scratch.begin()
    rows = 0
    for page in looker.there():
        rows += sum(page.values())
        scratch.add(page)
    documents = 0
    for looks in looker.looks(scratch.documents()):
        documents += len(looks)
        scratch.suspect({document: look.mark for document, look in looks.items() if look.faults})
    if scratch.suspected():
        if beside is not None:
            beside.look()
        if looker.feeds.shared:
            wait(AT_REST)
        deadline = clock() + patience
        while not _settle(looker, scratch, beside) and beside is not None and clock() < deadline:
            wait(AT_REST if looker.feeds.shared else PAUSE)
    return Counts(documents, rows, scratch.suspected(), looker.strangers, looker.unknown)


def _settle(looker: Looker, scratch: Scratch, beside: Beside | None) -> bool:
    """Look at the suspects again; return whether all of them are decided."""
    for page in scratch.suspects():
        looks, busy = look_at_rest(looker, beside, page)
        again = {document: look.mark for document, look in looks.items() if look.faults}
        found = {document: looks[document].faults for document, mark in again.items() if mark == page[document]}
        for document, wrong in found.items():
            scratch.found(looker.collection, document, wrong)
        scratch.suspect(again)
        scratch.clear([document for document in page if document not in busy and document not in again])
        scratch.clear(found)
    return not scratch.suspected()


def look_at_rest(
    looker: Looker, beside: Beside | None, documents: Iterable[str]
) -> tuple[dict[str, Look], frozenset[str]]:
    """Look at documents that nothing is under way for, neither before the look nor after it.

    Returns:
        The looks, and the documents that something is under way for.
    """
    wanted = list(documents)
    busy = set(beside.unsettled(looker.collection, wanted, ())) if beside is not None else set[str]()
    quiet = [document for document in wanted if document not in busy]
    looks = looker.look(quiet) if quiet else {}
    busy |= {document for document, look in looks.items() if look.moved}
    if beside is not None and looks:
        files = [document for document, look in looks.items() if any(fault.of_file for fault in look.faults)]
        busy |= beside.unsettled(looker.collection, list(looks), files)
    return {document: look for document, look in looks.items() if document not in busy}, frozenset(busy)


def _mark(entry: Entry | None, found: Sequence[Fault]) -> bytes:
    version = "" if entry is None else f"{entry.version.number} {entry.version.domain}"
    said = [version, *([fault.kind.value, fault.chunk_id, fault.detail] for fault in found)]
    return hashlib.sha256(canonical_json(said)).digest()[:16]


def _source(entry: Entry | None, held: Held | None) -> str:
    """Return whose a document is, as far as is known."""
    if entry is not None:
        return entry.source
    return held.source if held is not None else ""


def _pages(documents: Iterable[str]) -> Iterator[dict[str, int]]:
    """Yield documents without rows, in pages."""
    page: dict[str, int] = {}
    for document in documents:
        page[document] = 0
        if len(page) >= PAGE:
            yield page
            page = {}
    yield page
