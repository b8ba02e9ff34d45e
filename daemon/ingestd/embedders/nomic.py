"""Dense vectors by Nomic's API. Documents and queries are different tasks (``task_type``).

The same models run here, with ``sentence_transformers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ingestd.embedders._listed import stacked
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder, Request
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.embedders._client import Client
    from ingestd.model import DenseVectors
    from ingestd.ports import DevicePool

_TASKS = {Role.DOCUMENT: "search_document", Role.QUERY: "search_query"}


class Config(RemoteConfig):
    """A model of Nomic, at its API."""

    inputs: ClassVar[int] = 10  # as many as Nomic's own client sends; the API states no limit on inputs
    tokens: ClassVar[int] = 100_000
    length: ClassVar[int] = 8192

    base_url: str = Field(default="https://api-atlas.nomic.ai/v1", description="Where the API is.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        return self.on(name, EmbedText(self))


class EmbedText:
    """Speaks with ``/embedding/text`` (``_remote.Wire``)."""

    kind = VectorKind.DENSE
    known = True

    def __init__(self, config: Config) -> None:
        self._config = config

    def request(self, texts: Sequence[str], role: Role) -> Request:
        """Return the request for the vectors of texts."""
        config = self._config
        asked: dict[str, Any] = {
            "texts": list(texts),
            "model": config.model,
            "task_type": _TASKS[role],
            # ``mean`` of a long text's parts, the API's other way, is a vector that the model itself never gives.
            "long_text_mode": "truncate",
        }
        if config.dimension is not None:
            asked["dimensionality"] = config.dimension
        return Request("/embedding/text", asked)

    def vectors(self, answer: Any, count: int) -> DenseVectors:  # noqa: ANN401 - JSON
        """Return an answer's vectors: they come in the order of the texts."""
        del count
        return stacked(answer["embeddings"])

    def tokens(self, answer: Any) -> int | None:  # noqa: ANN401 - JSON
        """Return how many tokens the provider counted."""
        used = (answer.get("usage") or {}).get("total_tokens")
        return used if isinstance(used, int) else None

    def space(self, client: Client | None) -> dict[str, Any]:
        """Return what the vectors depend on beside model, dimension and prompts."""
        del client
        return {"task_type": "search_document, search_query"}
