"""Settle: durable first, then known; what is to be tried again is parked, and nothing is ever dropped."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, FINGERPRINT, QUICK, ListSource, ManualClock, ManualLease, open_store, upsert

from ingestd.engine.breaker import Breakers
from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.engine.pulse import Pulse
from ingestd.engine.retry import RetryPolicy
from ingestd.engine.settle import Settle
from ingestd.engine.tally import Tally
from ingestd.errors import UnavailableError
from ingestd.metrics import Metrics
from ingestd.model import Failure, Fingerprints, Outcome, Stage, Totals, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ingestd.model import Event
    from ingestd.store.sqlite import SqliteStore

DEADLINE = 20.0
FAILURE = Failure(Stage.EMBED, "TransientError", "busy")


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.005)


class Bench:
    """A settle thread over the real state, with lanes and a source around it."""

    def __init__(self, store: SqliteStore, attempts: int = 3) -> None:
        self.store = store
        self.breakers = Breakers(backoff=QUICK)
        self.tally = Tally(Metrics("0"), parked=0)
        self.pulse = Pulse(ManualClock())
        self.source, self.other = ListSource([]), ListSource([], "inbox")
        self.out: Channel[Event] = Channel("recall", None)
        self.lanes = Lanes(self.out, max_events=100, max_bytes=10_000)
        self.faults: list[tuple[str, BaseException]] = []
        self.batches: list[Sequence[Outcome]] = []
        self.settle = Settle(
            store,
            breakers=self.breakers,
            policy=RetryPolicy(attempts, 10.0, 100.0),
            tally=self.tally,
            fingerprints={COLLECTION: Fingerprints(FINGERPRINT, "configuration")},
            lanes={COLLECTION: self.lanes},
            sources={"cms": self.source, "inbox": self.other},
            pulse=self.pulse,
            fail=lambda name, error: self.faults.append((name, error)),
            on_settled=self.batches.append,
        )
        self.settle.start()

    def submit(self, *events: Event) -> None:
        """Have events be active, or wait."""
        for event in events:
            self.lanes.submit(event, on_accept=lambda: self.tally.accept("cms"), beat=lambda: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    opened = open_store(tmp_path / "state")
    yield opened
    opened.close(clean=True)


@pytest.fixture
def bench(store: SqliteStore) -> Iterator[Bench]:
    """Return a settle thread."""
    made = Bench(store)
    yield made
    made.breakers.stop()
    made.settle.close(DEADLINE)


def retrying(event: Event, wait: float | None = None) -> Outcome:
    """Return the outcome of an event that is worth another try."""
    return Outcome(event, Verdict.RETRYING, failure=FAILURE, wait=wait)


def test_an_outcome_is_durable_before_anybody_hears_of_it(bench: Bench, store: SqliteStore) -> None:
    """When the source is told, the dead letter is on disk, it is counted, and the lane is not yet free."""
    seen: list[tuple[int, int, int]] = []
    remember = bench.source.settled

    def settled(outcomes: Sequence[Outcome]) -> None:
        letters = len(list(store.dead_letters()))
        seen.append((letters, bench.tally.totals().dead_lettered, bench.lanes.events))
        remember(outcomes)

    bench.source.settled = settled  # type: ignore[method-assign]
    event = upsert("a", "x", 1)
    bench.submit(event)
    bench.settle.put(Outcome(event, Verdict.DEAD_LETTERED, failure=FAILURE))
    assert bench.lanes.wait_idle(DEADLINE)
    assert seen == [(1, 1, 1)]
    assert bench.other.outcomes == []
    assert [len(batch) for batch in bench.batches] == [1]


def test_the_next_event_of_the_document_begins_when_the_last_is_settled(bench: Bench) -> None:
    """Releasing the lane is the last thing."""
    first, second = upsert("a", "x", 1), upsert("a", "y", 2)
    bench.submit(first, second)
    assert bench.out.take(9, 0.0, 0.0) == [first]
    bench.settle.put(Outcome(first, Verdict.SUPERSEDED))
    assert bench.out.take(9, 0.0, DEADLINE) == [second]


def test_an_event_is_parked_until_the_policy_says(bench: Bench, store: SqliteStore) -> None:
    """Its lane is free, it is counted as retrying, and it is due after the wait that was asked for."""
    event = upsert("a", "x", 1)
    bench.submit(event)
    bench.settle.put(retrying(event, wait=7.0))
    assert bench.lanes.wait_idle(DEADLINE)
    [parked] = store.parked()
    assert (parked.position, parked.attempt, parked.failure) == (event.position, 2, FAILURE)
    assert parked.due_at == ManualClock().now + 7.0
    assert bench.tally.totals() == Totals(accepted=1, retrying=1)


def test_the_last_attempt_ends_as_a_dead_letter(bench: Bench, store: SqliteStore) -> None:
    """An event is tried as often as configured and not once more; the letter says why, and after how many tries."""
    event = upsert("a", "x", 1)
    for attempt in (1, 2, 3):
        tried = replace(event, attempt=attempt)
        bench.submit(tried)
        bench.settle.put(retrying(tried, wait=0.0))
        assert bench.lanes.wait_idle(DEADLINE)
    [letter] = store.dead_letters()
    assert (letter.attempts, letter.failure, list(store.parked())) == (3, FAILURE, [])


def test_a_state_that_cannot_be_written_holds_everything(bench: Bench, store: SqliteStore) -> None:
    """While the disk is full no lane is released, no source is told and nothing is counted; then all is."""
    real, full = store.settle, threading.Event()
    tried = threading.Semaphore(0)

    def settle(outcomes: Sequence[Outcome], fingerprints: dict[str, Fingerprints]) -> object:
        tried.release()
        if not full.is_set():
            raise UnavailableError("state", "the disk is full")
        return real(outcomes, fingerprints)

    store.settle = settle  # type: ignore[assignment, method-assign]
    event = upsert("a", "x", 1)
    bench.submit(event)
    bench.settle.put(Outcome(event, Verdict.DEAD_LETTERED, failure=FAILURE))
    for _ in range(5):
        assert tried.acquire(timeout=DEADLINE)
    assert not bench.breakers.passes(COLLECTION)
    assert (bench.lanes.events, bench.source.outcomes, bench.tally.totals().in_flight) == (1, [], 1)
    full.set()
    assert bench.lanes.wait_idle(DEADLINE)
    assert bench.breakers.passes(COLLECTION)
    assert [outcome.verdict for outcome in bench.source.outcomes] == [Verdict.DEAD_LETTERED]


def test_a_newer_event_supersedes_a_parked_one(bench: Bench, store: SqliteStore) -> None:
    """What was written takes the place of what waited; each of the two is counted once."""
    first, second = upsert("a", "x", 1), upsert("a", "y", 2)
    bench.submit(first)
    bench.settle.put(retrying(first, wait=1000.0))
    assert bench.lanes.wait_idle(DEADLINE)
    bench.submit(second)
    bench.settle.put(Outcome(second, Verdict.WRITTEN))
    assert bench.lanes.wait_idle(DEADLINE)
    assert list(store.parked()) == []
    assert bench.tally.totals() == Totals(accepted=2, written=1, superseded=1)


def test_sources_hear_of_the_parked_events_that_were_superseded(bench: Bench) -> None:
    """Each by its position, after the outcome that took its place: a topic's watermark moves past both."""
    first, other, second = upsert("a", "x", 1), upsert("a", "x", source="inbox"), upsert("a", "y", 2)
    for event in (first, other):
        bench.submit(event)
        bench.settle.put(retrying(event, wait=1000.0))
        assert bench.lanes.wait_idle(DEADLINE)
    bench.submit(second)
    bench.settle.put(Outcome(second, Verdict.WRITTEN))
    assert bench.lanes.wait_idle(DEADLINE)
    assert [(outcome.event.position, outcome.verdict) for outcome in bench.source.outcomes[1:]] == [
        ("topic/0@2", Verdict.WRITTEN),
        ("topic/0@1", Verdict.SUPERSEDED),
    ]
    assert [(outcome.event.position, outcome.verdict) for outcome in bench.other.outcomes[1:]] == [
        ("/a", Verdict.SUPERSEDED)
    ]
    assert [len(batch) for batch in bench.batches] == [1, 1, 1], "the retry queue hears of what held a lane"
    assert bench.tally.totals() == Totals(accepted=3, written=1, superseded=2)


@pytest.mark.parametrize("verdict", [Verdict.RETRYING, Verdict.DEAD_LETTERED])
@pytest.mark.parametrize("attempt", [1, 3])
def test_what_failed_under_a_lease_that_ended_is_returned(
    bench: Bench, store: SqliteStore, verdict: Verdict, attempt: int
) -> None:
    """The next owner tries it again, and judges: it is neither parked nor dead-lettered, nor ever accepted."""
    lease = ManualLease()
    event = replace(upsert("a", "x", 1), lease=lease, attempt=attempt)
    bench.submit(event)
    lease.ended = True
    bench.settle.put(Outcome(event, verdict, failure=FAILURE))
    assert bench.lanes.wait_idle(DEADLINE)
    assert (list(store.parked()), list(store.dead_letters())) == ([], [])
    assert [outcome.verdict for outcome in bench.source.outcomes] == [Verdict.RETURNED]
    assert bench.tally.totals() == Totals()


def test_what_ended_well_under_a_lease_that_ended_has_ended(bench: Bench) -> None:
    """Milvus has acknowledged it: it is written, whoever commits its record."""
    lease = ManualLease()
    event = replace(upsert("a", "x", 1), lease=lease)
    bench.submit(event)
    lease.ended = True
    bench.settle.put(Outcome(event, Verdict.WRITTEN))
    assert bench.lanes.wait_idle(DEADLINE)
    assert bench.tally.totals() == Totals(accepted=1, written=1)


def test_what_is_given_back_and_was_lent_spends_no_try(bench: Bench, store: SqliteStore) -> None:
    """A letter that is replayed while the brokers are away waits for them, for however long that is."""
    event = upsert("a", "x", 1)
    for _ in range(10):
        again = replace(event, lease=ManualLease(lent=True), attempt=2, first_failed_at=5.0)
        bench.submit(again)
        bench.settle.put(Outcome(again, Verdict.RETURNED))
        assert bench.lanes.wait_idle(DEADLINE)
        [parked] = store.parked()
        assert (parked.attempt, parked.first_failed_at) == (2, 5.0)
        assert parked.due_at > ManualClock().now
    assert list(store.dead_letters()) == []


def test_an_error_that_nobody_foresaw_ends_the_process(bench: Bench) -> None:
    """An outcome for an event that holds no lane: something is wrong with us, and it is told."""
    bench.settle.put(Outcome(upsert("a", "x", 1), Verdict.SUPERSEDED))
    until(lambda: bool(bench.faults))
    [(name, error)] = bench.faults
    assert (name, type(error)) == ("settle", KeyError)


def test_closing_settles_what_was_put(bench: Bench) -> None:
    """The thread ends when all is durable, and its heartbeat with it."""
    events = [upsert(f"d{n}", "x", n) for n in range(600)]
    bench.lanes._max_events = 1000
    bench.submit(*events)
    for event in events:
        bench.settle.put(Outcome(event, Verdict.UNCHANGED))
    bench.settle.close(DEADLINE)
    assert (len(bench.settle), bench.lanes.events, bench.tally.totals().unchanged) == (0, 0, 600)
    assert (bench.pulse.ages(), bench.faults) == ({}, [])
