"""From a record to an event: what it is about, which version it is, and under which tenure it may be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ingestd.model import EXPLICIT, DocumentKey, Event, Failure, Op, Priority, Record, Stage, Version
from ingestd.sources._kafka.letters import replayed
from ingestd.sources._values.decoded import UnreadableError

if TYPE_CHECKING:
    from ingestd.model import Lease
    from ingestd.sources._values.decoded import Decoder

OVERHEAD = 512
"""Bytes that an event takes beside its record and its text."""


def record_of(found: Any) -> Record:  # noqa: ANN401 - kafka-python has no types
    """Return kafka-python's record as ours."""
    return Record(
        topic=found.topic,
        partition=found.partition,
        offset=found.offset,
        timestamp=-1 if found.timestamp is None else found.timestamp,
        key=found.key,
        value=found.value,
        headers=tuple((str(name), value) for name, value in found.headers or ()),
    )


def event_of(
    record: Record,
    decoder: Decoder,
    *,
    source: str,
    collection: str,
    domain: str,
    lease: Lease,
    attempt: int = 1,
    first_failed_at: float | None = None,
    failure: Failure | None = None,
    id_from: str = "auto",
    again: bool = False,
    priority: Priority = Priority.LIVE,
) -> Event:
    """Return the event that a record stands for; one that cannot be read is an event with a fault.

    Args:
        record: The record.
        decoder: Reads its value.
        source: The source's name.
        collection: Its collection.
        domain: What its offset compares within.
        lease: What allows the event to be written.
        attempt: The number of this try.
        first_failed_at: When an earlier try failed, in seconds since 1970.
        failure: Why no further try is made.
        id_from: The source's rule for ids.
        again: Whether an operator has it tried again.
        priority: What it goes before, and behind what.

    Raises:
        UnavailableError: It cannot be read now: a schema registry does not answer.
    """
    # One that was written to its topic again is still the version that it was: nothing newer gives way to it.
    first = replayed(record)
    offset = Version(record.offset, domain) if first is None else first
    try:
        decoded = decoder.decode(record)
    except UnreadableError as error:
        return Event(
            DocumentKey(collection, record.position if error.document_id is None else error.document_id),
            Op.UPSERT,
            source,
            record.position,
            payload=None,
            version=offset,
            size=record.size + OVERHEAD,
            attempt=attempt,
            first_failed_at=first_failed_at,
            lease=lease,
            record=record,
            fault=Failure(Stage.SOURCE, type(error).__name__, str(error)),
            priority=priority,
        )
    return Event(
        DocumentKey(collection, decoded.document_id),
        decoded.op,
        source,
        record.position,
        decoded.payload,
        version=offset if decoded.version is None else Version(decoded.version, EXPLICIT),
        size=record.size + decoded.size + OVERHEAD,
        attempt=attempt,
        first_failed_at=first_failed_at,
        lease=lease,
        record=record,
        fault=failure,
        keyed=bool(record.key) and (id_from != "value" or record.key == decoded.document_id.encode()),
        again=again or first is not None,
        priority=priority,
    )
