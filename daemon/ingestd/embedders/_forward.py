"""The worker's side of a sentence-transformers model: load it, and tokenise for it as it does.

Owns what the library has of its own: its way to the features of a text, and the dtypes of its modules. ``_passes``
runs the batches. Imports torch: only for the worker.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import torch
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding

from ingestd.embedders import _folder, _nomic
from ingestd.embedders._passes import Features, Passes, TokenizerInput, settle
from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer, SparseEncoder

    from ingestd.embedders._local import LocalConfig

    Encoder: TypeAlias = SentenceTransformer | SparseEncoder

E = TypeVar("E", bound="Encoder")

_SAMPLE = ("", " A\tplain sentence, and Another. ", "Straße 東京 ﬁn\u0301 🙂", "many words " * 5_000)


class Forward(Passes, Generic[E]):
    """A loaded model. One thread uses it.

    Args:
        encoder: From sentence-transformers.
        prompts: What is put before a text of each role.
        device: Where the encoder is.
        budget: The most padded tokens of a batch.
        too_long: ``fail``: a chunk that is longer than the model sees is refused.
    """

    def __init__(
        self, encoder: E, prompts: Mapping[Role, str], device: torch.device, budget: int, too_long: str = "truncate"
    ) -> None:
        self.encoder = encoder
        self.input = LibraryInput(encoder, prompts, too_long)
        super().__init__(self.input, device, budget)

    def cast(self, dtype: torch.dtype) -> None:
        """Have the transformer compute in a dtype.

        All else stays in float32: pooling and normalising cost nothing beside it, and in 16 bits a vector of unit
        length is off by half a percent.
        """
        for role in Role:
            first = way(self.encoder, role)[0]
            if not isinstance(first, SparseStaticEmbedding):
                _cast(first, dtype)


class LibraryInput:
    """Makes the features that the library makes: implements ``_passes.Input``.

    Args:
        encoder: The model.
        prompts: What is put before a text of each role.
        too_long: ``fail``: a chunk that is longer than the model sees is refused.
    """

    def __init__(self, encoder: Encoder, prompts: Mapping[Role, str], too_long: str = "truncate") -> None:
        self._encoder = encoder
        self._prompts = prompts
        self._plain = {role: TokenizerInput(way(encoder, role)[0].tokenizer, prompts) for role in Role}
        # What the library adds to the tensors: the modality, and the prompt's tokens where pooling leaves them out.
        self._settings = {role: self._added(role) for role in Role}
        self._ours = {role: self._agrees(role) for role in Role}
        for plain in self._plain.values():
            plain.too_long, plain.cuts = too_long, 0  # the samples were no documents

    @property
    def ours(self) -> bool:
        """Whether all texts are tokenised once, before they are put into batches."""
        return all(self._ours.values())

    @property
    def cuts(self) -> int:
        """How many texts were longer than the model sees; not known of those that the library tokenises."""
        return sum(plain.cuts for plain in self._plain.values())

    def prepare(self, texts: Sequence[str], role: Role) -> tuple[Sequence[int], Callable[[Sequence[int]], Features]]:
        """Return each text's tokens, and what makes the features of a batch."""
        if self._ours[role]:
            lengths, padded = self._plain[role].prepare(texts, role)
            return lengths, lambda places: padded(places) | self._settings[role]
        # The library's own way tokenises batch by batch: characters have to do for the lengths.
        lengths = [len(self._prompts[role] + text) // 4 + 2 for text in texts]
        return lengths, lambda places: self._theirs([texts[place] for place in places], role)

    def _theirs(self, texts: Sequence[str], role: Role) -> Features:
        return dict(self._encoder.preprocess(list(texts), prompt=self._prompts[role] or None, task=role.value))

    def _added(self, role: Role) -> Features:
        return {key: value for key, value in self._theirs(_SAMPLE[1:2], role).items() if not torch.is_tensor(value)}

    def _agrees(self, role: Role) -> bool:
        """Say whether our way to the features gives what the library's does.

        It does for text models with a fast tokenizer. Others (chat templates, query expansion, queries that a table
        takes without special tokens) are left to the library, batch by batch. Trying it was preferred to asking the
        model about each of these: the next kind of model is covered too.
        """
        theirs = self._theirs(_SAMPLE, role)
        try:
            _, padded = self._plain[role].prepare(_SAMPLE, role)
            ours = padded(range(len(_SAMPLE))) | self._settings[role]
        except (TypeError, ValueError, KeyError, AttributeError):  # no tokenizer that is called so
            return False
        return ours.keys() == theirs.keys() and all(
            torch.equal(value, theirs[key]) if torch.is_tensor(value) else value == theirs[key]
            for key, value in ours.items()
        )


def load(kind: type[E], config: LocalConfig, folder: Path, device: str, tokens: int) -> tuple[Forward[E], torch.dtype]:
    """Load a model from its folder, in float32.

    Args:
        kind: The library's class for it.
        config: The options.
        folder: The model's files, weights included.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        tokens: Padded tokens a batch on a CPU, where the configuration does not say.

    Returns:
        The model, and the dtype that it is to be cast to.
    """
    where, dtype, budget = settle(config, device, tokens)
    encoder = kind(
        str(folder),
        device=str(where),
        local_files_only=not config.trust_remote_code,
        trust_remote_code=config.trust_remote_code,
        model_kwargs={"dtype": torch.float32},
        # Code that comes with the model reads its own names.
        config_kwargs=None if config.trust_remote_code else _nomic.arguments(_folder.transformer_config(folder)),
    )
    encoder.eval()
    ways = {role: way(encoder, role) for role in Role}
    for role, (first, *_) in ways.items():
        length = _folder.length(folder, config.max_tokens, role)
        if length is not None:
            first.max_seq_length = length
    for module in {second for steps in ways.values() for second in steps[1:2]}:
        module.register_forward_pre_hook(_in_float32)
    return Forward(encoder, config.prompts(folder), where, budget, config.too_long), dtype


def way(encoder: Encoder, role: Role) -> list[Any]:
    """Return the modules that a role's texts go through: a router has some for documents, and some for queries."""
    return [
        step
        for module in encoder.children()
        for step in (module.sub_modules[role.value].children() if isinstance(module, Router) else (module,))
    ]


def _cast(transformer: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give a transformer another dtype, but for what needs all its bits.

    That is what transformers leaves alone when it loads in that dtype: the frequencies of positions (rounded, words
    far into a text lose their order), and layers that a model names, such as those of T5 that overflow in float16.
    """
    models = list(transformer.modules())
    whole = {name for model in models for name in getattr(model, "_keep_in_fp32_modules_strict", None) or ()}
    if dtype == torch.float16:
        whole |= {name for model in models for name in getattr(model, "_keep_in_fp32_modules", None) or ()}
    for where, tensor in itertools.chain(transformer.named_parameters(), transformer.named_buffers()):
        if tensor.is_floating_point() and not where.endswith("inv_freq") and not whole & set(where.split(".")):
            tensor.data = tensor.data.to(dtype)


def _in_float32(_module: torch.nn.Module, arguments: tuple[Features]) -> tuple[Features]:
    (features,) = arguments
    return (
        {
            key: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
            for key, value in features.items()
        },
    )
