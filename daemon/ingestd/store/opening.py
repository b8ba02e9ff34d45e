"""Before the state is used: a sound file of the current schema, or a clear word on why there is none.

Owns the three ways in: a new file is built aside and renamed into place, so that ``ingestd.db`` never exists half
made; a damaged one is set aside, to be looked at, and a new one takes its place; a sound one is taken to the current
schema. Repairing a damaged file was turned down: what a repair brings back cannot be told from what it lost, while
Milvus and the sources know the truth.

A file that was closed is held against its seal, and one that was not against its mark (``store.proof``); of the latter
the indexes are held against the tables, and all that is in it is read once. What its keys say is held against Milvus
then anyway (``engine.reconcile``).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingestd.errors import ConfigError
from ingestd.store import dead_letters, ledger, retries, runs, seens
from ingestd.store.connections import connect, connect_reader, is_damage, is_outage, verdict_at_start
from ingestd.store.lock import unusable
from ingestd.store.migrations import APPLICATION_ID, MIGRATIONS, migrate, schema_version
from ingestd.store.proof import MARK, break_seal, is_short, marked, sealed, side, sync_directory

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.store.proof import Marked

DATABASE = "ingestd.db"
_SIDES = ("-wal", "-shm")
_PAGE = 1_000
_SMALLEST_PAGE = 512
"""Bytes of SQLite's."""


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
        break_seal(path)
        if not path.exists():
            _create(path)
        with closing(connect(path)) as connection:
            migrate(connection, schema_version(connection, path))
    except sqlite3.Error as error:
        raise verdict_at_start(error, path) from error
    except OSError as error:
        raise ConfigError(unusable(path.parent, error)) from error
    return set_aside


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
        return any(side(path, suffix).exists() for suffix in _SIDES)
    if _is_ragged(path):  # never so by our hand (see _create), nor by SQLite's
        return True
    known = sealed(path)
    return known is False or not _is_sound(path, known=bool(known))


def _is_ragged(path: Path) -> bool:
    size = path.stat().st_size
    # Where there is a log, it has what a checkpoint wrote in part.
    return not size or bool(size % _SMALLEST_PAGE and not side(path, "-wal").exists())


def _is_sound(path: Path, *, known: bool) -> bool:
    """Return whether a file can be used.

    Args:
        path: The file.
        known: Whether it is as it was left, byte for byte.

    Raises:
        sqlite3.Error: The disk does not answer, or the file cannot be judged.
    """
    mark = marked(path)
    try:
        with closing(connect(path)) as connection:
            if not _is_known(connection):
                return True
            (answer,) = connection.execute(f"PRAGMA {'quick' if known else 'integrity'}_check(1)").fetchone()
            return bool(answer == "ok") and (known or _is_whole(connection, mark))
    except UnicodeDecodeError:  # SQLite's word on it quotes what it found
        return False
    except sqlite3.Error as error:
        if is_damage(error) or not hasattr(error, "sqlite_errorcode"):  # the module's own: a text that is no UTF-8
            return False
        raise


def _is_known(connection: sqlite3.Connection) -> bool:
    """Return whether it is for us to judge: another program's and a newer version's file is left alone."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return bool(application == APPLICATION_ID and version <= len(MIGRATIONS))


def _is_whole(connection: sqlite3.Connection, mark: Marked | None) -> bool:
    """Return whether all that was acknowledged is there, and can be read: what cannot would end each run that meets it.

    Args:
        connection: To a file that was not closed, or was changed since.
        mark: What is known of it.

    Raises:
        sqlite3.Error: The disk does not answer.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    try:
        if is_short(connection, mark):
            return False
        if version == len(MIGRATIONS):  # an older version's columns are others
            _read_all(connection)
    except sqlite3.Error as error:
        if is_outage(error):
            raise
        return False  # a text that is no UTF-8, for one
    except (ValueError, TypeError, LookupError, AttributeError):
        return False
    return True


def _read_all(connection: sqlite3.Connection) -> None:
    """Read what the daemon will read, but for the originals of dead letters.

    Raises:
        sqlite3.Error: The disk does not answer, or a text is no UTF-8.
        ValueError: It cannot be read; so do TypeError, LookupError and AttributeError say.
    """
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


def _set_aside(path: Path, now: float) -> Path:
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    again = 1
    while any(os.path.lexists(name) for name in (target, *(side(target, suffix) for suffix in (*_SIDES, MARK)))):
        again += 1
        target = path.with_name(f"{path.name}.corrupt-{stamp}-{again}")
    # The database first: left behind by a crash in between, a log without a database is seen at the next start. A
    # database without its log might pass the check, and would silently lack what was acknowledged last.
    for suffix in ("", *_SIDES, MARK):
        if side(path, suffix).exists():
            side(path, suffix).rename(side(target, suffix))
    sync_directory(path)
    return target


def _create(path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    for suffix in ("", "-journal", *_SIDES):
        side(unfinished, suffix).unlink(missing_ok=True)
    side(path, MARK).unlink(missing_ok=True)  # of one that somebody took away
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
    sync_directory(path)
