"""What a collection's rows say of its documents: gathered in a temporary database on disk, for they come in any order.

SQLite drops it when it is closed, however the process ends. Dictionaries in memory were turned down: of ten million
chunks they are three gigabytes, and who has lost a ledger could then not start any more.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING

import structlog

from ingestd.errors import UnavailableError
from ingestd.model import EXPLICIT, UNKNOWN_DIGEST, DocumentKey, Entry, Version, is_chunk_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ingestd.model import StoredRow
    from ingestd.ports import Sink

_PAGE = 1_000
_STEPS = 1_000_000
"""Of SQLite's virtual machine, between two beats: a fraction of a second."""
_SCHEMA = "CREATE TABLE rows (document TEXT, chunk TEXT, number INTEGER, domain TEXT, source TEXT)"
_SORTED = "SELECT document, chunk, number, domain, source FROM rows ORDER BY document, rowid"

log = structlog.get_logger(__name__)


class Rows:
    """The rows of a collection, by document. Made by ``gathered``; may be read on another thread.

    Args:
        collection: Its name.
        beat: Called now and then, also while SQLite sorts.
    """

    def __init__(self, collection: str, beat: Callable[[], None]) -> None:
        self._collection = collection
        self._beat = beat
        with self._room():
            self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._connection.execute(_SCHEMA)
        self._connection.set_progress_handler(self._going_on, _STEPS)

    def add(self, rows: Iterable[StoredRow]) -> None:
        """Add rows."""
        values = [(row.document_id, row.id, row.version.number, row.version.domain, row.source) for row in rows]
        with self._room():
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", values)
            self._connection.execute("COMMIT")

    def entries(self) -> Iterator[Entry]:
        """Yield an entry for each document: its rows' keys, and the version that it has by them.

        Raises:
            UnavailableError: There is no room for temporary files.
        """
        for number, (document, rows) in enumerate(groupby(self._sorted(), key=itemgetter(0))):
            if number % _PAGE == 0:
                self._beat()
            chunks, version, source = [], None, ""
            for _document, chunk, count, domain, said in rows:
                chunks.append(chunk)
                found = Version(count, domain)
                if version is None or _stands_over(found, version):
                    version, source = found, said
            assert version is not None  # noqa: S101 - a group has a row, for the type checker
            yield Entry(
                key=DocumentKey(self._collection, document),
                source=source,
                version=version,
                fingerprint="",
                content="",
                present=dict.fromkeys(chunks, UNKNOWN_DIGEST),
            )

    def close(self) -> None:
        """Drop them."""
        self._connection.close()

    def _going_on(self) -> bool:
        """Beat, amid a statement; it is interrupted where that raises."""
        self._beat()
        return False

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Have a temporary database that cannot be written told as what it is: not as the state's failure.

        Raises:
            UnavailableError: It cannot.
        """
        try:
            yield
        except sqlite3.Error as error:
            self._beat()  # raises again what interrupted the statement, if that is what it was
            message = f"no room for temporary files ({error}): free some, or set SQLITE_TMPDIR to a folder with room"
            raise UnavailableError("temporary files", message) from error

    def _sorted(self) -> Iterator[tuple[str, str, int, str, str]]:
        with self._room():
            cursor = self._connection.execute(_SORTED)  # here it sorts
        while True:
            with self._room():
                page = cursor.fetchmany(_PAGE)
            if not page:
                return
            yield from page


@contextmanager
def gathered(sink: Sink, beat: Callable[[], None]) -> Iterator[Rows]:
    """Read all rows of a collection.

    Args:
        sink: The collection.
        beat: Called now and then.

    Raises:
        UnavailableError: Milvus is away, or there is no room for temporary files.
    """
    with closing(Rows(sink.collection, beat)) as rows:
        stored = iter(sink.stored())
        while page := list(islice(stored, _PAGE)):
            beat()
            rows.add(row for row in page if _is_ours(sink, row))
        yield rows


def _is_ours(sink: Sink, row: StoredRow) -> bool:
    """Return whether a row's key is one of ours; another one cannot be in an entry."""
    if is_chunk_id(row.id):
        return True
    log.warning(
        "a row that is none of ours, by its key",
        collection=sink.collection,
        document_id=row.document_id,
        cure="ingestd audit --repair deletes it",
    )
    return False


def _stands_over(version: Version, known: Version) -> bool:
    """Return whether of two versions that a document's rows have the first is the one that the document has.

    A producer's own is stronger than any other: rows that an edit left alone may have an offset yet, and a greater one.
    """
    explicit = version.domain == EXPLICIT
    return version.number > known.number if explicit == (known.domain == EXPLICIT) else explicit
