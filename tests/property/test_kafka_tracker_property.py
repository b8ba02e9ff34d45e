"""A partition's watermark passes exactly what is done, whatever comes in whatever order: beside a naive model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingestd.sources._kafka.tracker import Tracker


class Partition(RuleBasedStateMachine):
    """A tracker, beside a plain table of all records that ever came."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = Tracker()
        self.next: int | None = None
        self.now = 0.0
        self.taken: dict[int, float] = {}
        """When each record came."""
        self.ended: set[int] = set()
        self.parked: set[int] = set()

    @rule(gap=st.sampled_from([0, 0, 0, 1, 5, 1000]), first=st.integers(0, 2**62), passed=st.floats(0, 9))
    def take(self, gap: int, first: int, passed: float) -> None:
        """A record comes, the next one or one after a gap (compaction, transaction markers)."""
        offset = first if self.next is None else self.next + gap
        self.now += passed
        assert self.tracker.take(offset, self.now)
        self.taken[offset], self.next = self.now, offset + 1

    @rule(data=st.data(), gap=st.integers(-3, 50))
    def passed(self, data: st.DataObject, gap: int) -> None:
        """The client waits at a place, before or after what came: offsets that never came are done."""
        at = data.draw(st.integers(0, 2**62)) if self.next is None else max(0, self.next + gap)
        self.tracker.passed(at)
        self.next = at if self.next is None else max(self.next, at)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def take_again(self, data: st.DataObject) -> None:
        """A record comes from before the next one: it is refused, and changes nothing."""
        assert self.next is not None
        offset = data.draw(st.integers(max(0, self.next - 2000), self.next - 1) | st.sampled_from(sorted(self.taken)))
        assert not self.tracker.take(offset, self.now + 1)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        """A record waits for its next try; one that ended does not."""
        offset = data.draw(st.sampled_from(sorted(self.taken)))
        self.tracker.park(offset)
        if offset not in self.ended:
            self.parked.add(offset)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        """A record ends, parked or not; it may be told twice."""
        offset = data.draw(st.sampled_from(sorted(self.taken)))
        self.tracker.done(offset)
        self.ended.add(offset)
        self.parked.discard(offset)

    @precondition(lambda self: len(self.ended) < len(self.taken))
    @rule()
    def done_from_the_last(self) -> None:
        """The last record that is open ends first."""
        offset = max(self.taken.keys() - self.ended)
        self.tracker.done(offset)
        self.ended.add(offset)
        self.parked.discard(offset)

    @rule(offset=st.integers(0, 2**63))
    def done_of_another(self, offset: int) -> None:
        """Somebody tells of a record that never came, or that is not ours: nothing changes."""
        if offset not in self.taken:
            self.tracker.done(offset)
            self.tracker.park(offset)

    @invariant()
    def passes_what_is_done_alone(self) -> None:
        """All below the watermark is done, what is at it is not, and nothing that is done is held back."""
        open_ = sorted(self.taken.keys() - self.ended)
        expected = open_[0] if open_ else self.next
        assert self.tracker.watermark == expected
        if expected is not None:
            assert all(offset in self.ended for offset in self.taken if offset < expected)
            assert self.next is not None
            assert expected <= self.next

    @invariant()
    def says_how_far_it_is(self) -> None:
        """Lag, number, the oldest and the parked are the model's; what ended is not kept."""
        open_ = sorted(self.taken.keys() - self.ended)
        assert self.tracker.next == self.next
        assert self.tracker.open == len(open_)
        assert self.tracker.oldest == ((open_[0], self.taken[open_[0]]) if open_ else None)
        assert self.tracker.lag == (0 if self.next is None or not open_ else self.next - open_[0])
        for most, age in ((0, -1.0), (0, 5.0), (3, 1e9), (1000, 5.0), (2**63, 1e9)):
            first, since = (self.next or 0) - most, self.now - age
            late = sorted(offset for offset in self.parked if offset < first or self.taken[offset] < since)
            assert self.tracker.overdue(most, since) == late
        assert (len(self.tracker._open), len(self.tracker._parked)) == (len(open_), len(self.parked))


TestPartition = Partition.TestCase
TestPartition.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
