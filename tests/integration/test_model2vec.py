"""Static models held against model2vec itself: with real weights, and with tiny tables for odd settings."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.models import WORDS, cosines, embed, require, texts

from ingestd.devices.check import check
from ingestd.embedders import model2vec
from ingestd.embedders._location import locate
from ingestd.errors import ConfigError, DocumentError
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.devices.pool import Pool

pytestmark = pytest.mark.models

REAL = "package:static_model/model"
KNOWN = ["wing", "flow", "by", "price", "minister"]


@pytest.fixture(scope="module", autouse=True)
def _installed(offline: None) -> None:
    require("model2vec", "static_model")


def library(folder: Path) -> Any:
    """The model, loaded by model2vec in this process."""
    return importlib.import_module("model2vec").StaticModel.from_pretrained(folder, force_download=False)


def save(folder: Path, *, dtype: str = "float32", normalize: bool = False, **more: Any) -> Path:
    """Save a static model of a word a token, with random vectors; the first token is the unknown one."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - only where a model is made

    vocabulary = {word: place for place, word in enumerate(["[UNK]", *KNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = np.random.default_rng(5).normal(size=(len(vocabulary), 8)) * 50
    static = importlib.import_module("model2vec").StaticModel(
        table.astype(dtype), tokenizer, normalize=normalize, **more
    )
    static.save_pretrained(folder)
    return folder


def test_real_weights(worker_pool: Pool) -> None:
    """Every vector is that of ``encode``, in its place, whatever else is in the batch, overlong texts included."""
    batch = [*texts(40)[1:], "wing " * 5_000, "東京 Straße ﬁn 🙂"]
    theirs = library(locate(REAL, None, weights=True)).encode(batch)
    ours = embed(model2vec.Config(model=REAL, batch_tokens=700), worker_pool, batch)
    assert ours.dtype == np.float32
    assert cosines(ours, theirs).min() > 1 - 1e-6
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_queries_are_embedded_as_documents(worker_pool: Pool) -> None:
    """A static model knows no roles."""
    config = model2vec.Config(model=REAL)
    documents, queries = (embed(config, worker_pool, ["the oil price"], role) for role in Role)
    np.testing.assert_array_equal(documents, queries)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalize": True},
        {"dtype": "float16"},
        {"dtype": "int8"},
        {"weights": np.linspace(0.1, 3, 6, dtype=np.float32)},
        {"weights": np.linspace(0.1, 3, 6), "token_mapping": np.array([0, 1, 1, 2, 3, 0])},
        {"max_length": 9},
        {"max_length": None},
    ],
    ids=str,
)
def test_every_kind_of_table(worker_pool: Pool, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Normalised or not, in few bits, with weights, with fewer rows than tokens, cut or not: as the library has it."""
    folder = save(tmp_path, **settings)
    batch = texts(60)
    theirs = library(folder).encode(batch).astype(np.float32)
    ours = embed(model2vec.Config(model=str(folder), batch_tokens=300), worker_pool, batch)
    known = theirs.any(axis=1)  # a text without a known token is the next test's
    assert known.sum() > 40
    theirs, ours = theirs[known], ours[known]
    tolerance = 1e-2 if settings.get("dtype") == "float16" else 1e-4  # theirs, of numbers around 50, has three digits
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * 5)
    assert cosines(ours, theirs).min() > 1 - 1e-6


def test_text_without_a_known_token(worker_pool: Pool, tmp_path: Path) -> None:
    """It gets a vector that a collection takes, where the library's zeros would fail the document.

    That vector is the opposite of the mean of all tokens. Its neighbours' are as ever.
    """
    folder = save(tmp_path)
    batch = ["wing", "", " \t\n", "東京 ?!", "\0", "flow"]
    theirs = library(folder).encode(batch)
    ours = embed(model2vec.Config(model=str(folder)), worker_pool, batch)
    check(ours, VectorKind.DENSE, len(batch), 8)
    np.testing.assert_allclose(ours[[0, 5]], theirs[[0, 5]], atol=1e-5)
    assert not theirs[1:5].any()
    np.testing.assert_array_equal(ours[1:5], ours[[1]].repeat(4, axis=0))
    away = -library(folder).embedding.mean(axis=0)
    np.testing.assert_allclose(ours[1], away / np.linalg.norm(away), atol=1e-6)


def test_half_a_surrogate_pair(worker_pool: Pool, tmp_path: Path) -> None:
    """It is the document's fault, and the worker lives on."""
    embedder = model2vec.Config(model=str(save(tmp_path))).build("tried", worker_pool)
    with pytest.raises(DocumentError):
        embedder.embed(["wing", "a\ud800b"], Role.DOCUMENT, {VectorKind.DENSE})
    assert len(embedder.embed(["wing"], Role.DOCUMENT, {VectorKind.DENSE})[VectorKind.DENSE]) == 1


def test_max_tokens_is_what_the_model_sees(worker_pool: Pool, tmp_path: Path) -> None:
    """A text of the tokenizer's limit is seen whole; what comes after it is not."""
    config = model2vec.Config(model=str(save(tmp_path)), max_tokens=12)
    limit = config.tokenizer().limit
    assert limit == 12
    vectors = embed(config, worker_pool, ["by " * (limit - 1), "by " * (limit - 1) + "wing", "by " * limit + "wing"])
    assert not np.allclose(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    assert model2vec.Config(model=REAL).tokenizer().limit == 512
    assert model2vec.Config(model=str(save(tmp_path, max_length=None))).tokenizer().limit is None


def test_space(worker_pool: Pool, tmp_path: Path) -> None:
    """The table and normalising make the space; batches and lengths do not."""

    def space(folder: Path, **options: Any) -> str:
        made: str = model2vec.Config(model=str(folder), **options).build("tried", worker_pool).info().space
        return made

    plain = save(tmp_path / "plain")
    first = space(plain)
    assert first == space(plain, batch_tokens=50, max_tokens=100)
    others = {space(plain, normalize=True), space(save(tmp_path / "half", dtype="float16"))}
    assert len(others | {first}) == 3
    # Asked for or the model's own: it is the same space.
    assert space(save(tmp_path / "unit", normalize=True)) in others


def test_normalize(worker_pool: Pool, tmp_path: Path) -> None:
    """A model that does not normalise does so when it is asked to."""
    ours = embed(model2vec.Config(model=str(save(tmp_path)), normalize=True), worker_pool, [*KNOWN, " ".join(WORDS)])
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)


def test_folder_of_another_kind(worker_pool: Pool, tmp_path: Path) -> None:
    """A folder without a static model is refused with its path; so is a package that is not there."""
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match=r"embedders\.lost: model: .* is no model of model2vec"):
        model2vec.Config(model=str(tmp_path)).build("lost", worker_pool).info()
    with pytest.raises(ConfigError, match="no_such_package is not installed"):
        model2vec.Config(model="package:no_such_package/x").build("lost", worker_pool).info()
