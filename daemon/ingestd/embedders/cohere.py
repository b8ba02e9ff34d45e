"""Dense vectors by Cohere's API, version 2. Documents and queries are different inputs (``input_type``)."""

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

_INPUTS = {Role.DOCUMENT: "search_document", Role.QUERY: "search_query"}


class Config(RemoteConfig):
    """A model of Cohere."""

    inputs: ClassVar[int] = 96
    tokens: ClassVar[int] = 128_000
    length: ClassVar[int] = 128_000

    base_url: str = Field(default="https://api.cohere.com", description="Where the API is.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        return self.on(name, Embed(self))


class Embed:
    """Speaks with ``/v2/embed`` (``_remote.Wire``)."""

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
            "input_type": _INPUTS[role],
            "embedding_types": ["float"],
            "truncate": "END" if config.too_long == "truncate" else "NONE",
        }
        if config.dimension is not None:
            asked["output_dimension"] = config.dimension
        return Request("/v2/embed", asked)

    def vectors(self, answer: Any, count: int) -> DenseVectors:  # noqa: ANN401 - JSON
        """Return an answer's vectors: they come in the order of the texts."""
        del count
        return stacked(answer["embeddings"]["float"])

    def tokens(self, answer: Any) -> int | None:  # noqa: ANN401 - JSON
        """Return how many tokens are billed."""
        billed = (answer.get("meta") or {}).get("billed_units") or {}
        used = billed.get("input_tokens")
        return int(used) if isinstance(used, int | float) else None

    def space(self, client: Client | None) -> dict[str, Any]:
        """Return what the vectors depend on beside model, dimension and prompts."""
        del client
        return {"input_type": "search_document, search_query"}
