"""Dense vectors by a static model of model2vec: the mean of the tokens' vectors, looked up in a table.

Owns what a static model's vectors are, those of ``StaticModel.encode``: the library loads and tokenises, and the mean
is taken here over the batches that all local models have. Its ``encode`` was turned down: it cuts batches by a number
of texts, hands a text without a known token a vector of zeros, which no metric takes, and leaves float16 models in
float16. There is no transformer, so no torch, no GPU and no prompt; it runs in the worker for the CPU all the same,
where it takes no time from the daemon's threads. ``load`` runs there; the daemon never imports the library.

Texts are cut as the library does it: at ``max_tokens`` times the vocabulary's median token in characters, then at
``max_tokens``. The first is meant to save work on long texts; a text of unusually long tokens loses its end to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from ingestd.devices.check import check
from ingestd.embedders import _folder, _space
from ingestd.embedders._batches import plan
from ingestd.embedders._local import FolderConfig, LocalEmbedder
from ingestd.embedders._tokenizer import FileTokenizer
from ingestd.errors import ConfigError, DocumentError
from ingestd.model import ModelInfo, Role, VectorKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ingestd.model import DenseVector, DenseVectors, Vectors
    from ingestd.ports import DevicePool, Tokenizer

DEVICE = "cpu"
BATCH_TOKENS = 16_384
"""Tokens whose vectors are in memory at once: 17 MB for a model of 256 dimensions."""
DEFAULT_LENGTH = 512
"""The library's, for a model that does not say."""
WARM_UP = "A text to see that the model works."


class Config(FolderConfig):
    """A static model of model2vec."""

    requires: ClassVar[tuple[str, ...]] = ("model2vec",)

    normalize: bool = Field(
        default=False,
        description="Bring vectors to length 1 also where the model does not; no matter for the metric COSINE.",
    )

    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer. Static models add no special tokens.

        Raises:
            ConfigError: There is no such model.
        """
        folder = self.folder(weights=False)
        return FileTokenizer(_folder.tokenizer_file(folder), limit=self.length(folder))

    def length(self, folder: Path) -> int | None:
        """Return at how many tokens a text is cut; None: never."""
        said = _folder.read(folder / "config.json").get("max_length", DEFAULT_LENGTH)
        known = [length for length in (said, self.max_tokens) if isinstance(length, int)]
        return min(known, default=None)

    def build(self, name: str, devices: DevicePool) -> LocalEmbedder:
        """Return the embedder; its model is loaded when it is first asked for."""
        return LocalEmbedder(name, devices.load(name, __name__, self.model_dump(), DEVICE))


class StaticModel:
    """The model in the worker: implements ``devices.Model``.

    Args:
        static: The library's model.
        length: At how many tokens a text is cut; None: never.
        budget: The most tokens of a batch.
        space: The fingerprint of the vector space.
        normalize: Bring vectors to length 1.
        too_long: ``fail``: a chunk that is longer is refused.
    """

    def __init__(
        self,
        static: Any,  # noqa: ANN401 - the library's class is not to be imported here
        length: int | None,
        budget: int,
        space: str,
        *,
        normalize: bool,
        too_long: str = "truncate",
    ) -> None:
        self._static = static
        self._length = length
        self._too_long = too_long
        self._cuts = 0
        self._characters = None if length is None else length * static.median_token_length
        self._budget = budget
        self._normalize = normalize
        self._unknown = _unlike_all(static.embedding)
        self._info = ModelInfo(
            kinds=frozenset({VectorKind.DENSE}), dimension=static.dim, space=space, dtype="float32", device=DEVICE
        )

    def info(self) -> ModelInfo:
        """Return what the model is."""
        return self._info

    def cuts(self) -> int:
        """Return how many texts were longer than the model sees."""
        return self._cuts

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one dense vector a text. A static model embeds a query as it does a document."""
        return {VectorKind.DENSE: self._vectors(texts, role)} if VectorKind.DENSE in kinds else {}

    def _vectors(self, texts: Sequence[str], role: Role) -> DenseVectors:
        tokens: list[list[int]] = self._static.tokenize([text[: self._characters] for text in texts])
        self._look(texts, tokens, role)
        lengths = [len(ids) for ids in tokens]
        vectors = np.empty((len(texts), self._static.dim), dtype=np.float32)
        for batch in plan(lengths, self._budget):
            known = [place for place in batch if tokens[place]]
            if known:
                vectors[known] = self._means([tokens[place] for place in known])
        if self._normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            np.divide(vectors, norms, out=vectors, where=norms > 0)
        vectors[[place for place, length in enumerate(lengths) if not length]] = self._unknown
        return vectors

    def _look(self, texts: Sequence[str], tokens: Sequence[Sequence[int]], role: Role) -> None:
        """Take note of texts that were cut, or refuse them: one that fills the length to the last token counts too.

        Raises:
            DocumentError: One is longer than the model sees.
        """
        most = self._characters
        over = [
            place
            for place, text in enumerate(texts)
            if (most is not None and len(text) > most) or len(tokens[place]) == self._length
        ]
        if over and self._too_long == "fail" and role is Role.DOCUMENT:
            raise DocumentError(
                f"text {over[0]} of {len(texts)} has more tokens than the {self._length} that the model sees: "
                "cut smaller chunks (the chunker's max_tokens)"
            )
        self._cuts += len(over)

    def _means(self, tokens: Sequence[Sequence[int]]) -> DenseVectors:
        """Return the mean of each text's rows of the table. No text is empty."""
        lengths = np.array([len(ids) for ids in tokens])
        ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in tokens])
        mapping = self._static.token_mapping
        rows = self._static.embedding[ids if mapping is None else mapping[ids]].astype(np.float32)
        if self._static.weights is not None:
            rows *= self._static.weights[ids, np.newaxis].astype(np.float32)
        starts = np.cumsum(lengths) - lengths
        sums: DenseVectors = np.add.reduceat(rows, starts, axis=0)
        sums /= lengths[:, np.newaxis]
        return sums


def _unlike_all(embedding: DenseVectors) -> DenseVector:
    """Return the vector of a text without a known token: of length 1, away from all that have one.

    It is the opposite of the mean of all tokens. With a real model its cosine to a text is -0.2 on average, so such
    texts come last in a search, but are kept; the library's zeros would be refused, and the document with them.
    """
    mean: DenseVector = embedding.mean(axis=0, dtype=np.float32)
    if not mean.any():
        mean = np.ones_like(mean)
    unlike: DenseVector = -mean / np.linalg.norm(mean)
    return unlike


def load(options: Mapping[str, object], device: str) -> StaticModel:  # noqa: ARG001 - there is one device for it
    """Load the model in the worker, and run a text through it.

    Raises:
        ConfigError: There is no such model, or it gives no usable vectors.
    """
    import model2vec  # noqa: PLC0415 - an extra: for the worker only

    config = Config.model_validate(options)
    folder = config.folder(weights=True)
    length = config.length(folder)
    try:
        # A folder that is there: the library asks no hub.
        static = model2vec.StaticModel.from_pretrained(folder, max_length=length, force_download=False)
    except ValueError as error:
        raise ConfigError(f"model: {folder} is no model of model2vec: {error}") from error
    normalize = config.normalize or static.normalize
    space = _space.fingerprint(
        "dense",
        folder,
        dict.fromkeys(Role, ""),
        {"static": True, "normalize": normalize, "dimension": static.dim},
        told={"normalize"},
    )
    model = StaticModel(
        static, length, config.batch_tokens or BATCH_TOKENS, space, normalize=normalize, too_long=config.too_long
    )
    check(model.embed([WARM_UP], Role.DOCUMENT, {VectorKind.DENSE})[VectorKind.DENSE], VectorKind.DENSE, 1, static.dim)
    return model
