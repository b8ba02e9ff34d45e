"""Dense vectors by Nomic's API. Documents and queries are different tasks (``task_type``).

The same models run here, with ``sentence_transformers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ingestd.embedders._exchange import Exchange
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.ports import DevicePool

_TASKS = {Role.DOCUMENT: "search_document", Role.QUERY: "search_query"}


class Config(RemoteConfig):
    """A model of Nomic, at its API."""

    inputs: ClassVar[int] = 10  # as many as Nomic's own client sends; the API states no limit on inputs
    tokens: ClassVar[int] = 100_000
    length: ClassVar[int] = 8192
    cutting: ClassVar[Literal["asked", "refused", "silent"]] = "silent"

    base_url: str = Field(default="https://api-atlas.nomic.ai/v1", description="Where the API is.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        # Vectors come in the order of the texts.
        return self.on(
            name,
            Exchange(
                "/embedding/text",
                self._payload,
                lambda answer, _count: answer["embeddings"],
                ("usage", "total_tokens"),
                {"task_type": "search_document, search_query"},
            ),
        )

    def _payload(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        del cut  # whatever it is told
        asked: dict[str, Any] = {
            "texts": list(texts),
            "model": self.model,
            "task_type": _TASKS[role],
            # ``mean`` of a long text's parts, the API's other way, is a vector that the model itself never gives.
            "long_text_mode": "truncate",
        }
        return asked if self.dimension is None else asked | {"dimensionality": self.dimension}
