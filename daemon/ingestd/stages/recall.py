"""Recall: what is known of an event's document, and whether the event is still worth anything.

Decided here: whether the event is older than what is applied (superseded), whether it is that very version
(unchanged), and whether it is allowed at all. A batch at a time, because where the ledger cannot be relied on Milvus
is asked, and one question for hundreds of documents costs as much as one for a single one.

The ledger is this process's own memory. Of a collection that only this process writes it is the truth; of one that
several members of a consumer group write it is that only for what was written under the lease that the event has, and
of a document whose records are all in that lease's partition: any other member may have written the rest since.
(Keeping every document's state in Milvus alone was turned down: it would cost a question for each event.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.errors import DocumentError
from ingestd.model import (
    BEFORE_ALL,
    EXPLICIT,
    Document,
    Entry,
    Extracted,
    Op,
    Outcome,
    Recalled,
    Stage,
    Verdict,
    Version,
    is_chunk_id,
)
from ingestd.ports import always
from ingestd.stages._failing import failed
from ingestd.stages._reading import read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ingestd.model import ChunkId, Content, DocumentKey, Event, Held
    from ingestd.ports import Clock, Ledger, Patience, Sink


class Recall:
    """The first stage.

    Args:
        ledger: What is applied, as far as this process did it.
        sink: What is there, whoever wrote it.
        fingerprint: Of the collection's processing.
        clock: Gives versions to events that bring none.
        shared: Whether other processes write the collection too.
        shared_ids: Whether two sources may write the same document.
        patience: Holds on to a batch while the state or Milvus is away.
        on_crossed: Called with the source's name when an event's version does not compare with the one applied.
    """

    def __init__(
        self,
        ledger: Ledger,
        sink: Sink,
        *,
        fingerprint: str,
        clock: Clock,
        shared: bool,
        shared_ids: bool,
        patience: Patience,
        on_crossed: Callable[[str], None] = lambda _source: None,
    ) -> None:
        self._ledger = ledger
        self._sink = sink
        self._fingerprint = fingerprint
        self._clock = clock
        self._shared = shared
        self._shared_ids = shared_ids
        self._patience = patience
        self._on_crossed = on_crossed

    def process(
        self, batch: Sequence[Event], flush: Callable[[], None] = always
    ) -> Iterator[Recalled | Extracted | Outcome]:
        """Yield what is known, the text where it is at hand, or an Outcome, for each event."""
        del flush  # nothing here takes long behind a result
        entries = self._entries(batch)
        for event in batch:
            yield self._recall(event, entries.get(event.key))

    def _entries(self, batch: Sequence[Event]) -> Mapping[DocumentKey, Entry]:
        keys = [event.key for event in batch]
        entries = dict(self._patience.hold(lambda: self._ledger.entries(keys), None))
        doubted = [event for event in batch if self._is_doubted(event, entries.get(event.key))]
        for again in (False, True):
            events = [event for event in doubted if event.again is again]
            held = self._held([event.key.document_id for event in events], closely=again) if events else {}
            for event in events:
                entry = entry_of(event, held.get(event.key.document_id))
                if entry is None:
                    entries.pop(event.key, None)
                else:
                    entries[event.key] = entry
        return entries

    def _held(self, documents: Sequence[str], *, closely: bool) -> Mapping[str, Held]:
        """Ask Milvus. What an operator has tried again may be to mend rows that only a close look shows to be wrong."""
        return self._patience.hold(lambda: self._sink.held(documents, closely=closely), None)

    def _is_doubted(self, event: Event, entry: Entry | None) -> bool:
        if not self._shared or event.lease is None or event.lease.ended or event.fault is not None:
            return False
        if entry is None or entry.tenure != event.lease.id or event.again:
            return True
        # Records that are keyed otherwise come in other partitions too, and a producer's own versions in any.
        return not event.keyed or event.lease.lent or EXPLICIT in {entry.version.domain, *_domain(event)}

    def _recall(self, event: Event, entry: Entry | None) -> Recalled | Extracted | Outcome:
        if event.lease is not None and event.lease.ended:
            return Outcome(event, Verdict.RETURNED)
        if event.fault is not None:
            return Outcome(event, Verdict.DEAD_LETTERED, failure=event.fault)
        ended = self._admit(event, entry)
        if ended is not None:
            return ended
        version = event.version or self._next_version(event, entry)
        if event.op is Op.DELETE:
            return Extracted(event, version, entry, content=None, digest="", document=None)
        recalled = Recalled(event, version, entry)
        at_hand = None if event.payload is None else event.payload.at_hand
        if at_hand is not None and at_hand.text is not None:
            return read(recalled, self._fingerprint, _as_it_is, shared=self._shared)
        return recalled

    def _admit(self, event: Event, entry: Entry | None) -> Outcome | None:
        """Return the outcome of an event that must not, or need not, be processed."""
        if entry is None:
            return None
        if not self._shared_ids and not entry.deleted and entry.source != event.source:
            return _refused(
                event,
                f"{event.key.document_id} belongs to the source {entry.source!r} of the collection "
                f"{event.key.collection!r}; give the sources distinct ids, or set shared_ids = true on the collection",
            )
        if event.version is None or event.version.domain != entry.version.domain:
            return self._cross(event, entry)
        if event.version.number < entry.version.number:
            return Outcome(event, Verdict.SUPERSEDED)
        if event.version.number == entry.version.number and not entry.doubtful and self._is_current(entry):
            return Outcome(event, Verdict.UNCHANGED, reused=len(entry.present))
        return None

    def _cross(self, event: Event, entry: Entry) -> Outcome | None:
        """Judge an event whose version does not compare with the one that is applied: the later arrival wins."""
        if entry.version.number == BEFORE_ALL:
            return None  # nothing is: the first version failed
        if entry.version.domain == EXPLICIT:
            return _refused(
                event,
                f"{event.key.document_id} has versions of its producer's own (the last is {entry.version.number}), "
                f"and {event.position} brings none, so nothing says which is newer: send a version with every event "
                "of the document, deletes too",
            )
        if event.again:
            return Outcome(event, Verdict.SUPERSEDED)
        if event.version is not None:
            self._on_crossed(event.source)
        return None

    def _is_current(self, entry: Entry) -> bool:
        return entry.deleted or entry.fingerprint == self._fingerprint

    def _next_version(self, event: Event, entry: Entry | None) -> Version:
        """Return a version that is later than the last one, for a source that can only be looked at."""
        last = entry.version.number if entry is not None else 0
        return Version(max(last + 1, int(self._clock.time() * 1_000_000)), event.source)


def entry_of(event: Event, held: Held | None) -> Entry | None:
    """Return what Milvus says of an event's document in the ledger's terms; None: it knows nothing of it.

    Nothing there tells what the processing or the content was: the document is chunked again, and rows that turn out
    to be as they should be are left alone.
    """
    if held is None:
        return None
    version = _latest(held.versions, event)
    grave = held.tombstone
    if grave is not None and (version is None or _is_behind(version, grave)):
        # Rows of a delete that was not finished go with the next event.
        rows = frozenset(filter(is_chunk_id, held.rows))
        return Entry(event.key, held.source or event.source, grave, "", "", doubtful=rows, deleted=True)
    if grave is not None and event.version is not None and _is_behind(event.version, grave):
        # What it deleted is gone, and the rows are another domain's, and later: nothing up to it touches those.
        return Entry(event.key, held.source or event.source, grave, "", "", deleted=True)
    if version is None:
        return None
    begun = _begun(event, held)
    doubtful = frozenset(filter(is_chunk_id, begun | held.spoilt))
    present = {
        chunk_id: digest for chunk_id, digest in held.rows.items() if chunk_id not in doubtful and is_chunk_id(chunk_id)
    }
    return Entry(event.key, held.source, version, "", "", present=present, doubtful=doubtful, begun=begun & doubtful)


def _is_behind(version: Version, other: Version) -> bool:
    """Return whether two versions compare, and the first is no later."""
    return version.domain == other.domain and version.number <= other.number


def _begun(event: Event, held: Held) -> frozenset[ChunkId]:
    """Return the rows that an attempt at this very version left beside the old version's, whose first chunk stands."""
    if event.version is None or all(first == event.version for first in held.firsts):
        return frozenset()
    return frozenset(chunk_id for chunk_id, version in held.made.items() if version == event.version)


def _domain(event: Event) -> tuple[str, ...]:
    return () if event.version is None else (event.version.domain,)


def _latest(versions: frozenset[Version], event: Event) -> Version | None:
    """Return the version that a document's rows stand for, of those that they have.

    A producer's own versions are stronger than offsets: rows that an edit left alone may still have one of those.
    Otherwise what counts is the event's own domain.
    """
    domains = (EXPLICIT, event.version.domain if event.version is not None else EXPLICIT)
    for domain in domains:
        same = [version for version in versions if version.domain == domain]
        if same:
            return max(same)
    return max(versions, default=None)


def _as_it_is(content: Content) -> Document:
    return Document(content.text or "")


def _refused(event: Event, message: str) -> Outcome:
    return failed(event, Stage.SOURCE, DocumentError(message), None)
