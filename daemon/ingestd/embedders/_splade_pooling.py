"""From a sparse model's scores to one weight a word, in the worker. Imports torch.

Owns the fast way for SPLADE's max pooling and the choice between it and the model's own modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling

from ingestd.embedders._forward import way
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentence_transformers import SparseEncoder

    from ingestd.embedders._passes import Features

_MODULES_OF_SPLADE = 2
"""The masked language model and its pooling."""


def of(encoder: SparseEncoder) -> Callable[[Features, Role], torch.Tensor]:
    """Return what turns a batch's features into weights, a tensor of shape (texts, vocabulary)."""
    ways = {role: _of(encoder, role) for role in Role}
    return lambda features, role: ways[role](features)


def _of(encoder: SparseEncoder, role: Role) -> Callable[[Features], torch.Tensor]:
    """Return the same for one role: a router may look queries' words up in a table, and run documents alone.

    Texts that go through other modules (sums, tables, autoencoders) run as they are.
    """
    modules = way(encoder, role)
    if len(modules) == _MODULES_OF_SPLADE and isinstance(modules[1], SpladePooling):
        transformer, pooling = modules
        if pooling.pooling_strategy == "max" and pooling.activation_function in {"relu", "log1p_relu"}:
            twice = pooling.activation_function == "log1p_relu"
            return lambda features: _greatest(transformer(features), twice=twice)
    return lambda features: encoder(features, task=role.value)["sentence_embedding"]


def _greatest(features: Features, *, twice: bool) -> torch.Tensor:
    """Return ``log1p(relu(max over tokens))``, in float32.

    Args:
        features: ``token_embeddings``, the scores, of shape (texts, tokens, vocabulary), and ``attention_mask``, of
            shape (texts, tokens).
        twice: Take the logarithm again ("log1p_relu").
    """
    scores: torch.Tensor = features["token_embeddings"]
    mask: torch.Tensor = features["attention_mask"]
    if "cu_seq_lens_q" in features:
        raise ValueError("flattened batches have no mask: load the model with attention that pads")
    # In place: the scores are the largest tensor by far, and nobody else sees them. Padding must not count: its
    # scores depend on the batch's other texts.
    scores.masked_fill_(mask.unsqueeze(-1) == 0, -torch.inf)
    weights = scores.amax(dim=1).float().relu_().log1p_()
    return weights.log1p_() if twice else weights
