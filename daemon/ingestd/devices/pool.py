"""The daemon's side of the device workers: one process a device, replaced when it dies or hangs.

Owns the processes and the verdicts on their deaths. A batch that killed its worker is tried once more on a new one;
when that dies too, a text that is known to be good is tried on a third: if it goes through, the texts are at fault
(DocumentError; the caller halves to find the one), and if not, the device is (UnavailableError). A pool of worker
threads in the daemon was turned down: a crash or a hang in a CUDA kernel takes its whole process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, cast

from ingestd.children import ChildDied, spawn
from ingestd.devices.replicas import LoadedModel, Replica
from ingestd.devices.worker import PROBE, BadText, Broken, Embed, Load, Misconfigured
from ingestd.errors import ConfigError, DeadlyError, DocumentError, FatalError, Stopped, UnavailableError
from ingestd.model import Check, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.children import Child
    from ingestd.devices.worker import Done, Reply, Request
    from ingestd.model import Role, VectorKind

LOAD_TIMEOUT = 600.0
EMBED_TIMEOUT = 300.0

_ENVIRONMENT = {
    # Read while the libraries are imported, so this is the one moment to say it.
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    # Said aloud, or tokenizers warns. The worker never forks, and one thread cannot feed a GPU.
    "TOKENIZERS_PARALLELISM": "true",
    # OpenMP's threads wait asleep, not spinning: beside a busy neighbour (Milvus Lite, extraction) the spinning ones
    # keep the cores from the one that they wait for. Measured on 2 cores with 6 busy processes: batches 2 to 3 times
    # as fast, single texts 10 times.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What the environment of the daemon does not say otherwise."""


class Pool:
    """All device workers of a daemon. Safe to call from several threads.

    A device is a worker's name as it is configured: models on ``auto`` and on ``cpu`` do not share one, though
    ``auto`` may turn out to be the CPU. What ``auto`` is only torch can tell, and that is in the worker.

    Args:
        load_timeout: Seconds that a model may take to load, its download included.
        embed_timeout: Seconds that one request to embed may take.
        spread: Whether a model is on all of its devices; False: on the first one, which does for a query.
    """

    def __init__(
        self, *, load_timeout: float = LOAD_TIMEOUT, embed_timeout: float = EMBED_TIMEOUT, spread: bool = True
    ) -> None:
        self._timeouts = (load_timeout, embed_timeout)
        self._spread = spread
        self._keys = count()
        self._lock = threading.Lock()
        self._workers: dict[tuple[str, int], Worker] = {}
        self._closed = False

    def load(self, name: str, module: str, options: Mapping[str, object], device: str | Sequence[str]) -> LoadedModel:
        """Return a handle on a model. The workers start and the model is loaded when it is first asked for.

        Args:
            name: The embedder's name.
            module: Has ``load(options, device)``.
            options: Picklable.
            device: ``auto``: all GPUs, or the CPU where there is none; or the devices, which may name one twice.

        Raises:
            Stopped: The pool is closed.
        """
        devices = [device] if isinstance(device, str) else list(device)[: None if self._spread else 1]

        def copies(devices: Sequence[str]) -> list[Replica]:
            # The second "cpu" of a list is another worker than the first, and the one that other models' second is on.
            places = [(device, devices[:at].count(device)) for at, device in enumerate(devices)]
            return [self._copy(name, module, options, *place) for place in places]

        def others(gpus: int) -> list[Replica]:
            return copies([f"cuda:{number}" for number in range(1, gpus)])

        return LoadedModel(copies(devices), others if devices == ["auto"] and self._spread else None)

    def _copy(self, name: str, module: str, options: Mapping[str, object], device: str, place: int) -> Replica:
        with self._lock:
            if self._closed:
                raise Stopped
            worker = self._workers.get((device, place))
            if worker is None:
                shown = f"{device}#{place + 1}" if place else device
                worker = self._workers[device, place] = Worker(shown, *self._timeouts)
            return Replica(worker, Recipe(Load(next(self._keys), name, module, dict(options), device)))

    def checks(self) -> Sequence[Check]:
        """Say how the workers are, one line each, without waiting for any."""
        with self._lock:
            workers = list(self._workers.values())
        return [worker.check() for worker in workers]

    def close(self) -> None:
        """End the workers. Requests that are in flight, and later ones, raise Stopped."""
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
        for worker in workers:  # all are told before any is waited for
            worker.stop()
        for worker in workers:
            worker.close()


@dataclass(slots=True)
class Recipe:
    """How to load a model on a device, and what it was when that first went well."""

    load: Load
    info: ModelInfo | None = None


@dataclass(slots=True)
class _Process:
    """A running worker and the models that are loaded in it."""

    child: Child
    models: dict[int, str] = field(default_factory=dict)
    """What people see of each, by key."""


class Worker:
    """One device's worker through all its processes. ``_turn`` serialises requests; ``_state`` is held for moments."""

    def __init__(self, device: str, load_timeout: float, embed_timeout: float) -> None:
        self.name = f"device:{device}"
        self._load_timeout = load_timeout
        self._embed_timeout = embed_timeout
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._process: _Process | None = None
        self._stopping = False
        self._deaths = 0
        self._fault = ""
        """Why there is no process, when there should be one."""
        self.gpus = 0
        """How many GPUs there are, as its libraries see it; known once a model was loaded."""
        self.requests = 0
        """How many requests it has to do."""
        self.rests_until = 0.0
        """Until when others are asked first, by the monotonic clock."""

    def info(self, recipe: Recipe) -> ModelInfo:
        """Return what a model is, loaded if need be."""
        with self._turn:
            self._ready(recipe)
        return cast("ModelInfo", recipe.info)

    def embed(self, recipe: Recipe, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Done:
        """Return the vectors, by another process if need be; see ``replicas.LoadedModel.embed``."""
        request = Embed(recipe.load.key, recipe.load.name, tuple(texts), role, frozenset(kinds))
        with self._turn:
            for _ in range(2):
                with contextlib.suppress(ChildDied):
                    return self._vectors(recipe, request)
            reason = self._fault
            try:
                self._vectors(recipe, replace(request, texts=(PROBE,)))
            except (ChildDied, DocumentError) as error:
                said = f"{recipe.load.name}: the device worker dies on every text ({error})"
                raise UnavailableError(self.name, said) from error
        raise DeadlyError(
            f"{recipe.load.name}: the texts killed the device worker twice, where a plain sentence did not ({reason})"
        )

    def check(self) -> Check:
        """Say how it is, without waiting."""
        with self._state:
            process, deaths, fault = self._process, self._deaths, self._fault
        if process is None and not fault:
            return Check(self.name, ok=True, detail="not started: nothing was embedded yet")
        if process is None or not process.child.alive:
            detail = fault or f"process {process.child.pid if process else 0} is gone"
            return Check(self.name, ok=False, detail=detail, cure="it is started again with the next text")
        models = ", ".join(process.models.values()) or "loading"
        return Check(self.name, ok=True, detail=f"process {process.child.pid}, {models}; {deaths} ended before it")

    def stop(self) -> None:
        """Start no process any more, and end the one that is there. A request in flight raises Stopped."""
        with self._state:
            self._stopping = True
            process = self._process
        if process is not None:
            process.child.kill()

    def close(self) -> None:
        """After ``stop``: wait for the request in flight to unwind, and let go of the pipes."""
        with self._turn:
            if self._process is not None:
                self._process.child.close()

    def _vectors(self, recipe: Recipe, request: Embed) -> Done:
        process = self._ready(recipe)
        return self._ask(process, request, self._embed_timeout)

    def _ready(self, recipe: Recipe) -> _Process:
        """Return a running process with the model in it."""
        process = self._running()
        if recipe.load.key in process.models:
            return process
        before = recipe.info
        try:
            done = self._ask(process, recipe.load, self._load_timeout)
        except (ChildDied, ConfigError) as error:
            if before is not None:
                said = f"{recipe.load.name}: the model cannot be loaded again ({error})"
                raise UnavailableError(self.name, said) from error
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"embedders.{recipe.load.name}: the device worker ended while it loaded the model ({error}): "
                "is there enough memory, and does the device work?"
            ) from error
        info, self.gpus = cast("ModelInfo", done.value), done.gpus
        if before is not None and before.space != info.space:
            raise FatalError(
                f"{recipe.load.name}: the model's files changed under the running daemon: after loading them again its "
                "vectors would be of another space"
            )
        recipe.info = info
        process.models[recipe.load.key] = f"{recipe.load.name} ({info.dtype} on {info.device})"
        return process

    def _running(self) -> _Process:
        """Return the process, a new one if there is none or it died since."""
        process = self._process
        if process is not None and not process.child.alive:
            self._bury(process, f"ended with status {process.child.returncode} between two requests")
            process = None
        with self._state:
            if self._stopping:
                raise Stopped
            if process is None:
                try:
                    environment = {key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()}
                    child = spawn("ingestd.devices.worker:serve", name=self.name, env=environment)
                except OSError as error:
                    self._fault = f"the worker cannot be started: {error}"
                    raise UnavailableError(self.name, self._fault) from error
                process = self._process = _Process(child)
                self._fault = ""
        return process

    def _ask(self, process: _Process, request: Request, timeout: float) -> Done:
        """Return the worker's answer.

        Raises:
            ChildDied: The worker died, hung, or is of no use any more; it is gone.
            ConfigError, DocumentError: As the worker says.
        """
        try:
            with _deadline(process.child, timeout):
                reply = _usable(cast("Reply", process.child.request(request, None)))
        except ChildDied as death:
            self._bury(process, str(death))
            if self._stopping:
                raise Stopped from None
            raise
        if isinstance(reply, Misconfigured):
            raise ConfigError(*reply.faults)
        if isinstance(reply, BadText):
            raise DocumentError(reply.message)
        return reply

    def _bury(self, process: _Process, reason: str) -> None:
        process.child.kill()
        process.child.close()
        with self._state:
            self._process = None
            self._deaths += 1
            self._fault = reason


def _usable(reply: Reply) -> Done | Misconfigured | BadText:
    """Return the answer of a worker that can go on; one that cannot is as good as dead."""
    if isinstance(reply, Broken):
        raise ChildDied(reply.message)
    return reply


@contextlib.contextmanager
def _deadline(child: Child, seconds: float) -> Iterator[None]:
    """End the child when the time is over: also while it does not even read the request.

    Raises:
        ChildDied: That is why.
    """
    expired = threading.Event()

    def end() -> None:
        expired.set()
        child.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except ChildDied as death:
        if expired.is_set():
            raise ChildDied(f"{child.name} did not answer within {seconds:g} s and was ended") from death
        raise
    finally:
        timer.cancel()
