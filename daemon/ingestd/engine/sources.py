"""Sources on their threads, and the retry queue, which is a source too."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ingestd.errors import FatalError, Stopped, Superseded, UnavailableError
from ingestd.model import Event, Op, Priority, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ingestd.engine.lanes import Lanes
    from ingestd.engine.pulse import Pulse
    from ingestd.engine.tally import Tally
    from ingestd.model import Content, DocumentKey, Outcome, Parked
    from ingestd.ports import Clock, Source, Store

HALTED = 1.0
"""Seconds between two heartbeats of a source that is halted."""
POLL = 0.5
"""Seconds between two looks at the retry queue, and the most that one look waits for room in the lanes."""
REVIVE = 100
"""Parked events that are taken at a time."""
STUCK = 2.0
"""Seconds until one that its source cannot bring back now is due again."""
MANY = 10_000
"""Of those, how many are remembered, so that they are said once."""

log = structlog.get_logger(__name__)


class SourceThread:
    """A source, and what the engine offers to it (``ports.Intake``)."""

    def __init__(
        self,
        source: Source,
        lanes: Lanes,
        tally: Tally,
        pulse: Pulse,
        stop: threading.Event,
        *,
        retries: RetryQueue,
        once: bool,
        fail: Callable[[str, BaseException], None],
        on_skip: Callable[[Verdict, int], None] = lambda _verdict, _count: None,
        on_accept: Callable[[Sequence[Event]], None] = lambda _events: None,
        is_halted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._source = source
        self._lanes = lanes
        self._tally = tally
        self._pulse = pulse
        self._stop = stop
        self._retries = retries
        self._drained = threading.Event()
        self._once = once
        self._fail = fail
        self._on_skip = on_skip
        self._on_accept = on_accept
        self._is_halted = is_halted
        self._name = f"source/{source.name}"
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the source is still at it."""
        return self._thread.is_alive()

    @property
    def halted(self) -> bool:
        """Whether nothing more is taken from the source, for as long as the daemon runs."""
        return self._is_halted()

    def start(self) -> None:
        """Start the thread."""
        self._pulse.beat(self._name)
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end; return whether it ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, event: Event) -> None:
        """See ``ports.Intake``."""
        while self._is_halted():
            self.wait(HALTED)
        self._lanes.submit(event, on_accept=lambda: self._accept([event]), beat=self._beat)

    def offer(self, events: Sequence[Event]) -> int:
        """See ``ports.Intake``."""
        self._beat()
        room_for = () if self._is_halted() else events  # of none, so that a stop is told all the same
        return self._lanes.offer(room_for, on_accept=lambda count: self._accept(events[:count]))

    def withdraw(self, tenures: Collection[str] | None = None) -> None:
        """See ``ports.Intake``."""
        self._retries.withdraw(self._source.name, tenures)

    def hasten(self, positions: Collection[str]) -> None:
        """See ``ports.Intake``."""
        self._retries.hasten(self._source.name, positions)

    def drained(self, seconds: float) -> bool:
        """See ``ports.Intake``."""
        self._beat()
        return self._drained.wait(seconds)

    def release(self) -> None:
        """Say that all that was begun is settled, or given up: the source may end."""
        self._drained.set()

    def skip(self, verdict: Verdict, count: int = 1) -> None:
        """See ``ports.Intake``."""
        self._tally.skip(self._source.name, verdict, count)
        self._on_skip(verdict, count)
        self._beat()

    def wait(self, seconds: float) -> None:
        """See ``ports.Intake``."""
        self._beat()
        remaining = seconds
        while remaining > 0:
            if self._stop.wait(min(1.0, remaining)):
                break
            remaining -= 1.0
            self._beat()
        if self._stop.is_set():
            raise Stopped(self._name)

    def _accept(self, events: Sequence[Event]) -> None:
        self._tally.accept(self._source.name, len(events))
        self._on_accept(events)

    def _beat(self) -> None:
        self._pulse.beat(self._name)

    def _run(self) -> None:
        try:
            self._source.run(self, once=self._once)
            if not self._once and not self._stop.is_set():
                self._fail(self._name, RuntimeError("the source ended by itself"))
        except Stopped:
            pass  # as asked
        except BaseException as error:  # noqa: BLE001 - whatever ended the source ends the process
            self._fail(self._name, error)
        finally:
            self._pulse.end(self._name)


class RetryQueue:
    """Brings parked events back when they are due.

    What is read of the queue is old at once: before an event is submitted, its lane is held, and the event must not
    have been settled since. Nothing blocks here: a pipeline that is full, or behind an open breaker, must not keep
    back the retries of the others.

    Args:
        store: Keeps them.
        sources: By name: each knows how to make an event of its own again.
        lanes: By collection.
        tally: Counts.
        pulse: Takes heartbeats.
        clock: Says what is due.
        stop: Set when the daemon stops.
        fail: Called with the exception that ended the thread.
    """

    def __init__(
        self,
        store: Store,
        *,
        sources: Mapping[str, Source],
        lanes: Mapping[str, Lanes],
        tally: Tally,
        pulse: Pulse,
        clock: Clock,
        stop: threading.Event,
        fail: Callable[[str, BaseException], None],
    ) -> None:
        self._store = store
        self._sources = sources
        self._lanes = lanes
        self._tally = tally
        self._pulse = pulse
        self._clock = clock
        self._stop = stop
        self._fail = fail
        self._active: dict[DocumentKey, _Place] = {}
        """Brought back, and not settled yet: a document may have other events that are still parked."""
        self._looked_at: set[DocumentKey] | None = None
        """What the last look found; None while it looks."""
        self._settled: set[DocumentKey] = set()
        """Settled since the last look began."""
        self._late: dict[str, set[str]] = {}
        """Leases that had ended when their events were parked, by source: whoever withdraws them may have been there
        before."""
        self._waits: dict[_Place, str] = {}
        """What could not be brought back when it was last due, and why."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="retries", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of outcomes that are durable: those documents may come back."""
        keys = {outcome.event.key for outcome in outcomes}
        with self._lock:
            for key in keys:
                self._active.pop(key, None)
            self._settled |= keys if self._looked_at is None else keys & self._looked_at
            for outcome in outcomes:
                lease = outcome.event.lease
                if outcome.verdict is Verdict.RETRYING and lease is not None and lease.ended:
                    self._late.setdefault(outcome.event.source, set()).add(lease.id)

    def withdraw(self, source: str, tenures: Collection[str] | None) -> None:
        """Take events out that were parked under leases that have ended. See ``ports.Intake``."""
        withdrawn = self._store.withdraw(source, tenures)
        with self._lock:
            # One that was brought back already is in flight, and its outcome counts it.
            waited = sum(self._active.get(parked.key) != _place(parked) for parked in withdrawn)
            self._settled.update(parked.key for parked in withdrawn)
        if waited:
            self._tally.withdraw(source, waited)

    def hasten(self, source: str, positions: Collection[str]) -> None:
        """Have parked events brought back now. See ``ports.Intake``."""
        self._store.hasten(self._clock.time(), source, positions)

    def waiting(self) -> int:
        """Return the number of parked events that this daemon will bring back.

        Events of a source that is not configured any more, or that now feeds another collection, stay where they are.
        """
        return self._store.waiting({(name, source.collection) for name, source in self._sources.items()})

    def _open(self) -> set[tuple[str, str]]:
        """Return the sources whose pipelines take something, full or not, with their collections."""
        pairs = ((name, source.collection) for name, source in self._sources.items())
        return {(name, collection) for name, collection in pairs if self._lanes[collection].is_open}

    def _run(self) -> None:
        try:
            while not self._stop.wait(POLL):
                self._pulse.beat("retries")
                try:
                    self._withdraw_late()
                    self._revive()
                except UnavailableError as error:
                    log.warning("the retry queue cannot be read now", error=str(error))
        except Stopped:
            pass  # as asked
        except BaseException as error:  # noqa: BLE001 - whatever ended the thread ends the process
            self._fail("retries", error)
        finally:
            self._pulse.end("retries")

    def _withdraw_late(self) -> None:
        with self._lock:
            late = {source: frozenset(tenures) for source, tenures in self._late.items() if tenures}
        for source, tenures in late.items():
            self.withdraw(source, tenures)
            with self._lock:
                self._late[source] -= tenures

    def _revive(self) -> None:
        until = time.monotonic() + POLL
        stuck = []
        for parked in self._due():
            self._pulse.beat("retries")
            try:
                event = self._sources[parked.source].revive(self._store.whole(parked)) or _gone(parked)
            except UnavailableError as error:
                stuck.append(parked)
                if self._waits.get(_place(parked)) != str(error):  # it is asked again and again
                    log.warning("a parked event waits on", document_id=parked.key.document_id, error=str(error))
                self._waits[_place(parked)] = str(error)
                continue
            self._waits.pop(_place(parked), None)
            if event.key != parked.key:
                self._name(parked, event)
                continue
            event = replace(
                event, attempt=parked.attempt, first_failed_at=parked.first_failed_at, priority=Priority.RETRY
            )
            self._lanes[parked.key.collection].resume(
                event,
                is_current=partial(self._claim, parked),
                on_accept=self._tally.revive,
                patience=max(0.0, until - time.monotonic()),
            )
        if stuck:
            # Behind all that is due: a folder that is away must not stand before what other sources have.
            self._store.postpone(stuck, self._clock.time() + STUCK)
        if len(self._waits) > MANY:
            self._waits.clear()  # some are said once more

    def _name(self, parked: Parked, event: Event) -> None:
        """Let a record that could not be read before wait under the document that it turns out to be about.

        Raises:
            FatalError: It was read before.
        """
        if event.lease is None or not event.lease.lent:
            raise FatalError(f"{parked.source} revived {parked.key} as {event.key}")
        log.info("a record can be read now", position=parked.position, document_id=event.key.document_id)
        self._store.rename(parked, event.key)

    def _due(self) -> Sequence[Parked]:
        """Return events that are due and ours. More are read as long as others stand before them."""
        with self._lock:
            self._looked_at = None
            self._settled.clear()
        limit = REVIVE
        while True:
            found = self._store.due(self._clock.time(), limit, self._open())
            with self._lock:
                ours = [parked for parked in found if parked.key not in self._active][:REVIVE]
            if len(ours) == REVIVE or len(found) < limit:
                break
            limit *= 4
        with self._lock:
            self._looked_at = {parked.key for parked in ours}
            self._settled &= self._looked_at
        return ours

    def _claim(self, parked: Parked) -> bool:
        """Mark an event as brought back, unless it was settled or withdrawn meanwhile; return whether it is.

        In one step: if it were marked later, whoever withdraws it in between would count it, and so would its outcome.
        """
        with self._lock:
            if parked.key in self._settled:
                return False
            self._active[parked.key] = _place(parked)
            return True


class _Place(NamedTuple):
    """Tells a parked event of a document from its others, and from what it is when it has failed once more."""

    source: str
    position: str
    attempt: int


def _place(parked: Parked) -> _Place:
    return _Place(parked.source, parked.position, parked.attempt)


class _Gone:
    """The payload of an event whose document went away while it was parked."""

    at_hand = None

    def read(self) -> Content:
        """See ``model.Payload``."""
        raise Superseded("nothing is left to try again")


def _gone(parked: Parked) -> Event:
    # An upsert whatever it was: a delete that the source takes back must delete nothing.
    return Event(key=parked.key, op=Op.UPSERT, source=parked.source, position=parked.position, payload=_Gone())
