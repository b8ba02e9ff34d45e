"""Dense and sparse vectors by mGTE (gte-multilingual-base) in one pass, in a device worker.

Owns what the model's vectors are (Zhang et al., 2024, https://arxiv.org/abs/2407.19669): dense, the first token's
state at length 1; sparse, for each token of the text the greatest ``relu`` of the token classifier. transformers' own
class computes them, for old checkpoints too (see ``_gte``): no code that comes with a model is ever run.

``load`` runs in the worker; nothing else here may touch torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ingestd.embedders import _folder, _gte, _space
from ingestd.embedders._hybrid import CPU_TOKENS, KINDS, HybridModel
from ingestd.embedders._local import LocalConfig, LocalEmbedder
from ingestd.errors import ConfigError
from ingestd.model import ModelInfo, VectorKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ingestd.embedders._passes import Features
    from ingestd.model import DenseVectors
    from ingestd.ports import DevicePool


class Config(LocalConfig):
    """mGTE, or a model trained from it that has kept the token classifier."""

    outputs: ClassVar[tuple[str, ...]] = ("dense", "sparse")
    requires: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    trust_remote_code: Literal[False] = Field(
        default=False, description="Stays off: these models need no code but transformers' own."
    )

    def build(self, name: str, devices: DevicePool) -> LocalEmbedder:
        """Return the embedder; its model is loaded when it is first asked for."""
        return self.on(devices, name, __name__)


def load(options: Mapping[str, object], device: str) -> HybridModel:
    """Load the model in the worker, and run a text through it in each role.

    Raises:
        ConfigError: There is no such model, or it gives no usable vectors.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - loads torch: for the worker only

    from ingestd.embedders import _passes  # noqa: PLC0415 - the same

    config = Config.model_validate(options)
    folder = config.folder(weights=True)
    where, dtype, budget = _passes.settle(config, device, CPU_TOKENS)
    gte = _native(folder, dtype).to(where).eval()
    # Given the configuration, it does not look for one of the old architecture, which transformers does not know.
    tokenizer = AutoTokenizer.from_pretrained(folder, config=gte.config, local_files_only=True, trust_remote_code=False)
    tokenizer.padding_side = "right"  # the dense vector is that of the first place, and positions count from there
    length = _folder.length(folder, config.max_tokens)
    if length is not None:
        tokenizer.model_max_length = length
    prompts = config.prompts(folder)
    model = HybridModel(
        _passes.Passes(_passes.TokenizerInput(tokenizer, prompts, config.too_long), where, budget),
        ModelInfo(
            kinds=KINDS,
            dimension=gte.config.hidden_size,
            space=_space.fingerprint("hybrid", folder, prompts, _said(gte.config)),
            dtype=_passes.name(dtype),
            device=str(where),
        ),
        lambda features, kinds: _both(gte, features, kinds),
        unused=_passes.special(tokenizer),
        behind=gte.config.vocab_size,
    )
    model.warm_up()
    return model


def _native(folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - the library's class is not to be imported here
    """Return the model of transformers' own class, its classifier in float32.

    Raises:
        ConfigError: The folder has another model, or lacks some of its weights.
    """
    from transformers import GteConfig, GteForTokenClassification  # noqa: PLC0415 - loads torch

    said = _folder.read(folder / "config.json")
    if said.get("model_type") == _gte.OLD:
        config = GteConfig.from_dict(_gte.arguments(said))
    elif said.get("model_type") == _gte.NATIVE:
        config = GteConfig.from_pretrained(folder, num_labels=1)
    else:
        raise ConfigError(f"model: {folder} is no GTE: its config.json has model_type = {said.get('model_type')!r}")
    pair: Any = GteForTokenClassification.from_pretrained(
        folder,
        config=config,
        dtype=dtype,  # and not cast afterwards: the frequencies of positions need all their bits
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    gte, loaded = pair
    if loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ConfigError(
            f"model: {folder} lacks weights of mGTE ({missing}, …): "
            'one without the token classifier is for type = "sentence_transformers"'
        )
    gte.classifier.float()
    return gte


def _both(
    gte: Any,  # noqa: ANN401 - the library's class is not to be imported here
    features: Features,
    kinds: AbstractSet[VectorKind],
) -> tuple[DenseVectors | None, NDArray[np.float32] | None]:
    from torch.nn import functional  # noqa: PLC0415 - in the worker, where it is loaded

    states = gte.gte(**features).last_hidden_state.float()
    dense = functional.normalize(states[:, 0], dim=-1) if VectorKind.DENSE in kinds else None
    sparse = functional.relu(gte.classifier(states)).squeeze(-1) if VectorKind.SPARSE in kinds else None
    return (
        None if dense is None else dense.cpu().numpy(),
        None if sparse is None else sparse.cpu().numpy(),
    )


def _said(config: Any) -> dict[str, Any]:  # noqa: ANN401 - the library's class is not to be imported here
    """Return what decides the vectors beside the weights; positions turn as the configuration says."""
    return {
        "model": "mgte",
        "pooling": "first",
        "normalize": True,
        "positions": dict(config.rope_parameters),
        "dimension": config.hidden_size,
    }
