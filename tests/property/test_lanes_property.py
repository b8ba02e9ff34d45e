"""Lanes under many threads: one active event a document, each document's events in order, never over the budget."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import upsert

from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingestd.model import DocumentKey, Event

DEADLINE = 10.0
EVENTS, BYTES = 4, 12

orders = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=25)


def nothing() -> None:
    """Do nothing."""


@contextmanager
def ending(lanes: Lanes, out: Channel[Event]) -> Iterator[None]:
    """Let all threads end, also when the test fails."""
    try:
        yield
    finally:
        lanes.stop()
        out.close()


class Watch:
    """Notes what is active, and what is wrong with it."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.active: Counter[DocumentKey] = Counter()
        self.order: defaultdict[DocumentKey, list[int]] = defaultdict(list)
        self.faults: list[str] = []
        self.accepted = 0
        self._lock = threading.Lock()

    def accept(self, count: int = 1) -> None:
        """Events are accepted: no stage may have seen them yet."""
        self.accepted += count  # inside the lanes' lock

    def begin(self, event: Event) -> None:
        """A stage takes an event."""
        assert event.version is not None
        with self._lock:
            self.active[event.key] += 1
            self.order[event.key].append(event.version.number)
            if self.active[event.key] > 1:
                self.faults.append(f"{event.key.document_id} is active twice")
            if sum(self.active.values()) > EVENTS:
                self.faults.append("more events than the budget")

    def end(self, *events: Event) -> None:
        """Their outcomes are settled together."""
        with self._lock:
            self.active.subtract(event.key for event in events)
        self.lanes.release(events)

    def hand_in(self, events: Sequence[Event], at_a_time: int) -> None:
        """A source offers so many at a time, and submits what is not taken."""
        left = list(events)
        while left:
            if at_a_time and (count := self.lanes.offer(left[:at_a_time], on_accept=self.accept)):
                del left[:count]
            else:
                self.lanes.submit(left.pop(0), on_accept=self.accept, beat=nothing)
            with self.lanes._changed:  # both as of one moment
                if self.lanes.events > EVENTS or (self.lanes.bytes > BYTES and self.lanes.events > 1):
                    self.faults.append("over the budget")

    def work(self, out: Channel[Event], at_a_time: int, *, together: bool) -> None:
        """A stage takes so many at a time, and ends them together or one by one."""
        while (batch := out.take(at_a_time, 0.0, 1.0)) is not None:
            for event in batch:
                self.begin(event)
            for some in [batch] if together else [[event] for event in reversed(batch)]:
                self.end(*some)


@settings(max_examples=25, deadline=None)
@given(order=orders, seed=st.integers(0, 3), at_a_time=st.integers(0, 7))
def test_each_document_in_order_and_alone(order: list[tuple[str, int]], seed: int, at_a_time: int) -> None:
    """One thread submits or offers, three take and release: order and solitude hold, all are counted, none is left."""
    out: Channel[Event] = Channel("recall", None)
    lanes = Lanes(out, max_events=EVENTS, max_bytes=BYTES)
    watch = Watch(lanes)
    events = [upsert(document, "x" * size, at) for at, (document, size) in enumerate(order)]

    with ThreadPoolExecutor(4) as pool, ending(lanes, out):
        stages = [pool.submit(watch.work, out, 1 + (number + seed) % 3, together=seed > 1) for number in range(3)]
        pool.submit(watch.hand_in, events, at_a_time).result(DEADLINE)
        assert lanes.wait_idle(DEADLINE)
        out.close()
        for future in stages:
            future.result(DEADLINE)
    assert watch.faults == []
    expected: defaultdict[DocumentKey, list[int]] = defaultdict(list)
    for at, event in enumerate(events):
        expected[event.key].append(at)
    assert expected == watch.order
    assert watch.accepted == len(events)
    assert (lanes.events, lanes.bytes) == (0, 0)


class Traffic:
    """Sources, the retry queue and stages around lanes, each on threads of its own."""

    def __init__(self, stop_after: int | None) -> None:
        self.out: Channel[Event] = Channel("recall", None)
        self.lanes = Lanes(self.out, max_events=EVENTS, max_bytes=BYTES)
        self.watch = Watch(self.lanes)
        self.accepted = self.ended = 0
        self.stop_after = stop_after
        self.reached = threading.Event()
        self._lock = threading.Lock()

    def source(self, documents: list[str]) -> None:
        """Submit an event of each document."""
        for at, document in enumerate(documents):
            self.lanes.submit(upsert(document, "x", at), on_accept=self._accept, beat=nothing)

    def offers(self, documents: list[str]) -> None:
        """Offer an event of each document, some at a time, as often as it takes."""
        left = [upsert(document, "x", at) for at, document in enumerate(documents)]
        while left:
            if (count := self.lanes.offer(left[:3], on_accept=self._accept)) == 0:
                self.lanes.wait_idle(0.01)
            del left[:count]

    def retries(self, documents: list[str]) -> None:
        """Bring an event of each document back, where its lane is free."""
        for at, document in enumerate(documents):
            event = upsert(document, "x", at)
            self.lanes.resume(event, is_current=lambda: True, on_accept=self._accept, patience=0.01)

    def stage(self) -> None:
        """Take events and end them."""
        while (batch := self.out.take(2, 0.0, 1.0)) is not None:
            for event in batch:
                self.watch.begin(event)
                self.watch.end(event)
                with self._lock:
                    self.ended += 1
                    if self.ended == self.stop_after:
                        self.reached.set()

    def _accept(self, count: int = 1) -> None:
        self.accepted += count  # inside the lanes' lock


@settings(max_examples=25, deadline=None)
@given(
    orders=st.lists(st.lists(st.sampled_from("ab"), max_size=8), min_size=3, max_size=3),
    retries=st.lists(st.sampled_from("ab"), max_size=4),
    stop_after=st.none() | st.integers(1, 10),
)
def test_what_was_accepted_is_taken_or_dropped(
    orders: list[list[str]], retries: list[str], stop_after: int | None
) -> None:
    """Several sources, retries and a stop at any moment: accepted = ended + dropped, and nothing is left."""
    traffic = Traffic(stop_after)
    dropped = 0
    with ThreadPoolExecutor(6) as pool, ending(traffic.lanes, traffic.out):
        stages = [pool.submit(traffic.stage) for _ in range(2)]
        sources = [
            pool.submit(traffic.offers, orders[0]),
            *(pool.submit(traffic.source, order) for order in orders[1:]),
            pool.submit(traffic.retries, retries),
        ]
        if stop_after is not None and stop_after <= sum(map(len, orders)):
            assert traffic.reached.wait(DEADLINE)
            dropped = traffic.lanes.stop()
        ends = [future.exception(DEADLINE) for future in sources]
        assert traffic.lanes.wait_idle(DEADLINE)
        traffic.out.close()
        for future in stages:
            future.result(DEADLINE)
    assert all(end is None or isinstance(end, Stopped) for end in ends)
    assert traffic.watch.faults == []
    assert traffic.accepted == traffic.ended + dropped
    assert (traffic.lanes.events, traffic.lanes.bytes) == (0, 0)
