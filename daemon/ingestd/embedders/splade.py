"""Sparse vectors by a SPLADE model, in a device worker.

Owns what a sparse model's vectors are: for each token id of the vocabulary the greatest of ``log(1 + relu(score))``
over the text's tokens (Formal et al., 2021, "SPLADE v2", https://arxiv.org/abs/2109.10086). Both functions rise
with the score, so the maximum is taken first, over the scores of real tokens, and they see one row a text: the same
vectors as the library's in a third of the time. Models that run for documents alone and look the weights of a
query's tokens up (by a router of sentence-transformers) are of this kind too. ``load`` runs in the worker; nothing
else here may touch torch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ingestd.devices.check import check
from ingestd.embedders import _folder, _space
from ingestd.embedders._closeness import least_cosine
from ingestd.embedders._local import LocalConfig, LocalEmbedder
from ingestd.embedders._sparse import mark_empty
from ingestd.model import ModelInfo, Role, SparseVector, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from sentence_transformers import SparseEncoder

    from ingestd.embedders._forward import Forward
    from ingestd.embedders._passes import Features
    from ingestd.model import Vectors
    from ingestd.ports import DevicePool

CPU_TOKENS = 2_048
"""Padded tokens a batch on a CPU: each has a score for every word of the vocabulary, 250 MB in all."""
WARM_UP = "A text to see that the model works."


class Config(LocalConfig):
    """A sparse model of sentence-transformers (SparseEncoder), or a plain SPLADE of transformers."""

    outputs: ClassVar[tuple[str, ...]] = ("sparse",)

    def build(self, name: str, devices: DevicePool) -> LocalEmbedder:
        """Return the embedder; its model is loaded when it is first asked for."""
        return self.on(devices, name, __name__)


class SparseModel:
    """The model in the worker: implements ``devices.Model``.

    Args:
        forward: The model.
        info: What it is.
        weigh: Turns a batch's features into weights, a tensor of shape (texts, vocabulary).
        keep: The most weights of a vector; None keeps all.
    """

    def __init__(
        self, forward: Forward[SparseEncoder], info: ModelInfo, weigh: Callable[[Features, Role], Any], keep: int | None
    ) -> None:
        self._forward = forward
        self._info = info
        self._weigh = weigh
        self._keep = keep

    def info(self) -> ModelInfo:
        """Return what the model is."""
        return self._info

    def cuts(self) -> int:
        """Return how many texts were longer than the model sees."""
        return self._forward.cuts

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one sparse vector a text. A document's is never empty; see ``_sparse``."""
        return {VectorKind.SPARSE: self._vectors(texts, role)} if VectorKind.SPARSE in kinds else {}

    def _vectors(self, texts: Sequence[str], role: Role) -> SparseVectors:
        rows: dict[int, SparseVector] = {}
        behind = 0
        for places, (vocabulary, batch) in self._forward.run(texts, role, lambda features: self._rows(features, role)):
            rows.update(zip(places, batch, strict=True))
            behind = vocabulary
        vectors = SparseVectors.of([rows[place] for place in range(len(texts))])
        return vectors if role is Role.QUERY else mark_empty(vectors, behind)

    def _rows(self, features: Features, role: Role) -> tuple[int, SparseVectors]:
        """Return the size of the vocabulary, and the positive weights."""
        weights = self._weigh(features, role)
        if self._keep is not None and self._keep < weights.shape[1]:
            least = weights.topk(self._keep, dim=1).values[:, -1:]
            weights = weights * (weights >= least)
        places, words = weights.gt(0).nonzero(as_tuple=True)
        lengths = np.bincount(places.cpu().numpy(), minlength=weights.shape[0])
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        values = weights[places, words].float().cpu().numpy()
        return weights.shape[1], SparseVectors(indptr, words.cpu().numpy().astype(np.uint32), values)


def load(options: Mapping[str, object], device: str) -> SparseModel:
    """Load the model in the worker, and run a text through it in each role.

    Raises:
        ConfigError: There is no such model, or it gives no usable vectors.
    """
    from sentence_transformers import SparseEncoder  # noqa: PLC0415 - loads torch: for the worker only

    from ingestd.embedders import _forward, _passes, _splade_pooling  # noqa: PLC0415 - the same

    config = Config.model_validate(options)
    folder = config.folder(weights=True)
    forward, dtype = _forward.load(SparseEncoder, config, folder, device, CPU_TOKENS)
    info = ModelInfo(
        kinds=frozenset({VectorKind.SPARSE}),
        dimension=None,
        space=_space.fingerprint(
            "sparse",
            folder,
            config.prompts(folder),
            {"modules": _folder.modules(folder), "keep": forward.encoder.max_active_dims},
        ),
        dtype=_passes.name(dtype),
        device=str(forward.device),
    )
    weigh = _splade_pooling.of(forward.encoder)
    model = SparseModel(forward, info, weigh, forward.encoder.max_active_dims)
    if info.dtype != "float32":
        cosine = least_cosine(model, info.kinds, partial(forward.cast, dtype))
        model = SparseModel(forward, replace(info, cosine=cosine), weigh, forward.encoder.max_active_dims)
    for role in Role:
        check(model.embed([WARM_UP], role, info.kinds)[VectorKind.SPARSE], VectorKind.SPARSE, 1, None, role=role)
    return model
