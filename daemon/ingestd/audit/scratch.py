"""What an audit has to remember: in a temporary database on disk, since it may be something of every row.

SQLite drops it when it is closed, however the process ends. Sets in memory were turned down: two million chunk ids with
their details are half a gigabyte.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

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
        of_file INTEGER NOT NULL,
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
        for page in self._pages("SELECT id, rows FROM documents WHERE id {} ? ORDER BY id LIMIT ?"):
            yield from (Weighed(*found) for found in page)

    # Suspects

    def suspect(self, marks: Mapping[str, bytes]) -> None:
        """Note documents that something may be wrong with, and the mark of what."""
        self._many("INSERT OR REPLACE INTO suspects VALUES (?, ?)", marks.items())

    def clear(self, documents: Iterable[str]) -> None:
        """Take documents off the suspects."""
        self._many("DELETE FROM suspects WHERE id = ?", ((document,) for document in documents))

    def suspects(self) -> Iterator[dict[str, bytes]]:
        """Yield pages of suspects with their marks; pages may be changed while they are gone through."""
        yield from map(dict, self._pages("SELECT id, mark FROM suspects WHERE id {} ? ORDER BY id LIMIT ?"))

    def suspected(self) -> int:
        """Return the number of suspects."""
        return self._number("SELECT COUNT(*) FROM suspects")

    # Differences

    def found(self, collection: str, document: str, faults: Sequence[Fault]) -> None:
        """Note what is wrong with a document."""
        records = (
            (collection, fault.kind.value, document, fault.chunk_id, fault.detail, fault.of_file) for fault in faults
        )
        self._many("INSERT OR IGNORE INTO differences VALUES (?, ?, ?, ?, ?, ?, NULL)", records)

    def outcome(self, collection: str, documents: Mapping[str, str]) -> None:
        """Note how the repair of documents ended: empty when it was mended, or why it was not."""
        query = "UPDATE differences SET outcome = ? WHERE collection = ? AND document_id = ?"
        self._many(query, ((outcome, collection, document) for document, outcome in documents.items()))

    def faulty(self, collection: str) -> Iterator[tuple[str, bool]]:
        """Yield the documents that differ, each with whether its file does."""
        query = """
            SELECT document_id, MAX(of_file) FROM differences WHERE collection = ? AND document_id {} ?
            GROUP BY document_id ORDER BY document_id LIMIT ?
            """
        for page in self._pages(query, collection):
            yield from ((document, bool(of_file)) for document, of_file in page)

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
            SELECT document_id, chunk_id, detail, of_file, outcome FROM differences WHERE collection = ? AND kind = ?
            ORDER BY document_id, chunk_id, detail LIMIT ?
            """
        most = -1 if limit is None else limit
        found = self._connection.execute(query, (collection, kind.value, most))
        for document, chunk_id, detail, of_file, outcome in found:
            yield Difference(collection, document, Fault(kind, chunk_id, detail, bool(of_file)), outcome)

    def _pages(self, query: str, *arguments: str) -> Iterator[list[Any]]:
        """Yield pages of records that begin with an id, in the order of that, so that each page is one look-up.

        Args:
            query: With ``{}`` where the comparison of the id is.
            arguments: Those before the id.
        """
        comparison, last = ">=", ""
        while page := self._connection.execute(query.format(comparison), (*arguments, last, _PAGE)).fetchall():
            yield page
            comparison, last = ">", page[-1][0]

    def _number(self, query: str, *arguments: str) -> int:
        (count,) = self._connection.execute(query, arguments).fetchone()
        return int(count)

    def _many(self, query: str, records: Iterable[tuple[object, ...]]) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany(query, records)
        self._connection.execute("COMMIT")
