"""The one reader of files, environment and secrets: from all of them to frozen settings.

The environment is stronger than a secrets directory, which is stronger than the file. An unknown key is refused, also
in the environment, with the nearest known name: a typo that is silently ignored costs a night.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ingestd.errors import ConfigError
from ingestd.milvus.client import Config as MilvusConfig
from ingestd.milvus.schema import FieldConfig, VectorConfig  # noqa: TC001 - pydantic reads annotations
from ingestd.plugins import Plugin, faults, nearest, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PREFIX = "INGESTD_"
OURS = frozenset({"CONFIG", "SECRETS_DIR"})
"""Names behind the prefix that are no keys."""
DEFAULT_FILE = Path("config/ingestd.toml")
BUILT_IN_EXTRACTORS = ("text", "markdown", "html", "json", "csv")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004 - the last port
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8321")
    return value


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

    workers: int = Field(1, ge=1, le=64, description="Processes, and the documents read at a time.")
    memory_bytes: int = Field(1024 * 1024 * 1024, ge=128 * 1024 * 1024, description="The most memory of one process.")
    cpu_seconds: float = Field(30.0, gt=0, description="The most processor time for one document.")
    wall_seconds: float = Field(60.0, gt=0, description="The most time for one document.")


class EmbeddingSettings(_Section):
    """How rows are gathered for the models."""

    window: int = Field(512, ge=1, le=65536, description="The most chunks that go through the models at a time.")
    linger_seconds: float = Field(0.05, ge=0, le=10, description="How long an incomplete window waits for more.")
    timeout_seconds: float = Field(300.0, gt=0, description="The longest that a model may take for a window.")
    load_timeout_seconds: float = Field(600.0, gt=0, description="The longest that a model may take to load.")


class RetrySettings(_Section):
    """The retry queue."""

    attempts: int = Field(8, ge=1, description="The most tries of one event.")
    first_seconds: float = Field(15.0, gt=0, description="The longest first delay; it doubles from try to try.")
    most_seconds: float = Field(1800.0, gt=0, description="The longest delay.")


class DeadLetterSettings(_Section):
    """What failed for good is kept in the state directory."""

    keep_bytes: int = Field(1024 * 1024, ge=0, description="The largest original that is kept; beyond it a reference.")
    total_bytes: int = Field(1024 * 1024 * 1024, ge=0, description="The most bytes of originals that are kept.")
    most: int = Field(100_000, ge=1, description="The most dead letters; when they are there, the pipeline holds.")


class ShutdownSettings(_Section):
    """How the daemon ends."""

    drain_seconds: float = Field(25.0, ge=0, description="How long SIGTERM lets begun documents finish.")


class CollectionSettings(_Section):
    """A Milvus collection that the daemon manages."""

    chunker: dict[str, Any] = Field(default_factory=lambda: {"type": "stable"}, description="How texts are cut.")
    tokenizer: str | None = Field(
        None, description="The embedder whose tokenizer counts; default: the one with the least room."
    )
    vectors: dict[str, VectorConfig] = Field(min_length=1, description="The vector fields, and what fills them.")
    fields: dict[str, FieldConfig] = Field(default_factory=dict, description="Metadata with columns of their own.")
    shared_ids: bool = Field(default=False, description="Whether two sources may write the same document.")


class _Secrets(NestedSecretsSettingsSource):
    """The files of a secrets directory that are named like our variables: what else lies there may be of any kind."""

    @staticmethod
    def load_secrets(path: Path) -> dict[str, str]:
        """Return each file's text, without the line end that editors put there."""
        try:
            return {file.name: file.read_text("utf-8").strip() for file in _secret_files(path)}
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"a file of the secrets directory {path} cannot be read: {error}") from error


class _File(BaseSettings):
    """What can be set, before the plug-ins have looked at their tables."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    state_dir: Path = Path("var/state")
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

    table: ClassVar[dict[str, Any]] = {}
    secrets_dir: ClassVar[str | None] = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over secrets over the file. No ``.env``: a file that nobody named decides nothing."""
        del settings_cls, dotenv_settings
        secrets = _Secrets(
            file_secret_settings,
            secrets_dir=cls.secrets_dir,
            secrets_dir_missing="ok",
            secrets_prefix=PREFIX,
            secrets_nested_delimiter="__",
        )
        return env_settings, secrets, init_settings


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that was configured, checked, with each plug-in's own settings in it."""

    state_dir: Path
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
        names = (vector.embedder for collection in self.collections.values() for vector in collection.vectors.values())
        return list(dict.fromkeys(names))


def load(path: Path | None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration.

    Args:
        path: The file; None: ``$INGESTD_CONFIG``, then ``config/ingestd.toml``.
        environment: Only for finding the file and unknown names; pydantic-settings reads ``os.environ``.

    Raises:
        ConfigError: One line per fault, each with the key's path.
    """
    names = os.environ if environment is None else environment
    path = path or Path(names.get(f"{PREFIX}CONFIG") or DEFAULT_FILE)
    table = _read(path)
    directory = _secrets_dir(names)
    unknown = list(_unknown_names(names, "the environment"))
    if directory is not None:
        unknown += _unknown_names(
            [file.name for file in _secret_files(directory)], f"the secrets directory {directory}"
        )

    class File(_File):
        secrets_dir = str(directory) if directory is not None else None

    try:
        raw = File(**table)
    except ValidationError as error:
        raise ConfigError(*unknown, *faults(error, "", _File)) from error
    except SettingsError as error:
        raise ConfigError(*unknown, f"{error}; a whole table in one variable or secret is written as JSON") from error
    if unknown:
        raise ConfigError(*unknown)
    return _resolve(raw)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; name one with --config FILE or ${PREFIX}CONFIG") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no valid TOML: {error}") from error


def _secrets_dir(environment: Mapping[str, str]) -> Path | None:
    ours = environment.get(f"{PREFIX}SECRETS_DIR")
    if ours and not Path(ours).is_dir():
        raise ConfigError(f"{PREFIX}SECRETS_DIR: there is no directory {ours}")
    for candidate in (ours, environment.get("CREDENTIALS_DIRECTORY"), "/run/secrets"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


def _secret_files(directory: Path) -> list[Path]:
    try:
        return sorted(file for file in directory.iterdir() if file.name.upper().startswith(PREFIX) and file.is_file())
    except OSError as error:
        raise ConfigError(f"the secrets directory {directory} cannot be read: {error}") from error


def _unknown_names(names: Iterable[str], where: str) -> Iterator[str]:
    """Yield a fault for each name with our prefix that is no key: pydantic-settings lets those pass."""
    sections = sorted(_File.model_fields)
    for name in sorted(names):
        if not name.upper().startswith(PREFIX) or name[len(PREFIX) :].upper() in OURS:
            continue
        section, inner, _ = name[len(PREFIX) :].lower().partition("__")
        if section not in sections:
            yield f"{name}: unknown name in {where}{nearest(section, sections)}"
        elif inner and _File.model_fields[section].annotation is Path:
            yield f"{name}: unknown name in {where}: {section} is no table"


def _resolve(raw: _File) -> Settings:
    """Let the plug-ins look at their tables, and check what refers to what."""
    found: list[str] = []
    tables: dict[str, dict[str, Any]] = {name: {} for name in BUILT_IN_EXTRACTORS} | raw.extractors

    def plugin(kind: Any, path: str, table: Mapping[str, Any], default: str | None = None) -> Plugin | None:  # noqa: ANN401
        try:
            return parse(kind, path, {key: _structured(value) for key, value in table.items()}, default=default)
        except ConfigError as error:
            found.extend(error.faults)
            return None

    extractors = {name: plugin("extractors", f"extractors.{name}", table, name) for name, table in tables.items()}
    embedders = {name: plugin("embedders", f"embedders.{name}", table) for name, table in raw.embedders.items()}
    sources = {name: plugin("sources", f"sources.{name}", table) for name, table in raw.sources.items()}
    chunkers = {
        name: plugin("chunkers", f"collections.{name}.chunker", collection.chunker, "stable")
        for name, collection in raw.collections.items()
    }
    found.extend(_dangling(raw, sources))
    if found:
        raise ConfigError(*found)
    names = [field.name for field in fields(Settings) if field.name in _File.model_fields]
    same = {name: getattr(raw, name) for name in names}
    same |= {"extractors": extractors, "embedders": embedders, "sources": sources, "chunkers": chunkers}
    return Settings(**same)


def _structured(value: Any) -> Any:  # noqa: ANN401 - whatever a plug-in's key takes
    """Return lists and tables that came through the environment as such: there they are JSON."""
    if isinstance(value, dict):
        return {key: _structured(inner) for key, inner in value.items()}
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            return json.loads(value)
        except ValueError:
            return value  # a text that merely looks like one: the plug-in's own check decides
    return value


def _dangling(raw: _File, sources: Mapping[str, Plugin | None]) -> Iterator[str]:
    """Yield a fault for each name that refers to nothing."""
    embedders, collections = sorted(raw.embedders), sorted(raw.collections)
    for name, collection in raw.collections.items():
        for field, vector in collection.vectors.items():
            if vector.embedder not in raw.embedders:
                where = f"collections.{name}.vectors.{field}.embedder"
                yield f"{where}: there is no embedder {vector.embedder!r}{nearest(vector.embedder, embedders)}"
        if collection.tokenizer is not None and collection.tokenizer not in raw.embedders:
            where = f"collections.{name}.tokenizer"
            yield f"{where}: there is no embedder {collection.tokenizer!r}{nearest(collection.tokenizer, embedders)}"
    for name, source in sources.items():
        target = getattr(source.config, "collection", None) if source is not None else None
        if target is not None and target not in raw.collections:
            yield f"sources.{name}.collection: there is no collection {target!r}{nearest(target, collections)}"


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values, with every secret masked: what ``config show`` prints."""

    def plain(value: Any) -> Any:  # noqa: ANN401 - walks whatever the settings hold
        if isinstance(value, SecretStr):
            return "**********" if value.get_secret_value() else ""
        if isinstance(value, Plugin):
            return {"type": value.type, **plain(value.config)}
        if isinstance(value, BaseModel):
            return {key: plain(getattr(value, key)) for key in type(value).model_fields}
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            items = [plain(inner) for inner in value]
            return sorted(items, key=str) if isinstance(value, set | frozenset) else items
        return str(value) if isinstance(value, Path) else value

    tree: dict[str, Any] = {field.name: plain(getattr(settings, field.name)) for field in fields(settings)}
    chunkers = tree.pop("chunkers")
    for name, chunker in chunkers.items():
        tree["collections"][name]["chunker"] = chunker
    return tree
