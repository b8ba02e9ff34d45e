"""JSON with its JSON Schema in a registry: read as strictly as other JSON, and then validated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from jsonschema import Draft7Validator, validators
from referencing import Registry as References
from referencing import Resource
from referencing.jsonschema import DRAFT7

from ingestd.sources._values.decoded import RefusedError, shown
from ingestd.sources._values.strict_json import parsed
from ingestd.sources._values.wire import framed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.sources._values.registry import Registry, Schema


class JsonSchemaReader:
    """Turns bytes of the wire format into a tree. Never waits.

    Args:
        registry: Has the schemas.
        what: What the bytes are, for messages: ``its value``.
    """

    def __init__(self, registry: Registry, what: str) -> None:
        self._registry = registry
        self._what = what
        self._validators: dict[int, Any] = {}

    def __call__(self, data: bytes) -> Any:  # noqa: ANN401 - what stands in a record
        """Return the tree (see ``Registry.schema`` for what else it raises)."""
        schema_id, written = framed(data, self._what)
        validator = self._validators.get(schema_id)
        if validator is None:
            validator = self._validators[schema_id] = _validator(self._registry.schema(schema_id))
        tree = parsed(written, self._what)
        try:
            fault = next(validator.iter_errors(tree), None)
        except Exception as error:  # noqa: BLE001 - a schema that leads nowhere, or round and round
            raise RefusedError(f"schema {schema_id} cannot be applied: {type(error).__name__}") from None
        if fault is not None:
            # Its own message quotes the document.
            raise RefusedError(
                f"{self._what} breaks schema {schema_id}: {shown(str(fault.validator))} at {shown(fault.json_path)}"
            )
        return tree


def _validator(schema: Schema) -> Any:  # noqa: ANN401 - jsonschema makes the classes
    """Return what validates by a schema.

    Raises:
        RefusedError: The schema cannot be used.
    """
    if schema.type != "JSON":
        raise RefusedError(f"schema {schema.id} is {shown(schema.type)}; configure that format, or produce JSON Schema")
    try:
        whole = parsed(schema.text.encode(), "the schema")
        kind = validators.validator_for(whole, default=Draft7Validator)
        kind.check_schema(whole)
        resources = [
            (uri, Resource.from_contents(inner, default_specification=DRAFT7))
            for name, text in schema.references
            for inner in [parsed(text.encode(), "the schema")]
            for uri in _uris(name, inner, whole)
        ]
        # A registry of references of our own: without one, jsonschema fetches them from wherever they point.
        return kind(whole, registry=References().with_resources(resources))
    except Exception as error:
        raise RefusedError(f"schema {schema.id} cannot be used: {type(error).__name__}: {error}") from error


def _uris(name: str, inner: Any, whole: Any) -> Iterator[str]:  # noqa: ANN401 - schemas
    """Yield what a reference can be called: its name, that as the schema's own id makes it, and its own id."""
    yield name
    if isinstance(whole, dict) and isinstance(whole.get("$id"), str):
        yield urljoin(whole["$id"], name)
    if isinstance(inner, dict) and isinstance(inner.get("$id"), str):
        yield inner["$id"]
