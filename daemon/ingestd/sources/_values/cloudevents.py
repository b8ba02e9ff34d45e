"""CloudEvents 1.0 over Kafka, structured or binary, decided for each record by its content type.

Of the specification that is taken which says what an event is about; the official SDK is an oracle of the tests. It was
turned down as a dependency: it guesses (a body that is no JSON becomes a string), and it takes some unset attributes
(null, as the JSON format allows) for faults.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from ingestd.model import Op
from ingestd.sources._values import said as parts
from ingestd.sources._values.contents import media_type
from ingestd.sources._values.decoded import Decoded, RefusedError, shown
from ingestd.sources._values.headers import header, text
from ingestd.sources._values.identity import checked
from ingestd.sources._values.said import Said, kind
from ingestd.sources._values.strict_json import parsed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.model import Json, Record
    from ingestd.sources._values.config import CloudEventsFormat
    from ingestd.sources._values.contents import Contents
    from ingestd.sources._values.identity import Identity
    from ingestd.sources._values.mapping import Mapping

_PREFIX = "ce_"
_STRUCTURED = "application/cloudevents"
_VERSION = "1.0"
_REQUIRED = ("id", "source", "type")
_OPTIONAL = ("subject", "datacontenttype", "dataschema", "time")


class _Cloud(NamedTuple):
    """An event, whichever way it came."""

    attributes: dict[str, Any]
    data: Any
    """A JSON value, or bytes; None: it has none."""
    content_type: str | None


class CloudEvents:
    """The format.

    Args:
        config: How events are read.
        mapping: Says where in the data things are, where the data is a document of its own.
        identity: Says which document it is about.
        contents: Makes the payload.
    """

    def __init__(
        self, config: CloudEventsFormat, mapping: Mapping | None, identity: Identity, contents: Contents
    ) -> None:
        self._config = config
        self._mapping = mapping
        self._identity = identity
        self._contents = contents

    def read(self, record: Record) -> Decoded:
        """Return what a record says (see ``Format``)."""
        binary = self._is_binary(record)
        if record.value is None and not (binary and any(name.startswith(_PREFIX) for name, _ in record.headers)):
            return Decoded(self._identity.of_key(record), Op.DELETE, None, None, 0)
        event = _binary(record) if binary else _structured(record.value or b"")
        _check(event.attributes)
        op = self._op(event.attributes["type"])
        tree = None if self._mapping is None else _tree(event, op)
        document = self._identity.of(record, self._id(event.attributes, tree) if self._identity.by_value else None)
        try:
            return self._contents.decoded(document, self._said(event, op, tree))
        except RefusedError as refused:
            raise RefusedError(str(refused), document) from None

    def told(self, record: Record) -> str | None:
        """Return what the key alone tells."""
        return self._identity.told(record)

    def close(self) -> None:
        """Let go of connections."""
        self._contents.close()

    def _is_binary(self, record: Record) -> bool:
        if self._config.mode != "auto":
            return self._config.mode == "binary"
        kind = media_type(header(record, "content-type"))
        if kind.startswith(_STRUCTURED) and kind != f"{_STRUCTURED}+json":
            raise RefusedError(
                f"its content type is {shown(kind)}; of structured events only {_STRUCTURED}+json is read"
            )
        return kind != f"{_STRUCTURED}+json"

    def _op(self, kind: str) -> Op:
        types = self._config.types
        if _matches(kind, types.delete):
            return Op.DELETE
        if types.upsert and not _matches(kind, types.upsert):
            raise RefusedError(f"its type {shown(kind)} is neither among types.upsert nor among types.delete")
        return Op.UPSERT

    def _id(self, attributes: dict[str, Any], tree: Any) -> str | None:  # noqa: ANN401 - what stands in a record
        rule = self._config.id
        if rule == "data":
            return None if tree is None or self._mapping is None else self._mapping.id(tree)
        if rule == "source+id":
            # What no URI has in it stands between, so that two events have one id only where they are the same.
            if "|" in attributes["source"]:
                raise RefusedError("its source is no URI reference: it has a '|' in it")
            return checked(f"{attributes['source']}|{attributes['id']}", "its source and id")
        found = attributes.get(rule)
        return None if found is None else checked(found, f"its {rule}")

    def _said(self, event: _Cloud, op: Op, tree: Any) -> Said:  # noqa: ANN401 - what stands in a record
        attributes, config = event.attributes, self._config
        version = parts.version(attributes.get(config.version or ""), "version", loose=True)
        if self._mapping is not None and tree is not None:
            said = self._mapping.said(tree, op)
        elif op is Op.DELETE:
            said = Said(op)
        elif event.data is None:
            raise RefusedError(f"its type {shown(attributes['type'])} makes it an upsert, and it has no data")
        else:
            said = _content(event)
        if version is not None:
            said = said._replace(version=version)
        if said.op is Op.DELETE or not config.metadata:
            return said
        more: dict[str, Json] = {key: attributes[name] for key, name in config.metadata.items() if name in attributes}
        return said._replace(metadata=parts.metadata({**(said.metadata or {}), **more}, "metadata"))


def _binary(record: Record) -> _Cloud:
    found = {name[len(_PREFIX) :]: value for name, value in record.headers if name.startswith(_PREFIX)}
    attributes = {name: text(_PREFIX + name, value) for name, value in found.items() if value is not None}
    return _Cloud(attributes, record.value or None, header(record, "content-type"))


def _structured(value: bytes) -> _Cloud:
    event = parsed(value, "its value")
    if not isinstance(event, dict):
        raise RefusedError(f"its value is {kind(event)}, and a structured CloudEvent is an object")
    attributes = {name: found for name, found in event.items() if found is not None}  # null: not set
    data, packed = attributes.pop("data", None), parts.content(attributes.pop("data_base64", None), "data_base64")
    if data is not None and packed is not None:
        raise RefusedError("it has both 'data' and 'data_base64'; send one")
    content_type = parts.string(attributes.get("datacontenttype"), "datacontenttype")
    return _Cloud(attributes, data if packed is None else packed, content_type)


def _check(attributes: dict[str, Any]) -> None:
    """Refuse what is no CloudEvent of our version."""
    version = attributes.get("specversion")
    if version is None:
        raise RefusedError(
            "it is no CloudEvent: it has no specversion; structured events have the content type "
            f"{_STRUCTURED}+json (or set mode), binary ones the headers {_PREFIX}…"
        )
    if version != _VERSION:
        said = shown(version) if isinstance(version, str) else kind(version)
        raise RefusedError(f"its specversion is {said}; only {_VERSION!r} is read")
    for name in (*_REQUIRED, *_OPTIONAL):
        value = attributes.get(name)
        if value is None and name in _REQUIRED:
            raise RefusedError(f"it is no CloudEvent: it has no {name}")
        if value is not None and not parts.string(value, name):
            raise RefusedError(f"its {name} is empty")


def _matches(kind: str, patterns: Sequence[str]) -> bool:
    return any(kind.endswith(one[1:]) if one.startswith("*") else kind == one for one in patterns)


def _tree(event: _Cloud, op: Op) -> Any:  # noqa: ANN401 - what stands in a record
    """Return the data as a tree. A delete may have none, or anything."""
    data = event.data
    if op is Op.DELETE:
        if isinstance(data, bytes) and _is_json(event.content_type):
            try:
                data = parsed(data, "its data")
            except RefusedError:
                return None
        return data if isinstance(data, dict) else None
    if data is None:
        return None
    if not _is_json(event.content_type):
        raise RefusedError(f'its data is {shown(event.content_type or "")}, and `data = "document"` wants JSON')
    return parsed(data, "its data") if isinstance(data, bytes) else data


def _content(event: _Cloud) -> Said:
    """Return data that is the document's content."""
    data, content_type = event.data, event.content_type
    if isinstance(data, bytes):
        return Said(Op.UPSERT, content=data, content_type=content_type)
    if not _is_json(content_type):
        if not isinstance(data, str):
            raise RefusedError(f"its data is {kind(data)}, and {shown(content_type or '')} in 'data' is a string")
        return Said(Op.UPSERT, text=parts.string(data, "data"), content_type=content_type)
    try:
        packed = json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise RefusedError("its data has half a character (a lone surrogate), or a number beyond any bounds") from None
    return Said(Op.UPSERT, content=packed, content_type=content_type or "application/json")


def _is_json(content_type: str | None) -> bool:
    """Return whether data is JSON: also where nothing is said, by the specification."""
    kind = media_type(content_type)
    return kind in {"", "application/json", "text/json"} or kind.endswith("+json")
