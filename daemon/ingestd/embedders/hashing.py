"""Vectors made by hashing words: free, deterministic, without a model. For tests, benchmarks and first steps.

Owns an embedder with no worker and no weights: it runs in the daemon's process and is the pattern for embedders
without a device. Dense vectors hash each word to a place and a sign (Weinberger et al., 2009, "Feature Hashing for
Large Scale Multitask Learning", https://arxiv.org/abs/0902.2206), sparse ones to a place alone, so texts that share
words are near each other. It finds words, never meanings.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ingestd.embedders._sparse import mark_empty
from ingestd.embedders._tokenizer import WhitespaceTokenizer
from ingestd.errors import Stopped
from ingestd.model import ModelInfo, Role, SparseVector, SparseVectors, VectorKind, canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.model import DenseVector, DenseVectors, Vectors
    from ingestd.ports import DevicePool, Tokenizer

SPARSE_PLACES = 2**20
"""Places for words in a sparse vector: two of 10,000 words share one in a hundred."""
SCHEME = 1
"""Part of the space: raise it when the same text gets other vectors."""

_WORD = re.compile(r"\w+")
_OWN = 1e-3
"""Weight of the text as a whole: two words that cancel out, or no word at all, leave no zero vector."""


class Config(BaseModel):
    """Hashed words in place of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: ClassVar[tuple[str, ...]] = ("dense", "sparse")
    dimensions: ClassVar[str] = "2 to 32,768, 64 by default"

    dimension: int = Field(default=64, ge=2, le=32_768, description="Of the dense vectors.")
    kinds: frozenset[VectorKind] = Field(
        default=frozenset(VectorKind), min_length=1, description="The kinds of vectors to offer."
    )
    delay_seconds_per_text: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="How long a text takes, as if a model were at work."
    )
    max_tokens: int = Field(default=512, ge=1, description="The most words of a chunk.")

    def tokenizer(self) -> Tokenizer:
        """Return a tokenizer that cuts at white space."""
        return WhitespaceTokenizer(limit=self.max_tokens)

    def build(self, name: str, devices: DevicePool) -> Hashing:  # noqa: ARG002 - the port's signature; it needs none
        """Return the embedder."""
        return Hashing(name, self)


class Hashing:
    """Implements ``ports.Embedder``. Safe to call from several threads.

    Args:
        name: The embedder's.
        config: Its options.
    """

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self._config = config
        self._closed = threading.Event()
        dense = VectorKind.DENSE in config.kinds
        said = ["hashing", SCHEME, config.dimension if dense else None, sorted(config.kinds)]
        self._info = ModelInfo(
            kinds=config.kinds,
            dimension=config.dimension if dense else None,
            space=hashlib.sha256(canonical_json(said)).hexdigest(),
            dtype="float32",
            device="none",
        )

    def info(self) -> ModelInfo:
        """Return what it is."""
        return self._info

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind.

        Raises:
            Stopped: It was closed, before or meanwhile.
        """
        if self._closed.wait(self._config.delay_seconds_per_text * len(texts)):
            raise Stopped
        words = [Counter(_WORD.findall(text.casefold())) for text in texts]
        vectors: dict[VectorKind, Vectors] = {}
        if VectorKind.DENSE in kinds & self._config.kinds:
            vectors[VectorKind.DENSE] = self._dense(texts, words)
        if VectorKind.SPARSE in kinds & self._config.kinds:
            block = SparseVectors.of([_sparse(counts) for counts in words])
            vectors[VectorKind.SPARSE] = block if role is Role.QUERY else mark_empty(block, SPARSE_PLACES)
        return vectors

    def close(self) -> None:
        """End the delays: calls that are in flight raise Stopped."""
        self._closed.set()

    def _dense(self, texts: Sequence[str], words: Sequence[Counter[str]]) -> DenseVectors:
        vectors = np.zeros((len(texts), self._config.dimension), dtype=np.float32)
        for row, text, counts in zip(vectors, texts, words, strict=True):
            for word, times in counts.items():
                _add(row, _hash(word), 1.0 + np.log(times))
            _add(row, _hash.__wrapped__(f"\0{text}"), _OWN)  # past the cache: texts do not come again, words do
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


@lru_cache(maxsize=2**16)
def _hash(word: str) -> int:
    """Return 64 bits that are the same in every process: Python's own hash is not."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _add(row: DenseVector, hashed: int, weight: float) -> None:
    sign = 1.0 if hashed & 1 else -1.0
    row[(hashed >> 1) % len(row)] += sign * weight


def _sparse(counts: Counter[str]) -> SparseVector:
    weights: dict[int, float] = {}
    for word, times in counts.items():
        place = _hash(word) % SPARSE_PLACES
        weights[place] = weights.get(place, 0.0) + 1.0 + float(np.log(times))
    places = sorted(weights)
    return SparseVector(np.array(places, np.uint32), np.array([weights[place] for place in places], np.float32))
