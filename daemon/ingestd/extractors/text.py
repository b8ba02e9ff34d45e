"""Plain text, as it stands, in whatever encoding: notes, logs, settings, source code.

No title is made up: a first line is as often a date or a licence as it is a heading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from ingestd.extractors._encoding import decode
from ingestd.extractors._media_type import parameter
from ingestd.model import Document

if TYPE_CHECKING:
    from ingestd.model import Content


class Config(BaseModel):
    """Plain text. It has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: ClassVar[tuple[str, ...]] = ("text/plain",)
    revision: ClassVar[int] = 1

    def build(self) -> TextExtractor:
        """Return the extractor."""
        return TextExtractor()


class TextExtractor:
    """Reads text/plain."""

    def extract(self, content: Content) -> Document:
        """Return the text with its line ends and control characters tidied.

        Raises:
            DocumentError: The bytes are binary, or in no encoding that is known.
        """
        return Document(decode(content.data, charset=parameter(content.content_type, "charset")))
