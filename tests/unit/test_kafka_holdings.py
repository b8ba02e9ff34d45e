"""What becomes of partitions in a rebalance: kept where they were never anybody else's, and begun anew otherwise."""

from __future__ import annotations

import pytest
from kafka.structs import TopicPartition

from ingestd.sources._kafka.holdings import Holdings
from ingestd.sources._kafka.tenure import Gate, Tenure

A, B, C = (TopicPartition("t", number) for number in range(3))


class Membership:
    """A place in a group that is well (``tenure.Membership``)."""

    session_seconds = 10.0

    def rebalancing(self) -> bool:
        """Return that nothing is being decided."""
        return False

    def heartbeat_age(self) -> float | None:
        """Return that one was answered just now."""
        return 0.0


class Bench:
    """The holdings of a member, and where it was told to seek."""

    def __init__(self) -> None:
        self.sought: list[tuple[TopicPartition, int]] = []
        self.dropped: set[TopicPartition] = set()
        """What the client has taken from us, and not said yet."""
        self.cluster = "one"
        self.holdings = Holdings(
            Gate(Membership()),
            lambda partition: f"{self.cluster}/{partition.topic}/{partition.partition}",
            self._seek,
        )

    def _seek(self, partition: TopicPartition, offset: int) -> None:
        """As the client does it."""
        if partition in self.dropped:
            raise ValueError("Unassigned partition")
        self.sought.append((partition, offset))

    def begin(self, *partitions: TopicPartition, generation: int = 1) -> list[Tenure]:
        """Hold partitions, of which one record was taken and is not done, and the first look was had."""
        self.holdings.assigned(partitions, generation, all_at_once=True)
        self.holdings.placed.clear()
        for tenure in self.holdings.tenures():
            tenure.tracker.take(100 + tenure.partition.partition, 0.0)
        return [self.of(partition) for partition in partitions]

    def of(self, partition: TopicPartition) -> Tenure:
        """Return a partition's tenure."""
        tenure = self.holdings.of(partition)
        assert tenure is not None
        return tenure


@pytest.fixture
def bench() -> Bench:
    """Return a member that holds nothing."""
    return Bench()


def ended(bench: Bench, *tenures: Tenure) -> bool:
    """Say whether these tenures, and no others, have ended: nobody finds them, and their events are withdrawn."""
    gone = all(tenure.ended and bench.holdings.known(tenure.id) is None for tenure in tenures)
    return gone and bench.holdings.ended == {tenure.id for tenure in tenures}


def test_what_is_assigned_begins(bench: Bench) -> None:
    """Each partition has a tenure of its own, is found by it, and has to be looked at for where it begins."""
    bench.holdings.assigned([A, B], 1, all_at_once=True)
    a, b = bench.of(A), bench.of(B)
    assert (a.partition, a.domain, a.tracker.watermark, a.ended) == (A, "one/t/0", None, False)
    assert a.id != b.id
    assert (bench.holdings.known(a.id), bench.holdings.known("another"), bench.holdings.of(C)) == (a, None, None)
    assert bench.holdings.placed == {A, B}
    assert (len(bench.holdings), list(bench.holdings.tenures()), bench.sought) == (2, [a, b], [])


def test_what_comes_back_in_the_next_generation_goes_on(bench: Bench) -> None:
    """Eager: everything is taken, and what is given again at once was nobody else's: its records are still known."""
    a, b = bench.begin(A, B, generation=4)
    bench.holdings.revoked([A, B], 4, all_at_once=True)
    assert not a.ended
    bench.holdings.assigned([A, C], 5, all_at_once=True)
    assert bench.of(A) is a
    assert (a.ended, a.tracker.watermark, bench.holdings.known(a.id)) == (False, 100, a)
    assert ended(bench, b)
    assert bench.holdings.of(B) is None
    assert (bench.holdings.placed, bench.sought) == ({C}, [])


def test_after_a_generation_that_was_missed_all_begins_anew(bench: Bench) -> None:
    """In between anybody may have had it: another tenure, from the watermark; what had no record has no place to go."""
    a, b = bench.begin(A, B, generation=4)
    a.tracker.done(100)
    bench.holdings.assigned([A, B, C], 5, all_at_once=True)
    bench.holdings.placed.clear()
    c = bench.of(C)
    bench.holdings.revoked([A, B, C], 5, all_at_once=True)
    bench.holdings.assigned([A, B, C], 7, all_at_once=True)
    assert ended(bench, a, b, c)
    assert {bench.of(partition).id for partition in (A, B, C)}.isdisjoint({a.id, b.id, c.id})
    assert [bench.of(partition).tracker.watermark for partition in (A, B, C)] == [101, 101, None]
    assert bench.sought == [(A, 101), (B, 101)]
    assert bench.holdings.placed == set()


def test_what_was_not_looked_at_yet_still_is(bench: Bench) -> None:
    """Two rebalances in a row at the start: where a new partition begins is asked for all the same."""
    bench.holdings.assigned([A], 1, all_at_once=True)
    bench.holdings.revoked([A], 1, all_at_once=True)
    bench.holdings.assigned([A, B], 3, all_at_once=True)
    assert bench.holdings.placed == {A, B}
    bench.holdings.revoked([A, B], 3, all_at_once=True)
    bench.holdings.assigned([B], 4, all_at_once=True)
    assert bench.holdings.placed == {B}


@pytest.mark.parametrize("generation", [3, 5, 17])
def test_what_is_lost_is_gone_whatever_comes_next(bench: Bench, generation: int) -> None:
    """It was perhaps another member's for a while: what is given again begins from what the group has committed."""
    a, b = bench.begin(A, B, generation=4)
    bench.holdings.revoked([A, B], 4, all_at_once=True)
    bench.holdings.lost([A, B])
    assert ended(bench, a, b)
    bench.holdings.assigned([A], generation, all_at_once=True)
    assert bench.of(A).id != a.id
    assert (bench.of(A).tracker.watermark, bench.sought, bench.holdings.placed) == (None, [], {A})
    assert bench.holdings.ended == {a.id, b.id}


def test_being_thrown_out_between_is_a_generation_that_was_missed(bench: Bench) -> None:
    """The commit before the revocation is refused, since the group has forgotten us: we are in no generation (-1)."""
    [a] = bench.begin(A, generation=4)
    bench.holdings.revoked([A], -1, all_at_once=True)
    bench.holdings.assigned([A], 6, all_at_once=True)
    assert ended(bench, a)


def test_cooperative_partitions_go_one_by_one(bench: Bench) -> None:
    """What is not named goes on whatever the generation; what is revoked has ended at once."""
    bench.holdings.assigned([A, B], 4, all_at_once=False)
    a, b = bench.of(A), bench.of(B)
    bench.holdings.revoked([B], 4, all_at_once=False)
    assert ended(bench, b)
    bench.holdings.assigned([], 5, all_at_once=False)
    bench.holdings.assigned([C], 9, all_at_once=False)
    assert bench.of(A) is a
    assert not a.ended
    assert (len(bench.holdings), bench.sought, bench.holdings.placed) == (2, [], {A, C})
    bench.holdings.assigned([B], 10, all_at_once=False)
    assert bench.of(B).id != b.id


def test_a_partition_begins_again_from_its_watermark(bench: Bench) -> None:
    """Something in it was given back: all from there comes again, under a tenure of its own; the others go on."""
    a, b = bench.begin(A, B)
    a.tracker.take(105, 0.0)
    a.tracker.done(100)
    bench.holdings.again(A)
    assert ended(bench, a)
    assert bench.sought == [(A, 105)]
    assert (bench.of(A).tracker.next, bench.of(B)) == (105, b)


def test_offsets_that_fall_after_a_seek_of_ours_are_seen(bench: Bench) -> None:
    """What comes from before the watermark that was sought is not of our seek: it is another partition by its name."""
    bench.begin(A)
    bench.holdings.again(A)
    assert not bench.of(A).tracker.take(99, 0.0)
    assert bench.of(A).tracker.take(100, 0.0)


def test_what_the_client_has_dropped_is_not_read_again(bench: Bench) -> None:
    """Cooperative: it drops a partition first and says so then; there is no place to seek to, and that is no fault."""
    [a] = bench.begin(A)
    bench.dropped.add(A)
    bench.holdings.again(A)
    assert (bench.of(A), a.ended, a.tracker.watermark) == (a, False, 100)
    bench.holdings.revoked([A], 1, all_at_once=False)
    assert ended(bench, a)


def test_a_topic_that_is_another_one_begins_where_it_is(bench: Bench) -> None:
    """Made anew under its name: another domain, and no place to seek to."""
    [a] = bench.begin(A)
    bench.cluster = "two"
    anew = bench.holdings.anew(A)
    assert ended(bench, a)
    assert (bench.of(A), anew.domain, bench.sought) == (anew, "two/t/0", [])


def test_everything_can_be_given_up(bench: Bench) -> None:
    """At the end, or when the consumer is replaced: all tenures end, and none is found."""
    tenures = bench.begin(A, B)
    bench.holdings.end_all()
    assert ended(bench, *tenures)
    assert (len(bench.holdings), bench.holdings.placed, bench.sought) == (0, set(), [])


def test_what_is_not_held_can_be_revoked(bench: Bench) -> None:
    """A partition that never came, or went already, changes nothing."""
    [a] = bench.begin(A)
    bench.holdings.revoked([B], 1, all_at_once=False)
    bench.holdings.lost([C])
    assert (len(bench.holdings), a.ended, bench.holdings.ended) == (1, False, set())
