"""The daemon's side of a model that runs in a device worker: its options, its tokenizer, and a handle.

Owns what all local embedders have in common. The worker gets the validated options as a dictionary and validates
them again into the same ``Config``, so that both sides read one definition; the other way, pickling the ``Config``,
would tie the pipe to pydantic's internals.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ingestd.embedders import _folder
from ingestd.embedders._location import locate
from ingestd.embedders._tokenizer import FileTokenizer
from ingestd.errors import ConfigError
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ingestd.model import ModelInfo, VectorKind, Vectors
    from ingestd.ports import Device, DevicePool, Tokenizer


_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


class FolderConfig(BaseModel):
    """The options of every model that is read from a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outputs: ClassVar[tuple[str, ...]] = ("dense",)
    requires: ClassVar[tuple[str, ...]] = ()
    """The modules that its worker imports; the extra ``local`` has them."""

    model: str = Field(
        min_length=1,
        description="A folder, package:NAME/PATH for a folder inside an installed package, or a name on the hub.",
    )
    revision: str | None = Field(
        default=None, description="A branch, tag or commit on the hub; not set: the main branch, as it is at the start."
    )
    batch_tokens: int | None = Field(
        default=None, ge=1, description="The most padded tokens of a batch; not set: chosen for the device."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=8,
        description="The most tokens of a text that the model sees, prompt included; not set: all that it can.",
    )

    too_long: Literal["truncate", "fail"] = Field(
        default="truncate", description="What becomes of a longer chunk: its beginning counts, or its document fails."
    )

    def folder(self, *, weights: bool) -> Path:
        """Return the folder with the model's files, fetched if they are on the hub.

        Raises:
            ConfigError: There is no such model.
        """
        return locate(self.model, self.revision, weights=weights)


class LocalConfig(FolderConfig):
    """The options of every model of torch."""

    requires: ClassVar[tuple[str, ...]] = ("torch", "transformers", "sentence_transformers")

    device: str | tuple[str, ...] = Field(
        default="auto",
        description="auto (all GPUs, a process each, or else the CPU), cpu, cuda, cuda:1, …, or a list of these.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="What to compute in; auto finds out what the device is good at."
    )
    document_prompt: str | None = Field(
        default=None, description="What is put before each chunk; not set: the model's own prompt for documents."
    )
    query_prompt: str | None = Field(
        default=None, description="What is put before a query; not set: the model's own prompt for queries."
    )
    threads: int | None = Field(
        default=None, ge=1, description="Threads of a device worker on the CPU; not set: one a core, shared out."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model: with the daemon's rights, so off."
    )

    def prompts(self, folder: Path) -> Mapping[Role, str]:
        """Return what is put before a text of each role."""
        return _folder.prompts(folder, self.document_prompt, self.query_prompt)

    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer, with room left for special tokens and the prompt of documents.

        Raises:
            ConfigError: There is no such model, it has no fast tokenizer, or the prompt leaves no room.
        """
        folder = self.folder(weights=False)
        file = _folder.tokenizer_file(folder)
        length = _folder.length(folder, self.max_tokens)
        tokenizer = FileTokenizer(file, limit=None)
        if length is None:
            return tokenizer
        room = length - tokenizer.special_tokens() - tokenizer.count(self.prompts(folder)[Role.DOCUMENT])
        if room < 1:
            raise ConfigError(f"document_prompt: the prompt fills all of the {length} tokens that the model takes")
        return FileTokenizer(file, limit=room)

    def on(self, devices: DevicePool, name: str, module: str) -> LocalEmbedder:
        """Return the embedder, its model in the pool's workers. ``module`` has the ``load`` for it."""
        options = self.model_dump()
        if self.threads is None and not isinstance(self.device, str) and self.device.count("cpu") > 1:
            # Each would take all cores, and threads that wait for one another's cores are slower than fewer threads.
            options["threads"] = max(1, len(os.sched_getaffinity(0)) // self.device.count("cpu"))
        return LocalEmbedder(name, devices.load(name, module, options, self.device))

    @field_validator("device")
    @classmethod
    def _named(cls, device: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (device,) if isinstance(device, str) else device
        if not names or not all(map(_DEVICE.fullmatch, names)):
            raise ValueError("name auto, cpu, cuda, cuda:1, …, or a list of these")
        if len(names) > 1 and "auto" in names:
            raise ValueError('"auto" is all GPUs by itself: name the devices, or nothing else')
        return "auto" if device == ("auto",) else device


class LocalEmbedder:
    """A handle on a model in a device worker: implements ``ports.Embedder``."""

    def __init__(self, name: str, device: Device) -> None:
        self.name = name
        self._device = device

    def info(self) -> ModelInfo:
        """Return what the model is, loading it if need be."""
        return self._device.info()

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind."""
        return self._device.embed(texts, role, kinds)

    @property
    def texts_cut(self) -> int:
        """How many texts were longer than the model sees, since the embedder was made."""
        return self._device.texts_cut

    def close(self) -> None:
        """Nothing to do: the model goes with its worker, which others may share, when the pool closes."""
