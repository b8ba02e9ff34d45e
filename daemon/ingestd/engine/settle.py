"""Settle: the only place where positions move, events are parked, and dead letters are written.

Outcomes come from all stages of all pipelines. One thread takes what is there, makes it durable in one transaction,
and only then counts it, tells the sources, and releases the lanes. An outcome that cannot be made durable (a full
disk, a full dead-letter store) is held: nothing is dropped, and nothing moves.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import structlog

from ingestd.engine.channel import Channel
from ingestd.engine.letters import Publisher
from ingestd.engine.workload import Meter, State
from ingestd.errors import Stopped
from ingestd.model import Check, Event, Failure, Outcome, Stage, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestd.engine.breaker import Breakers
    from ingestd.engine.lanes import Lanes
    from ingestd.engine.pulse import Pulse
    from ingestd.engine.retry import RetryPolicy
    from ingestd.engine.tally import Tally
    from ingestd.model import Fingerprints, Parked
    from ingestd.ports import Source, Store

_GIVEN_BACK = Failure(Stage.WRITE, "Returned", "its partition was given to another member meanwhile")
GIVEN_BACK_SECONDS = 1.0
"""Until an event that was given back, and that its source has lent, is brought back."""
BATCH = 500
LINGER = 0.005
"""Seconds to wait for more outcomes: a commit costs about as much."""

log = structlog.get_logger(__name__)
_plain = logging.getLogger(__name__)
"""The logger behind it, which knows what is wanted."""


class Settle:
    """Makes outcomes durable, and then known.

    Args:
        store: Where they are made durable.
        breakers: Hold the batch while the store is unavailable.
        policy: Decides whether an event is tried again.
        tally: Counts.
        fingerprints: By collection.
        lanes: By collection.
        sources: By name.
        pulse: Takes its heartbeats.
        fail: Called with the exception that ended the thread.
        on_settled: Called after each batch.
    """

    def __init__(
        self,
        store: Store,
        *,
        breakers: Breakers,
        policy: RetryPolicy,
        tally: Tally,
        fingerprints: Mapping[str, Fingerprints],
        lanes: Mapping[str, Lanes],
        sources: Mapping[str, Source],
        pulse: Pulse,
        fail: Callable[[str, BaseException], None],
        on_settled: Callable[[Sequence[Outcome]], None] = lambda _outcomes: None,
    ) -> None:
        self._store = store
        self._breakers = breakers
        self._policy = policy
        self._tally = tally
        self._fingerprints = fingerprints
        self._lanes = lanes
        self._sources = sources
        self._pulse = pulse
        self._fail = fail
        self._on_settled = on_settled
        # Bounded by the lanes' budgets: each event has one outcome.
        self._channel: Channel[Outcome] = Channel("settle", None)
        self._publishers = {
            name: Publisher(
                name,
                topic,
                collection=source.collection,
                breakers=breakers,
                settle=self.put,
                pulse=pulse,
                fail=fail,
            )
            for name, source in sources.items()
            if (topic := source.letter_topic()) is not None
        }
        self.meter = Meter()
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        for publisher in self._publishers.values():
            publisher.start()
        self._thread.start()

    def put(self, outcome: Outcome) -> None:
        """Take an outcome. Never blocks."""
        self._channel.put(outcome)

    def extend(self, outcomes: Sequence[Outcome]) -> None:
        """Take outcomes, in their order. Never blocks."""
        self._channel.extend(outcomes)

    def checks(self) -> Sequence[Check]:
        """Say whether dead letters have somewhere to go."""
        return [publisher.check() for publisher in self._publishers.values()]

    def __len__(self) -> int:
        """Return the number of outcomes that wait."""
        return len(self._channel)

    def close(self, timeout: float) -> None:
        """Settle what was put, and end."""
        for publisher in self._publishers.values():
            publisher.close(timeout)
        self._channel.close()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._loop()
        except Stopped:
            pass  # what was held has moved no position
        except BaseException as error:  # noqa: BLE001 - whatever ended settle ends the process
            self._fail("settle", error)
        finally:
            self._pulse.end("settle")

    def _loop(self) -> None:
        while True:
            self._beat()
            batch = self._channel.take(BATCH, LINGER, 1.0, more=self._more)
            if batch is None:
                return
            if batch:
                self.meter.enter(State.BUSY)
                decided = [self._decide(outcome) for outcome in batch]
                mine = [outcome for outcome in decided if not self._published(outcome)]
                if mine:
                    self._settle(mine)
                self.meter.enter(State.IDLE)

    def _more(self) -> bool:
        """Return whether more outcomes can be expected: a document that is alone does not wait for company."""
        return sum(lanes.events for lanes in self._lanes.values()) > len(self._channel)

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        settled = self._breakers.hold(lambda: self._store.settle(outcomes, self._fingerprints), beat=self._beat)
        self._tally.settle(outcomes, superseded=settled.superseded)
        for outcome in outcomes:
            _report(outcome)
        known = [*outcomes, *map(_superseded, settled.replaced)]
        for name, source in self._sources.items():
            mine = [outcome for outcome in known if outcome.event.source == name]
            if mine:
                source.settled(mine)
        self._on_settled(outcomes)
        for collection, events in groupby(outcomes, lambda outcome: outcome.event.key.collection):
            self._lanes[collection].release([outcome.event for outcome in events])

    def _decide(self, outcome: Outcome) -> Outcome:
        """Return the outcome with the time of its next try, or as a dead letter if there is none.

        What failed under a lease that has ended is for the next owner to try again, and to judge.
        """
        lease = outcome.event.lease
        failed = outcome.verdict in {Verdict.RETRYING, Verdict.DEAD_LETTERED}
        if failed and lease is not None and lease.ended and not lease.lent:
            return replace(outcome, verdict=Verdict.RETURNED)
        if outcome.verdict is Verdict.RETURNED and lease is not None and lease.lent:
            # Nothing would bring it again but the retry queue. It was no try: whoever held its partition is gone, or
            # the brokers are, for however long.
            return replace(outcome, verdict=Verdict.RETRYING, failure=_GIVEN_BACK, wait=GIVEN_BACK_SECONDS, tried=False)
        if outcome.verdict is not Verdict.RETRYING:
            return outcome
        wait = self._policy.next(outcome.event.attempt, outcome.wait)
        if wait is None:
            return replace(outcome, verdict=Verdict.DEAD_LETTERED)
        return replace(outcome, wait=wait)

    def _published(self, outcome: Outcome) -> bool:
        """Return whether an outcome is a dead letter that has to go to a topic first; it comes back from there."""
        publisher = self._publishers.get(outcome.event.source)
        if outcome.verdict is not Verdict.DEAD_LETTERED or outcome.published or publisher is None:
            return False
        if outcome.event.record is None:
            return False  # it is gone from its topic: there is nothing to publish, and the state says what was
        publisher.put(outcome)
        return True

    def _beat(self) -> None:
        self._pulse.beat("settle")


def _superseded(parked: Parked) -> Outcome:
    """Return the end of a parked event that another one took the place of, for its source."""
    event = Event(parked.key, parked.op, parked.source, parked.position, payload=None, version=parked.version)
    return Outcome(event, Verdict.SUPERSEDED)


def _report(outcome: Outcome) -> None:
    loud = outcome.verdict in {Verdict.DEAD_LETTERED, Verdict.RETRYING}
    if not loud and not _plain.isEnabledFor(logging.DEBUG):
        return  # a line that nobody wants costs as much as a small document
    said = {
        "document_id": outcome.event.key.document_id,
        "collection": outcome.event.key.collection,
        "source": outcome.event.source,
        "attempt": outcome.event.attempt,
    }
    if outcome.failure is not None:
        said |= {
            "stage": outcome.failure.stage.value,
            "error": outcome.failure.error,
            "message": outcome.failure.message,
        }
    if outcome.verdict is Verdict.DEAD_LETTERED:
        log.warning("dead-lettered", **said)
    elif outcome.verdict is Verdict.RETRYING:
        log.warning("will be tried again", **said, wait_seconds=round(outcome.wait or 0.0, 1))
    else:
        log.debug(outcome.verdict.value, **said, embedded=outcome.embedded, reused=outcome.reused)
