"""What makes two models one vector space, and what two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ingestd.embedders import _folder, _space
from ingestd.errors import ConfigError
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[[str, Any], None]

CONFIG: dict[str, Any] = {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_size": 384,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.8.2",
    "use_cache": True,
    "vocab_size": 30522,
}
"""MiniLM's, as transformers 4 wrote it."""
BY_VERSION_5: dict[str, Any] = {
    "add_cross_attention": False,
    "bos_token_id": None,
    "classifier_dropout": None,
    "dtype": "bfloat16",
    "eos_token_id": None,
    "is_decoder": False,
    "tie_word_embeddings": True,
    "transformers_version": "5.23.0",
}
"""What version 5 writes on top of it."""

TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": {"max_length": 128, "strategy": "LongestFirst", "stride": 0},
    "padding": None,
    "added_tokens": [{"id": 0, "content": "[PAD]", "special": True}],
    "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "dropout": None},
}


@pytest.fixture
def model(tmp_path: Path, write: Write) -> Path:
    """A model of one module, as far as its digest goes."""
    write("model.safetensors", b"weights")
    write("config.json", CONFIG)
    write("tokenizer.json", TOKENIZER)
    write("tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})
    return tmp_path


def fingerprint(folder: Path, **prompts: str) -> str:
    """The fingerprint of a folder."""
    by_role = {role: prompts.get(role.value, "") for role in Role}
    return _space.fingerprint("dense", folder, by_role, {"modules": _folder.modules(folder), "dimension": 3})


def test_fingerprint_follows_what_decides_a_vector(tmp_path: Path, write: Write) -> None:
    """Weights of any module, settings of pooling, prompts and lower case count; the rest does not."""
    write("modules.json", [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.models.Pooling"}])
    write("1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    write("model.safetensors", b"weights")
    write("README.md", b"about")
    seen = {fingerprint(tmp_path)}

    write("README.md", b"more about")
    write(
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True},
    )
    write("modules.json", [{"path": "", "type": "b.Transformer"}, {"path": "1_Pooling", "type": "b.modules.Pooling"}])
    assert {fingerprint(tmp_path)} == seen

    changes: list[tuple[str, Any]] = [
        ("model.safetensors", b"other weights"),
        ("1_Pooling/model.safetensors", b"weights of a layer"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "include_prompt": False}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
    ]
    for name, content in changes:
        write(name, content)
        now = fingerprint(tmp_path)
        assert now not in seen, name
        seen.add(now)
    assert fingerprint(tmp_path, query="q: ") not in seen
    assert fingerprint(tmp_path, query="q: ") != fingerprint(tmp_path, document="q: ")


def test_old_weights(tmp_path: Path, write: Write) -> None:
    """Where there are no safetensors the old format is hashed; where there is neither, that is said."""
    with pytest.raises(ConfigError, match="has no weights"):
        _space.weights_digest(tmp_path)
    write("pytorch_model.bin", b"old")
    old = _space.weights_digest(tmp_path)
    write("model.safetensors", b"new")
    new = _space.weights_digest(tmp_path)
    assert new != old
    # A layer in the old format beside a transformer in the new one counts as well.
    write("modules.json", [{"path": "", "type": "a.Transformer"}, {"path": "2_Dense", "type": "a.Dense"}])
    write("2_Dense/pytorch_model.bin", b"layer")
    assert _space.weights_digest(tmp_path) != new


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 5},
        {"num_attention_heads": 6},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 1e-5},
        {"position_embedding_type": "relative_key"},
        {"rope_theta": 20_000},
        {"rope_scaling": {"type": "ntk", "factor": 8.0}},
        {"is_decoder": True},
        {"architectures": ["BertForMaskedLM"]},
        {"a_key_of_the_next_version": 1},
    ],
)
def test_another_way_to_compute_is_another_space(model: Path, write: Write, change: dict[str, Any]) -> None:
    """The same weights computed with otherwise are other vectors; a key that nobody knows may do that too."""
    before = fingerprint(model)
    write("config.json", CONFIG | change)
    assert fingerprint(model) != before


def test_another_number_in_a_part_of_the_config_is_another_space(model: Path, write: Write) -> None:
    """Settings in settings count."""
    seen = set()
    for factor in (4.0, 8.0):
        write("config.json", CONFIG | {"rope_parameters": {"rope_type": "linear", "factor": factor}})
        seen.add(fingerprint(model))
    assert len(seen) == 2


@pytest.mark.parametrize(
    "change",
    [
        BY_VERSION_5,
        {"torch_dtype": "float16"},
        {"_name_or_path": "/somewhere/else"},
        {"id2label": {"0": "LABEL_0"}, "hidden_dropout_prob": 0.2},
    ],
)
def test_what_computes_nothing_is_the_same_space(model: Path, write: Write, change: dict[str, Any]) -> None:
    """Neither the version that saved a model nor its dtype, its name or its training make it another."""
    before = fingerprint(model)
    write("config.json", dict(sorted((CONFIG | change).items(), reverse=True)))
    assert fingerprint(model) == before


def test_the_librarys_own_settings(model: Path, write: Write) -> None:
    """Lengths and what a newer version writes for all models change no vector; arguments for the model do."""
    before = fingerprint(model)
    write("sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    assert fingerprint(model) == before
    write(
        "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
            "processor_kwargs": {"model_max_length": 64},
        },
    )
    assert fingerprint(model) == before
    write("sentence_bert_config.json", {"max_seq_length": 256, "config_args": {"num_hidden_layers": 3}})
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", TOKENIZER | {"normalizer": {"type": "BertNormalizer", "lowercase": False}}),
        ("tokenizer.json", TOKENIZER | {"added_tokens": []}),
        ("tokenizer.json", TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": {"b": 0, "a": 1, "ab": 2}}}),
        ("tokenizer.json", TOKENIZER | {"model": TOKENIZER["model"] | {"merges": ["b a"]}}),
        ("tokenizer.json", TOKENIZER | {"model": TOKENIZER["model"] | {"ignore_merges": True}}),
        ("tokenizer_config.json", {"do_lower_case": False}),
    ],
)
def test_another_tokenizer_is_another_space(model: Path, write: Write, name: str, content: dict[str, Any]) -> None:
    """Other tokens of a text are another vector."""
    before = fingerprint(model)
    write(name, content)
    assert fingerprint(model) != before


def test_a_tokenizer_written_otherwise_is_the_same_space(model: Path, write: Write) -> None:
    """White space, the order of keys, cutting and padding, and how another version writes it do not count."""
    before = fingerprint(model)
    newer = {
        "model": {
            "ignore_merges": False,
            "merges": [["a", "b"]],
            "vocab": {"ab": 2, "b": 1, "a": 0},
            "type": "BPE",
            "dropout": None,
        },
        "padding": {"strategy": "BatchLongest"},
        "truncation": None,
    }
    write("tokenizer.json", json.dumps(dict(reversed(TOKENIZER.items())) | newer, indent=4).encode())
    write("tokenizer_config.json", {"do_lower_case": True, "model_max_length": 64, "backend": "tokenizers"})
    assert fingerprint(model) == before
