"""Collections on the server: reading what is there, and creating what is absent.

Nothing that exists is changed, and nothing is dropped: a collection that is not as wanted is described to a person.
Altering it where newer servers could was turned down: what works depends on version and content, and a half-altered
collection under a running daemon is worse than a refused start.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from ingestd.errors import ConfigError, FatalError, IngestError
from ingestd.milvus.client import import_pymilvus
from ingestd.milvus.schema import (
    PROPERTY_ID,
    TEXT,
    Column,
    Difference,
    Found,
    Index,
    Wanted,
    difference,
    parameter_text,
)
from ingestd.milvus.verdict import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ingestd.milvus.client import Connection

_NOT_PARAMETERS = frozenset(
    {
        "field_name",
        "index_name",
        "index_type",
        "metric_type",
        "params",
        "total_rows",
        "indexed_rows",
        "pending_index_rows",
        "state",
    }
)


def find(connection: Connection, collection: str) -> Found | None:
    """Return what the server says of a collection, or None if there is none of that name.

    Raises:
        IngestError: By ``verdict``.
    """
    import_pymilvus()
    from pymilvus import DataType, FunctionType  # noqa: PLC0415 - slow to import

    doing = f"describing {collection}"
    if not connection.call("has_collection", collection, doing=doing, request=Request.SETUP):
        return None
    described = connection.call("describe_collection", collection, doing=doing, request=Request.SETUP)
    made = {
        output: FunctionType(function["type"]).name
        for function in described.get("functions") or ()
        for output in function["output_field_names"]
    }
    columns = tuple(
        Column(
            name=field["name"],
            type=DataType(field["type"]).name,
            key=bool(field.get("is_primary")),
            nullable=bool(field.get("nullable")),
            max_length=_number(field.get("params", {}), "max_length"),
            dimension=_number(field.get("params", {}), "dim"),
            function=made.get(field["name"], ""),
        )
        for field in described["fields"]
    )
    return Found(
        columns=columns,
        indexes=tuple(_indexes(connection, collection, doing)),
        properties=dict(described.get("properties") or {}),
        dynamic=bool(described.get("enable_dynamic_field")),
        auto_id=bool(described.get("auto_id")),
    )


def plan(connection: Connection, target: Wanted) -> tuple[Difference, ...]:
    """Return what has to change on the server.

    Raises:
        IngestError: By ``verdict``.
    """
    return difference(target, find(connection, target.collection))


def apply(connection: Connection, target: Wanted, differences: Sequence[Difference]) -> None:
    """Create what is absent: the collection, its indexes. The collection is not loaded by this.

    Args:
        connection: To the server.
        target: As ``possible`` left it.
        differences: What ``plan`` found.

    Raises:
        ConfigError: Something differs that is not merely absent; nothing was changed.
        IngestError: By ``verdict``. What was created until then stays, and the next ``apply`` goes on from there.
    """
    fixed = [line for line in differences if not line.fixable]
    if fixed:
        raise ConfigError(*map(str, fixed))
    if not differences:
        return
    found = find(connection, target.collection)
    if found is None:
        _create(connection, target)
    have = {index.column for index in found.indexes} if found else set()
    for index in target.indexes:
        if index.column not in have:
            _create_index(connection, target.collection, index)


def prepare(connection: Connection, target: Wanted, *, create: bool) -> None:
    """Make a collection ready: created if absent, compared, loaded.

    Args:
        connection: To the server.
        target: As ``possible`` left it.
        create: Whether what is absent may be created.

    Raises:
        ConfigError: It differs; one line a difference, each with its cure.
        IngestError: By ``verdict``.
    """
    differences = plan(connection, target)
    if differences and not create:
        raise ConfigError(*map(str, differences))
    apply(connection, target, differences)
    left = plan(connection, target) if differences else ()
    if left:  # another member made the collection at the same moment, and otherwise
        raise ConfigError(*map(str, left))
    connection.load(target.collection)


def identity(connection: Connection, collection: str) -> str | None:
    """Return the random id that the collection was made with, or None if there is no such collection of ours.

    Two small questions, answered by the server as things are now: neither goes through the client's cache.

    Raises:
        ConfigError: The set-up is refused.
        UnavailableError: The server does not answer.
    """
    doing = f"asking whether {collection} is still the same"
    if not connection.call("has_collection", collection, doing=doing, request=Request.KEYS):
        return None
    try:
        described = connection.call("describe_collection", collection, doing=doing, request=Request.KEYS)
    except (ConfigError, FatalError):
        if connection.call("has_collection", collection, doing=doing, request=Request.KEYS):
            raise
        return None  # dropped between the two
    return dict(described.get("properties") or {}).get(PROPERTY_ID)


def _create(connection: Connection, target: Wanted) -> None:
    from pymilvus import DataType, Function, FunctionType, MilvusClient  # noqa: PLC0415 - imported by now

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    for column in target.columns:
        sizes = {"max_length": column.max_length, "dim": column.dimension}
        schema.add_field(
            field_name=column.name,
            datatype=DataType[column.type],
            is_primary=column.key,
            **({"nullable": True} if column.nullable else {}),
            **{name: size for name, size in sizes.items() if size is not None},
            **(_analyzed(target.analyzer) if column.name == TEXT and target.analyzer else {}),
        )
    for column in target.functions:
        kind = FunctionType[column.function]
        schema.add_function(
            Function(name=column.name, function_type=kind, input_field_names=[TEXT], output_field_names=[column.name])
        )
    try:
        connection.call(
            "create_collection",
            target.collection,
            doing=f"creating {target.collection}",
            request=Request.SETUP,
            schema=schema,
            properties=target.properties(uuid.uuid4().hex),
            consistency_level=connection.config.consistency,
        )
    except IngestError:
        # Another member may have been first; whether what it made is what we want is compared afterwards.
        if find(connection, target.collection) is None:
            raise
    connection.forget_schemas()


def _create_index(connection: Connection, collection: str, index: Index) -> None:
    from pymilvus import MilvusClient  # noqa: PLC0415 - imported by now

    parameters: dict[str, object] = {name: _value(text) for name, text in index.parameters}
    if connection.capabilities().lite and parameters:
        parameters = {"params": parameters}  # Lite reads them in this older form only, and drops them otherwise
    if index.metric:
        parameters["metric_type"] = index.metric
    wish = MilvusClient.prepare_index_params()
    wish.add_index(field_name=index.column, index_type=index.type, index_name=index.column, params=parameters)
    doing = f"creating the index on {index.column} of {collection}"
    try:
        connection.call(
            "create_index",
            collection,
            doing=doing,
            request=Request.SETUP,
            index_params=wish,
            sync=False,  # loading waits for it, and asks with a deadline for each question
        )
    except IngestError:
        # As with the collection; Lite refuses a second one even where it is the same.
        if all(known.column != index.column for known in _indexes(connection, collection, doing)):
            raise


def _indexes(connection: Connection, collection: str, doing: str) -> Iterable[Index]:
    for name in connection.call("list_indexes", collection, doing=doing, request=Request.SETUP):
        known = connection.call("describe_index", collection, doing=doing, request=Request.SETUP, index_name=name)
        if known is None:
            continue  # dropped meanwhile
        nested = known.get("params")
        flat = {key: value for key, value in known.items() if key not in _NOT_PARAMETERS}
        parameters = {**flat, **(nested if isinstance(nested, dict) else {})}
        metric = str(known.get("metric_type") or "")
        yield Index(
            column=str(known["field_name"]),
            type=str(known["index_type"]),
            metric="" if metric == "NONE" else metric,
            parameters=tuple(sorted((key, parameter_text(value)) for key, value in parameters.items())),
        )


def _analyzed(analyzer: str) -> dict[str, object]:
    return {"enable_analyzer": True, "analyzer_params": json.loads(analyzer)}


def _number(parameters: Mapping[str, object], name: str) -> int | None:
    value = parameters.get(name)
    return int(str(value)) if value is not None else None


def _value(text: str) -> object:
    """Return an index parameter as a number, where it is one."""
    try:
        return json.loads(text)
    except ValueError:
        return text
