"""The child's side: load models, embed texts, one request at a time, until the pipe ends.

Owns the models of one device and nothing else; when to start it, how long to wait for it and what its death means
is decided in ``pool``. Exceptions do not travel over the pipe: an answer says what became of the request, so that
neither side depends on the other's being able to unpickle a library's exception. A request a thread was turned
down: two threads on one tokenizer with different truncation cross over silently.
"""

from __future__ import annotations

import gc
import signal
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from ingestd.errors import ConfigError, DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.children import Pipe
    from ingestd.devices import Model
    from ingestd.model import ModelInfo, Role, VectorKind, Vectors

PROBE = "The wing of a bird is lighter than the wind."
"""A text that any model embeds: if this one fails too, it is not the texts."""

_EXTRA = frozenset(
    {"torch", "sentence_transformers", "transformers", "FlagEmbedding", "model2vec", "safetensors", "tokenizers"}
)


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model and keep it under ``key``. Answered by ModelInfo."""

    key: int
    name: str
    module: str
    options: Mapping[str, object]
    device: str


@dataclass(frozen=True, slots=True)
class Embed:
    """Embed texts with the model under ``key``. Answered by one block of vectors a kind."""

    key: int
    name: str
    texts: Sequence[str]
    role: Role
    kinds: AbstractSet[VectorKind]


@dataclass(frozen=True, slots=True)
class Done:
    """The request's answer."""

    value: ModelInfo | Mapping[VectorKind, Vectors]
    cut: int = 0
    """How many of the texts were longer than the model sees."""
    gpus: int = 0
    """Of a Load: how many GPUs torch sees; 0 where the model did without torch."""


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The model cannot be loaded: a ConfigError."""

    faults: Sequence[str]


@dataclass(frozen=True, slots=True)
class BadText:
    """One of the texts cannot be embedded; the model is well: a DocumentError."""

    message: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The model embeds nothing any more (a CUDA error leaves its context unusable): replace this process."""

    message: str


Request: TypeAlias = Load | Embed
Reply: TypeAlias = Done | Misconfigured | BadText | Broken


def serve(pipe: Pipe) -> None:
    """Answer requests until the daemon lets go. Ctrl-C and SIGTERM are the daemon's to act upon."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    models: dict[int, Model] = {}
    while True:
        request = pipe.recv()
        if isinstance(request, Load):
            # Of what is made while a library is imported nothing goes away: to look for garbage takes a sixth of that.
            gc.disable()
            reply = _load(request, models)
            gc.freeze()
            gc.enable()
            pipe.send(reply)
        elif isinstance(request, Embed):
            pipe.send(_embed(request, models[request.key]))
        else:
            raise TypeError(f"a request of type {type(request).__name__}")


def _load(request: Load, models: dict[int, Model]) -> Reply:
    try:
        module = import_module(request.module)
        model: Model = module.load(request.options, request.device)
        info = model.info()
    except ConfigError as error:
        return Misconfigured([f"embedders.{request.name}: {fault}" for fault in error.faults])
    except ImportError as error:
        return Misconfigured([f"embedders.{request.name}: {_missing(error)}"])
    except Exception as error:  # noqa: BLE001 - whatever a library raises here, the model cannot be loaded
        traceback.print_exc()  # to the daemon's standard error: the message below is for people
        reason = f"{type(error).__name__}: {error}"
        return Misconfigured([f"embedders.{request.name}: the model cannot be loaded on {request.device} ({reason})"])
    models[request.key] = model
    torch = sys.modules.get("torch")
    return Done(info, gpus=torch.cuda.device_count() if torch is not None else 0)


def _missing(error: ImportError) -> str:
    top = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and top in _EXTRA:
        return f"the package {top} is missing: pip install 'milvus-ingestd[local]'"
    return f"a package that the model needs cannot be imported ({error})"


def _cuts(model: Model) -> int:
    cuts: Callable[[], int] = getattr(model, "cuts", lambda: 0)
    return cuts()


def _embed(request: Embed, model: Model) -> Reply:
    before = _cuts(model)
    try:
        vectors = model.embed(request.texts, request.role, request.kinds)
        return Done(vectors, _cuts(model) - before)
    except DocumentError as error:
        return BadText(f"{request.name}: {error}")
    except Exception as error:  # noqa: BLE001 - the verdict on it is below
        said = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    # Nobody foresaw this one. Whether it is the texts or the model, a text that is known to be good tells.
    try:
        model.embed((PROBE,), request.role, request.kinds)
    except Exception:  # noqa: BLE001 - any failure here says the same
        return Broken(f"{request.name} fails on every text ({said})")
    return BadText(f"{request.name}: the model failed on these texts alone ({said})")
