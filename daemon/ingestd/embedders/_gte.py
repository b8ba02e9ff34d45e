"""What a GTE model's config.json says, in the terms of transformers' own class.

Owns the translation of old checkpoints, whose architecture is called ``new`` and comes as Python code beside the
weights. That code was turned down, whoever trusts it: written for transformers 4, under 5 it computes with buffers
that were never filled. The same weights load into ``GteForTokenClassification``, given a configuration written here.
Needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingestd.model import Json

OLD, NATIVE = "new", "gte"
"""Values of ``model_type``."""

_SAME: dict[str, Json] = {
    "vocab_size": 30_528,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "hidden_act": "gelu",
    "max_position_embeddings": 2_048,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
"""Settings that both have, with what they are in the old class where the file says nothing."""

_ONLY: dict[str, Json] = {
    "layer_norm_type": "layer_norm",
    "position_embedding_type": "rope",
    "pack_qkv": True,
    "logn_attention_scale": False,
}
"""Settings of the old class of which transformers has one value; the others of that class change no vector."""


def arguments(config: Mapping[str, Json]) -> dict[str, Json]:
    """Return ``GteConfig``'s arguments for an old checkpoint with one weight a token.

    Args:
        config: The content of its config.json.

    Raises:
        ConfigError: It computes something that transformers' class does not.
    """
    for key, value in _ONLY.items():
        if config.get(key, value) != value:
            raise ConfigError(f"model: config.json has {key} = {config[key]!r}, and only {value!r} can be computed")
    same = {key: config.get(key, value) for key, value in _SAME.items()}
    return same | {"num_labels": 1, "rope_parameters": _rope(config)}


def _rope(config: Mapping[str, Json]) -> Json:
    """Return how positions turn. The old class knows one scaling, a fixed NTK (https://kexue.fm/archives/9706).

    It multiplies the base by the factor, then divides all frequencies by ``factor ** (2 / width of a head)``: the
    latter is what transformers calls linear.
    """
    theta, scaling = config.get("rope_theta", 10_000.0), config.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    if not isinstance(scaling, dict) or scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
        raise ConfigError(f"model: config.json has rope_scaling = {scaling!r}, and only 'ntk' can be computed")
    sizes = (config.get(key, _SAME[key]) for key in ("hidden_size", "num_attention_heads"))
    try:
        factor, base = float(scaling["factor"]), float(theta)  # type: ignore[arg-type]
        hidden, heads = (int(size) for size in sizes)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"model: config.json says no numbers for the scaling of positions: {error!r}") from error
    if factor <= 1:
        return {"rope_type": "default", "rope_theta": base}
    return {"rope_type": "linear", "rope_theta": base * factor, "factor": factor ** (2 / (hidden // heads))}
