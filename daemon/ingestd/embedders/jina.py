"""Dense vectors by Jina AI's API. Documents and queries are different tasks.

Late chunking is not offered: a chunk's vector would depend on its neighbours, and every edit would embed all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ingestd.embedders._exchange import listed
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.ports import DevicePool


class Config(RemoteConfig):
    """A model of Jina AI."""

    inputs: ClassVar[int] = 512
    tokens: ClassVar[int] = 100_000
    length: ClassVar[int] = 8192
    cutting: ClassVar[Literal["asked", "refused", "silent"]] = "asked"

    base_url: str = Field(default="https://api.jina.ai/v1", description="Where the API is.")
    document_task: str | None = Field(
        default="retrieval.passage", description="The task for chunks; empty for models that have no tasks."
    )
    query_task: str | None = Field(default="retrieval.query", description="The task for queries.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        return self.on(name, listed("/embeddings", self._payload, {"tasks": [self.document_task, self.query_task]}))

    def _payload(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        task = self.query_task if role is Role.QUERY else self.document_task
        asked: dict[str, Any] = {"input": list(texts), "model": self.model, "embedding_type": "base64"}
        if task:
            asked["task"] = task
        if self.dimension is not None:
            asked["dimensions"] = self.dimension
        return asked | {"truncate": cut}
