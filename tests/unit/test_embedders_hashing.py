"""The hashing embedder: what it finds, and that it is the same everywhere."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ingestd.devices.check import check
from ingestd.devices.pool import Pool
from ingestd.embedders.hashing import Config, Hashing
from ingestd.errors import Stopped
from ingestd.model import Role, SparseVector, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

BOTH = frozenset(VectorKind)
TEXTS = [
    "the boundary layer on a flat plate in supersonic flow",
    "heat transfer to a blunt body at hypersonic speed",
    "the price of oil fell for the third day on the exchange",
    "a striker scored twice in the second half of the match",
]


def embedder(**options: Any) -> Hashing:
    """An embedder with these options; it asks nothing of the pool."""
    return Config(**options).build("hashing", Pool())


def overlap(one: SparseVector, other: SparseVector) -> float:
    """The inner product."""
    shared, left, right = np.intersect1d(one.indices, other.indices, return_indices=True)
    return float((one.values[left] * other.values[right]).sum()) if len(shared) else 0.0


def ranking(query: str, texts: Sequence[str], kind: VectorKind) -> int:
    """The place of the text that is nearest to the query."""
    documents = embedder().embed(texts, Role.DOCUMENT, BOTH)[kind]
    (asked,) = embedder().embed([query], Role.QUERY, BOTH)[kind]
    if isinstance(documents, SparseVectors):
        assert isinstance(asked, SparseVector)
        return int(np.argmax([overlap(document, asked) for document in documents]))
    assert not isinstance(asked, SparseVector)
    return int(np.argmax(documents @ asked))


@pytest.mark.parametrize("kind", list(VectorKind))
@pytest.mark.parametrize(
    ("query", "best"),
    [("supersonic boundary layers over a plate", 0), ("oil price", 2), ("who scored in the match", 3)],
)
def test_finds_by_words(kind: VectorKind, query: str, best: int) -> None:
    """A query finds the text that shares its words, by either kind."""
    assert ranking(query, TEXTS, kind) == best


@settings(max_examples=200)
@given(st.lists(st.text(), max_size=5), st.sampled_from([2, 3, 64]))
def test_every_text_has_sound_vectors(texts: list[str], dimension: int) -> None:
    """Whatever the text (no word, surrogates, nothing at all), its vectors pass the check and have length 1."""
    vectors = embedder(dimension=dimension).embed(texts, Role.DOCUMENT, BOTH)
    check(vectors[VectorKind.DENSE], VectorKind.DENSE, len(texts), dimension)
    check(vectors[VectorKind.SPARSE], VectorKind.SPARSE, len(texts), None)
    block: Any = vectors[VectorKind.DENSE]
    assert np.allclose(np.linalg.norm(block, axis=1), 1, atol=1e-5)


def test_words_that_cancel_out() -> None:
    """Two words on one place with opposite signs leave no zero vector."""
    words = [f"w{number}" for number in range(40)]
    pairs = [f"{one} {other}" for one in words for other in words]
    vectors = embedder(dimension=2).embed(pairs, Role.DOCUMENT, {VectorKind.DENSE})[VectorKind.DENSE]
    check(vectors, VectorKind.DENSE, len(pairs), 2)


def test_case_and_order_do_not_matter_to_words() -> None:
    """Sparse vectors depend on words and their numbers alone."""
    one, other = embedder().embed(["Straße OIL price", "price oil STRASSE"], Role.DOCUMENT, BOTH)[VectorKind.SPARSE]
    assert isinstance(one, SparseVector)
    assert isinstance(other, SparseVector)
    assert one.indices.tolist() == other.indices.tolist()
    assert one.values.tolist() == other.values.tolist()


def test_the_same_in_every_process() -> None:
    """Another interpreter, with another seed for Python's own hashes, makes the very same bytes."""
    script = (
        "import sys\n"
        "from ingestd.embedders.hashing import Config\n"
        "from ingestd.model import Role, VectorKind\n"
        "v = Config().build('h', None).embed(['the oil price', ''], Role.DOCUMENT, set(VectorKind))\n"
        "s = v[VectorKind.SPARSE]\n"
        "sys.stdout.write((v[VectorKind.DENSE].tobytes() + s.indices.tobytes() + s.values.tobytes()).hex())\n"
    )
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    vectors = embedder().embed(["the oil price", ""], Role.DOCUMENT, BOTH)
    dense, sparse = vectors[VectorKind.DENSE], vectors[VectorKind.SPARSE]
    assert isinstance(sparse, SparseVectors)
    assert not isinstance(dense, SparseVectors)
    assert said == (dense.tobytes() + sparse.indices.tobytes() + sparse.values.tobytes()).hex()


def test_spaces_differ_by_what_changes_vectors() -> None:
    """Another dimension or other kinds are another space; a delay is not."""
    spaces = [embedder(**options).info().space for options in ({}, {"dimension": 32}, {"kinds": ["dense"]})]
    assert len(set(spaces)) == 3
    assert embedder(delay_seconds_per_text=1).info().space == spaces[0]


def test_kinds() -> None:
    """Only the kinds that are configured, and asked for, are made."""
    assert embedder(kinds=["sparse"]).info().dimension is None
    assert set(embedder(kinds=["sparse"]).embed(["a"], Role.QUERY, BOTH)) == {VectorKind.SPARSE}
    assert set(embedder().embed(["a"], Role.QUERY, {VectorKind.DENSE})) == {VectorKind.DENSE}


def test_query_without_words_stays_empty() -> None:
    """A query without a word has no sparse weights, and no document's mark is among its indices."""
    block = embedder().embed(["?!"], Role.QUERY, BOTH)[VectorKind.SPARSE]
    assert isinstance(block, SparseVectors)
    assert len(block.indices) == 0


def test_delay_and_close() -> None:
    """The delay takes its time for each text, and closing cuts it short."""
    start = time.monotonic()
    embedder(delay_seconds_per_text=0.05).embed(["a", "b"], Role.DOCUMENT, BOTH)
    assert time.monotonic() - start >= 0.1
    slow = embedder(delay_seconds_per_text=60)
    timer = threading.Timer(0.05, slow.close)
    timer.start()
    with pytest.raises(Stopped):
        slow.embed(["a"], Role.DOCUMENT, BOTH)
    timer.join()


def test_tokenizer_counts_words() -> None:
    """The tokenizer has the configured limit and knows where each word is."""
    tokenizer = Config(max_tokens=7).tokenizer()
    assert tokenizer.limit == 7
    assert tokenizer.offsets("two words").tolist() == [[0, 3], [4, 9]]


@pytest.mark.parametrize(
    "options",
    [{"dimension": 1}, {"kinds": []}, {"delay_seconds_per_text": -1}, {"delay_seconds_per_text": "inf"}, {"size": 3}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    """Options out of bounds, and unknown ones, are refused."""
    with pytest.raises(ValidationError):
        Config(**options)
