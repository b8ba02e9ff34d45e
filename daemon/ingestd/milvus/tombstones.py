"""Tombstones: deletes that the members of a group tell one another of, kept in Milvus beside the collections.

A member that takes over a partition has no ledger of it, and rows that are gone tell of no version: a delete leaves a
row here, so that an older record of the document cannot bring it back. One collection serves all; a key hashes the
collection's name and the document's id, so that both are found by key alone. A document that is written again leaves
its tombstone where it is: its rows say the later version, and whoever reads compares.

Marking deletes in the documents' own collection was turned down: every search would have to filter the marks out. So
was a topic of its own: each member would have to keep all of it.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from ingestd.milvus import catalog
from ingestd.milvus.expression import keepable, one_of
from ingestd.milvus.schema import LONGEST_DOCUMENT_ID, TOMBSTONES, Column, Index, Wanted
from ingestd.milvus.verdict import Request
from ingestd.model import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from ingestd.milvus.client import Connection
    from ingestd.milvus.schema import Difference
    from ingestd.model import Tombstone

_KEYS = 1000
"""Tombstones in one request: 5 MB at most."""
_SWEPT = 10_000
"""Keys that one question of a sweep brings."""
_VECTOR = "vector"
_WANTED = Wanted(
    collection=TOMBSTONES,
    columns=(
        Column("id", "VARCHAR", key=True, max_length=32),
        Column("collection", "VARCHAR", max_length=255),
        Column("document_id", "VARCHAR", max_length=LONGEST_DOCUMENT_ID),
        Column("version", "INT64"),
        Column("domain", "VARCHAR", max_length=512),
        Column("deleted_at", "INT64"),
        Column(_VECTOR, "FLOAT_VECTOR", dimension=2),
    ),
    indexes=(Index(_VECTOR, "FLAT", "L2"),),
    spaces={_VECTOR: "none"},
)
"""Every server needs a vector in a collection: this one says nothing."""


class Tombstones:
    """The tombstones of one collection.

    Args:
        connection: Shared.
        collection: The collection that the documents were deleted from.
        now: Seconds since 1970.
    """

    def __init__(self, connection: Connection, collection: str, *, now: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._collection = collection
        self._now = now

    def plan(self) -> tuple[Difference, ...]:
        """Return what differs between the collection of the tombstones and what it should be. Changes nothing."""
        return catalog.plan(self._connection, _WANTED)

    def prepare(self, *, create: bool) -> None:
        """Make their collection ready. See ``catalog.prepare``."""
        catalog.prepare(self._connection, _WANTED, create=create)

    def of(self, documents: Sequence[str]) -> Mapping[str, Version]:
        """Return the version that deleted each of these documents, where one is remembered. A Strong read."""
        found: dict[str, Version] = {}
        asked = keepable(documents, LONGEST_DOCUMENT_ID)
        for start in range(0, len(asked), _KEYS):
            run = asked[start : start + _KEYS]
            doing = f"reading the tombstones of {len(run)} documents of {self._collection}"
            expression = one_of("id", (self._key(document) for document in run))
            for row in self._query(doing, expression, ["document_id", "version", "domain"]):
                found[str(row["document_id"])] = Version(int(row["version"]), str(row["domain"]))
        return found

    def write(self, tombstones: Sequence[Tombstone]) -> None:
        """Note deletes. Of two of one document the last counts."""
        last = {tombstone.document_id: tombstone.version for tombstone in tombstones}
        # Of a document whose id no row can hold, none is there to be deleted.
        buried = keepable(last, LONGEST_DOCUMENT_ID)
        deleted_at = int(self._now() * 1000)
        for start in range(0, len(buried), _KEYS):
            run = buried[start : start + _KEYS]
            self._connection.call(
                "upsert",
                TOMBSTONES,
                doing=f"noting {len(run)} deletes in {self._collection}",
                request=Request.KEYS,
                data=[self._row(document, last[document], deleted_at) for document in run],
            )

    def sweep(self, before_ms: int) -> int:
        """Delete the tombstones of this collection that are older than a time; return how many there were.

        Keys are asked for and deleted by key, as everywhere. A delete that is noted again while its old tombstone is
        being swept is forgotten with it: sweep what is so old that its records are gone from the topic.

        Args:
            before_ms: Milliseconds since 1970.
        """
        swept = 0
        while keys := [str(row["id"]) for row in self._older(before_ms)]:
            for start in range(0, len(keys), _KEYS):
                run = keys[start : start + _KEYS]
                doing = f"deleting {len(run)} old tombstones of {self._collection}"
                self._connection.call("delete", TOMBSTONES, doing=doing, request=Request.KEYS, ids=run)
            swept += len(keys)
        return swept

    def _older(self, before_ms: int) -> Iterator[Mapping[str, Any]]:
        expression = f"{one_of('collection', [self._collection])} and deleted_at < {before_ms}"
        yield from self._query(f"looking for old tombstones of {self._collection}", expression, ["id"], limit=_SWEPT)

    def _row(self, document: str, version: Version, deleted_at: int) -> dict[str, object]:
        return {
            "id": self._key(document),
            "collection": self._collection,
            "document_id": document,
            "version": version.number,
            "domain": version.domain,
            "deleted_at": deleted_at,
            _VECTOR: [0.0, 0.0],
        }

    def _key(self, document: str) -> str:
        hasher = hashlib.sha256()
        for part in (self._collection.encode(), document.encode()):
            hasher.update(len(part).to_bytes(8, "big"))
            hasher.update(part)
        return hasher.hexdigest()[:32]

    def _query(
        self,
        doing: str,
        expression: str,
        fields: list[str],
        **options: Any,  # noqa: ANN401 - passed on to the client as they are
    ) -> Sequence[Mapping[str, Any]]:
        answer: Sequence[Mapping[str, Any]] = self._connection.call(
            "query",
            TOMBSTONES,
            doing=doing,
            request=Request.KEYS,
            filter=expression,
            output_fields=fields,
            consistency_level="Strong",
            **options,
        )
        return answer
