"""The whole text as one chunk, for short documents: titles, questions, products.

A text that the model does not see to its end is refused rather than cut: cutting silently would leave the rest of
the document unsearchable, and nobody would know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from ingestd.chunkers._sentences import trimmed
from ingestd.chunkers._units import MAX_BYTES
from ingestd.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.model import Span
    from ingestd.ports import Chunker, Tokenizer

_CURE = "split such documents with the chunker `stable`"


class Config(BaseModel):
    """Has no options."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    revision: ClassVar[int] = 1

    def build(self, tokenizer: Tokenizer) -> Chunker:
        """Return the chunker."""
        return WholeChunker(tokenizer)


class WholeChunker:
    """The text, trimmed of white space, as one chunk.

    Args:
        tokenizer: The embedder's: its limit is the chunk's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def split(self, text: str) -> Sequence[Span]:
        """Return the text's place; nothing for a text of white space only.

        Raises:
            DocumentError: The text is longer than the model sees, or than Milvus stores.
        """
        span = trimmed(text, 0, len(text))
        if span is None:
            return ()
        whole = text[span.start : span.end]
        size = len(whole.encode())
        if size > MAX_BYTES:
            raise DocumentError(f"the text has {size} bytes, and one chunk may have {MAX_BYTES}: {_CURE}")
        limit = self._tokenizer.limit
        if limit is not None and (tokens := self._tokenizer.count(whole)) > limit:
            raise DocumentError(f"the text has {tokens} tokens, and the embedder's model sees {limit}: {_CURE}")
        return (span,)
