"""The dead letters' SQL: events that failed for good, with what is needed to see why and to try them again.

Bounded in number and in bytes. Beyond the bytes a letter is a reference, which the sources can follow; beyond the
number nothing is settled any more, for what would make room is the loss of a letter that nobody has read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ingestd.errors import UnavailableError
from ingestd.model import Content, DeadLetter, DocumentKey, Op, Verdict, canonical_json
from ingestd.store.order import GOOD, is_older, version_columns, version_from
from ingestd.store.records import pack, unpack
from ingestd.store.retries import failure_columns, failure_from, place
from ingestd.store.seens import signature_of
from ingestd.store.text import from_column, from_optional, to_column

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from ingestd.model import Event, Fingerprints, Outcome

DEPENDENCY = "dead letters"
"""What the breaker is called that opens when no more dead letters are allowed."""

_SOME = 500
"""Ids of one statement."""

_INSERT = """
    INSERT INTO dead_letters
        (op, attempts, last_failed_at, version, domain, fingerprint, stage, error, message, traceback,
         collection, document_id, source, position, signature, first_failed_at, metadata, kept)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '{}', 0)
    """
_REPLACE = """
    UPDATE dead_letters SET
        op = ?, attempts = ?, last_failed_at = ?, version = ?, domain = ?, fingerprint = ?, stage = ?, error = ?,
        message = ?, traceback = ?
    WHERE id = ?
    """
_KEEP = """
    UPDATE dead_letters SET name = ?, content_type = ?, metadata = ?, size = ?, kept = ?, data = ? WHERE id = ?
    """
_SAME = """
    SELECT id, kept FROM dead_letters
    WHERE collection = ? AND document_id = ? AND source = ? AND position = ? AND signature IS ?
    """
_OF_DOCUMENT = """
    SELECT id, version, domain, first_failed_at, kept FROM dead_letters
    WHERE collection = ? AND document_id = ? AND source = ?
    """
_WITH_LETTERS = "SELECT document_id FROM dead_letters WHERE collection = ? AND document_id IN ({})"
_PAGE = """
    SELECT id, collection, document_id, op, source, position, attempts, first_failed_at, last_failed_at, version,
           domain, fingerprint, name, content_type, metadata, size, CASE WHEN ? THEN data END, record,
           stage, error, message, traceback
    FROM dead_letters WHERE id > ? ORDER BY id LIMIT ?
    """
_SOME_OF = """
    SELECT id, collection, document_id, op, source, position, attempts, first_failed_at, last_failed_at, version,
           domain, fingerprint, name, content_type, metadata, size, CASE WHEN ? THEN data END, record,
           stage, error, message, traceback
    FROM dead_letters WHERE id IN ({}) ORDER BY id
    """
_LAST_OF = """
    SELECT id, collection, document_id, op, source, position, attempts, first_failed_at, last_failed_at, version,
           domain, fingerprint, name, content_type, metadata, size, NULL, record,
           stage, error, message, traceback
    FROM dead_letters WHERE collection = ? AND document_id = ? AND source = ?
    ORDER BY last_failed_at DESC, id DESC LIMIT 1
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the dead letters may take."""

    letters: int
    """The most letters in all."""
    total_bytes: int
    """The most bytes of originals in all; beyond it letters are references."""
    each_bytes: int
    """The most bytes of one original; a larger one is a reference."""


class Settlement:
    """What one transaction does to the dead letters. Not kept beyond it.

    Args:
        connection: In the transaction.
        limits: How much they may take.
        now: Seconds since 1970.
    """

    def __init__(self, connection: sqlite3.Connection, limits: Limits, now: float) -> None:
        self._connection = connection
        self._limits = limits
        self._now = now
        query = "SELECT COUNT(*), COALESCE(SUM(kept), 0) FROM dead_letters"
        self._count, self._kept = connection.execute(query).fetchone()
        self._most = max(limits.letters, self._count)  # a limit that was lowered refuses only what adds to it

    def settle(self, outcome: Outcome, fingerprints: Fingerprints) -> int:
        """Add the event's letter, or remove those that its good end mends.

        Returns:
            How many letters were mended.
        """
        if outcome.published:
            return 0
        if outcome.verdict is Verdict.DEAD_LETTERED:
            self._add(outcome, fingerprints)
        elif outcome.verdict in GOOD and self._count:
            return self._mend(outcome)
        return 0

    def check(self) -> None:
        """Refuse the whole transaction if there are more letters than allowed.

        Raises:
            UnavailableError: There are.
        """
        if self._count > self._most:
            raise UnavailableError(
                DEPENDENCY,
                f"there are {self._limits.letters:,} dead letters, as many as are allowed: intake waits and nothing "
                "is dropped. Look at them with `ingestd dead-letters list`, mend their cause, and replay or discard "
                "them; or allow more",
            )

    def _add(self, outcome: Outcome, fingerprints: Fingerprints) -> None:
        event = outcome.event
        if outcome.failure is None:
            raise ValueError(f"{event.key}: a dead letter has a failure")
        said = (
            event.op.value,
            event.attempt,
            self._now,
            *version_columns(event.version),
            fingerprints.configuration,
            *failure_columns(outcome.failure),
        )
        which = (*place(event), to_column(signature_of(outcome)))
        same = self._connection.execute(_SAME, which).fetchone()
        if same is None:
            first_failed_at = self._now if event.first_failed_at is None else event.first_failed_at
            letter = self._connection.execute(_INSERT, (*said, *which, first_failed_at)).lastrowid
            kept_before = 0
            self._count += 1
        else:
            letter, kept_before = same
            self._connection.execute(_REPLACE, (*said, letter))
        content = _original(event, outcome.content)
        packed = None if event.record is None else pack(event.record)
        if content is not None or packed is not None:  # or else what an earlier try has read is still the best there is
            self._keep(letter, content, packed, kept_before)

    def _keep(self, letter: int | None, content: Content | None, packed: bytes | None, kept_before: int) -> None:
        room = self._limits.total_bytes - (self._kept - kept_before)
        if packed is not None and len(packed) > min(self._limits.each_bytes, room):
            packed = None  # headers may be as large as values; the topic has them
        kept = len(packed or b"")
        query = "UPDATE dead_letters SET record = ?, kept = ? WHERE id = ?"
        self._connection.execute(query, (packed, kept, letter))
        if content is not None:
            kept += self._keep_content(letter, content, kept, room - kept)
        self._kept += kept - kept_before

    def _keep_content(self, letter: int | None, content: Content, kept_before: int, room: int) -> int:
        """Keep of an original what there is room for; return its bytes."""
        # Without room for its metadata either, a letter still says which document failed, and why.
        room = min(self._limits.each_bytes, room)
        metadata = canonical_json(dict(content.metadata)).decode()
        kept = len(metadata) if content.metadata else 0
        if kept > room:
            metadata, kept = "{}", 0
        data = content.data if len(content.data) <= min(self._limits.each_bytes, room - kept) else None
        kept += len(data or b"")
        what = (to_column(content.name), to_column(content.content_type), metadata, len(content.data))
        self._connection.execute(_KEEP, (*what, kept_before + kept, data, letter))
        return kept

    def _mend(self, outcome: Outcome) -> int:
        event = outcome.event
        key = (event.key.collection, event.key.document_id, event.source)
        mended = 0
        for letter, number, domain, first_failed_at, kept in self._connection.execute(_OF_DOCUMENT, key).fetchall():
            if not is_older(event, version_from(number, domain), first_failed_at):
                self._connection.execute("DELETE FROM dead_letters WHERE id = ?", (letter,))
                self._count -= 1
                self._kept -= kept
                mended += 1
        return mended


def _original(event: Event, content: Content | None) -> Content | None:
    """Return what is kept of an event: a file as it was read, and of a record its value as it came."""
    if event.record is None or event.record.value is None:
        return content
    if content is None:
        return Content(event.record.value, event.key.document_id)
    return replace(content, data=event.record.value, text=None)


def page(connection: sqlite3.Connection, after: int, limit: int, *, data: bool) -> list[DeadLetter]:
    """Return letters with ids greater than ``after``, oldest first, with or without their originals."""
    return [_letter(record) for record in connection.execute(_PAGE, (data, after, limit))]


def some(connection: sqlite3.Connection, ids: Sequence[int], *, data: bool) -> list[DeadLetter]:
    """Return those of these letters that are there, oldest first, with or without their originals."""
    query = _SOME_OF.format(",".join("?" * len(ids)))
    return [_letter(record) for record in connection.execute(query, (data, *ids))]


def documents(connection: sqlite3.Connection, collection: str, ids: Sequence[str]) -> set[str]:
    """Return those of these documents of a collection that have letters: at most 500 of them can be asked for."""
    records = connection.execute(_WITH_LETTERS.format(",".join("?" * len(ids))), (collection, *ids))
    return {document_id for (document_id,) in records}


def last(connection: sqlite3.Connection, source: str, document_id: str, collection: str) -> DeadLetter | None:
    """Return a document's last letter, without its original; None: there is none."""
    record = connection.execute(_LAST_OF, (collection, document_id, source)).fetchone()
    return None if record is None else _letter(record)


def discard(connection: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Remove letters; return how many were there."""
    removed = 0
    for at in range(0, len(ids), _SOME):
        part = ids[at : at + _SOME]
        marks = ",".join("?" * len(part))
        removed += connection.execute(f"DELETE FROM dead_letters WHERE id IN ({marks})", part).rowcount  # noqa: S608 - marks only
    return removed


def forget(connection: sqlite3.Connection, source: str, collection: str) -> None:
    """Remove a source's letters."""
    connection.execute("DELETE FROM dead_letters WHERE source = ? AND collection = ?", (source, collection))


def _letter(record: Sequence[Any]) -> DeadLetter:
    number, collection, document_id, op, source, position, attempts, first_failed_at, last_failed_at, *rest = record
    version, domain, fingerprint, name, content_type, metadata, size, data, packed, *failure = rest
    return DeadLetter(
        id=number,
        key=DocumentKey(collection, document_id),
        op=Op(op),
        source=source,
        position=from_column(position),
        failure=failure_from(*failure),
        attempts=attempts,
        first_failed_at=first_failed_at,
        last_failed_at=last_failed_at,
        version=version_from(version, domain),
        fingerprint=fingerprint,
        name=from_optional(name),
        content_type=from_optional(content_type),
        metadata=json.loads(metadata),
        size=size,
        data=data,
        record=unpack(packed, data),
    )
