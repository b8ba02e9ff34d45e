"""Writing a version: its order, what a search sees meanwhile, and what is left when it fails."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import COLLECTION, FINGERPRINT, Assembly, MemorySink, delete, open_store, upsert

from ingestd.errors import DocumentError, UnavailableError
from ingestd.model import (
    Abandoned,
    Chunked,
    DocumentKey,
    Embedded,
    Entry,
    Outcome,
    Verdict,
    Version,
    chunk_ids,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ingestd.model import ChunkId, Row
    from ingestd.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    opened = open_store(tmp_path / "state")
    yield opened
    opened.close(clean=True)


@pytest.fixture
def sink() -> MemorySink:
    """Return an empty collection."""
    return MemorySink()


@pytest.fixture
def stages(store: SqliteStore, sink: MemorySink) -> Assembly:
    """Return the stages over both, with windows of three rows."""
    return Assembly(store, sink, window=3)


def lines(*names: str) -> str:
    """Return a text of which each name is a chunk."""
    return "\n".join(names)


def known(store: SqliteStore, document: str = "a") -> Entry:
    """Return the ledger's entry."""
    key = DocumentKey(COLLECTION, document)
    return store.entries([key])[key]


def verdicts(outcomes: Sequence[Outcome]) -> dict[str, Verdict]:
    """Return each document's verdict; each has one."""
    found = {outcome.event.key.document_id: outcome.verdict for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


def test_a_version_is_written_in_order(stages: Assembly, sink: MemorySink, store: SqliteStore) -> None:
    """The ledger comes before any row: then new rows, then rewrites, then deletes."""
    stages.run(upsert("a", lines("one", "two", "three"), 1))
    one, two, three, four = chunk_ids("a", ["one", "two", "three", "four"])
    sink.history.clear()
    ahead: list[Entry] = []
    sink.before = lambda operation, _ids: ahead.append(known(store)) if operation != "row" else None
    [outcome] = stages.run(upsert("a", lines("one", "four", "three"), 2))

    done = [(step.operation, set(step.ids)) for step in sink.history]
    assert done == [("upsert", {four}), ("rewrite", {one}), ("delete", {two})]
    for entry in ahead:
        assert set(entry.present) == {three}
        assert entry.doubtful == {four, one, two}
        assert entry.version == Version(1, "topic/0")
    assert outcome.entry == known(store)
    assert (set(known(store).present), known(store).doubtful) == ({one, three, four}, frozenset())
    assert known(store).version == Version(2, "topic/0")
    assert (outcome.verdict, outcome.embedded, outcome.reused) == (Verdict.WRITTEN, 1, 2)


def test_milvus_is_not_touched_before_the_ledger_is_durable(stages: Assembly, sink: MemorySink, tmp_path: Path) -> None:
    """What the sink is called with stands on disk at that moment, for another process to read."""
    copies: list[tuple[set[ChunkId], set[ChunkId]]] = []

    def look(operation: str, ids: Sequence[ChunkId]) -> None:
        if operation == "upsert":
            with type(stages.store).read_only(tmp_path / "state", clock=stages.clock) as other:
                copies.append((set(ids), set(known(other).doubtful)))

    sink.before = look
    stages.run(upsert("a", lines("one", "two"), 1))
    ids = set(chunk_ids("a", ["one", "two"]))
    assert copies == [(ids, ids)]


def test_a_document_is_never_missing_while_it_is_replaced(stages: Assembly, sink: MemorySink) -> None:
    """After each operation, all of the old version or all of the new one can be found."""
    old, new = [f"old {n}" for n in range(7)], [f"new {n}" for n in range(8)]
    stages.run(upsert("a", lines(*old, "both"), 1))
    sink.history.clear()
    stages.run(upsert("a", lines("both", *new), 2))
    assert len(sink.history) >= 3
    for step in sink.history:
        found = set(step.searchable["a"])
        assert found >= {"both", *old} or found >= {"both", *new}, step.operation
    assert sink.texts() == {"a": ("both", *new)}


def test_an_unchanged_row_is_left_alone(stages: Assembly, sink: MemorySink) -> None:
    """Of a thousand rows one is new, one carries the version, and the others are not in any request."""
    names = [f"line {n}" for n in range(1000)]
    stages.run(upsert("a", lines(*names), 1))
    sink.history.clear()
    stages.embedder.calls.clear()
    names[500] = "changed"
    [outcome] = stages.run(upsert("a", lines(*names), 2))
    assert [(step.operation, len(step.ids)) for step in sink.history] == [("upsert", 1), ("rewrite", 1), ("delete", 1)]
    assert stages.embedder.calls == [("changed",)]
    assert (outcome.embedded, outcome.reused) == (1, 999)


def test_metadata_is_rewritten_without_the_model(stages: Assembly, sink: MemorySink) -> None:
    """Where only metadata differs, every row keeps its vector and nothing is embedded."""
    stages.run(upsert("a", lines("one", "two"), 1, metadata={"lang": "en", "tag": 1}))
    before = {row.id: row.vectors for row in sink.rows.values()}
    stages.embedder.calls.clear()
    stages.run(upsert("a", lines("one", "two"), 2, metadata={"lang": "de", "tag": 2}))
    assert stages.embedder.calls == []
    assert {row.id: row.vectors for row in sink.rows.values()} == before
    assert {(row.fields["lang"], row.metadata["tag"]) for row in sink.rows.values()} == {("de", 2)}


def test_one_bad_row_in_a_batch_of_a_thousand_fails_its_document_alone(stages: Assembly, sink: MemorySink) -> None:
    """The server refuses the whole request for one row; halving finds it, and 199 documents are written."""
    sink.refuses = lambda row: row.text == "137: line 3"
    events = [upsert(f"d{n}", lines(*(f"{n}: line {at}" for at in range(5))), n) for n in range(200)]
    found = verdicts(stages.run(*events))
    assert found.pop("d137") is Verdict.DEAD_LETTERED
    assert set(found.values()) == {Verdict.WRITTEN}
    assert len(found) == 199
    assert sink.texts().keys() == found.keys()
    assert all(len(texts) == 5 for texts in sink.texts().values())


def test_a_failed_version_leaves_the_old_one_whole_and_alone(
    stages: Assembly, sink: MemorySink, store: SqliteStore
) -> None:
    """A refused row in the last of several windows: what was written is taken back, and the ledger is as it was."""
    stages.run(upsert("a", lines("one", "two", "three"), 1))
    rows, entry = dict(sink.rows), known(store)
    sink.refuses = lambda row: row.text == "bad"
    sink.history.clear()
    [outcome] = stages.run(upsert("a", lines("one", *(f"new {n}" for n in range(7)), "bad"), 2))
    assert outcome.verdict is Verdict.DEAD_LETTERED
    assert outcome.failure is not None
    assert re.search("refuses its chunk 8", outcome.failure.message)
    assert (sink.rows, known(store)) == (rows, entry)
    assert any("new 0" in step.searchable["a"] for step in sink.history)
    assert all({"one", "two", "three"} <= set(step.searchable["a"]) for step in sink.history)


def test_a_version_that_the_model_fails_in_a_later_window_is_taken_back(
    stages: Assembly, sink: MemorySink, store: SqliteStore
) -> None:
    """The windows that went on before the bad one are deleted again; the other document of the batch is written."""
    stages.run(upsert("a", lines("one", "two"), 1))
    rows, entry = dict(sink.rows), known(store)
    stages.embedder.errors["bad"] = DocumentError("the model chokes on it")
    outcomes = stages.run(
        upsert("a", lines(*(f"new {n}" for n in range(7)), "bad"), 2), upsert("b", lines("fine", "too"), 3)
    )
    assert verdicts(outcomes) == {"a": Verdict.DEAD_LETTERED, "b": Verdict.WRITTEN}
    assert known(store) == entry
    assert {key: row for key, row in sink.rows.items() if row.document_id == "a"} == rows
    assert sink.texts()["b"] == ("fine", "too")


def test_windows_that_come_in_batches_of_their_own_are_one_version(stages: Assembly, sink: MemorySink) -> None:
    """Nothing of the old version goes, and no outcome is there, before the last window."""
    stages.run(upsert("a", lines("old 1", "old 2"), 1))
    *some, last = stages.windows(upsert("a", lines(*(f"new {n}" for n in range(7))), 2))
    for window in some:
        assert list(stages.write.process([window])) == []
        assert {"old 1", "old 2"} <= set(sink.texts()["a"])
    [outcome] = stages.write.process([last])
    assert outcome.verdict is Verdict.WRITTEN
    assert sink.texts() == {"a": tuple(f"new {n}" for n in range(7))}


def test_windows_after_a_refused_row_are_not_written(stages: Assembly, sink: MemorySink) -> None:
    """A document that has failed costs Milvus no more rows, and fails once."""
    first, *rest = stages.windows(upsert("a", lines("bad", *(f"new {n}" for n in range(8))), 1))
    sink.refuses = lambda row: row.text == "bad"
    assert list(stages.write.process([first])) == []
    sink.history.clear()
    [outcome] = stages.write.process(rest)
    assert outcome.verdict is Verdict.DEAD_LETTERED
    assert [step.operation for step in sink.history] == ["delete"]
    assert sink.rows == {}


def test_an_outage_holds_the_batch_and_spends_no_retries(stages: Assembly, sink: MemorySink) -> None:
    """Six calls fail, the breaker is open meanwhile, and then the document is written at its first attempt."""
    sink.outage = 6
    seen: list[bool] = []
    sink.before = lambda operation, _ids: (
        seen.append(stages.breakers.passes(COLLECTION)) if operation != "row" else None
    )
    [outcome] = stages.run(upsert("a", lines("one"), 1))
    assert (outcome.verdict, outcome.event.attempt) == (Verdict.WRITTEN, 1)
    assert False in seen
    assert stages.breakers.passes(COLLECTION)


def test_a_state_that_cannot_be_written_holds_the_batch(stages: Assembly, sink: MemorySink, store: SqliteStore) -> None:
    """While the ledger cannot be written ahead, no row is: nobody is blamed for it."""
    real, failures = store.write_ahead, [UnavailableError("state", "the disk is full")] * 3

    class Full:
        """A ledger whose disk is full for a while."""

        def write_ahead(self, entries: Sequence[Entry]) -> None:
            """Fail, and then write."""
            if failures:
                assert sink.history == []
                raise failures.pop()
            real(entries)

    stages.write._ledger = Full()  # type: ignore[assignment]  # only this much of it is used
    [outcome] = stages.run(upsert("a", lines("one"), 1))
    assert (outcome.verdict, failures) == (Verdict.WRITTEN, [])


def test_what_only_looks_like_an_outage_is_found_by_halving(stages: Assembly, sink: MemorySink) -> None:
    """The probe answers and the batch fails: the one row that takes requests down is Transient, the others pass."""
    sink.poisonous = lambda row: row.text == "d5: poison"
    events = [upsert(f"d{n}", lines(f"d{n}: fine", f"d{n}: poison"), n) for n in range(8)]
    outcomes = stages.run(*events)
    found = verdicts(outcomes)
    assert found.pop("d5") is Verdict.RETRYING
    assert set(found.values()) == {Verdict.WRITTEN}
    assert len(found) == 7
    assert "d5" not in sink.texts()
    assert stages.breakers.passes(COLLECTION)


def test_a_delete_takes_all_and_leaves_a_tombstone(stages: Assembly, sink: MemorySink, store: SqliteStore) -> None:
    """All rows go, the ledger remembers the version, and an older event cannot bring the document back."""
    stages.run(upsert("a", lines("one", "two"), 1))
    [deleted] = stages.run(delete("a", 3))
    assert (deleted.verdict, sink.rows) == (Verdict.DELETED, {})
    assert (known(store).deleted, known(store).version, dict(known(store).present)) == (True, Version(3, "topic/0"), {})
    assert verdicts(stages.run(upsert("a", lines("two"), 2))) == {"a": Verdict.SUPERSEDED}
    assert verdicts(stages.run(delete("a", 3))) == {"a": Verdict.UNCHANGED}
    assert sink.rows == {}
    assert verdicts(stages.run(upsert("a", lines("two"), 4))) == {"a": Verdict.WRITTEN}


def test_a_delete_of_what_nobody_knows_is_a_tombstone(stages: Assembly, sink: MemorySink, store: SqliteStore) -> None:
    """Milvus is not asked, and a document that comes late stays away."""
    assert verdicts(stages.run(delete("a", 3))) == {"a": Verdict.DELETED}
    assert sink.history == []
    assert known(store).deleted
    assert verdicts(stages.run(upsert("a", lines("one"), 2))) == {"a": Verdict.SUPERSEDED}


def test_a_document_without_text_keeps_no_rows(stages: Assembly, sink: MemorySink) -> None:
    """An empty new version is written: its old rows go."""
    stages.run(upsert("a", lines("one"), 1))
    [outcome] = stages.run(upsert("a", "  \n ", 2))
    assert (outcome.verdict, outcome.embedded, outcome.reused, sink.rows) == (Verdict.WRITTEN, 0, 0, {})


def test_rows_that_the_ledger_was_wrong_about_are_embedded_again(
    stages: Assembly, sink: MemorySink, store: SqliteStore
) -> None:
    """A rewrite finds a row missing: the event is tried again at once, and the ledger knows."""
    stages.run(upsert("a", lines("one", "two", "three"), 1, metadata={"tag": 1}))
    two = chunk_ids("a", ["one", "two"])[1]
    del sink.rows[two]
    event = upsert("a", lines("one", "two", "four"), 2, metadata={"tag": 2})
    [outcome] = stages.run(event)
    assert (outcome.verdict, outcome.wait) == (Verdict.RETRYING, 0.0)
    assert known(store).version == Version(1, "topic/0")
    assert two in known(store).doubtful
    assert "three" in sink.texts()["a"]
    assert verdicts(stages.run(replace(event, attempt=2))) == {"a": Verdict.WRITTEN}
    assert sink.texts() == {"a": ("one", "two", "four")}
    assert known(store).doubtful == frozenset()


def test_a_document_that_misses_a_row_and_has_a_refused_one_ends_once(
    stages: Assembly, sink: MemorySink, store: SqliteStore
) -> None:
    """One outcome an event, whatever comes together: the refusal is final."""
    stages.run(upsert("a", lines("one", "two", "three"), 1, metadata={"tag": 1}))
    del sink.rows[chunk_ids("a", ["one"])[0]]
    sink.refuses = lambda row: row.text == "three"
    assert verdicts(stages.run(upsert("a", lines("one", "two", "three"), 2, metadata={"tag": 2}))) == {
        "a": Verdict.DEAD_LETTERED
    }
    assert known(store).doubtful == set(chunk_ids("a", ["one", "two", "three"]))


def test_a_version_that_fails_in_its_rewrites_is_in_doubt(
    stages: Assembly, sink: MemorySink, store: SqliteStore
) -> None:
    """Its new rows are taken back; the rows that may have been rewritten are doubtful, none is lost."""
    stages.run(upsert("a", lines("one", "two"), 1, metadata={"tag": 1}))
    sink.refuses = lambda row: row.metadata.get("tag") == 2 and row.text == "two"
    assert verdicts(stages.run(upsert("a", lines("one", "two", "new"), 2, metadata={"tag": 2}))) == {
        "a": Verdict.DEAD_LETTERED
    }
    assert sink.texts() == {"a": ("one", "two")}
    assert known(store).doubtful == set(chunk_ids("a", ["one", "two"]))
    sink.refuses = lambda _row: False
    stages.run(upsert("a", lines("one", "two"), 3, metadata={"tag": 3}))
    assert {row.metadata["tag"] for row in sink.rows.values()} == {3}


def test_what_was_doubtful_before_a_failure_stays_so(stages: Assembly, sink: MemorySink, store: SqliteStore) -> None:
    """Ids of an attempt that did not finish may be the old version's: a failure neither deletes nor forgets them."""
    stages.run(upsert("a", lines("one", "two"), 1))
    one, two = chunk_ids("a", ["one", "two"])
    entry = known(store)
    store.write_ahead([replace(entry, present={two: entry.present[two]}, doubtful=frozenset({one}))])
    sink.refuses = lambda row: row.text == "bad"
    assert verdicts(stages.run(upsert("a", lines("one", "new", "bad"), 2))) == {"a": Verdict.DEAD_LETTERED}
    assert sink.texts() == {"a": ("one", "two")}
    assert known(store).doubtful == {one}
    assert verdicts(stages.run(upsert("a", lines("one", "three"), 3))) == {"a": Verdict.WRITTEN}
    assert sink.texts() == {"a": ("one", "three")}


def test_an_offset_of_zero_that_failed_is_tried_again(stages: Assembly, sink: MemorySink) -> None:
    """The first record of a topic is later than nothing: a failed first attempt does not count as applied."""
    sink.poisonous = lambda _row: True
    event = upsert("a", lines("one"), 0)
    assert verdicts(stages.run(event)) == {"a": Verdict.RETRYING}
    sink.poisonous = lambda _row: False
    assert verdicts(stages.run(replace(event, attempt=2))) == {"a": Verdict.WRITTEN}
    assert sink.texts() == {"a": ("one",)}


def test_the_entry_says_who_wrote_it_and_how(stages: Assembly, store: SqliteStore) -> None:
    """Source, fingerprint and content are in the ledger, and each row's digest is that of the row."""
    [outcome] = stages.run(upsert("a", lines("one", "two"), 1))
    entry = known(store)
    assert outcome.content is not None
    assert (entry.source, entry.fingerprint, entry.content) == ("cms", FINGERPRINT, outcome.content.digest())
    rows: dict[str, Row] = stages.sink.rows
    assert entry.present == {key: replace(row, vectors={}).digest() for key, row in rows.items()}


@pytest.mark.parametrize("abandoned", [False, True], ids=["refused", "abandoned"])
def test_what_is_written_counts_before_another_is_taken_back(
    stages: Assembly, sink: MemorySink, monkeypatch: pytest.MonkeyPatch, *, abandoned: bool
) -> None:
    """Taking back asks Milvus, for as long as it is away: whatever the batch wrote besides is done by then."""
    said: list[str] = []
    remove = sink.delete

    def removed(*arguments: Any, **named: Any) -> None:
        said.append("removed")
        remove(*arguments, **named)

    monkeypatch.setattr(sink, "delete", removed)
    events = [upsert("one", "one", 1), upsert("two", "two", 2), upsert("bad", lines("a", "b"), 3)]
    chunked = stages.chunk.process(stages.extracted(events, []))
    found = stages.embed.process([one for one in chunked if isinstance(one, Chunked)])
    windows: list[Embedded | Abandoned] = [one for one in found if isinstance(one, Embedded)]
    if abandoned:
        last = windows.pop()
        assert isinstance(last, Embedded)
        windows += [replace(last, last=False), Abandoned(last.chunked, Outcome(last.event, Verdict.DEAD_LETTERED))]
    else:
        sink.refuses = lambda row: row.text == "b"
    for outcome in stages.write.process(windows, lambda: said.append("flush")):
        document = outcome.event.key.document_id
        said.append(document)
    assert said == ["one", "two", "flush", "removed", "bad"]
