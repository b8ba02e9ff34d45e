"""Whether a daemon would start with the configuration that is there now, while another one runs with an older one.

Runs in a child process of the running daemon (``reload`` says why). It goes through what a start goes through, and what
would end that with exit code 78 is a fault. What a start waits for (Milvus, brokers) is none, and neither is what only
a start can tell: a model that is not loaded yet is not loaded a second time beside the first one, where there may be no
room for it. Nothing is changed, and the running daemon's own address, state and Milvus Lite are known for its own.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ingestd import config
from ingestd.cli.check import collection_check, makeable
from ingestd.cli.common import needs_sources
from ingestd.errors import ConfigError, UnavailableError
from ingestd.flow import Scope
from ingestd.milvus.lite import running
from ingestd.model import Fingerprints, ModelInfo, VectorKind
from ingestd.ops import log
from ingestd.ops.http import bind
from ingestd.parts import NoPast, SystemClock, build_embedder, extraction_of, keyed, milvus, tokenizer_of
from ingestd.store.connections import connect_reader
from ingestd.store.lock import LOCK, in_use
from ingestd.store.migrations import schema_version
from ingestd.store.opening import DATABASE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.children import Pipe
    from ingestd.config import Settings
    from ingestd.model import Check, Role, Vectors
    from ingestd.ports import Source


class Running(NamedTuple):
    """What the running daemon has, in plain values: it may be another version of this program."""

    listen: str
    state_dir: str | None
    """Absolute; None: it has none of its own."""
    milvus_path: str | None
    """The folder of its Milvus Lite, absolute; None: it has none."""
    address_file: str
    """Says where that one is."""
    models: Mapping[str, Mapping[str, Any]]
    """What those that are loaded are, by the identity of their settings."""


@dataclass(slots=True)
class Findings:
    """What is known of a configuration."""

    faults: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @contextmanager
    def look(self, at: str) -> Iterator[None]:
        """Look at something: what is wrong with it is a fault, and what does not answer is not known."""
        try:
            yield
        except ConfigError as error:
            self.faults += [fault for fault in error.faults if fault not in self.faults]
        except UnavailableError as error:
            self.unknown.append(f"{at}: {error}")


def serve(pipe: Pipe) -> None:
    """Answer the daemon's one question."""
    log.configure("error")  # what libraries warn of is in the answer, or no news
    question = cast("dict[str, Any]", pipe.recv())
    path = question.pop("config_file")
    parts = question.pop("parts", False)  # a daemon of an older version takes the first answer for the last
    daemon = Running(**{name: question[name] for name in Running._fields})
    found = Findings()
    for over in look(None if path is None else Path(path), daemon, found):
        if over or parts:
            pipe.send({"faults": found.faults, "unknown": found.unknown, "over": over})


def look(config_file: Path | None, daemon: Running, found: Findings) -> Iterator[bool]:
    """Look at a configuration; yield after each part whether that is all: what is here, Milvus, source by source.

    Args:
        config_file: As for ``config.load``.
        daemon: The one that runs.
        found: Takes what is found.
    """
    settings = None
    with found.look("configuration"):
        settings = config.load(config_file)
        needs_sources(settings)
    if settings is None or found.faults:
        yield True
        return
    infos, sources = _here(settings, daemon, found)
    yield False
    with found.look("milvus.uri"):
        _milvus(settings, infos, daemon, found)
    for name, source in sources.items():
        yield False
        with found.look(f"sources.{name}"):
            found.unknown += [f"{check.name}: {check.detail}" for check in source.probe() if not check.ok]
    yield True


def _here(settings: Settings, daemon: Running, found: Findings) -> tuple[dict[str, ModelInfo], dict[str, Source]]:
    """Look at what needs nobody's answer; return what is known of the models, and the sources."""
    with found.look("http.listen"):
        _listen(settings, daemon)
    with found.look("state_dir"):
        _state(settings, daemon)
    with found.look("extractors"):
        extraction_of(settings).close()
    for name, chunker in settings.chunkers.items():
        with found.look(f"collections.{name}"):
            chunker.build(tokenizer_of(settings, name))
    infos: dict[str, ModelInfo] = {}
    for name in settings.used_embedders():
        with found.look(f"embedders.{name}"):
            infos[name] = _info(settings, name, daemon)
    scope = Scope(SystemClock(), NoPast(), settings.limits.max_bytes, Fingerprints("", ""))
    sources = {}
    for name, plugin in settings.sources.items():
        with found.look(f"sources.{name}"):
            sources[name] = plugin.build(name, scope)
    return infos, sources


def _listen(settings: Settings, daemon: Running) -> None:
    """Raise ConfigError where the address is another one, and cannot be had."""
    wanted, has = settings.http.listen, daemon.listen
    host, _, port = wanted.rpartition(":")
    if port == has.rpartition(":")[2] != "0":
        wanted = f"{host}:0"  # the daemon's own port: it is free when the daemon has ended
    bind(wanted).close()


def _state(settings: Settings, daemon: Running) -> None:
    """Raise ConfigError where the state directory cannot be had."""
    if settings.stateless:
        return
    folder = settings.state_dir.absolute()
    if str(folder) != daemon.state_dir:
        if (folder / LOCK).exists() and in_use(folder):
            raise ConfigError(f"state_dir: {folder} is in use by another process: stop that one, or set another one")
        check = makeable("state_dir", folder, "state_dir")
        if not check.ok:
            raise ConfigError(f"state_dir: {check.detail}; {check.cure}")
    if (folder / DATABASE).exists():
        try:
            with closing(connect_reader(folder / DATABASE)) as connection:
                schema_version(connection, folder / DATABASE)
        except sqlite3.Error as error:
            raise UnavailableError("state", f"{folder / DATABASE} cannot be read now ({error})") from error


def _info(settings: Settings, name: str, daemon: Running) -> ModelInfo:
    """Return what a model is, where that is known without loading it a second time.

    Raises:
        ConfigError: There is no such model.
        UnavailableError: It is not known.
    """
    plugin = settings.embedders[name]
    embedder = build_embedder(settings, name, _NoWorkers())
    said = daemon.models.get(plugin.identity().hex())
    if said is None:
        with keyed(name):
            plugin.config.tokenizer()  # type: ignore[attr-defined]  # reads what it has of the model's files
        return embedder.info()
    rest = dict(said)
    return ModelInfo(kinds=frozenset(map(VectorKind, rest.pop("kinds"))), **rest)


def _milvus(settings: Settings, infos: Mapping[str, ModelInfo], daemon: Running, found: Findings) -> None:
    """Compare the collections whose models are known."""
    path = settings.milvus.path
    known = [name for name in settings.collections if _models_of(settings, name) <= infos.keys()]
    with ExitStack() as stack:
        if path is not None and not path.exists():
            # Looking at a Milvus Lite starts it, and starting it makes its folder.
            check = makeable("milvus", path, "milvus.uri")
            if not check.ok:
                raise ConfigError(f"milvus.uri: {check.detail}; {check.cure}")
            connection = None
        else:
            own = path is not None and str(path.absolute()) == daemon.milvus_path
            if own and running(Path(daemon.address_file)) is None:
                raise UnavailableError("milvus", "Milvus Lite does not answer now: the collections are not compared")
            connection = stack.enter_context(milvus(settings, Path(daemon.address_file) if own else None))
        for name in known:
            check = collection_check(settings, name, infos, connection)
            if not check.ok:
                found.faults.append(f"{check.name}: {check.detail}")


def _models_of(settings: Settings, collection: str) -> set[str]:
    return set(settings.collections[collection].embedders())


class _NoWorkers:
    """A pool of device workers that starts none (``ports.DevicePool``)."""

    def load(self, name: str, module: str, options: Mapping[str, object], device: str | Sequence[str]) -> _Unloaded:
        """Return a model that nothing can be asked of."""
        del module, options, device
        return _Unloaded(name)

    def checks(self) -> Sequence[Check]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Do nothing."""


class _Unloaded:
    """A model that is not loaded (``ports.Device``)."""

    texts_cut = 0

    def __init__(self, name: str) -> None:
        self._name = name

    def info(self) -> ModelInfo:
        """Say that it is not known."""
        raise self._unknown()

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Say that it is not known."""
        del texts, role, kinds
        raise self._unknown()

    def _unknown(self) -> UnavailableError:
        return UnavailableError(
            self._name, "the model is loaded when the daemon begins again, and only then compared with its collections"
        )
