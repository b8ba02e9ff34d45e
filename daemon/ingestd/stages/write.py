"""Write: windows of rows to Milvus, in an order that leaves no moment without the document.

For each version: the ledger ahead (what is about to be touched becomes doubtful), then new rows, then rewrites, then
deletes; the ledger's final entry is part of the outcome, and settle stores it. Rows of many documents share requests.
A version that fails before its rewrites takes its new rows back, so that the old version stays searchable, whole and
alone.

An atomic swap by a "current version" filter was turned down: every reader would have to know about it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ingestd.errors import DocumentError, TransientError
from ingestd.model import BEFORE_ALL, Abandoned, Embedded, Entry, Op, Outcome, Stage, Tombstone, Verdict, Version
from ingestd.ports import always
from ingestd.stages._failing import failed, isolate
from ingestd.stages._reading import tenure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ingestd.model import Chunked, ChunkId, DocumentKey, Lease, Row
    from ingestd.ports import Ledger, Patience, Sink

R = TypeVar("R")

RUN = 1_000
"""Rows of one call: it is made again from its beginning when it fails."""
PROMPT = 1.0
"""Seconds within which a call's leases are entered, all of them. A rebalance waits longer than that for a call."""


@dataclass(slots=True)
class _Open:
    """A version that is being written."""

    chunked: Chunked
    written: list[ChunkId] = field(default_factory=list)
    """New rows that may be in Milvus by now."""
    missing: set[ChunkId] = field(default_factory=set)
    """Rows that the ledger knew, and that were not there."""
    error: DocumentError | TransientError | None = None
    rewriting: bool = False
    """Rows of the old version were touched: it cannot be had back."""
    lost: bool = False
    """Its lease has ended: nothing more is done to it, the next owner finds out what is there."""

    @property
    def before(self) -> Entry:
        """What the ledger goes back to if this version fails."""
        return self.chunked.extracted.entry or _nothing(self.chunked)

    @property
    def goes_on(self) -> bool:
        """Whether nothing has ended it so far."""
        return self.error is None and not self.lost


class _LeaseEnded(Exception):  # noqa: N818 - a verdict, not an error
    """Some of the documents of a call are another member's by now; they are marked as lost, and no more is sent."""


class _Piece(NamedTuple):
    document: _Open
    row: Row


class _Stale(NamedTuple):
    document: _Open
    id: ChunkId


class Write:
    """The last stage.

    Args:
        sink: The collection.
        ledger: Written ahead of the collection.
        fingerprint: Of the collection's processing.
        shared: Whether other processes write the collection too: what was written under a lease is then never relied
            on once that has ended, in whatever state it was left, and the ledger need not say ahead what is touched.
        patience: Holds on to a batch while Milvus or the state is away.
    """

    def __init__(
        self, sink: Sink, ledger: Ledger, *, fingerprint: str, patience: Patience, shared: bool = False
    ) -> None:
        self._sink = sink
        self._ledger = ledger
        self._fingerprint = fingerprint
        self._patience = patience
        self._shared = shared
        self._open: dict[DocumentKey, _Open] = {}

    def process(self, batch: Sequence[Embedded | Abandoned], flush: Callable[[], None] = always) -> Iterator[Outcome]:
        """Yield the outcome of each document whose last window is in the batch."""
        windows = [item for item in batch if isinstance(item, Embedded)]
        self._begin([window for window in windows if window.first])
        self._upsert(windows)
        ended = [self._open.pop(window.event.key) for window in windows if window.last]
        self._rewrite([document for document in ended if document.goes_on])
        self._delete([document for document in ended if document.goes_on])
        yield from self._outcomes(ended, flush)
        for item in batch:
            if isinstance(item, Abandoned):
                document = self._open.pop(item.chunked.event.key)
                flush()
                yield from self._give_up([document], {id(document): item.outcome})

    def _begin(self, windows: Sequence[Embedded]) -> None:
        """Write the ledger ahead: from here on these versions may be in Milvus in part."""
        ahead = []
        for window in windows:
            chunked = window.chunked
            document = self._open[chunked.event.key] = _Open(chunked)
            if self._shared and chunked.event.lease is not None:
                continue
            touched = {row.id for row in (*chunked.new, *chunked.rewritten)} | set(chunked.stale)
            if touched:
                tenure = tenure_of(chunked.event)
                kept, doubtful = dict(chunked.kept), frozenset(touched)
                ahead.append(replace(document.before, present=kept, doubtful=doubtful, tenure=tenure))
        if ahead:
            self._hold(lambda: self._ledger.write_ahead(ahead))

    def _upsert(self, windows: Sequence[Embedded]) -> None:
        pieces = [_Piece(self._open[window.event.key], row) for window in windows for row in window.rows]
        pieces = [piece for piece in pieces if piece.document.goes_on]
        for document, row in pieces:
            document.written.append(row.id)
        self._each(pieces, lambda rows, allow: self._sink.upsert(rows, allow=allow))

    def _rewrite(self, documents: Sequence[_Open]) -> None:
        pieces = [_Piece(document, row) for document in documents for row in document.chunked.rewritten]
        for document in documents:
            document.rewriting = bool(document.chunked.rewritten)
        by_id = {piece.row.id: piece.document for piece in pieces}
        for missing in self._each(pieces, lambda rows, allow: self._sink.rewrite(rows, allow=allow)):
            for chunk_id in missing:
                by_id[chunk_id].missing.add(chunk_id)

    def _delete(self, documents: Sequence[_Open]) -> None:
        # Deletes, and versions without a chunk: nothing else would say that they were. Before the rows go: whoever
        # finds some of them knows that they are to be deleted, and by which version.
        graves = [document for document in documents if not document.chunked.digests]
        self._run(graves, lambda some, _allow: self._sink.bury([_tombstone(document) for document in some]))
        self._remove(
            [
                _Stale(document, chunk_id)
                for document in documents
                if document.goes_on and not document.missing
                for chunk_id in document.chunked.stale
            ]
        )

    def _outcomes(self, documents: Sequence[_Open], flush: Callable[[], None]) -> Iterator[Outcome]:
        bad = [document for document in documents if document.error is not None and not document.lost]
        for document in documents:
            if document.lost:
                yield Outcome(document.chunked.event, Verdict.RETURNED)
            elif document.missing and document.error is None:
                yield self._again(document)
            elif document.error is None:
                yield self._done(document)
        if bad:
            reasons = {}
            for document in bad:
                extracted = document.chunked.extracted
                if document.error is not None:
                    reasons[id(document)] = failed(extracted.event, Stage.WRITE, document.error, extracted.content)
            flush()
            yield from self._give_up(bad, reasons)

    def _done(self, document: _Open) -> Outcome:
        chunked, extracted = document.chunked, document.chunked.extracted
        deleted = chunked.event.op is Op.DELETE
        entry = Entry(
            key=chunked.event.key,
            source=chunked.event.source,
            version=extracted.version,
            fingerprint=self._fingerprint,
            content=extracted.digest,
            present=chunked.digests,
            deleted=deleted,
            tenure=tenure_of(chunked.event),
        )
        return Outcome(
            chunked.event,
            Verdict.DELETED if deleted else Verdict.WRITTEN,
            entry=entry,
            content=extracted.content,
            embedded=len(chunked.new),
            reused=len(chunked.kept) + len(chunked.rewritten),
        )

    def _again(self, document: _Open) -> Outcome:
        """Return the outcome of a version for which the ledger was wrong: try again at once, knowing better."""
        chunked = document.chunked
        touched = {row.id for row in (*chunked.new, *chunked.rewritten)} | set(chunked.stale)
        tenure = tenure_of(chunked.event)
        entry = replace(document.before, present=dict(chunked.kept), doubtful=frozenset(touched), tenure=tenure)
        error = TransientError(
            f"{len(document.missing)} of the chunks that the ledger knows were not in Milvus; they are embedded again",
            wait=0.0,
        )
        return replace(failed(chunked.event, Stage.WRITE, error, chunked.extracted.content), entry=entry)

    def _give_up(self, documents: Sequence[_Open], reasons: dict[int, Outcome]) -> Iterator[Outcome]:
        """Take back what these versions wrote, and yield why they failed, with the ledger as it was before them.

        Ids that were doubtful before stay so, rows and all: they may be the old version's.
        """
        gone = []
        for document in documents:
            if not document.lost:
                before = document.before
                ids = {*document.written} - (before.doubtful - before.begun) | before.begun
                gone += [_Stale(document, chunk_id) for chunk_id in sorted(ids)]
        self._remove(gone)
        for document in documents:
            if document.lost:
                yield Outcome(document.chunked.event, Verdict.RETURNED)
                continue
            before = document.before
            left = before.doubtful - before.begun
            entry = replace(before, doubtful=left, begun=frozenset(), tenure=tenure_of(document.chunked.event))
            if document.rewriting:
                touched = frozenset(row.id for row in document.chunked.rewritten)
                present = {key: value for key, value in entry.present.items() if key not in touched}
                entry = replace(entry, present=present, doubtful=entry.doubtful | touched)
            yield replace(reasons[id(document)], entry=entry)

    def _each(self, pieces: Sequence[_Piece], call: Callable[[Sequence[Row], Callable[[], None]], R]) -> list[R]:
        """Make a call for rows of many documents; a row that is refused fails its document alone."""
        results: list[R] = []

        def held(run: Sequence[_Piece]) -> R:
            rows = [piece.row for piece in run]
            documents = [piece.document for piece in run]
            return self._patience.hold(lambda: _leased(documents, partial(call, rows)), self._sink.probe)

        for start in range(0, len(pieces), RUN):
            run = [piece for piece in pieces[start : start + RUN] if not piece.document.lost]
            while run:
                try:
                    for part, result in isolate(run, held):
                        if isinstance(result, DocumentError | TransientError):
                            part[0].document.error = result
                        else:
                            results.append(result)
                except _LeaseEnded:
                    run = [piece for piece in run if not piece.document.lost]
                else:
                    break
        return results

    def _remove(self, stale: Sequence[_Stale]) -> None:
        for start in range(0, len(stale), RUN):
            some = stale[start : start + RUN]
            ids: dict[int, list[ChunkId]] = {}
            for document, chunk_id in some:
                ids.setdefault(id(document), []).append(chunk_id)
            documents = {id(document): document for document, _ in some}.values()

            def delete(
                left: Sequence[_Open], allow: Callable[[], None], ids: Mapping[int, list[ChunkId]] = ids
            ) -> None:
                self._sink.delete([chunk_id for document in left for chunk_id in ids[id(document)]], allow=allow)

            self._run(list(documents), delete)

    def _run(self, documents: Sequence[_Open], call: Callable[[Sequence[_Open], Callable[[], None]], None]) -> None:
        """Make a call for documents as long as they are ours. None of them can be blamed for its failing."""
        while left := [document for document in documents if not document.lost]:
            try:
                self._hold(partial(_leased, left, partial(call, left)))
            except _LeaseEnded:
                continue
            return

    def _hold(self, call: Callable[[], R]) -> R:
        """Make a call that no document can be blamed for: while it fails, everything behind it waits."""
        return self._patience.hold(call, None)


def _leased(documents: Sequence[_Open], call: Callable[[Callable[[], None]], R]) -> R:
    """Make a call under the leases of all its documents.

    The call may be several requests, and a read before them: a process that is stopped in between must not go on with
    what it was allowed before. So the call gets a function for asking again, before each request.

    Raises:
        _LeaseEnded: No call was made, or not all of its requests.
    """
    leases = _Leases(documents)
    try:
        leases.enter()
        return call(leases.renew)
    finally:
        leases.leave()


class _Leases:
    """The leases of a call's documents.

    Args:
        documents: They are marked as lost when their lease has ended.
    """

    def __init__(self, documents: Sequence[_Open]) -> None:
        self._documents = documents
        events = (document.chunked.event for document in documents)
        self._leases = {event.lease.id: event.lease for event in events if event.lease is not None}
        self._entered: dict[str, Lease] = {}

    def enter(self) -> None:
        """Enter all of them.

        Raises:
            _LeaseEnded: Some have ended.
        """
        while True:
            began = time.monotonic()
            for lease in self._leases.values():
                if lease.enter():
                    self._entered[lease.id] = lease
            if len(self._entered) < len(self._leases):
                for document in self._documents:
                    lease_of = document.chunked.event.lease
                    document.lost = document.lost or (lease_of is not None and lease_of.id not in self._entered)
                raise _LeaseEnded
            # One that had to wait for a rebalance may have kept the others for longer than theirs waited for them.
            if time.monotonic() - began < PROMPT and not any(lease.ended for lease in self._entered.values()):
                return
            self.leave()

    def renew(self) -> None:
        """Leave them, so that a rebalance that waits for us goes on, and enter them again."""
        self.leave()
        self.enter()

    def leave(self) -> None:
        """Leave what was entered."""
        while self._entered:
            self._entered.popitem()[1].leave()


def _tombstone(document: _Open) -> Tombstone:
    return Tombstone(document.chunked.event.key.document_id, document.chunked.extracted.version)


def _nothing(chunked: Chunked) -> Entry:
    """Return the entry of a document that is not there: a tombstone that any version comes after."""
    return Entry(
        key=chunked.event.key,
        source=chunked.event.source,
        version=Version(BEFORE_ALL, chunked.extracted.version.domain),
        fingerprint="",
        content="",
        deleted=True,
    )
