"""Confluent's wire format: a zero byte, a schema's id in four, and then the record."""

from __future__ import annotations

from ingestd.sources._values.decoded import RefusedError

_HEAD = 5
_MAGIC = 0


def framed(data: bytes, what: str) -> tuple[int, bytes]:
    """Return the id of the schema and what was written with it.

    Args:
        data: The value or the key.
        what: What it is, for messages: ``its value``.

    Raises:
        RefusedError: It is not in this format.
    """
    if len(data) < _HEAD or data[0] != _MAGIC:
        why = (
            f"it is {len(data)} bytes" if len(data) < _HEAD else f"it begins with the byte {data[0]:#04x}, and not 0x00"
        )
        raise RefusedError(
            f"{what} is not in the registry's wire format ({why}); produce it with a registry's serializer, or "
            "configure the format that it has"
        )
    return int.from_bytes(data[1:_HEAD], "big"), data[_HEAD:]


def unframed(data: bytes) -> bytes:
    """Return what was written with a registry's serializer, or anything else as it is: no JSON begins with a NUL."""
    return data[_HEAD:] if data[:1] == b"\0" else data
