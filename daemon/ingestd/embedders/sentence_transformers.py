"""Dense vectors by a model of sentence-transformers, in a device worker.

Owns the plain case: a prompt for each role as the model was trained or as configured, pooled as the model says.
``_dense`` has what dense models share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.embedders import _dense
from ingestd.embedders._dense import DenseConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingestd.embedders._dense import DenseModel
    from ingestd.embedders._local import LocalEmbedder
    from ingestd.ports import DevicePool


class Config(DenseConfig):
    """A dense model of sentence-transformers."""

    def build(self, name: str, devices: DevicePool) -> LocalEmbedder:
        """Return the embedder; its model is loaded when it is first asked for."""
        return self.on(devices, name, __name__)


def load(options: Mapping[str, object], device: str) -> DenseModel:
    """Load the model in the worker, and run a text through it in each role.

    Raises:
        ConfigError: There is no such model, or it gives no usable vectors.
    """
    return _dense.load(Config.model_validate(options), device)
