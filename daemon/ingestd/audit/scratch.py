"""What an audit has to remember: in a temporary database on disk, since it may be something of every row.

SQLite drops it when it is closed, however the process ends. Sets in memory were turned down: two million chunk ids with
their details are half a gigabyte.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ingestd.audit.compare import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_PAGE = 500
_SCHEMA = """
    CREATE TABLE documents (
        id TEXT PRIMARY KEY,
        rows INTEGER NOT NULL       -- in Milvus, when they were read
    ) WITHOUT ROWID;
    CREATE TABLE suspects (
        id TEXT PRIMARY KEY,
        mark BLOB NOT NULL          -- of what was found at the last look
    ) WITHOUT ROWID;
    CREATE TABLE differences (
        collection TEXT NOT NULL,
        kind TEXT NOT NULL,
        document_id TEXT NOT NULL,
        chunk_id TEXT NOT NULL,
        detail TEXT NOT NULL,
        outcome TEXT,               -- of a repair: '' mended, or why not; NULL: none was tried
        PRIMARY KEY (collection, kind, document_id, chunk_id, detail)
    ) WITHOUT ROWID;
    CREATE INDEX differences_by_document ON differences (collection, document_id);
    """


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    collection: str
    document_id: str
    fault: Fault
    outcome: str | None
    """Of a repair: empty when it was mended, or why it was not; None: none was tried."""


class Weighed(NamedTuple):
    """A document, and the number of rows that it had."""

    id: str
    rows: int


class Scratch:
    """The database. For one thread; closed by ``close``."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Drop it."""
        self._connection.close()

    def begin(self) -> None:
        """Forget the documents and the suspects of the collection before."""
        self._connection.execute("DELETE FROM documents")
        self._connection.execute("DELETE FROM suspects")

    # Documents that there are, whoever knows of them

    def add(self, rows: Mapping[str, int]) -> None:
        """Add documents, with so many more rows each."""
        self._many("INSERT INTO documents VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET rows = rows + ?2", rows.items())

    def documents(self) -> Iterator[Weighed]:
        """Yield all documents, in the order of their ids, a page in memory at a time."""
        query, last = "SELECT id, rows FROM documents WHERE ?1 IS NULL OR id > ?1 ORDER BY id LIMIT ?2", None
        while page := self._connection.execute(query, (last, _PAGE)).fetchall():
            yield from (Weighed(*found) for found in page)
            last = page[-1][0]

    # Suspects

    def suspect(self, marks: Mapping[str, bytes]) -> None:
        """Note documents that something may be wrong with, and the mark of what."""
        self._many("INSERT OR REPLACE INTO suspects VALUES (?, ?)", marks.items())

    def clear(self, documents: Iterable[str]) -> None:
        """Take documents off the suspects."""
        self._many("DELETE FROM suspects WHERE id = ?", ((document,) for document in documents))

    def suspects(self) -> Iterator[dict[str, bytes]]:
        """Yield pages of suspects with their marks; pages may be changed while they are gone through."""
        last = None
        query = "SELECT id, mark FROM suspects WHERE ?1 IS NULL OR id > ?1 ORDER BY id LIMIT ?2"
        while page := dict(self._connection.execute(query, (last, _PAGE)).fetchall()):
            yield page
            last = max(page, key=str.encode)

    def suspected(self) -> int:
        """Return the number of suspects."""
        return self._number("SELECT COUNT(*) FROM suspects")

    # Differences

    def found(self, collection: str, document: str, faults: Sequence[Fault]) -> None:
        """Note what is wrong with a document."""
        records = ((collection, fault.kind.value, document, fault.chunk_id, fault.detail) for fault in faults)
        self._many("INSERT OR IGNORE INTO differences VALUES (?, ?, ?, ?, ?, NULL)", records)

    def outcome(self, collection: str, documents: Mapping[str, str]) -> None:
        """Note how the repair of documents ended: empty when it was mended, or why it was not."""
        query = "UPDATE differences SET outcome = ? WHERE collection = ? AND document_id = ?"
        self._many(query, ((outcome, collection, document) for document, outcome in documents.items()))

    def faulty(self, collection: str) -> Iterator[tuple[str, bool]]:
        """Yield the documents that differ, each with whether it does as a whole."""
        query = """
            SELECT document_id, MIN(chunk_id) = '' FROM differences
            WHERE collection = ?1 AND (?2 IS NULL OR document_id > ?2)
            GROUP BY document_id ORDER BY document_id LIMIT ?3
            """
        last = None
        while page := self._connection.execute(query, (collection, last, _PAGE)).fetchall():
            yield from ((document, bool(whole)) for document, whole in page)
            last = page[-1][0]

    def counts(self, collection: str) -> dict[Kind, int]:
        """Return how many differences of each kind there are."""
        query = "SELECT kind, COUNT(*) FROM differences WHERE collection = ? GROUP BY kind"
        found = dict(self._connection.execute(query, (collection,)).fetchall())
        return {kind: found.get(kind.value, 0) for kind in Kind}

    def mended(self, collection: str) -> int:
        """Return how many differences were mended."""
        return self._number("SELECT COUNT(*) FROM differences WHERE collection = ? AND outcome = ''", collection)

    def left(self) -> int:
        """Return how many differences there are that were not mended."""
        return self._number("SELECT COUNT(*) FROM differences WHERE outcome IS NULL OR outcome <> ''")

    def differences(self, collection: str, kind: Kind, limit: int | None = None) -> Iterator[Difference]:
        """Yield differences, by document and chunk."""
        query = """
            SELECT document_id, chunk_id, detail, outcome FROM differences WHERE collection = ? AND kind = ?
            ORDER BY document_id, chunk_id, detail LIMIT ?
            """
        for document, chunk_id, detail, outcome in self._connection.execute(
            query, (collection, kind.value, limit or -1)
        ):
            yield Difference(collection, document, Fault(kind, chunk_id, detail), outcome)

    def _number(self, query: str, *arguments: str) -> int:
        (count,) = self._connection.execute(query, arguments).fetchone()
        return int(count)

    def _many(self, query: str, records: Iterable[tuple[object, ...]]) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany(query, records)
        self._connection.execute("COMMIT")
