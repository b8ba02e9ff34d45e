"""Kafka records in a column: all of a record but its value, which has a column of its own where it is kept.

JSON with base64 was chosen for the rest: keys and headers are small, and an operator who opens the file can read them.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode

from ingestd.model import Record


def pack(record: Record) -> bytes:
    """Return a record's coordinates, key, headers and timestamp, and whether it has a value."""
    return json.dumps(
        {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": _text(record.key),
            "headers": [[name, _text(value)] for name, value in record.headers],
            "null": record.value is None,
        }
    ).encode("ascii")


def unpack(packed: bytes | None, value: bytes | None) -> Record | None:
    """Return a record again.

    Args:
        packed: What ``pack`` made of it.
        value: Its value, where that was kept.

    Returns:
        None where there was no record, or where its value was too large to be kept.
    """
    if packed is None:
        return None
    said = json.loads(packed)
    if value is None and not said["null"]:
        return None
    return Record(
        topic=said["topic"],
        partition=said["partition"],
        offset=said["offset"],
        timestamp=said["timestamp"],
        key=_bytes(said["key"]),
        value=None if said["null"] else value,
        headers=tuple((name, _bytes(text)) for name, text in said["headers"]),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else b64encode(value).decode("ascii")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)
