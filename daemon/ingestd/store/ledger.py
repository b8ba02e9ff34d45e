"""The ledger's SQL: what is applied, per collection and document, and which Milvus collection that is about."""

from __future__ import annotations

from itertools import chain, groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ingestd.model import DocumentKey, Entry, Version
from ingestd.store.text import from_column, to_column

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from ingestd.model import ChunkId, Digest

_ID = 16
_PRESENT = 32
_LOOKUP = 500
"""Keys of one look-up: SQLite before 3.32 takes at most 999 variables."""

_TOGETHER = (90, 10, 1)
"""Entries of one statement, 11 variables each (see ``_LOOKUP``). The interpreter's lock is let go for every statement:
with other threads at work, getting it back costs more than the statement does."""

_PUT = """
    INSERT INTO entries
        (collection, document_id, source, version, domain, fingerprint, content, present, doubtful, deleted, tenure)
    VALUES {}
    ON CONFLICT (collection, document_id) DO UPDATE SET
        source = excluded.source, version = excluded.version, domain = excluded.domain,
        fingerprint = excluded.fingerprint, content = excluded.content, present = excluded.present,
        doubtful = excluded.doubtful, deleted = excluded.deleted, tenure = excluded.tenure
    """
_PUTS = {count: _PUT.format(",".join(["(?,?,?,?,?,?,?,?,?,?,?)"] * count)) for count in _TOGETHER}
_GET = """
    SELECT collection, document_id, source, version, domain, fingerprint, content, present, doubtful, deleted, tenure
    FROM entries WHERE collection = ? AND document_id IN ({})
    """
_PAGE = """
    SELECT collection, document_id, source, version, domain, fingerprint, content, present, doubtful, deleted, tenure,
           id
    FROM entries WHERE collection = ? AND id > ? ORDER BY id LIMIT ?
    """
_WHOLE = """
    SELECT document_id, doubtful = x'', id FROM entries
    WHERE source = ? AND collection = ? AND (deleted = 0 OR doubtful <> x'') AND id > ? ORDER BY id LIMIT ?
    """


def put(connection: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    """Replace what is known of these documents."""
    rest = map(_record, entries)  # perhaps of a whole collection: never all in memory
    while records := list(islice(rest, max(_PUTS))):
        for count, statement in _PUTS.items():
            while len(records) >= count:
                connection.execute(statement, list(chain.from_iterable(records[:count])))
                del records[:count]


def get(connection: sqlite3.Connection, keys: Sequence[DocumentKey]) -> dict[DocumentKey, Entry]:
    """Return what is known of these documents."""
    found = {}
    collection = attrgetter("collection")
    for name, group in groupby(sorted(keys, key=collection), key=collection):
        ids = [key.document_id for key in group]
        for at in range(0, len(ids), _LOOKUP):
            some = ids[at : at + _LOOKUP]
            marks = ",".join("?" * len(some))
            for record in connection.execute(_GET.format(marks), (name, *some)):
                entry = _entry(record)
                found[entry.key] = entry
    return found


def page(connection: sqlite3.Connection, collection: str, after: int, limit: int) -> tuple[list[Entry], int]:
    """Return entries of a collection, and what to pass as ``after`` for those that follow; start with 0."""
    records = connection.execute(_PAGE, (collection, after, limit)).fetchall()
    return [_entry(record) for record in records], records[-1][-1] if records else after


def documents(
    connection: sqlite3.Connection, source: str, collection: str, after: int, limit: int
) -> tuple[list[tuple[str, bool]], int]:
    """Return (document's id, whether it is whole), and what to pass as ``after`` for the rest.

    No tombstones, but for those with doubtful rows: a first version that was interrupted may have left some.
    """
    records = connection.execute(_WHOLE, (source, collection, after, limit)).fetchall()
    return [(document_id, bool(whole)) for document_id, whole, _ in records], records[-1][-1] if records else after


def collections(connection: sqlite3.Connection, source: str) -> list[str]:
    """Return the collections that hold documents of a source."""
    query = "SELECT DISTINCT collection FROM entries WHERE source = ? ORDER BY collection"
    return [collection for (collection,) in connection.execute(query, (source,))]


def binding(connection: sqlite3.Connection, collection: str) -> str | None:
    """Return the id of the Milvus collection that the entries are about."""
    row = connection.execute("SELECT identity FROM bindings WHERE collection = ?", (collection,)).fetchone()
    return None if row is None else str(row[0])


def bind(connection: sqlite3.Connection, collection: str, identity: str, entries: Iterable[Entry]) -> None:
    """Void the collection's entries and seens, and start again from these."""
    connection.execute("DELETE FROM entries WHERE collection = ?", (collection,))
    connection.execute("DELETE FROM seens WHERE collection = ?", (collection,))
    connection.execute(
        "INSERT INTO bindings (collection, identity) VALUES (?, ?) "
        "ON CONFLICT (collection) DO UPDATE SET identity = excluded.identity",
        (collection, identity),
    )
    undoubted(connection, collection)
    put(connection, entries)


def doubt(connection: sqlite3.Connection, collection: str) -> None:
    """Note that nothing but the keys of a collection's entries is to be believed, and have its documents read again."""
    connection.execute("REPLACE INTO meta (key, value) VALUES (?, '')", (_doubt_of(collection),))
    connection.execute("UPDATE seens SET fingerprint = '' WHERE collection = ?", (collection,))


def is_doubted(connection: sqlite3.Connection, collection: str) -> bool:
    """Return whether that was noted, and not taken back."""
    return connection.execute("SELECT 1 FROM meta WHERE key = ?", (_doubt_of(collection),)).fetchone() is not None


def undoubted(connection: sqlite3.Connection, collection: str) -> None:
    """Take it back: the entries say so themselves by now."""
    connection.execute("DELETE FROM meta WHERE key = ?", (_doubt_of(collection),))


def _doubt_of(collection: str) -> str:
    return f"doubt of {collection}"


def forget(connection: sqlite3.Connection, source: str, collection: str) -> None:
    """Remove a source's entries."""
    connection.execute("DELETE FROM entries WHERE source = ? AND collection = ?", (source, collection))


def _record(entry: Entry) -> tuple[object, ...]:
    return (
        entry.key.collection,
        entry.key.document_id,
        entry.source,
        entry.version.number,
        to_column(entry.version.domain),
        entry.fingerprint,
        entry.content,
        _pack_present(entry.key, entry.present),
        _pack_ids(entry.key, entry.doubtful),
        entry.deleted,
        entry.tenure,
    )


def _entry(record: Sequence[Any]) -> Entry:
    collection, document_id, source, number, domain, fingerprint, content, present, doubtful, deleted, *more = record
    return Entry(
        key=DocumentKey(collection, document_id),
        source=source,
        version=Version(number, from_column(domain)),
        fingerprint=fingerprint,
        content=content,
        present=_unpack_present(present),
        doubtful=_unpack_ids(doubtful),
        deleted=bool(deleted),
        tenure=more[0],
    )


def _pack_present(key: DocumentKey, present: Mapping[ChunkId, Digest]) -> bytes:
    packed = b"".join(bytes.fromhex(chunk) + digest for chunk, digest in present.items())
    if len(packed) != _PRESENT * len(present):
        raise ValueError(f"{key}: a chunk's id has 32 hexadecimal digits and its digest 16 bytes")
    return packed


def _unpack_present(packed: bytes) -> dict[ChunkId, Digest]:
    if len(packed) % _PRESENT:
        raise ValueError("rows of the ledger are 32 bytes each")
    return {packed[at : at + _ID].hex(): packed[at + _ID : at + _PRESENT] for at in range(0, len(packed), _PRESENT)}


def _pack_ids(key: DocumentKey, ids: Collection[ChunkId]) -> bytes:
    if not ids:
        return b""
    ids = sorted(ids)
    packed = bytes.fromhex("".join(ids))
    if len(packed) != _ID * len(ids):
        raise ValueError(f"{key}: a chunk's id has 32 hexadecimal digits")
    return packed


def _unpack_ids(packed: bytes) -> frozenset[ChunkId]:
    return frozenset(packed[at : at + _ID].hex() for at in range(0, len(packed), _ID))
