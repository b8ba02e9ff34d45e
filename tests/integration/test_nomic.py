"""Nomic's models through sentence-transformers and transformers' own class, with random weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.models import HOSTILE, cosines, embed, require, texts
from tests.fixtures.tiny_models import LENGTH, OLD_NOMIC, save_nomic

from ingestd.embedders import sentence_transformers
from ingestd.errors import ConfigError
from ingestd.model import Role

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.devices.pool import Pool

pytestmark = pytest.mark.models


@pytest.fixture(scope="module", autouse=True)
def _installed(offline: None) -> None:
    require("sentence_transformers", "torch")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in transformers' own format."""
    return save_nomic(tmp_path_factory.mktemp("nomic"))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as the published ones are."""
    return save_nomic(tmp_path_factory.mktemp("old_nomic"), old=True)


def config(folder: Path, **options: Any) -> sentence_transformers.Config:
    """Float32 and small batches, so that there are several."""
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "batch_tokens": 300}
    return sentence_transformers.Config(model=str(folder), **(settings | options))


@pytest.mark.parametrize("form", ["native", "old"])
def test_queries_are_no_documents(worker_pool: Pool, form: str, native: Path, request: pytest.FixtureRequest) -> None:
    """In either format, each role gets its prefix, and a vector is the library's for the native one."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds

    batch = [*texts(20, longest=30), *HOSTILE]
    library = SentenceTransformer(str(native), device="cpu", local_files_only=True, trust_remote_code=False)
    folder = request.getfixturevalue(form)
    vectors: dict[Role, Any] = {}
    for role, prefix in ((Role.DOCUMENT, "search_document: "), (Role.QUERY, "search_query: ")):
        theirs = library.encode([prefix + text for text in batch], show_progress_bar=False)
        vectors[role] = embed(config(folder), worker_pool, batch, role)
        assert cosines(vectors[role], theirs).min() > 1 - 1e-6
        np.testing.assert_allclose(vectors[role], theirs, atol=5e-6)
    assert cosines(vectors[Role.DOCUMENT], vectors[Role.QUERY]).max() < 1 - 1e-4


def test_prefixes_from_the_configuration(worker_pool: Pool, native: Path, tmp_path: Path) -> None:
    """Files that say no prompts are told them."""
    silent = save_nomic(tmp_path)
    path = silent / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": {}}))
    told = config(silent, document_prompt="search_document: ", query_prompt="search_query: ")
    for role in Role:
        expected = embed(config(native), worker_pool, ["the oil price"], role)
        np.testing.assert_allclose(embed(told, worker_pool, ["the oil price"], role), expected, atol=1e-6)


def test_positions_keep_their_bits(native: Path) -> None:
    """In bfloat16 the frequencies of positions stay in float32: rounded, a long text's words lose their order."""
    import torch  # noqa: PLC0415 - takes seconds

    made = sentence_transformers.load(config(native, dtype="bfloat16").model_dump(), "cpu")
    transformer = made._forward.encoder[0]
    kinds = {name.rpartition(".")[2]: value.dtype for name, value in transformer.named_buffers()}
    assert kinds["inv_freq"] == torch.float32
    assert {value.dtype for value in transformer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changed", "length"), [({}, LENGTH), ({"n_positions": 40}, 40), ({"rotary_scaling_factor": 2}, LENGTH)]
)
def test_length(old: Path, tmp_path: Path, changed: dict[str, Any], length: int) -> None:
    """The least of what the files say, under the old names too."""
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "config_sentence_transformers.json"):
        (tmp_path / name).write_bytes((old / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(OLD_NOMIC | changed))
    tokenizer = config(tmp_path).tokenizer()
    assert tokenizer.limit == length - 2 - tokenizer.count("search_document: ")


def test_stretched_positions_end_where_training_did(old: Path, tmp_path: Path) -> None:
    """Beyond that a vector would depend on the batch's longest text."""
    for name in ("tokenizer.json", "modules.json"):
        (tmp_path / name).write_bytes((old / name).read_bytes())
    stretched = {"rotary_scaling_factor": 2, "max_trained_positions": 2048}
    (tmp_path / "config.json").write_text(json.dumps(OLD_NOMIC | stretched))
    assert config(tmp_path).tokenizer().limit == 2048 - 2
    (tmp_path / "config.json").write_text(json.dumps(OLD_NOMIC))
    assert config(tmp_path).tokenizer().limit == 8192 - 2


@pytest.mark.parametrize("changed", [{"num_experts": 8}, {"prenorm": True}, {"qkv_proj_bias": True}], ids=str)
def test_what_cannot_be_computed(worker_pool: Pool, old: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    """Where the library would make up layers or leave some out, the model is refused with the setting's name."""
    for path in old.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_bytes((old / "1_Pooling" / "config.json").read_bytes())
    said = json.loads((old / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(said))
    (key,) = changed
    with pytest.raises(ConfigError, match=rf"embedders\.lost: model: config\.json has {key} = "):
        config(tmp_path).build("lost", worker_pool).info()
