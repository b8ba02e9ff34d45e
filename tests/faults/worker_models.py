"""Models for device workers that misbehave on demand. They run in the worker, found through PYTHONPATH."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from ingestd.errors import ConfigError, DocumentError
from ingestd.model import ModelInfo, VectorKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.model import Role, Vectors

HANG = "hang"
HANG_ONCE = "hang once"
DIE = "die"
DIE_ONCE = "die once"
RAISE = "raise"
REFUSE = "refuse"
BREAK = "break"
WAIT = "wait for "


class Lengths:
    """Embeds a text as its length; some texts make it misbehave.

    Options: ``log``, a file that gets a line for each load (the process id) and each text that it hangs or dies on;
    ``fail_load_if``, a file that makes loading fail while it exists; ``space``, a file with the space's name;
    ``deadly``: every text kills; ``gpus``: how many there seem to be; ``down``, a device on which every text kills
    while there is a file ``down`` beside the log.
    """

    def __init__(self, options: Mapping[str, object], device: str) -> None:
        self._log = Path(str(options["log"]))
        self._space = Path(str(options["space"])).read_text() if "space" in options else "lengths"
        self._deadly = bool(options.get("deadly"))
        self._device = device
        self._down = self._log.parent / "down" if options.get("down") == device else None
        self._lost = False
        self._note(f"loaded {os.getpid()}")

    def info(self) -> ModelInfo:
        """As the protocol says."""
        return ModelInfo(frozenset({VectorKind.DENSE}), 2, self._space, "float32", self._device)

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """As the protocol says: (length, length of the role's name)."""
        if self._deadly or (self._down is not None and self._down.exists()):
            os.kill(os.getpid(), signal.SIGKILL)
        for text in texts:
            self._misbehave(text)
        rows = [[len(text), len(role.value)] for text in texts]
        return {VectorKind.DENSE: np.array(rows, np.float32).reshape(len(texts), 2)}

    def _misbehave(self, text: str) -> None:
        if text == HANG or (text == HANG_ONCE and "hanging" not in self._log.read_text()):
            self._note("hanging")
            threading.Event().wait()
        if text == DIE or (text == DIE_ONCE and "died" not in self._log.read_text()):
            self._note("died")
            os.kill(os.getpid(), signal.SIGKILL)
        if text.startswith(WAIT):  # until as many texts are here as it says, each in a process of its own
            self._note(f"waits on {self._device} in {os.getpid()}")
            while self._log.read_text().count("waits on") < int(text.removeprefix(WAIT)):
                threading.Event().wait(0.01)
        if text == REFUSE:
            raise DocumentError("this text is refused")
        if text == RAISE:
            raise IndexError("no such place")
        if text == BREAK or self._lost:
            self._lost = True  # as a CUDA context is: for good
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _note(self, line: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{line}\n")


def load(options: Mapping[str, object], device: str) -> Lengths:
    """What the worker calls."""
    if options.get("missing"):
        raise ConfigError("model: there is none of that name")
    if options.get("package"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if options.get("dies_loading"):
        sys.exit(3)
    if "fail_load_if" in options and Path(str(options["fail_load_if"])).exists():
        raise OSError("the disk is gone")
    if "gpus" in options:
        torch = types.ModuleType("torch")
        torch.cuda = SimpleNamespace(device_count=lambda: options["gpus"])  # type: ignore[attr-defined]
        sys.modules["torch"] = torch
    return Lengths(options, device)
