"""A Milvus collection as a sink: upserts, rewrites, deletes by key, and what a ledger asks back.

Upsert only, never insert: an insert of a key that is there makes a second row on a server. Deletes go by key, never
by filter: by key takes milliseconds, by filter as long as the collection is large. Requests are idempotent, so that
one whose outcome is not known is simply sent again.

Rewrites use partial updates where the server has them (2.6.2, Lite). The alternative for all servers, reading the
vectors back and writing the row whole, stays for the others: it moves every vector twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ingestd.errors import ConfigError, DocumentError, UnavailableError
from ingestd.milvus import catalog, rows
from ingestd.milvus.expression import keepable, one_of, quoted, runs
from ingestd.milvus.holdings import Holdings, as_kept, columns, read
from ingestd.milvus.schema import LONGEST_DOCUMENT_ID, PROPERTY_ID, possible
from ingestd.milvus.tombstones import Tombstones
from ingestd.milvus.verdict import Request, TooLargeError
from ingestd.model import Hit, SparseVector, SparseVectors, StoredRow, Version
from ingestd.ports import always

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from ingestd.milvus.client import Connection
    from ingestd.milvus.rows import Encoded
    from ingestd.milvus.schema import Difference, Wanted
    from ingestd.model import ChunkId, Held, Json, Row, Tombstone, Vectors

_KEYS = 1000
"""Keys in one question or delete: 40 kB of an expression, 0.1 s on Lite."""
_COUNTED = 4000
"""Keys that are counted at a time: a Strong read waits for 0.2 to 0.4 s, whatever it counts."""
_PAGE = 5000
"""Rows of one page when all are read; a server answers 16,384 at most. Lite looks through all rows for each page."""
_DOCUMENTS = 500
"""Documents in one question: 0.1 s on Lite and 10 ms on a server, which lets any Strong read wait 200 to 400 ms (20,000
rows). Twice as many save nothing on Lite, and have more rows than an answer takes as soon as each has three chunks."""
_ANSWER = 4096
"""The most rows of an answer about documents: they carry the metadata, and an answer over 64 MiB is refused."""
_FULL = _ANSWER * 3 // 4
"""An answer of so many rows may lack some: Milvus 2.3 (by its source) counts a row twice that two segments have while
they are merged, so that an answer which is a few short of the limit is not known to be whole."""
_ALL_KEYS = (0, 16**32)
"""Keys as numbers: from, to before."""
_PARTS = 4
"""In which a full answer is asked for again: documents of two dozen chunks each take one more round."""
_TOO_MUCH = ("larger than max", "exceed the limit size", "maxOutputSize")
"""What servers say of an answer that they do not send: 64 MiB by gRPC, 100 MB by their own limit."""
_HITS = 10_000
"""Hits of one search request, over all its queries: they carry their texts."""
_NOBODY = "probe"
"""No chunk has this key: theirs have 32 digits."""
_HNSW_EF = 64


class MilvusSink:
    """One collection.

    Args:
        connection: Shared by all collections.
        wanted: What the collection should look like.
        shared: Whether other members write to the collection: deletes are noted for them, and theirs are read.
    """

    def __init__(self, connection: Connection, wanted: Wanted, *, shared: bool = False) -> None:
        self.collection = wanted.collection
        self._connection = connection
        self._wanted = wanted
        self._names = [column.name for column in wanted.declared]
        self._columns = {column.name: column for column in wanted.declared}
        self._tombstones = Tombstones(connection, wanted.collection) if shared else None

    def plan(self) -> tuple[Difference, ...]:
        """Return what differs between the collection and what is wanted, tombstones too. Changes nothing.

        Raises:
            ConfigError: The server cannot have such a collection.
            UnavailableError: It does not answer.
        """
        differences = catalog.plan(self._connection, self._possible())
        return differences if self._tombstones is None else (*differences, *self._tombstones.plan())

    def prepare(self, *, create: bool = True) -> str:
        """Make the collection ready: created if absent, compared, loaded.

        Args:
            create: Whether what is absent may be created.

        Returns:
            The random id that the collection was made with.

        Raises:
            ConfigError: It differs; one line a difference, each with its cure.
            UnavailableError: The server does not answer.
        """
        catalog.prepare(self._connection, self._possible(), create=create)
        if self._tombstones is not None:
            self._tombstones.prepare(create=create)
        identity = catalog.identity(self._connection, self.collection)
        if identity is None:
            raise ConfigError(
                f"collection {self.collection}: lost its property {PROPERTY_ID}; was it dropped just now?"
            )
        return identity

    def upsert(self, new: Sequence[Row], *, allow: Callable[[], None] = always) -> None:
        """Write rows with their vectors. See ``ports.Sink``.

        Raises:
            DocumentError: A row cannot be kept, or the server refuses it.
        """
        rows.unique(new)
        for batch in self._batches(rows.encode(self._wanted, row, vectors=True) for row in new):
            self._send(batch, allow)

    def rewrite(self, changed: Sequence[Row], *, allow: Callable[[], None] = always) -> frozenset[ChunkId]:
        """Write all but the vectors of rows that are there. See ``ports.Sink``."""
        rows.unique(changed)
        if not changed:
            return frozenset()
        partial = self._connection.capabilities().partial_update
        rewrite = self._rewrite_partly if partial else self._rewrite_whole
        missing: set[ChunkId] = set()
        for batch in self._batches(rows.encode(self._wanted, row, vectors=False) for row in changed):
            missing |= rewrite(batch, allow)
        return frozenset(missing)

    def delete(self, ids: Sequence[ChunkId], *, allow: Callable[[], None] = always) -> None:
        """Delete rows by key; those that are not there count as deleted. See ``ports.Sink``."""
        for start in range(0, len(ids), _KEYS):
            keys = list(ids[start : start + _KEYS])
            doing = f"deleting {len(keys)} rows from {self.collection}"
            allow()
            self._connection.call("delete", self.collection, doing=doing, request=Request.KEYS, ids=keys)

    def existing(self, ids: Sequence[ChunkId]) -> frozenset[ChunkId]:
        """Return which of the ids are there, read with Strong consistency."""
        return frozenset(str(row["id"]) for row in self._by_key(ids, ["id"]))

    def stored(self) -> Iterator[StoredRow]:
        """Yield every row of the collection, in the order of their keys, a page in memory at a time."""
        # A page does not wait for what was just written: the client drops the level that it is asked for with. Counting
        # does wait.
        self.count()
        last = ""
        while page := self._page(last):
            for row in page:
                version = Version(int(row["version"]), str(row["domain"]))
                yield StoredRow(str(row["id"]), str(row["document_id"]), version, str(row["source"]))
            last = str(page[-1]["id"])

    def held(self, documents: Sequence[str], *, closely: bool = False) -> Mapping[str, Held]:
        """Return what is there of these documents. See ``ports.Sink``.

        Rows are read before tombstones. Another member notes a delete before it deletes, so that rows which were gone
        already have a tombstone by now; the other way round a delete in between would have left neither.
        """
        asked = keepable(documents, LONGEST_DOCUMENT_ID)
        found = Holdings(closely=closely)
        fields = columns(self._wanted, closely=closely)
        for run in runs(asked, _DOCUMENTS):
            for row in self._of_documents(run, *_ALL_KEYS, fields):
                found.add(read(self._wanted, row))
        if closely:
            found.repeated(self._copies(found.ids()))
        buried = self._tombstones.of(asked) if self._tombstones is not None else {}
        held = {document: found.of(document, buried.get(document)) for document in asked}
        return {document: there for document, there in held.items() if there is not None}

    def bury(self, tombstones: Sequence[Tombstone]) -> None:
        """Note deletes for the other members, where there are any."""
        if self._tombstones is not None:
            self._tombstones.write(tombstones)

    def sweep(self, before_ms: int) -> int:
        """Delete tombstones that are older than this (milliseconds since 1970); return how many there were."""
        return self._tombstones.sweep(before_ms) if self._tombstones is not None else 0

    def count(self) -> int:
        """Return the number of rows, read with Strong consistency."""
        answer = self._query(f"counting the rows of {self.collection}", "", ["count(*)"])
        return int(answer[0]["count(*)"])

    def identity(self) -> str | None:
        """Return the random id of the collection as it is now, or None if it is not there, or not of our making."""
        return catalog.identity(self._connection, self.collection)

    def probe(self) -> None:
        """Read and delete a key that nobody has: a server that is out of quota or disk answers reads alone."""
        self._query(f"probing {self.collection}", one_of("id", [_NOBODY]), ["id"])
        self.delete([_NOBODY])

    def validate(self, row: Row) -> None:
        """Check all of a row but its vectors.

        Raises:
            DocumentError: Which field, and why.
        """
        rows.check(self._wanted, row)

    def kept(self, name: str, value: Json) -> Json:
        """Return a declared field's value in the form that comes back: a row's digest is to be the same then."""
        return as_kept(self._columns[name], value)

    def search(self, field: str, vectors: Vectors, limit: int) -> Sequence[Sequence[Hit]]:
        """Return the nearest rows for each query vector, best first.

        A sparse query without any weight meets nothing. The score is Milvus's own: with L2, the least is the best.
        """
        queries = {
            at: {int(i): float(v) for i, v in zip(vector.indices, vector.values, strict=True)}
            if isinstance(vector, SparseVector)
            else np.asarray(vector, dtype=np.float32)
            for at, vector in enumerate(vectors)
            if not (isinstance(vectors, SparseVectors) and len(vector.indices) == 0)
        }
        hits: list[list[Hit]] = [[] for _ in range(len(vectors))]
        step = max(1, _HITS // limit)
        places = list(queries)
        for start in range(0, len(places), step):
            part = places[start : start + step]
            for place, found in zip(part, self._search(field, [queries[at] for at in part], limit), strict=True):
                hits[place] = [self._hit(row) for row in found]
        return hits

    def match(self, field: str, texts: Sequence[str], limit: int) -> Sequence[Sequence[Hit]]:
        """Return the rows whose words are nearest to each text's, best first, by a field that Milvus fills itself.

        The greater score is the better one: Lite gives BM25 a minus that servers do not.
        """
        sign = -1.0 if self._connection.capabilities().lite else 1.0
        step = max(1, _HITS // limit)
        hits: list[list[Hit]] = []
        for start in range(0, len(texts), step):
            for found in self._search(field, list(texts[start : start + step]), limit):
                rated = [self._hit(row) for row in found]
                hits.append([replace(hit, score=sign * hit.score) for hit in rated])
        return hits

    def _possible(self) -> Wanted:
        return possible(self._wanted, self._connection.capabilities())

    def _batches(self, encoded: Iterable[Encoded]) -> Iterator[list[Encoded]]:
        """Yield requests. Rows are encoded as they are asked for, so that no more than a request is in memory."""
        config = self._connection.config
        return rows.batches(encoded, config.batch_bytes, config.batch_rows)

    def _send(
        self,
        batch: list[Encoded],
        allow: Callable[[], None],
        **options: Any,  # noqa: ANN401 - passed on to the client as they are
    ) -> None:
        if not batch:
            return
        doing = f"writing {len(batch)} rows to {self.collection}"
        allow()
        try:
            self._connection.call(
                "upsert",
                self.collection,
                doing=doing,
                request=Request.WRITE,
                data=[row.entity for row in batch],
                **options,
            )
        except TooLargeError:
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            self._send(batch[:half], allow, **options)
            self._send(batch[half:], allow, **options)

    def _rewrite_partly(self, batch: list[Encoded], allow: Callable[[], None]) -> frozenset[ChunkId]:
        """Write one request's rows without vectors; return the ids that are not there."""
        try:
            self._send(batch, allow, partial_update=True)
        except DocumentError:
            # Most likely a row is not there: the server misses its vectors. Asking before every rewrite would cost
            # a read, and on a server a wait for its clock, for what hardly ever happens.
            there = self.existing([row.id for row in batch])
            missing = frozenset(row.id for row in batch) - there
            if not missing:
                raise
            self._send([row for row in batch if row.id in there], allow, partial_update=True)
            return missing
        return frozenset()

    def _rewrite_whole(self, batch: list[Encoded], allow: Callable[[], None]) -> frozenset[ChunkId]:
        """Write rows with the vectors that they have, for servers without partial updates."""
        fields = [column.name for column in self._wanted.vectors]
        # Few at a time: the answer carries the vectors.
        missing: set[ChunkId] = set()
        for start in range(0, len(batch), _KEYS):
            part = batch[start : start + _KEYS]
            kept = {str(row["id"]): row for row in self._by_key([row.id for row in part], ["id", *fields])}
            missing.update(row.id for row in part if row.id not in kept)
            whole = (self._with_vectors(row, kept[row.id]) for row in part if row.id in kept)
            for full in self._batches(whole):  # with their vectors they may be more than a request
                self._send(full, allow)
        return frozenset(missing)

    def _with_vectors(self, row: Encoded, kept: Mapping[str, Any]) -> Encoded:
        entity = dict(row.entity)
        size = row.size
        for column in self._wanted.vectors:
            vector = kept[column.name]
            entity[column.name] = vector if isinstance(vector, dict) else np.asarray(vector, dtype=np.float32)
            size += 8 * len(vector)
        return rows.Encoded(row.id, entity, size)

    def _by_key(self, ids: Sequence[ChunkId], fields: list[str]) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(ids), _KEYS):
            keys = ids[start : start + _KEYS]
            yield from self._query(f"looking up {len(keys)} rows of {self.collection}", one_of("id", keys), fields)

    def _copies(self, ids: Sequence[ChunkId]) -> dict[ChunkId, int]:
        """Return which of these keys are there more than once, and how often: found by counting, in halves.

        Milvus Lite keeps one row a key, whatever is sent to it.
        """
        if self._connection.capabilities().lite:
            return {}
        found: dict[ChunkId, int] = {}
        left = [ids[start : start + _COUNTED] for start in range(0, len(ids), _COUNTED)]
        while left:
            run = left.pop()
            answer = self._query(f"counting {len(run)} keys of {self.collection}", one_of("id", run), ["count(*)"])
            count = int(answer[0]["count(*)"])
            if count > len(run) == 1:
                found[run[0]] = count
            elif count > len(run):
                left += [run[: len(run) // 2], run[len(run) // 2 :]]
        return found

    def _of_documents(
        self, documents: Sequence[str], low: int, high: int, fields: list[str]
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of these documents whose keys, as numbers, are in a range.

        An answer that is too large is asked for again in parts, by ranges of the key. Keys are hashes, so that the
        parts are alike. The client's iterator was turned down: its pages come without a Strong read.
        """
        doing = f"looking up {len(documents)} documents of {self.collection}"
        expression = one_of("document_id", documents)
        if (low, high) != _ALL_KEYS:
            expression += f' and id >= "{low:032x}" and id <= "{high - 1:032x}"'
        try:
            answer = self._query(doing, expression, fields, limit=_ANSWER)
        except UnavailableError as error:
            if high - low == 1 or not any(words in str(error) for words in _TOO_MUCH):
                raise
            answer = None
        if answer is not None and len(answer) < _FULL:
            yield from answer
            return
        step = -(-(high - low) // _PARTS)
        for start in range(low, high, step):
            yield from self._of_documents(documents, start, min(start + step, high), fields)

    def _page(self, last: str) -> Sequence[Mapping[str, Any]]:
        # These two make the answer the rows that come next by key; without them a server answers any rows. They are
        # what the client's own iterator sends, which is not used because its first question has no deadline.
        options = {"iterator": "True", "reduce_stop_for_best": "True", "limit": _PAGE}
        fields = ["id", "document_id", "version", "domain", "source"]
        return self._query(f"reading {self.collection}", f"id > {quoted(last)}", fields, **options)

    def _query(
        self,
        doing: str,
        expression: str,
        fields: list[str],
        **options: Any,  # noqa: ANN401 - passed on to the client as they are
    ) -> Sequence[Mapping[str, Any]]:
        answer: Sequence[Mapping[str, Any]] = self._connection.call(
            "query",
            self.collection,
            doing=doing,
            request=Request.KEYS,
            filter=expression,
            output_fields=fields,
            consistency_level="Strong",
            **options,
        )
        return answer

    def _search(self, field: str, queries: Sequence[object], limit: int) -> Sequence[Sequence[Mapping[str, Any]]]:
        index = self._possible().index(field)
        parameters = dict(self._wanted.search.get(field, {}))
        if index.type.startswith("HNSW"):  # a server refuses to look at fewer rows than it should return
            parameters["ef"] = max(int(parameters.get("ef", _HNSW_EF)), limit)
        answer: Sequence[Sequence[Mapping[str, Any]]] = self._connection.call(
            "search",
            self.collection,
            doing=f"searching {field} of {self.collection}",
            data=list(queries),
            anns_field=field,
            limit=limit,
            output_fields=["document_id", "chunk_index", "text", "source", "metadata", *self._names],
            search_params={"metric_type": index.metric, "params": parameters},
            consistency_level=self._connection.config.consistency,
        )
        return answer

    def _hit(self, found: Mapping[str, Any]) -> Hit:
        entity = found["entity"]
        declared = {name: entity[name] for name in self._names if entity.get(name) is not None}
        return Hit(
            id=str(found["id"]),
            document_id=str(entity["document_id"]),
            chunk_index=int(entity["chunk_index"]),
            score=float(found["distance"]),
            text=str(entity["text"]),
            source=str(entity["source"]),
            metadata={**(entity.get("metadata") or {}), **declared},
        )
