"""Rows read back: what a collection holds of documents, with the digests that their writer would compute.

All but two types of columns come back as they were sent (tried on 2.3.5 and Lite 3.2, from memory and from disk: JSON
to the digit, 64-bit integers, every character). A FLOAT comes back with single precision, and both FLOAT and DOUBLE say
1.0 where 1 was sent. So numbers are brought into one form on both ways (``as_kept``): the shortest decimal that the
column cannot tell from what was sent, whole numbers as such.

A close look reads the texts too, and holds each against its row's key, which is a hash of it; and it counts the rows,
since a server that has a key twice answers every question with one of the two.

A digest in a column of its own was turned down: it would be one more field for every collection that is there already.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ingestd.model import ChunkKeys, Detail, Held, Row, Version, canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingestd.milvus.schema import Column, Wanted
    from ingestd.model import ChunkId, Digest, Json

_EXACT = 2**53
"""Whole numbers below this are themselves as floats."""
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_MISSING = 1_000
"""Equal chunks of one document that may be missing before one that is there, for its key to be known."""


def columns(target: Wanted, *, closely: bool = False) -> list[str]:
    """Return the columns that have to be read: all that a digest covers, so no vectors, and no text but for a close
    look.
    """  # noqa: D205 - one sentence
    fixed = ["id", "document_id", "version", "domain", "chunk_index", "source", "metadata"]
    return [*fixed, *(column.name for column in target.declared), *(["text"] if closely else [])]


def read(target: Wanted, found: Mapping[str, Any]) -> Row:
    """Return a row that was read back, with its text, if that was read, and no vectors. Its digest is its writer's."""
    return Row(
        id=str(found["id"]),
        document_id=str(found["document_id"]),
        version=int(found["version"]),
        domain=str(found["domain"]),
        chunk_index=int(found["chunk_index"]),
        text=str(found.get("text", "")),
        source=str(found["source"]),
        fields={column.name: as_kept(column, found.get(column.name)) for column in target.declared},
        metadata=found.get("metadata") or {},
    )


class Holdings:
    """What was read of a batch of documents, row by row.

    Args:
        closely: Whether the rows were read with their texts.
    """

    def __init__(self, *, closely: bool = False) -> None:
        self._closely = closely
        self._chunks: dict[str, list[_Chunk]] = {}
        self._copies: Mapping[ChunkId, int] = {}

    def add(self, row: Row) -> None:
        """Add a row."""
        version = Version(row.version, row.domain)
        close = _Close.of(row) if self._closely else None
        chunk = _Chunk(row.id, row.digest(), version, row.chunk_index, row.source, close)
        self._chunks.setdefault(row.document_id, []).append(chunk)

    def ids(self) -> list[ChunkId]:
        """Return the keys of all rows."""
        return [chunk.id for chunks in self._chunks.values() for chunk in chunks]

    def repeated(self, copies: Mapping[ChunkId, int]) -> None:
        """Take note of keys that are there more than once, and how often."""
        self._copies = {**self._copies, **copies}

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
            details=self._details(chunks),
        )

    def _details(self, chunks: list[_Chunk]) -> dict[ChunkId, Detail]:
        looked_at = [(chunk, chunk.close) for chunk in chunks if chunk.close is not None]
        equals = Counter(close.keys[0] for _chunk, close in looked_at if close.keys is not None)
        return {
            chunk.id: Detail(
                chunk.place,
                chunk.source,
                close.said,
                genuine=close.stands_for(chunk.id, equals),
                copies=self._copies.get(chunk.id, 1),
            )
            for chunk, close in looked_at
        }


class _Close(NamedTuple):
    """What a close look keeps of a row."""

    said: Digest
    keys: ChunkKeys | None
    """Of its text; None: the row has the key of that text's first occurrence, as nearly all have."""

    @staticmethod
    def of(row: Row) -> _Close:
        said = [row.source, dict(row.fields), dict(row.metadata)]
        keys = ChunkKeys(row.document_id, row.text)
        return _Close(hashlib.sha256(canonical_json(said)).digest()[:16], None if keys[0] == row.id else keys)

    def stands_for(self, chunk_id: ChunkId, equals: Mapping[ChunkId, int]) -> bool:
        """Return whether a row's key is one that its text can have.

        Args:
            chunk_id: The row's.
            equals: How many rows of the document have a text, and another key than its first; by that first key.
        """
        keys = self.keys
        return keys is None or any(keys[at] == chunk_id for at in range(1, equals[keys[0]] + _MISSING))


class _Chunk(NamedTuple):
    """What counts of a row: without its text and its metadata, each of which may be 64 kB."""

    id: ChunkId
    digest: Digest
    version: Version
    place: int
    source: str
    close: _Close | None


def as_kept(column: Column, value: Json) -> Json:
    """Return a declared field's value in the form that it is kept in: equal for what the column cannot tell apart.

    A value that the column does not take is returned as it is.
    """
    if column.type not in {"FLOAT", "DOUBLE"} or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        number = float(value)
    except OverflowError:
        return value
    if not math.isfinite(number) or (column.type == "FLOAT" and abs(number) > _LARGEST_FLOAT):
        return value
    if column.type == "FLOAT":
        number = float(str(np.float32(number)))
    negative_zero = number == 0 and math.copysign(1, number) < 0
    return int(number) if number.is_integer() and abs(number) < _EXACT and not negative_zero else number
