"""The worker's side of a model that makes a dense and a sparse vector of a text in one pass.

Owns the model as ``devices`` sees it: both kinds of vectors come out of the same batches, so a collection that wants
both pays for one pass. Two plug-ins, one a kind, on the same weights were turned down: they load and run the
transformer twice. Does not import torch by itself: its embedder brings what does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from ingestd.devices.check import check
from ingestd.embedders._sparse import greatest, mark_empty
from ingestd.model import ModelInfo, Role, SparseVector, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from ingestd.embedders._passes import Features, Passes
    from ingestd.model import DenseVectors, Vectors

CPU_TOKENS = 4_096
"""Padded tokens a batch on a CPU: beyond it, a batch outgrows the caches and gets slower."""
KINDS = frozenset(VectorKind)
WARM_UP = "A text to see that the model works."


class Compute(Protocol):
    """One pass of the model over the features of a batch."""

    def __call__(
        self, features: Features, kinds: AbstractSet[VectorKind]
    ) -> tuple[DenseVectors | None, NDArray[np.float32] | None]:
        """Return vectors, shape (texts, dimension), and weights, shape (texts, tokens); None for a kind not asked."""
        ...


class HybridModel:
    """The model in the worker: implements ``devices.Model``.

    Args:
        passes: The way through the model.
        info: What it is.
        compute: One pass.
        unused: Ids of tokens that have no weight.
        behind: The first index that no token has.
    """

    def __init__(
        self, passes: Passes, info: ModelInfo, compute: Compute, *, unused: Collection[int], behind: int
    ) -> None:
        self._passes = passes
        self._info = info
        self._compute = compute
        self._unused = unused
        self._behind = behind

    def info(self) -> ModelInfo:
        """Return what the model is."""
        return self._info

    def cuts(self) -> int:
        """Return how many texts were longer than the model sees."""
        return self._passes.cuts

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind. A document's sparse one is never empty; see ``_sparse``."""
        if not kinds:
            return {}
        dense = np.empty((len(texts), self._info.dimension or 0), dtype=np.float32)
        rows: dict[int, SparseVector] = {}
        for places, (pooled, sparse) in self._passes.run(texts, role, lambda features: self._pass(features, kinds)):
            if pooled is not None:
                dense[list(places)] = pooled
            if sparse is not None:
                rows.update(zip(places, sparse, strict=True))
        vectors: dict[VectorKind, Vectors] = {}
        if VectorKind.DENSE in kinds:
            vectors[VectorKind.DENSE] = dense
        if VectorKind.SPARSE in kinds:
            block = SparseVectors.of([rows[place] for place in range(len(texts))])
            vectors[VectorKind.SPARSE] = block if role is Role.QUERY else mark_empty(block, self._behind)
        return vectors

    def warm_up(self) -> None:
        """Run a text through the model in each role.

        Raises:
            BadVectorsError: It gives no usable vectors.
        """
        for role in Role:
            for kind, block in self.embed([WARM_UP], role, KINDS).items():
                check(block, kind, 1, self._info.dimension, role=role)

    def _pass(
        self, features: Features, kinds: AbstractSet[VectorKind]
    ) -> tuple[DenseVectors | None, SparseVectors | None]:
        pooled, weights = self._compute(features, kinds)
        return pooled, None if weights is None else greatest(weights, features["input_ids"].cpu().numpy(), self._unused)
