"""Dense vectors by Cohere's API, version 2. Documents and queries are different inputs (``input_type``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ingestd.embedders._exchange import Exchange
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.ports import DevicePool

EARLIER = 512
"""Tokens that the models of versions 2 and 3 see."""
_INPUTS = {Role.DOCUMENT: "search_document", Role.QUERY: "search_query"}


class Config(RemoteConfig):
    """A model of Cohere."""

    inputs: ClassVar[int] = 96
    tokens: ClassVar[int] = 128_000
    length: ClassVar[int] = 128_000
    cutting: ClassVar[Literal["asked", "refused", "silent"]] = "asked"

    @property
    def seen(self) -> int:
        """The most tokens of a text that the model sees: those before version 4 see little."""
        return EARLIER if any(f"v{version}" in self.model for version in (2, 3)) else self.length

    base_url: str = Field(default="https://api.cohere.com", description="Where the API is.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        # Vectors come in the order of the texts.
        return self.on(
            name,
            Exchange(
                "/v2/embed",
                self._payload,
                lambda answer, _count: answer["embeddings"]["float"],
                ("meta", "billed_units", "input_tokens"),
                {"input_type": "search_document, search_query"},
            ),
        )

    def _payload(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "texts": list(texts),
            "model": self.model,
            "input_type": _INPUTS[role],
            "embedding_types": ["float"],
            "truncate": "END" if cut else "NONE",
        }
        return asked if self.dimension is None else asked | {"output_dimension": self.dimension}
