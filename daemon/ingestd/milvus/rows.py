"""Rows to requests: what a server would refuse is found here, before anything is sent, and names its field.

Milvus refuses a whole request for one bad row, and Milvus Lite lets through what a server refuses (bytes against
characters, NaN, duplicate keys). So every row is checked against the stricter of the two, and requests are cut by the
bytes that the rows really take.

Leaving it to the server was turned down: its answer names no document, and the halving that finds one costs a
request for every step.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingestd.errors import DocumentError
from ingestd.milvus.schema import LARGEST_JSON, RESERVED
from ingestd.model import SparseVector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ingestd.milvus.schema import Column, Wanted
    from ingestd.model import Row

_INTEGERS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_LARGEST_INDEX = 2**32 - 2
_FIELD_BYTES = 8
"""What a value costs beside itself: its tag, its length, its part of the column's header."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as the client takes it, and the bytes that it takes in a request."""

    id: str
    entity: dict[str, object]
    size: int


def check(target: Wanted, row: Row) -> None:
    """Check all of a row but its vectors.

    Raises:
        DocumentError: Which document and field, and why.
    """
    _scalars(target, row)


def encode(target: Wanted, row: Row, *, vectors: bool) -> Encoded:
    """Check a row and return it in the client's form. All rows of one target have the same keys.

    Args:
        target: The collection.
        row: The row.
        vectors: Whether its vectors go with it; if not, this is a partial update.

    Raises:
        DocumentError: Which document and field, and why.
    """
    entity, size = _scalars(target, row)
    if vectors:
        for column in target.vectors:
            value = row.vectors.get(column.name)
            if value is None:
                raise DocumentError(f"{_at(row, column.name)}: the vector is missing")
            if isinstance(value, SparseVector):
                entity[column.name] = _sparse(row, column, value)
                size += 8 * len(value.indices) + _FIELD_BYTES
            else:
                entity[column.name] = _dense(row, column, value, target.index(column.name).metric)
                size += 4 * len(value) + _FIELD_BYTES
    return Encoded(row.id, entity, size)


def batches(rows: Iterable[Encoded], most_bytes: int, most_rows: int) -> Iterator[list[Encoded]]:
    """Cut rows into requests. A row that is larger than ``most_bytes`` gets a request of its own."""
    batch: list[Encoded] = []
    size = 0
    for row in rows:
        if batch and (size + row.size > most_bytes or len(batch) >= most_rows):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row.size
    if batch:
        yield batch


def unique(rows: Sequence[Row]) -> None:
    """Check that no key is there twice: servers keep both rows, or refuse the request, by version.

    Raises:
        ValueError: One is; that is a fault of the caller.
    """
    if len({row.id for row in rows}) != len(rows):
        raise ValueError("one key is in the batch twice")


def _scalars(target: Wanted, row: Row) -> tuple[dict[str, object], int]:
    unknown = row.fields.keys() - {column.name for column in target.declared}
    if unknown:
        raise DocumentError(f"{_at(row, min(unknown))}: the collection declares no such field")
    entity: dict[str, object] = {}
    size = 0
    for column in target.columns:
        if column.name in target.spaces:
            continue
        value = getattr(row, column.name) if column.name in RESERVED else row.fields.get(column.name)
        if column.type == "JSON":
            value = dict(row.metadata)
            size += _json(row, column.name, value)
        elif value is None:
            if not column.nullable:
                raise DocumentError(f"{_at(row, column.name)}: every document must have it, and this one does not")
        else:
            size += _scalar(row, column, value)
        entity[column.name] = value
        size += _FIELD_BYTES
    return entity, size


def _scalar(row: Row, column: Column, value: object) -> int:
    """Check a value that is not None and return its bytes."""
    where = _at(row, column.name)
    if column.type == "VARCHAR":
        if not isinstance(value, str):
            raise DocumentError(f"{where}: a {_kind(value)}, where the field takes text")
        length = len(_utf8(where, value))
        if column.max_length is not None and length > column.max_length:
            raise DocumentError(f"{where}: {length} bytes of UTF-8, where the field takes {column.max_length}")
        return length
    if column.type == "BOOL":
        if not isinstance(value, bool):
            raise DocumentError(f"{where}: a {_kind(value)}, where the field takes true or false")
        return 1
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DocumentError(f"{where}: a {_kind(value)}, where the field takes a number")
    return _number(where, column, value)


def _number(where: str, column: Column, value: float) -> int:
    bits = _INTEGERS.get(column.type)
    if bits is not None:
        if not isinstance(value, int):
            raise DocumentError(f"{where}: {value!r}, where the field takes whole numbers")
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise DocumentError(f"{where}: {value} does not fit {column.type}")
        return 10  # the longest that protobuf makes of it
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (column.type == "FLOAT" and abs(number) > _LARGEST_FLOAT):
        raise DocumentError(f"{where}: the number does not fit {column.type}")
    return 8


def _json(row: Row, name: str, value: dict[str, object]) -> int:
    where = _at(row, name)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError) as error:
        raise DocumentError(f"{where}: cannot be kept as JSON: {error}") from error
    size = len(_utf8(where, text))
    if size > LARGEST_JSON:
        raise DocumentError(f"{where}: {size} bytes of JSON, where Milvus takes {LARGEST_JSON}")
    for number in _integers(value):
        if not -(2**63) <= number < 2**64:
            raise DocumentError(f"{where}: the number {number} has more than 64 bits")
    return size


def _integers(value: object) -> Iterator[int]:
    left = [value]
    while left:
        at = left.pop()
        if isinstance(at, dict):
            left.extend(at.values())
        elif isinstance(at, list | tuple):
            left.extend(at)
        elif isinstance(at, int):
            yield at


def _dense(row: Row, column: Column, value: object, metric: str) -> object:
    where = _at(row, column.name)
    vector = np.asarray(value, dtype=np.float32)
    if vector.shape != (column.dimension,):
        raise DocumentError(f"{where}: a vector of shape {vector.shape}, where the field takes ({column.dimension},)")
    if not np.isfinite(vector).all():
        raise DocumentError(f"{where}: the vector has a value that is not finite")
    if metric != "L2" and not vector.any():
        raise DocumentError(f"{where}: the vector is zero, and {metric} has no meaning for it")
    return vector


def _sparse(row: Row, column: Column, value: SparseVector) -> dict[int, float]:
    where = _at(row, column.name)
    if len(value.indices) == 0:
        raise DocumentError(f"{where}: the sparse vector is empty")
    if not (np.isfinite(value.values) & (value.values > 0)).all():
        raise DocumentError(f"{where}: the sparse vector has a value that is not positive and finite")
    if int(value.indices.max()) > _LARGEST_INDEX:
        raise DocumentError(f"{where}: the sparse vector has an index over {_LARGEST_INDEX}")
    entity: dict[int, float] = dict(zip(value.indices.tolist(), value.values.tolist(), strict=True))
    if len(entity) != len(value.indices):
        raise DocumentError(f"{where}: the sparse vector has an index twice")
    return entity


def _utf8(where: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(f"{where}: character {error.start} is half a character, which UTF-8 cannot hold") from error


def _at(row: Row, field: str) -> str:
    return f"{row.document_id!a}, chunk {row.chunk_index}, field {field}"


def _kind(value: object) -> str:
    names = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "table"}
    return names.get(type(value), type(value).__name__)
