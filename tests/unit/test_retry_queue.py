"""Parked events come back when they are due, each once, and none keeps back those of another pipeline."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, FINGERPRINT, NOW, ListSource, ManualClock, delete, open_store, upsert

from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.engine.pulse import Pulse
from ingestd.engine.sources import REVIVE, RetryQueue
from ingestd.engine.tally import Tally
from ingestd.errors import Superseded
from ingestd.metrics import Metrics
from ingestd.model import DocumentKey, Failure, Fingerprints, Op, Outcome, Stage, Totals, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ingestd.model import Event
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
        self.out: dict[str, Channel[Event]] = {name: Channel("extract", None) for name in (COLLECTION, "notes")}
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
    assert len(bench.taken()) == 1


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
