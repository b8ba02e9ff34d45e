"""How fast records become documents: the source and the whole pipeline beside bare consumers, on one topic in one run.

    python tests/benchmarks/kafka_throughput.py --records 50000 --out benchmarks-out/kafka.json

Five ways read the same records of 1 KiB, in turn, several times over: librdkafka and kafka-python as they are; our
source into an intake that takes everything and counts; the stages without a source, events made before; and the whole:
source, lanes, stages, the real ledger on disk, settle, commits. The model gives every text the same vector and the sink
only counts, so that what is left is ours. A rate is a median over the rounds; "a core" means a second of processor time
of this process, the client's threads included, so that a machine that does other things too does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import Consumer
from kafka import KafkaConsumer, TopicPartition
from tests.fixtures.brokers import Tansu, create_topic, produce

from ingestd.chunkers.whole import Config as Whole
from ingestd.cli.run import calm_interpreter
from ingestd.embedders.hashing import Config as Hashing
from ingestd.engine.breaker import Breakers
from ingestd.engine.channel import Channel
from ingestd.engine.halts import HaltRule, Halts
from ingestd.engine.lanes import Lanes
from ingestd.engine.pipeline import Pipeline
from ingestd.engine.pulse import Pulse
from ingestd.engine.retry import RetryPolicy
from ingestd.engine.runner import Faults, Parts, Runner
from ingestd.engine.settle import Settle
from ingestd.engine.sources import RetryQueue, SourceThread
from ingestd.engine.tally import Tally
from ingestd.extractors._isolated import IsolatedExtraction
from ingestd.metrics import Metrics
from ingestd.model import Event, Fingerprints, ModelInfo, Outcome, VectorKind
from ingestd.ops import log
from ingestd.parts import SystemClock
from ingestd.ports import always
from ingestd.sources._kafka.events import event_of
from ingestd.sources._kafka.tenure import Loan
from ingestd.sources.kafka import Config, KafkaSource
from ingestd.stages.chunk import Chunk
from ingestd.stages.embed import Embed, VectorField
from ingestd.stages.extract import Extract
from ingestd.stages.recall import Recall
from ingestd.stages.write import Write
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.model import ChunkId, Held, Hit, Role, Row, StoredRow, Tombstone, Vectors, Verdict
    from ingestd.ports import Clock

COLLECTION = "articles"
TOPIC = "documents"
PARTITIONS = 8
BYTES = 1024
IN_FLIGHT = 4_000
NAMES = {
    "confluent-kafka": "confluent-kafka (librdkafka), poll alone",
    "kafka-python": "kafka-python, poll alone",
    "source": "our source: poll, decode, hand in, commit",
    "pipeline": "our stages, ledger and settle, without a source",
    "whole": "all of it: from the topic to the sink",
}


@dataclass(frozen=True, slots=True)
class Round:
    """One way through all records."""

    records: int
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.wall

    @property
    def per_core(self) -> float:
        """Records a second of processor time."""
        return self.records / self.cpu


class CountingSink:
    """A collection that takes everything and remembers nothing but how much it was (``ports.Sink``)."""

    collection = COLLECTION

    def __init__(self) -> None:
        self.rows = 0

    def upsert(self, rows: Sequence[Row], *, allow: Callable[[], None] = always) -> None:
        """Count."""
        allow()
        self.rows += len(rows)

    def rewrite(self, rows: Sequence[Row], *, allow: Callable[[], None] = always) -> frozenset[ChunkId]:
        """Take them."""
        del rows
        allow()
        return frozenset()

    def delete(self, ids: Sequence[ChunkId], *, allow: Callable[[], None] = always) -> None:
        """Take them."""
        allow()

    def existing(self, ids: Sequence[ChunkId]) -> frozenset[ChunkId]:
        """Say that all are there."""
        return frozenset(ids)

    def stored(self) -> Iterator[StoredRow]:
        """Yield nothing."""
        return iter(())

    def held(self, documents: Sequence[str], *, closely: bool = False) -> Mapping[str, Held]:
        """Know of none."""
        del documents
        return {}

    def bury(self, tombstones: Sequence[Tombstone]) -> None:
        """Take them."""

    def count(self) -> int:
        """Return how many were written."""
        return self.rows

    def identity(self) -> str | None:
        """Return the one there is."""
        return "counting"

    def probe(self) -> None:
        """Answer."""

    def validate(self, row: Row) -> None:
        """Take it."""

    def search(self, field: str, vectors: Vectors, limit: int) -> Sequence[Sequence[Hit]]:
        """Find nothing."""
        del field, limit
        return [[] for _ in range(len(vectors))]


class FreeEmbedder:
    """A model that costs nothing: the same vector for every text (``ports.Embedder``)."""

    name = "free"

    def info(self) -> ModelInfo:
        """Return what it is."""
        return ModelInfo(frozenset({VectorKind.DENSE}), 2, "free", "float32", "none")

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return ones."""
        del role, kinds
        return {VectorKind.DENSE: np.ones((len(texts), 2), np.float32)}

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class Scope:
    """What a source may know (``ports.SourceScope``)."""

    clock: Clock
    seen: Any = None
    max_bytes: int = 32 * 1024 * 1024
    shared: bool = False

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the one there is."""
        del verdict
        return "f"


class TakesAll:
    """An intake that settles what it is handed at once, and counts."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source
        self.count = 0

    def submit(self, event: Event) -> None:
        """Take one."""
        self.offer([event])

    def offer(self, events: Sequence[Event]) -> int:
        """Take all."""
        self.count += len(events)
        self._source.settled([Outcome(event, _written()) for event in events])
        return len(events)

    def skip(self, verdict: Verdict, count: int = 1) -> None:
        """Take note of nothing."""

    def withdraw(self, tenures: Collection[str] | None = None) -> None:
        """Have nothing."""

    def hasten(self, positions: Collection[str]) -> None:
        """Have nothing."""

    def wait(self, seconds: float) -> None:
        """Wait."""
        if seconds:
            time.sleep(seconds)

    def drained(self, seconds: float) -> bool:
        """Be done."""
        del seconds
        return True


def _written() -> Verdict:
    from ingestd.model import Verdict  # noqa: PLC0415 - a type above, a value here

    return Verdict.WRITTEN


def timed(work: Callable[[], int]) -> Round:
    """Do something, and return how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    records = work()
    return Round(records, time.perf_counter() - wall, time.process_time() - cpu)


def bare_kafka_python(bootstrap: str, records: int) -> Round:
    """Poll all records with kafka-python, group or not the same."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(TOPIC, number) for number in range(PARTITIONS)])

    def work() -> int:
        count = 0
        while count < records:
            count += sum(len(some) for some in consumer.poll(timeout_ms=500).values())
        return count

    try:
        return timed(work)
    finally:
        consumer.close()


def bare_confluent(bootstrap: str, records: int) -> Round:
    """Poll all records with librdkafka."""
    options = {"bootstrap.servers": bootstrap, "group.id": f"bare-{time.time_ns()}", "auto.offset.reset": "earliest"}
    consumer = Consumer(options)
    consumer.subscribe([TOPIC])
    first: list[Any] = []
    while not first:  # the group's join is no work
        first = consumer.consume(1, timeout=1)

    def work() -> int:
        count = 1
        while count < records:
            count += len(consumer.consume(500, timeout=1))
        return count

    try:
        return timed(work)
    finally:
        consumer.close()


def source_of(bootstrap: str, **options: Any) -> KafkaSource:
    """Return our source, as a new group."""
    config = Config(
        bootstrap_servers=(bootstrap,),
        topics=(TOPIC,),
        group_id=f"bench-{time.time_ns()}",
        collection=COLLECTION,
        consumer={"session_timeout_ms": 6000, **options},
    )
    return config.build("cms", Scope(SystemClock()))


def source_alone(bootstrap: str, records: int) -> Round:
    """Read all records through our source, into an intake that only counts."""
    source = source_of(bootstrap)
    intake = TakesAll(source)
    thread = threading.Thread(target=lambda: source.run(intake, once=True), daemon=True)
    thread.start()
    while not intake.count:  # the group's join is no work
        time.sleep(0.005)
    began = intake.count

    def work() -> int:
        while intake.count < records:
            time.sleep(0.005)
        return intake.count - began

    try:
        return timed(work)
    finally:
        thread.join(30)


class Bench:
    """A daemon of the real parts over a sink that counts.

    Args:
        folder: For its state.
        source: Where events come from.
    """

    def __init__(self, folder: Path, source: Any) -> None:
        clock, metrics = SystemClock(), Metrics("bench")
        self.store = SqliteStore.open(folder / "state", clock=clock)
        self.faults, self.sink, stop = Faults(), CountingSink(), threading.Event()
        pulse, breakers = Pulse(clock), Breakers()
        self.tally = Tally(metrics, parked=0)
        events: Channel[Event] = Channel("recall", None)
        self.lanes = Lanes(events, max_events=IN_FLIGHT, max_bytes=256 * 1024 * 1024)
        lanes, sources = {COLLECTION: self.lanes}, {"cms": source}
        retries = RetryQueue(
            self.store,
            sources=sources,
            lanes=lanes,
            tally=self.tally,
            pulse=pulse,
            clock=clock,
            stop=stop,
            fail=self.faults.fail,
        )
        settle = Settle(
            self.store,
            breakers=breakers,
            policy=RetryPolicy(),
            tally=self.tally,
            fingerprints={COLLECTION: Fingerprints("p", "c")},
            lanes=lanes,
            sources=sources,
            pulse=pulse,
            fail=self.faults.fail,
            on_settled=retries.settled,
        )
        patience = breakers.patience(COLLECTION, lambda: None)
        extraction = IsolatedExtraction(
            [], workers=1, memory_bytes=1 << 30, cpu_seconds=30, wall_seconds=60, max_bytes=1 << 25, max_text=20_000_000
        )
        chunker = Whole().build(Hashing().tokenizer())
        field = VectorField("dense", VectorKind.DENSE, FreeEmbedder(), 2)
        pipeline = Pipeline(
            COLLECTION,
            sink=self.sink,
            identity="counting",
            lanes=self.lanes,
            events=events,
            recall=Recall(
                self.store,
                self.sink,
                fingerprint="p",
                clock=clock,
                shared=True,
                shared_ids=False,
                patience=patience,
            ),
            extract=Extract(extraction, fingerprint="p", patience=patience, hurried=True),
            extract_long=Extract(extraction, fingerprint="p", patience=patience),
            readers=1,
            chunk=Chunk(chunker, fields=[], validate=self.sink.validate, max_chunks=100),
            embed=Embed([field], window=512, patience=patience),
            window=512,
            linger=0.01,
            write=Write(self.sink, self.store, fingerprint="p", shared=True, patience=patience),
            silence=dict.fromkeys(("recall", "extract", "chunk", "embed", "write"), 60.0),
            settle=settle.extend,
            pulse=pulse,
            fail=self.faults.fail,
        )
        thread = SourceThread(
            source, self.lanes, self.tally, pulse, stop, retries=retries, once=True, fail=self.faults.fail
        )
        parts = Parts(
            pulse=pulse,
            breakers=breakers,
            halts=Halts((), HaltRule()),
            faults=self.faults,
            tally=self.tally,
            settle=settle,
            pipelines={COLLECTION: pipeline},
            sources=sources,
            threads={"cms": thread},
            retries=retries,
            heal=lambda: None,
            stop=stop,
        )
        self.runner = Runner(parts, drain_seconds=30)

    def run(self) -> Any:
        """Work off what is there, and return the totals."""
        thread = threading.Thread(target=self._measure, daemon=True)
        self.round: Round | None = None
        self.runner.start()
        thread.start()
        self.runner.run(once=True, timeout=600, tick=lambda: None)
        self.store.close(clean=True)
        return self.tally.totals()

    def _measure(self) -> None:
        """Time from the first document to the last: joining a group is no work."""
        while not (began := self.tally.totals().written):
            time.sleep(0.002)

        def work() -> int:
            last, still = began, 0
            while still < 100:
                time.sleep(0.002)
                now = self.tally.totals().written
                still = 0 if now > last else still + 1
                last = now
                if self.done is not None and now >= self.done:
                    break
            return last - began

        self.round = timed(work)

    done: int | None = None
    """How many documents there are."""


class Ready:
    """A source whose events are made already (``ports.Source``)."""

    name, collection = "cms", COLLECTION

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.count = 0

    def run(self, intake: Any, *, once: bool) -> None:
        """Hand all in."""
        del once
        at = 0
        while at < len(self.events):
            taken = intake.offer(self.events[at : at + 1000])
            at += taken
            intake.wait(0 if taken else 0.005)
        while self.count < len(self.events):
            intake.wait(0.005)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Count."""
        self.count += len(outcomes)

    def revive(self, parked: Any) -> None:
        """Have nothing."""

    def checks(self) -> Sequence[Any]:
        """Have none."""
        return ()

    def letter_topic(self) -> None:
        """Have none."""


def whole(bootstrap: str, records: int, folder: Path) -> Round:
    """From the topic to the sink."""
    bench = Bench(folder, source_of(bootstrap))
    bench.done = records
    totals = bench.run()
    if totals.written != records or bench.round is None:
        raise RuntimeError(f"of {records} records this came: {totals}")
    return bench.round


def pipeline_alone(records: Sequence[Any], folder: Path) -> Round:
    """From events to the sink."""
    source = source_of("127.0.0.1:1")
    events = [
        event_of(record, source._decoder, source="cms", collection=COLLECTION, domain="d", lease=Loan())
        for record in records
    ]
    bench = Bench(folder, Ready(events))
    bench.done = len(events)
    totals = bench.run()
    if totals.written != len(events) or bench.round is None:
        raise RuntimeError(f"of {len(events)} events this came: {totals}")
    return bench.round


def values(records: int) -> list[tuple[bytes, bytes]]:
    """Return keys and values of about 1 KiB each."""
    word = "the quick brown fox jumps over the lazy dog and goes on "
    text = (word * (BYTES // len(word) + 1))[: BYTES - 60]
    return [
        (f"doc-{n}".encode(), json.dumps({"id": f"doc-{n}", "text": f"{n} {text}", "metadata": {"n": n}}).encode())
        for n in range(records)
    ]


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=None, help="One of the ways.")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    found: dict[str, list[Round]] = {}
    calm_interpreter()
    log.configure("warning", json=True)  # as a daemon has them: what is left out costs nothing
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = Tansu(folder / "tansu")
        broker.start()
        try:
            create_topic(broker.bootstrap, TOPIC, PARTITIONS)
            made = values(arguments.records)
            produce(broker.bootstrap, TOPIC, [(key, value, [], None) for key, value in made])
            from ingestd.model import Record  # noqa: PLC0415 - a type elsewhere

            records = [Record(TOPIC, n % 8, n // 8, -1, key, value) for n, (key, value) in enumerate(made)]
            ways: dict[str, Callable[[int], Round]] = {
                "confluent-kafka": lambda _n: bare_confluent(broker.bootstrap, arguments.records),
                "kafka-python": lambda _n: bare_kafka_python(broker.bootstrap, arguments.records),
                "source": lambda _n: source_alone(broker.bootstrap, arguments.records),
                "pipeline": lambda n: pipeline_alone(records, folder / f"pipeline-{n}"),
                "whole": lambda n: whole(broker.bootstrap, arguments.records, folder / f"whole-{n}"),
            }
            for number in range(arguments.rounds):
                for way, measure in ways.items():
                    if arguments.only in {None, way}:
                        found.setdefault(way, []).append(measure(number))
        finally:
            broker.stop()
    show(found, arguments.out)


def show(found: dict[str, list[Round]], out: Path | None) -> None:
    """Print the medians, and write all rounds."""
    base = statistics.median(one.per_core for one in found.get("kafka-python", next(iter(found.values()))))
    print(f"{'':50} {'records/s':>10} {'/s and core':>12} {'of the poll loop':>17}")
    table = {}
    for way, rounds in found.items():
        rate = statistics.median(one.rate for one in rounds)
        core = statistics.median(one.per_core for one in rounds)
        print(f"{NAMES[way]:50} {rate:10,.0f} {core:12,.0f} {core / base:17.2f}")
        every = [round(one.per_core) for one in rounds]
        table[way] = {"records_per_second": round(rate), "per_core": round(core), "rounds_per_core": every}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
