"""Vectors that were made before, by what they were made of: an SQLite file beside the state, which may be lost.

A text that comes again, in another document, another collection, or one that was deleted and made anew, is not
embedded twice. It is a cache: whatever is wrong with it costs a model's time and nothing else. So it is a file of its
own, without the state's fsyncs; a value has its own checksum, because a vector that is not the text's would be stored
and never found out.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ingestd.model import SparseVector, VectorKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ingestd.model import DenseVector

FILE = "vectors.db"
"""In the state directory."""
OVERHEAD = 100
"""Bytes of the file that an entry takes beside its value, about: its key, its place in two indexes."""
_ASKED = 500
"""Keys of one statement."""
_EVICTED = 1_000
"""Entries that are let go at a time."""
_ROOM = 0.05
"""The share of the limit that is made free when it is reached."""
_DAY = 86_400
_CHECK = 8
"""Bytes of a value's checksum."""
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS vectors_used ON vectors (used);
"""

_log = logging.getLogger(__name__)


class VectorCache:
    """Implements ``ports.VectorCache``. Safe to call from several threads. Made by ``open``.

    Args:
        path: The file.
        limit: The most bytes that its entries may take.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._size = 0

    @classmethod
    def open(cls, path: Path, limit: int) -> VectorCache:
        """Return the cache in a file, which is made; one that cannot be read is thrown away."""
        cache = cls(path, limit)
        for _ in range(2):
            try:
                cache._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # it may be well: the disk is full, or read-only
                    cache._give_up(error)
                    break
                _log.warning("the cache of vectors %s cannot be read (%s): it begins anew", path, error)
                cache.close()
                remove(path)
            else:
                break
        return cache

    def get(self, space: str, kind: VectorKind, texts: Sequence[str]) -> Mapping[str, DenseVector | SparseVector]:
        """Return the vectors that are there, by text."""
        keys = {_key(space, kind, text): text for text in texts}
        found: dict[str, DenseVector | SparseVector] = {}
        with self._lock:
            if self._connection is None:
                return found
            try:
                for key, value in self._read(self._connection, keys):
                    vector = _unpacked(key, kind, value)
                    if vector is not None:
                        found[keys[key]] = vector
            except sqlite3.Error as error:
                self._give_up(error)
                return {}
        return found

    def put(self, space: str, kind: VectorKind, vectors: Mapping[str, DenseVector | SparseVector]) -> None:
        """Keep vectors, by text; those that nobody asked for the longest go when there is no room."""
        rows = []
        for text, vector in vectors.items():
            key = _key(space, kind, text)
            rows.append((key, _today(), _packed(key, vector)))
        with self._lock:
            if self._connection is None:
                return
            try:
                with self._connection:
                    self._write(self._connection, rows)
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        """Let go of the file. Later questions find nothing."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> None:
        connection = sqlite3.connect(self._path, check_same_thread=False, timeout=5)
        self._connection = connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in {0, _VERSION}:
            raise sqlite3.DatabaseError(f"it is of version {version}, and this is {_VERSION}")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        self._path.chmod(0o600)
        (self._size,) = connection.execute(
            "SELECT coalesce(sum(length(value) + ?), 0) FROM vectors", (OVERHEAD,)
        ).fetchone()
        with connection:
            self._make_room(connection, 0)

    @staticmethod
    def _read(connection: sqlite3.Connection, keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Yield what is there, and note that it was asked for: once a day, for a note costs more than an answer."""
        rest = iter(keys)
        today = _today()
        while some := list(islice(rest, _ASKED)):
            places = ",".join("?" * len(some))
            rows = connection.execute(f"SELECT key, used, value FROM vectors WHERE key IN ({places})", some).fetchall()  # noqa: S608 - places only
            old = [key for key, used, _ in rows if used < today]
            if old:
                with connection:
                    connection.executemany("UPDATE vectors SET used = ? WHERE key = ?", ((today, key) for key in old))
            yield from ((key, value) for key, _, value in rows)

    def _write(self, connection: sqlite3.Connection, rows: Sequence[tuple[bytes, int, bytes]]) -> None:
        size = sum(len(value) + OVERHEAD for _, _, value in rows)
        if size > self._limit:
            return
        self._make_room(connection, size)
        before = connection.total_changes
        connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)
        if connection.total_changes - before == len(rows):
            self._size += size
        else:  # another thread was faster, or an entry is damaged and is made anew
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
            self._size += size  # some count twice until the next start: the limit errs to the safe side

    def _make_room(self, connection: sqlite3.Connection, size: int) -> None:
        if self._size + size <= self._limit:
            return
        while self._size + size > self._limit * (1 - _ROOM):
            gone = connection.execute(
                "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors ORDER BY used, rowid LIMIT ?)"
                " RETURNING length(value)",
                (_EVICTED,),
            ).fetchall()
            if not gone:
                self._size = 0
                return
            self._size -= sum(length + OVERHEAD for (length,) in gone)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without: until the next start all texts are embedded."""
        _log.warning("the cache of vectors %s is not used until the next start: %s", self._path, error)
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def remove(path: Path) -> None:
    """Remove the cache's files, where there are any."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _today() -> int:
    return int(time.time()) // _DAY


def _key(space: str, kind: VectorKind, text: str) -> bytes:
    """Return a hash of all that the vector depends on, each part behind its length."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in (space, kind.value, text):
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.digest()


def _packed(key: bytes, vector: DenseVector | SparseVector) -> bytes:
    """Return a vector behind its checksum: float32, and for a sparse one uint32 before them, as many."""
    if isinstance(vector, SparseVector):
        data = vector.indices.astype("<u4").tobytes() + vector.values.astype("<f4").tobytes()
    else:
        data = np.asarray(vector).astype("<f4").tobytes()
    return _check(key, data) + data


def _unpacked(key: bytes, kind: VectorKind, value: bytes) -> DenseVector | SparseVector | None:
    """Return the vector; None: the value is damaged."""
    data = value[_CHECK:]
    if value[:_CHECK] != _check(key, data):
        return None
    if kind is VectorKind.DENSE:
        return np.frombuffer(data, "<f4").astype(np.float32)
    half = len(data) // 2
    return SparseVector(
        np.frombuffer(data[:half], "<u4").astype(np.uint32), np.frombuffer(data[half:], "<f4").astype(np.float32)
    )


def _check(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK, key=key).digest()
