"""No call changes Milvus after its lease is lost, and what was begun is left for the next owner to find."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, Assembly, Killed, ManualLease, MemorySink, delete, open_store, upsert

from ingestd.errors import DocumentError, UnavailableError
from ingestd.model import Abandoned, DocumentKey, Entry, Verdict, Version, chunk_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ingestd.model import ChunkId, Event, Outcome
    from ingestd.store.sqlite import SqliteStore

CHANGES = {"upsert", "rewrite", "delete", "bury"}
BEFORE = ("one", "two", "three", "four", "five")
AFTER = ("one", "two", "new 1", "new 2", "new 3", "new 4")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    opened = open_store(tmp_path / "state")
    yield opened
    opened.close(clean=True)


@pytest.fixture
def sink() -> MemorySink:
    """Return an empty collection that other processes write too."""
    return MemorySink(shared=True)


@pytest.fixture
def member(store: SqliteStore, sink: MemorySink) -> Assembly:
    """Return the stages of a member of a group over both, with windows of three rows."""
    return Assembly(store, sink, window=3, shared=True)


def leased(event: Event, lease: ManualLease) -> Event:
    """Return the event as it comes under a lease."""
    return replace(event, lease=lease)


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


def operations(sink: MemorySink) -> list[str]:
    """Return what was done to the sink."""
    return [step.operation for step in sink.history]


def lose_after(sink: MemorySink, lease: ManualLease, steps: int) -> None:
    """Have a lease be lost when so many operations are done: the next call is not allowed."""

    def entering() -> None:
        if len(sink.history) >= steps:
            lease.allowed = False

    sink.history.clear()
    lease.entering = entering


FIRST, NEXT, GONE = upsert("a", lines(*BEFORE), 1), upsert("a", lines(*AFTER), 2), delete("a", 2)
WRITING, DELETING = ["upsert", "upsert", "rewrite", "delete"], ["bury", "delete"]


@pytest.mark.parametrize(
    "case",
    [
        *((NEXT, WRITING, steps) for steps in range(len(WRITING))),
        *((GONE, DELETING, steps) for steps in range(len(DELETING))),
    ],
)
def test_no_call_is_made_after_the_lease_is_lost(
    member: Assembly, sink: MemorySink, store: SqliteStore, case: tuple[Event, list[str], int]
) -> None:
    """Wherever it is lost, the event is returned; the ledger stays as it was, and nothing of its lease is relied on."""
    event, order, steps = case
    lease = ManualLease()
    member.run(leased(FIRST, lease))
    lose_after(sink, lease, steps)
    [outcome] = member.run(leased(event, lease), windows_at_a_time=1)
    assert (outcome.verdict, outcome.entry, outcome.failure) == (Verdict.RETURNED, None, None)
    assert operations(sink) == order[:steps]
    assert lease.calls == 0
    before = known(store)
    assert (before.version, before.tenure) == (Version(1, "topic/0"), lease.id)
    assert (set(before.present), before.doubtful) == (set(chunk_ids("a", BEFORE)), frozenset())


def test_a_ledger_that_is_relied_on_says_ahead_what_is_touched(store: SqliteStore) -> None:
    """Where nobody else writes the collection, the next start knows of the rows from it alone."""
    sink, lease = MemorySink(), ManualLease()
    alone = Assembly(store, sink, window=3)
    alone.run(leased(FIRST, lease))
    lose_after(sink, lease, 1)
    [outcome] = alone.run(leased(NEXT, lease), windows_at_a_time=1)
    assert outcome.verdict is Verdict.RETURNED
    assert known(store).doubtful == set(chunk_ids("a", {*BEFORE, *AFTER} - {"two"}))


@pytest.mark.parametrize("steps", range(len(WRITING) + 1))
def test_the_next_owner_ends_what_was_left_half_done(
    member: Assembly, sink: MemorySink, tmp_path: Path, steps: int
) -> None:
    """It gets the record again, and knows of the rows from Milvus alone: none is missing, stale or twice."""
    lease = ManualLease()
    member.run(leased(FIRST, lease))
    lose_after(sink, lease, steps)
    member.run(leased(NEXT, lease), windows_at_a_time=1)
    with open_store(tmp_path / "next") as other:
        owner = Assembly(other, sink, window=3, shared=True)
        assert verdicts(owner.run(leased(NEXT, ManualLease("next")))) == {"a": Verdict.WRITTEN}
        assert sink.texts() == {"a": AFTER}
        assert verdicts(owner.run(leased(FIRST, ManualLease("another")))) == {"a": Verdict.SUPERSEDED}


@pytest.mark.parametrize("steps", range(len(DELETING) + 1))
def test_the_next_owner_ends_a_delete_that_was_left_half_done(
    member: Assembly, sink: MemorySink, tmp_path: Path, steps: int
) -> None:
    """From the tombstone on, what is left of the rows brings nothing back."""
    lease = ManualLease()
    member.run(leased(FIRST, lease))
    lose_after(sink, lease, steps)
    member.run(leased(GONE, lease))
    with open_store(tmp_path / "next") as other:
        owner = Assembly(other, sink, shared=True)
        if steps:
            assert verdicts(owner.run(leased(FIRST, ManualLease("late")))) == {"a": Verdict.SUPERSEDED}
        owner.run(leased(GONE, ManualLease("next")))
        assert (sink.texts(), sink.tombstones) == ({}, {"a": Version(2, "topic/0")})
        assert verdicts(owner.run(leased(FIRST, ManualLease("another")))) == {"a": Verdict.SUPERSEDED}


def test_nothing_is_taken_back_after_the_lease_is_lost(member: Assembly, sink: MemorySink, store: SqliteStore) -> None:
    """A refused row fails the document, and its first window stays: it is the next owner's to judge, and to clear."""
    lease = ManualLease()
    sink.refuses = lambda row: row.text == "bad"
    lose_after(sink, lease, 1)
    [outcome] = member.run(leased(upsert("a", lines("1", "2", "3", "bad"), 1), lease), windows_at_a_time=1)
    assert (outcome.verdict, outcome.entry) == (Verdict.RETURNED, None)
    assert operations(sink) == ["upsert"]
    assert store.entries([DocumentKey(COLLECTION, "a")]) == {}


def test_a_version_that_the_model_fails_is_not_taken_back_without_a_lease(member: Assembly, sink: MemorySink) -> None:
    """What embedding gives up on is returned, too, when nothing may be deleted any more."""
    lease = ManualLease()
    member.embedder.errors["bad"] = DocumentError("the model chokes on it")
    windows = member.windows(leased(upsert("a", lines("1", "2", "3", "bad"), 1), lease))
    assert isinstance(windows[-1], Abandoned)
    lose_after(sink, lease, 1)
    [outcome] = [outcome for window in windows for outcome in member.write.process([window])]
    assert outcome.verdict is Verdict.RETURNED
    assert operations(sink) == ["upsert"]


@pytest.mark.parametrize("steps", range(3))
def test_documents_of_other_leases_go_on(member: Assembly, sink: MemorySink, steps: int) -> None:
    """Of a batch under three leases, and one under none, only those of the lost lease are returned."""
    leases = {name: ManualLease(name) for name in ("lost", "kept", "other")}
    events = {name: leased(upsert(name, lines(*BEFORE), at), lease) for at, (name, lease) in enumerate(leases.items())}
    member.run(*events.values(), upsert("file", lines(*BEFORE)))
    after = [
        *(leased(upsert(name, lines(*AFTER), 9), lease) for name, lease in leases.items()),
        upsert("file", lines(*AFTER)),
    ]
    lose_after(sink, leases["lost"], steps)
    found = verdicts(member.run(*after))
    assert found.pop("lost") is Verdict.RETURNED
    assert found == dict.fromkeys(("kept", "other", "file"), Verdict.WRITTEN)
    texts = sink.texts()
    assert set(BEFORE) <= set(texts.pop("lost"))
    assert texts == dict.fromkeys(("kept", "other", "file"), AFTER)
    assert [lease.calls for lease in leases.values()] == [0, 0, 0]


def test_a_refused_row_and_a_lost_lease_in_one_batch(member: Assembly, sink: MemorySink) -> None:
    """The batch is halved for the bad row, a lease ends meanwhile, and each document has the end that is its own."""
    lost = ManualLease("lost")
    kept = [ManualLease(f"kept {n}") for n in range(3)]
    events = [leased(upsert(f"d{n}", lines(f"{n}: one", f"{n}: two"), n), kept[n % 3]) for n in range(8)]
    events[6] = leased(events[6], lost)
    sink.refuses = lambda row: row.text == "3: two"
    tries: list[int] = []

    def entering() -> None:
        tries.append(1)
        lost.allowed = len(tries) < 2

    lost.entering = entering
    found = verdicts(member.run(*events))
    assert (found.pop("d3"), found.pop("d6")) == (Verdict.DEAD_LETTERED, Verdict.RETURNED)
    assert set(found.values()) == {Verdict.WRITTEN}
    assert sink.texts().keys() == found.keys()


def test_windows_after_the_lease_is_lost_are_not_written(member: Assembly, sink: MemorySink) -> None:
    """The document is returned once, with its last window; meanwhile another begins and ends."""
    lease = ManualLease()
    first, *rest = member.windows(leased(upsert("a", lines(*(f"line {n}" for n in range(9))), 1), lease))
    lease.allowed = False
    assert list(member.write.process([first])) == []
    lease.allowed = True
    outcomes = list(member.write.process([*rest, *member.windows(upsert("b", "b", 2))]))
    assert verdicts(outcomes) == {"a": Verdict.RETURNED, "b": Verdict.WRITTEN}
    assert sink.texts() == {"b": ("b",)}


def test_a_lease_that_is_lost_while_milvus_is_away(member: Assembly, sink: MemorySink) -> None:
    """The held batch is given up for that document alone, without another call for it; the other waits on."""
    lost, kept = ManualLease("lost"), ManualLease("kept")
    events = leased(upsert("a", "one", 1), lost), leased(upsert("b", "two", 2), kept)
    windows = member.windows(*events)
    tries: list[tuple[ChunkId, ...]] = []
    [a], [b] = chunk_ids("a", ["one"]), chunk_ids("b", ["two"])

    def before(operation: str, ids: Sequence[ChunkId]) -> None:
        if operation == "upsert":
            tries.append(tuple(ids))
            lost.ended = len(tries) >= 3
            if len(tries) == 6:
                sink.outage = 0

    sink.before, sink.outage = before, 1000
    outcomes = list(member.write.process(windows))
    assert verdicts(outcomes) == {"a": Verdict.RETURNED, "b": Verdict.WRITTEN}
    assert tries == [(a, b)] * 3 + [(b,)] * 3
    assert sink.texts() == {"b": ("two",)}


def test_the_tombstone_comes_before_the_rows_go(member: Assembly, sink: MemorySink) -> None:
    """All rows are there when it is noted, with the delete's own version, for deletes alone, in one call for all."""
    names = ("a", "b")
    member.run(
        *(leased(upsert(name, "x", 1), ManualLease()) for name in names), leased(upsert("c", "x", 1), ManualLease())
    )
    sink.history.clear()
    lease = ManualLease()
    gone = [leased(delete(name, 3), lease) for name in names]
    member.run(*gone, leased(upsert("c", "y", 3), lease))
    bury = next(step for step in sink.history if step.operation == "bury")
    assert set(bury.ids) == set(names)
    assert {"a", "b"} <= bury.searchable.keys()
    assert operations(sink).index("bury") < operations(sink).index("delete")
    assert operations(sink).count("bury") == 1
    assert sink.tombstones == dict.fromkeys(names, Version(3, "topic/0"))
    assert sink.texts() == {"c": ("y",)}


def test_a_delete_of_what_nobody_knows_is_noted(member: Assembly, sink: MemorySink) -> None:
    """Its rows may be written by another member who reads a late record: the tombstone tells it."""
    assert verdicts(member.run(leased(delete("a", 3), ManualLease()))) == {"a": Verdict.DELETED}
    assert operations(sink) == ["bury"]
    assert sink.tombstones == {"a": Version(3, "topic/0")}


def test_every_change_is_made_inside_the_leases(member: Assembly, sink: MemorySink) -> None:
    """Each call that changes something, and no other, is made between enter and leave, once for all its documents.

    What may be several requests asks again before each of them.
    """
    one, two = ManualLease("one"), ManualLease("two")
    during: list[tuple[str, int, int]] = []

    def before(operation: str, _ids: Sequence[ChunkId]) -> None:
        during.append((operation, one.calls, two.calls))

    sink.before = before
    events = [leased(upsert(f"d{n}", lines(*BEFORE), n), (one, two)[n % 2]) for n in range(6)]
    member.run(*events)
    member.run(*(replace(event, payload=NEXT.payload, version=Version(9, "topic/0")) for event in events))
    member.run(leased(delete("d0", 10), one), leased(delete("d1", 10), two))
    changes = [calls for operation, *calls in during if operation in CHANGES]
    again = [operation for operation, *_ in during if operation in CHANGES - {"bury"}]
    assert {operation for operation, *_ in during} >= CHANGES
    assert changes == [[1, 1]] * len(changes)
    assert all(calls == [0, 0] for operation, *calls in during if operation not in {*CHANGES, "row"})
    assert one.begun == two.begun == len(changes) + len(again)


@pytest.mark.parametrize("operation", sorted(CHANGES - {"bury"}))
def test_nothing_is_sent_after_a_lease_is_lost_while_a_call_is_made_ready(
    member: Assembly, sink: MemorySink, operation: str
) -> None:
    """A rewrite may read vectors back before it writes: one that is stopped meanwhile asks again before it does."""
    lease = ManualLease()
    member.run(leased(FIRST, lease))
    sink.history.clear()

    def before(called: str, _ids: Sequence[ChunkId]) -> None:
        lease.allowed = lease.allowed and called != operation

    sink.before = before
    [outcome] = member.run(leased(NEXT, lease))
    assert outcome.verdict is Verdict.RETURNED
    assert not lease.allowed
    assert operation not in operations(sink)
    assert lease.calls == 0


@pytest.mark.parametrize("operation", sorted(CHANGES))
@pytest.mark.parametrize("error", [Killed(), ValueError("nobody foresaw it"), UnavailableError("milvus", "no answer")])
def test_leases_are_left_whatever_a_call_ends_with(
    member: Assembly, sink: MemorySink, operation: str, error: BaseException
) -> None:
    """For every enter there is a leave, also when the call raises: a rebalance would wait for it for ever."""
    leases = [ManualLease("one"), ManualLease("two")]
    member.run(*(leased(upsert(name, lines(*BEFORE), 1), lease) for name, lease in zip("ab", leases, strict=True)))
    raised: list[str] = []

    def before(called: str, _ids: Sequence[ChunkId]) -> None:
        if called == operation and not raised:
            raised.append(called)
            raise error

    sink.before = before
    change = delete if operation == "bury" else lambda name, at: upsert(name, lines(*AFTER), at)
    with suppress(Killed, ValueError):
        member.run(*(leased(change(name, 2), lease) for name, lease in zip("ab", leases, strict=True)))
    assert raised == [operation]
    assert [lease.calls for lease in leases] == [0, 0]
    assert all(lease.begun > 1 for lease in leases)


def test_leases_are_left_when_a_later_one_cannot_be_entered(member: Assembly) -> None:
    """One raises, or refuses: those that were entered before it are left."""
    first, second = ManualLease("first"), ManualLease("second")

    def entering() -> None:
        raise Killed

    second.entering = entering
    events = leased(upsert("a", "x", 1), first), leased(upsert("b", "y", 2), second)
    with suppress(Killed):
        member.run(*events)
    assert (first.begun, first.calls, member.sink.rows) == (1, 0, {})


def test_a_lease_that_ends_while_another_is_waited_for(member: Assembly, sink: MemorySink) -> None:
    """Entering the second waits for a rebalance, which takes the first away: no call is made for it."""
    first, second = ManualLease("first"), ManualLease("second")
    second.entering = lambda: setattr(first, "ended", True)
    events = leased(upsert("a", "x", 1), first), leased(upsert("b", "y", 2), second)
    windows = member.windows(*events)
    assert verdicts(list(member.write.process(windows))) == {"a": Verdict.RETURNED, "b": Verdict.WRITTEN}
    assert sink.texts() == {"b": ("y",)}
    assert (first.calls, second.calls) == (0, 0)


def test_leases_that_took_long_to_enter_are_entered_again(
    member: Assembly, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one waits for its group, the group of another may have stopped waiting for a call that had not begun."""
    first, second = ManualLease("first"), ManualLease("second")
    monkeypatch.setattr("ingestd.stages.write.time", member.clock)

    def entering() -> None:
        if not second.begun:
            member.clock.advance(2.0)
            first.allowed = False

    second.entering = entering
    windows = member.windows(leased(upsert("a", "x", 1), first), leased(upsert("b", "y", 2), second))
    assert verdicts(list(member.write.process(windows))) == {"a": Verdict.RETURNED, "b": Verdict.WRITTEN}
    assert sink.texts() == {"b": ("y",)}
    assert (first.calls, second.calls) == (0, 0)


def test_entries_say_under_which_lease_they_were_written(member: Assembly, store: SqliteStore) -> None:
    """Written, failed, unchanged or ahead: the ledger can be relied on under that lease; of a file there is none."""
    member.run(leased(upsert("a", "x", 1), ManualLease("one")), upsert("file", "x"))
    assert (known(store).tenure, known(store, "file").tenure) == ("one", "")
    member.run(leased(upsert("a", lines("x", "y"), 2), ManualLease("two")))
    assert known(store).tenure == "two"
    member.run(leased(upsert("a", lines("x", "y"), 3), ManualLease("two")))
    assert (known(store).tenure, known(store).version.number) == ("two", 3)
    member.sink.refuses = lambda _row: True
    [failed] = member.run(leased(upsert("a", "z", 4), ManualLease("three")))
    assert (failed.verdict, known(store).tenure) == (Verdict.DEAD_LETTERED, "three")
