"""Dead letters as records of a topic, and back.

A letter is the record as it came (key, value, headers, timestamp) with headers added: those that Kafka Connect's tools
know (``__connect.errors.…``, KIP-298), and our own for what those do not say. A record that was a letter before loses
the headers that it got then.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingestd.model import DeadLetter, DocumentKey, Failure, Op, Record, Stage, Version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingestd.model import Outcome

CONNECT = "__connect.errors."
OURS = "ingestd."
REPLAY = "ingestd.replay"
"""On a record that was written to its topic again: the domain and the offset of the first one."""
REPLAYED = "ingestd.replayed"
"""On a record of the letters' topic that is no letter: the position of one that was tried again."""
_LONGEST = 16_384
"""Characters of a message or a traceback: a broker takes a megabyte of a record, headers and all."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a letter says beside its event and its failure."""

    group: str
    fingerprint: str
    now: float
    """Seconds since 1970."""


def headers_of(outcome: Outcome, said: Said) -> list[tuple[str, bytes]]:
    """Return a letter's headers: the record's own, then ours."""
    event, failure = outcome.event, outcome.failure
    record = event.record
    if record is None or failure is None:
        raise ValueError(f"{event.position}: a letter on a topic is a record's, and has a failure")
    version = event.version or Version(record.offset, "")
    added: dict[str, object] = {
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
        "ingestd.last-failed-at": said.now,
        "ingestd.group": said.group,
        "ingestd.fingerprint": said.fingerprint,
        "ingestd.timestamp": record.timestamp,
        "ingestd.value": "null" if record.value is None else "kept",
    }
    own = [(name, value) for name, value in record.headers if not name.startswith((CONNECT, OURS))]
    return [
        *((name, value) for name, value in own if value is not None),
        *((name, str(value).encode("utf-8", "backslashreplace")) for name, value in added.items()),
    ]


def letter_of(found: Record, number: int) -> DeadLetter | None:
    """Return the letter that a record of the topic is; None: it is no letter of ours.

    Args:
        found: The record.
        number: What the letter is called in this reading.
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
        kept = texts["ingestd.value"] != "left out"
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
            last_failed_at=float(texts["ingestd.last-failed-at"]),
            version=Version(int(number_), str(domain)),
            fingerprint=texts["ingestd.fingerprint"],
            size=None if value is None else len(value),
            data=value if kept else None,
            record=record if kept else None,
        )
    except (KeyError, ValueError, TypeError):
        return None  # Kafka Connect's, or somebody else's


def without_value(headers: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return the headers of a letter whose value the broker does not take."""
    return [(name, b"left out" if name == "ingestd.value" else value) for name, value in headers]


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
