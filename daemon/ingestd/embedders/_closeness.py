"""How far a model's vectors are from those in float32 when it computes in half the bits: measured, and not promised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from ingestd.model import Role, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from ingestd.model import Vectors

SAMPLES = (
    "Milvus",
    "A file is read when its size and time have stood still for two seconds.",
    "The rescan is the truth and the file watcher a hint: a watcher alone loses files when many come at once. " * 4,
    "Die Straße ist naß, und 東京 liegt nicht an der Elbe; 3.14159 ist nicht 22/7.",
)
"""Short and long, and in several languages: rounding shows more in some texts than in others."""


class _Model(Protocol):
    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """See ``devices.Model``."""
        ...


def least_cosine(model: _Model, kinds: AbstractSet[VectorKind], cast: Callable[[], None]) -> float:
    """Cast a model, and return the least cosine between the vectors that a sample text has before and after.

    Args:
        model: Computes in float32.
        kinds: Of its vectors.
        cast: Makes it compute in the dtype that it is to have.
    """
    exact = model.embed(SAMPLES, Role.DOCUMENT, kinds)
    cast()
    rounded = model.embed(SAMPLES, Role.DOCUMENT, kinds)
    return min(
        _cosine(left, right)
        for kind in kinds
        for left, right in zip(_rows(exact[kind]), _rows(rounded[kind]), strict=True)
    )


def _rows(vectors: Vectors) -> list[dict[int, float]] | NDArray[np.float32]:
    if not isinstance(vectors, SparseVectors):
        return vectors
    return [
        dict(zip(vectors[at].indices.tolist(), vectors[at].values.tolist(), strict=True)) for at in range(len(SAMPLES))
    ]


def _cosine(left: dict[int, float] | NDArray[np.float32], right: dict[int, float] | NDArray[np.float32]) -> float:
    if isinstance(left, dict) and isinstance(right, dict):
        places = sorted(left.keys() | right.keys())
        left = np.array([left.get(place, 0.0) for place in places])
        right = np.array([right.get(place, 0.0) for place in places])
    one, other = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
