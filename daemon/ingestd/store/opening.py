"""Before the state is used: a sound file of the current schema, or a clear word on why there is none.

Owns the three ways in: a new file is built aside and renamed into place, so that ``ingestd.db`` never exists half
made; a damaged one is set aside, to be looked at, and a new one takes its place; a sound one is taken to the current
schema. Repairing a damaged file was turned down: what a repair brings back cannot be told from what it lost, while
Milvus and the sources know the truth.

SQLite's own check sees a broken structure, and not a byte that differs within a value. So a file that is closed gets a
digest beside it, and one that has it must have it still. A file that was not closed (the process was killed) has none:
its indexes are held against its tables, and all that is in it is read once; what its keys say is held against Milvus
then anyway (``engine.reconcile``). A checksum for each record was turned down: every write would pay for it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingestd.errors import ConfigError
from ingestd.store import dead_letters, ledger, retries, runs, seens
from ingestd.store.connections import connect, connect_reader, is_damage, is_outage, verdict_at_start
from ingestd.store.lock import unusable
from ingestd.store.migrations import APPLICATION_ID, MIGRATIONS, migrate, schema_version

if TYPE_CHECKING:
    from pathlib import Path

DATABASE = "ingestd.db"
_SIDES = ("-wal", "-shm")
_SEAL = ".sum"
_PAGE = 1_000


def make_directory(state_dir: Path) -> None:
    """Make the state directory, for its owner's eyes only: dead letters hold documents.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(unusable(state_dir, error)) from error


def prepare(path: Path, now: float) -> Path | None:
    """Leave a sound database of the current schema at the path. The caller holds the lock.

    Args:
        path: The database.
        now: Seconds since 1970, for the name of a file that is set aside.

    Returns:
        Where a damaged one was put, or None.

    Raises:
        ConfigError: A newer schema, another program's file, or a disk that cannot be used.
    """
    try:
        set_aside = _set_aside(path, now) if _is_damaged(path) else None
        _break_seal(path)
        if not path.exists():
            _create(path)
        with closing(connect(path)) as connection:
            migrate(connection, schema_version(connection, path))
    except sqlite3.Error as error:
        raise verdict_at_start(error, path) from error
    except OSError as error:
        raise ConfigError(unusable(path.parent, error)) from error
    return set_aside


def seal(path: Path) -> None:
    """Leave the digest of a database that was closed beside it, if the disk takes it.

    One whose log could not be emptied gets none: it is checked like one that was not closed.
    """
    unfinished = _side(path, f"{_SEAL}.new")
    with suppress(OSError):
        if not _side(path, "-wal").exists():
            unfinished.write_bytes(_digest(path))
            unfinished.rename(_side(path, _SEAL))


def check_readable(path: Path) -> None:
    """Make sure that a command can read the state while a daemon uses it, or none runs. Changes nothing.

    Raises:
        ConfigError: There is no state yet, it has another schema, or it cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"state_dir: there is no state in {path.parent} yet: no daemon has run with it")
    try:
        with closing(connect_reader(path)) as connection:
            version = schema_version(connection, path)
    except sqlite3.Error as error:
        if is_damage(error):
            raise ConfigError(
                f"state_dir: {path} is damaged ({error}): the daemon's next start sets it aside and rebuilds it"
            ) from error
        raise verdict_at_start(error, path) from error
    if version < len(MIGRATIONS):
        raise ConfigError(
            f"state_dir: {path} has the schema of an older version of ingestd ({version}, this one reads "
            f"{len(MIGRATIONS)}): start, or start again, the daemon of this version first"
        )


def _is_damaged(path: Path) -> bool:
    if not path.exists():
        # A log without its database is what is left of one: SQLite would replay it into whatever takes its place.
        return any(_side(path, side).exists() for side in _SIDES)
    if path.stat().st_size == 0:  # never so by our hand (see _create)
        return True
    sealed = _side(path, _SEAL).exists() and not _side(path, "-wal").exists()
    if sealed and _side(path, _SEAL).read_bytes() != _digest(path):
        return True
    try:
        with closing(connect(path)) as connection:
            (answer,) = connection.execute(f"PRAGMA {'quick' if sealed else 'integrity'}_check(1)").fetchone()
            return bool(answer != "ok") or not (sealed or _is_legible(connection))
    except UnicodeDecodeError:  # SQLite's word on it quotes what it found
        return True
    except sqlite3.Error as error:
        if is_damage(error):
            return True
        raise


def _is_legible(connection: sqlite3.Connection) -> bool:
    """Return whether everything that is in the file can be read: whatever cannot would end each run that comes to it.

    Raises:
        sqlite3.Error: The disk does not answer.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or version != len(MIGRATIONS):
        return True  # another program's, or of another version: its columns are others
    try:
        runs.last(connection)
        for (collection,) in connection.execute("SELECT DISTINCT collection FROM entries").fetchall():
            after, entries = ledger.page(connection, collection, 0, _PAGE)[::-1]
            while entries:
                after, entries = ledger.page(connection, collection, after, _PAGE)[::-1]
        for (source,) in connection.execute("SELECT DISTINCT source FROM seens").fetchall():
            last, seen = seens.page(connection, source, None, ("", ""), _PAGE)[::-1]
            while seen:
                last, seen = seens.page(connection, source, None, last, _PAGE)[::-1]
        retries.soonest(connection, float("inf"), None)
        letters = dead_letters.page(connection, 0, _PAGE, data=False)
        while letters:
            letters = dead_letters.page(connection, letters[-1].id, _PAGE, data=False)
    except sqlite3.Error as error:
        if is_outage(error):
            raise
        return False  # a text that is no UTF-8, for one
    except (ValueError, TypeError, LookupError, AttributeError):
        return False
    return True


def _set_aside(path: Path, now: float) -> Path:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    again = 1
    while any(os.path.lexists(name) for name in (target, *(_side(target, side) for side in _SIDES))):
        again += 1
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{again}")
    # The database first: left behind by a crash in between, a log without a database is seen at the next start. A
    # database without its log might pass the check, and would silently lack what was acknowledged last.
    for side in ("", *_SIDES):
        if _side(path, side).exists():
            _side(path, side).rename(_side(target, side))
    _sync_directory(path)
    return target


def _create(path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    for side in ("", "-journal", *_SIDES):
        _side(unfinished, side).unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # SQLite's own would be 0644
    try:
        with closing(connect(unfinished)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
            migrate(connection, 0)
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_directory(path)


def _break_seal(path: Path) -> None:
    """Take the digest away, before anything is written: left there, the next start would see damage."""
    if _side(path, _SEAL).exists():
        _side(path, _SEAL).unlink()
        _sync_directory(path)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()


def _side(path: Path, side: str) -> Path:
    return path.with_name(path.name + side)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
