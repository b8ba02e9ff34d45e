"""Sources on their threads, and the retry queue, which is a source too."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from ingestd.errors import Stopped, Superseded
from ingestd.model import Event, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestd.engine.lanes import Lanes
    from ingestd.engine.pulse import Pulse
    from ingestd.engine.tally import Tally
    from ingestd.model import Content, DocumentKey, Outcome, Parked
    from ingestd.ports import Clock, Source, Store

POLL = 0.5
"""Seconds between two looks at the retry queue."""
REVIVE = 100
"""Parked events that are taken at a time."""

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
        once: bool,
        fail: Callable[[str, BaseException], None],
        on_skip: Callable[[Verdict, int], None] = lambda _verdict, _count: None,
    ) -> None:
        self._source = source
        self._lanes = lanes
        self._tally = tally
        self._pulse = pulse
        self._stop = stop
        self._once = once
        self._fail = fail
        self._on_skip = on_skip
        self._name = f"source/{source.name}"
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the source is still at it."""
        return self._thread.is_alive()

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
        self._lanes.submit(event, on_accept=lambda: self._tally.accept(self._source.name), beat=self._beat)

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
        self._active: set[DocumentKey] = set()
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
        with self._lock:
            self._active.difference_update(outcome.event.key for outcome in outcomes)

    def waiting(self) -> int:
        """Return the number of parked events that this daemon will bring back."""
        return sum(1 for parked in self._store.parked() if self._owns(parked))

    def _owns(self, parked: Parked) -> bool:
        return parked.source in self._sources and parked.key.collection in self._lanes

    def _run(self) -> None:
        try:
            while not self._stop.wait(POLL):
                self._pulse.beat("retries")
                self._revive()
        except Stopped:
            pass  # as asked
        except BaseException as error:  # noqa: BLE001 - whatever ended the thread ends the process
            self._fail("retries", error)
        finally:
            self._pulse.end("retries")

    def _revive(self) -> None:
        for parked in self._store.due(self._clock.time(), REVIVE):
            with self._lock:
                if parked.key in self._active or not self._owns(parked):
                    continue
                self._active.add(parked.key)
            event = self._sources[parked.source].revive(parked) or _gone(parked)
            event = replace(event, attempt=parked.attempt, first_failed_at=parked.first_failed_at)
            self._lanes[parked.key.collection].submit(
                event, on_accept=self._tally.revive, beat=lambda: self._pulse.beat("retries")
            )


class _Gone:
    """The payload of an event whose document went away while it was parked."""

    def read(self) -> Content:
        """See ``model.Payload``."""
        raise Superseded("nothing is left to try again")


def _gone(parked: Parked) -> Event:
    return Event(key=parked.key, op=parked.op, source=parked.source, position=parked.position, payload=_Gone())
