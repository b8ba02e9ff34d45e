"""One model on several devices: a copy in each one's worker, and each request to whichever has the least to do.

Copies are whole: models that are worth running here fit a device, and a request that is split over devices waits for
the slowest of them. So several threads ask, each for a batch of its own.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from ingestd.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.devices.pool import Recipe, Worker
    from ingestd.model import ModelInfo, Role, VectorKind, Vectors

REST = 30.0
"""Seconds for which a device that was found to be down is asked last: the others do its work."""

_choosing = threading.Lock()
"""Guards how much each worker has to do: models share workers."""


@dataclass(slots=True)
class Replica:
    """A copy of a model, loaded or to be loaded."""

    worker: Worker
    recipe: Recipe


class LoadedModel:
    """One model in one worker or several: implements ``ports.Device``. Safe to call from several threads.

    Args:
        replicas: Its copies; at least one.
        others: For ``auto``: gets the number of GPUs, and returns the copies for all but the first.
    """

    def __init__(self, replicas: Sequence[Replica], others: Callable[[int], Sequence[Replica]] | None = None) -> None:
        self._replicas = tuple(replicas)
        self._others = others
        self._loading = threading.Lock()
        self.texts_cut = 0
        """How many texts were longer than the model sees."""

    def info(self) -> ModelInfo:
        """Return what the model is, with the number of its copies; the first time, after loading all of them.

        Raises:
            ConfigError: It cannot be loaded, or is not the same on all devices.
            UnavailableError: A worker cannot be started.
            Stopped: The pool is closed.
        """
        with self._loading:
            first = self._replicas[0]
            info = _info(first)
            if self._others is not None:
                self._replicas += tuple(self._others(first.worker.gpus))
                self._others = None
            rest = self._replicas[1:]
            if rest:
                with ThreadPoolExecutor(len(rest), "loading") as pool:
                    for replica, its in zip(rest, pool.map(_info, rest), strict=True):
                        if its.space != info.space:
                            raise ConfigError(
                                f"embedders.{replica.recipe.load.name}: on {its.device} it is another model than on "
                                f"{info.device}: its files changed while they were loaded; start again"
                            )
            return replace(info, replicas=len(self._replicas))

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind.

        Raises:
            DocumentError: The model cannot embed one of the texts; DeadlyError: they killed the worker twice.
            UnavailableError: The worker cannot be started, the model cannot be loaded any more, or it embeds nothing.
            ConfigError: The model cannot be loaded, and never could.
            FatalError: The model was loaded again and is another one now.
            Stopped: The pool is closed.
        """
        with self._chosen() as replica:
            try:
                done = replica.worker.embed(replica.recipe, texts, role, kinds)
            except UnavailableError:
                replica.worker.rests_until = time.monotonic() + REST
                raise
        with _choosing:
            self.texts_cut += done.cut
        return cast("Mapping[VectorKind, Vectors]", done.value)

    @contextmanager
    def _chosen(self) -> Iterator[Replica]:
        """Count a request for the copy that has the least to do, of those that are not known to be down."""
        now = time.monotonic()
        with _choosing:
            replica = min(self._replicas, key=lambda one: (one.worker.rests_until > now, one.worker.requests))
            replica.worker.requests += 1
        try:
            yield replica
        finally:
            with _choosing:
                replica.worker.requests -= 1


def _info(replica: Replica) -> ModelInfo:
    return replica.recipe.info or replica.worker.info(replica.recipe)
