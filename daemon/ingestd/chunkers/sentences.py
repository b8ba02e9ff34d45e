"""Sentences gathered greedily up to the token budget, with an overlap if wanted.

Chunks are as full as sentences allow (about nine tenths of the budget), but an edit moves every boundary behind it:
all chunks after it are embedded again. ``stable`` is for documents that are edited; this one is for those that are
not, and for comparison with other tools, which mostly cut like this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ingestd.chunkers._units import SENTENCE, Units, budget, certainly_more, measure, within_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingestd.model import Span
    from ingestd.ports import Chunker, Tokenizer


class Config(BaseModel):
    """How full a chunk may be, and how much of the last one it repeats."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    revision: ClassVar[int] = 1

    max_tokens: int = Field(256, ge=16, description="The most tokens of a chunk, counted by the embedder's tokenizer.")
    overlap: int = Field(
        0, ge=0, description="Sentences at a chunk's end that the next one repeats, as far as they fit."
    )

    def build(self, tokenizer: Tokenizer) -> Chunker:
        """Return the chunker."""
        return SentencesChunker(tokenizer, max_tokens=budget(self.max_tokens, tokenizer), overlap=self.overlap)


class SentencesChunker:
    """Greedy chunks of whole sentences.

    Args:
        tokenizer: The embedder's.
        max_tokens: The most tokens of a chunk.
        overlap: Sentences that a chunk repeats from the one in front of it.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, overlap: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._overlap = overlap

    def exceeds(self, text: str, chunks: int) -> bool:
        """Return whether the text certainly has more chunks than so many."""
        return certainly_more(text, self._tokenizer, self._max_tokens, chunks)

    def split(self, text: str) -> Sequence[Span]:
        """Return the chunks' places.

        Raises:
            DocumentError: A single character has more tokens than a chunk may have.
        """
        units = measure(text, self._tokenizer, self._max_tokens)
        return within_limits(units, self._gathered(units), self._tokenizer)

    def _gathered(self, units: Units) -> Iterator[tuple[int, int]]:
        """Yield runs of units, each as long as fits."""
        first = last = 0
        while last < len(units):
            last += 1  # always one more: a unit fits by itself, and the walk ends
            while last < len(units) and units.fit(first, last + 1):
                last += 1
            yield first, last
            first = self._repeated(units, first, last)

    def _repeated(self, units: Units, first: int, last: int) -> int:
        """Return where the next chunk starts: at ``last``, or at sentences in front of it that it repeats."""
        start = last
        while (
            last < len(units)
            and last - start < self._overlap
            and start - 1 > first
            and units.levels[start] == units.levels[start - 1] == SENTENCE  # no part of a sentence is repeated
            and units.fit(start - 1, last + 1)
        ):
            start -= 1
        return start
