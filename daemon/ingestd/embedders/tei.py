"""Dense or sparse vectors by a server of Hugging Face's Text Embeddings Inference.

The server says itself which model it runs, down to the revision, and how many texts it takes at a time: both are asked
for when the daemon starts, so a server that was given another model is found out before anything is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import structlog
from pydantic import Field

from ingestd.embedders._exchange import stacked
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder, Request
from ingestd.errors import ConfigError
from ingestd.model import Role, SparseVector, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.embedders._client import Client
    from ingestd.model import Vectors
    from ingestd.ports import DevicePool

log = structlog.get_logger(__name__)


class Config(RemoteConfig):
    """A server of Text Embeddings Inference."""

    outputs: ClassVar[tuple[str, ...]] = ("dense", "sparse")
    inputs: ClassVar[int] = 32
    tokens: ClassVar[int] = 16_384
    length: ClassVar[int] = 512
    cutting: ClassVar[Literal["asked", "refused", "silent"]] = "asked"

    model: str = Field(
        default="", description="The model that the server has to run, as its /info names it; not set: any."
    )
    base_url: str = Field(description="Where the server is, such as http://localhost:8080.")
    kind: VectorKind = Field(
        default=VectorKind.DENSE, description="sparse for a server that runs a SPLADE model (--pooling splade)."
    )
    batch_texts: int | None = Field(
        default=None,
        ge=1,
        description="The most texts of a request; not set: the server's own --max-client-batch-size.",
    )

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the server is first asked when its model is."""
        return self.on(name, Tei(self), needs_key=False)


class Tei:
    """Speaks with ``/embed`` or ``/embed_sparse`` (``_remote.Wire``)."""

    known = False

    def __init__(self, config: Config) -> None:
        self._config = config
        self.kind = config.kind
        self.inputs: int | None = None

    def request(self, texts: Sequence[str], role: Role, *, cut: bool) -> Request:
        """Return the request for the vectors of texts."""
        del role
        asked = {"inputs": list(texts), "truncate": cut}
        if self.kind is VectorKind.SPARSE:
            return Request("/embed_sparse", asked)
        if self._config.dimension is not None:
            asked["dimensions"] = self._config.dimension
        return Request("/embed", asked | {"normalize": True})

    def vectors(self, answer: Any, count: int) -> Vectors:  # noqa: ANN401 - JSON
        """Return an answer's vectors: they come in the order of the texts."""
        del count
        if self.kind is VectorKind.DENSE:
            return stacked(answer)
        return SparseVectors.of([_sparse(row) for row in answer])

    def tokens(self, answer: Any) -> int | None:  # noqa: ANN401 - JSON
        """Return None: the server does not say."""
        del answer
        return None

    def space(self, client: Client | None) -> dict[str, Any]:
        """Return which model the server runs, by its own word.

        Raises:
            ConfigError: It is another one than was configured, or the server is none of this kind.
            UnavailableError: It does not answer.
        """
        said = client.get("/info") if client is not None else {}
        if not isinstance(said, dict):
            raise ConfigError(f"base_url: {self._config.base_url}/info tells nothing about a model: is it TEI?")
        most = said.get("max_client_batch_size")
        self.inputs = most if isinstance(most, int) and most > 0 else None
        if said.get("model_sha") is None and client is not None:
            log.warning(
                "the server does not say which revision of its model it runs: another one is not found out",
                server=self._config.base_url,
                model=said.get("model_id"),
            )
        found = {key: said.get(key) for key in ("model_id", "model_sha")} | {"type": said.get("model_type")}
        if self._config.model and found["model_id"] != self._config.model:
            raise ConfigError(f"model: the server at {self._config.base_url} runs {found['model_id']!r}")
        return found


def _sparse(row: Any) -> SparseVector:  # noqa: ANN401 - JSON
    weights = sorted((int(entry["index"]), float(entry["value"])) for entry in row)
    kept = [(index, value) for index, value in weights if value != 0]
    return SparseVector(
        np.array([index for index, _ in kept], np.uint32), np.array([value for _, value in kept], np.float32)
    )
