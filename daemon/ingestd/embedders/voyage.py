"""Dense vectors by Voyage AI's API. Documents and queries are different inputs (``input_type``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ingestd.embedders._exchange import listed
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.ports import DevicePool

_INPUTS = {Role.DOCUMENT: "document", Role.QUERY: "query"}


class Config(RemoteConfig):
    """A model of Voyage AI."""

    inputs: ClassVar[int] = 1000
    tokens: ClassVar[int] = 120_000
    length: ClassVar[int] = 32_000
    cutting: ClassVar[Literal["asked", "refused", "silent"]] = "asked"

    base_url: str = Field(default="https://api.voyageai.com/v1", description="Where the API is.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        return self.on(name, listed("/embeddings", self._payload, {"input_type": "document, query"}))

    def _payload(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        chosen = {} if self.dimension is None else {"output_dimension": self.dimension}
        asked = {"input": list(texts), "model": self.model, "input_type": _INPUTS[role]}
        return asked | {"truncation": cut, "encoding_format": "base64"} | chosen
