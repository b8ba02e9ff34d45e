"""What is wrong with a document: its rows against the ledger's entry, and against one another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, Assembly, ManualLease, MemorySink, delete, open_store, upsert

from ingestd.audit.compare import Kind, corrected, faults, latest_of, strays, trusted
from ingestd.model import BEFORE_ALL, EXPLICIT, UNKNOWN_DIGEST, DocumentKey, Version, chunk_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.model import Entry, Event, Held
    from ingestd.store.sqlite import SqliteStore

KEY = DocumentKey(COLLECTION, "a")
TEXT = "one\ntwo\nthree\nfour"
ONE, TWO, THREE, FOUR = chunk_ids("a", TEXT.split("\n"))
FOREIGN = "f" * 32


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    opened = open_store(tmp_path / "state")
    yield opened
    opened.close(clean=True)


class Ground:
    """A document of four chunks, written by the real stages as version 5, and whoever looks at it.

    Args:
        store: The real state.
        shared: Whether other members write the collection too.
    """

    def __init__(self, store: SqliteStore, *, shared: bool = False) -> None:
        self.sink = MemorySink(shared=shared)
        self.stages = Assembly(store, self.sink, shared=shared)
        self.shared = shared
        self._store = store
        self.write(upsert("a", TEXT, 5, metadata={"n": 1}))

    def write(self, *events: Event) -> None:
        """Have events written; where members share the collection, under the same lease."""
        lease = ManualLease()
        for event in events:
            self.stages.run(replace(event, lease=lease, keyed=True) if self.shared else event)

    @property
    def entry(self) -> Entry | None:
        """The ledger's entry."""
        return self._store.entries([KEY]).get(KEY)

    @property
    def held(self) -> Held | None:
        """What a close look finds."""
        return self.sink.held(["a"], closely=True).get("a")

    def change(self, at: str, **changes: object) -> None:
        """Change a row behind the daemon's back."""
        self.sink.rows[at] = replace(self.sink.rows[at], **changes)  # type: ignore[arg-type]  # the tests name what they change

    def insert(self, at: str, like: str, **changes: object) -> None:
        """Insert a row that is like another one, but for its key and what else is named."""
        self.sink.rows[at] = replace(self.sink.rows[like], id=at, **changes)  # type: ignore[arg-type]  # as above

    def found(self, *, alone: bool = True, ledger: bool = True) -> list[tuple[Kind, str]]:
        """Return what is wrong, by kind and chunk."""
        entry = self.entry if ledger else None
        return [(fault.kind, fault.chunk_id) for fault in faults(entry, self.held, alone=alone)]


@pytest.fixture
def ground(store: SqliteStore) -> Ground:
    """A document that only one daemon writes."""
    return Ground(store)


@pytest.fixture
def common(store: SqliteStore) -> Ground:
    """A document that several members may write."""
    return Ground(store, shared=True)


def test_a_document_that_is_as_it_was_written_has_no_fault(ground: Ground) -> None:
    """By the ledger and among themselves; after edits, which leave rows of older versions alone, and after a delete."""
    events = [
        upsert("a", "one\nnew\nthree\ntwo", 7, metadata={"n": 1}),
        upsert("a", "one\nnew\nthree\ntwo", 8, metadata={"n": 2}),
        upsert("a", "", 9),
        upsert("a", "one\none\none", 10),
        upsert("a", "one", 11),
        delete("a", 12),
        upsert("a", TEXT, 13),
    ]
    for event in events:
        assert ground.found() == ground.found(alone=False) == []
        assert ground.found(alone=False, ledger=False) == []
        ground.write(event)
    assert ground.found() == []
    assert len({row.version for row in ground.sink.rows.values()}) == 1


def test_an_edit_leaves_rows_of_older_versions(ground: Ground) -> None:
    """That is no difference, in whichever way they are looked at."""
    ground.write(upsert("a", TEXT.replace("two", "zwei"), 6, metadata={"n": 1}))
    assert {row.version for row in ground.sink.rows.values()} == {5, 6}
    assert ground.found() == ground.found(alone=False, ledger=False) == []


def test_rows_that_are_gone_are_missing(ground: Ground) -> None:
    """Each of them, and all of them."""
    del ground.sink.rows[TWO]
    assert ground.found() == [(Kind.MISSING, TWO)]
    ground.sink.rows.clear()
    assert ground.found() == sorted((Kind.MISSING, at) for at in (ONE, TWO, THREE, FOUR))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"text": "zwei"}, "its text is not the one"),
        ({"metadata": {"n": 9}}, "its metadata, fields or source is not what was written"),
        ({"fields": {"lang": "de"}}, "its metadata, fields or source is not what was written"),
        ({"source": "other"}, "its metadata, fields or source is not what was written"),
        ({"chunk_index": 9}, "its place or version is not what was written"),
        ({"version": 9}, "the document is at version 5"),
    ],
)
def test_a_row_that_says_something_else_is_stale(ground: Ground, changes: dict[str, object], why: str) -> None:
    """Whatever was changed, the row is named, with what is wrong about it; no other is."""
    ground.change(THREE, **changes)
    (fault,) = faults(ground.entry, ground.held, alone=True)
    assert (fault.kind, fault.chunk_id) == (Kind.STALE, THREE)
    assert why in fault.detail


@pytest.mark.parametrize("changes", [{"version": 4}, {"domain": "topic/1"}, {"version": 6}])
def test_the_first_rows_version_counts(ground: Ground, changes: dict[str, object]) -> None:
    """It is the document's: a newer, an older and another one are all wrong."""
    ground.change(ONE, **changes)
    assert ground.found() == [(Kind.STALE, ONE)]


def test_a_row_that_the_version_does_not_have_is_stale(ground: Ground) -> None:
    """Also one of an older version that stands where the document has a row now: a late write."""
    ground.insert(FOREIGN, ONE, chunk_index=9, text="foreign")
    (late,) = chunk_ids("a", ["old"])
    ground.insert(late, TWO, text="old", version=3)
    assert ground.found() == sorted([(Kind.STALE, FOREIGN), (Kind.STALE, late)])


def test_a_second_row_at_a_place_is_a_duplicate(ground: Ground) -> None:
    """It is the one that the ledger does not have, and so is a key that is there twice."""
    ground.insert(FOREIGN, TWO)
    ground.sink.copies[THREE] = 2
    assert ground.found() == sorted([(Kind.DUPLICATE, FOREIGN), (Kind.DUPLICATE, THREE)])
    details = [fault.detail for fault in faults(ground.entry, ground.held, alone=True)]
    assert any("its key is there 2 times" in detail for detail in details)


def test_rows_of_a_document_that_is_not_there_are_orphans(ground: Ground) -> None:
    """Of one that was deleted, and of one that the ledger never knew."""
    rows = dict(ground.sink.rows)
    assert ground.found(ledger=False) == sorted((Kind.ORPHAN, at) for at in (ONE, TWO, THREE, FOUR))
    ground.write(delete("a", 6))
    assert ground.found() == []
    ground.sink.rows[TWO] = rows[TWO]
    (fault,) = faults(ground.entry, ground.held, alone=True)
    assert (fault.kind, fault.chunk_id) == (Kind.ORPHAN, TWO)
    assert "version 6 (topic/0) deleted the document" in fault.detail


def test_a_version_that_was_not_finished_is_told(ground: Ground, store: SqliteStore) -> None:
    """Its rows are in doubt, those that are there and those that are not."""
    whole = ground.entry
    assert whole is not None
    present = {at: digest for at, digest in whole.present.items() if at != ONE}
    store.write_ahead([replace(whole, present=present, doubtful=frozenset({ONE, FOREIGN}))])
    assert ground.found() == [(Kind.MISSING, FOREIGN), (Kind.STALE, ONE)]


def test_a_rebuilt_ledger_knows_keys_and_the_rows_tell_the_rest(ground: Ground, store: SqliteStore) -> None:
    """Nothing is wrong as long as the rows agree; what does not, and what is missing, is found all the same."""
    assert ground.entry is not None
    store.write_ahead([replace(ground.entry, present=dict.fromkeys(ground.entry.present, UNKNOWN_DIGEST), content="")])
    assert ground.found() == []
    del ground.sink.rows[FOUR]
    ground.change(TWO, metadata={})
    ground.change(THREE, text="drei")
    assert ground.found() == sorted([(Kind.MISSING, FOUR), (Kind.STALE, TWO), (Kind.STALE, THREE)])


def test_a_row_that_was_lost_before_the_ledger_was_rebuilt_is_missing(ground: Ground, store: SqliteStore) -> None:
    """Nothing knows its key any more; the places of the others tell of it."""
    assert ground.entry is not None
    del ground.sink.rows[TWO]
    there = dict.fromkeys(ground.entry.present.keys() - {TWO}, UNKNOWN_DIGEST)
    store.write_ahead([replace(ground.entry, present=there, content="")])
    assert ground.found() == [(Kind.MISSING, "")]
    ground.insert(FOREIGN, THREE, chunk_index=9, text="foreign")
    assert ground.found() == sorted([(Kind.MISSING, ""), (Kind.STALE, FOREIGN)]), "a stray makes no gap"
    del ground.sink.rows[FOREIGN]
    del ground.sink.rows[THREE]
    assert ground.found() == [(Kind.MISSING, THREE)]


def test_a_row_that_a_ledger_lost_trust_in_is_missing_once(ground: Ground, store: SqliteStore) -> None:
    """After a power cut: the keys that Milvus has not are in doubt, and nothing is known of what the others say."""
    assert ground.entry is not None
    del ground.sink.rows[TWO]
    there = dict.fromkeys(ground.entry.present.keys() - {TWO}, UNKNOWN_DIGEST)
    store.write_ahead([replace(ground.entry, present=there, doubtful=frozenset({TWO}), content="")])
    assert ground.found() == [(Kind.MISSING, TWO)]


# Where other members write the collection too


def test_rows_have_to_agree_where_nobodys_ledger_is_the_truth(common: Ground) -> None:
    """A gap, other metadata, a second row at a place, a later row than the first: each is found by the rows alone."""
    del common.sink.rows[TWO]
    assert common.found(alone=False, ledger=False) == [(Kind.MISSING, "")]
    common.write(upsert("a", TEXT, 6, metadata={"n": 1}))
    common.sink.rows.pop(TWO, None)
    common.change(THREE, metadata={"n": 2})
    common.insert(FOREIGN, FOUR, text="foreign", version=2)
    assert common.found(alone=False, ledger=False) == sorted(
        [(Kind.MISSING, ""), (Kind.STALE, THREE), (Kind.STALE, FOREIGN)]
    )


def test_a_row_that_is_later_than_the_first_is_of_a_version_that_was_not_finished(common: Ground) -> None:
    """Every version writes the first chunk anew."""
    (new,) = chunk_ids("a", ["new"])
    common.insert(new, FOUR, text="new", version=7, chunk_index=4)
    assert common.found(alone=False, ledger=False) == [(Kind.STALE, new)]


def test_rows_no_later_than_their_tombstone_are_orphans(common: Ground) -> None:
    """All of a document that is gone, and of one that was written again only those that are older."""
    common.sink.tombstones["a"] = Version(5, "topic/0")
    everything = sorted((Kind.ORPHAN, at) for at in (ONE, TWO, THREE, FOUR))
    assert common.found(alone=False, ledger=False) == everything
    common.sink.tombstones["a"] = Version(9, "topic/1")
    assert common.found(alone=False, ledger=False) == []
    common.sink.tombstones["a"] = Version(4, "topic/0")
    assert common.found(alone=False, ledger=False) == []
    (late,) = chunk_ids("a", ["late"])
    common.insert(late, FOUR, text="late", version=4, chunk_index=4)
    assert common.found(alone=False, ledger=False) == [(Kind.ORPHAN, late)]


def test_a_gap_is_one_fault_however_large(common: Ground) -> None:
    """A row may say any place."""
    common.change(FOUR, chunk_index=2**62)
    found = faults(None, common.held, alone=False)
    assert [(fault.kind, fault.chunk_id) for fault in found] == [(Kind.MISSING, "")]
    assert found[0].detail == f"chunks 3 to {2**62 - 1} are not there, and chunk {2**62} is"


def test_a_ledger_that_is_no_older_than_the_rows_is_the_truth(common: Ground) -> None:
    """Its last row can be missed, which the rows alone cannot tell; and rows older than it were brought back."""
    del common.sink.rows[FOUR]
    assert common.found(alone=False, ledger=False) == []
    assert common.found(alone=False) == [(Kind.MISSING, FOUR)]
    old = dict(common.sink.rows)
    common.write(upsert("a", "one\nzwei", 8, metadata={"n": 1}))
    common.sink.rows = old
    zwei = chunk_ids("a", ["zwei"])[0]
    assert common.found(alone=False) == sorted(
        [(Kind.MISSING, zwei), (Kind.STALE, ONE), (Kind.STALE, TWO), (Kind.STALE, THREE)]
    )
    common.sink.rows.clear()
    assert common.found(alone=False) == sorted([(Kind.MISSING, ONE), (Kind.MISSING, zwei)])


def test_a_ledger_that_is_older_says_nothing(common: Ground) -> None:
    """Another member has written since, in this partition or in another, or has deleted the document."""
    ours, whole = common.entry, dict(common.sink.rows)
    assert trusted(ours, common.held)
    common.sink.rows = {at: replace(whole[at], version=9) for at in (ONE, TWO)}
    assert not trusted(ours, common.held)
    assert common.found(alone=False) == []
    common.sink.rows = {at: replace(whole[at], domain="topic/1") for at in (ONE, TWO)}
    assert not trusted(ours, common.held)
    assert common.found(alone=False) == []
    common.sink.rows.clear()
    for tombstone in (Version(9, "topic/0"), Version(1, "topic/1")):
        common.sink.tombstones["a"] = tombstone
        assert not trusted(ours, common.held)
        assert common.found(alone=False) == []


def test_an_entry_of_nothing_is_none_to_rely_on(common: Ground) -> None:
    """Nothing is there: what the ledger has of the document counts, unless that is only that it was begun."""
    assert common.entry is not None
    assert trusted(common.entry, None)
    assert not trusted(replace(common.entry, version=Version(BEFORE_ALL, "topic/0")), None)
    assert not trusted(None, None)


@pytest.mark.parametrize(
    ("versions", "tombstone", "latest"),
    [
        ([Version(5, "a"), Version(3, "a")], None, Version(5, "a")),
        ([Version(5, "a"), Version(7, "a")], None, Version(7, "a")),  # a later attempt was left half done
        ([Version(5, "a"), Version(9, "b")], None, Version(5, "a")),  # the first chunk's domain
        ([Version(2, EXPLICIT), Version(9, "a")], None, Version(2, EXPLICIT)),
        ([Version(5, "a")], Version(6, "a"), Version(6, "a")),
        ([Version(5, "a")], Version(6, "b"), Version(5, "a")),
        ([], Version(6, "b"), Version(6, "b")),
    ],
)
def test_the_version_that_milvus_has(
    common: Ground, versions: list[Version], tombstone: Version | None, latest: Version
) -> None:
    """The first chunk's, or a later one of its domain."""
    rows = list(common.sink.rows.values())[: len(versions)]
    made = zip(rows, versions, strict=True)
    common.sink.rows = {row.id: replace(row, version=v.number, domain=v.domain) for row, v in made}
    if tombstone is not None:
        common.sink.tombstones["a"] = tombstone
    assert latest_of(common.held) == latest


def test_two_first_chunks_of_different_domains_say_nothing(common: Ground) -> None:
    """Which of the two is the document's cannot be told."""
    common.insert(FOREIGN, ONE, domain="topic/1")
    assert latest_of(common.held) is None
    assert latest_of(None) is None
    assert (Kind.STALE, FOREIGN) in common.found(alone=False)  # its text is not its key's


# What follows


def test_an_entry_is_put_right(ground: Ground) -> None:
    """Only rows that are as they should be stay present; all others that are, or were, there are in doubt."""
    del ground.sink.rows[ONE]
    ground.change(TWO, text="zwei")
    ground.insert(FOREIGN, THREE, chunk_index=7)
    assert ground.entry is not None
    found = corrected(ground.entry, ground.held, faults(ground.entry, ground.held, alone=True))
    assert found.present == {at: ground.entry.present[at] for at in (THREE, FOUR)}
    assert found.doubtful == {ONE, TWO, FOREIGN}
    assert replace(found, present=ground.entry.present, doubtful=frozenset()) == ground.entry


def test_rows_that_a_document_should_not_have_at_all(ground: Ground) -> None:
    """Of a document that is there those that no version of it may have written; of any other one all."""
    ground.insert(FOREIGN, THREE)
    rows = frozenset(ground.sink.rows)
    assert ground.entry is not None
    assert strays(ground.entry, ground.held) == {FOREIGN}
    assert strays(replace(ground.entry, doubtful=frozenset({FOREIGN})), ground.held) == frozenset()
    assert strays(replace(ground.entry, deleted=True), ground.held) == strays(None, ground.held) == rows
    assert strays(ground.entry, None) == frozenset()
