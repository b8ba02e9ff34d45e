"""Dense vectors by Google's Gemini API.

``gemini-embedding-001`` takes the role as a ``taskType``. Later models want it in front of the text, and ignore the
task: that is done here unless prompts are configured. Only vectors of full size come with length 1, so shorter ones
are brought to it. Several texts in one ``content`` would give one vector for all (``gemini-embedding-2``): each is a
request of its own in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from ingestd.embedders._listed import stacked
from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder, Request
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.embedders._client import Client
    from ingestd.model import DenseVectors
    from ingestd.ports import DevicePool

_TASKS = {Role.DOCUMENT: "RETRIEVAL_DOCUMENT", Role.QUERY: "RETRIEVAL_QUERY"}
_PROMPTS = {Role.DOCUMENT: "title: none | text: ", Role.QUERY: "task: search result | query: "}
_WITH_TASKS = ("gemini-embedding-001", "text-embedding-", "embedding-001")


class Config(RemoteConfig):
    """A model of Google's Gemini API."""

    inputs: ClassVar[int] = 100
    tokens: ClassVar[int] = 20_000
    length: ClassVar[int] = 2048

    base_url: str = Field(default="https://generativelanguage.googleapis.com/v1beta", description="Where the API is.")

    def build(self, name: str, devices: DevicePool) -> RemoteEmbedder:  # noqa: ARG002 - the port's; it needs none
        """Return the embedder; the provider is first asked when its model is.

        Raises:
            ConfigError: There is no key.
        """
        return self.on(name, BatchEmbedContents(self))

    @property
    def has_tasks(self) -> bool:
        """Whether the model takes the role as a task, and not in front of the text."""
        return self.model.removeprefix("models/").startswith(_WITH_TASKS)

    def prompt(self, role: Role) -> str:
        """Return what is put before a text of a role."""
        said = super().prompt(role)
        return said if said or self.has_tasks else _PROMPTS[role]

    def headers(self) -> dict[str, str]:
        """Return what the provider knows us by."""
        return {} if self.api_key is None else {"x-goog-api-key": self.api_key.get_secret_value()}


class BatchEmbedContents:
    """Speaks with ``batchEmbedContents`` (``_remote.Wire``)."""

    kind = VectorKind.DENSE
    known = True

    def __init__(self, config: Config) -> None:
        self._config = config
        self._model = f"models/{config.model.removeprefix('models/')}"

    def request(self, texts: Sequence[str], role: Role) -> Request:
        """Return the request for the vectors of texts."""
        wishes: dict[str, Any] = {}
        if self._config.has_tasks:
            wishes["taskType"] = _TASKS[role]
        if self._config.dimension is not None:
            wishes["outputDimensionality"] = self._config.dimension
        contents = ({"parts": [{"text": text}], "role": "user"} for text in texts)
        requests = [{"model": self._model, "content": content, **wishes} for content in contents]
        return Request(f"/{self._model}:batchEmbedContents", {"requests": requests})

    def vectors(self, answer: Any, count: int) -> DenseVectors:  # noqa: ANN401 - JSON
        """Return an answer's vectors, of length 1: they come in the order of the texts."""
        del count
        vectors = stacked([row["values"] for row in answer["embeddings"]])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.divide(vectors, norms, out=vectors, where=np.isfinite(norms) & (norms > 0))
        return vectors

    def tokens(self, answer: Any) -> int | None:  # noqa: ANN401 - JSON
        """Return how many tokens the provider counted, where it says."""
        used = (answer.get("usageMetadata") or {}).get("promptTokenCount")
        return used if isinstance(used, int) else None

    def space(self, client: Client | None) -> dict[str, Any]:
        """Return what the vectors depend on beside model, dimension and prompts."""
        del client
        return {"tasks": self._config.has_tasks}
