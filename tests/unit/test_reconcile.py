"""Ledger and collection are brought together before anything flows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs
from tests.fakes import COLLECTION, Assembly, MemorySink, delete, open_store, upsert

from ingestd.engine.reconcile import Reconciled, reconcile
from ingestd.errors import UnavailableError
from ingestd.model import EXPLICIT, UNKNOWN_DIGEST, DocumentKey, Verdict, Version, chunk_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.model import Entry
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


def entry(store: SqliteStore, document: str) -> Entry:
    """Return the ledger's entry."""
    key = DocumentKey(COLLECTION, document)
    return store.entries([key])[key]


def asked(sink: MemorySink) -> list[str]:
    """Note what the sink is asked from now on."""
    operations: list[str] = []
    sink.before = lambda operation, _ids: operations.append(operation)
    return operations


def test_a_new_collection_is_bound(store: SqliteStore, sink: MemorySink) -> None:
    """From then on the ledger is about this collection."""
    assert reconcile(store, sink, "id-1", unclean=False) == Reconciled()
    assert store.binding(COLLECTION) == "id-1"


def test_after_a_clean_end_nothing_is_looked_up(store: SqliteStore, sink: MemorySink) -> None:
    """One count is all that it costs."""
    reconcile(store, sink, "id-1", unclean=False)
    Assembly(store, sink).run(upsert("a", "one\ntwo", 1))
    operations = asked(sink)
    assert reconcile(store, sink, "id-1", unclean=False) == Reconciled()
    assert operations == ["count"]


@pytest.mark.parametrize("unclean", [True, False])
def test_rows_that_are_gone_are_found(store: SqliteStore, sink: MemorySink, *, unclean: bool) -> None:
    """After an unclean end, or when the collection has fewer rows: they become doubtful, and are embedded again."""
    reconcile(store, sink, "id-1", unclean=False)
    stages = Assembly(store, sink)
    stages.run(upsert("a", "one\ntwo", 1), upsert("b", "three", 2))
    one, two = chunk_ids("a", ["one", "two"])
    del sink.rows[two]
    assert reconcile(store, sink, "id-1", unclean=unclean) == Reconciled(missing=1)
    found = entry(store, "a")
    assert set(found.present) == {one}
    assert found.doubtful == {two}
    [outcome] = stages.run(upsert("a", "one\ntwo", 1))
    assert (outcome.verdict, outcome.embedded, outcome.reused) == (Verdict.WRITTEN, 1, 1)
    assert sink.texts() == {"a": ("one", "two"), "b": ("three",)}


def test_after_an_unclean_end_every_row_is_looked_up(store: SqliteStore, sink: MemorySink) -> None:
    """Also where the ledger knows as many as there are; more than one request is made."""
    reconcile(store, sink, "id-1", unclean=False)
    stages = Assembly(store, sink)
    stages.run(*(upsert(f"d{n}", "\n".join(f"{n}: {line}" for line in range(400)), n) for n in range(6)))
    gone, *_ = chunk_ids("d5", ["5: 0"])
    del sink.rows[gone]
    operations = asked(sink)
    assert reconcile(store, sink, "id-1", unclean=True) == Reconciled(missing=1)
    assert operations == ["count", "existing", "existing"]
    assert entry(store, "d5").doubtful == {gone}


@pytest.mark.parametrize("unclean", [True, False])
def test_a_ledger_that_is_older_than_the_collection_looks_at_its_documents_again(
    tmp_path: Path, sink: MemorySink, *, unclean: bool
) -> None:
    """As after a backup: rows that it does not know would stay beside the next version for ever.

    Those of documents that it does not know either may be another member's, and are left to an audit.
    """
    with open_store(tmp_path / "old") as old:
        reconcile(old, sink, "id-1", unclean=False)
        stages = Assembly(old, sink)
        stages.run(upsert("a", "one\ntwo", 1), upsert("c", "six", 1), upsert("gone", "seven", 1))
        stages.run(delete("gone", 2))
        with open_store(tmp_path / "new") as new:
            reconcile(new, sink, "id-1", unclean=False)
            younger = Assembly(new, sink)
            younger.run(upsert("a", "one\nthree\nfour", 3), upsert("b", "five", 3), upsert("gone", "eight", 3))
        assert reconcile(old, sink, "id-1", unclean=unclean).rebuilt == 0
        assert not [entry for entry in old.collection_entries(sink.collection) if entry.key.document_id == "b"]
        assert set(chunk_ids("a", ["three", "four"])) <= entry(old, "a").doubtful
        assert entry(old, "gone").doubtful == set(chunk_ids("gone", ["eight"]))
        assert dict(old.documents("cms")) == {"a": False, "c": True, "gone": False}
        stages.run(upsert("a", "one\nfour", 4), delete("gone", 5))
        assert sink.texts() == {"a": ("one", "four"), "b": ("five",), "c": ("six",)}


def test_of_an_older_collection_nothing_but_keys_is_believed(store: SqliteStore, sink: MemorySink) -> None:
    """A backup of Milvus, or a power cut: a row may be there and be an older one. Vectors are not made again."""
    reconcile(store, sink, "id-1", unclean=False)
    stages = Assembly(store, sink)
    stages.run(upsert("a", "one\ntwo", 1), upsert("b", "three", 1))
    older = dict(sink.rows)
    stages.run(upsert("a", "zero\none\ntwo", 2))
    newer = dict(sink.rows)
    sink.rows.clear()
    sink.rows.update(older)
    assert reconcile(store, sink, "id-1", unclean=False) == Reconciled(missing=1)
    assert {seen.fingerprint for seen in store.seen("cms")} <= {""}
    assert not entry(store, "b").fingerprint
    assert not store.doubted(COLLECTION)
    outcomes = stages.run(upsert("a", "zero\none\ntwo", 3), upsert("b", "three", 2))
    assert {outcome.event.key.document_id: outcome.embedded for outcome in outcomes} == {"a": 1, "b": 0}
    assert {key: (row.chunk_index, row.text) for key, row in sink.rows.items()} == {
        key: (row.chunk_index, row.text) for key, row in newer.items()
    }
    assert all(not entry.doubtful for entry in store.collection_entries(COLLECTION))
    assert reconcile(store, sink, "id-1", unclean=True) == Reconciled()


def test_rows_that_another_member_wrote_are_left_to_it(tmp_path: Path, sink: MemorySink) -> None:
    """What was written under a lease is asked of Milvus by whoever has the lease next."""
    with open_store(tmp_path / "old") as old:
        reconcile(old, sink, "id-1", unclean=False)
        Assembly(old, sink).run(upsert("a", "one", 1))
        leased = replace(entry(old, "a"), tenure="cms/0 of 1")
        old.write_ahead([leased])
        with open_store(tmp_path / "other") as other:
            reconcile(other, sink, "id-1", unclean=False)
            Assembly(other, sink).run(upsert("a", "one\ntwo", 2))
        reconcile(old, sink, "id-1", unclean=True, shared=True)
        assert entry(old, "a") == leased
        # Where nobody else writes the collection, that is how this ledger is found to be the older one.
        reconcile(old, sink, "id-1", unclean=True)
        assert entry(old, "a").doubtful == set(chunk_ids("a", ["two"]))


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_doubt_outlives_a_start_that_is_cut_short(store: SqliteStore, sink: MemorySink, fails_at: int) -> None:
    """Milvus goes away, or the daemon is killed, amid the look: the next one begins again, and believes as little."""
    reconcile(store, sink, "id-1", unclean=False)
    stages = Assembly(store, sink)
    texts = {n: "\n".join(f"{n}: {line}" for line in range(400)) for n in range(8)}
    stages.run(*(upsert(f"d{n}", text, n) for n, text in texts.items()))
    older = dict(sink.rows)
    stages.run(*(upsert(f"d{n}", f"first of {n}\n{text}", 10 + n) for n, text in texts.items()))
    sink.rows.clear()
    sink.rows.update(older)
    asked = 0

    def away(operation: str, _ids: object) -> None:
        nonlocal asked
        asked += operation == "existing"
        if asked == fails_at:
            raise UnavailableError("milvus", "it is away")

    sink.before = away
    with pytest.raises(UnavailableError):
        reconcile(store, sink, "id-1", unclean=False)
    sink.before = lambda _operation, _ids: None
    reconcile(store, sink, "id-1", unclean=True)
    assert not store.doubted(COLLECTION)
    stages.run(*(upsert(f"d{n}", f"first of {n}\n{text}", 20 + n) for n, text in texts.items()))
    for n, text in texts.items():
        rows = sorted((row.chunk_index, row.text) for row in sink.rows.values() if row.document_id == f"d{n}")
        assert [line for _at, line in rows] == [f"first of {n}", *text.split("\n")]
        assert [at for at, _line in rows] == list(range(401))


def test_a_row_that_is_counted_twice_is_no_stranger(store: SqliteStore, sink: MemorySink) -> None:
    """A server counts a row twice while it merges segments: the ledger stands where it knows all rows."""
    reconcile(store, sink, "id-1", unclean=False)
    Assembly(store, sink).run(upsert("a", "one\ntwo", 1))
    count = sink.count
    sink.count = lambda: count() + 1  # type: ignore[method-assign]  # as such a server does
    assert reconcile(store, sink, "id-1", unclean=False) == Reconciled()
    assert len(entry(store, "a").present) == 2


def test_another_collection_voids_the_ledger(store: SqliteStore, sink: MemorySink) -> None:
    """Somebody dropped the collection: nothing that the ledger says of the old one is believed."""
    reconcile(store, sink, "id-1", unclean=False)
    stages = Assembly(store, sink)
    stages.run(upsert("a", "one", 1), delete("b", 2))
    sink.rows.clear()
    with capture_logs() as said:
        assert reconcile(store, sink, "id-2", unclean=False) == Reconciled(made_anew=True)
    assert [line["event"] for line in said if "made anew" in line["event"]] == [
        "the collection was made anew, or is another one, and lacks what was committed before"
    ]
    assert list(store.collection_entries(COLLECTION)) == []
    [outcome] = stages.run(upsert("a", "one", 1))
    assert (outcome.verdict, sink.texts()) == (Verdict.WRITTEN, {"a": ("one",)})


def test_a_ledger_that_was_lost_is_rebuilt_from_the_rows(store: SqliteStore, sink: MemorySink, tmp_path: Path) -> None:
    """Documents, their latest versions and keys come back; nothing is embedded twice, and orphans are found."""
    stages = Assembly(store, sink)
    stages.run(upsert("a", "one\ntwo", 5, source="cms"), upsert("b", "three", 2, source="inbox"))
    stages.run(upsert("a", "one\ntwo\nfour", 7))
    with open_store(tmp_path / "new state") as fresh:
        assert reconcile(fresh, sink, "id-1", unclean=False) == Reconciled(rebuilt=2)
        rebuilt = Assembly(fresh, sink)
        assert entry(fresh, "a").version == Version(7, "topic/0")
        assert entry(fresh, "b").source == "inbox"
        [old] = rebuilt.run(upsert("a", "older", 6))
        assert old.verdict is Verdict.SUPERSEDED
        [outcome] = rebuilt.run(upsert("a", "one\nfour", 8))
        assert (outcome.verdict, outcome.embedded) == (Verdict.WRITTEN, 0)
        assert sink.texts() == {"a": ("one", "four"), "b": ("three",)}


def test_a_rebuilt_ledger_knows_versions_of_the_producers_own(sink: MemorySink, tmp_path: Path) -> None:
    """A row that an edit left alone has a greater offset yet: the explicit version is the one that counts."""
    lines = ["one", "two", "three"]
    with open_store(tmp_path / "lost") as lost:
        stages = Assembly(lost, sink)
        stages.run(upsert("a", "\n".join(lines), 100))
        edited = upsert("a", "\n".join(["first", *lines[1:]]), 101)
        stages.run(replace(edited, version=Version(7, EXPLICIT)))
    assert {row.version for row in sink.rows.values()} == {7, 100}
    with open_store(tmp_path / "state") as store:
        assert reconcile(store, sink, "id-1", unclean=False) == Reconciled(rebuilt=1)
        assert entry(store, "a").version == Version(7, EXPLICIT)


def test_a_row_that_somebody_inserted_does_not_end_the_start(sink: MemorySink, tmp_path: Path) -> None:
    """By its key it is none of ours, and no entry can hold it: the ledger is rebuilt without it."""
    with open_store(tmp_path / "lost") as lost:
        Assembly(lost, sink).run(upsert("a", "one\ntwo", 1))
    row = next(iter(sink.rows.values()))
    sink.rows |= {key: replace(row, id=key) for key in ("foo", row.id.upper())}
    with open_store(tmp_path / "state") as store:
        assert reconcile(store, sink, "id-1", unclean=False) == Reconciled(rebuilt=1)
        assert len(entry(store, "a").present) == 2


def test_after_a_power_cut_a_row_that_lost_its_rewrite_is_found(store: SqliteStore, sink: MemorySink) -> None:
    """Metadata alone had changed: every key is there, and so is the number of rows. A plain crash loses nothing."""
    reconcile(store, sink, "id-1", unclean=False)
    stages = Assembly(store, sink)
    stages.run(upsert("a", "one\ntwo", 1, metadata={"room": "hall"}), upsert("b", "three", 2))
    before = dict(sink.rows)
    stages.run(upsert("a", "one\ntwo", 3, metadata={"room": "kitchen"}))
    sink.rows.clear()
    sink.rows.update(before)
    trusted = entry(store, "a")
    assert reconcile(store, sink, "id-1", unclean=True) == Reconciled()
    assert entry(store, "a") == trusted
    reconcile(store, sink, "id-1", unclean=True, rebooted=True)
    assert entry(store, "a").content == entry(store, "b").content == ""
    assert set(entry(store, "a").present.values()) == {UNKNOWN_DIGEST}
    [outcome] = stages.run(upsert("a", "one\ntwo", 4, metadata={"room": "kitchen"}))
    assert (outcome.verdict, outcome.embedded) == (Verdict.WRITTEN, 0)
    assert {row.metadata["room"] for row in sink.rows.values() if row.document_id == "a"} == {"kitchen"}


def test_after_a_power_cut_that_took_nothing_all_is_trusted(store: SqliteStore, sink: MemorySink) -> None:
    """Digests that are read back are those that were kept."""
    reconcile(store, sink, "id-1", unclean=False)
    stages = Assembly(store, sink)
    stages.run(upsert("a", "one\ntwo", 1, metadata={"room": "hall"}), upsert("b", "three", 2))
    stages.run(delete("b", 3))
    trusted = entry(store, "a")
    assert reconcile(store, sink, "id-1", unclean=True, rebooted=True) == Reconciled()
    assert entry(store, "a") == trusted
    assert not store.doubted(COLLECTION)
