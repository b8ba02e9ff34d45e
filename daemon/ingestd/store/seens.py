"""The seens' SQL: what a source that can be looked at again saw of a document when that was settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.model import Seen, Verdict
from ingestd.store.text import from_column, to_column

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from ingestd.model import Fingerprints, Outcome

_LOOKED_AT = frozenset({Verdict.WRITTEN, Verdict.UNCHANGED, Verdict.DEAD_LETTERED})

_PUT = """
    INSERT INTO seens (source, document_id, collection, signature, verdict, fingerprint) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (source, document_id, collection) DO UPDATE SET
        signature = excluded.signature, verdict = excluded.verdict, fingerprint = excluded.fingerprint
    """
_PAGE = """
    SELECT document_id, collection, signature, verdict, fingerprint FROM seens
    WHERE source = ?1 AND (document_id, collection) > (?2, ?3) AND (?4 IS NULL OR collection = ?4)
    ORDER BY document_id, collection LIMIT ?5
    """
_SOME = """
    SELECT document_id, signature, verdict, fingerprint FROM seens
    WHERE source = ? AND collection = ? AND document_id IN ({})
    """


def settle(connection: sqlite3.Connection, outcome: Outcome, fingerprints: Fingerprints) -> None:
    """Note what was seen of a document that ended, as far as its source says what it saw."""
    event = outcome.event
    if outcome.verdict is Verdict.DELETED:
        connection.execute(
            "DELETE FROM seens WHERE source = ? AND document_id = ? AND collection = ?",
            (event.source, event.key.document_id, event.key.collection),
        )
        return
    if outcome.verdict is Verdict.SUPERSEDED:
        # The retry queue has nothing more of it: left so, a file that is there all the same would never be looked at.
        connection.execute(
            "DELETE FROM seens WHERE source = ? AND document_id = ? AND collection = ? AND verdict = ?",
            (event.source, event.key.document_id, event.key.collection, Verdict.RETRYING.value),
        )
        return
    signature = signature_of(outcome)
    if outcome.verdict not in _LOOKED_AT or signature is None:
        return
    dead = outcome.verdict is Verdict.DEAD_LETTERED
    fingerprint = fingerprints.configuration if dead else fingerprints.processing
    key = (event.source, event.key.document_id, event.key.collection)
    connection.execute(_PUT, (*key, to_column(signature), outcome.verdict.value, fingerprint))


def wait(connection: sqlite3.Connection, source: str, document_id: str, collection: str) -> None:
    """Note that a dead letter is to be tried again: its source leaves the document to the retry queue."""
    query = "UPDATE seens SET verdict = ? WHERE source = ? AND document_id = ? AND collection = ? AND verdict = ?"
    verdicts = Verdict.RETRYING.value, Verdict.DEAD_LETTERED.value
    connection.execute(query, (verdicts[0], source, document_id, collection, verdicts[1]))


def signature_of(outcome: Outcome) -> str | None:
    """Return what the source saw: when it read the bytes, or else when it made the event."""
    if outcome.content is not None and outcome.content.signature is not None:
        return outcome.content.signature
    return outcome.event.signature


def page(
    connection: sqlite3.Connection, source: str, collection: str | None, after: tuple[str, str], limit: int
) -> tuple[list[Seen], tuple[str, str]]:
    """Return seens of a source, and what to pass as ``after`` for those that follow; start with two empty texts.

    Args:
        connection: To read from.
        source: The source.
        collection: Only what was settled in it; None: in any.
        after: (document's id, collection) of the last one of the page before.
        limit: The most to return.
    """
    records = connection.execute(_PAGE, (source, *after, collection, limit)).fetchall()
    seens = [
        Seen(source, document_id, from_column(signature), Verdict(verdict), fingerprint)
        for document_id, _, signature, verdict, fingerprint in records
    ]
    return seens, records[-1][:2] if records else after


def some(connection: sqlite3.Connection, source: str, collection: str, ids: Sequence[str]) -> dict[str, Seen]:
    """Return what was seen of these documents in a collection, by document: at most 500 of them can be asked for."""
    records = connection.execute(_SOME.format(",".join("?" * len(ids))), (source, collection, *ids))
    return {
        document_id: Seen(source, document_id, from_column(signature), Verdict(verdict), fingerprint)
        for document_id, signature, verdict, fingerprint in records
    }


def confirm(connection: sqlite3.Connection, source: str, documents: Iterable[str]) -> None:
    """Note that the deletes of these documents may go on."""
    query = "INSERT OR IGNORE INTO confirmations (source, document_id) VALUES (?, ?)"
    connection.executemany(query, ((source, document) for document in documents))


def is_confirmed(connection: sqlite3.Connection, source: str) -> bool:
    """Return whether deletes of the source were confirmed."""
    return connection.execute("SELECT 1 FROM confirmations WHERE source = ?", (source,)).fetchone() is not None


def take_confirmation(connection: sqlite3.Connection, source: str) -> frozenset[str]:
    """Remove the notes, and return the documents that they are about."""
    query = "DELETE FROM confirmations WHERE source = ? RETURNING document_id"
    return frozenset(document for (document,) in connection.execute(query, (source,)).fetchall())


def forget(connection: sqlite3.Connection, source: str, collection: str) -> None:
    """Remove a source's seens, and its confirmation."""
    connection.execute("DELETE FROM seens WHERE source = ? AND collection = ?", (source, collection))
    connection.execute("DELETE FROM confirmations WHERE source = ?", (source,))
