"""Instructor held against sentence-transformers itself, with a tiny T5 of random weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.models import HOSTILE, built, cosines, embed, require, texts
from tests.fixtures.tiny_models import LENGTH, NARROW, save_instructor

from ingestd.embedders import instructor, sentence_transformers
from ingestd.embedders.instructor import INSTRUCTIONS
from ingestd.errors import DocumentError
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.devices.pool import Pool

pytestmark = pytest.mark.models


@pytest.fixture(scope="module", autouse=True)
def _installed(offline: None) -> None:
    require("sentence_transformers", "torch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    return save_instructor(tmp_path_factory.mktemp("instructor"))


def config(folder: Path, **options: Any) -> instructor.Config:
    """Float32 and small batches, so that there are several."""
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "batch_tokens": 400}
    return instructor.Config(model=str(folder), **(settings | options))


def library(folder: Path) -> Any:
    """The model, loaded by sentence-transformers in this process."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
    model.set_pooling_include_prompt(include_prompt=False)
    return model


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"document_prompt": "Represent the article: ", "query_prompt": ""},
    ],
    ids=["own", "configured"],
)
def test_vectors_are_what_the_library_says(worker_pool: Pool, tiny: Path, given: dict[str, str]) -> None:
    """Of every text, in its place, by role: the instruction is seen and left out of the mean."""
    batch = [*texts(40, longest=40), *HOSTILE]
    model = library(tiny)
    prompts = {Role.DOCUMENT: given.get("document_prompt"), Role.QUERY: given.get("query_prompt")}
    ours = {role: embed(config(tiny, **given), worker_pool, batch, role) for role in Role}
    for role, prompt in prompts.items():
        said = INSTRUCTIONS[role] if prompt is None else prompt
        theirs = model.encode(batch, prompt=said or None, batch_size=7, show_progress_bar=False)
        assert cosines(ours[role], theirs).min() > 1 - 1e-6
        np.testing.assert_allclose(ours[role], theirs, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(ours[Role.QUERY], axis=1), 1, atol=1e-6)
    assert cosines(ours[Role.DOCUMENT], ours[Role.QUERY]).max() < 1 - 1e-4


def test_old_files(worker_pool: Pool, tiny: Path, tmp_path: Path) -> None:
    """The published models' files are older: pooling by flags, the dense layer in the old format. The same vectors."""
    old = save_instructor(tmp_path / "old", old=True)
    assert not (old / "2_Dense" / "model.safetensors").exists()
    batch = texts(10, longest=40)
    np.testing.assert_allclose(
        embed(config(old), worker_pool, batch), embed(config(tiny), worker_pool, batch), atol=1e-6
    )


def test_instruction_of_the_model(worker_pool: Pool, tmp_path: Path) -> None:
    """A model that says how it was trained is believed, before the authors' general words."""
    folder = save_instructor(tmp_path)
    path = folder / "config_sentence_transformers.json"
    said = json.loads(path.read_text()) | {"prompts": {"query": "find: ", "document": ""}}
    path.write_text(json.dumps(said))
    assert config(folder).prompts(folder) == {Role.QUERY: "find: ", Role.DOCUMENT: INSTRUCTIONS[Role.DOCUMENT]}
    theirs = library(folder).encode(["oil"], prompt="find: ", show_progress_bar=False)
    np.testing.assert_allclose(embed(config(folder), worker_pool, ["oil"], Role.QUERY), theirs, atol=2e-6)


def test_limit_leaves_room_for_the_instruction(worker_pool: Pool, tiny: Path) -> None:
    """A text of the limit's length is seen whole behind its instruction; what comes after it is not."""
    made = config(tiny, document_prompt="wing flow: ")
    tokenizer = made.tokenizer()
    limit = tokenizer.limit
    assert limit == LENGTH - 1 - tokenizer.count("wing flow: ")  # the end of the text
    batch = ["oil" + " oil" * times + end for times, end in ((limit - 2, ""), (limit - 1, ""), (limit - 1, " wing"))]
    vectors = embed(made, worker_pool, batch)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-5)
    np.testing.assert_allclose(vectors[1], vectors[2], atol=2e-6)


def test_half_a_surrogate_pair(worker_pool: Pool, tiny: Path) -> None:
    """It is the document's fault, and the worker lives on."""
    embedder = built(config(tiny), worker_pool)
    with pytest.raises(DocumentError):
        embedder.embed(["wing", "a\ud800b"], Role.DOCUMENT, {VectorKind.DENSE})
    assert len(embedder.embed(["wing"], Role.DOCUMENT, {VectorKind.DENSE})[VectorKind.DENSE]) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bits(worker_pool: Pool, tiny: Path, dtype: str) -> None:
    """Either half keeps the length to a part in a million, and the space; it costs little of the direction."""
    whole, half = config(tiny), config(tiny, dtype=dtype)
    batch = texts(20, 40)
    vectors = [embed(made, worker_pool, batch) for made in (whole, half)]
    assert cosines(*vectors).min() > 0.99  # with weights as large as these; a real model's are not
    np.testing.assert_allclose(np.linalg.norm(vectors[1], axis=1), 1, atol=1e-6)
    infos = [built(made, worker_pool).info() for made in (whole, half)]
    assert infos[0].space == infos[1].space
    assert [info.dtype for info in infos] == ["float32", dtype]


def test_layers_that_need_all_their_bits(tiny: Path) -> None:
    """In float16 one layer of each of T5's blocks overflows: it stays in float32, and so does all behind the T5."""
    import torch  # noqa: PLC0415 - takes seconds

    made = instructor.load(config(tiny, dtype="float16").model_dump(), "cpu")
    kinds = {name.rpartition(".weight")[0]: value.dtype for name, value in made._forward.encoder[0].named_parameters()}
    kept = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert kept
    assert {name.rpartition(".")[2] for name in kept} == {"wo"}
    assert {torch.float16, torch.float32} == set(kinds.values())
    assert {value.dtype for value in made._forward.encoder[2].parameters()} == {torch.float32}


def test_space(worker_pool: Pool, tiny: Path, tmp_path: Path) -> None:
    """Weights, instructions and leaving them out make the space; batches and lengths do not."""

    def space(made: Any) -> str:
        said: str = built(made, worker_pool).info().space
        return said

    info = built(config(tiny), worker_pool).info()
    assert (info.kinds, info.dimension) == (frozenset({VectorKind.DENSE}), NARROW)
    assert space(config(tiny, batch_tokens=100, max_tokens=40)) == info.space
    prompts = {"document_prompt": INSTRUCTIONS[Role.DOCUMENT], "query_prompt": INSTRUCTIONS[Role.QUERY]}
    assert space(config(tiny, **prompts)) == info.space
    counted_in = sentence_transformers.Config(model=str(tiny), dtype="float32", threads=1, **prompts)
    others = {
        space(counted_in),
        space(config(tiny, query_prompt="Find: ")),
        space(config(save_instructor(tmp_path / "other", seed=4))),
    }
    assert len(others | {info.space}) == 4
    # Files that say so themselves, read by the general plug-in, are the same space.
    own = save_instructor(tmp_path / "own")
    path = own / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": False}))
    assert space(sentence_transformers.Config(model=str(own), dtype="float32", threads=1, **prompts)) == info.space
