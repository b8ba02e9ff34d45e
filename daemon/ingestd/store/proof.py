"""What proves that the database is the one that was left: SQLite's own check sees a broken structure, and no more.

Two small files beside it:

- A *seal*, of a database that was closed: its digest, with the time of its last change. It is broken before anything is
  written. A checksum for each record was turned down: every write would pay for it.
- A *mark*, of one that is in use: how many transactions it has been through, written after each. A log that lost its
  end, or a frame in its middle, is to SQLite a shorter log: what it had acknowledged is gone without a word. The mark
  is not synced. A commit is on disk before its mark is written, so whatever becomes of the machine, the mark is never
  ahead of a database that lost nothing. It is about one session, whose id is in the database itself, and not only in
  its log: a backup that is put in its place is of another one.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

SEAL = ".seal"
MARK = ".commits"
_SEALED = re.compile(rb"([0-9a-f]{64}) (\d+)\n")
_MARKED = re.compile(rb"((\d{20}) ([0-9a-f]{16})) ([0-9a-f]{8})\n")


def side(path: Path, suffix: str) -> Path:
    """Return the path of a file beside the database."""
    return path.with_name(path.name + suffix)


def sync_directory(path: Path) -> None:
    """Have the directory of a file on disk: what was made, renamed and removed in it.

    Raises:
        OSError: The disk does not take it.
    """
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Of a file that is closed


def seal(path: Path) -> None:
    """Leave the digest of a database that was closed beside it, if the disk takes it.

    One whose log could not be emptied gets none: it is checked like one that was not closed.
    """
    unfinished = side(path, f"{SEAL}.new")
    with suppress(OSError):
        if not side(path, "-wal").exists():
            with unfinished.open("wb") as file:
                file.write(f"{_digest(path)} {path.stat().st_mtime_ns}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(side(path, SEAL))
            sync_directory(path)
            side(path, MARK).unlink(missing_ok=True)  # a backup that is put in its place is none that lost anything


def sealed(path: Path) -> bool | None:
    """Return whether a database is, byte for byte, what its seal says; None: nothing is known of it.

    A seal says nothing about a file that was written to since, nor about a backup that was put in its place.

    Raises:
        OSError: The disk does not answer.
    """
    if side(path, "-wal").exists() or not side(path, SEAL).exists():
        return None
    found = _SEALED.fullmatch(side(path, SEAL).read_bytes())
    if found is None or int(found[2]) != path.stat().st_mtime_ns:
        return None
    return found[1].decode() == _digest(path)


def break_seal(path: Path) -> None:
    """Take the seal away, before anything is written.

    Raises:
        OSError: The disk does not take it.
    """
    if side(path, SEAL).exists():
        side(path, SEAL).unlink()
        sync_directory(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Of a file that is in use


class Marked(NamedTuple):
    """What a mark says, or a database of itself."""

    commits: int
    """Transactions that it has been through; 0: it was never counted."""
    session: str
    """The id of the writer that went through the last of them."""


class Mark:
    """The number of transactions that a database has been through, in it and beside it. Of the writer's thread alone.

    Args:
        path: The database.
    """

    def __init__(self, path: Path) -> None:
        self._path = side(path, MARK)
        self._descriptor: int | None = None
        self._session = secrets.token_hex(8)
        self._begun = False
        self._count = 0

    def begin(self, connection: sqlite3.Connection) -> None:
        """Count one more, in the transaction that the connection is in."""
        self._count = told(connection).commits + 1
        said = [("commits", str(self._count))]
        if not self._begun:
            said.append(("session", self._session))
        connection.executemany("REPLACE INTO meta (key, value) VALUES (?, ?)", said)

    def set(self, connection: sqlite3.Connection) -> None:
        """Write down, beside the database, that the transaction is on disk.

        A disk that does not take it says so with the next transaction; without its mark, this one is only less guarded.
        """
        if not self._begun:
            # Out of the log, which may be lost. Where a reader is in the way, the session is known a little later.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._begun = True
        said = f"{self._count:020d} {self._session}"
        line = f"{said} {zlib.crc32(said.encode()):08x}\n".encode()
        with suppress(OSError):
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
            os.pwrite(self._descriptor, line, 0)

    def close(self) -> None:
        """Let go of the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def told(connection: sqlite3.Connection) -> Marked:
    """Return what a database says of itself.

    Raises:
        sqlite3.Error: It cannot be read.
        ValueError: What it says is no number.
    """
    query = "SELECT key, value FROM meta WHERE key IN ('commits', 'session')"
    said = dict(connection.execute(query).fetchall())
    return Marked(int(said.get("commits", 0)), said.get("session", ""))


def marked(path: Path) -> Marked | None:
    """Return what the mark of a database says; None: there is none, or none that can be read.

    Raises:
        OSError: The disk does not answer.
    """
    try:
        found = _MARKED.fullmatch(side(path, MARK).read_bytes())
    except FileNotFoundError:
        return None
    if found is None or int(found[4], 16) != zlib.crc32(found[1]):
        return None
    return Marked(int(found[2]), found[3].decode())


def is_short(connection: sqlite3.Connection, mark: Marked | None) -> bool:
    """Return whether a database lacks transactions that its own session has acknowledged.

    Raises:
        sqlite3.Error: It cannot be read.
        ValueError: What it says is no number.
    """
    known = told(connection)
    return mark is not None and known.session == mark.session and known.commits < mark.commits
