"""Lanes: one active event a document, a budget, and an intake that can pause."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import upsert

from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.errors import Stopped

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


def resume(lanes: Lanes, event: Event, *, current: bool = True) -> bool:
    """Bring a parked event back, without patience."""
    return lanes.resume(event, is_current=lambda: current, on_accept=nothing, patience=0.0)


def test_a_parked_event_comes_back_to_a_free_lane_only() -> None:
    """While something else of its document is under way, or it was settled meanwhile, it stays parked."""
    lanes, out = make()
    live, parked = upsert("a", "x", 2), upsert("a", "x", 1)
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
    assert not closed.resume(upsert("a", "x", 1), is_current=lambda: True, on_accept=nothing, patience=DEADLINE)
    full, _ = make(events=1)
    submit(full, upsert("b", "x", 1))
    assert not resume(full, upsert("a", "x", 1))
    full.stop()
    with pytest.raises(Stopped):
        resume(full, upsert("a", "x", 1))
