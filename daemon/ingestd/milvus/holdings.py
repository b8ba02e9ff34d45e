"""Rows read back: what a collection holds of documents, with the digests that their writer would compute.

All but two types of columns come back as they were sent (tried on 2.3.5 and Lite 3.2, from memory and from disk: JSON
to the digit, 64-bit integers, every character). A FLOAT comes back with single precision and is taken for the shortest
decimal that it can have been, which is the one that was sent where that has at most six digits. FLOAT and DOUBLE come
back as 1.0 where 1 was sent, and are taken for 1. Where that is wrong, the digest differs from the writer's and the
row, which was as it should be, is rewritten: that costs a request and harms nothing.

A digest in a column of its own was turned down: it would be one more field for every collection that is there already.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ingestd.model import Held, Row, Version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingestd.milvus.schema import Column, Wanted
    from ingestd.model import ChunkId, Digest, Json

_EXACT = 2**53
"""Whole numbers below this are themselves as floats."""


def columns(target: Wanted) -> list[str]:
    """Return the columns that have to be read: all that a digest covers, so neither text nor vectors."""
    fixed = ["id", "document_id", "version", "domain", "chunk_index", "source", "metadata"]
    return [*fixed, *(column.name for column in target.declared)]


def read(target: Wanted, found: Mapping[str, Any]) -> Row:
    """Return a row that was read back, without text and vectors. Its digest is its writer's, as far as that goes."""
    return Row(
        id=str(found["id"]),
        document_id=str(found["document_id"]),
        version=int(found["version"]),
        domain=str(found["domain"]),
        chunk_index=int(found["chunk_index"]),
        text="",
        source=str(found["source"]),
        fields={column.name: _as_sent(column, found.get(column.name)) for column in target.declared},
        metadata=found.get("metadata") or {},
    )


class Holdings:
    """What was read of a batch of documents, row by row."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[_Chunk]] = {}

    def add(self, row: Row) -> None:
        """Add a row."""
        version = Version(row.version, row.domain)
        chunk = _Chunk(row.id, row.digest(), version, row.chunk_index, row.source)
        self._chunks.setdefault(row.document_id, []).append(chunk)

    def of(self, document: str, tombstone: Version | None) -> Held | None:
        """Return what there is of a document, or None if there is nothing."""
        chunks = self._chunks.get(document, [])
        if not chunks and tombstone is None:
            return None
        # A version that was left half written has a first chunk beside that of the last one.
        first = min(chunks, key=lambda chunk: (chunk.place, -chunk.version.number), default=None)
        return Held(
            rows={chunk.id: chunk.digest for chunk in chunks},
            versions=frozenset(chunk.version for chunk in chunks),
            source=first.source if first is not None else "",
            tombstone=tombstone,
            made={chunk.id: chunk.version for chunk in chunks},
            firsts=frozenset(chunk.version for chunk in chunks if chunk.place == 0),
        )


class _Chunk(NamedTuple):
    """What counts of a row: without its metadata, which may be 64 kB."""

    id: ChunkId
    digest: Digest
    version: Version
    place: int
    source: str


def _as_sent(column: Column, value: Json) -> Json:
    """Return what a document most likely said where its column now says this."""
    if column.type not in {"FLOAT", "DOUBLE"} or not isinstance(value, float):
        return value
    number = float(str(np.float32(value))) if column.type == "FLOAT" else value
    negative_zero = number == 0 and math.copysign(1, number) < 0
    return int(number) if number.is_integer() and abs(number) < _EXACT and not negative_zero else number
