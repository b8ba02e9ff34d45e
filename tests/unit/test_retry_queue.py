"""Parked events come back when they are due, each once, and none keeps back those of another pipeline."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, FINGERPRINT, NOW, ListSource, ManualClock, ManualLease, delete, open_store, upsert

from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.engine.pulse import Pulse
from ingestd.engine.sources import REVIVE, STUCK, RetryQueue
from ingestd.engine.tally import Tally
from ingestd.errors import Superseded, UnavailableError
from ingestd.metrics import Metrics
from ingestd.model import DocumentKey, Failure, Fingerprints, Op, Outcome, Stage, Totals, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ingestd.model import DeadLetter, Event, Parked
    from ingestd.store.sqlite import SqliteStore

DEADLINE = 20.0
FAILURE = Failure(Stage.EMBED, "TransientError", "busy")
PRINTS = Fingerprints(FINGERPRINT, "configuration")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    opened = open_store(tmp_path / "state")
    yield opened
    opened.close(clean=True)


class Bench:
    """A retry queue over the real state, with the lanes of two collections and one source."""

    def __init__(self, store: SqliteStore, *, most: int = 1000) -> None:
        self.store = store
        self.clock = ManualClock()
        self.stop = threading.Event()
        self.out: dict[str, Channel[Event]] = {name: Channel("recall", None) for name in (COLLECTION, "notes")}
        self.open = dict.fromkeys(self.out, True)
        self.lanes = {name: self._lanes(name, most) for name in self.out}
        self.source = ListSource([])
        self.tally = Tally(Metrics("0"), parked=0)
        self.faults: list[str] = []
        self.queue = RetryQueue(
            store,
            sources={"cms": self.source, "wiki": ListSource([], name="wiki", collection="notes")},
            lanes=self.lanes,
            tally=self.tally,
            pulse=Pulse(self.clock),
            clock=self.clock,
            stop=self.stop,
            fail=lambda name, error: self.faults.append(f"{name}: {error!r}"),
        )

    def _lanes(self, name: str, most: int) -> Lanes:
        return Lanes(self.out[name], max_events=most, max_bytes=1 << 20, is_open=lambda: self.open[name])

    def submit(self, event: Event) -> None:
        """Have a source hand an event in."""
        self.lanes[event.key.collection].submit(
            event, on_accept=lambda: self.tally.accept(event.source), beat=lambda: None
        )

    def park(self, *events: Event, wait: float = 0.0) -> None:
        """Have events fail in a way that is worth another try."""
        self.source.events.extend(events)
        outcomes = [Outcome(event, Verdict.RETRYING, failure=FAILURE, wait=wait) for event in events]
        self.store.settle(outcomes, {COLLECTION: PRINTS, "notes": PRINTS})
        ours = sum(event.source == "cms" for event in events)
        self.tally.requeue("cms", ours)

    def settle(self, *outcomes: Outcome) -> None:
        """Do what the settle thread does."""
        settled = self.store.settle(outcomes, {COLLECTION: PRINTS, "notes": PRINTS})
        self.tally.settle(outcomes, superseded=settled.superseded)
        self.queue.settled(outcomes)
        for outcome in outcomes:
            self.lanes[outcome.event.key.collection].release([outcome.event])

    def taken(self, collection: str = COLLECTION) -> list[Event]:
        """Take what is active and no stage has yet."""
        return self.out[collection].take(10_000, 0.0, 0.0) or []


@pytest.fixture
def bench(store: SqliteStore) -> Bench:
    """Return a retry queue that the test turns by hand."""
    return Bench(store)


def test_an_event_comes_back_when_it_is_due(bench: Bench) -> None:
    """Not before, with the number of its next attempt, and once while it is under way."""
    bench.park(upsert("a", "x", 1), wait=30.0)
    bench.queue._revive()
    assert bench.taken() == []
    bench.clock.advance(30.0)
    bench.queue._revive()
    bench.queue._revive()
    [event] = bench.taken()
    assert (event.position, event.attempt, event.first_failed_at) == ("topic/0@1", 2, NOW)
    assert bench.tally.totals() == Totals(accepted=1, in_flight=1)
    bench.settle(Outcome(event, Verdict.WRITTEN))
    bench.queue._revive()
    assert (bench.taken(), bench.queue.waiting()) == ([], 0)
    assert bench.tally.totals() == Totals(accepted=1, written=1)


def test_a_parked_event_that_a_live_one_overtakes_is_counted_once(bench: Bench) -> None:
    """The live event is under way when the parked one is due: it stays parked, and is superseded there."""
    bench.park(upsert("a", "x", 1))
    live = upsert("a", "y", 2)
    bench.submit(live)
    bench.queue._revive()
    assert bench.taken() == [live]
    bench.settle(Outcome(live, Verdict.WRITTEN))
    bench.queue._revive()
    assert bench.taken() == []
    assert bench.tally.totals() == Totals(accepted=2, written=1, superseded=1)


def test_what_was_settled_since_it_was_read_does_not_come_back(bench: Bench) -> None:
    """The queue is read, the event's document is settled by another, and only then is it the event's turn."""
    bench.park(upsert("a", "x", 1), upsert("b", "x", 2))
    live = upsert("b", "y", 3)
    bench.submit(live)
    assert bench.taken() == [live]
    revive = bench.source.revive

    def meanwhile(parked: object) -> Event | None:
        if not bench.tally.totals().written:
            bench.settle(Outcome(live, Verdict.WRITTEN))
        return revive(parked)  # type: ignore[arg-type]  # as it came

    bench.source.revive = meanwhile  # type: ignore[method-assign]
    bench.queue._revive()
    assert [event.key.document_id for event in bench.taken()] == ["a"]
    assert bench.tally.totals() == Totals(accepted=3, in_flight=1, written=1, superseded=1)


def test_a_pipeline_that_is_paused_does_not_hold_up_another(bench: Bench) -> None:
    """More parked events than are read at a time wait behind an open breaker: those of the other pipeline come back."""
    key = DocumentKey("notes", "n")
    note = replace(upsert("n", "x", source="wiki"), key=key)
    bench.park(*(upsert(f"d{n}", "x", n) for n in range(REVIVE - 1)), note)
    bench.open[COLLECTION] = False
    began = time.monotonic()
    bench.queue._revive()
    assert [event.key for event in bench.taken("notes")] == [key]
    assert bench.taken() == []
    assert time.monotonic() - began < DEADLINE
    bench.open[COLLECTION] = True
    bench.queue._revive()
    assert len(bench.taken()) == REVIVE - 1


def test_a_source_that_feeds_another_collection_now_leaves_its_old_events_parked(bench: Bench) -> None:
    """An event of the collection that it fed before has no pipeline to go to: it waits, and is not counted as work."""
    moved = replace(upsert("n", "x", source="cms"), key=DocumentKey("notes", "n"))
    bench.park(moved)
    bench.queue._revive()
    assert bench.taken("notes") == []
    assert bench.queue.waiting() == 0
    assert [parked.key.collection for parked in bench.store.parked()] == ["notes"]


def test_a_full_pipeline_costs_one_look_its_patience_once(store: SqliteStore) -> None:
    """A hundred events that find no room do not wait one after the other."""
    bench = Bench(store, most=1)
    bench.submit(upsert("busy", "x", 0))
    bench.park(*(upsert(f"d{n}", "x", n) for n in range(50)))
    began = time.monotonic()
    bench.queue._revive()
    assert time.monotonic() - began < 5.0
    assert len(bench.taken()) == 2  # the busy one, and the one that there is always room for


def test_a_backlog_does_not_keep_due_events_away(store: SqliteStore) -> None:
    """The pipeline is full whenever the queue looks, and has been for as long as the source has more."""
    bench = Bench(store, most=16)
    for number in range(16):
        bench.submit(upsert(f"live{number}", "x", number))
    bench.park(upsert("parked", "x", 1))
    assert len(bench.taken()) == 16
    bench.queue._revive()
    assert [event.key.document_id for event in bench.taken()] == ["parked"]


def test_events_of_sources_that_are_gone_stand_in_nobodys_way(bench: Bench) -> None:
    """A source was taken out of the configuration with many events parked: the others' come back."""
    gone = [upsert(f"g{n}", "x", n, source="gone") for n in range(3 * REVIVE)]
    bench.park(*gone, upsert("a", "x", 1000))
    bench.queue._revive()
    assert [event.key.document_id for event in bench.taken()] == ["a"]
    assert bench.queue.waiting() == 1


@pytest.mark.parametrize("event", [upsert("a", "x"), delete("a")])
def test_an_event_with_nothing_left_to_try_is_superseded(bench: Bench, event: Event) -> None:
    """The source says that the document is not what it was: nothing is deleted for it, whatever the event was."""
    bench.park(event)
    bench.source.events.clear()
    bench.queue._revive()
    [back] = bench.taken()
    assert back.op is Op.UPSERT
    assert back.payload is not None
    with pytest.raises(Superseded):
        back.payload.read()
    bench.settle(Outcome(back, Verdict.SUPERSEDED))
    assert list(bench.store.parked()) == []
    assert bench.tally.totals() == Totals(accepted=1, superseded=1)


def test_the_thread_goes_on_until_it_is_stopped(bench: Bench) -> None:
    """It brings back by itself what is due, and ends when asked."""
    bench.park(upsert("a", "x", 1))
    bench.queue.start()
    assert bench.out[COLLECTION].take(1, 0.0, DEADLINE)
    bench.stop.set()
    bench.queue.join(DEADLINE)
    assert (bench.queue._thread.is_alive(), bench.faults) == (False, [])


def test_an_error_in_the_queue_ends_the_process(bench: Bench) -> None:
    """It does not fall silent."""
    told = threading.Event()
    bench.queue._fail = lambda _name, _error: told.set()

    def broken(_now: float, _limit: int) -> Sequence[object]:
        raise OSError("the disk is gone")

    bench.store.due = broken  # type: ignore[assignment, method-assign]
    bench.queue.start()
    assert told.wait(DEADLINE)


# Leases that end


def leased(event: Event, lease: ManualLease) -> Event:
    """Return the event as it comes under a lease."""
    return replace(event, lease=lease)


def waiting(bench: Bench) -> set[str]:
    """Return the positions of what is parked."""
    return {parked.position for parked in bench.store.parked()}


def test_what_was_parked_under_a_lease_that_ended_is_withdrawn(bench: Bench) -> None:
    """It comes from the topic again, elsewhere: it does not come back here, and counts as never accepted."""
    lost, kept = ManualLease("lost"), ManualLease("kept")
    bench.park(
        leased(upsert("a", "x", 1), lost),
        leased(upsert("b", "x", 2), kept),
        leased(upsert("c", "x", 3), lost),
        upsert("file", "x"),
    )
    bench.queue.withdraw("cms", {"lost", "another"})
    assert waiting(bench) == {"topic/0@2", "/file"}
    assert bench.tally.totals() == Totals(accepted=2, retrying=2)
    bench.queue._revive()
    assert {event.position for event in bench.taken()} == {"topic/0@2", "/file"}
    assert bench.tally.totals() == Totals(accepted=2, in_flight=2)


def test_all_that_was_parked_under_any_lease_is_withdrawn(bench: Bench) -> None:
    """An earlier run's leases are gone, whatever they were; files and other sources' events wait on."""
    bench.park(leased(upsert("a", "x", 1), ManualLease("one")), leased(upsert("b", "x", 2), ManualLease("two")))
    bench.park(upsert("file", "x"), leased(upsert("n", "x", 3, source="wiki"), ManualLease("three")))
    bench.queue.withdraw("cms", None)
    assert waiting(bench) == {"/file", "topic/0@3"}
    assert bench.tally.totals() == Totals(accepted=1, retrying=1)


def test_an_event_that_was_brought_back_is_withdrawn_by_its_outcome(bench: Bench) -> None:
    """It is in flight when its lease ends, and is counted once: by the outcome that says that it was returned."""
    lease = ManualLease("lost")
    bench.park(leased(upsert("a", "x", 1), lease))
    bench.queue._revive()
    [event] = bench.taken()
    bench.queue.withdraw("cms", {"lost"})
    assert bench.tally.totals() == Totals(accepted=1, in_flight=1)
    bench.settle(Outcome(event, Verdict.RETURNED))
    assert (bench.tally.totals(), waiting(bench)) == (Totals(), set())


def test_a_documents_other_event_is_counted_by_itself(bench: Bench) -> None:
    """Of two records of a document one is in flight and one waits: the lease's end takes one from each column."""
    lease = ManualLease("lost")
    bench.park(leased(upsert("a", "x", 1), lease))
    bench.queue._revive()
    [event] = bench.taken()
    bench.park(leased(upsert("a", "y", 2), lease))
    bench.queue.withdraw("cms", {"lost"})
    assert bench.tally.totals() == Totals(accepted=1, in_flight=1)
    bench.settle(Outcome(event, Verdict.RETURNED))
    assert (bench.tally.totals(), waiting(bench)) == (Totals(), set())


def test_an_event_that_failed_again_is_not_the_one_that_was_brought_back(bench: Bench) -> None:
    """Its next try is parked, and withdrawn before the retry queue hears of it: the accounts add up in the end."""
    lease = ManualLease("lost")
    bench.park(leased(upsert("a", "x", 1), lease))
    bench.queue._revive()
    [event] = bench.taken()
    again = Outcome(event, Verdict.RETRYING, failure=FAILURE, wait=0.0)
    settled = bench.store.settle([again], {COLLECTION: PRINTS})
    bench.tally.settle([again], superseded=settled.superseded)
    bench.queue.withdraw("cms", {"lost"})
    bench.queue.settled([again])
    bench.lanes[COLLECTION].release([event])
    assert (bench.tally.totals(), waiting(bench)) == (Totals(), set())
    bench.queue._revive()
    assert bench.taken() == []


@pytest.mark.parametrize("moment", ["revived", "claimed"])
def test_a_lease_that_ends_while_its_event_is_brought_back(bench: Bench, moment: str) -> None:
    """Just after the event was read from the queue it does not come back; once it has its lane, it is in flight."""
    bench.park(leased(upsert("a", "x", 1), ManualLease("lost")))

    def end(real: Callable[..., object]) -> Callable[..., object]:
        def ending(*args: object) -> object:
            bench.queue.withdraw("cms", {"lost"})
            return real(*args)

        return ending

    if moment == "revived":
        bench.source.revive = end(bench.source.revive)  # type: ignore[method-assign, assignment]
    else:
        bench.tally.revive = end(bench.tally.revive)  # type: ignore[method-assign, assignment]
    bench.queue._revive()
    back = bench.taken()
    assert len(back) == (moment == "claimed")
    assert bench.tally.totals() == Totals(accepted=len(back), in_flight=len(back))
    bench.settle(*(Outcome(event, Verdict.RETURNED) for event in back))
    assert (bench.tally.totals(), waiting(bench)) == (Totals(), set())


def test_what_is_parked_after_its_lease_was_withdrawn_does_not_wait_for_ever(bench: Bench) -> None:
    """The lease ended while settle was at it: whoever withdraws the lease's events was there too early."""
    lease = ManualLease("lost")
    event = leased(upsert("a", "x", 1), lease)
    bench.submit(event)
    assert bench.taken() == [event]
    lease.ended = True
    bench.queue.withdraw("cms", {"lost"})
    bench.settle(Outcome(event, Verdict.RETRYING, failure=FAILURE, wait=1000.0))
    assert waiting(bench) == {"topic/0@1"}
    bench.queue.start()
    deadline = time.monotonic() + DEADLINE
    while waiting(bench):
        assert time.monotonic() < deadline
    bench.stop.set()
    bench.queue.join(DEADLINE)
    assert (bench.tally.totals(), bench.faults) == (Totals(), [])


def test_a_state_that_takes_nothing_leaves_what_is_to_be_withdrawn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken out and nothing is counted; the caller hears of it, and asks again."""
    bench.park(leased(upsert("a", "x", 1), ManualLease("lost")))

    def full(*_args: object) -> Sequence[object]:
        raise UnavailableError("state", "the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(bench.store, "_write", full)
        with pytest.raises(UnavailableError):
            bench.queue.withdraw("cms", {"lost"})
    assert (bench.tally.totals(), waiting(bench)) == (Totals(accepted=1, retrying=1), {"topic/0@1"})
    bench.queue.withdraw("cms", {"lost"})
    assert (bench.tally.totals(), waiting(bench)) == (Totals(), set())


def test_why_an_event_waits_on_is_said_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """It is asked for twice a second: it is said when it begins to wait, when the reason changes, and anew later."""
    bench.park(upsert("a", "x", 1))
    reasons = iter(["away", "away", "still away", None, "away"])
    revive = bench.source.revive

    def ask(parked: Parked | DeadLetter) -> Event | None:
        reason = next(reasons)
        if reason is not None:
            raise UnavailableError("kafka:cms", reason)
        return revive(parked)

    bench.source.revive = ask  # type: ignore[method-assign]
    for _turn in range(4):
        bench.queue._revive()
        bench.clock.advance(STUCK)
    (event,) = bench.taken()
    bench.settle(Outcome(replace(event, attempt=2), Verdict.RETRYING, failure=FAILURE, wait=0.0))
    bench.queue._revive()
    said = [line.partition("error=")[2].split("\x1b")[0] for line in capsys.readouterr().out.splitlines()]
    assert [line.strip("'") for line in said if line] == ["away", "still away", "away"]


def test_events_that_cannot_come_back_stand_in_nobodys_way(bench: Bench) -> None:
    """However many they are, and however long they have been due; and they come when their source is back."""

    def away(parked: Parked | DeadLetter) -> Event | None:
        raise UnavailableError("source:cms", f"the folder of {parked.source} is gone")

    revive, bench.source.revive = bench.source.revive, away  # type: ignore[method-assign]
    bench.park(*(upsert(f"d{n}", "x", n) for n in range(3 * REVIVE)))
    note = replace(upsert("n", "x", source="wiki"), key=DocumentKey("notes", "n"))
    bench.park(upsert("last", "x", 3 * REVIVE), note, wait=1.0)
    bench.clock.advance(1.0)
    for _turn in range(4):
        bench.queue._revive()
    assert [event.key.document_id for event in bench.taken("notes")] == ["n"]
    assert bench.queue.waiting() == 3 * REVIVE + 2
    bench.source.revive = revive  # type: ignore[method-assign]
    bench.clock.advance(STUCK)
    for _turn in range(4):
        bench.queue._revive()
    assert len(bench.taken()) == 3 * REVIVE + 1


def test_hastened_events_come_back_at_once(bench: Bench) -> None:
    """Those of the source's positions that are named, and no others."""
    bench.park(*(upsert(f"d{n}", "x", n) for n in range(3)), wait=1000.0)
    bench.park(upsert("n", "x", 1, source="wiki"), wait=1000.0)
    bench.queue.hasten("cms", {"topic/0@1", "topic/0@99"})
    bench.queue._revive()
    assert [event.position for event in bench.taken()] == ["topic/0@1"]
    assert [parked.due_at for parked in bench.store.parked() if parked.source == "wiki"] == [NOW + 1000.0]
