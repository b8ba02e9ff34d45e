"""Dense vectors by OpenAI's API, and by servers that speak it: vLLM, Ollama, LM Studio, llama.cpp, Azure's v1 endpoint.

Vectors are asked for in base64, as OpenAI's own client does: a third of the bytes, to the last bit. A server that does
not know that form sends numbers, and they are read too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ingestd.embedders._exchange import listed
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.model import Role
    from ingestd.ports import DevicePool

OFFICIAL = "https://api.openai.com/v1"


class Config(RemoteConfig):
    """A model behind OpenAI's API, or behind another that speaks it (``base_url``)."""

    inputs: ClassVar[int] = 2048
    tokens: ClassVar[int] = 300_000
    length: ClassVar[int] = 8191

    base_url: str = Field(default=OFFICIAL, description="Another server's: such as http://localhost:8000/v1 for vLLM.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key for OpenAI itself.
        """
        return self.on(name, listed("/embeddings", self._payload), needs_key=self.base_url == OFFICIAL)

    def _payload(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        del role, cut
        chosen = {} if self.dimension is None else {"dimensions": self.dimension}
        return {"input": list(texts), "model": self.model, "encoding_format": "base64"} | chosen
