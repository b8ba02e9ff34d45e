"""Strings on their way into a column and back.

Owns the two things that SQLite or the disk cannot take as they come: lone surrogates and texts without a bound.
"""

from __future__ import annotations

from typing import TypeAlias, overload

Column: TypeAlias = "str | bytes"

_CLIPPED = " … (clipped)"
_CLIPPED_START = "(clipped) … "


@overload
def to_column(text: str) -> Column: ...
@overload
def to_column(text: None) -> None: ...
@overload
def to_column(text: str | None) -> Column | None: ...
def to_column(text: str | None) -> Column | None:
    """Return what to bind for a text: itself, or bytes where it holds what UTF-8 cannot say."""
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def from_column(value: Column) -> str:
    """Return the text that ``to_column`` was given."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


def from_optional(value: Column | None) -> str | None:
    """Return the text that ``to_column`` was given, or None."""
    return None if value is None else from_column(value)


def clip(text: str, limit: int) -> str:
    """Return the text, cut to so many characters: an error's message can quote a whole document."""
    return text if len(text) <= limit else text[: limit - len(_CLIPPED)] + _CLIPPED


def clip_start(text: str, limit: int) -> str:
    """Return the end of the text, in so many characters: a traceback ends with what happened."""
    return text if len(text) <= limit else _CLIPPED_START + text[len(_CLIPPED_START) - limit :]
