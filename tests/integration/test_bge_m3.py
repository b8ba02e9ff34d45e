"""BGE-M3 held against FlagEmbedding itself, with a tiny model of random weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.models import HOSTILE, built, cosines, counted, require, texts, weights
from tests.fixtures.tiny_models import LENGTH, WIDTH, save_bge_m3

from ingestd.devices.check import check
from ingestd.embedders import bge_m3
from ingestd.embedders._sparse import TINY
from ingestd.errors import ConfigError, DocumentError
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.devices.pool import Pool

pytestmark = pytest.mark.models

BOTH = frozenset(VectorKind)


@pytest.fixture(scope="module", autouse=True)
def _installed(offline: None) -> None:
    require("FlagEmbedding", "torch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    return save_bge_m3(tmp_path_factory.mktemp("bge_m3"))


def config(folder: Path, **options: Any) -> bge_m3.Config:
    """Float32 and small batches, so that there are several."""
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "batch_tokens": 300}
    return bge_m3.Config(model=str(folder), **(settings | options))


def library(folder: Path, batch: list[str], length: int = LENGTH) -> tuple[Any, list[dict[int, float]]]:
    """What FlagEmbedding makes of texts: dense vectors, and weights by token."""
    from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - takes seconds

    model = BGEM3FlagModel(str(folder), use_fp16=False, devices=["cpu"])
    made = model.encode(batch, batch_size=7, max_length=length, return_dense=True, return_sparse=True)
    weights = [{int(token): float(weight) for token, weight in row.items()} for row in made["lexical_weights"]]
    return made["dense_vecs"], weights


def test_both_are_what_the_library_says(worker_pool: Pool, tiny: Path) -> None:
    """Of every text, in its place: the dense vector, the tokens and their weights, whatever else is in the batch."""
    batch = [*texts(40, longest=50), *HOSTILE]
    dense, sparse = library(tiny, batch)
    embedder = built(config(tiny), worker_pool)
    for role in Role:
        ours = embedder.embed(batch, role, BOTH)
        assert cosines(ours[VectorKind.DENSE], dense).min() > 1 - 1e-6
        np.testing.assert_allclose(ours[VectorKind.DENSE], dense, atol=2e-6)
        for mine, theirs in zip(weights(ours[VectorKind.SPARSE]), sparse, strict=True):
            if theirs or role is Role.QUERY:
                assert mine == pytest.approx(theirs, abs=1e-5)
        check(ours[VectorKind.SPARSE], VectorKind.SPARSE, len(batch), None, role=role)


def test_one_pass_makes_both(tiny: Path) -> None:
    """Twelve texts in batches of four take three passes of the transformer, for one kind and for both."""
    made = bge_m3.load(config(tiny, batch_tokens=24).model_dump(), "cpu")
    batch = ["wing flow oil price"] * 12  # a token each, and two special ones
    for kinds in (BOTH, frozenset({VectorKind.DENSE}), frozenset({VectorKind.SPARSE})):
        with counted("XLMRobertaEmbeddings") as passes:
            assert set(made.embed(batch, Role.DOCUMENT, kinds)) == kinds
        assert passes == [4, 4, 4]
    with counted("XLMRobertaEmbeddings") as passes:
        assert made.embed(batch, Role.DOCUMENT, frozenset()) == {}
    assert passes == []


def test_text_without_a_weight(worker_pool: Pool, tiny: Path) -> None:
    """A document's empty vector gets the first index that no token has; a query's stays empty."""
    embedder = built(config(tiny), worker_pool)
    documents, queries = (weights(embedder.embed(["", "wing"], role, BOTH)[VectorKind.SPARSE]) for role in Role)
    behind = json.loads((tiny / "config.json").read_text())["vocab_size"]
    assert documents[0] == {behind: float(TINY)}
    assert queries[0] == {}
    assert documents[1] == queries[1]


def test_half_the_bits(worker_pool: Pool, tiny: Path) -> None:
    """bfloat16 keeps the length to a part in a million, and the space; it costs little of the direction."""
    whole, half = (built(config(tiny, dtype=dtype), worker_pool) for dtype in ("float32", "bfloat16"))
    vectors = [made.embed(texts(20, 40), Role.DOCUMENT, BOTH)[VectorKind.DENSE] for made in (whole, half)]
    assert cosines(*vectors).min() > 0.995  # with weights as large as these; the real model's are not
    np.testing.assert_allclose(np.linalg.norm(vectors[1], axis=1), 1, atol=1e-6)
    assert whole.info().space == half.info().space
    assert half.info().dtype == "bfloat16"


def test_prompts_differ_by_role(worker_pool: Pool, tiny: Path) -> None:
    """Each role's prompt goes before its texts alone."""
    plain = built(config(tiny), worker_pool)
    prompted = built(config(tiny, query_prompt="the price of "), worker_pool)
    (asked,) = prompted.embed(["oil"], Role.QUERY, BOTH)[VectorKind.DENSE]
    (said,) = prompted.embed(["oil"], Role.DOCUMENT, BOTH)[VectorKind.DENSE]
    expected = plain.embed(["the price of oil", "oil"], Role.DOCUMENT, BOTH)[VectorKind.DENSE]
    np.testing.assert_allclose([asked, said], expected, atol=2e-6)


def test_limit_of_the_tokenizer_is_what_the_model_sees(worker_pool: Pool, tiny: Path) -> None:
    """A text of the limit's length is seen whole; what comes after it is not."""
    assert config(tiny).tokenizer().limit == LENGTH - 2
    short = config(tiny, max_tokens=16)
    limit = short.tokenizer().limit
    assert limit == 14
    batch = ["oil" + " oil" * times + end for times, end in ((limit - 2, ""), (limit - 1, ""), (limit - 1, " wing"))]
    vectors = built(short, worker_pool).embed(batch, Role.DOCUMENT, BOTH)[VectorKind.DENSE]
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    np.testing.assert_allclose(vectors[1], vectors[2], atol=2e-6)


def test_half_a_surrogate_pair(worker_pool: Pool, tiny: Path) -> None:
    """It is the document's fault, and the worker lives on."""
    embedder = built(config(tiny), worker_pool)
    with pytest.raises(DocumentError):
        embedder.embed(["wing", "a\ud800b"], Role.DOCUMENT, BOTH)
    assert len(embedder.embed(["wing"], Role.DOCUMENT, BOTH)[VectorKind.DENSE]) == 1


def test_space(worker_pool: Pool, tiny: Path, tmp_path: Path) -> None:
    """Weights, also the sparse layer's, and prompts make the space; batches and the third kind's layer do not."""
    import torch  # noqa: PLC0415 - takes seconds

    def space(folder: Path, **options: Any) -> str:
        made: str = built(config(folder, **options), worker_pool).info().space
        return made

    info = built(config(tiny), worker_pool).info()
    assert (info.kinds, info.dimension) == (BOTH, WIDTH)
    same, other = save_bge_m3(tmp_path / "same"), save_bge_m3(tmp_path / "other", seed=4)
    torch.save(torch.nn.Linear(WIDTH, WIDTH).state_dict(), same / "colbert_linear.pt")
    assert space(same, batch_tokens=100, max_tokens=20) == info.space
    torch.save(torch.nn.Linear(WIDTH, 1).state_dict(), same / "sparse_linear.pt")
    others = {space(same), space(other), space(tiny, query_prompt="q: ")}
    assert len(others | {info.space}) == 4


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
def test_layer_that_is_missing(worker_pool: Pool, tmp_path: Path, name: str) -> None:
    """FlagEmbedding would make up both layers; it is refused, with the file's name."""
    folder = save_bge_m3(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"embedders\.lost: model: .* is no BGE-M3: it has no {name}"):
        config(folder).build("lost", worker_pool).info()
