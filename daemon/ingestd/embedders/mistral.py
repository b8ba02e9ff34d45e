"""Dense vectors by Mistral AI's API. Its models know no difference between documents and queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ingestd.embedders._exchange import listed
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.model import Role
    from ingestd.ports import DevicePool


class Config(RemoteConfig):
    """A model of Mistral AI."""

    inputs: ClassVar[int] = 256
    tokens: ClassVar[int] = 16_000
    length: ClassVar[int] = 8192

    base_url: str = Field(default="https://api.mistral.ai/v1", description="Where the API is.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        return self.on(name, listed("/embeddings", self._payload))

    def _payload(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        del role, cut
        chosen = {} if self.dimension is None else {"output_dimension": self.dimension}
        return {"input": list(texts), "model": self.model} | chosen
