"""What is read from a model's files, and where they are looked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from ingestd.embedders import _folder
from ingestd.embedders._location import locate
from ingestd.embedders.sentence_transformers import Config
from ingestd.errors import ConfigError
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[[str, Any], None]


def test_folder(tmp_path: Path) -> None:
    """An existing folder is taken as it is."""
    assert locate(str(tmp_path), None, weights=True) == tmp_path


def test_package_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package's folder is found without running the package's code, which may load anything."""
    model = tmp_path / "some_model_package" / "weights"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package:some_model_package/weights", None, weights=True) == model
    assert "some_model_package" not in sys.modules


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("package:no_such_package_here/model", "no_such_package_here is not installed"),
        ("package:json/no/such", "the package json has no folder 'no/such'"),
        ("package:os.path/x", "does not begin with the name"),
        ("./no/such/folder", "there is no folder './no/such/folder'"),
        ("/no/such/folder", "there is no folder '/no/such/folder'"),
    ],
)
def test_model_that_is_not_there(model: str, said: str) -> None:
    """The message says what was looked for, and where."""
    with pytest.raises(ConfigError, match=said):
        locate(model, None, weights=True)


def test_hub_name_while_offline(tmp_path: Path) -> None:
    """A hub name that was never downloaded is a readable error when the hub may not be asked."""
    import subprocess  # noqa: PLC0415 - HF_HUB_OFFLINE is read while the library is imported: a process of its own

    script = (
        "from ingestd.embedders._location import locate\n"
        "from ingestd.errors import ConfigError\n"
        "for name in ('someone/no-such-model', 'no-such-model'):\n"
        "    try:\n"
        "        locate(name, 'v1', weights=True)\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    first, second = said.stdout.splitlines()
    assert "'someone/no-such-model'" in first
    assert "HF_HUB_OFFLINE" in first
    assert "revision v1" in first
    assert "'sentence-transformers/no-such-model'" in second


@pytest.mark.parametrize("found", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """Descriptions alone for a tokenizer; with the weights also BGE-M3's layers, in either format of the weights."""
    import huggingface_hub  # noqa: PLC0415 - the one place that needs it

    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        asked[:] = options["allow_patterns"]
        if "*" + found[found.index(".") :] in asked:
            (tmp_path / found).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("someone/model", None, weights=False) == tmp_path
    assert {"*.json"} == {pattern for pattern in asked if pattern.endswith(("json", ".pt", ".bin", "safetensors"))}
    assert locate("someone/model", None, weights=True) == tmp_path
    assert {"*.json", "sparse_linear.pt", "colbert_linear.pt", "*" + found[found.index(".") :]} <= set(asked)


def test_length_is_the_least_that_is_said(tmp_path: Path, write: Write) -> None:
    """The shortest of all lengths holds; transformers' 10**30 is none."""
    assert _folder.length(tmp_path, None) is None
    assert _folder.length(tmp_path, 100) == 100
    write("tokenizer_config.json", {"model_max_length": 10**30})
    assert _folder.length(tmp_path, None) is None
    write("config.json", {"max_position_embeddings": 512})
    assert _folder.length(tmp_path, None) == 512
    write("tokenizer_config.json", {"model_max_length": 400})
    assert _folder.length(tmp_path, None) == 400
    write("sentence_bert_config.json", {"max_seq_length": 256})
    assert _folder.length(tmp_path, None) == 256
    assert _folder.length(tmp_path, 128) == 128
    assert _folder.length(tmp_path, 1024) == 256


def test_positions_of_models_after_roberta(tmp_path: Path, write: Write) -> None:
    """They count positions from behind the padding token's: two of XLM-R's 514 are not to be had."""
    write("config.json", {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1})
    assert _folder.length(tmp_path, None) == 512
    write("config.json", {"model_type": "xlm-roberta", "max_position_embeddings": 514})
    assert _folder.length(tmp_path, None) == 512
    write("config.json", {"model_type": "bert", "max_position_embeddings": 514, "pad_token_id": 1})
    assert _folder.length(tmp_path, None) == 514


def test_transformer_in_a_folder_of_its_own(tmp_path: Path, write: Write) -> None:
    """The first module's folder is where lengths and the tokenizer are."""
    write("modules.json", [{"path": "0_Transformer", "type": "x.Transformer"}])
    write("0_Transformer/config.json", {"max_position_embeddings": 77})
    write("config.json", {"max_position_embeddings": 5})
    write("0_Transformer/tokenizer.json", {})
    assert _folder.length(tmp_path, None) == 77
    assert _folder.tokenizer_file(tmp_path) == tmp_path / "0_Transformer" / "tokenizer.json"


ROUTER: dict[str, Any] = {
    "types": {
        "query_0_SparseStaticEmbedding": "x.SparseStaticEmbedding",
        "document_0_Transformer": "x.Transformer",
        "document_1_SpladePooling": "x.SpladePooling",
    },
    "structure": {
        "query": ["query_0_SparseStaticEmbedding"],
        "document": ["document_0_Transformer", "document_1_SpladePooling"],
    },
    "parameters": {"default_route": "document"},
}


def test_routers_files(tmp_path: Path, write: Write) -> None:
    """Lengths and the tokenizer are those of documents, the length of queries is their own."""
    write("modules.json", [{"path": "", "type": "x.Router"}])
    write("router_config.json", ROUTER)
    write("document_0_Transformer/config.json", {"max_position_embeddings": 77})
    write("document_0_Transformer/tokenizer.json", {})
    write("document_1_SpladePooling/config.json", {"pooling_strategy": "max"})
    write("query_0_SparseStaticEmbedding/tokenizer_config.json", {"model_max_length": 9})
    assert _folder.tokenizer_file(tmp_path) == tmp_path / "document_0_Transformer" / "tokenizer.json"
    assert _folder.length(tmp_path, None) == 77
    assert _folder.length(tmp_path, None, Role.QUERY) == 9
    assert _folder.modules(tmp_path) == [{"module": "SpladePooling", "pooling_strategy": "max"}]


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ({}, "does not tell texts apart by their task alone"),
        (ROUTER | {"parameters": {"route_mappings": {"('query', 'text')": "query"}}}, "by their task alone"),
        (ROUTER | {"structure": {"a": [], "document": []}}, r"no route named 'query', only \['a', 'document'\]"),
        (ROUTER | {"types": {"query_0_SparseStaticEmbedding": "x.Router"}}, "is a router below a router"),
    ],
)
def test_routers_that_are_refused(tmp_path: Path, write: Write, router: dict[str, Any], said: str) -> None:
    """A router that would send a text elsewhere than by its role is refused, and why is said."""
    write("modules.json", [{"path": "", "type": "x.Router"}])
    write("router_config.json", router)
    with pytest.raises(ConfigError, match=said):
        Config(model=str(tmp_path)).tokenizer()


def test_table_that_lies_elsewhere(tmp_path: Path, write: Write) -> None:
    """Weights that are read from outside the folder would be in no digest: refused, with the cure."""
    write("modules.json", [{"path": "", "type": "x.Router"}])
    write("router_config.json", ROUTER)
    write("query_0_SparseStaticEmbedding/config.json", {"path": "idf.json"})
    with pytest.raises(ConfigError, match=r"takes its weights from elsewhere \('path'\).*save it again"):
        Config(model=str(tmp_path)).tokenizer()


def test_no_fast_tokenizer(tmp_path: Path) -> None:
    """A model without tokenizer.json is refused with the cure."""
    with pytest.raises(ConfigError, match=r"no tokenizer\.json.*save_pretrained"):
        Config(model=str(tmp_path)).tokenizer()


@pytest.mark.parametrize(
    ("saved", "given", "expected"),
    [
        ({}, (None, None), ("", "")),
        ({"query": "q: ", "document": "d: "}, (None, None), ("d: ", "q: ")),
        ({"query": "q: ", "passage": "p: "}, (None, None), ("", "q: ")),
        ({"document": "", "passage": "p: "}, (None, None), ("", "")),
        ({"corpus": "c: ", "passage": "p: "}, (None, None), ("", "")),
        ({"query": None, "document": None}, (None, None), ("", "")),
        ({"query": "q: ", "document": "d: "}, ("", "find: "), ("", "find: ")),
    ],
)
def test_prompts(
    tmp_path: Path, write: Write, saved: dict[str, str], given: tuple[str | None, str | None], expected: tuple[str, str]
) -> None:
    """A configured prompt wins, also an empty one; else the model's own, by the role's name."""
    write("config_sentence_transformers.json", {"prompts": saved})
    write("modules.json", [{"path": "", "type": "a.Transformer"}])
    prompts = _folder.prompts(tmp_path, *given)
    assert (prompts[Role.DOCUMENT], prompts[Role.QUERY]) == expected


def test_prompts_of_a_plain_model(tmp_path: Path, write: Write) -> None:
    """Without modules.json the library reads no saved prompts."""
    write("config_sentence_transformers.json", {"prompts": {"document": "d: ", "query": "q: "}})
    assert set(_folder.prompts(tmp_path, None, None).values()) == {""}


def test_broken_json(tmp_path: Path, write: Write) -> None:
    """A file that is no JSON is named."""
    write("config.json", b"{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        _folder.length(tmp_path, None)
