"""What chunks are put together from, and the limits that a chunk keeps.

Owns the measuring: a text is tokenised once, and everything after that is arithmetic on its tokens' offsets. Counting
tokens candidate by candidate was turned down: libraries that do so reach 0.09 to 0.6 MB/s.

A unit is a sentence. One that is over the limit by itself is taken apart into words; a word, into tokens; a token
that covers more bytes than a chunk may have (an unknown word is one token, however long), into characters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog

from ingestd.chunkers._sentences import sentences, trimmed
from ingestd.errors import DocumentError
from ingestd.model import Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from ingestd.ports import Tokenizer

MAX_BYTES = 65_535
"""The longest VARCHAR that Milvus has, in bytes of UTF-8."""

SENTENCE, WORD, TOKEN = range(3)
"""What begins at a unit: the lower, the better a place to cut."""

_CONTEXT = 32
"""Characters that tell a word in a sentence apart from the same word elsewhere in it."""
_WIDEST = 4
"""Bytes of UTF-8 in the widest character."""
_WORDS = re.compile(r"\S+")
_JOINERS = frozenset("\u200d") | {chr(code) for code in range(0x1F3FB, 0x1F400)}
_JAMO = range(0x1160, 0x1200)
_FLAGS = range(0x1F1E6, 0x1F200)

log = structlog.get_logger(__name__)


def budget(max_tokens: int, tokenizer: Tokenizer) -> int:
    """Return the most tokens of a chunk: what is configured, or what the model sees where that is less.

    A model of 256 tokens sees 254 of a text, beside its two special tokens. A chunk of 256 would lose its end without
    a word; refusing ``max_tokens = 256`` for it would be pedantry.
    """
    if tokenizer.limit is None or max_tokens <= tokenizer.limit:
        return max_tokens
    log.info("chunks are bounded by what the model sees", max_tokens=max_tokens, limit=tokenizer.limit)
    return tokenizer.limit


@dataclass(frozen=True, slots=True)
class Units:
    """A text's units, in order, and their running totals.

    Args:
        text: The text.
        starts: Where each begins, in characters; shape (units,), int64. So are the others, if not said otherwise.
        ends: Where each ends, without the white space behind it.
        levels: What begins there: SENTENCE, WORD or TOKEN; int8.
        marks: Up to where the text from ``starts`` on tells this unit from others.
        tokens: Tokens in front of each unit, and in all; shape (units + 1,).
        sizes: Bytes of UTF-8 in front of each unit's start, and in front of the last one's end; shape (units + 1,).
        tails: Bytes from each unit's start to its end.
        max_tokens: The most tokens of a chunk.
    """

    text: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    levels: NDArray[np.int8]
    marks: NDArray[np.int64]
    tokens: NDArray[np.int64]
    sizes: NDArray[np.int64]
    tails: NDArray[np.int64]
    max_tokens: int

    def __len__(self) -> int:
        """Return the number of units."""
        return len(self.starts)

    def count(self, first: int, last: int) -> int:
        """Return the tokens of the units from ``first`` up to, not including, ``last``."""
        return int(self.tokens[last] - self.tokens[first])

    def fit(self, first: int, last: int) -> bool:
        """Say whether these units make one chunk that is within the limits."""
        size = int(self.sizes[last - 1] + self.tails[last - 1] - self.sizes[first])
        return self.count(first, last) <= self.max_tokens and size <= MAX_BYTES

    def span(self, first: int, last: int) -> Span:
        """Return the place of these units in the text."""
        return Span(int(self.starts[first]), int(self.ends[last - 1]))


MARGIN = 1.25
"""How many times more tokens a text may have than its chunks have together: spaces between them are in none."""


def certainly_more(text: str, tokenizer: Tokenizer, max_tokens: int, chunks: int) -> bool:
    """Return whether a text has more chunks than so many, wherever it is cut. False says nothing."""
    most = chunks * max_tokens
    return len(text) > most and tokenizer.count(" ".join(text.split())) > MARGIN * most


def measure(text: str, tokenizer: Tokenizer, max_tokens: int) -> Units:
    """Take a text apart into units, none of them over the limits as the text's tokens count it."""
    offsets = tokenizer.offsets(text)
    begins = np.maximum.accumulate(offsets[:, 0])
    finishes = np.maximum.accumulate(offsets[:, 1])  # ascending, also where a character has several tokens
    spans = sentences(text)
    edges = np.searchsorted(finishes, [span.start for span in spans], side="right")
    counts = np.diff(edges, append=len(offsets))
    rows: list[NDArray[np.int64]] = []
    for span, count in zip(spans, counts.tolist(), strict=True):
        if count <= max_tokens and not _too_big(text, *span):
            rows.append(np.array([(*span, SENTENCE, span.end)]))
        else:
            rows.extend(_taken_apart(text, span, begins, finishes, max_tokens))
    starts, ends, levels, marks = np.concatenate([*rows, np.empty((0, 4), dtype=np.int64)]).T
    tokens = np.append(np.searchsorted(finishes, starts, side="right"), len(offsets))
    tails = _sizes(text, starts, ends)
    steps = _sizes(text, starts, np.append(starts[1:], ends[-1:]))
    sizes = np.concatenate([[0], np.cumsum(steps)])
    tokens[0] = 0  # a token that lies wholly in front of the first unit is white space of the first chunk
    return Units(text, starts, ends, levels.astype(np.int8), marks, tokens, sizes, tails, max_tokens)


def within_limits(units: Units, chunks: Iterable[tuple[int, int]], tokenizer: Tokenizer) -> list[Span]:
    """Turn runs of units into places, each of which also keeps the limit when it is tokenised by itself.

    That can take more tokens than it had in the text: a word that is cut in two has other pieces, and byte-level and
    SentencePiece tokenizers have other tokens for a word with no space in front. Only the words at the chunk's ends
    can change so, and a word has no more tokens than bytes; a chunk with as much room left is not tokenised again.

    Raises:
        DocumentError: A single character has more tokens than a chunk may have.
    """
    spans: list[Span] = []
    for first, last in chunks:
        span = units.span(first, last)
        if units.count(first, last) + _slack(units.text, span) <= units.max_tokens:
            spans.append(span)
        else:
            spans.extend(_cut_down(units.text, span, tokenizer, units.max_tokens))
    return spans


def _too_big(text: str, start: int, end: int) -> bool:
    # The first test spares nearly all texts the second.
    return (end - start) * _WIDEST > MAX_BYTES and len(text[start:end].encode()) > MAX_BYTES


def _sizes(text: str, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    if text.isascii():
        return ends - starts
    places = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.fromiter((len(text[a:b].encode()) for a, b in places), dtype=np.int64, count=len(starts))


def _taken_apart(
    text: str, sentence: Span, begins: NDArray[np.int64], finishes: NDArray[np.int64], max_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Yield rows (start, end, level, mark) for a sentence that is too long: words, and parts of too long words."""
    words = np.array([match.span() for match in _WORDS.finditer(text, *sentence)], dtype=np.int64)
    reach = np.searchsorted(finishes, words, side="right")  # shape (words, 2)
    long = (reach[:, 1] - reach[:, 0] > max_tokens) | ((words[:, 1] - words[:, 0]) * _WIDEST > MAX_BYTES)
    done = 0
    for index in np.flatnonzero(long).tolist():
        yield _rows(words[done:index], WORD if done else SENTENCE, WORD, sentence.end)
        first, last = reach[index].tolist()
        word = Span(*words[index].tolist())
        parts = _tokens(text, word, begins[first:last], finishes[first:last])
        yield _rows(parts, WORD if index else SENTENCE, TOKEN, sentence.end)
        done = index + 1
    yield _rows(words[done:], WORD if done else SENTENCE, WORD, sentence.end)


def _rows(places: NDArray[np.int64], first: int, others: int, end: int) -> NDArray[np.int64]:
    """Return rows for some of a sentence's parts, the first of which may begin something better."""
    levels = np.full(len(places), others)
    levels[:1] = first
    marks = np.minimum(places[:, 0] + _CONTEXT, end)
    return np.column_stack([places, levels, marks])


def _tokens(text: str, word: Span, begins: NDArray[np.int64], finishes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the parts of a word, cut where a token starts, no other reaches over it, and no character is torn.

    A token that is too big for a chunk is cut into equal numbers of characters.
    """
    clean = begins[1:][finishes[:-1] <= begins[1:]]
    inner = np.unique(clean[(clean > word.start) & (clean < word.end)])
    if not text.isascii():
        inner = np.array([at for at in inner.tolist() if not _clings(text, at)], dtype=np.int64)
    edges = np.concatenate([[word.start], inner, [word.end]])
    stride = MAX_BYTES // _WIDEST - _CONTEXT
    for start, end in zip(edges[:-1][np.diff(edges) > stride], edges[1:][np.diff(edges) > stride], strict=True):
        cuts = range(int(start) + stride, int(end), stride)
        edges = np.append(edges, [_apart(text, cut) for cut in cuts])
    edges = np.unique(edges)
    return np.column_stack([edges[:-1], edges[1:]])


def _apart(text: str, cut: int) -> int:
    """Return a place at ``cut`` or a little in front of it where no character is torn, if there is one."""
    return next((at for at in range(cut, cut - _CONTEXT, -1) if not _clings(text, at)), cut)


def _clings(text: str, at: int) -> bool:
    """Say whether the character at ``at`` belongs to the one in front of it, for a reader."""
    here, before = text[at], text[at - 1]
    return (
        unicodedata.category(here)[0] == "M"
        or here in _JOINERS
        or before == "\u200d"
        or ord(here) in _JAMO
        or (ord(here) in _FLAGS and ord(before) in _FLAGS)
    )


def _slack(text: str, span: Span) -> int:
    """Return the most tokens that a chunk can gain when it is tokenised by itself."""
    first = _WORDS.match(text, span.start, span.end)
    words = first.group() if first else ""
    if span.end < len(text) and not text[span.end].isspace():  # the last word is cut
        words += text[span.start : span.end].rsplit(maxsplit=1)[-1]
    return len(words.encode()) + 1  # and the mark that SentencePiece puts in front of a text


def _cut_down(text: str, span: Span, tokenizer: Tokenizer, max_tokens: int) -> Iterator[Span]:
    """Yield the span, or, if it has too many tokens when it stands alone, parts of it that have not."""
    pending = [span]
    while pending:
        here = pending.pop()
        offsets = tokenizer.offsets(text[here.start : here.end]) + here.start
        if len(offsets) <= max_tokens:
            yield here
            continue
        if here.end - here.start == 1:
            raise DocumentError(
                f"the character U+{ord(text[here.start]):04X} at {here.start} alone has {len(offsets)} tokens, "
                f"and a chunk may have {max_tokens}: raise the chunker's max_tokens, or take the character out"
            )
        cut = _middle(text, here, offsets)
        parts = (trimmed(text, cut, here.end), trimmed(text, here.start, cut))
        pending.extend(part for part in parts if part)


def _middle(text: str, span: Span, offsets: NDArray[np.int64]) -> int:
    """Return the best place to cut a span in two near its middle: a word's start, a token's, any character's."""
    starts = np.unique(offsets[:, 0])
    starts = starts[(starts > span.start) & (starts < span.end)]
    words = np.array([at for at in starts.tolist() if text[at - 1].isspace() or text[at].isspace()], dtype=np.int64)
    whole = np.array([at for at in starts.tolist() if not _clings(text, at)], dtype=np.int64)
    center = float(np.median(offsets[:, 0]))
    for places in (words, whole, starts):
        if len(places):
            return int(places[np.argmin(np.abs(places - center))])
    return (span.start + span.end) // 2
