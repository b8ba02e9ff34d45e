"""Bring ledger and collection together before anything flows.

The ledger is bound to a collection by the random id in the collection's properties. Another id voids it, and so does
its own loss: it is rebuilt from the collection's rows, whose keys say what was embedded, so that nothing is embedded
twice. After an unclean end, on a new boot, or when the collection has another number of rows than the ledger knows
(Milvus Lite acknowledges before its data is on the disk), every key that the ledger knows is looked up before it is
relied on. Rows that are then left over are known to nobody, and are said: ``audit`` finds and mends them. To adopt them
was turned down: a delete that a power cut undid would come back as a document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from ingestd.model import EXPLICIT, DocumentKey, Entry, Version, is_chunk_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestd.model import ChunkId
    from ingestd.ports import Ledger, Sink

KEYS = 1_000
"""Keys that are looked up at a time: about 0.1 s on Milvus Lite."""
UNKNOWN_DIGEST = bytes(16)
"""Of a row of which only the key is known: whatever the row should be, it is rewritten."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was found."""

    rebuilt: int = 0
    """Documents whose entries were rebuilt from the collection."""
    missing: int = 0
    """Rows that the ledger knew, and that were not there."""


def reconcile(
    ledger: Ledger, sink: Sink, identity: str, *, unclean: bool, beat: Callable[[], None] = lambda: None
) -> Reconciled:
    """Make the ledger's entries about a collection true.

    Args:
        ledger: The ledger.
        sink: The collection.
        identity: The collection's random id.
        unclean: Whether the last run did not end as it should, or the machine was started anew since.
        beat: Called now and then.

    Raises:
        UnavailableError: Milvus or the state is away; nothing is half done.
    """
    collection = sink.collection
    if ledger.binding(collection) != identity:
        return _rebuild(ledger, sink, identity, _entries(sink, beat))
    count = sink.count()
    if not unclean and count == ledger.rows(collection):
        return Reconciled()
    missing = met = 0
    for batch in _batches(ledger, collection):
        gone, there = _verify(ledger, sink, batch, beat)
        missing, met = missing + gone, met + there
    log.info("rows verified", collection=collection, rows=ledger.rows(collection), missing=missing)
    if count > met:
        # A server may count a row twice that two of its segments have: the rows themselves decide.
        entries = _entries(sink, beat)
        strangers = _strangers(ledger, entries)
        if strangers:
            # Not adopted: they may be rows whose delete a power cut undid, or another member's. The ledger is right.
            log.warning(
                "rows that the ledger does not know",
                collection=collection,
                rows=strangers,
                cure="ingestd audit says which; ingestd audit --repair mends them",
            )
    return Reconciled(missing=missing)


def _rebuild(ledger: Ledger, sink: Sink, identity: str, entries: list[Entry]) -> Reconciled:
    ledger.bind(sink.collection, identity, entries)
    if entries:
        log.warning("ledger rebuilt from Milvus", collection=sink.collection, documents=len(entries))
    return Reconciled(rebuilt=len(entries))


def bind_anew(ledger: Ledger, collection: str, identity: str) -> Reconciled:
    """Bind the ledger to a collection whose sources ask Milvus for all that they did not just write themselves.

    Neither rebuilt nor verified: a member without a disk would read the whole collection at each start, for nothing.
    """
    bound = ledger.binding(collection)
    if bound != identity:
        ledger.bind(collection, identity, ())
        if bound is not None:
            log.warning(
                "the collection was made anew, and lacks what was committed before",
                collection=collection,
                cure="to have all records of its Kafka topics again, give their sources a new group_id",
            )
    return Reconciled()


def _entries(sink: Sink, beat: Callable[[], None]) -> list[Entry]:
    """Return an entry for each document that has rows in the collection."""
    versions: dict[str, Version] = {}
    sources: dict[str, str] = {}
    ids: dict[str, list[ChunkId]] = {}
    for at, row in enumerate(sink.stored()):
        if at % KEYS == 0:
            beat()
        if not is_chunk_id(row.id):
            log.warning(
                "a row that is none of ours, by its key",
                collection=sink.collection,
                document_id=row.document_id,
                cure="ingestd audit --repair deletes it",
            )
            continue
        ids.setdefault(row.document_id, []).append(row.id)
        known = versions.get(row.document_id)
        if known is None or _stands_over(row.version, known):
            versions[row.document_id] = row.version
            sources[row.document_id] = row.source
    return [
        Entry(
            key=DocumentKey(sink.collection, document_id),
            source=sources[document_id],
            version=versions[document_id],
            fingerprint="",
            content="",
            present=dict.fromkeys(chunk_ids, UNKNOWN_DIGEST),
        )
        for document_id, chunk_ids in ids.items()
    ]


def _stands_over(version: Version, known: Version) -> bool:
    """Return whether of two versions that a document's rows have the first is the one that the document has.

    A producer's own is stronger than any other: rows that an edit left alone may have an offset yet, and a greater one.
    """
    explicit = version.domain == EXPLICIT
    return version.number > known.number if explicit == (known.domain == EXPLICIT) else explicit


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


def _strangers(ledger: Ledger, entries: list[Entry]) -> int:
    """Return how many of the rows that these entries were made of the ledger does not know, as their document's."""
    strangers = 0
    for at in range(0, len(entries), KEYS):
        some = entries[at : at + KEYS]
        known = ledger.entries([entry.key for entry in some])
        for entry in some:
            own = known.get(entry.key)
            strangers += len(entry.present.keys() - (own.present.keys() | own.doubtful if own else frozenset()))
    return strangers


def _verify(ledger: Ledger, sink: Sink, entries: list[Entry], beat: Callable[[], None]) -> tuple[int, int]:
    """Look these entries' keys up; present ones that are not there become doubtful.

    Returns:
        How many those are, and how many of all keys are there, doubtful ones too.
    """
    beat()
    there = sink.existing([chunk_id for entry in entries for chunk_id in (*entry.present, *entry.doubtful)])
    changed, missing = [], 0
    for entry in entries:
        gone = entry.present.keys() - there
        if gone:
            missing += len(gone)
            present = {chunk_id: digest for chunk_id, digest in entry.present.items() if chunk_id in there}
            changed.append(replace(entry, present=present, doubtful=entry.doubtful | gone))
    if changed:
        ledger.write_ahead(changed)
    return missing, len(there)
