"""Dense vectors by an Instructor model, in a device worker: a T5 that is told what its vectors are for.

Owns what sets these models apart (Su et al., 2022, https://arxiv.org/abs/2212.09741): an instruction before each
text, one for documents and one for queries, which the model sees and pooling leaves out. Their files say neither:
loaded as they stand, queries and documents get no instruction, and one that is configured gets into the mean.
``_dense`` has the rest. The package InstructorEmbedding was turned down: it does not work with the libraries of today.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from ingestd.embedders import _dense
from ingestd.embedders._dense import DenseConfig
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ingestd.embedders._dense import DenseModel
    from ingestd.embedders._local import LocalEmbedder
    from ingestd.ports import DevicePool

INSTRUCTIONS = {
    Role.DOCUMENT: "Represent the document for retrieval: ",
    Role.QUERY: "Represent the question for retrieving supporting documents: ",
}
"""The authors' own, for what a search is."""


class Config(DenseConfig):
    """An Instructor model: hkunlp/instructor-base, -large or -xl, or one trained from them."""

    document_prompt: str | None = Field(
        default=None,
        description="The instruction for chunks, with the space behind it; not set: the model's own, or else "
        f"{INSTRUCTIONS[Role.DOCUMENT]!r}.",
    )
    query_prompt: str | None = Field(
        default=None,
        description=f"The instruction for queries; not set: the model's own, or else {INSTRUCTIONS[Role.QUERY]!r}.",
    )

    def prompts(self, folder: Path) -> Mapping[Role, str]:
        """Return the instruction of each role."""
        given = {Role.DOCUMENT: self.document_prompt, Role.QUERY: self.query_prompt}
        own = super().prompts(folder)
        return {role: own[role] or (INSTRUCTIONS[role] if given[role] is None else "") for role in Role}

    def build(self, name: str, devices: DevicePool) -> LocalEmbedder:
        """Return the embedder; its model is loaded when it is first asked for."""
        return self.on(devices, name, __name__)


def load(options: Mapping[str, object], device: str) -> DenseModel:
    """Load the model in the worker, and run a text through it in each role.

    Raises:
        ConfigError: There is no such model, or it gives no usable vectors.
    """
    return _dense.load(Config.model_validate(options), device, pool_prompt=False)
