"""Lanes: one active event a document, a budget, and an intake that can pause."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, upsert

from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.errors import Stopped
from ingestd.model import DocumentKey, Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.model import Event

DEADLINE = 20.0


def nothing() -> None:
    """Do nothing."""


def make(
    events: int = 100, size: int = 10_000, is_open: Callable[[], bool] = lambda: True
) -> tuple[Lanes, Channel[Event]]:
    """Return lanes, and the channel that they feed."""
    out: Channel[Event] = Channel("recall", None)
    return Lanes(out, max_events=events, max_bytes=size, is_open=is_open), out


def submit(lanes: Lanes, *events: Event) -> None:
    """Submit events."""
    for event in events:
        lanes.submit(event, on_accept=nothing, beat=nothing)


def back(key: str, text: str, number: int) -> Event:
    """Return an event that was parked."""
    return replace(upsert(key, text, number), priority=Priority.RETRY)


def taken(out: Channel[Event]) -> list[Event]:
    """Take all that is active and that no stage has yet."""
    return out.take(1000, 0.0, 0.0) or []


def test_one_event_of_a_document_is_active() -> None:
    """The second one comes out when the first is released, and other documents do not wait for it."""
    lanes, out = make()
    first, second, third = (upsert("a", "x", n) for n in range(3))
    other = upsert("b", "x", 0)
    submit(lanes, first, second, third, other)
    assert taken(out) == [first, other]
    lanes.release([first])
    assert taken(out) == [second]
    lanes.release([second])
    assert taken(out) == [third]
    lanes.release([third])
    lanes.release([other])
    assert (lanes.events, lanes.bytes, taken(out)) == (0, 0, [])
    assert lanes.wait_idle(0.0)


def test_the_same_id_in_two_collections_is_two_documents() -> None:
    """A lane is keyed by collection and document."""
    lanes, out = make()
    here = upsert("a", "x", 0)
    there = replace(here, key=replace(here.key, collection="notes"))
    submit(lanes, here, there)
    assert taken(out) == [here, there]


@pytest.mark.parametrize(("events", "size"), [(1, 1000), (100, 6)])
def test_intake_waits_for_room(events: int, size: int) -> None:
    """Beyond the budget of events, or of bytes, a source waits, and beats meanwhile, until something is settled."""
    lanes, out = make(events, size)
    first, second = upsert("a", "12345", 0), upsert("b", "12345", 0)
    submit(lanes, first)
    beaten = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lanes.submit, second, on_accept=nothing, beat=beaten.set)
        assert beaten.wait(DEADLINE)
        assert (waiting.done(), lanes.events) == (False, 1)
        lanes.release([first])
        waiting.result(DEADLINE)
    assert taken(out) == [first, second]


def test_an_event_over_the_budget_passes_alone() -> None:
    """The largest document that is allowed gets through, whatever the budget."""
    lanes, out = make(size=3)
    submit(lanes, upsert("a", "much too large", 0))
    assert len(taken(out)) == 1


def test_an_open_breaker_pauses_intake() -> None:
    """Nothing is accepted while a dependency is down; ``wake`` has it looked at again."""
    up = threading.Event()
    lanes, out = make(is_open=up.is_set)
    beaten = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lanes.submit, upsert("a", "x", 0), on_accept=nothing, beat=beaten.set)
        assert beaten.wait(DEADLINE)
        assert taken(out) == []
        up.set()
        lanes.wake()
        waiting.result(DEADLINE)
    assert len(taken(out)) == 1


def test_stop_drops_what_no_stage_has_begun() -> None:
    """What waits and what nobody took is dropped and counted; what is begun ends; nothing more is accepted."""
    lanes, out = make()
    begun, *behind = (upsert("a", "x", n) for n in range(3))
    submit(lanes, begun)
    assert taken(out) == [begun]
    submit(lanes, *behind, *(upsert("b", "x", n) for n in range(4)))
    assert lanes.stop() == 6
    assert (lanes.events, taken(out)) == (1, [])
    with pytest.raises(Stopped):
        submit(lanes, upsert("c", "x", 0))
    lanes.release([begun])
    assert (lanes.events, lanes.bytes, taken(out)) == (0, 0, [])


def test_stop_wakes_those_who_wait() -> None:
    """A source that waits for room is told to end, and its event was not accepted."""
    lanes, _out = make(events=1)
    submit(lanes, upsert("a", "x", 0))
    accepted, beaten = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lanes.submit, upsert("b", "x", 0), on_accept=accepted.set, beat=beaten.set)
        assert beaten.wait(DEADLINE)
        lanes.stop()
        assert isinstance(waiting.exception(DEADLINE), Stopped)
    assert not accepted.is_set()


def test_an_event_is_accepted_before_anything_is_done_to_it() -> None:
    """``on_accept`` runs before a stage can see the event, so that it is counted before it ends."""
    lanes, out = make()
    order: list[int] = []
    lanes.submit(upsert("a", "x", 0), on_accept=lambda: order.append(len(out)), beat=nothing)
    assert (order, len(out)) == ([0], 1)


def offered(lanes: Lanes, *events: Event) -> tuple[int, list[int]]:
    """Offer events; return how many were accepted, and what was said of them."""
    said: list[int] = []
    return lanes.offer(events, on_accept=said.append), said


def test_an_offer_takes_what_there_is_room_for() -> None:
    """From the first on, without waiting, told in one number before any of them is out; the rest is handed in again."""
    lanes, out = make(events=4)
    events = [upsert("abac"[at], "x", at) for at in range(4)]
    submit(lanes, upsert("z", "x", 0))
    assert offered(lanes, *events) == (3, [3])
    assert [event.key.document_id for event in taken(out)] == ["z", "a", "b"]
    assert offered(lanes, events[3]) == (0, [])
    lanes.release([upsert("z", "x", 0)])
    assert offered(lanes, events[3]) == (1, [1])
    assert taken(out) == [events[3]]
    assert offered(lanes) == (0, [])
    lanes.release([events[0], events[1]])
    assert taken(out) == [events[2]], "the document's second event follows its first"


@pytest.mark.parametrize(("sizes", "taken_at_once"), [((3, 3, 3), 2), ((7, 1, 1), 1), ((1, 9, 1), 1), ((6,), 1)])
def test_an_offer_keeps_to_the_bytes(sizes: tuple[int, ...], taken_at_once: int) -> None:
    """What would go beyond them ends it; the first of all passes alone, whatever it weighs."""
    lanes, _out = make(size=6)
    events = [upsert(f"d{at}", "x" * size, at) for at, size in enumerate(sizes)]
    assert offered(lanes, *events) == (taken_at_once, [taken_at_once])
    assert lanes.bytes == sum(sizes[:taken_at_once])


def test_an_offer_does_not_wait_for_a_breaker() -> None:
    """Nothing is accepted while a dependency is down; after the stop it is told to end."""
    up = threading.Event()
    lanes, out = make(is_open=up.is_set)
    assert offered(lanes, upsert("a", "x", 0)) == (0, [])
    up.set()
    assert offered(lanes, upsert("a", "x", 0)) == (1, [1])
    assert len(taken(out)) == 1
    lanes.stop()
    said: list[int] = []
    with pytest.raises(Stopped):
        lanes.offer([upsert("b", "x", 0)], on_accept=said.append)
    assert said == []


def test_offered_events_are_accepted_before_anything_is_done_to_them() -> None:
    """They are counted before any of them can end."""
    lanes, out = make()
    order: list[int] = []
    lanes.offer([upsert("a", "x", 0), upsert("b", "x", 0)], on_accept=lambda _count: order.append(len(out)))
    assert (order, len(out)) == ([0], 2)


def resume(lanes: Lanes, event: Event, *, current: bool = True) -> bool:
    """Bring a parked event back, without patience."""
    return lanes.resume(event, is_current=lambda: current, on_accept=nothing, patience=0.0)


def test_a_parked_event_comes_back_to_a_free_lane_only() -> None:
    """While something else of its document is under way, or it was settled meanwhile, it stays parked."""
    lanes, out = make()
    live, parked = upsert("a", "x", 2), back("a", "x", 1)
    submit(lanes, live)
    assert not resume(lanes, parked)
    assert taken(out) == [live]
    lanes.release([live])
    assert not resume(lanes, parked, current=False)
    assert resume(lanes, parked)
    assert taken(out) == [parked]


def test_a_parked_event_does_not_wait_for_a_breaker() -> None:
    """The retry queue serves many pipelines: one that is paused, full or stopped must not hold it up."""
    closed, _ = make(is_open=lambda: False)
    assert not closed.resume(back("a", "x", 1), is_current=lambda: True, on_accept=nothing, patience=DEADLINE)
    full, _ = make(events=1)
    submit(full, upsert("b", "x", 1))
    assert resume(full, back("c", "x", 1))  # what is beside the budget, for such
    assert not resume(full, back("a", "x", 1))
    full.stop()
    with pytest.raises(Stopped):
        resume(full, back("a", "x", 1))


def test_a_lane_that_is_held_begins_nothing() -> None:
    """What comes meanwhile waits, in order, and begins when it is let go; what is under way cannot be held."""
    lanes, out = make()
    submit(lanes, upsert("a", "1", 1))
    assert [event.position for event in taken(out)] == ["topic/0@1"]
    keys = [DocumentKey(COLLECTION, name) for name in "abc"]
    assert lanes.hold(keys) == frozenset(keys[1:])
    assert lanes.busy(keys) == frozenset(keys)
    assert lanes.hold(keys) == frozenset()
    submit(lanes, upsert("b", "1", 2), upsert("b", "2", 3), upsert("d", "1", 4))
    assert [event.position for event in taken(out)] == ["topic/0@4"]
    assert not resume(lanes, back("c", "1", 5))
    lanes.let_go(keys[1:])
    (begun,) = taken(out)
    assert begun.position == "topic/0@2"
    assert lanes.busy(keys) == frozenset(keys[:2])
    lanes.release([begun])
    assert [event.position for event in taken(out)] == ["topic/0@3"]
    assert resume(lanes, back("c", "1", 5))


def test_a_held_lane_counts_as_no_event() -> None:
    """It takes nothing of the budget, and a stop neither waits for it nor trips over it."""
    lanes, out = make(events=1)
    (key,) = lanes.hold([DocumentKey(COLLECTION, "a")])
    assert lanes.wait_idle(0.0)
    submit(lanes, upsert("b", "1", 1))
    assert len(taken(out)) == 1
    lanes.release([upsert("b", "1", 1)])
    submit(lanes, upsert("a", "1", 2))
    assert lanes.stop() == 1
    lanes.let_go([key])
    assert lanes.wait_idle(0.0)
    assert taken(out) == []


def test_a_backlog_keeps_no_parked_event_away() -> None:
    """A source takes every place as soon as it is free; what comes back has some beside, and gives them back."""
    lanes, out = make(events=16)
    live = [upsert(f"l{number}", "x", number) for number in range(16)]
    parked = [back(f"p{number}", "x", number) for number in range(3)]
    submit(lanes, *live)
    assert lanes.offer([upsert("more", "x", 1)], on_accept=lambda _room: None) == 0
    assert [resume(lanes, event) for event in parked] == [True, True, False]
    assert lanes.events == 18
    assert taken(out) == [*live, *parked[:2]]
    lanes.release(parked[:1])
    assert lanes.offer([upsert("more", "x", 1)], on_accept=lambda _room: None) == 0
    assert resume(lanes, parked[2])
    lanes.release(live)
    assert lanes.events == 2


def test_what_is_beside_the_budget_is_small() -> None:
    """A large event comes back alone: memory stays bounded."""
    lanes, _ = make(events=1000, size=8000)
    submit(lanes, upsert("live", "x" * 8000, 1))
    assert resume(lanes, back("large", "x" * 5000, 1))
    assert not resume(lanes, back("small", "x", 1))
    lanes.release([back("large", "x" * 5000, 1)])
    assert resume(lanes, back("half", "x" * 600, 1))
    assert not resume(lanes, back("other", "x" * 600, 1))
    assert resume(lanes, back("third", "x" * 300, 1))


def test_a_backfill_keeps_no_live_event_away() -> None:
    """What is live has places beside the budget, and gives them back; a backfill has none of them."""
    lanes, out = make(events=16)
    old = [replace(upsert(f"o{number}", "x", number), priority=Priority.BACKFILL) for number in range(20)]
    live = [upsert(f"l{number}", "x", number) for number in range(4)]
    assert lanes.offer(old, on_accept=lambda _room: None) == 16
    assert lanes.offer(old[16:], on_accept=lambda _room: None) == 0
    assert lanes.offer(live, on_accept=lambda _room: None) == 2
    assert lanes.offer(live[2:], on_accept=lambda _room: None) == 0
    assert taken(out) == [*old[:16], *live[:2]]
    lanes.release(live[:1])
    assert lanes.offer(old[16:], on_accept=lambda _room: None) == 0
    assert lanes.offer(live[2:], on_accept=lambda _room: None) == 1
    lanes.release(old[:16])
    assert lanes.offer(live[3:], on_accept=lambda _room: None) == 1
    assert lanes.events == 3


def test_what_is_live_alone_keeps_to_the_budget() -> None:
    """What is beside it is for the time when others fill it."""
    lanes, _ = make(events=16)
    live = [upsert(f"l{number}", "x", number) for number in range(20)]
    assert lanes.offer(live, on_accept=lambda _room: None) == 16
    assert lanes.offer(live[16:], on_accept=lambda _room: None) == 0
    assert resume(lanes, back("p", "x", 1))
