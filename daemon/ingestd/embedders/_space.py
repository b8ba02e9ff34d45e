"""What decides a local model's vectors, as one digest: models of one digest share a vector space.

Owns what counts. Of a config.json everything does but what is known to compute nothing: a key that nobody here has
heard of may turn a vector, and a space that is needlessly another is told of before anything is written, where two
models' vectors in one collection show only as bad answers. Asking the loaded model was turned down: its settings are
those of the file and the library's defaults, which change with its version.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

from ingestd.embedders import _folder
from ingestd.errors import ConfigError
from ingestd.model import Json, Role, canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

_Object: TypeAlias = "dict[str, Json]"

_INERT = frozenset(
    {
        # Where the files come from, and how they are stored and run: the weights' own digest has their dtype.
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype"),
        *("_attn_implementation", "attn_implementation", "use_cache", "unpad_inputs", "return_dict", "torchscript"),
        *("output_attentions", "output_hidden_states"),
        # For training.
        *("initializer_range", "initializer_factor", "gradient_checkpointing", "attention_probs_dropout_prob"),
        *(
            "hidden_dropout_prob",
            "attention_dropout",
            "hidden_dropout",
            "activation_dropout",
            "dropout",
            "dropout_rate",
        ),
        *("classifier_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop", "frozen"),
        # For tasks other than this.
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),
        # Where texts are cut: chunks are made to fit, so it changes no chunk's vector.
        *("max_length", "model_max_length", "max_seq_length", "query_length", "document_length"),
    }
)
"""Keys that change no vector."""

_UNSAID: _Object = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "do_lower_case": False,
    "is_decoder": False,
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "transformer_task": "feature-extraction",
}
"""What some versions of the libraries write and others leave out, with what both mean by it."""

_OVER_THE_FILE = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
)
"""Of tokenizer_config.json, what transformers puts over what tokenizer.json says."""


def fingerprint(
    kind: str,
    folder: Path,
    prompts: Mapping[Role, str],
    more: Mapping[str, Json],
    told: AbstractSet[str] = frozenset(),
) -> str:
    """Return the fingerprint of a vector space: vectors of equal fingerprints may be compared.

    The weights are hashed, not named: the same model from a package, a folder and the hub is one space, and a branch
    that moved is another.

    Args:
        kind: ``dense``, ``sparse`` or ``hybrid``.
        folder: The model's files, weights included.
        prompts: What is put before a text of each role.
        more: What else decides a vector.
        told: Keys of config.json that ``more`` speaks for, together with the configuration's.

    Raises:
        ConfigError: There are no weights, or a file cannot be read.
    """
    said: _Object = {
        "kind": kind,
        "weights": weights_digest(folder),
        "inputs": [_input(path, told) for path in _folder.inputs(folder)],
        "routes": _folder.routes(folder),
        "prompts": {role.value: text for role, text in prompts.items()},
        **more,
    }
    return hashlib.sha256(canonical_json(said)).hexdigest()


def weights_digest(folder: Path) -> str:
    """Return a SHA-256 over the weights of all modules, in a stable order.

    Raises:
        ConfigError: There are none.
    """
    # Folder by folder: a transformer in the new format may come with a layer in the old one.
    files = [
        file
        for path in _folder.folders(folder)
        for file in sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    ]
    if not files:
        raise ConfigError(f"model: {folder} has no weights (*.safetensors or pytorch_model.bin)")
    hasher = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            hasher.update(hashlib.file_digest(opened, "sha256").digest())
    return hasher.hexdigest()


def _input(folder: Path, told: AbstractSet[str]) -> Json:
    """Return how a transformer, or a table of tokens, computes beside its weights, from texts to states."""
    config = _folder.read(folder / "config.json")
    tokenizer = _folder.read(folder / "tokenizer_config.json")
    return {
        "config": _computing({key: value for key, value in config.items() if key not in told}),
        "settings": _computing(_folder.settings(folder)),
        "tokenizer": _tokenizer_digest(folder / "tokenizer.json"),
        "tokenizer_settings": {key: tokenizer[key] for key in _OVER_THE_FILE if tokenizer.get(key) is not None},
    }


def _computing(said: _Object) -> _Object:
    """Return settings without those that compute nothing, are off, or are left out by other versions."""
    told = {key: _computing(value) if isinstance(value, dict) else value for key, value in said.items()}
    return {
        key: value for key, value in told.items() if key not in _INERT and value not in (None, {}, _UNSAID.get(key))
    }


def _tokenizer_digest(path: Path) -> str | None:
    """Return the digest of what a tokenizer.json says, however it is written; None: there is none.

    Cutting and padding are no part of it: both are set when it is used. Newer versions write a merge as a pair, and
    settings of the model that older ones did not have, all of them off.
    """
    said = _folder.read(path)
    if not said:
        return None
    told: _Object = {key: value for key, value in said.items() if key not in {"truncation", "padding"}}
    model = said.get("model")
    if isinstance(model, dict):
        told["model"] = {
            key: _pairs(value) if key == "merges" else value
            for key, value in model.items()
            if value not in (None, False)
        }
    return hashlib.sha256(canonical_json(told)).hexdigest()


def _pairs(merges: Json) -> Json:
    """Return merges as pairs; older files have them as texts, parted by the one space in each."""
    if not isinstance(merges, list):
        return merges
    return [[*merge.split(" ")] if isinstance(merge, str) else merge for merge in merges]
