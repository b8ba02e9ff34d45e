"""The schema, as the steps that led to it.

A step is run once, in one transaction, and ``user_version`` counts them. Steps expand before they contract: one
release adds and fills what is new, a later one drops what nothing reads any more, so that a step never rewrites the
file in the middle of a start. A step that was released is never edited. A tool for migrations was turned down: there
is one file, one writer, and one direction.

Three choices in the schema:

- Text that others wrote (positions, names, messages) may hold lone surrogates, from file names that are no UTF-8;
  SQLite's text cannot. Such a value is stored as a BLOB in its text column (``text.to_column``), so tables are not
  STRICT.
- ``entries`` has a rowid, for its blobs can be large; ``seens`` is small and has none.
- Versions of parked events and dead letters are text: they are whatever a producer claimed, and a number beyond 64
  bits must not keep a dead letter from being written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

APPLICATION_ID = 0x696E6764
"""``ingd``: tells our file from any other SQLite database."""

_FIRST = (
    """
    CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE bindings (
        collection TEXT PRIMARY KEY,
        identity TEXT NOT NULL      -- the random id of the Milvus collection that the entries are about
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY,     -- what a scan pages by
        collection TEXT NOT NULL,
        document_id TEXT NOT NULL,
        source TEXT NOT NULL,
        version INTEGER NOT NULL,
        domain TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        content TEXT NOT NULL,
        present BLOB NOT NULL,      -- 16 bytes of chunk id and 16 of digest, for each row
        doubtful BLOB NOT NULL,     -- 16 bytes of chunk id, for each row
        deleted INTEGER NOT NULL,
        UNIQUE (collection, document_id)
    )
    """,
    "CREATE INDEX entries_by_source ON entries (source, collection, deleted)",
    """
    CREATE TABLE seens (
        source TEXT NOT NULL,
        document_id TEXT NOT NULL,
        collection TEXT NOT NULL,
        signature TEXT NOT NULL,
        verdict TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        PRIMARY KEY (source, document_id, collection)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE confirmations (
        source TEXT PRIMARY KEY     -- whose held deletes an operator let go
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE parked (
        id INTEGER PRIMARY KEY,
        collection TEXT NOT NULL,
        document_id TEXT NOT NULL,
        source TEXT NOT NULL,
        position TEXT NOT NULL,
        op TEXT NOT NULL,
        attempt INTEGER NOT NULL,   -- the number of the next try
        first_failed_at REAL NOT NULL,
        due_at REAL NOT NULL,
        version TEXT,
        domain TEXT,
        stage TEXT NOT NULL,
        error TEXT NOT NULL,
        message TEXT NOT NULL,
        traceback TEXT,
        UNIQUE (collection, document_id, source, position)
    )
    """,
    "CREATE INDEX parked_by_due ON parked (due_at)",
    """
    CREATE TABLE dead_letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,   -- an operator's note of an id never comes to mean another letter
        collection TEXT NOT NULL,
        document_id TEXT NOT NULL,
        source TEXT NOT NULL,
        position TEXT NOT NULL,
        signature TEXT,
        op TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        first_failed_at REAL NOT NULL,
        last_failed_at REAL NOT NULL,
        version TEXT,
        domain TEXT,
        fingerprint TEXT NOT NULL,
        stage TEXT NOT NULL,
        error TEXT NOT NULL,
        message TEXT NOT NULL,
        traceback TEXT,
        name TEXT,
        content_type TEXT,
        metadata TEXT NOT NULL,
        size INTEGER,
        kept INTEGER NOT NULL,      -- bytes of the original that are here
        data BLOB                   -- last: a listing that leaves it out never reads past what is before it
    )
    """,
    "CREATE INDEX dead_letters_by_document ON dead_letters (collection, document_id)",
    "CREATE INDEX dead_letters_by_kept ON dead_letters (source, kept)",
)

_SIZE = "documents, tombstones, rows, seens, parked, dead_letters"


def _counting(table: str, happening: str, changes: str, of: str, sign: str, *, when: str = "1") -> str:
    """Return a trigger that adds to, or takes from, what is held for the owner of a record."""
    # No ON CONFLICT here: within a trigger the policy of the statement that set it off would count instead.
    return f"""
        CREATE TRIGGER {table}_{happening.lower()}_{"counted" if sign == "+" else "discounted"}
        AFTER {happening} ON {table} WHEN {when} BEGIN
            INSERT INTO holdings (source, collection)
                SELECT {of}.source, {of}.collection WHERE NOT EXISTS (
                    SELECT 1 FROM holdings WHERE source = {of}.source AND collection = {of}.collection
                );
            UPDATE holdings SET {changes.format(of=of, sign=sign)}
                WHERE source = {of}.source AND collection = {of}.collection;
        END
        """  # noqa: S608 - names of this module's alone


_OF_ENTRY = """
    documents = documents {sign} (NOT {of}.deleted), tombstones = tombstones {sign} {of}.deleted,
    rows = rows {sign} length({of}.present) / 32
    """

_HOLDINGS = (
    """
    CREATE TABLE holdings (         -- how many records of each kind there are, kept by triggers: asked all the time
        source TEXT NOT NULL,
        collection TEXT NOT NULL,
        documents INTEGER NOT NULL DEFAULT 0,
        tombstones INTEGER NOT NULL DEFAULT 0,
        rows INTEGER NOT NULL DEFAULT 0,        -- present ones
        seens INTEGER NOT NULL DEFAULT 0,
        parked INTEGER NOT NULL DEFAULT 0,
        dead_letters INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (source, collection)
    ) WITHOUT ROWID
    """,
    f"""
    INSERT INTO holdings (source, collection, {_SIZE})
    SELECT source, collection, SUM(documents), SUM(tombstones), SUM(rows), SUM(seens), SUM(parked), SUM(dead_letters)
    FROM (
        SELECT source, collection, NOT deleted AS documents, deleted AS tombstones, length(present) / 32 AS rows,
               0 AS seens, 0 AS parked, 0 AS dead_letters FROM entries
        UNION ALL SELECT source, collection, 0, 0, 0, 1, 0, 0 FROM seens
        UNION ALL SELECT source, collection, 0, 0, 0, 0, 1, 0 FROM parked
        UNION ALL SELECT source, collection, 0, 0, 0, 0, 0, 1 FROM dead_letters
    ) GROUP BY source, collection
    """,  # noqa: S608 - this module's columns
    _counting("entries", "INSERT", _OF_ENTRY, "NEW", "+"),
    _counting("entries", "UPDATE", _OF_ENTRY, "OLD", "-"),
    _counting("entries", "UPDATE", _OF_ENTRY, "NEW", "+"),
    _counting("entries", "DELETE", _OF_ENTRY, "OLD", "-"),
    # What these count never comes to belong to another source or collection.
    *(
        _counting(table, happening, f"{table} = {table} {{sign}} 1", of, sign)
        for table in ("seens", "parked", "dead_letters")
        for happening, of, sign in (("INSERT", "NEW", "+"), ("DELETE", "OLD", "-"))
    ),
    "CREATE INDEX parked_by_owner ON parked (source, collection, due_at)",
)

_CONFIRMED_DOCUMENTS = (
    # A confirmation is about the documents that were gone when it was given, not about whatever goes later.
    "DROP TABLE confirmations",
    """
    CREATE TABLE confirmations (
        source TEXT NOT NULL,
        document_id TEXT NOT NULL,
        PRIMARY KEY (source, document_id)
    ) WITHOUT ROWID
    """,
)

_SAME_OWNER = "OLD.source = NEW.source AND OLD.collection = NEW.collection"

_QUICKER_COUNTS = (
    # An entry is changed twice for each version, and hardly ever comes to be another source's: one look at the two
    # sizes, and one change of the counts where they differ.
    "DROP TRIGGER entries_update_discounted",
    "DROP TRIGGER entries_update_counted",
    f"""
        CREATE TRIGGER entries_update_recounted AFTER UPDATE ON entries
        WHEN {_SAME_OWNER}
            AND (OLD.deleted <> NEW.deleted OR length(OLD.present) <> length(NEW.present)) BEGIN
            UPDATE holdings SET
                documents = documents + (NOT NEW.deleted) - (NOT OLD.deleted),
                tombstones = tombstones + NEW.deleted - OLD.deleted,
                rows = rows + length(NEW.present) / 32 - length(OLD.present) / 32
            WHERE source = NEW.source AND collection = NEW.collection;
        END
        """,  # noqa: S608 - this module's columns
    _counting("entries", "UPDATE", _OF_ENTRY, "OLD", "-", when=f"NOT ({_SAME_OWNER})"),
    _counting("entries", "UPDATE", _OF_ENTRY, "NEW", "+", when=f"NOT ({_SAME_OWNER})"),
)

_RECORDS = (
    # Of Kafka: under which lease an entry was written or an event parked, and the record that it came from.
    "ALTER TABLE entries ADD COLUMN tenure TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE parked ADD COLUMN tenure TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE parked ADD COLUMN record BLOB",
    "ALTER TABLE parked ADD COLUMN value BLOB",
    "ALTER TABLE dead_letters ADD COLUMN record BLOB",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _HOLDINGS, _CONFIRMED_DOCUMENTS, _RECORDS, _QUICKER_COUNTS)


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return how many steps the file has been through.

    Raises:
        ConfigError: It has been through more than this program knows, or it is another program's file.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise ConfigError(
            f"state_dir: {path} is an SQLite database of another program: move it away, or choose another state_dir"
        )
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"state_dir: {path} was written by a newer version of ingestd (schema {version}, this one knows "
            f"{len(MIGRATIONS)}): install that version again, or choose another state_dir"
        )
    return int(version)


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Take the file from the version that it has to the one that this program works with.

    Raises:
        sqlite3.Error: A step failed; the steps before it stand, and it is tried again at the next start.
    """
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number:d}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
