"""Both sides of a dense model of sentence-transformers, for the plug-ins that differ in what goes before the texts.

Owns what a dense model's vectors are: pooled, projected and normalised by the model's own modules. ``load`` runs in
the worker; nothing else here is allowed to touch torch. ``pymilvus.model`` was not wrapped: it takes one batch at a
time, has no prompts for roles, and costs seconds and hundreds of megabytes to import.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ingestd.devices.check import check
from ingestd.embedders import _folder, _space
from ingestd.embedders._closeness import least_cosine
from ingestd.embedders._local import LocalConfig
from ingestd.model import ModelInfo, Role, VectorKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from ingestd.embedders._forward import Forward
    from ingestd.embedders._passes import Features
    from ingestd.model import DenseVectors, Json, Vectors

CPU_TOKENS = 4_096
"""Padded tokens a batch on a CPU: beyond it, a batch outgrows the caches and gets slower."""

WARM_UP = "A text to see that the model works."


class DenseConfig(LocalConfig):
    """The options of a dense model."""

    normalize: bool = Field(
        default=False,
        description="Bring vectors to length 1 also where the model does not; no matter for the metric COSINE.",
    )


class DenseModel:
    """The model in the worker: implements ``devices.Model``."""

    def __init__(self, forward: Forward[SentenceTransformer], info: ModelInfo, *, normalize: bool) -> None:
        self._forward = forward
        self._info = info
        self._normalize = normalize

    def info(self) -> ModelInfo:
        """Return what the model is."""
        return self._info

    def cuts(self) -> int:
        """Return how many texts were longer than the model sees."""
        return self._forward.cuts

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one dense vector a text."""
        return {VectorKind.DENSE: self._vectors(texts, role)} if VectorKind.DENSE in kinds else {}

    def _vectors(self, texts: Sequence[str], role: Role) -> DenseVectors:
        vectors = np.empty((len(texts), self._info.dimension or 0), dtype=np.float32)
        for places, rows in self._forward.run(texts, role, lambda features: self._pooled(features, role)):
            vectors[list(places)] = rows
        if self._normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            np.divide(vectors, norms, out=vectors, where=norms > 0)
        return vectors

    def _pooled(self, features: Features, role: Role) -> DenseVectors:
        pooled: Any = self._forward.encoder(features, task=role.value)["sentence_embedding"]
        vectors: DenseVectors = pooled.float().cpu().numpy()
        return vectors


def load(config: DenseConfig, device: str, *, pool_prompt: bool = True) -> DenseModel:
    """Load the model in the worker, and run a text through it in each role.

    Args:
        config: The options.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        pool_prompt: Leave it to the model whether the prompt's tokens count in pooling; False: they do not.

    Raises:
        ConfigError: There is no such model, or it gives no usable vectors.
    """
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - loads torch: for the worker only

    from ingestd.embedders import _forward, _passes  # noqa: PLC0415 - the same

    folder = config.folder(weights=True)
    forward, dtype = _forward.load(SentenceTransformer, config, folder, device, CPU_TOKENS)
    if not pool_prompt:
        forward.encoder.set_pooling_include_prompt(include_prompt=False)
    dimension = forward.encoder.get_embedding_dimension()
    info = ModelInfo(
        kinds=frozenset({VectorKind.DENSE}),
        dimension=dimension,
        space=_fingerprint(config, folder, dimension, pool_prompt=pool_prompt),
        dtype=_passes.name(dtype),
        device=str(forward.device),
    )
    model = DenseModel(forward, info, normalize=config.normalize)
    if info.dtype != "float32":
        cosine = least_cosine(model, info.kinds, partial(forward.cast, dtype))
        model = DenseModel(forward, replace(info, cosine=cosine), normalize=config.normalize)
    for role in Role:
        check(model.embed([WARM_UP], role, info.kinds)[VectorKind.DENSE], VectorKind.DENSE, 1, info.dimension)
    return model


def _fingerprint(config: DenseConfig, folder: Path, dimension: int | None, *, pool_prompt: bool) -> str:
    """Return the fingerprint of the vector space.

    The length at which texts are cut is no part of it: chunks are cut to fit, so it changes no chunk's vector.
    """
    modules: list[Json] = []
    normalized = False
    for module in _folder.modules(folder):
        said = dict(module) if isinstance(module, dict) else {}
        normalized = normalized or said.get("module") == "Normalize"
        if said.get("module") == "Pooling" and not pool_prompt:
            said["include_prompt"] = False
        modules.append(said)
    return _space.fingerprint(
        "dense",
        folder,
        config.prompts(folder),
        {"modules": modules, "normalize": config.normalize and not normalized, "dimension": dimension},
    )
