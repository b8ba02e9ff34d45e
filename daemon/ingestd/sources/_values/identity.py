"""Which document a record is about: by its value, by its key, or by both where they agree.

A tombstone has nothing but its key. So where ids are the value's alone (``id_from = "value"``), a tombstone is refused
rather than taken for the document that its key happens to spell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias
from uuid import UUID

from ingestd.sources._values.decoded import RefusedError, shown
from ingestd.sources._values.paths import MISSING
from ingestd.sources._values.said import kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.model import Record
    from ingestd.sources._values.paths import Path

    Key: TypeAlias = Callable[[bytes], str]

IdFrom: TypeAlias = Literal["auto", "value", "key"]

ID_BYTES = 4096
"""The most bytes that an id may have here; a collection's field can be narrower."""


class Identity:
    """The rule of a source.

    Args:
        id_from: Where ids come from.
        key: Turns a key's bytes into an id.
    """

    def __init__(self, id_from: IdFrom, key: Key) -> None:
        self._id_from = id_from
        self._key = key

    @property
    def by_value(self) -> bool:
        """Whether an id in the value counts."""
        return self._id_from != "key"

    def of(self, record: Record, said: str | None) -> str:
        """Return the document that a record is about.

        Args:
            record: The record.
            said: The id that its value gives, checked; None: it gives none.

        Raises:
            RefusedError: It has no id, or two.
        """
        if self._id_from == "value":
            if said is None:
                raise RefusedError('its value has no id, and id_from = "value" takes it from nowhere else')
            return said
        if not record.key:  # an empty key names no document
            if said is None:
                raise RefusedError(
                    _NO_KEY if self._id_from == "key" else "it has no id, neither in its value nor as its key"
                )
            if self._id_from == "key":
                raise RefusedError(_NO_KEY)
            return said
        if said is None or self._id_from == "key":
            return self._key(record.key)
        return self._both(record.key, said)

    def of_key(self, record: Record) -> str:
        """Return the document that a tombstone deletes."""
        if self._id_from == "value":
            raise RefusedError(
                'it is a tombstone, which only its key gives a document, and id_from = "value" ignores keys; '
                'delete with a value, or set id_from = "auto"'
            )
        if not record.key:
            raise RefusedError(
                "it is a tombstone without a key, so it deletes nothing; send the document's id as its key"
            )
        return self._key(record.key)

    def told(self, record: Record) -> str | None:
        """Return what the key alone tells, for a record whose value is unreadable; None: nothing.

        A key whose schema is being fetched will tell: that it is not there yet goes on to the caller, who asks again.
        """
        if self._id_from == "value" or not record.key:
            return None
        try:
            return self._key(record.key)
        except RefusedError:
            return None

    def _both(self, key: bytes, said: str) -> str:
        try:
            other: str | None = self._key(key)
        except RefusedError as error:
            raise RefusedError(
                f'its value has an id, and its key is none ({error}); set id_from = "value"', said
            ) from None
        if other != said:
            raise RefusedError(
                f"its value says that it is {shown(said)}, its key {shown(str(other))}; set id_from to what counts"
            )
        return said


_NO_KEY = 'it has no key, and id_from = "key" takes its id from nowhere else'


def checked(text: str, what: str) -> str:
    """Return an id that can be one.

    Raises:
        RefusedError: It is empty, too long, no whole text, or has a NUL.
    """
    if not text:
        raise RefusedError(f"{what} is empty")
    if "\0" in text:
        raise RefusedError(f"{what} {shown(text)} has a NUL in it")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise RefusedError(f"{what} {shown(text)} has half a character (a lone surrogate)") from None
    if size > ID_BYTES:
        raise RefusedError(f"{what} {shown(text)} is {size} bytes, the most is {ID_BYTES}")
    return text


def text_key(key: bytes) -> str:
    """Return the id that a key of text is."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        raise RefusedError("its key is no UTF-8, so it is no id") from None
    return checked(text, "its key")


def scalar(value: object, what: str) -> str:
    """Return the id that a string, an integer (databases count their rows) or a UUID is."""
    if isinstance(value, str):
        return checked(value, what)
    if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        return checked(str(value), what)
    raise RefusedError(f"{what} is {kind(value)}, and has to be a string or an integer")


def struct_key(tree: object, path: Path | None) -> str:
    """Return the id in a key that is a structure, as Debezium's are.

    Args:
        tree: The key, with or without Kafka Connect's ``schema`` and ``payload`` around it.
        path: Where the id is; None: the key is a scalar, or has one field.
    """
    if isinstance(tree, dict) and tree.keys() == {"schema", "payload"}:
        tree = tree["payload"]
    if path is not None:
        found = path.one(tree)
        if found is MISSING:
            raise RefusedError(f"its key has nothing at key_id {shown(path.text)}")
        return scalar(found, "the id in its key")
    if isinstance(tree, dict):
        if len(tree) != 1:
            raise RefusedError(f"its key has {len(tree)} fields; say with key_id which is the id")
        tree = next(iter(tree.values()))
    return scalar(tree, "the id in its key")
