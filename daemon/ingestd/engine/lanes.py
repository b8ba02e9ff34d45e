"""Lanes: one active event for each document, first in first out.

A lane is keyed by (collection, document) and shared by live events, retries and replays, so whatever comes in for a
document waits for what is being done to it. Lanes also hold the budget of their pipeline, in events and in bytes:
a source that hands in more waits, and so does its broker or its folder. Live events, and parked ones that come back,
have an eighth of it each beside, for themselves: a source with a backlog takes every place as soon as it is free, and
they would wait until the backlog ends.

The first channel of the pipeline is unbounded: its items are bounded here, and settle, which releases lanes, must
never wait for a stage.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from ingestd.errors import Stopped
from ingestd.model import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ingestd.engine.channel import Channel
    from ingestd.model import DocumentKey, Event


RESERVE = 8
"""One part in so many of the budget is beside it for what is live, and one for what comes back from the retry queue."""


class Lanes:
    """The lanes of one pipeline. Safe to call from any thread.

    Args:
        out: Where an event goes when its lane is free.
        max_events: The most events that are active or wait.
        max_bytes: The most bytes that their payloads may take; a single larger event still passes, alone.
        is_open: False while a breaker behind the pipeline is open: intake pauses.
    """

    def __init__(
        self,
        out: Channel[Event],
        *,
        max_events: int,
        max_bytes: int,
        is_open: Callable[[], bool] = lambda: True,
    ) -> None:
        self._out = out
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._is_open = is_open
        self._waiting: dict[DocumentKey, deque[Event]] = {}
        self._events = 0
        self._bytes = 0
        self._events_of = [0] * len(Priority)
        """The same by priority."""
        self._bytes_of = [0] * len(Priority)
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def events(self) -> int:
        """The number of events that are active or wait."""
        return self._events

    @property
    def bytes(self) -> int:
        """The bytes that their payloads may take."""
        return self._bytes

    @property
    def is_open(self) -> bool:
        """Whether events are accepted, as far as room allows."""
        with self._changed:
            return not self._stopped and self._is_open()

    def submit(self, event: Event, *, on_accept: Callable[[], None], beat: Callable[[], None]) -> None:
        """Accept an event when the budget allows it.

        Args:
            event: The event.
            on_accept: Called once it is accepted, before anything is done to it.
            beat: Called every so often while waiting.

        Raises:
            Stopped: It was not accepted.
        """
        with self._changed:
            while not self._stopped and not self._has_room(event):
                beat()
                self._changed.wait(1.0)
            if self._stopped:
                raise Stopped("intake")
            self._enter(event, on_accept)

    def offer(self, events: Sequence[Event], *, on_accept: Callable[[int], None]) -> int:
        """Accept events from the first on, as long as there is room, and return how many. Never waits for room.

        Args:
            events: In their order, of one priority.
            on_accept: Called with how many it will be, before anything is done to them.

        Raises:
            Stopped: None was accepted.
        """
        with self._changed:
            if self._stopped:
                raise Stopped("intake")
            room = self._room_for(events)
            if room:
                on_accept(room)
                # Inside the lock, so that a lane's events leave in the order in which they came.
                self._out.extend([event for event in events[:room] if self._begins(event)])
            return room

    def resume(
        self, event: Event, *, is_current: Callable[[], bool], on_accept: Callable[[], None], patience: float
    ) -> bool:
        """Make an event that was parked the active one of its lane, unless something stands in its way.

        It never waits in a lane: what is before it there may settle it, and it would be counted twice.

        Args:
            event: The event.
            is_current: Asked when its lane is free, with nothing else of the document under way: whether it is
                still parked.
            on_accept: As for ``submit``.
            patience: Seconds to wait for room.

        Returns:
            Whether it was accepted; False also while a breaker behind the pipeline is open.

        Raises:
            Stopped: It was not accepted, and nothing will be any more.
        """
        with self._changed:
            if self._is_open():
                self._changed.wait_for(lambda: self._stopped or self._has_room(event), patience)
            if self._stopped:
                raise Stopped("intake")
            if event.key in self._waiting or not self._has_room(event) or not is_current():
                return False
            self._enter(event, on_accept)
            return True

    def release(self, events: Sequence[Event]) -> None:
        """End the active events of their lanes; the next one in each lane becomes active."""
        with self._changed:
            begun = []
            for event in events:
                self._leave(event)
                lane = self._waiting[event.key]
                if lane and not self._stopped:
                    begun.append(lane.popleft())
                elif not lane:
                    del self._waiting[event.key]
            self._out.extend(begun)
            self._changed.notify_all()

    def hold(self, keys: Iterable[DocumentKey]) -> frozenset[DocumentKey]:
        """Take the lanes of documents that nothing is under way for, and return which: until ``let_go`` no event begins
        there. For who looks at documents, and mends them, past the pipeline; it counts against no budget.
        """  # noqa: D205 - one sentence
        with self._changed:
            held = frozenset(key for key in keys if key not in self._waiting)
            self._waiting.update((key, deque()) for key in held)
            return held

    def let_go(self, keys: Iterable[DocumentKey]) -> None:
        """Give lanes back that ``hold`` took; what came meanwhile begins."""
        with self._changed:
            begun = []
            for key in keys:
                lane = self._waiting[key]
                if lane and not self._stopped:
                    begun.append(lane.popleft())
                else:
                    del self._waiting[key]
            self._out.extend(begun)

    def busy(self, keys: Iterable[DocumentKey]) -> frozenset[DocumentKey]:
        """Return the documents that something is under way for."""
        with self._changed:
            return frozenset(key for key in keys if key in self._waiting)

    def stop(self) -> int:
        """Accept nothing more and drop what no stage has begun; return the number of dropped events.

        Their positions have not moved: the sources hand them in again after the next start.
        """
        with self._changed:
            self._stopped = True
            before = self._events
            for event in self._out.clear():
                self._drop(self._waiting.pop(event.key), event)
            for lane in self._waiting.values():
                self._drop(lane)
            self._changed.notify_all()
            return before - self._events

    def drop(self, events: Sequence[Event]) -> None:
        """Take active events out that nobody goes on with. After ``stop``: nothing waits behind them any more."""
        with self._changed:
            for event in events:
                self._drop(self._waiting.pop(event.key), event)
            self._changed.notify_all()

    def wake(self) -> None:
        """Look again at whether intake is open."""
        with self._changed:
            self._changed.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is active or waits; return whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: self._events == 0, timeout)

    def _enter(self, event: Event, on_accept: Callable[[], None]) -> None:
        on_accept()
        if self._begins(event):
            self._out.put(event)

    def _begins(self, event: Event) -> bool:
        """Put an event into its lane; return whether it is the active one."""
        self._events += 1
        self._bytes += event.size
        self._events_of[event.priority] += 1
        self._bytes_of[event.priority] += event.size
        lane = self._waiting.get(event.key)
        if lane is not None:
            lane.append(event)
            return False
        self._waiting[event.key] = deque()
        return True

    def _drop(self, lane: deque[Event], *active: Event) -> None:
        for event in (*active, *lane):
            self._leave(event)
        lane.clear()

    def _leave(self, event: Event) -> None:
        self._events -= 1
        self._bytes -= event.size
        self._events_of[event.priority] -= 1
        self._bytes_of[event.priority] -= event.size

    def _room_for(self, events: Sequence[Event]) -> int:
        """Return how many of these events, from the first on, there is room for."""
        if not events or not self._has_room(events[0]):
            return 0
        priority = events[0].priority
        count, size, most, most_bytes = self._events, self._bytes, self._max_events, self._max_bytes
        if not self._fits(events[0]):
            count, size, most, most_bytes = (
                self._events_of[priority],
                self._bytes_of[priority],
                most // RESERVE,
                most_bytes // RESERVE,
            )
        room = 1
        size += events[0].size
        for event in events[1 : max(1, most - count)]:
            size += event.size
            if size > most_bytes:
                break
            room += 1
        return room

    def _has_room(self, event: Event) -> bool:
        """Return whether there is room for an event: in the budget, or in what is beside it for its like."""
        if not self._is_open():
            return False
        if self._fits(event):
            return True
        if event.priority is Priority.BACKFILL:
            return False
        events, size = self._events_of[event.priority], self._bytes_of[event.priority]
        return not events or (events < self._max_events // RESERVE and size + event.size <= self._max_bytes // RESERVE)

    def _fits(self, event: Event) -> bool:
        return not self._events or (self._events < self._max_events and self._bytes + event.size <= self._max_bytes)
