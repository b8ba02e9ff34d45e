"""Write: windows of rows to Milvus, in an order that leaves no moment without the document.

For each version: the ledger ahead (what is about to be touched becomes doubtful), then new rows, then rewrites, then
deletes; the ledger's final entry is part of the outcome, and settle stores it. Rows of many documents share requests.
A version that fails before its rewrites takes its new rows back, so that the old version stays searchable, whole and
alone.

An atomic swap by a "current version" filter was turned down: every reader would have to know about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ingestd.errors import DocumentError, TransientError
from ingestd.model import Abandoned, Embedded, Entry, Op, Outcome, Stage, Verdict, Version
from ingestd.stages._failing import failed, isolate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ingestd.model import Chunked, ChunkId, DocumentKey, Row
    from ingestd.ports import Ledger, Patience, Sink

R = TypeVar("R")

RUN = 1_000
"""Rows of one call: it is made again from its beginning when it fails."""

BEFORE_ALL = -(2**63)
"""A version's number that every other one comes after: 0 is an offset."""


@dataclass(slots=True)
class _Open:
    """A version that is being written."""

    chunked: Chunked
    before: Entry
    """What the ledger goes back to if this version fails."""
    written: list[ChunkId] = field(default_factory=list)
    """New rows that may be in Milvus by now."""
    missing: set[ChunkId] = field(default_factory=set)
    """Rows that the ledger knew, and that were not there."""
    error: DocumentError | TransientError | None = None
    rewriting: bool = False
    """Rows of the old version were touched: it cannot be had back."""


class _Piece(NamedTuple):
    document: _Open
    row: Row


class Write:
    """The last stage.

    Args:
        sink: The collection.
        ledger: Written ahead of the collection.
        fingerprint: Of the collection's processing.
        patience: Holds on to a batch while Milvus or the state is away.
    """

    def __init__(self, sink: Sink, ledger: Ledger, *, fingerprint: str, patience: Patience) -> None:
        self._sink = sink
        self._ledger = ledger
        self._fingerprint = fingerprint
        self._patience = patience
        self._open: dict[DocumentKey, _Open] = {}

    def process(self, batch: Sequence[Embedded | Abandoned]) -> Iterator[Outcome]:
        """Yield the outcome of each document whose last window is in the batch."""
        windows = [item for item in batch if isinstance(item, Embedded)]
        self._begin([window for window in windows if window.first])
        self._upsert(windows)
        ended = [self._open.pop(window.event.key) for window in windows if window.last]
        self._rewrite([document for document in ended if document.error is None])
        self._delete([document for document in ended if document.error is None])
        yield from self._outcomes(ended)
        for item in batch:
            if isinstance(item, Abandoned):
                document = self._open.pop(item.chunked.event.key)
                yield from self._give_up([document], {id(document): item.outcome})

    def _begin(self, windows: Sequence[Embedded]) -> None:
        """Write the ledger ahead: from here on these versions may be in Milvus in part."""
        ahead = []
        for window in windows:
            chunked = window.chunked
            before = chunked.extracted.entry or _nothing(chunked)
            self._open[chunked.event.key] = _Open(chunked, before)
            touched = {row.id for row in (*chunked.new, *chunked.rewritten)} | set(chunked.stale)
            if touched:
                ahead.append(replace(before, present=dict(chunked.kept), doubtful=frozenset(touched)))
        if ahead:
            self._hold(lambda: self._ledger.write_ahead(ahead))

    def _upsert(self, windows: Sequence[Embedded]) -> None:
        pieces = [_Piece(self._open[window.event.key], row) for window in windows for row in window.rows]
        pieces = [piece for piece in pieces if piece.document.error is None]
        for document, row in pieces:
            document.written.append(row.id)
        self._each(pieces, self._sink.upsert)

    def _rewrite(self, documents: Sequence[_Open]) -> None:
        pieces = [_Piece(document, row) for document in documents for row in document.chunked.rewritten]
        for document in documents:
            document.rewriting = bool(document.chunked.rewritten)
        by_id = {piece.row.id: piece.document for piece in pieces}
        for missing in self._each(pieces, self._sink.rewrite):
            for chunk_id in missing:
                by_id[chunk_id].missing.add(chunk_id)

    def _delete(self, documents: Sequence[_Open]) -> None:
        self._remove(
            [chunk_id for document in documents if not document.missing for chunk_id in document.chunked.stale]
        )

    def _outcomes(self, documents: Sequence[_Open]) -> Iterator[Outcome]:
        bad = [document for document in documents if document.error is not None]
        for document in documents:
            if document.missing and document.error is None:
                yield self._again(document)
            elif document.error is None:
                yield self._done(document)
        if bad:
            reasons = {}
            for document in bad:
                extracted = document.chunked.extracted
                if document.error is not None:
                    reasons[id(document)] = failed(extracted.event, Stage.WRITE, document.error, extracted.content)
            yield from self._give_up(bad, reasons)

    def _done(self, document: _Open) -> Outcome:
        chunked, extracted = document.chunked, document.chunked.extracted
        deleted = chunked.event.op is Op.DELETE
        rows = (*chunked.new, *chunked.rewritten)
        entry = Entry(
            key=chunked.event.key,
            source=chunked.event.source,
            version=extracted.version,
            fingerprint=self._fingerprint,
            content=extracted.digest,
            present={**chunked.kept, **{row.id: row.digest() for row in rows}},
            deleted=deleted,
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
        entry = replace(document.before, present=dict(chunked.kept), doubtful=frozenset(touched))
        error = TransientError(
            f"{len(document.missing)} of the chunks that the ledger knows were not in Milvus; they are embedded again",
            wait=0.0,
        )
        return replace(failed(chunked.event, Stage.WRITE, error, chunked.extracted.content), entry=entry)

    def _give_up(self, documents: Sequence[_Open], reasons: dict[int, Outcome]) -> Iterator[Outcome]:
        """Take back what these versions wrote, and yield why they failed, with the ledger as it was before them.

        Ids that were doubtful before stay so, rows and all: they may be the old version's.
        """
        ids = [
            chunk_id
            for document in documents
            for chunk_id in document.written
            if chunk_id not in document.before.doubtful
        ]
        self._remove(ids)
        for document in documents:
            entry = document.before
            if document.rewriting:
                touched = frozenset(row.id for row in document.chunked.rewritten)
                present = {key: value for key, value in entry.present.items() if key not in touched}
                entry = replace(entry, present=present, doubtful=entry.doubtful | touched)
            yield replace(reasons[id(document)], entry=entry)

    def _each(self, pieces: Sequence[_Piece], call: Callable[[Sequence[Row]], R]) -> list[R]:
        """Make a call for rows of many documents; a row that is refused fails its document alone."""
        results: list[R] = []
        held = self._holding(call)
        for start in range(0, len(pieces), RUN):
            for run, result in isolate(pieces[start : start + RUN], lambda run: held([piece.row for piece in run])):
                if isinstance(result, DocumentError | TransientError):
                    run[0].document.error = result
                else:
                    results.append(result)
        return results

    def _remove(self, ids: Sequence[ChunkId]) -> None:
        for start in range(0, len(ids), RUN):
            run = ids[start : start + RUN]
            self._hold(partial(self._sink.delete, run))

    def _holding(self, call: Callable[[Sequence[Row]], R]) -> Callable[[Sequence[Row]], R]:
        return lambda rows: self._patience.hold(lambda: call(rows), self._sink.probe)

    def _hold(self, call: Callable[[], R]) -> R:
        """Make a call that no document can be blamed for: while it fails, everything behind it waits."""
        return self._patience.hold(call, None)


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
