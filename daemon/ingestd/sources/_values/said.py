"""What a value says of its document, checked part by part, whatever the format that it stood in.

Producers write null for what they have not, so null counts as absent in every optional part. Everything else that is
not of its type is refused: a text that is a number was meant to be something else.
"""

from __future__ import annotations

import base64
import binascii
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from ingestd.sources._values.decoded import RefusedError, shown

if TYPE_CHECKING:
    from ingestd.model import Json, Op

METADATA_DEPTH = 32
"""The most levels of nesting: what is passed on between processes may not recurse without bound."""
_LEAST, _MOST = -(2**63), 2**63 - 1
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class Said(NamedTuple):
    """What a value says. A NamedTuple, since a frozen dataclass of this size costs 1 µs more a record."""

    op: Op
    text: str | None = None
    content: bytes | None = None
    uri: str | None = None
    content_type: str | None = None
    title: str | None = None
    metadata: dict[str, Json] | None = None
    version: int | None = None


def string(value: object, name: str) -> str | None:
    """Return a part that is a string, or None where it is absent."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise RefusedError(f"{shown(name)} is {kind(value)}, and has to be a string")
    if not value.isascii():
        whole(value, name)
    return value


def whole(value: str, name: str) -> bytes:
    """Return a string in UTF-8; half a character (a lone surrogate, valid in JSON) is no text."""
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"{shown(name)} has half a character (a lone surrogate) at {error.start}; send whole characters"
        ) from None


def content(value: object, name: str) -> bytes | None:
    """Return the bytes that a part holds: as they are, or in base64."""
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RefusedError(f"{shown(name)} is {kind(value)}, and has to be base64 in a string")
    try:
        # Strict: b64decode stops at the first padding, and loses what comes after it.
        return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except ValueError:
        raise RefusedError(
            f"{shown(name)} is no base64; use the standard alphabet with padding and without line ends"
        ) from None


def version(value: object, name: str, *, loose: bool = False) -> int | None:
    """Return an explicit version.

    Args:
        value: An integer; null is absent.
        name: What it is called.
        loose: Also take decimal digits in a string, and points in time as microseconds since 1970: producers whose
            values we do not define have no other way to say it.
    """
    if value is None:
        return None
    number = _loose(value) if loose else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise RefusedError(f"{shown(name)} is {kind(value)}, and has to be an integer")
    if not _LEAST <= number <= _MOST:
        raise RefusedError(f"{shown(name)} does not fit a signed integer of 64 bits")
    return number


def _loose(value: object) -> object:
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) <= 20:  # noqa: PLR2004 - the digits of 64 bits
        return int(value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return (value - _EPOCH) // timedelta(microseconds=1)
    return value


def metadata(value: object, name: str) -> dict[str, Json] | None:
    """Return metadata as JSON has it."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RefusedError(f"{shown(name)} is {kind(value)}, and has to be an object")
    return {_key(key): plain(inner, METADATA_DEPTH - 1) for key, inner in value.items()}


def _key(key: str) -> str:
    if not key.isascii():
        whole(key, "metadata")
    return key


def plain(value: Any, depth: int) -> Json:  # noqa: ANN401, C901, PLR0911 - a table of types
    """Return a value of the metadata as JSON has it: times in ISO 8601, decimals and UUIDs as strings, bytes in base64.

    Args:
        value: The value.
        depth: How many levels there may be in it.
    """
    its = type(value)  # compared by identity, what is most common first: this runs for every value there is
    if its is str:
        if not value.isascii():
            whole(value, "metadata")
        return value  # type: ignore[no-any-return]
    if its is int or its is bool or value is None:
        return value  # type: ignore[no-any-return]
    if its is float:
        if not math.isfinite(value):
            raise RefusedError("metadata has a number that is infinite or none; JSON has no such numbers")
        return value  # type: ignore[no-any-return]
    if its is dict or its is list:
        if depth == 0:
            raise RefusedError(f"metadata is nested more than {METADATA_DEPTH} levels deep; send flatter ones")
        if its is dict:
            return {_key(key): plain(inner, depth - 1) for key, inner in value.items()}
        return [plain(inner, depth - 1) for inner in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise RefusedError(f"metadata has a value of the type {type(value).__name__}, which JSON has not")


def kind(value: object) -> str:
    """Return what a value is, in words and without the value."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


_KINDS = {
    bool: "a boolean",
    bytes: "bytes",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "an array",
    str: "a string",
    type(None): "null",
}
