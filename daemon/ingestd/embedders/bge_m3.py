"""Dense and sparse vectors by BGE-M3 in one pass, in a device worker.

Owns what the model's vectors are (Chen et al., 2024, https://arxiv.org/abs/2402.03216): dense, the first token's
state at length 1; sparse, for each token of the text the greatest ``relu`` of a layer over its states. FlagEmbedding
loads the model and computes both from the batches that all local models have. Its ``encode`` was turned down: it runs
its first batch twice, and takes any RuntimeError for a lack of memory, until the batch has no text. The third kind, a
vector a token, is left out: a chunk has one vector of a kind here, in a row as on its way.

``load`` runs in the worker; nothing else here may touch torch.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

from ingestd.embedders import _folder, _space
from ingestd.embedders._hybrid import CPU_TOKENS, KINDS, HybridModel
from ingestd.embedders._local import LocalConfig, LocalEmbedder
from ingestd.errors import ConfigError
from ingestd.model import ModelInfo, VectorKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from ingestd.embedders._passes import Features
    from ingestd.model import DenseVectors
    from ingestd.ports import DevicePool

SPARSE_HEAD = "sparse_linear.pt"
HEADS = (SPARSE_HEAD, "colbert_linear.pt")
"""Where one of them is missing FlagEmbedding makes both up, with random weights and no warning."""


class Config(LocalConfig):
    """BGE-M3, or a model trained from it."""

    outputs: ClassVar[tuple[str, ...]] = ("dense", "sparse")
    requires: ClassVar[tuple[str, ...]] = ("torch", "transformers", "FlagEmbedding")

    def build(self, name: str, devices: DevicePool) -> LocalEmbedder:
        """Return the embedder; its model is loaded when it is first asked for."""
        return self.on(devices, name, __name__)


def load(options: Mapping[str, object], device: str) -> HybridModel:
    """Load the model in the worker, and run a text through it in each role.

    Raises:
        ConfigError: There is no such model, or it gives no usable vectors.
    """
    from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - loads torch: for the worker only

    from ingestd.embedders import _passes  # noqa: PLC0415 - the same

    config = Config.model_validate(options)
    folder = config.folder(weights=True)
    missing = [name for name in HEADS if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"model: {folder} is no BGE-M3: it has no {' and no '.join(missing)}")
    where, dtype, budget = _passes.settle(config, device, CPU_TOKENS)
    loaded = BGEM3FlagModel(
        str(folder), use_fp16=False, devices=[str(where)], trust_remote_code=config.trust_remote_code
    )
    # Its class has the two layers beside the transformer; they stay in float32, as in other models here.
    m3, tokenizer = loaded.model.to(where).eval(), loaded.tokenizer
    m3.model.to(dtype)
    m3.model.register_forward_hook(_in_float32)
    tokenizer.padding_side = "right"  # the dense vector is that of the first place
    length = _folder.length(folder, config.max_tokens)
    if length is not None:
        tokenizer.model_max_length = length
    prompts = config.prompts(folder)
    dimension = int(m3.config.hidden_size)
    model = HybridModel(
        _passes.Passes(_passes.TokenizerInput(tokenizer, prompts, config.too_long), where, budget),
        ModelInfo(
            kinds=KINDS,
            dimension=dimension,
            space=_space.fingerprint("hybrid", folder, prompts, _said(folder, dimension)),
            dtype=_passes.name(dtype),
            device=str(where),
        ),
        lambda features, kinds: _both(m3, features, kinds),
        unused=_passes.special(tokenizer),
        behind=int(m3.vocab_size),
    )
    model.warm_up()
    return model


def _both(
    m3: Any,  # noqa: ANN401 - FlagEmbedding ships no types
    features: Features,
    kinds: AbstractSet[VectorKind],
) -> tuple[DenseVectors | None, NDArray[np.float32] | None]:
    made = m3(features, return_dense=VectorKind.DENSE in kinds, return_sparse=VectorKind.SPARSE in kinds)
    dense, sparse = made.get("dense_vecs"), made.get("sparse_vecs")
    return (
        None if dense is None else dense.cpu().numpy(),
        None if sparse is None else sparse.squeeze(-1).cpu().numpy(),
    )


def _in_float32(_transformer: object, _arguments: object, output: Any) -> Any:  # noqa: ANN401 - transformers' own
    output.last_hidden_state = output.last_hidden_state.float()
    return output


def _said(folder: Path, dimension: int) -> dict[str, Any]:
    """Return what decides the vectors beside the transformer's weights."""
    head = hashlib.sha256((folder / SPARSE_HEAD).read_bytes()).hexdigest()
    return {"model": "bge-m3", "head": head, "pooling": "first", "normalize": True, "dimension": dimension}
