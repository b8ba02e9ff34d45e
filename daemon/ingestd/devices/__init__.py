"""Models in processes of their own, one process a device.

``pool`` is the daemon's side (it implements ``ports.DevicePool``), ``worker`` the child's; ``check`` looks at every
vector before it goes on. The daemon never imports torch: a model is a module's name and picklable options, and the
worker calls that module's ``load(options, device)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.model import ModelInfo, Role, VectorKind, Vectors


class Model(Protocol):
    """A model in a worker: what a module's ``load(options: Mapping[str, object], device: str)`` returns.

    One thread uses it. It may have a method ``cuts()``: how many texts were longer than the model sees, since it was
    loaded. ``load`` raises ConfigError when the model cannot be had as configured, and should run one
    text through it: what fails there is refused at the start, not blamed on the first document.
    """

    def info(self) -> ModelInfo:
        """Return what the model is, on which device and in which dtype."""
        ...

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind, whatever else is in the batch; no texts give no vectors.

        Raises:
            DocumentError: One of the texts cannot be embedded.
        """
        ...
