"""What an old Nomic checkpoint's config.json says, in the terms of transformers' own class.

Owns the translation of files that are older than that class (nomic-embed-text-v1 and -v1.5): they name their sizes
as GPT-2 does, the class reads none of those names, and takes its own defaults. Where a model has others, layers are
missing or made up with random weights, and nothing says so; a mixture of experts (v2) loses its experts like that.
Such a model is translated or refused. Needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingestd.model import Json

_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
_ONLY: dict[str, Json] = {
    "activation_function": "swiglu",
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "num_experts": 0,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "use_rms_norm": False,
}
"""What the class computes, where the old code had a choice."""


def arguments(config: Mapping[str, Json]) -> dict[str, Json]:
    """Return what ``NomicBertConfig`` has to be told beside the file; nothing for any other model.

    Args:
        config: The content of the transformer's config.json.

    Raises:
        ConfigError: It computes something that transformers' class does not.
    """
    if config.get("model_type") != "nomic_bert" or "n_embd" not in config:
        return {}
    for key, value in _ONLY.items():
        if (config.get(key) or value) != value:
            raise ConfigError(
                f"model: config.json has {key} = {config[key]!r}, which transformers' own class of Nomic's models does "
                "not compute: take a checkpoint in its format, or set trust_remote_code = true"
            )
    told = {ours: config[theirs] for theirs, ours in _NAMES.items() if config.get(theirs) is not None}
    width, heads = config["n_embd"], config.get("n_head", 12)
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        raise ConfigError(f"model: config.json says no numbers for n_embd and n_head: {width!r}, {heads!r}")
    return told | {
        "head_dim": width // heads,  # reckoned before it is told of the sizes
        "rope_parameters": {"rope_type": "default", "rope_theta": config.get("rotary_emb_base", 10_000)},
    }


def length(config: Mapping[str, Json]) -> Json:
    """Return at how many tokens an old checkpoint's positions end; None for any other model.

    Beyond those of its training, v1 stretches its positions by the longest text of a batch: a text's vector would
    depend on its neighbours. So it ends there.
    """
    if config.get("model_type") != "nomic_bert":
        return None
    return config.get("max_trained_positions" if config.get("rotary_scaling_factor") else "n_positions")
