"""The right to write: it holds while the group knows of us, and calls and rebalances wait for one another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from kafka.structs import TopicPartition

from ingestd.sources._kafka.tenure import FRESH, Borrowed, Gate, Loan, Tenure, boot_time
from ingestd.sources._kafka.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.model import Lease

DEADLINE = 20.0
SESSION = 10.0


class Membership:
    """A place in a group that the test decides about (``tenure.Membership``)."""

    session_seconds = SESSION

    def __init__(self) -> None:
        self.age: float | None = 0.0
        self.deciding = False

    def rebalancing(self) -> bool:
        """Return what the test says."""
        return self.deciding

    def heartbeat_age(self) -> float | None:
        """Return what the test says."""
        return self.age


class Bench:
    """A gate, and tenures behind it."""

    def __init__(self) -> None:
        self.membership = Membership()
        self.now = 0.0
        self.looks = threading.Semaphore(0)
        """Released for each look at the clock, which whoever waits takes again and again."""
        self.gate = Gate(self.membership, self._clock)

    def _clock(self) -> float:
        self.looks.release()
        return self.now

    def tenure(self, partition: int = 0) -> Tenure:
        """Return a tenure of a partition."""
        return Tenure(TopicPartition("t", partition), f"t/{partition}", Tracker(), self.gate)


@pytest.fixture
def bench() -> Bench:
    """Return a gate that is open, in a group that knows of us."""
    return Bench()


def waits(bench: Bench, lease: Lease, then: Callable[[], None]) -> bool:
    """Return what entering says, which waits until the test has done something about it."""
    with ThreadPoolExecutor(1) as pool:
        entering = pool.submit(lease.enter)
        try:
            assert all(bench.looks.acquire(timeout=DEADLINE) for _ in range(4)), "it looks again and again"
            assert not entering.done()
            then()
            return entering.result(DEADLINE)
        finally:
            bench.now += 2 * SESSION  # whatever is wrong, the thread ends


def test_a_call_is_counted_from_enter_to_leave(bench: Bench) -> None:
    """Several at a time, of one tenure or many."""
    one, two = bench.tenure(0), bench.tenure(1)
    assert [one.enter(), one.enter(), two.enter()] == [True] * 3
    assert bench.gate.calls == 3
    for lease in (one, two, one):
        lease.leave()
    assert bench.gate.calls == 0


def test_no_call_begins_under_a_tenure_that_has_ended(bench: Bench) -> None:
    """Others go on; what had begun may end."""
    lost, kept = bench.tenure(0), bench.tenure(1)
    assert lost.enter()
    lost.end()
    assert (lost.ended, lost.enter(), kept.enter()) == (True, False, True)
    lost.leave()
    assert bench.gate.calls == 1


@pytest.mark.parametrize(
    ("age", "allowed"),
    [(0.0, True), (FRESH * SESSION - 0.01, True), (FRESH * SESSION, False), (1e6, False), (None, False)],
)
def test_no_call_begins_on_a_stale_heartbeat(bench: Bench, age: float | None, *, allowed: bool) -> None:
    """The group may have given up on us, or we are not in it: no call, without waiting, and the gate does not hold."""
    bench.membership.age = age
    assert bench.tenure().enter() is allowed
    assert bench.gate.holds() is allowed
    assert bench.gate.calls == int(allowed)


def test_a_call_waits_for_a_rebalance_that_the_listener_tells_of(bench: Bench) -> None:
    """It begins when the gate opens again, under a tenure that goes on."""
    bench.gate.close()
    assert not bench.gate.holds()
    assert waits(bench, bench.tenure(), bench.gate.open)
    assert (bench.gate.calls, bench.gate.holds()) == (1, True)


def test_a_call_waits_for_a_rebalance_that_the_group_tells_of(bench: Bench) -> None:
    """Before the listener is called the client knows already; nobody says when that ends, so it is looked at."""
    bench.membership.deciding = True
    assert not bench.gate.holds()
    assert waits(bench, bench.tenure(), lambda: setattr(bench.membership, "deciding", False))


def test_a_call_that_waited_finds_its_tenure_gone(bench: Bench) -> None:
    """The rebalance took the partition away: the call that waited for its end is not made."""
    lease = bench.tenure()
    bench.gate.close()

    def decide() -> None:
        lease.end()
        bench.gate.open()

    assert not waits(bench, lease, decide)
    assert bench.gate.calls == 0


def test_a_call_that_waited_finds_its_heartbeat_stale(bench: Bench) -> None:
    """The process slept in the middle of a rebalance: the group has forgotten us."""
    bench.gate.close()

    def wake() -> None:
        bench.membership.age = SESSION
        bench.gate.open()

    assert not waits(bench, bench.tenure(), wake)


def test_a_tenure_that_ends_in_a_rebalance_waits_no_longer(bench: Bench) -> None:
    """It need not wait for the rebalance's end to know."""
    lease = bench.tenure()
    bench.gate.close()
    assert not waits(bench, lease, lease.end)


def test_a_rebalance_without_end_is_not_waited_for(bench: Bench) -> None:
    """Beyond a session the call is refused: whatever comes of it, the group counts us out by then."""
    bench.gate.close()
    assert not waits(bench, bench.tenure(), lambda: setattr(bench, "now", SESSION))
    assert bench.gate.calls == 0


def test_calls_and_rebalances_exclude_one_another(bench: Bench) -> None:
    """Threads enter and leave while the gate closes and opens: no call is on its way once a rebalance found none."""
    tenures = [bench.tenure(partition) for partition in range(4)]
    stop, inside, faults = threading.Event(), [0] * len(tenures), list[str]()
    made = [0] * len(tenures)

    def call(number: int) -> None:
        while not stop.is_set():
            if tenures[number].enter():
                inside[number] = 1
                made[number] += 1
                inside[number] = 0
                tenures[number].leave()

    with ThreadPoolExecutor(len(tenures)) as pool:
        calling = [pool.submit(call, number) for number in range(len(tenures))]
        for _ in range(200):
            bench.gate.close()
            while bench.gate.calls:
                pass
            before = list(made)
            if sum(inside) or before != made:
                faults.append("a call is made while it is being decided who owns what")
            bench.gate.open()
        stop.set()
        for future in calling:
            future.result(DEADLINE)
    assert faults == []
    assert min(made) > 0
    assert bench.gate.calls == 0


def test_tenures_are_told_apart(bench: Bench) -> None:
    """The same partition twice is two tenures: what was written under the first is not relied on under the second."""
    assert bench.tenure().id != bench.tenure().id
    assert not bench.tenure().lent


def test_a_loan_always_holds() -> None:
    """Of an event that an operator tries again: nothing would bring it again, so nothing takes it away."""
    loan = Loan()
    assert (loan.lent, loan.ended, loan.enter()) == (True, False, True)
    loan.leave()
    assert loan.id != Loan().id


def test_a_tenure_that_is_borrowed_is_that_tenure(bench: Bench) -> None:
    """A letter that is tried again while its partition is held: counted as a call of it, and over when it is."""
    tenure = bench.tenure()
    borrowed = Borrowed(tenure)
    assert (borrowed.id, borrowed.lent, borrowed.ended) == (tenure.id, True, False)
    assert borrowed.enter()
    assert bench.gate.calls == 1
    borrowed.leave()
    bench.membership.age = None
    assert not borrowed.enter()
    tenure.end()
    assert (borrowed.ended, borrowed.enter(), bench.gate.calls) == (True, False, 0)


def test_the_clock_counts_what_the_machine_sleeps() -> None:
    """It only runs forward, and is no less than the one that stands still meanwhile."""
    first = boot_time()
    assert boot_time() >= first > 0
