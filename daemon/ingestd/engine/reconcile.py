"""Bring ledger and collection together before anything flows.

The ledger is bound to a collection by the random id in the collection's properties. Another id voids it, and so does
its own loss: it is rebuilt from the collection's rows, whose keys say what was embedded, so that nothing is embedded
twice. After an unclean end, on a new boot, or when the collection has another number of rows than the ledger knows
(Milvus Lite acknowledges before its data is on the disk), every key that the ledger knows is looked up before it is
relied on. Where keys are missing, or rows are left over of documents that the ledger has, one of the two is not what it
was: a backup was put back, or a power cut took the end. A row may then be there and be an older one, so nothing but
keys is believed any more: files are read again, and rows are written again with the vectors that they have. A power
cut may have taken nothing but rewrites, which leave every key where it was: so on a new boot the rows' digests are held
against the ledger's too. Rows of
documents that the ledger has not are said, and left to ``audit``: they may be another member's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from ingestd.engine._rows import gathered
from ingestd.model import UNKNOWN_DIGEST, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestd.ports import Ledger, Sink

KEYS = 1_000
"""Keys that are looked up at a time: about 0.1 s on Milvus Lite."""
DOCUMENTS = 200
"""Documents that are looked at a time, whatever number of rows they have."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was found."""

    rebuilt: int = 0
    """Documents whose entries were rebuilt from the collection."""
    missing: int = 0
    """Rows that the ledger knew, and that were not there."""
    made_anew: bool = False
    """It is another collection than the ledger was about."""


def reconcile(
    ledger: Ledger,
    sink: Sink,
    identity: str,
    *,
    unclean: bool,
    rebooted: bool = False,
    shared: bool = False,
    beat: Callable[[], None] = lambda: None,
) -> Reconciled:
    """Make the ledger's entries about a collection true.

    Args:
        ledger: The ledger.
        sink: The collection.
        identity: The collection's random id.
        unclean: Whether the last run did not end as it should, or the machine was started anew since.
        rebooted: Whether it is the latter: what was acknowledged may be gone then, not only what was under way.
        shared: Whether other members write the collection: what one wrote under a lease is then asked of Milvus by
            whoever has the lease next, and neither missing nor unknown rows of it are a sign of anything.
        beat: Called now and then.

    Raises:
        UnavailableError: Milvus or the state is away; what was found is known to the next try.
    """
    collection = sink.collection
    if ledger.binding(collection) != identity:
        return _rebuild(ledger, sink, identity, beat)
    count = sink.count()
    if not unclean and count == ledger.rows(collection) and not ledger.doubted(collection):
        return Reconciled()
    check = _Check(ledger, sink, shared=shared, closely=unclean and rebooted)
    for batch in _batches(ledger, collection):
        beat()
        check.verify(batch)
    log.info("rows verified", collection=collection, rows=ledger.rows(collection), missing=check.missing)
    if count > check.met:
        # A server may count a row twice that two of its segments have: the rows themselves decide.
        with gathered(sink, beat) as rows:
            check.adopt(rows.entries(), beat)
    if check.strangers:
        log.warning(
            "rows of documents that the ledger does not know",
            collection=collection,
            rows=check.strangers,
            cure="ingestd audit says which; ingestd audit --repair mends them",
        )
    if ledger.doubted(collection):
        log.warning(
            "the collection is not what this ledger left: files are read again, and nothing is embedded twice",
            collection=collection,
            missing=check.missing,
            unknown=check.adopted,
            cure="of documents from topics, and of files that were moved away: ingestd audit --repair",
        )
        _doubt(ledger, collection, beat, shared=shared)
    return Reconciled(missing=check.missing)


def _doubt(ledger: Ledger, collection: str, beat: Callable[[], None], *, shared: bool) -> None:
    """Have nothing but keys believed."""
    batch: list[Entry] = []
    for entry in ledger.collection_entries(collection):
        if entry.present and not (shared and entry.tenure):
            unknown = dict.fromkeys(entry.present, UNKNOWN_DIGEST)
            batch.append(replace(entry, fingerprint="", content="", present=unknown))
        if len(batch) >= KEYS:
            beat()
            ledger.write_ahead(batch)
            batch = []
    ledger.write_ahead(batch)
    ledger.undoubted(collection)


class _Check:
    """Holds the ledger against the collection, in rows.

    Args:
        ledger: The ledger.
        sink: The collection.
        shared: Whether other members write it.
        closely: Whether rows that are there may be older ones.
    """

    def __init__(self, ledger: Ledger, sink: Sink, *, shared: bool, closely: bool) -> None:
        self._ledger = ledger
        self._sink = sink
        self._shared = shared
        self._closely = closely
        self.met = 0
        """Known, and there: doubtful ones too."""
        self.missing = 0
        """Known as present, and not there."""
        self.adopted = 0
        """There, of documents that the ledger has, and not known."""
        self.strangers = 0
        """There, of documents that it has not, or that another member may have written since."""

    def verify(self, entries: list[Entry]) -> None:
        """Look these entries' keys up; present ones that are not there become doubtful."""
        keys = [chunk_id for entry in entries for chunk_id in (*entry.present, *entry.doubtful)]
        there = self._sink.existing(keys)
        changed = []
        for entry in entries:
            gone = entry.present.keys() - there
            if gone:
                self.missing += len(gone)
                present = {chunk_id: digest for chunk_id, digest in entry.present.items() if chunk_id in there}
                changed.append(replace(entry, present=present, doubtful=entry.doubtful | gone))
        self._write(changed)
        self.met += len(there)
        if self._closely and not self._ledger.doubted(self._sink.collection):
            self._compare(entries)

    def _compare(self, entries: list[Entry]) -> None:
        """Hold the rows' digests against the ledger's: one that differs is a sign that nothing but keys is left."""
        mine = [entry for entry in entries if entry.present and not self._is_anothers(entry)]
        held = self._sink.held([entry.key.document_id for entry in mine])
        for entry in mine:
            there = held.get(entry.key.document_id)
            older = {
                chunk_id: UNKNOWN_DIGEST
                for chunk_id, digest in entry.present.items()
                if there is not None and digest not in {UNKNOWN_DIGEST, there.rows.get(chunk_id, digest)}
            }
            if older:
                self._write([replace(entry, present={**entry.present, **older})])
                return

    def adopt(self, entries: Iterator[Entry], beat: Callable[[], None]) -> None:
        """Make rows doubtful that the ledger does not know, of documents that it does.

        A tombstone with doubtful rows is deleted once more.

        Args:
            entries: What the collection's rows say.
            beat: Called now and then.
        """
        while some := list(islice(entries, DOCUMENTS)):
            beat()
            known = self._ledger.entries([entry.key for entry in some])
            changed = []
            for entry in some:
                own = known.get(entry.key)
                rows = entry.present.keys() - (own.present.keys() | own.doubtful if own else frozenset())
                if own is None or self._is_anothers(own):
                    self.strangers += len(rows)
                elif rows:
                    self.adopted += len(rows)
                    changed.append(replace(own, doubtful=own.doubtful | rows))
            self._write(changed)

    def _is_anothers(self, entry: Entry) -> bool:
        return self._shared and bool(entry.tenure)

    def _write(self, changed: list[Entry]) -> None:
        """Put findings down; before the first that is a sign of more, that all is in doubt: a crash loses neither."""
        collection = self._sink.collection
        if not all(map(self._is_anothers, changed)) and not self._ledger.doubted(collection):
            self._ledger.doubt(collection)
        self._ledger.write_ahead(changed)


def _rebuild(ledger: Ledger, sink: Sink, identity: str, beat: Callable[[], None]) -> Reconciled:
    documents, bound = 0, ledger.binding(sink.collection)

    def counted(entries: Iterator[Entry]) -> Iterator[Entry]:
        nonlocal documents
        for entry in entries:
            documents += 1
            yield entry

    with gathered(sink, beat) as rows:
        ledger.bind(sink.collection, identity, counted(rows.entries()))
    if documents:
        log.warning("ledger rebuilt from Milvus", collection=sink.collection, documents=documents)
    if bound is not None:
        _say_made_anew(sink.collection)
    return Reconciled(rebuilt=documents, made_anew=bound is not None)


def bind_anew(ledger: Ledger, collection: str, identity: str) -> Reconciled:
    """Bind the ledger to a collection whose sources ask Milvus for all that they did not just write themselves.

    Neither rebuilt nor verified: a member without a disk would read the whole collection at each start, for nothing.
    """
    bound = ledger.binding(collection)
    if bound != identity:
        ledger.bind(collection, identity, ())
        if bound is not None:
            _say_made_anew(collection)
            return Reconciled(made_anew=True)
    return Reconciled()


def _say_made_anew(collection: str) -> None:
    log.warning(
        "the collection was made anew, or is another one, and lacks what was committed before",
        collection=collection,
        cure="to have all records of its Kafka topics again, give their sources a new group_id",
    )


def _batches(ledger: Ledger, collection: str) -> Iterator[list[Entry]]:
    """Yield the collection's entries, about ``KEYS`` keys at a time."""
    batch: list[Entry] = []
    keys = 0
    for entry in ledger.collection_entries(collection):
        if entry.present or entry.doubtful:
            batch.append(entry)
            keys += len(entry.present) + len(entry.doubtful)
        if keys >= KEYS:
            yield batch
            batch, keys = [], 0
    if batch:
        yield batch
