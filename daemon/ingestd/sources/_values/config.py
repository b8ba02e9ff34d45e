"""The formats of values as the configuration names them, and the one place that puts their parts together."""

from __future__ import annotations

from pathlib import Path as FilePath  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from ingestd.errors import ConfigError
from ingestd.sources._values.cloudevents import CloudEvents
from ingestd.sources._values.contents import Contents
from ingestd.sources._values.debezium import Envelope
from ingestd.sources._values.decoded import Decoder, Reading, ValueLimits
from ingestd.sources._values.identity import Identity, IdFrom, struct_key, text_key
from ingestd.sources._values.mapping import Documents, Mapped
from ingestd.sources._values.paths import Path
from ingestd.sources._values.raw import Raw
from ingestd.sources._values.registry import Registry
from ingestd.sources._values.strict_json import parsed
from ingestd.sources._values.trees import Trees
from ingestd.sources._values.uris import address
from ingestd.sources._values.wire import unframed

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.ports import Clock
    from ingestd.sources._values.mapping import Mapping

_STRICT = ConfigDict(frozen=True, extra="forbid")


def _path(text: str) -> str:
    Path(text)
    return text


def _prefix(text: str) -> str:
    if address(text).query:
        raise ValueError("a prefix has no query")
    return text


def _pattern(text: str) -> str:
    if not text or "*" in text[1:]:
        raise ValueError("a type is a name, or a * and what the name ends with: *.deleted")
    return text


JsonPath: TypeAlias = Annotated[str, AfterValidator(_path)]
Prefix: TypeAlias = Annotated[str, AfterValidator(_prefix)]
TypePattern: TypeAlias = Annotated[str, AfterValidator(_pattern)]
Word: TypeAlias = bool | int | str


class Fields(BaseModel):
    """Where things are in a value that is not ours: JSONPaths (RFC 9535)."""

    model_config = _STRICT

    id: JsonPath | None = Field(None, description="The document's id: a string, or an integer")
    op: JsonPath | None = Field(None, description="What is asked for, in the words of op_values; absent: an upsert")
    text: JsonPath | None = Field(None, description="The text; several strings are its paragraphs")
    content: JsonPath | None = Field(None, description="The document's bytes in base64")
    uri: JsonPath | None = Field(None, description="The document's address; uris says which are read")
    content_type: JsonPath | None = Field(None, description="The media type of text, content or uri")
    title: JsonPath | None = Field(None, description="The title")
    version: JsonPath | None = Field(None, description="The explicit version: a 64-bit integer")
    metadata: dict[str, JsonPath] = Field({}, description="Metadata: its name, and where it is")
    rest: bool = Field(False, description="Whether keys of the top level that no path names go into the metadata")

    @model_validator(mode="after")
    def _body(self) -> Self:
        if self.text is None and self.content is None and self.uri is None:
            raise ValueError("name where the document is: text, content or uri")
        return self


class OpValues(BaseModel):
    """Which words ask for what."""

    model_config = _STRICT

    upsert: tuple[Word, ...] = Field(("upsert",), description="Words (or numbers, or booleans) for an upsert")
    delete: tuple[Word, ...] = Field(("delete",), description="Words (or numbers, or booleans) for a delete")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        both = {(type(word), word) for word in self.upsert} & {(type(word), word) for word in self.delete}
        if both:
            raise ValueError(f"{next(iter(both))[1]!r} cannot ask for both")
        return self


class _Documents(BaseModel):
    """What formats have in common whose values are documents in some tree."""

    model_config = _STRICT

    op_values: OpValues = Field(OpValues(), description="The words for what a value asks for")
    uris: tuple[Prefix, ...] = Field((), description="Prefixes of the addresses that a 'uri' may have; none: refused")


class JsonFormat(_Documents):
    """JSON: our own document, or anybody's by ``fields``."""

    type: Literal["json"] = Field("json", description="Values are JSON")
    fields: Fields | None = Field(None, description="Where things are in values that are not our own documents")


class RawFormat(BaseModel):
    """The value is the file."""

    model_config = _STRICT

    type: Literal["raw"] = Field("raw", description="Values are files, and keys their ids")
    content_type: str | None = Field(None, description="Their media type, where no header says it")
    content_type_header: str | None = Field("content-type", description="The header with the media type")
    title_header: str | None = Field(None, description="The header with the title")
    name_header: str | None = Field("file-name", description="The header with the file's name; absent: the id is it")
    metadata_headers: dict[str, str] = Field({}, description="Metadata: its name, and its header")


class EventTypes(BaseModel):
    """What an event's type asks for: exact types, or ``*`` and what they end with."""

    model_config = _STRICT

    upsert: tuple[TypePattern, ...] = Field((), description="Types of upserts; none: all that are no deletes")
    delete: tuple[TypePattern, ...] = Field(("*.deleted", "*.removed"), description="Types of deletes")


class CloudEventsFormat(_Documents):
    """CloudEvents 1.0."""

    type: Literal["cloudevents"] = Field("cloudevents", description="Values are CloudEvents 1.0")
    mode: Literal["auto", "structured", "binary"] = Field(
        "auto", description="auto: as each record's content type says"
    )
    id: Literal["subject", "id", "source+id", "data"] = Field("subject", description="What the document's id is")
    types: EventTypes = Field(EventTypes(), description="What the types ask for")
    data: Literal["content", "document"] = Field(
        "content", description="content: the data is the file; document: it is our document, or what fields maps"
    )
    fields: Fields | None = Field(None, description="Where things are in data that is not our own document")
    version: str | None = Field(None, description="The attribute with the explicit version")
    metadata: dict[str, str] = Field({}, description="Metadata: its name, and its attribute")

    @model_validator(mode="after")
    def _of_one_mind(self) -> Self:
        if self.data == "content" and self.fields is not None:
            raise ValueError('fields are looked up in the data: set data = "document"')
        if self.data == "content" and self.id == "data":
            raise ValueError('id = "data" is looked up in the data: set data = "document"')
        return self


class _Keyed(_Documents):
    """What formats have in common whose keys can be structures."""

    key_id: JsonPath | None = Field(None, description="The id in a key that is a structure; absent: its only field")
    version: JsonPath | None = Field(
        None, description="The explicit version in Debezium's envelope, such as $.source.lsn"
    )


class DebeziumFormat(_Keyed):
    """Debezium's envelope in JSON. Rows that were flattened before are ``json``."""

    type: Literal["debezium"] = Field("debezium", description="Values are Debezium's change events, in JSON")
    key_format: Literal["text", "json", "avro"] = Field("json", description="What keys are")
    fields: Fields = Field(description="Where things are in a row")

    @model_validator(mode="after")
    def _versions(self) -> Self:
        _refuse_row_version(self.fields)
        return self


class _Registered(_Keyed):
    """What formats have in common whose schema is in a registry."""

    key_format: Literal["text", "json", "avro"] = Field("text", description="What keys are")
    envelope: Literal["none", "debezium"] = Field("none", description="debezium: values are its change events")
    fields: Fields | None = Field(None, description="Where things are in values that are not our own documents")

    @model_validator(mode="after")
    def _enveloped(self) -> Self:
        if self.envelope == "debezium":
            if self.fields is None:
                raise ValueError("a row is no document of ours: say with fields where things are")
            _refuse_row_version(self.fields)
        elif self.version is not None:
            raise ValueError('version is looked up in an envelope: set envelope = "debezium", or fields.version')
        return self


class AvroFormat(_Registered):
    """Avro in the registry's wire format."""

    type: Literal["avro"] = Field("avro", description="Values are Avro with their schema in the registry")


class JsonSchemaFormat(_Registered):
    """JSON in the registry's wire format, validated."""

    type: Literal["json_schema"] = Field("json_schema", description="Values are JSON with their schema in the registry")


def _named(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


ValueFormat: TypeAlias = Annotated[
    JsonFormat | RawFormat | CloudEventsFormat | DebeziumFormat | AvroFormat | JsonSchemaFormat,
    Field(discriminator="type"),
    BeforeValidator(_named),
]
"""A format: a table with its ``type``, or that alone as a string."""


class SchemaRegistry(BaseModel):
    """A schema registry: Confluent's, or one that speaks as it does."""

    model_config = _STRICT

    urls: tuple[str, ...] = Field(min_length=1, description="Its addresses; the next is asked where one is away")
    username: str | None = Field(None, description="The user, or the API key")
    password: SecretStr | None = Field(None, description="The password, or the API secret")
    ca_file: FilePath | None = Field(None, description="Certificates to trust; absent: the system's")
    timeout_seconds: float = Field(10, gt=0, le=300, description="Seconds to wait for a connection, and for an answer")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("urls: an address begins with http:// or https:// and a host")
            if parts.username is not None or parts.password is not None:
                raise ValueError("urls: give username and password by their keys, not in the address")
            if parts.query or parts.fragment:
                raise ValueError("urls: an address has neither query nor fragment")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")
        return self

    def build(self, source: str, clock: Clock) -> Registry:
        """Return the registry. Nothing is asked before the first schema is wanted."""
        return Registry(self, source, clock)


def decoder(
    format: ValueFormat,  # noqa: A002 - what the configuration calls it
    *,
    id_from: IdFrom,
    source: str,
    limits: ValueLimits,
    registry: Registry | None = None,
) -> Decoder:
    """Return what decodes a source's records.

    Args:
        format: The format.
        id_from: Where ids come from.
        source: The name of the configured source, for messages.
        limits: How large things may be.
        registry: Has the schemas, for the formats that need one. Who built it closes it.

    Raises:
        ConfigError: Parts of the configuration do not fit, or an extra is not installed.
    """
    if isinstance(format, RawFormat):
        if id_from == "value":
            raise ConfigError(f'sources.{source}.id_from: a file in a value has no id but its key; set "auto" or "key"')
        return Reading(Raw(format, Identity(id_from, text_key), Contents(limits, ())), limits)
    contents = Contents(limits, format.uris)
    if isinstance(format, CloudEventsFormat):
        mapping = _mapping(format.fields, format.op_values) if format.data == "document" else None
        return Reading(CloudEvents(format, mapping, Identity(id_from, text_key), contents), limits)
    if isinstance(format, JsonFormat):
        mapping = _mapping(format.fields, format.op_values)
        return Reading(Trees(_json, mapping, Identity(id_from, text_key), contents), limits)
    enveloped = isinstance(format, DebeziumFormat) or format.envelope == "debezium"
    envelope = Envelope(None if format.version is None else Path(format.version)) if enveloped else None
    mapping = _mapping(format.fields, format.op_values, unavailable=enveloped)
    identity = Identity(id_from, _key(format, source, registry))
    reader = _json if isinstance(format, DebeziumFormat) else _registered(format.type, "its value", source, registry)
    return Reading(Trees(reader, mapping, identity, contents, envelope), limits)


def _mapping(fields: Fields | None, op_values: OpValues, *, unavailable: bool = False) -> Mapping:
    return Documents(op_values) if fields is None else Mapped(fields, op_values, unavailable=unavailable)


def _json(data: bytes) -> Any:  # noqa: ANN401 - what stands in a record
    return parsed(data, "its value")


def _key(format: DebeziumFormat | _Registered, source: str, registry: Registry | None) -> Callable[[bytes], str]:  # noqa: A002 - as above
    path = None if format.key_id is None else Path(format.key_id)
    if format.key_format == "text":
        return text_key
    if format.key_format == "json":
        return lambda key: struct_key(parsed(unframed(key), "its key"), path)
    reader = _registered("avro", "its key", source, registry)
    return lambda key: struct_key(reader(key), path)


def _registered(
    kind: Literal["avro", "json_schema"], what: str, source: str, registry: Registry | None
) -> Callable[[bytes], Any]:
    """Return what reads values in the registry's wire format. Its libraries are an extra: imported here alone."""
    if registry is None:
        raise ConfigError(f"sources.{source}.schema_registry: {kind} needs one; name its urls")
    try:
        if kind == "avro":
            from ingestd.sources._values.avro import AvroReader  # noqa: PLC0415 - an extra

            return AvroReader(registry, what)
        from ingestd.sources._values.json_schema import JsonSchemaReader  # noqa: PLC0415 - an extra

        return JsonSchemaReader(registry, what)
    except ImportError as error:
        raise ConfigError(
            f"sources.{source}.format: {kind} needs libraries that are not installed ({error.name}): "
            "pip install 'milvus-ingestd[schemas]'"
        ) from error


def _refuse_row_version(fields: Fields) -> None:
    if fields.version is not None:
        raise ValueError(
            "fields.version: a deleted row has the version that it had, which makes its delete look like a replay; "
            "set version to a path in the envelope, such as $.source.lsn"
        )
