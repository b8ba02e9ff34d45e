"""The worker's side of a sentence-transformers model: load it, and run texts through it in full batches.

Owns the choice of device, dtype and batch size, tokenising, and running out of GPU memory. ``encode`` is not used:
it sorts by characters and cuts batches by a number of texts; tokenised once, sorted by tokens and batched by padded
tokens the same modules give the same vectors 1.3 to 1.5 times as fast. Imports torch: only for the worker.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import torch

from ingestd.embedders import _folder
from ingestd.embedders._batches import halves, plan
from ingestd.errors import DocumentError
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer, SparseEncoder

    from ingestd.embedders._local import LocalConfig

    Encoder: TypeAlias = SentenceTransformer | SparseEncoder

Features: TypeAlias = dict[str, Any]
"""What goes from module to module: tensors of shape (texts, tokens, …) and a few settings."""
T = TypeVar("T")
E = TypeVar("E", bound="Encoder")

GPU_TOKENS = 16_384
"""Padded tokens a batch on a GPU. A SPLADE of 30,522 words then takes 1 GB for its scores in 16 bits."""
_WORTHWHILE = 1.5
"""bfloat16 has to be this much faster than float32 to be chosen on a CPU."""

_SAMPLE = ("", " A\tplain sentence, and Another. ", "Straße 東京 ﬁn\u0301 🙂", "many words " * 5_000)


class Forward(Generic[E]):
    """A loaded model. One thread uses it.

    Args:
        encoder: From sentence-transformers.
        prompts: What is put before a text of each role.
        device: Where the encoder is.
        budget: The most padded tokens of a batch.
    """

    def __init__(self, encoder: E, prompts: Mapping[Role, str], device: torch.device, budget: int) -> None:
        self.encoder = encoder
        self.device = device
        self._prompts = prompts
        self._budget = budget
        # What the library adds to the tensors: the modality, and the prompt's tokens where pooling leaves them out.
        self._settings = {role: self._library_settings(role) for role in Role}
        self._ours = all(self._agrees(role) for role in Role)

    def run(
        self, texts: Sequence[str], role: Role, compute: Callable[[Features], T]
    ) -> Iterator[tuple[Sequence[int], T]]:
        """Yield, batch by batch, which texts were in it, by their places, and what ``compute`` made of it.

        Args:
            texts: Any number; they are put into batches here.
            role: Which prompt they get.
            compute: Gets a batch's features on the device, with gradients off; what it returns must be on the CPU.

        Raises:
            DocumentError: A text does not fit into the GPU's memory by itself.
        """
        prompted = [self._prompts[role] + text for text in texts]
        encoded = self._tokenize(prompted) if self._ours and prompted else None
        # The library's own way tokenises batch by batch: characters have to do for the lengths.
        lengths = [len(row) for row in encoded["input_ids"]] if encoded else [len(text) // 4 + 2 for text in prompted]

        def features(batch: Sequence[int]) -> Features:
            if encoded is None:
                chosen = [texts[place] for place in batch]
                made = self.encoder.preprocess(chosen, prompt=self._prompts[role] or None, task=role.value)
            else:
                made = self._pad(encoded, batch) | self._settings[role]
            return {key: value.to(self.device) if torch.is_tensor(value) else value for key, value in made.items()}

        for batch in plan(lengths, self._budget):
            yield from self._attempt(batch, lengths, lambda places: compute(features(places)))

    def _attempt(
        self, batch: Sequence[int], lengths: Sequence[int], work: Callable[[Sequence[int]], T]
    ) -> Iterator[tuple[Sequence[int], T]]:
        """Yield the batch's result, or that of its halves where the GPU's memory is too small for it."""
        result: T | None = None
        try:
            with torch.inference_mode():
                result = work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise DocumentError(
                    f"a text of {lengths[batch[0]]} tokens does not fit into the memory of {self.device} by itself: "
                    "lower the chunker's max_tokens, or what else runs there"
                ) from error
        if result is not None:
            yield batch, result
            return
        # Outside of the handler: the exception's frames held the tensors that did not fit.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        for half in halves(batch):
            yield from self._attempt(half, lengths, work)

    def _tokenize(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """Return each text's features, cut at the model's length as the library does it, not padded."""
        return dict(self.encoder.tokenizer(texts, truncation="longest_first", padding=False))

    def _pad(self, encoded: dict[str, list[list[int]]], batch: Sequence[int]) -> Features:
        chosen = {key: [rows[place] for place in batch] for key, rows in encoded.items()}
        return dict(self.encoder.tokenizer.pad(chosen, padding=True, return_tensors="pt"))

    def _library_settings(self, role: Role) -> Features:
        made = self.encoder.preprocess([_SAMPLE[1]], prompt=self._prompts[role] or None, task=role.value)
        return {key: value for key, value in made.items() if not torch.is_tensor(value)}

    def _agrees(self, role: Role) -> bool:
        """Say whether our way to the features gives what the library's does.

        It does for text models with a fast tokenizer. Others (chat templates, query expansion, a router with another
        tokenizer for queries) are left to the library, batch by batch. Trying it was preferred to asking the model
        about each of these: the next kind of model is covered too.
        """
        theirs = self.encoder.preprocess(list(_SAMPLE), prompt=self._prompts[role] or None, task=role.value)
        try:
            encoded = self._tokenize([self._prompts[role] + text for text in _SAMPLE])
            ours = self._pad(encoded, range(len(_SAMPLE))) | self._settings[role]
        except (TypeError, ValueError, KeyError, AttributeError):  # no tokenizer that is called so
            return False
        return ours.keys() == theirs.keys() and all(
            torch.equal(value, theirs[key]) if torch.is_tensor(value) else value == theirs[key]
            for key, value in ours.items()
        )


def load(kind: type[E], config: LocalConfig, folder: Path, device: str, tokens: int) -> tuple[Forward[E], str]:
    """Load a model from its folder.

    All but the transformer stays in float32: pooling and normalising cost nothing beside it, and in 16 bits a vector
    of unit length is off by half a percent.

    Args:
        kind: The library's class for it.
        config: The options.
        folder: The model's files, weights included.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        tokens: Padded tokens a batch on a CPU, where the configuration does not say.

    Returns:
        The model, and the name of the dtype that it computes in.
    """
    where = _device(device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype = _best_dtype(where) if config.dtype == "auto" else getattr(torch, config.dtype)
    encoder = kind(
        str(folder),
        device=str(where),
        local_files_only=not config.trust_remote_code,
        trust_remote_code=config.trust_remote_code,
        model_kwargs={"dtype": torch.float32},
    )
    encoder.eval()
    length = _folder.length(folder, config.max_tokens)
    if length is not None:
        encoder.max_seq_length = length
    encoder[0].to(dtype)
    for module in list(encoder.children())[1:2]:
        module.register_forward_pre_hook(_in_float32)
    budget = config.batch_tokens or (GPU_TOKENS if where.type == "cuda" else tokens)
    return Forward(encoder, config.prompts(folder), where, budget), str(dtype).removeprefix("torch.")


def _in_float32(_module: torch.nn.Module, arguments: tuple[Features]) -> tuple[Features]:
    (features,) = arguments
    return (
        {
            key: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
            for key, value in features.items()
        },
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda:0" if name == "cuda" else name)


@functools.cache
def _best_dtype(device: torch.device) -> torch.dtype:
    """Return what the device is good at: half the bits where its hardware multiplies those."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    gain = _multiplication_seconds(torch.float32) / _multiplication_seconds(torch.bfloat16)
    return torch.bfloat16 if gain > _WORTHWHILE else torch.float32


def _multiplication_seconds(dtype: torch.dtype) -> float:
    """Return the least time of a multiplication of the size that a small transformer makes, on the CPU."""
    left, right = torch.randn(512, 384).to(dtype), torch.randn(384, 1536).to(dtype)
    times = []
    for _ in range(12):  # the first ones choose a kernel and wake the cores; the least is free of neighbours
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)
