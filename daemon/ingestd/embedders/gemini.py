"""Dense vectors by Google's Gemini API.

``gemini-embedding-001`` takes the role as a ``taskType``. Later models want it in front of the text, and ignore the
task: that is done here unless prompts are configured. Only vectors of full size come with length 1, so shorter ones
are brought to it. Several texts in one ``content`` would give one vector for all (``gemini-embedding-2``): each is a
request of its own in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ingestd.embedders._exchange import Exchange
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.ports import DevicePool

_TASKS = {Role.DOCUMENT: "RETRIEVAL_DOCUMENT", Role.QUERY: "RETRIEVAL_QUERY"}
_PROMPTS = {Role.DOCUMENT: "title: none | text: ", Role.QUERY: "task: search result | query: "}
_WITH_TASKS = ("gemini-embedding-001", "text-embedding-", "embedding-001")


class Config(RemoteConfig):
    """A model of Google's Gemini API."""

    inputs: ClassVar[int] = 100
    tokens: ClassVar[int] = 20_000
    length: ClassVar[int] = 2048
    cutting: ClassVar[Literal["asked", "refused", "silent"]] = "silent"

    base_url: str = Field(default="https://generativelanguage.googleapis.com/v1beta", description="Where the API is.")

    @field_validator("model")
    @classmethod
    def _named_once(cls, value: str) -> str:
        return value.removeprefix("models/")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        # Vectors come in the order of the texts.
        return self.on(
            name,
            Exchange(
                f"/{self._path}:batchEmbedContents",
                self._payload,
                lambda answer, _count: [row["values"] for row in answer["embeddings"]],
                ("usageMetadata", "promptTokenCount"),
                {"tasks": self.has_tasks},
                unit=True,
            ),
        )

    @property
    def has_tasks(self) -> bool:
        """Whether the model takes the role as a task, and not in front of the text."""
        return self.model.startswith(_WITH_TASKS)

    def prompt(self, role: Role) -> str:
        """Return what is put before a text of a role."""
        said = super().prompt(role)
        return said if said or self.has_tasks else _PROMPTS[role]

    def headers(self) -> dict[str, str]:
        """Return what the provider knows us by."""
        return {} if self.api_key is None else {"x-goog-api-key": self.api_key.get_secret_value()}

    @property
    def _path(self) -> str:
        return f"models/{self.model}"

    def _payload(self, texts: Sequence[str], role: Role, *, cut: bool) -> dict[str, Any]:
        del cut  # whatever it is told
        wishes: dict[str, Any] = {"model": self._path}
        if self.has_tasks:
            wishes["taskType"] = _TASKS[role]
        if self.dimension is not None:
            wishes["outputDimensionality"] = self.dimension
        return {"requests": [{"content": {"parts": [{"text": text}], "role": "user"}, **wishes} for text in texts]}
