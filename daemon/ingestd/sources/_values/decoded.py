"""What a record turns into, and the two ways in which it does not.

The formats raise ``RefusedError``, which knows only what is wrong; ``Reading`` stands before all of them, checks the
size, and says of which record it is. That every format builds its whole message was turned down: a message without a
position gets out sooner or later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ingestd.errors import DocumentError
from ingestd.immutable import value

if TYPE_CHECKING:
    from ingestd.model import Op, Payload, Record

_SHOWN = 80


@value(frozen=True, slots=True)
class Decoded:
    """What a record says: all that an event needs and does not get from its source."""

    document_id: str
    op: Op
    payload: Payload | None
    """None for a delete."""
    version: int | None
    """What the record itself gives as its document's version: a signed 64-bit integer."""
    size: int
    """Bytes that the payload takes in memory."""


@value(frozen=True, slots=True)
class ValueLimits:
    """How large things may be, in bytes."""

    max_value_bytes: int
    """Of a record's value, as it came."""
    max_bytes: int
    """Of a document."""


class Decoder(Protocol):
    """A format, set up. Called from the thread that owns the consumer: it never waits for the network."""

    def decode(self, record: Record) -> Decoded:
        """Return what a record says.

        Raises:
            UnreadableError: It is bad, and will stay so.
            UnavailableError: A schema is being fetched, or its registry is away: ask again with the same record.
            ConfigError: The registry refuses the credentials.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds. The registry is not its own."""
        ...


class UnreadableError(DocumentError):
    """A record that no event can be made of.

    Args:
        message: What is wrong and what to do, with the record's position and without its document's text.
        document_id: The document that it is about, where that could still be told.
    """

    def __init__(self, message: str, document_id: str | None = None) -> None:
        super().__init__(message)
        self.document_id = document_id


class RefusedError(Exception):
    """What is wrong with a record, told inside this package.

    Args:
        message: What is wrong and what to do.
        document_id: The document, where it is known by then.
    """

    def __init__(self, message: str, document_id: str | None = None) -> None:
        super().__init__(message)
        self.document_id = document_id


class Format(Protocol):
    """What stands behind ``Reading``."""

    def read(self, record: Record) -> Decoded:
        """Return what a record says.

        Raises:
            RefusedError: What is wrong with it.
        """
        ...

    def told(self, record: Record) -> str | None:
        """Return the document that a record with an unreadable value is about, as far as its key tells."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Reading:
    """The ``Decoder`` of every format.

    Args:
        read: The format.
        limits: How large values may be.
    """

    def __init__(self, read: Format, limits: ValueLimits) -> None:
        self._format = read
        self._most = limits.max_value_bytes

    def decode(self, record: Record) -> Decoded:
        """Return what a record says (see ``Decoder``)."""
        try:
            if record.value is not None and len(record.value) > self._most:
                raise RefusedError(  # noqa: TRY301 - one place that says of which record it is
                    f"its value is {len(record.value)} bytes, the most is {self._most}; raise max_value_bytes"
                )
            return self._format.read(record)
        except RefusedError as refused:
            document = refused.document_id or self._format.told(record)
            raise UnreadableError(f"{record.position}: {refused}", document) from refused.__cause__

    def close(self) -> None:
        """Let go of what the format holds."""
        self._format.close()


def shown(text: str) -> str:
    """Return a key or an id as a message may show it: escaped, in quotes, cut."""
    cut = ascii(text[:_SHOWN])
    return cut if len(text) <= _SHOWN and len(cut) <= _SHOWN else f"{cut[: _SHOWN - 4]}…'"
