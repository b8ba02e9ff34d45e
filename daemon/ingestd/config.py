"""The one reader of files, environment and secrets: from all of them to frozen settings.

The environment is stronger than a secrets directory, which is stronger than the file. An unknown key is refused, also
in the environment, with the nearest known name: a typo that is silently ignored costs a night.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ingestd.environment import DELIMITER, PREFIX, is_ours, layer, secrets_dir, secrets_in
from ingestd.errors import ConfigError
from ingestd.milvus.client import Config as MilvusConfig
from ingestd.milvus.schema import FieldConfig, VectorConfig, name_faults
from ingestd.plugins import Kind, Plugin, faults, nearest, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic.fields import FieldInfo

DEFAULT_FILE = Path("config/ingestd.toml")
NO_STATE = Path(os.devnull) / "state"
"""Where nothing is, and nothing can be made."""
BUILT_IN_EXTRACTORS = ("text", "markdown", "html", "json", "csv")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
"""Of a source, which begins its documents' ids and is in every row, and of what else gets its name here."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the last port
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8321")
    return value


def _no_folder(value: object) -> object:
    return None if value == "" else value  # Path("") would be the working directory


class HttpSettings(_Section):
    """Health, metrics and the status page."""

    listen: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1:8321", description="HOST:PORT; port 0: any free one."
    )


class LogSettings(_Section):
    """Logs go to standard error."""

    level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")
    format: str = Field("auto", pattern="^(auto|json|text)$", description="auto: JSON where it is no terminal.")


class LimitSettings(_Section):
    """Bounds on one document, and on what is under way at once."""

    max_bytes: int = Field(32 * 1024 * 1024, ge=1, description="The largest document, in bytes.")
    max_text: int = Field(20_000_000, ge=1, description="The longest text of a document, in characters.")
    max_chunks: int = Field(20_000, ge=1, description="The most chunks of a document.")
    in_flight_events: int = Field(1_000, ge=1, description="The most events of a collection that are under way.")
    in_flight_bytes: int = Field(256 * 1024 * 1024, ge=1, description="The most bytes that they may take.")


class ExtractionSettings(_Section):
    """The processes that read untrusted bytes."""

    workers: int = Field(
        2, ge=1, le=64, description="Documents read at a time, a process each; as many again for those that take long."
    )
    memory_bytes: int = Field(1024 * 1024 * 1024, ge=128 * 1024 * 1024, description="The most memory of one process.")
    cpu_seconds: float = Field(30.0, gt=0, description="The most processor time for one document.")
    wall_seconds: float = Field(60.0, gt=0, description="The most time for one document.")


class EmbeddingSettings(_Section):
    """How rows are gathered for the models."""

    window: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="The most chunks that go through the models at a time; not set: 512, and for a model behind an API "
        "as many as fill several of its requests.",
    )
    linger_seconds: float | None = Field(
        None,
        ge=0,
        le=10,
        description="How long an incomplete window waits for more; not set: 0.005, and for a model behind an API, "
        "whose requests count, 0.05.",
    )
    timeout_seconds: float = Field(300.0, gt=0, description="The longest that a model may take for a window.")
    load_timeout_seconds: float = Field(600.0, gt=0, description="The longest that a model may take to load.")
    cache_bytes: int = Field(
        0,
        ge=0,
        description="The most bytes of vectors that are kept in the state directory, so that a text that comes again, "
        "in any document, is not embedded again; 0: none.",
    )


class RetrySettings(_Section):
    """The retry queue."""

    attempts: int = Field(8, ge=1, description="The most tries of one event.")
    first_seconds: float = Field(30.0, gt=0, description="The longest first delay; it doubles from try to try.")
    most_seconds: float = Field(1800.0, gt=0, description="The longest delay.")


class DeadLetterSettings(_Section):
    """What failed for good is kept in the state directory."""

    keep_bytes: int = Field(1024 * 1024, ge=0, description="The largest original that is kept; beyond it a reference.")
    total_bytes: int = Field(1024 * 1024 * 1024, ge=0, description="The most bytes of originals that are kept.")
    most: int = Field(100_000, ge=1, description="The most dead letters; when they are there, the pipeline holds.")
    halt_letters: int = Field(
        200, ge=0, le=10_000, description="A source is halted when so many of its documents in a row failed; 0: never."
    )
    halt_share: float = Field(0.9, ge=0.01, le=1, description="The share of documents in a row that those have to be.")


class ShutdownSettings(_Section):
    """How the daemon ends."""

    drain_seconds: float = Field(25.0, ge=0, description="How long SIGTERM and SIGHUP let begun documents finish.")


class CollectionSettings(_Section):
    """A Milvus collection that the daemon manages."""

    chunker: dict[str, Any] = Field(default_factory=lambda: {"type": "stable"}, description="How texts are cut.")
    tokenizer: str | None = Field(
        None, description="The embedder whose tokenizer counts; default: the one with the least room."
    )
    vectors: dict[str, VectorConfig] = Field(min_length=1, description="The vector fields, and what fills them.")
    fields: dict[str, FieldConfig] = Field(default_factory=dict, description="Metadata with columns of their own.")
    shared_ids: bool = Field(default=False, description="Whether two sources may write the same document.")

    def embedders(self) -> tuple[str, ...]:
        """Return the embedders that fill its vectors, in the order of their first use."""
        return tuple(dict.fromkeys(vector.embedder for vector in self.vectors.values() if vector.embedder is not None))


class _Layer(PydanticBaseSettingsSource):
    """A tree of settings, as one of the sources that pydantic-settings lays over one another."""

    def __init__(self, settings_cls: type[BaseSettings], tree: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._tree = tree

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - theirs
        """Return a key's value, the key, and that nothing is left to decode in it."""
        return self._tree.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the tree."""
        return self._tree


class _Sum(_Layer):
    """The weakest source: it sets nothing, and takes note of what the others set together."""

    def __call__(self) -> dict[str, Any]:
        """Take note."""
        self._tree.update(self.current_state)
        return {}


class _File(BaseSettings):
    """What can be set, before the plug-ins have looked at their tables."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    state_dir: Annotated[Path | None, BeforeValidator(_no_folder)] = Path("var/state")
    milvus: MilvusConfig = Field(default_factory=MilvusConfig)
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    limits: LimitSettings = LimitSettings()
    extraction: ExtractionSettings = ExtractionSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    retries: RetrySettings = RetrySettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    extractors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    embedders: dict[str, dict[str, Any]] = Field(default_factory=dict)
    collections: dict[str, CollectionSettings] = Field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = Field(default_factory=dict)

    layers: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Trees of settings, the strongest first."""
    merged: ClassVar[dict[str, Any]] = {}
    """Takes what they set together, also where it turns out to be wrong."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use our layers alone. No ``.env``: a file that nobody named decides nothing."""
        del init_settings, env_settings, dotenv_settings, file_secret_settings
        return (*(_Layer(settings_cls, tree) for tree in cls.layers), _Sum(settings_cls, cls.merged))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that was configured, checked, with each plug-in's own settings in it."""

    state_dir: Path
    stateless: bool
    """Whether this is a member without a disk: ``state_dir`` is a place where nothing is."""
    milvus: MilvusConfig
    http: HttpSettings
    log: LogSettings
    limits: LimitSettings
    extraction: ExtractionSettings
    embedding: EmbeddingSettings
    retries: RetrySettings
    dead_letters: DeadLetterSettings
    shutdown: ShutdownSettings
    extractors: dict[str, Plugin]
    embedders: dict[str, Plugin]
    collections: dict[str, CollectionSettings]
    chunkers: dict[str, Plugin]
    """By collection."""
    sources: dict[str, Plugin]

    def used_embedders(self) -> list[str]:
        """Return the embedders that a collection uses, in the order of their first use."""
        return list(dict.fromkeys(name for collection in self.collections.values() for name in collection.embedders()))


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration.

    Args:
        path: The file; None: ``$INGESTD_CONFIG``, then ``config/ingestd.toml``. Where nobody named a file and there
            is none, the environment or the secrets may say it all.
        environment: None: ``os.environ``.

    Raises:
        ConfigError: One line per fault, each with the key's path.
    """
    names = os.environ if environment is None else environment
    found: list[str] = []
    variables = {name: text for name, text in names.items() if is_ours(name)}
    directory = secrets_dir(names, found)
    secrets = secrets_in(directory, found) if directory is not None else {}
    named = path or (Path(names[f"{PREFIX}CONFIG"]) if names.get(f"{PREFIX}CONFIG") else None)
    table = _read(named or DEFAULT_FILE, needed=named is not None or not (variables or secrets))
    found += _unknown_names(variables, "the environment")
    found += _unknown_names(secrets, f"the secrets directory {directory}")
    upper = layer(_known_names(variables), _File, [table])
    lower = layer(_known_names(secrets), _File, [table, upper.tree])

    class File(_File):
        layers = (upper.tree, lower.tree, table)
        merged: ClassVar[dict[str, Any]] = {}

    raw: _File | None = None
    try:
        raw = File()
    except ValidationError as error:
        found += faults(error, "", _File)
    plugins = _Plugins(File.merged)
    found += [
        *upper.faults,
        *lower.faults,
        *plugins.faults,
        *_wrong_names(File.merged),
        *_dangling(plugins),
        *_clashing(plugins),
    ]
    stateless = raw is not None and raw.state_dir is None
    if raw is not None and stateless:
        found += _needs_a_state(raw, plugins)
    if raw is None or found:
        origins = lower.origins | upper.origins
        raise ConfigError(*dict.fromkeys(_with_origin(fault, origins) for fault in found))
    same = {field.name: getattr(raw, field.name) for field in fields(Settings) if field.name in _File.model_fields}
    same |= {"extractors": plugins.extractors, "embedders": plugins.embedders, "stateless": stateless}
    if stateless:
        same["state_dir"] = NO_STATE
    return Settings(**same | {"sources": plugins.sources, "chunkers": plugins.chunkers})


def _needs_a_state(raw: _File, plugins: _Plugins) -> Iterator[str]:
    """Yield a fault for each part of a configuration without a state directory that needs one."""
    why = "state_dir is empty"
    if raw.milvus.path is not None:
        yield f"milvus.uri: a Milvus Lite needs a state directory, and {why}"
    if raw.embedding.cache_bytes:
        yield f"embedding.cache_bytes: vectors are kept in the state directory, and {why}"
    for name, plugin in plugins.sources.items():
        if not getattr(plugin.config, "shared", False):
            yield f"sources.{name}: a {plugin.type} source remembers what it has seen in the state directory, and {why}"
        elif getattr(plugin.config, "dead_letter_topic", None) is None:
            yield f"sources.{name}.dead_letter_topic: name a topic: {why}, and dead letters have to be somewhere"


def _read(path: Path, *, needed: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if not needed:
            return {}
        raise ConfigError(f"{path}: there is no such file; name one with --config FILE or ${PREFIX}CONFIG") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no valid TOML: {error}") from error


def _section(name: str) -> str:
    return name[len(PREFIX) :].partition(DELIMITER)[0].lower()


def _known_names(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if _section(name) in _File.model_fields}


def _unknown_names(names: Iterable[str], where: str) -> Iterator[str]:
    """Yield a fault for each name with our prefix that begins with no key."""
    sections = sorted(_File.model_fields)
    for name in sorted(names):
        if _section(name) not in sections:
            yield f"{name}: unknown name in {where}{nearest(_section(name), sections)}"


def _with_origin(fault: str, origins: Mapping[str, str]) -> str:
    """Return a fault with the variable or the secret that its key's value comes from, if one does."""
    where, separator, rest = fault.partition(": ")
    keys = [key for key in origins if where == key or where.startswith(f"{key}.")]
    return f"{where} ({origins[max(keys, key=len)]}){separator}{rest}" if keys else fault


def _tables(value: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - not checked yet
    """Return the tables in a table; what is none has a fault of its own."""
    items = value.items() if isinstance(value, dict) else ()
    return {name: table for name, table in items if isinstance(table, dict)}


class _Plugins:
    """The plug-ins, each with its table checked; what is wrong with the rest of the settings hides none of theirs."""

    def __init__(self, merged: Mapping[str, Any]) -> None:
        self.faults: list[str] = []
        self.tables = {
            name: _tables(merged.get(name)) for name in ("extractors", "embedders", "collections", "sources")
        }
        extractors = {name: dict[str, Any]() for name in BUILT_IN_EXTRACTORS} | self.tables["extractors"]
        self.extractors = self._parsed(
            "extractors", {name: {"type": name} | table for name, table in extractors.items()}
        )
        self.embedders = self._parsed("embedders", self.tables["embedders"])
        self.sources = self._parsed("sources", self.tables["sources"])
        chunkers = {}
        for name, collection in self.tables["collections"].items():
            chunker = collection.get("chunker", {})
            if isinstance(chunker, dict):
                chunkers[name] = {"type": "stable"} | chunker
        self.chunkers = self._parsed("chunkers", chunkers)

    def _parsed(self, kind: Kind, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Plugin]:
        plugins = {}
        for name, table in tables.items():
            path = f"collections.{name}.chunker" if kind == "chunkers" else f"{kind}.{name}"
            try:
                plugins[name] = parse(kind, path, table)
            except ConfigError as error:
                self.faults.extend(error.faults)
        return plugins


def _wrong_names(merged: Mapping[str, Any]) -> Iterator[str]:
    """Yield a fault for each name that documents, rows or Milvus could not carry."""
    for section in ("extractors", "embedders", "sources"):
        for name in _tables(merged.get(section)):
            if not _NAME.fullmatch(name):
                rule = "at most 255 of A-Z, a-z, 0-9, _, - and ., with no - or . first"
                yield f"{section}.{json.dumps(name)}: a name has {rule}"
    collections = _tables(merged.get("collections"))
    for name, collection in collections.items():
        vectors, declared = _tables(collection.get("vectors")), _tables(collection.get("fields"))
        yield from name_faults(f"collections.{name}", name, vectors, declared)
    if not collections:
        yield "collections: none is configured; documents go into a [collections.NAME]"


def _dangling(plugins: _Plugins) -> Iterator[str]:
    """Yield a fault for each name that refers to nothing."""
    embedders, collections = sorted(plugins.tables["embedders"]), sorted(plugins.tables["collections"])
    for name, collection in plugins.tables["collections"].items():
        wishes = {
            f"vectors.{field}.embedder": vector.get("embedder")
            for field, vector in _tables(collection.get("vectors")).items()
        }
        for key, wish in (wishes | {"tokenizer": collection.get("tokenizer")}).items():
            if isinstance(wish, str) and wish not in embedders:
                yield f"collections.{name}.{key}: there is no embedder {wish!r}{nearest(wish, embedders)}"
    for name, table in plugins.tables["sources"].items():
        plugin = plugins.sources.get(name)
        target = table.get("collection") if plugin is None else getattr(plugin.config, "collection", None)
        if isinstance(target, str) and target not in collections:
            yield f"sources.{name}.collection: there is no collection {target!r}{nearest(target, collections)}"


def _clashing(plugins: _Plugins) -> Iterator[str]:
    """Yield a fault for each two sources that do not go together, by their own word."""
    for name, plugin in plugins.sources.items():
        clash = getattr(plugin.config, "clash", None)
        for other, beside in plugins.sources.items():
            why = clash(beside.config) if clash is not None and other != name else None
            if why is not None:
                yield f"sources.{name}: does not go with sources.{other}: {why}"


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values, with every secret masked: what ``config show`` prints."""

    def plain(value: Any) -> Any:  # noqa: ANN401 - walks whatever the settings hold
        if isinstance(value, SecretStr):
            return "**********" if value.get_secret_value() else ""
        if isinstance(value, Plugin):
            return {"type": value.type, **plain(value.config)}
        if isinstance(value, BaseModel):
            more = value.model_extra or {}  # such as an index's parameters
            return {key: plain(getattr(value, key)) for key in [*type(value).model_fields, *more]}
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            items = [plain(inner) for inner in value]
            return sorted(items, key=str) if isinstance(value, set | frozenset) else items
        return str(value) if isinstance(value, Path) else value

    tree: dict[str, Any] = {field.name: plain(getattr(settings, field.name)) for field in fields(settings)}
    if tree.pop("stateless"):
        tree["state_dir"] = ""
    chunkers = tree.pop("chunkers")
    for name, chunker in chunkers.items():
        tree["collections"][name]["chunker"] = chunker
    return tree
