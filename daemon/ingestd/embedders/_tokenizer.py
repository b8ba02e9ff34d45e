"""The embedders' tokenizers, without their models.

Owns reading a ``tokenizer.json`` and laying a text's tokens against its characters. transformers' own tokenizers were
turned down: they import torch's neighbourhood into the daemon process, and carry truncation and padding as state that
threads would share. Here one tokenizer has one setting for its whole life, so any thread may use it.

A text is encoded in parts. In one call the library takes about 150 bytes of memory for each character (a 4 MB text:
610 MB) and slows down to 0.9 MB/s; in parts of 16,000 characters it takes next to nothing, and 2 to 4 MB/s.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer as Encoder

from ingestd.errors import ConfigError, DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Encoding

_FINE = 16_000
"""Characters a part, where a seam changes nothing."""
_COARSE = 1_000_000
"""Characters a part, where a seam may move a token."""
_PARTS = 16
"""Parts encoded together: the library spreads them over the cores, with the interpreter's lock let go."""

# A seam sits behind a line break or a space and before a letter or digit: no combining mark that a normalizer would
# join to the white space, no run of white space that a pre-tokenizer would take as one. Chinese and Japanese have no
# spaces, but signs of punctuation, which most splitters part from words; BERT's normalizer parts ideographs too.
_LINE = re.compile(r"\n(?=\w)")
_SPACE = re.compile(r"[ \n](?=\w)")
_SIGN = re.compile(r"[ \n.,:;!?。、，：；！？](?=\w)")  # noqa: RUF001 - these signs are meant
_IDEOGRAPH = re.compile(r"[ \n.,:;!?。、，：；！？\u4e00-\u9fff](?=\w)")  # noqa: RUF001 - these signs are meant

_WORD_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_LOCAL_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"}
)


class FileTokenizer:
    """A ``tokenizer.json``, as ``ports.Tokenizer``.

    Args:
        path: The file.
        limit: The most tokens of a text that the model sees: its length less special tokens and prompt; None: no end.

    Raises:
        ConfigError: The file cannot be read, or is no tokenizer.
    """

    def __init__(self, path: Path, *, limit: int | None) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the tokenizer {path} cannot be read ({error.strerror}): "
                "point the embedder's model at a folder that holds a tokenizer.json"
            ) from error
        try:
            self._encoder = Encoder.from_buffer(data)
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(f"{path} is no tokenizer.json that the tokenizers library reads: {error}") from error
        self._encoder.no_truncation()  # MiniLM's file cuts at 128
        self._encoder.no_padding()
        self.limit = limit
        self.digest = hashlib.sha256(data).hexdigest()
        exact = _exact_seams(json.loads(data))
        self._part, self._together = (_FINE, _PARTS) if exact else (_COARSE, 1)
        self._seams = exact or (_LINE, _SPACE, _SIGN, _IDEOGRAPH)
        self.exact_seams = bool(exact)
        """Whether a text encoded in parts has the very offsets of the text encoded at once.

        So it is where words are told apart by white space before all else (BERT and its kin). Other tokenizers get
        far larger parts, and a seam may cost or save them a token or two.
        """

    def special_tokens(self) -> int:
        """Return how many special tokens the model's template adds to one text."""
        return int(self._encoder.num_special_tokens_to_add(is_pair=False))

    def count(self, text: str) -> int:
        """Return the number of tokens, without special ones."""
        return sum(len(encoding) for _, encoding in self._encodings(text))

    def offsets(self, text: str) -> NDArray[np.int64]:
        """Return where each token starts and ends in the text, in characters: shape (tokens, 2), int64.

        No special tokens, never truncated. A token without a width (byte-level tokenizers have them for white space,
        SentencePiece for the word mark that it puts in front) keeps its row: the model sees it, so it counts.

        Raises:
            DocumentError: The text holds half a surrogate pair, which no encoding can write.
        """
        parts = [_array(encoding.offsets) + start for start, encoding in self._encodings(text)]
        return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.int64)

    def _encodings(self, text: str) -> Iterator[tuple[int, Encoding]]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DocumentError(
                f"the text holds half a surrogate pair at character {error.start}, which is no character: "
                "write the document again as valid Unicode"
            ) from error
        parts = itertools.pairwise([0, *_seams(text, self._part, self._seams), len(text)])
        while group := list(itertools.islice(parts, self._together)):
            texts = [text[start:end] for start, end in group]
            encoded = self._encoder.encode_batch(texts, add_special_tokens=False)
            yield from zip((start for start, _ in group), encoded, strict=True)


_ASCII_KINDS = bytes(
    ord("w") if re.match(r"\w", chr(code)) else ord(" ") if re.match(r"\s", chr(code)) else ord(".")
    for code in range(256)
)
"""Of each ASCII character: part of a word, white space, or a sign."""
_WORD = bytes(kind == ord("w") for kind in range(256))
"""1 for a part of a word, 0 for the rest."""


class WhitespaceTokenizer:
    r"""Words and single signs of punctuation, as ``ports.Tokenizer``: for an embedder without a vocabulary.

    Args:
        limit: The most tokens of a text that the model sees; None: no end.
    """

    _TOKEN = re.compile(r"\w+|[^\w\s]")

    def __init__(self, *, limit: int | None = None) -> None:
        self.limit = limit
        self.digest = hashlib.sha256(self._TOKEN.pattern.encode()).hexdigest()

    def special_tokens(self) -> int:
        """Return 0: there are none."""
        return 0

    def count(self, text: str) -> int:
        """Return the number of tokens."""
        if not text.isascii():
            return len(self._TOKEN.findall(text))
        # The same without an object for each token, in a twentieth of the time. Taken as one number, a word begins at
        # each 1 that has none before it.
        kinds = text.encode("ascii").translate(_ASCII_KINDS)
        words = int.from_bytes(kinds.translate(_WORD), "little")
        return kinds.count(b".") + (words ^ (words & (words << 8))).bit_count()

    def offsets(self, text: str) -> NDArray[np.int64]:
        """Return where each token starts and ends in the text, in characters: shape (tokens, 2), int64."""
        return _array([match.span() for match in self._TOKEN.finditer(text)])


class PieceTokenizer:
    """Pieces of words, about as many as a model's own tokenizer makes, as ``ports.Tokenizer``: for a far model.

    Four letters of the Latin alphabet, two of another, one ideograph, kana or hangul, three digits, one sign. English
    gets about a third more tokens than from OpenAI's ``cl100k_base``: an estimate that errs to the safe side.

    Args:
        limit: The most tokens of a text that the model sees; None: no end.
    """

    _TOKEN = re.compile(
        r"[A-Za-z]{1,4}|\d{1,3}|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W\d_]{1,2}|[^\w\s]|_|\w"
    )

    def __init__(self, *, limit: int | None = None) -> None:
        self.limit = limit
        self.digest = hashlib.sha256(self._TOKEN.pattern.encode()).hexdigest()

    def special_tokens(self) -> int:
        """Return 2: most models put one before a text and one behind it."""
        return 2

    def count(self, text: str) -> int:
        """Return the number of tokens."""
        return sum(1 for _ in self._TOKEN.finditer(text))

    def offsets(self, text: str) -> NDArray[np.int64]:
        """Return where each token starts and ends in the text, in characters: shape (tokens, 2), int64."""
        return _array([match.span() for match in self._TOKEN.finditer(text)])


def _array(offsets: list[tuple[int, int]]) -> NDArray[np.int64]:
    flat = itertools.chain.from_iterable(offsets)
    return np.fromiter(flat, dtype=np.int64, count=2 * len(offsets)).reshape(-1, 2)


def _seams(text: str, size: int, patterns: Sequence[re.Pattern[str]]) -> Iterator[int]:
    """Yield where to part a text: at the first pattern that occurs in time, at the last one wherever that is."""
    position = size
    while position < len(text):
        found = (pattern.search(text, position, position + size) for pattern in patterns)
        seam = next(filter(None, found), None) or patterns[-1].search(text, position + size)
        if seam is None:
            return
        yield seam.end()
        position = seam.end() + size


def _exact_seams(definition: Mapping[str, Any]) -> tuple[re.Pattern[str], ...]:
    """Return, from a tokenizer's definition, what parts its tokens whatever stands around it; best first."""
    splitters = _flat(definition.get("pre_tokenizer"), "pretokenizers")
    normalizers = _flat(definition.get("normalizer"), "normalizers")
    if (
        not splitters
        or splitters[0]["type"] not in _WORD_SPLITTERS
        or any(normalizer["type"] not in _LOCAL_NORMALIZERS for normalizer in normalizers)
    ):
        return ()
    patterns: tuple[re.Pattern[str], ...] = (_LINE, _SPACE)
    if splitters[0]["type"] != "WhitespaceSplit":
        patterns += (_SIGN,)
        if any(normalizer.get("handle_chinese_chars") for normalizer in normalizers):
            patterns += (_IDEOGRAPH,)
    # Added tokens are looked for in the raw text, before anything parts it: a seam must not run through one.
    added = definition.get("added_tokens", ())
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return ()
    return patterns if not any(p.search(token["content"]) for token in added for p in patterns) else ()


def _flat(component: Mapping[str, Any] | None, members: str) -> list[Mapping[str, Any]]:
    """Return a component's parts, a Sequence's members one by one."""
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [part for member in component[members] for part in _flat(member, members)]
    return [component]
