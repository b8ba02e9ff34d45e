"""The retry queue's SQL: one record for each event that waits for its next try.

An event is told by its document, source and position. Each Kafka record is one, so an older version is still there
when a newer one is dead-lettered; for a folder the position is the path, so a file waits once, whatever became of
it meanwhile.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ingestd.model import DocumentKey, Failure, Op, Parked, Stage, Verdict
from ingestd.store.order import GOOD, is_older, version_columns, version_from
from ingestd.store.records import pack, unpack
from ingestd.store.text import clip, clip_start, from_column, from_optional, to_column

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Sequence

    from ingestd.model import DeadLetter, Event, Outcome, Record
    from ingestd.store.text import Column

_MOOT = Failure(Stage.SOURCE, "Superseded", "")
"""Stands for the failure of an event that was parked and is not any more: nobody asks for it."""
_LARGEST_COPY = 65_536
"""Bytes of a value of which a copy waits here: thousands may wait, and every one of them is in its topic as well."""
_MESSAGE = 4_096
_TRACEBACK = 16_384

_PUT = """
    INSERT INTO parked
        (collection, document_id, source, position, op, attempt, first_failed_at, due_at, version, domain,
         stage, error, message, traceback, tenure, record, value)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    """
_TAKE = "DELETE FROM parked WHERE collection = ? AND document_id = ? AND source = ? AND position = ?"
_OF_DOCUMENT = """
    SELECT id, source, position, attempt, first_failed_at, version, domain, op FROM parked
    WHERE collection = ? AND document_id = ?
    """
_WAITING = "SELECT document_id FROM parked WHERE collection = ? AND document_id IN ({})"
_SOONEST = """
    SELECT collection, document_id, op, source, position, attempt, first_failed_at, due_at,
           stage, error, message, traceback, version, domain, tenure, NULL, NULL
    FROM parked WHERE due_at <= ? ORDER BY due_at, id LIMIT ?
    """
_DUE = """
    SELECT collection, document_id, op, source, position, attempt, first_failed_at, due_at,
           stage, error, message, NULL, version, domain, tenure, NULL, NULL
    FROM parked WHERE due_at <= ? ORDER BY due_at, id LIMIT ?
    """
_OF_TENURE = """
    SELECT collection, document_id, op, source, position, attempt, first_failed_at, due_at,
           stage, error, message, NULL, version, domain, tenure, NULL, NULL
    FROM parked WHERE source = ? AND tenure <> '' AND (? OR tenure = ?)
    """
_DUE_OF = """
    SELECT collection, document_id, op, source, position, attempt, first_failed_at, due_at,
           stage, error, message, NULL, version, domain, tenure, NULL, NULL, id
    FROM parked WHERE due_at <= ? AND source = ? AND collection = ? ORDER BY due_at, id LIMIT ?
    """


def settle(connection: sqlite3.Connection, outcome: Outcome, now: float) -> list[Parked]:
    """Park the event, or take out what its end makes moot.

    A record is this event itself if it was brought back from it, with its attempt and first failure, or has the same
    version. The attempt alone does not tell: a letter that is replayed has all its tries before it, as a new event of
    its file has.

    Returns:
        The other events that this superseded, without their failures.
    """
    event = outcome.event
    superseded = []
    for at, source, position, attempt, first_failed_at, number, domain, op in _of_document(connection, event.key):
        version = version_from(number, domain)
        same_place = source == event.source and from_column(position) == event.position
        itself = same_place and (
            (event.attempt == attempt and event.first_failed_at == first_failed_at)
            or (event.version is not None and event.version == version)
        )
        if outcome.verdict is Verdict.RETRYING:
            moot = same_place  # its place in the queue is taken below
        else:
            moot = itself or (outcome.verdict in GOOD and not is_older(event, version, first_failed_at))
        if moot:
            if not itself:
                where = Op(op), source, from_column(position), attempt, first_failed_at
                superseded.append(Parked(event.key, *where, due_at=now, failure=_MOOT, version=version))
            connection.execute("DELETE FROM parked WHERE id = ?", (at,))
    if outcome.verdict is Verdict.RETRYING:
        _park(connection, outcome, now)
    return superseded


def any_parked(connection: sqlite3.Connection) -> bool:
    """Return whether anything waits at all: nearly always not, and then no event has to be looked for."""
    return connection.execute("SELECT 1 FROM parked LIMIT 1").fetchone() is not None


def requeue(connection: sqlite3.Connection, letters: Iterable[DeadLetter], now: float) -> Counter[str]:
    """Park events that were dead letters, as if they had never been tried, due now.

    A letter takes the place of what waits there already: of two letters of one place the later one is parked.

    Returns:
        How many events are parked beyond those that were, by source.
    """
    again = (
        Parked(
            letter.key,
            letter.op,
            letter.source,
            letter.position,
            attempt=1,
            first_failed_at=letter.first_failed_at,
            due_at=now,
            failure=letter.failure,
            version=letter.version,
            record=letter.record,
        )
        for letter in letters
    )
    return park(connection, again)


def park(connection: sqlite3.Connection, events: Iterable[Parked]) -> Counter[str]:
    """Park events that did not just fail, each in place of what waits there already.

    Returns:
        How many events are parked beyond those that were, by source.
    """
    added: Counter[str] = Counter()
    for event in events:
        where = (event.key.collection, event.key.document_id, event.source, to_column(event.position))
        replaced = connection.execute(_TAKE, where).rowcount
        added[event.source] += 1 - replaced
        connection.execute(
            _PUT,
            (
                *where,
                event.op.value,
                event.attempt,
                event.first_failed_at,
                event.due_at,
                *version_columns(event.version),
                *failure_columns(event.failure),
                event.tenure,
                *_record_columns(event.record),
            ),
        )
    return added


def documents(connection: sqlite3.Connection, collection: str, ids: Sequence[str]) -> set[str]:
    """Return those of these documents of a collection that wait: at most 500 of them can be asked for."""
    records = connection.execute(_WAITING.format(",".join("?" * len(ids))), (collection, *ids))
    return {document_id for (document_id,) in records}


def _of_document(connection: sqlite3.Connection, key: DocumentKey) -> list[Any]:
    return connection.execute(_OF_DOCUMENT, (key.collection, key.document_id)).fetchall()


def _park(connection: sqlite3.Connection, outcome: Outcome, now: float) -> None:
    event = outcome.event
    if outcome.wait is None or outcome.failure is None:
        raise ValueError(f"{event.key}: an event that is to be tried again has a wait and a failure")
    connection.execute(
        _PUT,
        (
            *place(event),
            event.op.value,
            event.attempt + outcome.tried,
            now if event.first_failed_at is None else event.first_failed_at,
            now + outcome.wait,
            *version_columns(event.version),
            *failure_columns(outcome.failure),
            "" if event.lease is None or event.lease.lent else event.lease.id,
            *_record_columns(event.record, _LARGEST_COPY),
        ),
    )


def _record_columns(record: Record | None, most: int | None = None) -> tuple[bytes | None, bytes | None]:
    """Return what is kept of a record: all, or without a value that is larger than the most: its topic has that."""
    if record is None:
        return None, None
    left_out = most is not None and len(record.value or b"") > most
    return pack(record), None if left_out else record.value


def place(event: Event) -> tuple[str, str, str, Column]:
    """Return what tells an event from any other: collection, document, source and position, to be bound."""
    return event.key.collection, event.key.document_id, event.source, to_column(event.position)


def failure_columns(failure: Failure) -> tuple[Column | None, ...]:
    """Return a failure's stage, error, message and traceback, to be bound; the long ones are clipped."""
    traceback = None if failure.traceback is None else clip_start(failure.traceback, _TRACEBACK)
    message = to_column(clip(failure.message, _MESSAGE))
    return failure.stage.value, to_column(failure.error), message, to_column(traceback)


def failure_from(stage: str, error: Column, message: Column, traceback: Column | None) -> Failure:
    """Return the failure that ``failure_columns`` was given."""
    return Failure(Stage(stage), from_column(error), from_column(message), from_optional(traceback))


def soonest(connection: sqlite3.Connection, before: float, limit: int | None) -> Sequence[Parked]:
    """Return parked events that are due at or before a time, soonest first."""
    records = connection.execute(_SOONEST, (before, -1 if limit is None else limit))
    return [_parked(record) for record in records]


def due(
    connection: sqlite3.Connection, now: float, limit: int, owned: Collection[tuple[str, str]] | None
) -> Sequence[Parked]:
    """Return parked events that are due, soonest first, without their tracebacks.

    Args:
        connection: To read from.
        now: Seconds since 1970.
        limit: The most to return.
        owned: Only those of these (source, collection); None: all.
    """
    if owned is None:
        return [_parked(record) for record in connection.execute(_DUE, (now, limit))]
    # One at a time, so that each comes in order out of its index, past none of anybody else's.
    found = [record for owner in set(owned) for record in connection.execute(_DUE_OF, (now, *owner, limit))]
    found.sort(key=_turn)
    return [_parked(record[:-1]) for record in found[:limit]]


def _turn(record: Sequence[Any]) -> tuple[float, int]:
    return record[7], record[-1]  # due_at, id


def _parked(record: Sequence[Any]) -> Parked:
    collection, document_id, op, source, position, attempt, first_failed_at, due_at, *rest = record
    *failure, number, domain, tenure, packed, value = rest
    return Parked(
        key=DocumentKey(collection, document_id),
        op=Op(op),
        source=source,
        position=from_column(position),
        attempt=int(attempt),
        first_failed_at=float(first_failed_at),
        due_at=float(due_at),
        failure=failure_from(*failure),
        version=version_from(number, domain),
        record=unpack(packed, value),
        tenure=tenure,
    )


def next_due(connection: sqlite3.Connection) -> float | None:
    """Return when the next parked event is due."""
    (due_at,) = connection.execute("SELECT MIN(due_at) FROM parked").fetchone()
    return None if due_at is None else float(due_at)


def hasten(connection: sqlite3.Connection, now: float, source: str | None, positions: Collection[str] | None) -> int:
    """Make parked events due, all or some of a source; return how many there are."""
    if source is None:
        connection.execute("UPDATE parked SET due_at = ? WHERE due_at > ?", (now, now))
        (count,) = connection.execute("SELECT COUNT(*) FROM parked").fetchone()
        return int(count)
    query = "UPDATE parked SET due_at = MIN(due_at, ?) WHERE source = ? AND (? OR position = ?)"
    places: Iterable[str] = ("",) if positions is None else positions
    everything = positions is None
    return sum(connection.execute(query, (now, source, everything, to_column(at))).rowcount for at in places)


def postpone(connection: sqlite3.Connection, events: Sequence[Parked], due_at: float) -> int:
    """Let parked events wait on, with the tries that they have; return how many of them are there."""
    query = (
        "UPDATE parked SET due_at = ? WHERE collection = ? AND document_id = ? AND source = ? AND position = ? "
        "AND attempt = ?"
    )
    places = ((due_at, *_where(each, each.key), each.attempt) for each in events)
    return sum(connection.execute(query, place).rowcount for place in places)


def whole(connection: sqlite3.Connection, parked: Parked) -> Parked:
    """Return a parked event with the copy of its record: one at a time, for values are large."""
    query = "SELECT record, value FROM parked WHERE collection = ? AND document_id = ? AND source = ? AND position = ?"
    found = connection.execute(query, _where(parked, parked.key)).fetchone()
    return parked if found is None else replace(parked, record=unpack(*found))


def rename(connection: sqlite3.Connection, parked: Parked, key: DocumentKey) -> None:
    """Have a parked event wait under another document, in place of what waits there from the same position."""
    query = "SELECT id FROM parked WHERE collection = ? AND document_id = ? AND source = ? AND position = ?"
    found = connection.execute(query, _where(parked, parked.key)).fetchone()
    if found is None or key == parked.key:
        return  # it was settled meanwhile, or renamed before
    connection.execute(_TAKE, _where(parked, key))
    connection.execute("UPDATE parked SET document_id = ? WHERE id = ?", (key.document_id, *found))


def _where(parked: Parked, key: DocumentKey) -> tuple[str, str, str, Column]:
    return key.collection, key.document_id, parked.source, to_column(parked.position)


def withdraw(connection: sqlite3.Connection, source: str, tenures: Collection[str] | None) -> list[Parked]:
    """Remove a source's events that were parked under these leases, or under any.

    Returns:
        Those events, without their failures and records.
    """
    wanted: Iterable[str] = ("",) if tenures is None else tenures
    which = [(source, tenures is None, tenure) for tenure in wanted]
    found = [record for each in which for record in connection.execute(_OF_TENURE, each)]
    connection.executemany("DELETE FROM parked WHERE source = ? AND tenure <> '' AND (? OR tenure = ?)", which)
    return [replace(_parked(record), failure=_MOOT) for record in found]


def forget(connection: sqlite3.Connection, source: str, collection: str) -> None:
    """Remove a source's parked events."""
    connection.execute("DELETE FROM parked WHERE source = ? AND collection = ?", (source, collection))
