"""Avro with its schema in a registry.

fastavro's compiled reader does not look at the depth of the stack: a record whose schema contains itself, nested a few
thousand levels deep in as many bytes, ends the process (seen with fastavro 1.13.1). Schemas that contain themselves are
read by its Python reader, which raises RecursionError. An array of items that take no bytes is refused with its schema:
ten bytes can ask for any number of them.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeAlias

import fastavro
from fastavro import _read_py as python_reader

from ingestd.sources._values.decoded import RefusedError, shown
from ingestd.sources._values.strict_json import parsed
from ingestd.sources._values.wire import framed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ingestd.sources._values.registry import Registry, Schema

    Read: TypeAlias = Callable[[io.BytesIO], Any]

_WHOLE = "ingestd_whole"
"""A record around the schema, which takes no bytes: fastavro keeps what it knows of references in records alone."""
_UNSEEN, _OPEN, _DONE = 0, 1, 2


class AvroReader:
    """Turns bytes of the wire format into a tree. Never waits.

    Args:
        registry: Has the schemas.
        what: What the bytes are, for messages: ``its value``.
    """

    def __init__(self, registry: Registry, what: str) -> None:
        self._registry = registry
        self._what = what
        self._readers: dict[int, Read] = {}

    def __call__(self, data: bytes) -> Any:  # noqa: ANN401 - what stands in a record
        """Return the tree (see ``Registry.schema`` for what else it raises)."""
        schema_id, written = framed(data, self._what)
        read = self._readers.get(schema_id)
        if read is None:
            read = self._readers[schema_id] = _reader(self._registry.schema(schema_id))
        source = io.BytesIO(written)
        try:
            tree = read(source)
        except Exception as error:  # noqa: BLE001 - untrusted bytes; and the text of the error could quote them
            raise RefusedError(
                f"{self._what} is no record of schema {schema_id} ({type(error).__name__}); produce it with the "
                "registry's serializer"
            ) from None
        left = len(written) - source.tell()
        if left:
            raise RefusedError(f"{self._what} goes on for {left} bytes after its record of schema {schema_id}")
        return tree


def _reader(schema: Schema) -> Read:
    """Return what reads a schema's records.

    Raises:
        RefusedError: The schema cannot be used.
    """
    if schema.type != "AVRO":
        raise RefusedError(f"schema {schema.id} is {shown(schema.type)}; configure that format, or produce in Avro")
    named: dict[str, Any] = {}
    try:
        for name, text in schema.references:
            reference: Any = parsed(text.encode(), f"schema {name}")
            fastavro.parse_schema(reference, named_schemas=named)
        inner = parsed(schema.text.encode(), "the schema")
        whole: Any = {"type": "record", "name": _WHOLE, "fields": [{"name": "value", "type": inner}]}
        whole = fastavro.parse_schema(whole, named_schemas=named)
        recursive = _Walk(named).visit(whole)
    except Exception as error:
        raise RefusedError(f"schema {schema.id} cannot be used: {type(error).__name__}: {error}") from error
    schemaless: Any = python_reader.schemaless_reader if recursive else fastavro.schemaless_reader

    def read(source: io.BytesIO) -> Any:  # noqa: ANN401 - what stands in a record
        return schemaless(source, whole, None)["value"]

    return read


class _Walk:
    """Looks at a parsed schema for what makes reading it dangerous."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._states: dict[str, int] = {}

    def visit(self, schema: Any) -> bool:  # noqa: ANN401, PLR0911 - a parsed schema, one return for each kind
        """Return whether the schema contains itself.

        Raises:
            ValueError: It has an array of items that take no bytes.
        """
        if isinstance(schema, list):
            return any([self.visit(one) for one in schema])  # noqa: C419 - all of them, for what they raise
        if isinstance(schema, str):
            return schema in self._named and self.visit(self._named[schema])
        kind = schema["type"]
        if kind == "array":
            if self._is_weightless(schema["items"], ()):
                raise ValueError("it has an array of items that take no bytes")
            return self.visit(schema["items"])
        if kind == "map":
            return self.visit(schema["values"])
        if kind not in {"record", "error"}:
            return isinstance(kind, dict | list) and self.visit(kind)
        name = schema["name"]
        state = self._states.get(name, _UNSEEN)
        if state != _UNSEEN:
            return state == _OPEN
        self._states[name] = _OPEN
        recursive = any([self.visit(field["type"]) for field in schema["fields"]])  # noqa: C419 - as above
        self._states[name] = _DONE
        return recursive

    def _is_weightless(self, schema: Any, above: tuple[str, ...]) -> bool:  # noqa: ANN401 - a parsed schema
        if isinstance(schema, str) and schema in self._named:
            schema = self._named[schema]
        if isinstance(schema, list):
            return False  # a union's index is a byte
        if isinstance(schema, str):
            return schema == "null"
        kind = schema["type"]
        if kind in {"record", "error"}:
            name = schema["name"]
            return name in above or all(self._is_weightless(one["type"], (*above, name)) for one in schema["fields"])
        if kind == "fixed":
            return bool(schema["size"] == 0)
        return not isinstance(kind, str) or (kind not in {"array", "map", "enum"} and self._is_weightless(kind, above))
