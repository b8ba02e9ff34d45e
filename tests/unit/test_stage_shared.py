"""What members of a group do to one collection together: the four stages, twice, over what both of them write."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import Assembly, ManualLease, MemorySink, delete, open_store, upsert

from ingestd.model import Event, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.store.sqlite import SqliteStore


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
    """Return the stages of a member."""
    return Assembly(store, sink, shared=True)


def leased(event: Event, lease: ManualLease) -> Event:
    """Return the event as it comes under a lease, of a record whose key is its document's id."""
    return replace(event, lease=lease, keyed=True)


def ended(stages: Assembly, event: Event) -> Outcome:
    """Return the outcome of an event that goes no further than the first stage."""
    [result] = stages.recall.process([event])
    assert isinstance(result, Outcome)
    return result


def test_two_members_with_one_document_leave_one_version_of_it(
    member: Assembly, sink: MemorySink, tmp_path: Path
) -> None:
    """Its records come in two partitions, each held by a member without a break: no row is left over."""

    def unkeyed(number: int, text: str, domain: str, lease: ManualLease) -> Event:
        return replace(leased(upsert("a", text, number, domain=domain), lease), keyed=False)

    ours, theirs = ManualLease("ours"), ManualLease("theirs")
    with open_store(tmp_path / "other") as store:
        other = Assembly(store, sink, shared=True)
        member.run(unkeyed(1, "one", "topic/0", ours))
        other.run(unkeyed(1, "two", "topic/1", theirs))
        member.run(unkeyed(2, "three", "topic/0", ours))
        other.run(unkeyed(2, "four", "topic/1", theirs))
        assert sink.texts() == {"a": ("four",)}
        other.run(leased(delete("a", 3, domain="topic/1"), theirs))
        assert sink.texts() == {}


def test_a_version_without_a_chunk_is_remembered(member: Assembly, sink: MemorySink) -> None:
    """It leaves no row that could say so: a tombstone does, and an older version stays away at the next owner's too."""
    ours, next_ = ManualLease("ours"), ManualLease("next")
    member.run(leased(upsert("a", "hello", 5), ours))
    [outcome] = member.run(leased(upsert("a", "", 7), ours))
    assert (outcome.verdict, sink.texts()) == (Verdict.WRITTEN, {})
    assert ended(member, leased(upsert("a", "late", 6), next_)).verdict is Verdict.SUPERSEDED
    member.run(leased(upsert("a", "again", 8), next_))
    assert sink.texts() == {"a": ("again",)}


def test_a_delete_keeps_its_own_domain_away_whatever_came_since(member: Assembly, sink: MemorySink) -> None:
    """Another partition's later version stands: neither what the delete deleted nor the delete itself comes again."""
    ours = ManualLease("ours")
    member.run(leased(upsert("a", "t0", 4), ours))
    member.run(leased(delete("a", 5), ours))
    member.run(leased(upsert("a", "t1", 200, domain="topic/1"), ours))
    assert ended(member, leased(upsert("a", "t0", 4), ManualLease("next"))).verdict is Verdict.SUPERSEDED
    assert ended(member, leased(delete("a", 5), ManualLease("next"))).verdict is Verdict.UNCHANGED
    assert sink.texts() == {"a": ("t1",)}
    member.run(leased(upsert("a", "newer", 6), ManualLease("next")))
    assert sink.texts() == {"a": ("newer",)}


def test_what_an_operator_tries_again_is_older_than_what_another_domain_brought(member: Assembly) -> None:
    """Its number does not compare, but it is known to be old; where nothing is known of the document it is written."""
    ours = ManualLease("ours")
    member.run(leased(upsert("a", "there", 1, domain="topic/9"), ours))
    old = replace(leased(upsert("a", "old", 500), ours), again=True)
    assert ended(member, old).verdict is Verdict.SUPERSEDED
    new = replace(leased(upsert("b", "only here", 500), ours), again=True)
    assert member.run(new)[0].verdict is Verdict.WRITTEN


def test_a_version_that_was_left_half_written_and_fails_leaves_the_old_one_alone(
    member: Assembly, sink: MemorySink
) -> None:
    """Its rows are beside the old version's, by a member that was killed: they go with its failure, and not before."""
    sink.refuses = lambda row: row.text == "bad"
    member.run(leased(upsert("a", "x1\ny1", 5), ManualLease("theirs")))
    windows = member.windows(leased(upsert("a", "x2\ny2\nbad", 6), ManualLease("theirs")))
    for row in windows[0].rows[:2]:  # type: ignore[union-attr]  # a window
        sink.rows[row.id] = row
    assert sink.texts() == {"a": ("x1", "x2", "y1", "y2")}
    [outcome] = member.run(leased(upsert("a", "x2\ny2\nbad", 6), ManualLease("next")))
    assert (outcome.verdict, sink.texts()) == (Verdict.DEAD_LETTERED, {"a": ("x1", "y1")})
