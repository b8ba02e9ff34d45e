"""The accounts of a run: every accepted event is in exactly one column.

An event that is returned (its partition is another member's now) counts as never accepted.

``accepted = written + deleted + unchanged + superseded + dead_lettered + retrying + in_flight`` holds at every moment:
each method moves events from one column to another under one lock.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from ingestd.model import Totals, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.metrics import Metrics
    from ingestd.model import Outcome


class Tally:
    """Counts events by what became of them. Safe to call from any thread.

    Args:
        metrics: Gets the same counts, by source.
        parked: Events that an earlier run left in the retry queue: accepted, and retrying.
    """

    def __init__(self, metrics: Metrics, parked: int) -> None:
        self._metrics = metrics
        self._verdicts: Counter[Verdict] = Counter({Verdict.RETRYING: parked})
        self._in_flight = 0
        self._embedded = 0
        self._reused = 0
        self._lock = threading.Lock()

    def accept(self, source: str, count: int = 1) -> None:
        """Count new events."""
        with self._lock:
            self._in_flight += count
        self._metrics.accepted(source, count)

    def revive(self) -> None:
        """Count an event that comes back out of the retry queue."""
        with self._lock:
            self._verdicts[Verdict.RETRYING] -= 1
            self._in_flight += 1

    def requeue(self, source: str, count: int) -> None:
        """Count dead letters that an operator put into the retry queue: they are events again."""
        with self._lock:
            self._verdicts[Verdict.RETRYING] += count
        self._metrics.accepted(source, count)

    def skip(self, source: str, verdict: Verdict, count: int) -> None:
        """Count documents that were looked at and are as they were settled."""
        with self._lock:
            self._verdicts[verdict] += count
        self._metrics.accepted(source, count)
        self._metrics.settled(source, verdict, count)

    def withdraw(self, source: str, count: int) -> None:
        """Count parked events that another member will do: they are none of ours any more."""
        with self._lock:
            self._verdicts[Verdict.RETRYING] -= count
        self._metrics.settled(source, Verdict.RETURNED, count)

    def settle(self, outcomes: Sequence[Outcome], *, superseded: int) -> None:
        """Count outcomes that are durable now.

        Args:
            outcomes: The outcomes.
            superseded: Parked events that they took the place of.
        """
        with self._lock:
            self._verdicts[Verdict.RETRYING] -= superseded
            self._verdicts[Verdict.SUPERSEDED] += superseded
            for outcome in outcomes:
                self._in_flight -= 1
                if outcome.verdict is not Verdict.RETURNED:
                    self._verdicts[outcome.verdict] += 1
                self._embedded += outcome.embedded
                self._reused += outcome.reused
        self._export(outcomes)

    def _export(self, outcomes: Sequence[Outcome]) -> None:
        """Bring the metrics up to date: summed up first, since each counter costs as much as a small document."""
        metrics = self._metrics
        settled: Counter[tuple[str, str]] = Counter()
        embedded: Counter[str] = Counter()
        reused: Counter[str] = Counter()
        for outcome in outcomes:
            collection = outcome.event.key.collection
            settled[outcome.event.source, outcome.verdict.value] += 1
            embedded[collection] += outcome.embedded
            reused[collection] += outcome.reused
            if outcome.verdict is Verdict.WRITTEN and not outcome.embedded + outcome.reused:
                metrics.stages.empty_documents.labels(collection=collection).inc()
            if outcome.verdict is Verdict.DEAD_LETTERED and outcome.failure is not None:
                failure = outcome.failure
                metrics.events.dead_letters.labels(stage=failure.stage.value, error=failure.error).inc()
        for (source, verdict), count in settled.items():
            metrics.settled(source, verdict, count)
        for collection in embedded:
            metrics.embedding.chunks_embedded.labels(collection=collection).inc(embedded[collection])
            metrics.embedding.chunks_reused.labels(collection=collection).inc(reused[collection])

    def totals(self) -> Totals:
        """Return the accounts as they are now."""
        with self._lock:
            counts = {verdict.value: self._verdicts[verdict] for verdict in Verdict if verdict is not Verdict.RETURNED}
            return Totals(
                accepted=sum(counts.values()) + self._in_flight,
                in_flight=self._in_flight,
                chunks_embedded=self._embedded,
                chunks_reused=self._reused,
                **counts,
            )
