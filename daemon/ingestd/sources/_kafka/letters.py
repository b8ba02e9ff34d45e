"""Dead letters as records of a topic, and back.

A letter is the record as it came (key, value, headers, timestamp) with headers added: those that Kafka Connect's tools
know (``__connect.errors.…``, KIP-298), and our own for what those do not say. A record that was a letter before loses
the headers that it got then. A broker may not take a record with ours added to it, so a letter has several forms, each
without one more part of the record: who failed and why is always kept. (Holding a letter back that is too large was
turned down: one record would stop its collection for good.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingestd.errors import FatalError
from ingestd.model import DeadLetter, DocumentKey, Failure, Op, Record, Stage, Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ingestd.model import Outcome

CONNECT = "__connect.errors."
OURS = "ingestd."
REPLAY = "ingestd.replay"
"""On a record that was written to its topic again: the domain and the offset of the first one."""
REPLAYED = "ingestd.replayed"
"""On a record of the letters' topic that is no letter: the position of one that was tried again."""
FAILED = "ingestd.last-failed-at"
"""On letters, and on the mark that one was tried again: a later letter of the same position stands in spite of it."""
LEFT_OUT = "ingestd.left-out"
"""On a letter: the parts of its record that the topic does not take, with commas between them."""
_LONGEST = 16_384
"""Characters of a message or a traceback: a broker takes a megabyte of a record, headers and all."""
_SHORT = 256
"""Bytes of what has no bound of its own, where nothing else makes a letter small enough."""
_CLIPPED = (f"{CONNECT}exception.message", f"{CONNECT}exception.stacktrace", "ingestd.document-id")


@dataclass(frozen=True, slots=True)
class Said:
    """What a letter says beside its event and its failure."""

    group: str
    fingerprint: str
    now: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Written:
    """A record to be written to the letters' topic, or to that of a letter."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    left_out: tuple[str, ...] = ()


def forms(outcome: Outcome, said: Said) -> Iterator[Written]:
    """Yield the letter of an outcome: whole, then each time without one more part of its record.

    Raises:
        FatalError: It is no record's, or did not fail. Nobody sends such here, and nothing is known of its position.
    """
    record = outcome.event.record
    if record is None or outcome.failure is None:
        raise FatalError(f"{outcome.event.position}: a letter on a topic has a record and a failure, and this has not")
    ours = _ours(outcome, record, outcome.failure, said)
    parts = {"value": record.value, "headers": record.headers, "key": record.key, "message": True}
    left_out: tuple[str, ...] = ()
    yield _form(record, ours, left_out)
    for part, is_there in parts.items():
        if is_there:
            left_out = (*left_out, part)
            yield _form(record, ours, left_out)


def _form(record: Record, ours: list[tuple[str, bytes]], left_out: tuple[str, ...]) -> Written:
    key = None if "key" in left_out else record.key
    value = None if "value" in left_out else record.value
    own = [] if "headers" in left_out else _own(record.headers)
    # The client takes nothing that has neither key nor value.
    sent = b"" if key is None and value is None else value
    return Written(key, sent, [*own, *(_less(ours, left_out) if left_out else ours)], left_out)


def _own(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes]]:
    """Return a record's own headers. The client takes none without a value."""
    return [(name, value) for name, value in headers if value is not None and not name.startswith((CONNECT, OURS))]


def _less(ours: Iterable[tuple[str, bytes]], left_out: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Return our headers on a letter that is not whole."""
    said = dict(ours)
    if "value" in left_out:
        said["ingestd.value"] = b"left out"
    if "message" in left_out:
        said |= {name: said[name][:_SHORT] for name in _CLIPPED}
    return [*said.items(), (LEFT_OUT, ",".join(left_out).encode())]


def _ours(outcome: Outcome, record: Record, failure: Failure, said: Said) -> list[tuple[str, bytes]]:
    event = outcome.event
    version = event.version or Version(record.offset, "")
    found: dict[str, object] = {
        f"{CONNECT}topic": record.topic,
        f"{CONNECT}partition": record.partition,
        f"{CONNECT}offset": record.offset,
        f"{CONNECT}connector.name": event.source,
        f"{CONNECT}stage": failure.stage.value,
        f"{CONNECT}class.name": "ingestd",
        f"{CONNECT}exception.class.name": failure.error,
        f"{CONNECT}exception.message": failure.message[:_LONGEST],
        f"{CONNECT}exception.stacktrace": (failure.traceback or "")[-_LONGEST:],
        "ingestd.source": event.source,
        "ingestd.collection": event.key.collection,
        "ingestd.document-id": event.key.document_id,
        "ingestd.op": event.op.value,
        "ingestd.version": json.dumps([version.number, version.domain]),
        "ingestd.attempts": event.attempt,
        "ingestd.first-failed-at": said.now if event.first_failed_at is None else event.first_failed_at,
        FAILED: said.now,
        "ingestd.group": said.group,
        "ingestd.fingerprint": said.fingerprint,
        "ingestd.timestamp": record.timestamp,
        "ingestd.value": "null" if record.value is None else "kept",
    }
    return [(name, str(value).encode("utf-8", "backslashreplace")) for name, value in found.items()]


def letter_of(found: Record, number: int, *, values: bool) -> DeadLetter | None:
    """Return the letter that a record of the topic is; None: it is no letter of ours.

    Args:
        found: The record.
        number: What the letter is called in this reading.
        values: Whether its record is wanted too.
    """
    texts = {name: value.decode("utf-8", "replace") for name, value in found.headers if value is not None}
    try:
        number_, domain = json.loads(texts["ingestd.version"])
        value = None if texts["ingestd.value"] == "null" else found.value
        record = Record(
            topic=texts[f"{CONNECT}topic"],
            partition=int(texts[f"{CONNECT}partition"]),
            offset=int(texts[f"{CONNECT}offset"]),
            timestamp=int(texts["ingestd.timestamp"]),
            key=found.key,
            value=value,
            headers=tuple((name, text) for name, text in found.headers if not name.startswith((CONNECT, OURS))),
        )
        whole = LEFT_OUT not in texts
        return DeadLetter(
            id=number,
            key=DocumentKey(texts["ingestd.collection"], texts["ingestd.document-id"]),
            op=Op(texts["ingestd.op"]),
            source=texts["ingestd.source"],
            position=record.position,
            failure=Failure(
                Stage(texts[f"{CONNECT}stage"]),
                texts[f"{CONNECT}exception.class.name"],
                texts[f"{CONNECT}exception.message"],
                texts[f"{CONNECT}exception.stacktrace"] or None,
            ),
            attempts=int(texts["ingestd.attempts"]),
            first_failed_at=float(texts["ingestd.first-failed-at"]),
            last_failed_at=float(texts[FAILED]),
            version=Version(int(number_), str(domain)),
            fingerprint=texts["ingestd.fingerprint"],
            size=None if value is None or not whole else len(value),
            data=value if whole and values else None,
            record=record if whole and values else None,
        )
    except (KeyError, ValueError, TypeError):
        return None  # Kafka Connect's, or somebody else's


def mark(letter: DeadLetter) -> Written:
    """Return the mark that a letter was tried again.

    It says which one by the time that the letter itself has: the order of records says nothing where the topic has
    several partitions, and their timestamps come from machines whose clocks differ.
    """
    position = letter.position.encode()
    return Written(position, None, [(REPLAYED, position), (FAILED, str(letter.last_failed_at).encode())])


def marked(found: Record) -> tuple[str, float] | None:
    """Return the position, and the time, of the letter that a record of the topic marks; None: it is no mark."""
    texts = {name: value for name, value in found.headers if value is not None}
    try:
        return texts[REPLAYED].decode(), float(texts[FAILED])
    except (KeyError, ValueError):
        return None


def replayed(record: Record) -> Version | None:
    """Return the version that a record had when it came first, if it was written to its topic again."""
    for name, value in record.headers:
        if name == REPLAY and value is not None:
            try:
                number, domain = json.loads(value)
                return Version(int(number), str(domain))
            except (ValueError, TypeError):
                return None
    return None


def replay_headers(event_headers: Iterable[tuple[str, bytes | None]], version: Version) -> list[tuple[str, bytes]]:
    """Return the headers of a record that is written to its topic again: its own, and which version it is."""
    kept = [(name, value) for name, value in event_headers if value is not None and not name.startswith(OURS)]
    return [*kept, (REPLAY, json.dumps([version.number, version.domain]).encode())]
