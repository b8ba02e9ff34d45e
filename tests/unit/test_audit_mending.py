"""The daemon's part in a repair: what it deletes itself, what it has brought again, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import (
    COLLECTION,
    FINGERPRINT,
    NOW,
    Assembly,
    ListSource,
    ManualClock,
    ManualLease,
    MemorySink,
    delete,
    open_store,
    upsert,
)

from ingestd.audit import mending
from ingestd.audit.compare import faults
from ingestd.audit.looking import Feeds
from ingestd.audit.mending import Done, Mended, Mender
from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.errors import UnavailableError
from ingestd.model import (
    EXPLICIT,
    UNKNOWN_DIGEST,
    Again,
    DocumentKey,
    Failure,
    Fingerprints,
    Outcome,
    Record,
    Stage,
    Verdict,
    Version,
    chunk_ids,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ingestd.model import ChunkId, Entry, Event
    from ingestd.store.sqlite import SqliteStore

FOREIGN = "f" * 32
ONE, TWO, THREE = chunk_ids("a", ["one", "two", "three"])
DAY = 86_400.0


class Ground:
    """A collection, the real stages, state and lanes, and a topic that has kept all its records.

    Args:
        store: The real state.
        shared: Whether other members write the collection too.
    """

    def __init__(self, store: SqliteStore, *, shared: bool = False) -> None:
        self.store = store
        self.sink = MemorySink(shared=shared)
        self.stages = Assembly(store, self.sink, shared=shared)
        self.clock = ManualClock()
        self.source = ListSource([])
        self.lanes = Lanes(Channel("recall", None), max_events=100, max_bytes=1 << 20)
        self.requeued: dict[str, int] = {}
        self.shared = shared
        own = frozenset[str]() if shared else frozenset({"cms"})
        self.mender = Mender(
            self.sink,
            store,
            self.lanes,
            feeds=Feeds(frozenset({"cms"}), own, shared),
            sources={"cms": self.source},
            requeued=self._note,
            clock=self.clock,
            forgets_after=30 * DAY,
        )

    def write(self, *events: Event, age: float = 0.0) -> None:
        """Have events written; the topic keeps their records, made so many seconds ago."""
        for event in events:
            number = event.version.number if event.version is not None else 0
            record = Record("topic", 0, number, int((NOW - age) * 1000), None, b"value")
            kept = replace(event, record=record)
            self.source.events.append(kept)
            self.stages.run(replace(kept, lease=ManualLease()) if self.shared else kept)

    def mend(self, *documents: str, files: tuple[str, ...] = ()) -> dict[str, Mended]:
        """Mend documents."""
        return self.mender.mend(documents, files)

    def bring_back(self) -> list[Outcome]:
        """Take what waits in the retry queue through the stages, as it is taken for an operator."""
        outcomes = []
        for parked in self.store.parked():
            whole = self.store.whole(parked)
            event = self.source.revive(whole)
            assert event is not None
            assert (whole.record, whole.version) == (event.record, event.version)
            lent = ManualLease("lent", lent=True)
            event = replace(event, attempt=parked.attempt, first_failed_at=parked.first_failed_at)
            outcomes += self.stages.run(replace(event, again=True, lease=lent))
        assert self.store.parked() == []
        return outcomes

    def entry(self, document: str) -> Entry:
        """Return the ledger's entry."""
        key = DocumentKey(COLLECTION, document)
        return self.store.entries([key])[key]

    def is_sound(self, document: str) -> bool:
        """Return whether nothing is wrong with a document."""
        entry = self.store.entries([DocumentKey(COLLECTION, document)]).get(DocumentKey(COLLECTION, document))
        return not faults(entry, self.sink.held([document], closely=True).get(document), alone=not self.shared)

    def _note(self, source: str, count: int) -> None:
        self.requeued[source] = self.requeued.get(source, 0) + count


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    with open_store(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def ground(store: SqliteStore) -> Ground:
    """A document that only this daemon writes."""
    made = Ground(store)
    made.write(upsert("a", "one\ntwo\nthree", 1))
    return made


@pytest.fixture
def common(store: SqliteStore) -> Ground:
    """A document that several members may write."""
    made = Ground(store, shared=True)
    made.write(upsert("a", "one\ntwo\nthree", 1))
    return made


def test_what_is_sound_is_left_alone(ground: Ground) -> None:
    """Nothing is written anywhere."""
    steps = len(ground.sink.history)
    assert ground.mend("a", "nobody") == {"a": Mended(Done.SOUND), "nobody": Mended(Done.SOUND)}
    assert (len(ground.sink.history), ground.store.parked(), ground.requeued) == (steps, [], {})


def test_rows_that_no_version_has_are_deleted_by_key(ground: Ground) -> None:
    """Of a document that is there, of one that was deleted, and of one that nobody knows: nothing is brought again."""
    ground.write(upsert("gone", "four", 2))
    (four,) = chunk_ids("gone", ["four"])
    late = ground.sink.rows[four]
    ground.write(delete("gone", 3))
    ground.sink.rows |= {
        four: late,
        FOREIGN: replace(late, id=FOREIGN, document_id="a"),
        "e" * 32: replace(late, id="e" * 32, document_id="nobody"),
        "not ours": replace(late, id="not ours", document_id="a"),
        FOREIGN.upper(): replace(late, id=FOREIGN.upper(), document_id="gone"),
    }
    entries = ground.entry("a"), ground.entry("gone")
    assert ground.mend("a", "gone", "nobody") == dict.fromkeys(["a", "gone", "nobody"], Mended(Done.DELETED))
    assert set(ground.sink.rows) == {ONE, TWO, THREE}
    assert (ground.entry("a"), ground.entry("gone")) == entries
    assert (ground.store.parked(), ground.requeued) == ([], {})
    assert all(ground.is_sound(document) for document in ("a", "gone", "nobody"))


def test_rows_that_name_another_daemons_source_are_left(ground: Ground) -> None:
    """Of a document that nobody here knows: two daemons may write one collection. There is a way to delete them."""
    row = ground.sink.rows[TWO]
    ground.sink.rows[FOREIGN] = replace(row, id=FOREIGN, document_id="theirs", source="theirs")
    ground.sink.rows["e" * 32] = replace(row, id="e" * 32, source="theirs")
    answer = ground.mend("a", "theirs")
    assert (answer["a"].done, answer["theirs"].done) == (Done.DELETED, Done.LEFT)
    assert answer["theirs"].why.endswith("ingestd forget --source theirs deletes them")
    assert set(ground.sink.rows) == {ONE, TWO, THREE, FOREIGN}


def test_the_ledger_says_ahead_what_is_deleted(ground: Ground) -> None:
    """Killed in between, or with Milvus away, the rows are in doubt and not forgotten; the lane is free again."""
    ground.sink.rows[FOREIGN] = replace(ground.sink.rows[TWO], id=FOREIGN)

    def fail(operation: str, _ids: object) -> None:
        if operation == "delete":
            raise UnavailableError("milvus", "no answer")

    ground.sink.before = fail
    with pytest.raises(UnavailableError):
        ground.mend("a")
    assert ground.entry("a").doubtful == {FOREIGN}
    assert ground.lanes.busy([DocumentKey(COLLECTION, "a")]) == frozenset()
    ground.sink.before = lambda _operation, _ids: None
    assert ground.mend("a")["a"].done is Done.SENT
    ground.bring_back()
    assert ground.is_sound("a")


def test_a_record_that_is_old_by_now_is_never_the_newer_version(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its record is fetched the document is written anew: what was fetched is not what it is any more."""
    ground.sink.delete([TWO])
    fetch = ground.source.again

    def amid(versions: Mapping[str, Version]) -> list[Again]:
        monkeypatch.undo()
        fetched = list(fetch(versions))
        ground.write(upsert("a", "one\ntwo\nfour", 9))  # keeps the row that it believes to be there
        return fetched

    monkeypatch.setattr(ground.source, "again", amid)
    assert ground.mend("a") == {"a": Mended(Done.BUSY)}
    assert not ground.store.parked()
    assert ground.mend("a") == {"a": Mended(Done.SENT)}
    (parked,) = ground.store.parked()
    assert (parked.version, ground.store.whole(parked).position) == (ground.entry("a").version, "topic/0@9")


def test_a_document_that_was_sound_when_its_sources_were_asked_is_left_to_the_next_time(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was asked for its record: that says nothing of whether it is there."""
    ground.write(upsert("b", "five", 2))
    ground.sink.delete([ONE])
    fetch = ground.source.again

    def amid(versions: Mapping[str, Version]) -> list[Again]:
        monkeypatch.undo()
        ground.sink.delete(chunk_ids("b", ["five"]))
        return list(fetch(versions))

    monkeypatch.setattr(ground.source, "again", amid)
    assert ground.mend("a", "b") == {"a": Mended(Done.SENT), "b": Mended(Done.BUSY)}


def test_what_has_to_be_written_comes_again_through_the_pipeline(ground: Ground) -> None:
    """Only rows that are wrong are embedded, and those that should not be there go last."""
    whole = {at: row.with_vectors({}) for at, row in ground.sink.rows.items()}
    del ground.sink.rows[ONE]
    ground.sink.rows[TWO] = replace(ground.sink.rows[TWO], metadata={"n": 2})
    ground.sink.rows[FOREIGN] = replace(ground.sink.rows[THREE], id=FOREIGN)
    assert ground.mend("a") == {"a": Mended(Done.SENT)}
    assert ground.requeued == {"cms": 1}
    assert ground.mend("a") == {"a": Mended(Done.BUSY)}, "it waits in the retry queue"
    steps = len(ground.sink.history)
    (outcome,) = ground.bring_back()
    assert (outcome.verdict, outcome.embedded, outcome.reused) == (Verdict.WRITTEN, 2, 1)
    did: list[tuple[str, set[ChunkId]]] = [(step.operation, set(step.ids)) for step in ground.sink.history[steps:]]
    assert did == [("upsert", {ONE, TWO}), ("delete", {FOREIGN})]
    assert {at: row.with_vectors({}) for at, row in ground.sink.rows.items()} == whole
    assert ground.is_sound("a")


def test_a_key_that_is_there_twice_is_written_anew(ground: Ground) -> None:
    """An upsert leaves one row of a key, and no moment without it."""
    ground.sink.copies[TWO] = 2
    assert ground.mend("a") == {"a": Mended(Done.SENT)}
    (outcome,) = ground.bring_back()
    assert (outcome.embedded, ground.sink.copies, ground.is_sound("a")) == (1, {}, True)


def test_a_row_that_a_rebuilt_ledger_never_knew_comes_again(ground: Ground, store: SqliteStore) -> None:
    """The gap among the others tells that it is missing; those are not embedded again."""
    whole = {at: row.with_vectors({}) for at, row in ground.sink.rows.items()}
    del ground.sink.rows[TWO]
    there = dict.fromkeys(ground.sink.rows, UNKNOWN_DIGEST)
    store.write_ahead([replace(ground.entry("a"), present=there, content="", fingerprint="")])
    assert ground.mend("a") == {"a": Mended(Done.SENT)}
    (outcome,) = ground.bring_back()
    assert (outcome.verdict, outcome.embedded) == (Verdict.WRITTEN, 1)
    assert {at: row.with_vectors({}) for at, row in ground.sink.rows.items()} == whole
    assert ground.is_sound("a")


def test_a_newer_version_that_comes_first_mends_by_itself(ground: Ground) -> None:
    """What was to be brought again is superseded: old never overwrites new."""
    del ground.sink.rows[TWO]
    ground.mend("a")
    ground.write(upsert("a", "one\ntwo\nfour", 2))
    assert ground.is_sound("a")
    assert ground.store.parked() == []
    ground.mend("a")
    del ground.sink.rows[TWO]
    assert ground.mend("a") == {"a": Mended(Done.SENT)}
    (parked,) = ground.store.parked()
    assert parked.version == Version(2, "topic/0")


def test_a_document_that_something_is_under_way_for_is_left_to_that(ground: Ground) -> None:
    """Its lane is taken, or it waits for another try: it is looked at again later."""
    del ground.sink.rows[TWO]
    event = upsert("a", "x", 5)
    ground.lanes.submit(event, on_accept=lambda: None, beat=lambda: None)
    assert ground.mend("a", "nobody") == {"a": Mended(Done.BUSY), "nobody": Mended(Done.SOUND)}
    ground.lanes.release([event])
    failure = Failure(Stage.EMBED, "TransientError", "the provider said 429")
    parked = Outcome(event, Verdict.RETRYING, failure=failure, wait=10.0)
    ground.store.settle([parked], {COLLECTION: Fingerprints(FINGERPRINT, "")})
    assert ground.mend("a") == {"a": Mended(Done.BUSY)}
    assert ground.requeued == {}


def test_a_document_is_looked_at_again_while_its_lane_is_held(ground: Ground) -> None:
    """What an event did between the audit's look and this one counts; no event begins meanwhile."""
    row = ground.sink.rows.pop(TWO)
    held: list[bool] = []

    def before(operation: str, _ids: object) -> None:
        if operation == "held":
            held.append(bool(ground.lanes.busy([DocumentKey(COLLECTION, "a")])))
            if held[-1]:
                ground.sink.rows[TWO] = row

    ground.sink.before = before
    assert ground.mend("a") == {"a": Mended(Done.SOUND)}
    assert held == [False, True]
    assert ground.lanes.busy([DocumentKey(COLLECTION, "a")]) == frozenset()


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (Version(7, EXPLICIT), "version 7 is its producer's own and does not say which record it was"),
        (Version(7, "topic/0"), "the record of version 7 (topic/0) is not in its topic any more"),
        (Version(7, "cms"), "its file is neither in the folder nor where files are moved to"),
    ],
)
def test_what_nothing_brings_again_is_left_with_the_reason(ground: Ground, version: Version, why: str) -> None:
    """Rows that are too many go all the same, and the ledger knows what not to rely on when the document next comes."""
    ground.stages.run(replace(upsert("b", "one\ntwo"), version=version))
    one, two = chunk_ids("b", ["one", "two"])
    ground.sink.rows[FOREIGN] = replace(ground.sink.rows[one], id=FOREIGN)
    del ground.sink.rows[two]
    cure = "put it back" if version.domain == "cms" else "produce the document again"
    assert ground.mend("b") == {"b": Mended(Done.LEFT, f"{why}; {cure}")}
    assert {one} == set(ground.entry("b").present)
    assert {two} == ground.entry("b").doubtful
    assert FOREIGN not in ground.sink.rows
    ground.stages.run(replace(upsert("b", "one\ntwo"), version=replace(version, number=8)))
    assert ground.is_sound("b")


def test_a_file_that_differs_is_brought_again_whatever_its_rows_say(ground: Ground) -> None:
    """An edit, and a new file: the source looks at it when its turn comes."""
    ground.source.again = lambda versions: iter(  # type: ignore[method-assign]  # a folder's
        Again(document, f"/{document}", None) for document in versions
    )
    assert ground.mend("a", "new", files=("a", "new")) == dict.fromkeys(["a", "new"], Mended(Done.SENT))
    assert [(parked.key.document_id, parked.version, parked.record) for parked in ground.store.parked()] == [
        ("a", None, None),
        ("new", None, None),
    ]
    assert ground.entry("a").doubtful == frozenset()
    assert ground.entry("new").deleted


def test_rows_of_a_file_that_the_ledger_lost_are_written_over(ground: Ground) -> None:
    """Deleting them first would leave a moment without the document."""
    ground.source.again = lambda versions: iter(  # type: ignore[method-assign]  # a folder's
        Again(document, f"/{document}", None) for document in versions
    )
    rows = dict(ground.sink.rows)
    ground.store.forget("cms", COLLECTION)
    assert ground.mend("a", files=("a",)) == {"a": Mended(Done.SENT)}
    assert ground.sink.rows == rows
    steps = len(ground.sink.history)
    ground.stages.run(upsert("a", "one\ntwo\nfour"))
    assert [step.operation for step in ground.sink.history[steps:]] == ["upsert", "delete"]
    assert ground.is_sound("a")


def test_records_that_are_large_come_some_at_a_time(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held of them between their topic and the retry queue is bounded; the others are asked for again."""
    monkeypatch.setattr(mending, "BYTES", 8)
    ground.write(*(upsert(f"d{n}", f"text {n}", 10 + n) for n in range(4)))
    ground.sink.rows = {at: row for at, row in ground.sink.rows.items() if row.document_id == "a"}
    documents = [f"d{n}" for n in range(4)]
    assert [mended.done for mended in ground.mend(*documents).values()] == [Done.SENT, Done.SENT, Done.BUSY, Done.BUSY]
    assert [mended.done for mended in ground.mend(*documents[2:]).values()] == [Done.SENT, Done.SENT]
    ground.bring_back()
    assert all(ground.is_sound(document) for document in documents)


# Where other members write the collection too


def test_a_record_is_tried_again_where_members_share_the_collection(common: Ground) -> None:
    """Nothing is deleted here and the ledger stays: whoever holds the partition looks closely at what Milvus has."""
    del common.sink.rows[TWO]
    common.sink.rows[FOREIGN] = replace(common.sink.rows[THREE], id=FOREIGN)
    common.sink.copies[THREE] = 2
    entry, steps = common.entry("a"), len(common.sink.history)
    assert common.mend("a") == {"a": Mended(Done.SENT)}
    assert (common.entry("a"), len(common.sink.history)) == (entry, steps)
    (outcome,) = common.bring_back()
    assert (outcome.verdict, outcome.embedded) == (Verdict.WRITTEN, 2)
    assert common.is_sound("a")
    assert set(common.sink.rows) == {ONE, TWO, THREE}


def test_late_rows_of_a_document_that_is_gone_are_deleted_by_its_delete(common: Ground) -> None:
    """The record of the delete is tried again, as the version that it was."""
    rows = dict(common.sink.rows)
    common.write(delete("a", 2))
    common.sink.rows |= rows
    assert common.mend("a") == {"a": Mended(Done.SENT)}
    (parked,) = common.store.parked()
    assert parked.version == Version(2, "topic/0")
    (outcome,) = common.bring_back()
    assert (outcome.verdict, common.sink.rows) == (Verdict.DELETED, {})


def test_a_document_that_is_gone_comes_again_only_while_a_delete_would_be_known(common: Ground) -> None:
    """A tombstone is forgotten after a while: an older record could bring back what another member deleted."""
    common.write(upsert("old", "four", 2), age=31 * DAY)
    common.write(upsert("young", "five", 3), age=29 * DAY)
    (four,) = chunk_ids("old", ["four"])
    row = common.sink.rows[four]
    common.sink.rows.clear()
    answer = common.mend("old", "young")
    assert answer["young"] == Mended(Done.SENT)
    assert answer["old"].done is Done.LEFT
    assert "is older than milvus.tombstone_days" in answer["old"].why
    common.sink.rows[four] = replace(row, text="vier")
    assert common.mend("old") == {"old": Mended(Done.SENT)}, "something is there: nobody deleted it"


def test_without_its_first_chunk_a_document_does_not_say_its_version(common: Ground, store: SqliteStore) -> None:
    """Rows that an edit left alone have an older one: what it brought would take the place of the edit."""
    common.write(upsert("a", "one\ntwo\nfour", 2))
    assert common.sink.rows[TWO].version == 1
    del common.sink.rows[ONE]
    assert common.mend("a") == {"a": Mended(Done.SENT)}, "this member wrote it and knows"
    common.bring_back()
    store.forget("cms", COLLECTION)
    del common.sink.rows[ONE]
    assert common.mend("a") == {
        "a": Mended(Done.LEFT, "nothing says which version the document has; produce the document again")
    }
    assert common.sink.rows.keys() == {TWO, *chunk_ids("a", ["four"])}
