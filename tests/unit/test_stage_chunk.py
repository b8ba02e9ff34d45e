"""From a text to rows, held against what is in Milvus already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, Assembly, LineChunker, MemorySink, delete, open_store, upsert

from ingestd.errors import FatalError
from ingestd.model import Chunked, Document, Outcome, Stage, Verdict, chunk_ids
from ingestd.stages.chunk import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ingestd.model import Event, Extracted, Json, Span


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Assembly]:
    """Return the stages over an empty state."""
    with open_store(tmp_path / "state") as store:
        yield Assembly(store, MemorySink(), most=10)


def extracted(stages: Assembly, event: Event) -> Extracted:
    """Return what the stages before make of an event."""
    [result] = stages.extracted([event], [])
    return result


def chunked(stages: Assembly, event: Event) -> Chunked:
    """Return a document in rows."""
    [result] = stages.chunk.process([extracted(stages, event)])
    assert isinstance(result, Chunked)
    return result


def failed(stages: Assembly, event: Event) -> Outcome:
    """Return the outcome of a document that cannot be cut."""
    [result] = stages.chunk.process([extracted(stages, event)])
    assert isinstance(result, Outcome)
    return result


def test_a_new_document_is_all_new(stages: Assembly) -> None:
    """Each chunk is a row: its text as it stands, its place, its document, version and source."""
    found = chunked(stages, upsert("a", "one\n\ntwo\none", 3))
    assert (found.kept, found.rewritten, found.stale) == ({}, (), ())
    assert [row.id for row in found.new] == chunk_ids("a", ["one", "two", "one"])
    assert len({row.id for row in found.new}) == 3
    assert [(row.text, row.chunk_index) for row in found.new] == [("one", 0), ("two", 1), ("one", 2)]
    assert {(row.document_id, row.version, row.domain, row.source) for row in found.new} == {("a", 3, "topic/0", "cms")}


def test_a_document_is_held_against_the_ledger(stages: Assembly) -> None:
    """Kept: the same; rewritten: moved, or the first, which carries the version; stale: gone; new: the rest."""
    stages.run(upsert("a", "one\ntwo\nthree\nfour", 1))
    one, two, three, four, new = chunk_ids("a", ["one", "two", "three", "four", "new"])
    found = chunked(stages, upsert("a", "one\nnew\nthree\ntwo", 2))
    assert set(found.kept) == {three}
    assert {row.id for row in found.rewritten} == {one, two}
    assert [row.id for row in found.new] == [new]
    assert found.stale == (four,)


def test_doubtful_rows_are_written_again_or_deleted(stages: Assembly) -> None:
    """Only what is present is reused: a doubtful id that is wanted is new, one that is not is stale."""
    stages.run(upsert("a", "one\ntwo\nthree", 1))
    event = upsert("a", "one\ntwo", 2)
    found = extracted(stages, event)
    assert found.entry is not None
    one, two, three = chunk_ids("a", ["one", "two", "three"])
    present = {one: found.entry.present[one]}
    entry = replace(found.entry, present=present, doubtful=frozenset({two, three}))
    [result] = stages.chunk.process([replace(found, entry=entry)])
    assert isinstance(result, Chunked)
    assert [row.id for row in result.new] == [two]
    assert result.stale == (three,)


def test_a_delete_makes_all_stale(stages: Assembly) -> None:
    """Also what is in doubt: it may be there."""
    stages.run(upsert("a", "one\ntwo", 1))
    found = chunked(stages, delete("a", 2))
    assert (found.new, found.rewritten, dict(found.kept)) == ((), (), {})
    assert set(found.stale) == set(chunk_ids("a", ["one", "two"]))


def test_declared_fields_have_columns_and_the_rest_is_metadata(stages: Assembly) -> None:
    """What the source says stands over what the document says; a declared field that nobody names is None."""
    found = extracted(stages, upsert("a", "one", 1, metadata={"lang": "en", "tag": 1}))
    document = Document("one", title="Its own", metadata={"tag": 0, "author": "A"})
    [result] = stages.chunk.process([replace(found, document=document)])
    assert isinstance(result, Chunked)
    [row] = result.new
    assert row.fields == {"lang": "en"}
    assert row.metadata == {"tag": 1, "author": "A", "title": "Its own"}
    assert found.content is not None
    bare = replace(found, document=document, content=replace(found.content, title="The source's", metadata={}))
    [result] = stages.chunk.process([bare])
    assert isinstance(result, Chunked)
    assert (result.new[0].fields, result.new[0].metadata["title"]) == ({"lang": None}, "The source's")


def test_declared_fields_have_the_form_that_the_collection_keeps(stages: Assembly) -> None:
    """The digest of a row that is read back is that of the row that was written; other metadata stays as it is."""

    def kept(name: str, value: Json) -> Json:
        return f"{name}: {value}"

    chunk = Chunk(LineChunker(), fields=["lang"], validate=stages.sink.validate, max_chunks=10, kept=kept)
    [result] = chunk.process([extracted(stages, upsert("a", "one", 1, metadata={"lang": "en", "tag": 1}))])
    assert isinstance(result, Chunked)
    assert ({"lang": "lang: en"}, {"tag": 1}) == (result.new[0].fields, result.new[0].metadata)


def test_too_many_chunks_are_the_documents_fault(stages: Assembly) -> None:
    """The bound is told, with the key to raise it."""
    outcome = failed(stages, upsert("a", "\n".join(map(str, range(11))), 1))
    assert outcome.verdict is Verdict.DEAD_LETTERED
    assert outcome.failure is not None
    assert "11 chunks; the most is 10 (limits.max_chunks)" in outcome.failure.message


def test_what_certainly_has_too_many_chunks_is_not_cut(stages: Assembly) -> None:
    """A huge text holds up nobody for as long as cutting it takes."""

    class Knowing:
        def exceeds(self, text: str, chunks: int) -> bool:
            return len(text) > chunks

        def split(self, text: str) -> Sequence[Span]:
            raise AssertionError(text)

    chunk = Chunk(Knowing(), fields=(), validate=lambda _row: None, max_chunks=3)
    (outcome,) = chunk.process([extracted(stages, upsert("a", "text", 1))])
    assert isinstance(outcome, Outcome)
    assert outcome.failure is not None
    assert "more than 3 chunks" in outcome.failure.message


def test_a_row_that_the_collection_would_refuse_is_refused_here(stages: Assembly) -> None:
    """Before anything is embedded; the original is kept, and the other documents of the batch go on."""
    batch = [extracted(stages, upsert("a", "x" * 65_536, 1)), extracted(stages, upsert("b", "fine", 2))]
    bad, good = stages.chunk.process(batch)
    assert isinstance(bad, Outcome)
    assert isinstance(good, Chunked)
    assert bad.failure is not None
    assert (bad.failure.stage, bad.content is not None) == (Stage.CHUNK, True)


class Choking:
    """A chunker that cannot bear a text."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def split(self, text: str) -> Sequence[Span]:
        """Raise at it."""
        if text == "bad":
            raise self.error
        return LineChunker().split(text)


def test_a_chunker_that_chokes_fails_that_document_alone(stages: Assembly) -> None:
    """An error that nobody foresaw is the text's fault, and keeps its traceback."""
    stage = Chunk(Choking(IndexError("off by one")), fields=(), validate=stages.sink.validate, max_chunks=10)
    batch = [extracted(stages, upsert("a", "bad", 1)), extracted(stages, upsert("b", "good", 2))]
    bad, good = stage.process(batch)
    assert isinstance(bad, Outcome)
    assert isinstance(good, Chunked)
    assert bad.failure is not None
    assert (bad.verdict, bad.failure.error) == (Verdict.DEAD_LETTERED, "IndexError")
    assert "off by one" in (bad.failure.traceback or "")


def test_an_error_of_ours_that_is_not_about_the_document_ends_the_stage(stages: Assembly) -> None:
    """It is not put on a document."""
    stage = Chunk(Choking(FatalError("no idea")), fields=(), validate=stages.sink.validate, max_chunks=10)
    with pytest.raises(FatalError):
        list(stage.process([extracted(stages, upsert("a", "bad", 1))]))


def test_keys_do_not_depend_on_the_collection(stages: Assembly) -> None:
    """They are of the document and the text alone, and equal ones within a document are told apart."""
    assert stages.sink.collection == COLLECTION
    first, again, other = chunk_ids("a", ["x", "x", "y"])
    assert chunk_ids("a", ["y", "x", "x"]) == [other, first, again]
    assert chunk_ids("ax", ["x"]) != chunk_ids("a", ["xx"]) != [first]
