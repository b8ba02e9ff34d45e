"""The contract of ``ports.Sink``, over Milvus Lite and over a real Milvus."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ingestd.errors import DocumentError
from ingestd.model import Held, SparseVector, SparseVectors, Tombstone, Version, chunk_ids
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.milvus import Target

    from ingestd.model import Row

_numbers = count(0, 100_000)


@pytest.fixture(scope="module")
def sink(target: Target) -> MilvusSink:
    """A collection that is shared by the tests of this module: making one takes seconds on a server."""
    made = MilvusSink(target.connection, target.wanted("contract"), shared=True)
    made.prepare()
    return made


@pytest.fixture
def base() -> int:
    """The first of a range of row numbers that no other test uses."""
    return next(_numbers)


@pytest.fixture
def some(target: Target, sink: MilvusSink, base: int) -> Iterator[list[Row]]:
    """Twenty rows that are in the collection, and taken out again."""
    rows = [target.row(base + n) for n in range(20)]
    sink.upsert(rows)
    yield rows
    sink.delete([row.id for row in rows])


def _expected(rows: list[Row], document: str) -> Held:
    """Return what is there of a document when these rows are."""
    chunks = sorted((row for row in rows if row.document_id == document), key=lambda row: row.chunk_index)
    made = {row.id: Version(row.version, row.domain) for row in chunks}
    firsts = frozenset(made[row.id] for row in chunks if row.chunk_index == 0)
    digests = {row.id: row.digest() for row in chunks}
    return Held(digests, frozenset(made.values()), chunks[0].source, made=made, firsts=firsts)


def _read(sink: MilvusSink, target: Target, ids: list[str]) -> dict[str, dict[str, object]]:
    """Read rows past the sink, all columns."""
    keys = ", ".join(f'"{one}"' for one in ids)
    found = target.connection.call(
        "query",
        sink.collection,
        doing="reading",
        filter=f"id in [{keys}]",
        output_fields=["*"],
        consistency_level="Strong",
    )
    return {row["id"]: dict(row) for row in found}


def test_what_is_written_is_there(sink: MilvusSink, target: Target, some: list[Row]) -> None:
    """Every column of a row comes back as it was sent."""
    found = _read(sink, target, [row.id for row in some])
    assert found.keys() == {row.id for row in some}
    for row in some:
        stored = found[row.id]
        assert stored["document_id"] == row.document_id
        assert (stored["version"], stored["domain"]) == (row.version, row.domain)
        assert (stored["chunk_index"], stored["text"], stored["source"]) == (row.chunk_index, row.text, row.source)
        assert (stored["lang"], stored["year"]) == ("en", 2000)
        assert stored["metadata"] == row.metadata
        np.testing.assert_allclose(np.array(stored["dense"]), np.asarray(row.vectors["dense"]), rtol=1e-6)


def test_an_upsert_again_changes_nothing(sink: MilvusSink, some: list[Row]) -> None:
    """Upserts are idempotent: after a deadline the batch is simply sent again."""
    before = sink.count()
    sink.upsert(some)
    assert sink.count() == before


def test_existing_tells_what_is_there(sink: MilvusSink, some: list[Row]) -> None:
    """Only ids that are there are returned, right after the write."""
    ids = [row.id for row in some]
    assert sink.existing([*ids, "f" * 32]) == set(ids)
    assert sink.existing([]) == frozenset()


def test_existing_takes_more_ids_than_one_request(sink: MilvusSink, some: list[Row]) -> None:
    """Several requests make one answer."""
    ids = [f"{n:032x}" for n in range(10**12, 10**12 + 2500)]
    assert sink.existing([*ids, some[0].id]) == {some[0].id}


def test_delete_takes_away_what_is_named(sink: MilvusSink, some: list[Row]) -> None:
    """Deletes go by key, and a key that is not there counts as deleted."""
    gone = [row.id for row in some[:5]]
    sink.delete([*gone, "e" * 32])
    assert sink.existing([row.id for row in some]) == {row.id for row in some[5:]}
    sink.delete([])


def test_rewrite_changes_all_but_the_vectors(sink: MilvusSink, target: Target, some: list[Row], base: int) -> None:
    """A rewrite leaves the vectors, replaces the metadata whole, and names the rows that are not there."""
    changed = [target.row(base + n, chunk_index=n + 7, metadata={"new": n}, vectors={}) for n in range(3)]
    absent = target.row(base + 5000, vectors={})
    assert sink.rewrite([*changed, absent]) == {absent.id}
    found = _read(sink, target, [row.id for row in [*changed, absent]])
    assert found.keys() == {row.id for row in changed}
    for before, row in zip(some, changed, strict=False):
        stored = found[row.id]
        assert (stored["chunk_index"], stored["metadata"]) == (row.chunk_index, row.metadata)
        np.testing.assert_allclose(np.array(stored["dense"]), np.asarray(before.vectors["dense"]), rtol=1e-6)
        if target.sparse:
            assert set(stored["sparse"]) == set(before.vectors["sparse"].indices.tolist())  # type: ignore[call-overload, union-attr]
    assert sink.rewrite([]) == frozenset()


def test_rewrite_of_nothing_that_is_there(sink: MilvusSink, target: Target, base: int) -> None:
    """Where no row is there, all are named and none appears."""
    rows = [target.row(base + n, vectors={}) for n in range(3)]
    assert sink.rewrite(rows) == {row.id for row in rows}
    assert sink.existing([row.id for row in rows]) == frozenset()


def test_nothing_is_sent_that_is_not_allowed(sink: MilvusSink, target: Target, some: list[Row], base: int) -> None:
    """Writes, rewrites and deletes ask before their requests, and what that raises goes through."""
    ids = [row.id for row in some]
    before = _read(sink, target, ids)
    row = target.row(base, metadata={"new": 1})

    def refuse() -> None:
        raise PermissionError

    for call in (
        lambda: sink.upsert([row, target.row(base + 7000)], allow=refuse),
        lambda: sink.rewrite([replace(row, vectors={})], allow=refuse),
        lambda: sink.delete(ids, allow=refuse),
    ):
        with pytest.raises(PermissionError):
            call()
    assert _read(sink, target, [*ids, target.row(base + 7000).id]).keys() == before.keys()
    assert _read(sink, target, [row.id])[row.id]["metadata"] == before[row.id]["metadata"]


def test_stored_yields_every_row_once(sink: MilvusSink, some: list[Row]) -> None:
    """A ledger can be rebuilt from it: key, document, version with its domain, source."""
    stored = list(sink.stored())
    assert len(stored) == len({row.id for row in stored}) == sink.count()
    found = {row.id: row for row in stored}
    for row in some:
        kept = found[row.id]
        assert (kept.document_id, kept.source) == (row.document_id, row.source)
        assert kept.version == Version(row.version, row.domain)


def test_held_tells_what_is_there_of_documents(sink: MilvusSink, target: Target, base: int, some: list[Row]) -> None:
    """Rows with the digests of their writer, their versions, and their source; right after the write, all at once."""
    documents = sorted({row.document_id for row in some})
    held = sink.held([*documents, "nowhere.txt", *documents, "half \ud800", "é" * 2049])
    assert held == {document: _expected(some, document) for document in documents}
    assert sink.held([]) == {}
    other = {"lang": None, "year": None} if target.nullable else {"lang": "", "year": -1}
    changed = target.row(base, fields=other, metadata={"é": [1, 1.0, None, {"deep": "\u2028"}]}, domain="topic/1")
    sink.upsert([changed])
    document = changed.document_id
    rows = [changed, *(row for row in some if row.document_id == document and row.id != changed.id)]
    assert sink.held([document]) == {document: _expected(rows, document)}


def test_held_of_a_version_that_was_left_half_written(sink: MilvusSink, target: Target, base: int) -> None:
    """Both versions are named, of two domains if need be, and the source is that of the later first chunk."""
    old, new = Version(7, "topic/0"), Version(8, "topic/1")
    made = {"document_id": f"half of {base}", "chunk_index": 0}
    rows = [
        target.row(base, version=old.number, domain=old.domain, source="old", **made),
        target.row(base + 1, version=old.number, domain=old.domain, source="old", **{**made, "chunk_index": 1}),
        target.row(base + 2, version=new.number, domain=new.domain, source="new", **made),
    ]
    sink.upsert(rows)
    held = sink.held([f"half of {base}"])[f"half of {base}"]
    versions = {row.id: Version(row.version, row.domain) for row in rows}
    firsts = frozenset(versions[row.id] for row in rows if row.chunk_index == 0)
    digests = {row.id: row.digest() for row in rows}
    assert held == Held(digests, frozenset({old, new}), "new", made=versions, firsts=firsts)
    sink.delete([row.id for row in rows])
    assert sink.held([f"half of {base}"]) == {}


def _document(target: Target, base: int, *texts: str) -> list[Row]:
    """Return the rows of a document whose keys are those of its texts."""
    document = f"close {base}"
    ids = chunk_ids(document, texts)
    return [
        target.row(base + n, id=at, document_id=document, chunk_index=n, text=text)
        for n, (at, text) in enumerate(zip(ids, texts, strict=True))
    ]


def test_a_close_look(sink: MilvusSink, target: Target, base: int) -> None:
    """Places, and whether texts stand for their keys; a text that somebody changed is told, and what else is held."""
    rows = _document(target, base, "one", "two", "one", "a\x00b é😀\n")
    sink.upsert(rows)
    (found,) = sink.held([rows[0].document_id], closely=True).values()
    assert replace(found, details={}) == _expected(rows, rows[0].document_id)
    assert {row.id: (row.chunk_index, row.source, True, 1) for row in rows} == {
        at: (detail.place, detail.source, detail.genuine, detail.copies) for at, detail in found.details.items()
    }
    sink.upsert([replace(rows[1], text="zwei")])
    (found,) = sink.held([rows[0].document_id], closely=True).values()
    assert {rows[1].id} == found.spoilt
    sink.delete([row.id for row in rows])


@pytest.mark.milvus
def test_a_key_that_somebody_inserted_again(server_target: Target, base: int) -> None:
    """A server answers with one of the two rows: the count tells, also where the other is another document's."""
    sink = MilvusSink(server_target.connection, server_target.wanted("repeated"))
    sink.prepare()
    rows = _document(server_target, base, *(f"chunk {n}" for n in range(20)))
    sink.upsert(rows)
    document = rows[0].document_id
    assert frozenset() == sink.held([document], closely=True)[document].spoilt
    stored = _read(sink, server_target, [row.id for row in rows])
    again = [
        {**stored[rows[3].id], "text": "another"},
        {**stored[rows[11].id], "document_id": "another"},
        stored[rows[11].id],
    ]
    server_target.connection.call("insert", sink.collection, doing="inserting", data=again)
    held = sink.held([document], closely=True)[document]
    copies = {at: detail.copies for at, detail in held.details.items() if detail.copies > 1}
    assert copies == {rows[3].id: 2, rows[11].id: 3}
    assert held.spoilt >= copies.keys()
    assert held.rows.keys() == {row.id for row in rows}
    sink.upsert([rows[3], rows[11]])
    held = sink.held([document], closely=True)[document]
    assert (frozenset(), {row.id: row.digest() for row in rows}) == (held.spoilt, held.rows)


def test_numbers_come_back_as_they_are_kept(sink: MilvusSink) -> None:
    """Only where a field is declared with a type that cannot tell some from others is a value another one."""
    assert (2000, "en", None) == (sink.kept("year", 2000), sink.kept("lang", "en"), sink.kept("lang", None))


def test_a_delete_is_remembered(sink: MilvusSink, some: list[Row], base: int) -> None:
    """What was buried is told beside the rows, or alone, until a later delete; rows that come do not take it away."""
    gone, there, untouched = f"gone {base}", some[3].document_id, some[9].document_id
    first, second = Version(2**63 - 1, "topic/0"), Version(-1, "topic/ü")
    sink.bury([Tombstone(gone, first), Tombstone(there, first)])
    documents = [gone, there, untouched]
    whole = {document: _expected(some, document) for document in (there, untouched)}
    nothing = Held({}, frozenset(), "")
    assert sink.held(documents) == {
        **whole,
        gone: replace(nothing, tombstone=first),
        there: replace(whole[there], tombstone=first),
    }
    sink.bury([Tombstone(gone, first), Tombstone(gone, second), Tombstone("half \ud800", first)])
    sink.upsert(some)
    sink.delete([row.id for row in some if row.document_id == untouched])
    assert sink.held(documents) == {
        gone: replace(nothing, tombstone=second),
        there: replace(whole[there], tombstone=first),
    }
    sink.bury([])


def test_search_finds_the_nearest_first(sink: MilvusSink, some: list[Row]) -> None:
    """A row's own vector finds it; declared fields and other metadata come back as one."""
    sink.count()  # searches may be a moment behind what was written; after a Strong read they are not
    queries = np.stack([np.asarray(row.vectors["dense"]) for row in some[:3]])
    found = sink.search("dense", queries, limit=4)
    assert [len(hits) for hits in found] == [4, 4, 4]
    for row, hits in zip(some, found, strict=False):
        best = hits[0]
        assert (best.id, best.document_id, best.chunk_index) == (row.id, row.document_id, row.chunk_index)
        assert (best.text, best.source) == (row.text, row.source)
        assert best.metadata == {**row.metadata, "lang": "en", "year": 2000}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_sparse_search_and_the_query_that_meets_nothing(sink: MilvusSink, target: Target, some: list[Row]) -> None:
    """A sparse query without weights has no hits, and does not disturb its neighbours in the batch."""
    if not target.sparse:
        pytest.skip("this server has no sparse vectors")
    sink.count()
    vector = some[4].vectors["sparse"]
    assert isinstance(vector, SparseVector)
    alone = SparseVector(vector.indices[:1], vector.values[:1])
    empty = SparseVector(np.zeros(0, np.uint32), np.zeros(0, np.float32))
    found = sink.search("sparse", SparseVectors.of([empty, alone, empty]), limit=5)
    assert [[hit.id for hit in hits] for hits in found] == [[], [some[4].id], []]


def test_a_limit_over_the_index_default(sink: MilvusSink, some: list[Row]) -> None:
    """A limit over the index's ef is no error: ef follows it."""
    sink.count()
    query = np.asarray(some[0].vectors["dense"])[None, :]
    assert len(sink.search("dense", query, limit=500)[0]) == sink.count()


def test_probe_answers(sink: MilvusSink) -> None:
    """A probe of a collection that is well returns, and leaves nothing."""
    before = sink.count()
    sink.probe()
    assert sink.count() == before


def test_a_collection_that_was_made_again_is_another(target: Target) -> None:
    """Its random id is asked of the server each time: gone is None, and the next one of that name has its own."""
    sink = MilvusSink(target.connection, target.wanted("identified"))
    assert sink.identity() is None
    first = sink.prepare()
    assert sink.identity() == first
    target.connection.call("drop_collection", "identified", doing="dropping")
    assert sink.identity() is None
    second = sink.prepare()
    assert second != first
    assert sink.identity() == second


def test_large_batches_are_split_by_bytes(sink: MilvusSink, target: Target, base: int) -> None:
    """Rows that would be over the server's message size go in several requests."""
    rows = [target.row(base + n, text="x" * 60_000) for n in range(150)]
    sink.upsert(rows)
    assert sink.existing([row.id for row in rows]) == {row.id for row in rows}
    sink.delete([row.id for row in rows])


def test_a_released_collection_is_loaded_again(sink: MilvusSink, target: Target, some: list[Row]) -> None:
    """Code 101 is mended: somebody released the collection, or Lite came back."""
    target.connection.call("release_collection", sink.collection, doing="releasing")
    assert sink.existing([some[0].id]) == {some[0].id}


def test_a_row_that_does_not_fit_names_document_and_field(sink: MilvusSink, target: Target, base: int) -> None:
    """What the server would refuse is refused before it is sent, and the message says where."""
    row = target.row(base, fields={"lang": "é" * 9, "year": 2000})
    with pytest.raises(DocumentError, match=r"inbox/.*field lang: 18 bytes"):
        sink.validate(row)
    with pytest.raises(DocumentError, match="field lang"):
        sink.upsert([row])
    assert sink.existing([row.id]) == frozenset()


def test_a_key_twice_is_refused(sink: MilvusSink, target: Target, base: int) -> None:
    """Servers would keep both rows."""
    with pytest.raises(ValueError, match="twice"):
        sink.upsert([target.row(base), target.row(base)])
