"""The daemon's part in a repair: a document is looked at once more while its lane is held, and then put right.

Rows that no version of their document has are deleted by key, here: nothing else touches the document meanwhile. What
has to be written, or written anew, comes again through its source, the retry queue and the pipeline: the ledger is told
first which rows not to rely on, so that just those are embedded again, and the old ones are deleted last. Where other
members write the collection, nothing is done here but to have the record tried again: whoever holds its partition looks
closely at what Milvus has (``stages.recall``), under its lease. Writing rows from here was turned down: every promise
would have to be kept a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from ingestd.audit.compare import corrected, faults, latest_of, strays, trusted
from ingestd.model import BEFORE_ALL, EXPLICIT, DocumentKey, Entry, Failure, Op, Parked, Stage, Version, is_chunk_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ingestd.audit.compare import Fault
    from ingestd.audit.looking import Feeds
    from ingestd.model import Again, Held
    from ingestd.ports import Clock, Sink, Source, Store

BYTES = 16 * 1024 * 1024
"""Of records that are held at a time, between their topic and the retry queue."""

log = structlog.get_logger(__name__)


class Done(StrEnum):
    """What became of a document that was to be mended."""

    SOUND = "sound"
    """Nothing is wrong with it (any more)."""
    BUSY = "busy"
    """Something is under way for it: it is to be looked at again."""
    DELETED = "deleted"
    """Rows that it should not have are gone."""
    SENT = "sent"
    """It comes again, and is mended by that."""
    LEFT = "left"
    """It cannot be mended, and ``why``."""


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of a document, and why."""

    done: Done
    why: str = ""


class Lanes(Protocol):
    """What is asked of a collection's lanes (``engine.lanes``)."""

    def hold(self, keys: Iterable[DocumentKey]) -> frozenset[DocumentKey]:
        """Take free lanes."""
        ...

    def let_go(self, keys: Iterable[DocumentKey]) -> None:
        """Give them back."""
        ...


@dataclass(frozen=True, slots=True)
class _State:
    """A document as it is."""

    entry: Entry | None
    held: Held | None
    faults: list[Fault]
    alone: bool
    file: bool
    """Whether its file differs."""
    stranger: str = ""
    """The source that its rows name, where nobody here knows the document and that source feeds nothing here."""

    @property
    def is_there(self) -> bool:
        """Whether the ledger says that the document is there."""
        return self.entry is not None and not self.entry.deleted

    @property
    def needs_source(self) -> bool:
        """Whether something has to be written."""
        if not self.alone:
            return bool(self.faults)
        if self.file or self.entry is None or self.entry.deleted:
            return self.file
        wrong = {fault.chunk_id for fault in self.faults}
        return bool(self.entry.doubtful or wrong & {*self.entry.present, ""})

    @property
    def version(self) -> Version | None:
        """The version to be brought again; None: nothing says which, or any will do."""
        if self.alone:
            return None if self.entry is None else self.entry.version
        if self.entry is not None and trusted(self.entry, self.held):
            return self.entry.version
        if self.held is None or (self.held.rows and not self.held.firsts):
            return None  # rows that an edit left alone say an older version than the document has
        return latest_of(self.held)

    @property
    def wanted(self) -> Version:
        """What its source is asked for."""
        return self.version or Version(BEFORE_ALL, "")


class _Way(NamedTuple):
    """How a document is brought again."""

    source: str
    again: Again


class Mender:
    """Mends documents of one collection.

    Args:
        sink: The collection.
        store: The state.
        lanes: The collection's.
        feeds: Who writes it.
        sources: Those of the daemon that feed it, by name.
        requeued: Told how many events more wait in the retry queue, by source.
        clock: The daemon's.
        forgets_after: Seconds after which other members' deletes are forgotten.
    """

    def __init__(
        self,
        sink: Sink,
        store: Store,
        lanes: Lanes,
        *,
        feeds: Feeds,
        sources: Mapping[str, Source],
        requeued: Callable[[str, int], None],
        clock: Clock,
        forgets_after: float,
    ) -> None:
        self._sink = sink
        self._store = store
        self._lanes = lanes
        self._feeds = feeds
        self._sources = sources
        self._requeued = requeued
        self._clock = clock
        self._forgets_after = forgets_after

    def mend(self, documents: Sequence[str], files: Collection[str]) -> dict[str, Mended]:
        """Mend documents, or have them mended; return what became of each.

        Args:
            documents: Their ids: few enough for one question to Milvus.
            files: Those of them whose files differ from what was written.

        Raises:
            UnavailableError: Milvus, the state or a source does not answer; to do it again is harmless.
        """
        # Before the lanes are held: brokers may take seconds.
        ways, asked = self._again(self._states(documents, files))
        keys = [DocumentKey(self._sink.collection, document) for document in documents]
        lanes = self._lanes.hold(keys)
        try:
            parked = self._store.parked_of(self._sink.collection, documents)
            free = [key.document_id for key in keys if key in lanes and key.document_id not in parked]
            found = self._put_right(self._states(free, files), ways, asked)
        finally:
            self._lanes.let_go(lanes)
        log.info("an audit has documents mended", collection=self._sink.collection, documents=len(found))
        return {document: found.get(document, Mended(Done.BUSY)) for document in documents}

    def _states(self, documents: Sequence[str], files: Collection[str]) -> dict[str, _State]:
        keys = {document: DocumentKey(self._sink.collection, document) for document in documents}
        entries = self._store.entries(list(keys.values()))
        held = self._sink.held(documents, closely=True) if documents else {}
        states = {}
        for document, key in keys.items():
            entry, there = entries.get(key), held.get(document)
            source = entry.source if entry is not None else ("" if there is None else there.source)
            alone = self._feeds.alone(source) or document in files
            wrong = faults(entry, there, alone=alone)
            stranger = source if entry is None and source not in self._feeds.sources else ""
            states[document] = _State(entry, there, wrong, alone, document in files, stranger)
        return states

    def _again(self, states: Mapping[str, _State]) -> tuple[dict[str, _Way], dict[str, Version]]:
        """Return what brings documents again, as far as sources can, and the versions that they were asked for."""
        found: dict[str, _Way] = {}
        asked: dict[str, Version] = {}
        later: set[str] = set()
        for name, source in self._sources.items():
            wanted = {
                document: state.wanted
                for document, state in states.items()
                if state.needs_source and (state.entry is None or state.entry.source == name)
            }
            size = 0
            for again in source.again(wanted) if wanted else ():
                found[again.document_id] = _Way(name, again)
                size += 0 if again.record is None else again.record.size
                if size > BYTES:  # the others another time
                    later |= wanted.keys()
                    break
            asked |= wanted
        return found, {document: asked[document] for document in asked.keys() - (later - found.keys())}

    def _put_right(
        self, states: Mapping[str, _State], ways: Mapping[str, _Way], asked: Mapping[str, Version]
    ) -> dict[str, Mended]:
        done: dict[str, Mended] = {}
        entries: list[Entry] = []
        parked: list[Parked] = []
        gone: dict[str, _State] = {}
        for document, state in states.items():
            way = ways.get(document)
            if not state.faults and not state.file:
                done[document] = Mended(Done.SOUND)
                continue
            if state.needs_source and asked.get(document) != state.wanted:
                # Not asked for, or it was written meanwhile: what was fetched is a version that it no longer has.
                done[document] = Mended(Done.BUSY)
                continue
            why = _why_gone(state) if way is None else self._refused(state, way.again)
            if state.needs_source and way is not None and not why:
                done[document] = Mended(Done.SENT)
                parked.append(self._parked(document, state, way))
                if state.alone:
                    entry = state.entry or self._nothing(document, way.source)
                    entries.append(corrected(entry, state.held, state.faults))
                continue
            if state.stranger:
                done[document] = Mended(Done.LEFT, _why_strange(state.stranger))
                continue
            done[document] = Mended(Done.LEFT, why) if state.needs_source else Mended(Done.DELETED)
            if state.alone:
                gone[document] = state
        self._delete(gone)
        for source, count in self._store.mend(entries, parked).items():
            self._requeued(source, count)
        return done

    def _refused(self, state: _State, again: Again) -> str:
        """Return why a document is not brought again, though it could be; empty: it is."""
        record = again.record
        if state.alone or record is None or state.held is not None:
            return ""
        if record.timestamp >= (self._clock.time() - self._forgets_after) * 1000:
            return ""
        return (
            f"nothing of it is in Milvus, and its record {record.position} is older than milvus.tombstone_days, so a "
            "delete of it may have been forgotten; produce the document again if it should be there"
        )

    def _parked(self, document: str, state: _State, way: _Way) -> Parked:
        now = self._clock.time()
        reason = state.faults[0].detail if state.faults else "its file differs from what was written"
        return Parked(
            DocumentKey(self._sink.collection, document),
            Op.UPSERT,
            way.source,
            way.again.position,
            attempt=1,
            first_failed_at=now,
            due_at=now,
            failure=Failure(Stage.WRITE, "AuditDifference", reason),
            version=None if way.again.record is None else state.version,
            record=way.again.record,
        )

    def _nothing(self, document: str, source: str) -> Entry:
        """Return the entry of a document that the ledger does not know: any version comes after it."""
        version = Version(BEFORE_ALL, source)
        return Entry(DocumentKey(self._sink.collection, document), source, version, "", "", deleted=True)

    def _delete(self, states: Mapping[str, _State]) -> None:
        """Delete the rows that these documents should not have, the ledger ahead."""
        rows = {document: strays(state.entry, state.held) for document, state in states.items()}
        known = [(state.entry, state, rows[document]) for document, state in states.items() if state.entry is not None]
        ids = sorted({chunk_id for found in rows.values() for chunk_id in found})
        if ids:
            ahead = [
                replace(entry, doubtful=entry.doubtful | frozenset(filter(is_chunk_id, found)))
                for entry, _state, found in known
                if found
            ]
            self._store.write_ahead(ahead)
            self._sink.delete(ids)
        settled = []
        for entry, state, found in known:
            left = corrected(entry, state.held, state.faults)
            settled.append(replace(left, doubtful=frozenset() if entry.deleted else left.doubtful - found))
        self._store.write_ahead(settled)


def _why_strange(source: str) -> str:
    """Return why rows that this daemon knows nothing of are not deleted, and how to do it."""
    return (
        f"its rows are of {source!r}, which does not feed this collection: another daemon may have written them; "
        f"ingestd forget --source {source} deletes them"
    )


def _why_gone(state: _State) -> str:
    """Return why nothing brings a document again, and what to do."""
    version = state.version
    cure = "produce the document again"
    if version is None:
        return f"nothing says which version the document has; {cure}"
    if state.entry is not None and version.domain == state.entry.source:
        return "its file is neither in the folder nor where files are moved to; put it back"
    if version.domain == EXPLICIT:
        return f"version {version.number} is its producer's own and does not say which record it was; {cure}"
    return f"the record of version {version.number} ({version.domain}) is not in its topic any more; {cure}"
