"""The payload of an event whose record brings the document itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ingestd.immutable import value
from ingestd.model import Content, Op
from ingestd.sources._values.decoded import Decoded, RefusedError
from ingestd.sources._values.uris import Uris

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.model import Metadata, Payload
    from ingestd.sources._values.decoded import ValueLimits
    from ingestd.sources._values.said import Said

_PLAIN = "text/plain"


@value(frozen=True, slots=True)
class Brought:
    """A payload that is there already."""

    at_hand: Content
    """Itself."""

    def read(self) -> Content:
        """Return it."""
        return self.at_hand


class Contents:
    """From what a value says to what is handed on.

    Args:
        limits: How large documents may be.
        uris: Prefixes of the addresses that may be read.
    """

    def __init__(self, limits: ValueLimits, uris: Sequence[str]) -> None:
        self._most = limits.max_bytes
        self._uris = Uris(uris, limits.max_bytes)

    def close(self) -> None:
        """Let go of connections."""
        self._uris.close()

    def decoded(self, document_id: str, said: Said, name: str | None = None) -> Decoded:
        """Return what a value says as it is handed on.

        Args:
            document_id: The document.
            said: What its value says; an upsert has exactly one body.
            name: The file's name; None: its id serves.
        """
        if said.op is Op.DELETE:
            return Decoded(document_id, Op.DELETE, None, said.version, 0)
        payload: Payload
        if said.uri is not None:
            payload, size = self._uris.payload(document_id, said), 0
        else:
            content = self._content(document_id, said, name)
            payload, size = Brought(content), len(content.data)
            if size > self._most:
                raise RefusedError(f"its document is {size} bytes, the most is {self._most}; raise [limits] max_bytes")
            if content.text is not None:
                size += sys.getsizeof(content.text)
        return Decoded(document_id, Op.UPSERT, payload, said.version, size)

    def _content(self, document_id: str, said: Said, name: str | None) -> Content:
        metadata: Metadata = said.metadata or {}
        if said.text is None:
            return Content(said.content or b"", name or document_id, said.content_type, said.title, metadata)
        data, text = said.text.encode(), None
        content_type = said.content_type
        if content_type is None or content_type == _PLAIN or media_type(content_type) == _PLAIN:
            text = said.text
        else:
            content_type = _in_utf8(content_type)
        return Content(data, name or document_id, content_type, said.title, metadata, None, text)


def media_type(content_type: str | None) -> str:
    """Return the media type alone, in lower case; empty where there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def _in_utf8(content_type: str) -> str:
    """Return the type of a text that came in a string: whatever charset it names, the bytes are UTF-8 now."""
    kind, *parameters = content_type.split(";")
    kept = [one for one in parameters if one.partition("=")[0].strip().lower() != "charset"]
    return content_type if len(kept) == len(parameters) else ";".join([kind, *kept, " charset=utf-8"])
