"""How much the state holds of each source, without counting it.

Triggers keep one record a source and collection (``migrations``), in the transaction that changes what is counted, so
that the numbers are exact. Counting when asked was turned down: status, metrics and the retry queue ask all the time,
and the rows of a million documents are in a million records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

_COUNTS = """
    SELECT source, SUM(documents), SUM(tombstones), SUM(parked), SUM(dead_letters) FROM holdings
    WHERE documents + tombstones + parked + dead_letters > 0 GROUP BY source ORDER BY source
    """
_SOURCES = """
    SELECT source, collection, documents FROM holdings
    WHERE documents + tombstones + seens + parked + dead_letters > 0 ORDER BY source, collection
    """


@dataclass(frozen=True, slots=True)
class Counts:
    """What the state holds of a source."""

    documents: int = 0
    tombstones: int = 0
    parked: int = 0
    dead_letters: int = 0


def counts(connection: sqlite3.Connection) -> dict[str, Counts]:
    """Return what is held of each source, in all collections together."""
    return {source: Counts(*numbers) for source, *numbers in connection.execute(_COUNTS)}


def sources(connection: sqlite3.Connection) -> list[tuple[str, str, int]]:
    """Return (source, collection, documents that are not deleted) for all of which anything is known."""
    return connection.execute(_SOURCES).fetchall()


def rows(connection: sqlite3.Connection, collection: str) -> int:
    """Return the number of present rows in a collection."""
    query = "SELECT COALESCE(SUM(rows), 0) FROM holdings WHERE collection = ?"
    (count,) = connection.execute(query, (collection,)).fetchone()
    return int(count)


def parked(connection: sqlite3.Connection, owned: Collection[tuple[str, str]]) -> int:
    """Return the number of parked events of these (source, collection)."""
    held = connection.execute("SELECT source, collection, parked FROM holdings").fetchall()
    return sum(count for source, collection, count in held if (source, collection) in owned)
