"""The Kafka source on a real broker, with the engine's own parts around it and one scripted stage in their middle.

Lanes, settle, retry queue, accounts and the SQLite state are those of the daemon, and so is ``recall``, which says what
is superseded; only what would extract, embed and write is played by the test: it says how each event ends, or keeps it
until it says so. So a test sees what moves an offset, without Milvus and without a model.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from kafka import KafkaConsumer
from kafka.structs import TopicPartition
from tests.fakes import MemorySink
from tests.fixtures.brokers import create_topic, produce
from tests.fixtures.daemon import wait_for

from ingestd.engine.breaker import Backoff, Breakers
from ingestd.engine.channel import Channel
from ingestd.engine.lanes import Lanes
from ingestd.engine.pulse import Pulse
from ingestd.engine.retry import RetryPolicy
from ingestd.engine.settle import Settle
from ingestd.engine.sources import RetryQueue, SourceThread
from ingestd.engine.tally import Tally
from ingestd.metrics import Metrics
from ingestd.model import Entry, Event, Failure, Fingerprints, Op, Outcome, Stage, Verdict, Version
from ingestd.parts import SystemClock
from ingestd.sources.kafka import Config, KafkaSource
from ingestd.stages.recall import Recall
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from tests.fixtures.brokers import Noida, Position, Record, Tansu

    from ingestd import ports

COLLECTION, SOURCE = "c", "s"
SESSION_MS = 6000
"""The least that brokers take by default. Tansu lets a group wait for half of it."""
SECONDS = 25.0
ENDS = ("written", "deleted", "unchanged", "superseded", "dead_lettered", "retrying", "in_flight")


def value(document: str, **more: object) -> bytes:
    """Return a record's value: a document of our own form."""
    return json.dumps({"id": document, "text": f"text of {document}", **more}).encode()


def records(count: int, partition: int | None = None, start: int = 0, **more: object) -> list[Record]:
    """Return records of so many documents."""
    return [(f"d{n}".encode(), value(f"d{n}", **more), [], partition) for n in range(start, start + count)]


def settings(bootstrap: str, topic: str, group: str, **more: Any) -> dict[str, Any]:
    """Return a source's settings; ``consumer`` is added to, and topics are left out where a pattern is given."""
    consumer = {"session_timeout_ms": SESSION_MS, **more.pop("consumer", {})}
    topics = {} if "topic_pattern" in more else {"topics": [topic]}
    return {
        "bootstrap_servers": [bootstrap],
        "collection": COLLECTION,
        "group_id": group,
        "commit_seconds": 0.1,
        "consumer": consumer,
        **topics,
        **more,
    }


@dataclass
class Scope:
    """What a source may know."""

    seen: ports.SeenStore
    clock: ports.Clock = field(default_factory=SystemClock)
    max_bytes: int = 1 << 24
    shared: bool = False

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the one fingerprint."""
        del verdict
        return "f"


def written(_event: Event) -> Verdict | None:
    """End every event well."""
    return Verdict.WRITTEN


def kept(_event: Event) -> Verdict | None:
    """Keep every event."""
    return None


class Engine:
    """A source at work.

    Args:
        config: The source's.
        folder: For the state.
        script: How events end.
        once: Whether it ends at the present ends.
        most: The most events in flight.
        keep_bytes: The largest original that a dead letter in the state keeps.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        script: Callable[[Event], Verdict | None] = written,
        once: bool = False,
        most: int = 100_000,
        keep_bytes: int = 1 << 20,
    ) -> None:
        self.script = script
        self.events: list[Event] = []
        """All that came to the stage, retries too."""
        self.kept: list[Event] = []
        self.outcomes: list[Outcome] = []
        self.fault: BaseException | None = None
        self.clock = SystemClock()
        self.metrics = Metrics("0")
        self.store = SqliteStore.open(folder, clock=self.clock, keep_bytes=keep_bytes)
        self.store.begin()
        self.source: KafkaSource = config.build(SOURCE, Scope(self.store))
        self.stop = threading.Event()
        self.pulse = Pulse(self.clock)
        self.breakers = Breakers(backoff=Backoff(0.05, 0.2, 0.05))
        self._channel: Channel[Event] = Channel("stage", None)
        self.lanes = Lanes(
            self._channel, max_events=most, max_bytes=1 << 30, is_open=lambda: self.breakers.passes(COLLECTION)
        )
        owned = {(SOURCE, COLLECTION)}
        self.tally = Tally(self.metrics, parked=self.store.waiting(owned))
        sources: dict[str, ports.Source] = {SOURCE: self.source}
        lanes = {COLLECTION: self.lanes}
        self.retries = RetryQueue(
            self.store,
            sources=sources,
            lanes=lanes,
            tally=self.tally,
            pulse=self.pulse,
            clock=self.clock,
            stop=self.stop,
            fail=self._fail,
        )
        self._fingerprints = {COLLECTION: Fingerprints("f", "f")}
        self.settle = Settle(
            self.store,
            breakers=self.breakers,
            policy=RetryPolicy(1000, 0.3, 0.3),
            tally=self.tally,
            fingerprints=self._fingerprints,
            lanes=lanes,
            sources=sources,
            pulse=self.pulse,
            fail=self._fail,
            on_settled=self._settled,
        )
        self._thread = SourceThread(
            self.source, self.lanes, self.tally, self.pulse, self.stop, retries=self.retries, once=once, fail=self._fail
        )
        self._recall = Recall(
            self.store,
            MemorySink(COLLECTION),
            fingerprint="f",
            clock=self.clock,
            shared=False,
            shared_ids=False,
            patience=self.breakers.patience(COLLECTION, beat=lambda: None),
        )
        self._stage = threading.Thread(target=self._work, name="stage", daemon=True)

    def start(self) -> Engine:
        """Start everything."""
        self.settle.start()
        self._stage.start()
        self.retries.start()
        self._thread.start()
        return self

    def join(self, seconds: float = SECONDS) -> None:
        """Wait until a source with ``once`` has ended."""
        self.until(lambda: not self._thread.alive, "the source has ended", seconds)

    def close(self, *, drain: float = 0.0) -> None:
        """End it as the runner does: after a drain, or at once."""
        self.stop.set()
        self.lanes.stop()
        self.lanes.wait_idle(drain)
        self.breakers.stop()
        self._thread.release()
        self._thread.join(SECONDS)
        self.retries.join(SECONDS)
        self._channel.close()
        self._stage.join(SECONDS)
        self.settle.close(SECONDS)
        self.store.close(clean=True)

    def end(self, events: Iterable[Event], verdict: Verdict = Verdict.WRITTEN) -> None:
        """Say how events end that were kept."""
        for event in list(events):
            self.kept.remove(event)
            self.settle.put(self._outcome(event, verdict))

    def until(self, condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        """Return the condition's first true value; a fault of the source fails the test."""

        def look() -> Any:
            found = condition()
            assert found or self.fault is None, f"it failed with {self.fault!r} before this: {what}"
            return found

        return wait_for(look, what, seconds)

    def until_came(self, count: int, seconds: float = SECONDS) -> list[Event]:
        """Wait until so many events came to the stage."""
        self.until(lambda: len(self.events) >= count, f"{count} events came, {len(self.events)} so far", seconds)
        return self.events[:count]

    def until_settled(self, count: int, seconds: float = SECONDS) -> None:
        """Wait until so many events are at an end, as the accounts say, and check that they add up."""

        def settled() -> bool:
            totals = self.totals()
            return totals["accepted"] - totals["in_flight"] - totals["retrying"] >= count

        self.until(settled, f"{count} events are settled", seconds)

    def totals(self) -> dict[str, int]:
        """Return the accounts."""
        totals = self.tally.totals()
        found = {name: int(getattr(totals, name)) for name in ("accepted", *ENDS)}
        assert found["accepted"] == sum(found[name] for name in ENDS), found
        return found

    def documents(self) -> list[str]:
        """Return the documents of the events that came, in their order."""
        return [event.key.document_id for event in self.events]

    def verdicts(self, document: str) -> list[Verdict]:
        """Return how the events of a document ended."""
        return [one.verdict for one in list(self.outcomes) if one.event.key.document_id == document]

    def held(self) -> set[tuple[str, int]]:
        """Return the partitions that are held."""
        return {tuple(view.partition) for view in self.source._member.view.partitions}

    def until_holds(self, count: int, seconds: float = SECONDS) -> set[tuple[str, int]]:
        """Wait until so many partitions are held."""
        self.until(lambda: len(self.held()) == count, f"{count} partitions are held", seconds)
        return self.held()

    def gauge(self, name: str, partition: tuple[str, int]) -> float | None:
        """Return one of the source's metrics of a partition, as it is now."""
        self.source.export(self.metrics.sources)
        labels = {"source": SOURCE, "topic": partition[0], "partition": str(partition[1])}
        return self.metrics.registry.get_sample_value(name, labels)

    def _fail(self, _name: str, error: BaseException) -> None:
        self.fault = error

    def _settled(self, outcomes: Any) -> None:
        self.outcomes.extend(outcomes)
        self.retries.settled(outcomes)

    def _work(self) -> None:
        while (batch := self._channel.take(500, 0.0, 1.0)) is not None:
            for found in self._recall.process(batch) if batch else ():
                event = found.event
                self.events.append(event)
                if isinstance(found, Outcome):
                    self.settle.put(found)
                    continue
                verdict = self.script(event)
                if verdict is None:
                    self.kept.append(event)
                else:
                    self.settle.put(self._outcome(event, verdict))

    def _outcome(self, event: Event, verdict: Verdict) -> Outcome:
        if verdict is Verdict.WRITTEN and event.op is Op.DELETE:
            verdict = Verdict.DELETED
        if verdict in {Verdict.WRITTEN, Verdict.DELETED}:
            if event.lease is not None:
                if not event.lease.enter():
                    return Outcome(event, Verdict.RETURNED)
                event.lease.leave()
            tenure = "" if event.lease is None or event.lease.lent else event.lease.id
            deleted = verdict is Verdict.DELETED
            version = event.version or Version(0, "")
            entry = Entry(event.key, event.source, version, "f", "", deleted=deleted, tenure=tenure)
            return Outcome(event, verdict, entry=entry)
        content = None if event.payload is None else event.payload.at_hand
        return Outcome(event, verdict, content=content, failure=Failure(Stage.WRITE, "ScriptError", "as the test said"))


class Rig:
    """A topic and a group of a test's own on a broker, and sources that read it.

    Args:
        bootstrap: The broker's address.
        folder: For states.
    """

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap = bootstrap
        self.topic = f"t-{uuid.uuid4().hex[:12]}"
        self.group = f"g-{uuid.uuid4().hex[:12]}"
        self.folder = folder
        self._numbers = itertools.count()

    def make(self, partitions: int = 1, topic: str | None = None) -> None:
        """Create the topic."""
        create_topic(self.bootstrap, topic or self.topic, partitions)

    def produce(self, *found: Record, topic: str | None = None, **options: Any) -> list[Position]:
        """Produce records in batches."""
        return produce(self.bootstrap, topic or self.topic, found, **options)

    def config(self, **more: Any) -> Config:
        """Return a source's configuration."""
        return Config.model_validate(settings(self.bootstrap, self.topic, self.group, **more))

    @contextmanager
    def running(
        self,
        *,
        script: Callable[[Event], Verdict | None] = written,
        once: bool = False,
        most: int = 100_000,
        state: str | None = None,
        drain: float = 0.0,
        keep_bytes: int = 1 << 20,
        **more: Any,
    ) -> Iterator[Engine]:
        """Run a source; ``state`` names a state that others had before, ``more`` are settings of the source."""
        folder = self.folder / (state or f"state{next(self._numbers)}")
        engine = Engine(self.config(**more), folder, script=script, once=once, most=most, keep_bytes=keep_bytes)
        with ExitStack() as stack:
            stack.callback(engine.close, drain=drain)
            yield engine.start()
        assert engine.fault is None, repr(engine.fault)

    def once(self, **more: Any) -> Engine:
        """Run a source to the present ends; return its engine, which has ended."""
        with self.running(once=True, **more) as engine:
            engine.join()
        return engine

    def committed(self, partition: int = 0, topic: str | None = None) -> int | None:
        """Return what the group has committed, as the broker says."""
        return committed(self.bootstrap, self.group, topic or self.topic, partition)

    def until_committed(self, offset: int, partition: int = 0, seconds: float = SECONDS) -> None:
        """Wait until the group has committed an offset."""
        wait_for(lambda: self.committed(partition) == offset, f"{offset} is committed", seconds)


def committed(bootstrap: str, group: str, topic: str, partition: int) -> int | None:
    """Return what a group has committed."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    try:
        found: int | None = consumer.committed(TopicPartition(topic, partition), timeout_ms=10_000)
    finally:
        consumer.close(autocommit=False)
    return found


def offsets(engine: Engine) -> Mapping[int, list[int]]:
    """Return the offsets that came, by partition."""
    found: dict[int, list[int]] = {}
    for event in engine.events:
        assert event.record is not None
        found.setdefault(event.record.partition, []).append(event.record.offset)
    return found


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Commands that are called in place set up logging, which is the whole process's."""
    root, said = logging.getLogger(), structlog.get_config()
    level, handlers = root.level, root.handlers[:]
    yield
    structlog.configure(**said)
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def on_tansu(tansu: Tansu, tmp_path: Path) -> Rig:
    """A topic and a group on Tansu."""
    return Rig(tansu.bootstrap, tmp_path)


@pytest.fixture
def on_noida(noida: Noida, tmp_path: Path) -> Rig:
    """A topic and a group on noida-db."""
    return Rig(noida.bootstrap, tmp_path)
