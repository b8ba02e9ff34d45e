"""A record's headers, as text. Of several with one name the last one counts, as in Kafka's own clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.sources._values.decoded import RefusedError, shown

if TYPE_CHECKING:
    from ingestd.model import Record


def header(record: Record, name: str | None) -> str | None:
    """Return a header's text, whatever case its name is in; None: there is none, or it is null.

    Raises:
        RefusedError: It is no UTF-8.
    """
    if name is None:
        return None
    wanted, found = name.casefold(), None
    for key, value in record.headers:
        if key == name or key.casefold() == wanted:
            found = value
    return None if found is None else text(name, found)


def text(name: str, value: bytes) -> str:
    """Return a header's value as text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RefusedError(f"its header {shown(name)} is no UTF-8") from None
