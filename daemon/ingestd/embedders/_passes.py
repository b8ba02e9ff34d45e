"""Texts through a model of torch in full batches: the worker's side of all local models.

Owns the choice of device and dtype, tokenising, the size of batches, and running out of GPU memory. What a model is,
and what is made of its output, is its embedder's: it hands in a function that gets the features of a batch. The
libraries' own ``encode`` functions were turned down: they cut batches by a number of texts, some sort by characters,
and FlagEmbedding's runs its first batch twice; tokenised once, sorted by tokens and batched by padded tokens the
same models give the same vectors 1.3 to 1.5 times as fast. Imports torch: only for the worker.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import torch

from ingestd.embedders._batches import halves, plan
from ingestd.errors import DocumentError
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ingestd.embedders._local import LocalConfig

Features: TypeAlias = dict[str, Any]
"""What goes through a model: tensors of shape (texts, tokens, …), and for some libraries a few settings."""
T = TypeVar("T")

GPU_TOKENS = 16_384
"""Padded tokens a batch on a GPU. A SPLADE of 30,522 words then takes 1 GB for its scores in 16 bits."""
_WORTHWHILE = 1.5
"""bfloat16 has to be this much faster than float32 to be chosen on a CPU."""


class Input(Protocol):
    """From texts to what the model takes."""

    @property
    def cuts(self) -> int:
        """How many texts were longer than the model sees."""
        ...

    def prepare(
        self, texts: Sequence[str], role: Role
    ) -> tuple[Sequence[int], Callable[[Sequence[int]], Mapping[str, Any]]]:
        """Return each text's tokens, counted or guessed, and what makes the features of a batch from its places."""
        ...


class TokenizerInput:
    """Tokenises with a fast tokenizer of transformers, once for each text: implements ``Input``.

    Args:
        tokenizer: Cuts texts at its ``model_max_length``.
        prompts: What is put before a text of each role.
        too_long: ``fail``: a longer chunk is refused.
    """

    def __init__(self, tokenizer: Any, prompts: Mapping[Role, str], too_long: str = "truncate") -> None:  # noqa: ANN401 - transformers has no one class for it
        self._tokenizer = tokenizer
        self._prompts = prompts
        self.too_long = too_long
        self.cuts = 0
        """Texts that were longer."""

    def prepare(self, texts: Sequence[str], role: Role) -> tuple[Sequence[int], Callable[[Sequence[int]], Features]]:
        """Return each text's tokens, and what pads a batch."""
        if not texts:
            return [], lambda _places: {}
        prompted = [self._prompts[role] + text for text in texts]
        made = self._tokenizer(prompted, truncation="longest_first", padding=False)
        self._look(made.encodings, role)
        encoded = dict(made)

        def features(places: Sequence[int]) -> Features:
            chosen = {key: [rows[place] for place in places] for key, rows in encoded.items()}
            return dict(self._tokenizer.pad(chosen, padding=True, return_tensors="pt"))

        return [len(row) for row in encoded["input_ids"]], features

    def _look(self, encodings: Sequence[Any] | None, role: Role) -> None:
        """Take note of texts that were cut, or refuse them. Slow tokenizers do not say which.

        Raises:
            DocumentError: One is longer than the model sees.
        """
        over = [place for place, encoding in enumerate(encodings or ()) if encoding.overflowing]
        if over and self.too_long == "fail" and role is Role.DOCUMENT:
            most = self._tokenizer.model_max_length
            raise DocumentError(
                f"text {over[0]} of {len(encodings or ())} has more tokens than the {most} that the model sees: "
                "cut smaller chunks (the chunker's max_tokens)"
            )
        self.cuts += len(over)


class Passes:
    """The way through a loaded model. One thread uses it.

    Args:
        source: Makes features of texts.
        device: Where the model is.
        budget: The most padded tokens of a batch.
    """

    def __init__(self, source: Input, device: torch.device, budget: int) -> None:
        self.device = device
        self._source = source
        self._budget = budget

    @property
    def cuts(self) -> int:
        """Texts that were longer than the model sees, as far as its tokenizer says."""
        return self._source.cuts

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
        lengths, prepared = self._source.prepare(texts, role)

        def work(places: Sequence[int]) -> T:
            made = prepared(places)
            return compute(
                {key: value.to(self.device) if torch.is_tensor(value) else value for key, value in made.items()}
            )

        for batch in plan(lengths, self._budget):
            yield from self._attempt(batch, lengths, work)

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


def settle(config: LocalConfig, device: str, tokens: int) -> tuple[torch.device, torch.dtype, int]:
    """Return where to run a model, in which dtype, and the most padded tokens of a batch.

    Args:
        config: The options.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        tokens: Padded tokens a batch on a CPU, where the configuration does not say.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    where = torch.device("cuda:0" if device == "cuda" else device)
    dtype = _best_dtype(where) if config.dtype == "auto" else getattr(torch, config.dtype)
    return where, dtype, config.batch_tokens or (GPU_TOKENS if where.type == "cuda" else tokens)


def name(dtype: torch.dtype) -> str:
    """Return a dtype's name, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def special(tokenizer: Any) -> frozenset[int]:  # noqa: ANN401 - transformers has no one class for it
    """Return the ids of the tokens that models with a weight a token leave out: first, last, padding, unknown."""
    ids = (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return frozenset(token for token in ids if token is not None)


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
