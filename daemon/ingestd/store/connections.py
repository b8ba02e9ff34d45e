"""Connections to the state's file, and the verdict on what SQLite says through them.

Owns the pragmas, the pool of reading connections and the translation of SQLite's codes into the exception tree. One
reading connection a thread was turned down for the pool: threads come and go, a thread's end tells nobody, and what
it had open would stay so.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from ingestd.errors import ConfigError, FatalError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.errors import IngestError

DEPENDENCY = "state"
"""What the breaker is called that opens when the state cannot be written."""

_BUSY_TIMEOUT = 5.0
_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
_DAMAGES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def _primary_code(error: sqlite3.Error) -> int:
    # Errors that the Python module raises by itself (misuse) carry no code of SQLite's.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether the error says that the file is not a sound database."""
    return _primary_code(error) in _DAMAGES


def is_outage(error: sqlite3.Error) -> bool:
    """Return whether the error is the disk's, not that of what was asked."""
    return _primary_code(error) in _OUTAGES


def verdict(error: sqlite3.Error, path: Path) -> IngestError:
    """Return the error of our tree for one of SQLite's, seen while the daemon runs."""
    if is_outage(error):
        return UnavailableError(
            DEPENDENCY,
            f"the state in {path} cannot be read or written ({error}). Nothing is lost and nothing moves on: free "
            "space on that disk, or make it writable again, and the daemon goes on by itself",
        )
    if is_damage(error):
        return FatalError(f"the state in {path} is damaged ({error}): the next start sets it aside and rebuilds it")
    return FatalError(f"the state in {path} refused a statement ({error}): this is a fault of the program")


def verdict_at_start(error: sqlite3.Error, path: Path) -> ConfigError:
    """Return the error of our tree for one of SQLite's, seen before anything was started."""
    return ConfigError(
        f"state_dir: {path} cannot be used ({error}): free space on that disk, or make it and its directory "
        "readable and writable for the user that the daemon runs as"
    )


def keep_temporary_files(folder: Path) -> None:
    """Have SQLite's temporary files lie in a folder from now on, in this process; not where ``SQLITE_TMPDIR`` is set.

    They may be as large as the ledger, and belong on the disk that is meant for that. The variable cannot be set here:
    SQLite reads it when it is loaded. This way is deprecated for programs that have threads by then, so it is gone at
    the start.

    Raises:
        sqlite3.Error: The folder cannot be written.
    """
    if os.environ.get("SQLITE_TMPDIR"):
        return
    with closing(sqlite3.connect(":memory:")) as connection:
        quoted = str(folder.absolute()).replace("'", "''")
        connection.execute(f"PRAGMA temp_store_directory = '{quoted}'")


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection to a database that is there, which begins and commits only when told to.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        isolation_level=None,
        # One thread at a time uses a connection, but not always the same one: the writer's is made by the opener,
        # a reader's goes from lease to lease.
        check_same_thread=False,
        timeout=_BUSY_TIMEOUT,
        cached_statements=256,
    )


def connect_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing.

    SQLite's ``mode=ro`` is not used: such a connection makes the log's side files where there are none, and as the
    last one to close it cannot take them away again.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    connection = connect(path)
    try:
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_writer(path: Path) -> sqlite3.Connection:
    """Return the connection that changes the state: every commit is on disk when it returns.

    Raises:
        sqlite3.Error: It cannot be opened.
        ConfigError: The file system cannot hold a write-ahead log.
    """
    connection = connect(path)
    try:
        _use_write_ahead_log(connection, path)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 1000")  # pages of 4 KiB
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA cache_size = -16000")  # KiB: keeps the ledger's inner pages in memory
    except BaseException:
        connection.close()
        raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    (journal,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if journal != "wal":
        raise ConfigError(
            f"state_dir: the file system of {path} cannot share memory between processes, which SQLite's "
            "write-ahead log needs: choose a state_dir on a local disk"
        )


class Readers:
    """A bounded pool of reading connections. Safe to call from any thread.

    Args:
        path: The database.
        limit: The most connections at a time; a reader beyond it waits for another to finish.
    """

    def __init__(self, path: Path, *, limit: int = 8) -> None:
        self._path = path
        self._slots = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    @contextmanager
    def lease(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection. Whoever has it fetches all that they want before they give it back.

        A cursor left open would hold a snapshot, and the write-ahead log could not be emptied behind it.

        Raises:
            UnavailableError: The state cannot be read.
            FatalError: It is damaged, or closed.
        """
        with self._slots:
            try:
                connection = self._take()
            except sqlite3.Error as error:
                raise verdict(error, self._path) from error
            try:
                yield connection
            except sqlite3.Error as error:
                connection.close()
                raise verdict(error, self._path) from error
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)

    def close(self) -> None:
        """Close the idle connections; those that are lent close when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise FatalError(f"the state in {self._path} is closed")
            if self._idle:
                return self._idle.pop()
        return connect_reader(self._path)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()
