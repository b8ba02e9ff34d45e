"""The composition root: from settings to a daemon, top to bottom. Read this first.

::

    sources ──▶ lanes ──▶ extract ──▶ chunk ──▶ embed ──▶ write ──▶ settle
                  ▲                                                   │ position done
                  └────────── retry queue ◀── worth another try ──────┤
                                              dead letters ◀──────────┘

``daemon`` opens the state, Milvus and the models, makes each collection what the configuration wants, brings ledger
and collection together, and joins sources, stages and settle. Only this module knows them all.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from ingestd import __version__
from ingestd.engine.breaker import Breakers
from ingestd.engine.channel import Channel
from ingestd.engine.halts import HaltRule, Halts
from ingestd.engine.health import Health
from ingestd.engine.lanes import Lanes
from ingestd.engine.pipeline import Pipeline
from ingestd.engine.pulse import Pulse
from ingestd.engine.reconcile import Reconciled, bind_anew, reconcile
from ingestd.engine.retry import RetryPolicy
from ingestd.engine.runner import Faults, Parts, Runner
from ingestd.engine.settle import Settle
from ingestd.engine.sources import RetryQueue, SourceThread
from ingestd.engine.tally import Tally
from ingestd.errors import ConfigError, FatalError, IngestError
from ingestd.metrics import Metrics
from ingestd.model import Check, Event, Fingerprints, Role, Verdict
from ingestd.ops.start import Start
from ingestd.parts import (
    SystemClock,
    build_embedders,
    device_pool,
    extraction_of,
    fingerprints_of,
    is_shared,
    keyed,
    kind_of,
    linger_of,
    measured,
    open_store,
    own_milvus,
    relies_on_ledger,
    schema_of,
    strangers,
    tokenizer_of,
    turn_of,
    vector_cache,
    window_of,
)
from ingestd.sinks.milvus import MilvusSink
from ingestd.sources._values.uris import LONGEST_FETCH
from ingestd.stages.chunk import Chunk
from ingestd.stages.embed import PROBE, Embed, VectorField
from ingestd.stages.extract import Extract
from ingestd.stages.recall import Recall
from ingestd.stages.write import Write
from ingestd.store.spending import Spending

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ingestd.config import Settings
    from ingestd.devices.pool import Pool
    from ingestd.extractors._isolated import IsolatedExtraction
    from ingestd.milvus.client import Connection
    from ingestd.model import Json, ModelInfo, Outcome
    from ingestd.ports import Chunker, Clock, Embedder, Patience, SeenStore, Source, VectorCache
    from ingestd.store.runs import Unclean
    from ingestd.store.sqlite import SqliteStore

MILVUS, STATE = "milvus", "state"
DAY = 86_400
SWEEP_SECONDS = 21_600.0
"""Between two looks for old tombstones."""
FIRST_STEP = "opening the state"
WORKER_START = 90.0
"""Seconds that extraction workers may take to start, on a machine that is busy."""
LONGEST_CHUNKING = 300.0
"""Seconds for the longest text: 20 million characters without a full stop take two minutes on a busy core."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon, put together and not yet started."""

    runner: Runner
    health: Health
    metrics: Metrics
    store: SqliteStore
    clock: Clock
    tally: Tally
    pulse: Pulse
    faults: Faults
    embedders: Mapping[str, Embedder]
    pipelines: Mapping[str, Pipeline]
    sources: Mapping[str, Source]
    shared: frozenset[str]
    """The collections that other members write too."""
    own: frozenset[str]
    """The sources whose documents only this daemon writes, whatever the collection."""
    forgets_after: float
    """Seconds after which other members' deletes are forgotten."""
    refresh: Callable[[], None]
    """Bring the gauges up to date."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What a source may know of the rest (``ports.SourceScope``)."""

    clock: Clock
    seen: SeenStore
    max_bytes: int
    fingerprints: Fingerprints
    shared: bool = False

    def fingerprint(self, verdict: Verdict) -> str:
        """Return what a document that was settled so rests on."""
        dead = verdict is Verdict.DEAD_LETTERED
        return self.fingerprints.configuration if dead else self.fingerprints.processing


@dataclass(frozen=True, slots=True)
class _Ground:
    """What everything stands on."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    pulse: Pulse
    breakers: Breakers
    faults: Faults
    store: SqliteStore
    connection: Connection
    extraction: IsolatedExtraction
    pool: Pool
    embedders: Mapping[str, Embedder]
    infos: Mapping[str, ModelInfo]
    cache: VectorCache | None


@dataclass(frozen=True, slots=True)
class _Processing:
    """How a collection's texts are cut, and what its rows rest on."""

    chunker: Chunker
    fingerprints: Fingerprints


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A collection that is as it should be."""

    sink: MilvusSink
    identity: str
    processing: _Processing

    @property
    def fingerprints(self) -> Fingerprints:
        """What its rows, and its dead letters, rest on."""
        return self.processing.fingerprints


@contextmanager
def daemon(
    settings: Settings,
    *,
    once: bool,
    beginning: Callable[[str, Health, Metrics], None],
    still: Callable[[], None] = lambda: None,
    only: Collection[str] | None = None,
    start: Start | None = None,
) -> Iterator[Daemon]:
    """Put a daemon together, and take it apart at the end.

    Args:
        settings: The configuration.
        once: Whether its sources work off what is there and end.
        beginning: Called with each step of the start: together they can take minutes.
        still: Called every now and then in a step that takes long: holding rows against the ledger, waiting for Milvus.
        only: The sources that run; None: all. Of the others only what waits in the retry queue is brought back.
        start: Says when the start is to be left; what it raises then comes out of here, or what was being done breaks.

    Raises:
        ConfigError: Something is set up wrong; nothing was changed.
    """
    start = start or Start()
    clock, metrics = SystemClock(), Metrics(__version__)
    pulse = Pulse(clock)
    health = Health(pulse, clock, __version__)

    def step(name: str) -> None:
        start.check()
        health.at(name)
        beginning(name, health, metrics)

    def going_on() -> None:
        start.check()
        still()

    def observe(operation: str, seconds: float) -> None:
        metrics.milvus.request_seconds.labels(operation=operation).observe(seconds)

    with ExitStack() as stack:
        step(FIRST_STEP)
        store = open_store(settings, clock)
        faults = Faults()
        stack.callback(lambda: store.close(clean=faults.ended_well))
        unclean = store.begin()
        # Before Milvus and the models: a fault in the configuration is told at once.
        extraction = extraction_of(settings)
        stack.callback(extraction.close)
        start.on_leave(extraction.close)
        processing = {name: _processing(settings, name, extraction) for name in settings.collections}
        step("starting Milvus")
        connection = stack.enter_context(own_milvus(settings, observe, start.on_leave))
        step("loading the models")
        pool = stack.enter_context(device_pool(settings, spread=True))
        start.on_leave(pool.close)
        spending = Spending(settings.state_dir, clock)
        embedders: dict[str, Embedder] = {
            name: measured(settings, embedder, metrics.embedding, spending)
            for name, embedder in build_embedders(settings, pool).items()
        }
        for embedder in embedders.values():
            stack.callback(embedder.close)
            start.on_leave(embedder.close)
        breakers = _breakers(metrics)
        start.on_leave(breakers.stop)
        infos = {}
        for name, embedder in embedders.items():
            # Loads it; one behind an API is waited for, as Milvus is.
            with keyed(name):
                infos[name] = breakers.hold(embedder.info, beat=going_on, calling=going_on)
        ground = _Ground(
            settings,
            clock,
            metrics,
            pulse,
            breakers,
            faults,
            store,
            connection,
            extraction,
            pool,
            embedders,
            infos,
            stack.enter_context(vector_cache(settings)),
        )
        prepared = {}
        for collection in settings.collections:
            step(f"comparing the collection {collection}")
            prepared[collection] = _prepare(ground, collection, processing[collection], going_on, unclean)
        store.verified()
        _name_strangers(settings, store)
        yield _join(ground, prepared, health, once=once, running=settings.sources if only is None else only)


def _processing(settings: Settings, collection: str, extraction: IsolatedExtraction) -> _Processing:
    """Build what cuts a collection's texts."""
    tokenizer = tokenizer_of(settings, collection)
    chunker: Chunker = settings.chunkers[collection].build(tokenizer)
    return _Processing(chunker, fingerprints_of(settings, collection, tokenizer, extraction))


def _prepare(
    ground: _Ground, collection: str, processing: _Processing, still: Callable[[], None], unclean: Unclean | None
) -> _Prepared:
    """Make a collection what it should be, and the ledger true to it."""
    shared = is_shared(ground.settings, collection)
    sink = MilvusSink(ground.connection, schema_of(ground.settings, collection, ground.infos), shared=shared)

    def beat() -> None:
        still()
        ground.pulse.busy("start", "Milvus", _silence(ground.settings)["write"])

    def made_true() -> Reconciled:
        if not relies_on_ledger(ground.settings, collection):
            return bind_anew(ground.store, collection, identity)
        return reconcile(
            ground.store,
            sink,
            identity,
            unclean=unclean is not None,
            rebooted=unclean is not None and unclean.rebooted,
            shared=shared,
            beat=beat,
        )

    identity = ground.breakers.hold(sink.prepare, beat=beat, calling=beat)
    found = ground.breakers.hold(made_true, beat=beat, calling=beat)
    ground.pulse.end("start")
    if found.rebuilt or found.made_anew or ground.store.rebuilt:
        reason = "corrupt" if ground.store.rebuilt else "anew" if found.made_anew else "unbound"
        ground.metrics.state.ledger_rebuilds.labels(collection=collection, reason=reason).inc()
    return _Prepared(sink, identity, processing)


def _join(
    ground: _Ground, prepared: Mapping[str, _Prepared], health: Health, *, once: bool, running: Collection[str]
) -> Daemon:
    """Join sources, lanes, stages and settle."""
    settings, pulse, faults = ground.settings, ground.pulse, ground.faults
    stop = threading.Event()
    sources = {name: _source(ground, prepared, name) for name in settings.sources}
    owned = {(name, source.collection) for name, source in sources.items()}
    tally = Tally(ground.metrics, parked=ground.store.waiting(owned))
    halts = _halts(ground)
    lanes: dict[str, Lanes] = {}
    retries = RetryQueue(
        ground.store,
        sources=sources,
        lanes=lanes,
        tally=tally,
        pulse=pulse,
        clock=ground.clock,
        stop=stop,
        fail=faults.fail,
    )

    def settled(outcomes: Sequence[Outcome]) -> None:
        retries.settled(outcomes)
        halts.note(outcomes)  # before their lanes are released: nothing of a halted source takes their room

    settle = Settle(
        ground.store,
        breakers=ground.breakers,
        policy=RetryPolicy(settings.retries.attempts, settings.retries.first_seconds, settings.retries.most_seconds),
        tally=tally,
        fingerprints={name: collection.fingerprints for name, collection in prepared.items()},
        lanes=lanes,
        sources=sources,
        pulse=pulse,
        fail=faults.fail,
        on_settled=settled,
    )
    pipelines = {name: _pipeline(ground, collection, name, lanes, settle) for name, collection in prepared.items()}
    threads = {
        name: SourceThread(
            source,
            lanes[source.collection],
            tally,
            pulse,
            stop,
            retries=retries,
            once=once,
            fail=faults.fail,
            on_accept=partial(halts.accepted, name),
            is_halted=partial(halts.halted, name),
        )
        for name, source in sources.items()
        if name in running
    }
    for name in sources.keys() - threads.keys():
        retries.withdraw(name, None)  # as it does itself when it begins: what leases allowed, it gets again
    sweeps = {
        name: Sweep(collection.sink, ground.clock, settings.milvus.tombstone_days)
        for name, collection in prepared.items()
        if is_shared(settings, name)
    }
    parts = Parts(
        pulse=pulse,
        breakers=ground.breakers,
        halts=halts,
        faults=faults,
        tally=tally,
        settle=settle,
        pipelines=pipelines,
        sources=sources,
        threads=threads,
        retries=retries,
        heal=lambda: _tend(ground, sweeps),
        stop=stop,
    )
    runner = Runner(parts, drain_seconds=settings.shutdown.drain_seconds)

    def checks() -> Sequence[Check]:
        failing = ground.store.failing
        return [*runner.checks(), *ground.pool.checks(), Check(STATE, failing is None, failing or "writable")]

    def overview() -> Mapping[str, Json]:
        return _overview(ground, sources, pipelines)

    health.know(checks=checks, totals=tally.totals, overview=overview)
    return Daemon(
        runner=runner,
        health=health,
        metrics=ground.metrics,
        store=ground.store,
        clock=ground.clock,
        tally=tally,
        pulse=pulse,
        faults=faults,
        embedders=ground.embedders,
        pipelines=pipelines,
        sources=sources,
        shared=frozenset(name for name in settings.collections if is_shared(settings, name)),
        own=frozenset(name for name, plugin in settings.sources.items() if not getattr(plugin.config, "shared", False)),
        forgets_after=settings.milvus.tombstone_days * DAY,
        refresh=lambda: _refresh(ground, tally, settle, sources, pipelines),
    )


def _source(ground: _Ground, prepared: Mapping[str, _Prepared], name: str) -> Source:
    plugin = ground.settings.sources[name]
    collection = plugin.config.collection  # type: ignore[attr-defined]  # every source has one; config checked it
    scope = Scope(
        ground.clock,
        ground.store,
        ground.settings.limits.max_bytes,
        prepared[collection].fingerprints,
        shared=is_shared(ground.settings, collection),
    )
    source: Source = plugin.build(name, scope)
    return source


def _pipeline(ground: _Ground, prepared: _Prepared, name: str, lanes: dict[str, Lanes], settle: Settle) -> Pipeline:
    """Build a collection's stages, and the lanes before them."""
    settings, store, breakers = ground.settings, ground.store, ground.breakers
    limits, configured = settings.limits, settings.collections[name]
    events: Channel[Event] = Channel("recall", None, rank=lambda event: event.priority)
    lanes[name] = Lanes(
        events,
        max_events=limits.in_flight_events,
        max_bytes=limits.in_flight_bytes,
        is_open=lambda: breakers.passes(name),
    )
    processing = prepared.fingerprints.processing
    window = window_of(settings, name)

    silence = _silence(settings)

    def calling(stage: str) -> Callable[[], None]:
        return lambda: ground.pulse.busy(threading.current_thread().name, "a call", silence[stage])

    def patience(stage: str) -> Patience:
        """Hold calls on the stage's own threads, which beat under their names."""
        return breakers.patience(
            name, beat=lambda: ground.pulse.beat(threading.current_thread().name), calling=calling(stage)
        )

    def reading(*, hurried: bool) -> Extract:
        return Extract(
            ground.extraction,
            fingerprint=processing,
            shared=is_shared(settings, name),
            patience=patience("extract"),
            waiting=calling("extract"),
            hurried=hurried,
        )

    fields = [
        VectorField(
            field,
            kind_of(settings, name, field, ground.infos[vector.embedder]),
            ground.embedders[vector.embedder],
            ground.infos[vector.embedder].dimension,
            _space(ground, vector.embedder),
        )
        for field, vector in configured.vectors.items()
        if vector.embedder is not None  # else Milvus fills it itself
    ]
    embed = Embed(
        fields,
        window=window,
        seconds=turn_of(settings, name),
        patience=patience("embed"),
        cache=ground.cache,
        on_remembered=lambda embedder, texts: ground.metrics.embedding.texts_remembered.labels(embedder=embedder).inc(
            texts
        ),
    )
    return Pipeline(
        name,
        sink=prepared.sink,
        identity=prepared.identity,
        lanes=lanes[name],
        events=events,
        recall=Recall(
            store,
            prepared.sink,
            fingerprint=processing,
            clock=ground.clock,
            shared=is_shared(settings, name),
            shared_ids=configured.shared_ids,
            patience=patience("recall"),
            on_crossed=lambda source: ground.metrics.events.crossed.labels(source=source).inc(),
        ),
        extract=reading(hurried=True),
        extract_long=reading(hurried=False),
        readers=settings.extraction.workers,
        chunk=Chunk(
            prepared.processing.chunker,
            fields=configured.fields,
            validate=prepared.sink.validate,
            max_chunks=limits.max_chunks,
            kept=prepared.sink.kept,
        ),
        embed=embed,
        devices=max((ground.infos[name].replicas for name in configured.embedders()), default=1),
        window=window,
        wants=embed.wants,
        linger=linger_of(settings, name),
        write=Write(
            prepared.sink,
            store,
            fingerprint=processing,
            shared=is_shared(settings, name),
            patience=patience("write"),
        ),
        silence=silence,
        settle=settle.extend,
        pulse=ground.pulse,
        fail=ground.faults.fail,
    )


def _space(ground: _Ground, embedder: str) -> str:
    """Return what a text's vector depends on: its space, and how long a text may be, which is no part of it."""
    config = ground.settings.embedders[embedder].config
    return " ".join(
        [
            ground.infos[embedder].space,
            *(f"{name}={getattr(config, name, None)}" for name in ("max_tokens", "too_long")),
        ]
    )


def _silence(settings: Settings) -> dict[str, float]:
    """Return the seconds that each stage may rightly be silent: its slowest call, tried again on new workers."""
    model = settings.embedding.timeout_seconds + settings.embedding.load_timeout_seconds
    return {
        "recall": 10 * settings.milvus.timeout_seconds,
        "extract": max(2 * settings.extraction.wall_seconds + WORKER_START, LONGEST_FETCH),
        "chunk": LONGEST_CHUNKING,
        "embed": 3 * model,
        "write": 10 * settings.milvus.timeout_seconds,
    }


@dataclass(slots=True)
class Sweep:
    """Has old tombstones of a shared collection deleted, now and then: each delete leaves one.

    Args:
        sink: The collection.
        clock: The daemon's.
        days: How old they get: older than anything that a topic may bring again.
    """

    sink: MilvusSink
    clock: Clock
    days: float
    due: float = 0.0

    def __call__(self) -> None:
        """Delete what is too old, if it is time.

        Raises:
            UnavailableError: Milvus is away; it is tried again.
        """
        if self.clock.monotonic() < self.due:
            return
        swept = self.sink.sweep(int((self.clock.time() - self.days * DAY) * 1000))
        self.due = self.clock.monotonic() + SWEEP_SECONDS
        if swept:
            log.info("old tombstones deleted", collection=self.sink.collection, tombstones=swept)


def _tend(ground: _Ground, sweeps: Mapping[str, Sweep]) -> None:
    """Ask what failed while idle whether it works again: nothing else would, until the next document. And sweep."""
    for sweep in sweeps.values():
        _fault(MILVUS, sweep)
    if ground.store.failing is not None and _fault(STATE, ground.store.probe) is None:
        ground.breakers.reset(STATE)
    # Batch after batch failed where a probe passed, and nothing is held any more: the next document decides.
    stormy = [name for name in ground.breakers.unheld() if name not in {MILVUS, STATE}]
    sick = [check.name for check in ground.pool.checks() if not check.ok]
    asked = {name for dependency in (*stormy, *sick) for name in _embedders_behind(ground, dependency)}
    down = {_fault(name, partial(_probe, ground, name)) for name in sorted(asked)}
    for dependency in stormy:
        if dependency not in down:
            ground.breakers.forgive(dependency)


def _fault(what: str, work: Callable[[], object]) -> str | None:
    """Return the dependency for which something does not work. Each by itself: none keeps another one closed."""
    try:
        work()
    except (ConfigError, FatalError):
        raise
    except IngestError as error:  # a probe is no document: whatever is wrong with it is the dependency's
        dependency = str(getattr(error, "dependency", what))
        log.warning("still not well", dependency=dependency, error=str(error))
        return dependency
    return None


def _embedders_behind(ground: _Ground, dependency: str) -> Sequence[str]:
    """Return the embedders that tell whether a dependency is well. What is paid for is asked for its own alone."""
    kind, _, name = dependency.partition(":")
    if kind == "uri":
        return []
    if kind in {"provider", "budget"}:
        return [name] if name in ground.embedders else []
    return [name for name, embedder in ground.embedders.items() if not getattr(embedder, "is_remote", False)]


def _probe(ground: _Ground, name: str) -> None:
    ground.embedders[name].embed(PROBE, Role.DOCUMENT, ground.infos[name].kinds)


def _breakers(metrics: Metrics) -> Breakers:
    def changed(dependency: str, is_open: bool) -> None:  # noqa: FBT001 - Breakers calls it so
        metrics.stages.breaker_open.labels(dependency=dependency).set(is_open)
        if is_open:
            metrics.stages.breaker_openings.labels(dependency=dependency).inc()

    breakers = Breakers(changed)
    breakers.register(MILVUS)
    return breakers


def _halts(ground: _Ground) -> Halts:
    """Watch for streaks of dead letters, and have the metric say from the start that no source is halted."""
    gauge, configured = ground.metrics.sources.halted, ground.settings.dead_letters
    for name in ground.settings.sources:
        gauge.labels(source=name).set(0)
    return Halts(
        ground.settings.sources,
        HaltRule(configured.halt_letters, configured.halt_share),
        on_halt=lambda name: gauge.labels(source=name).set(1),
    )


def _name_strangers(settings: Settings, store: SqliteStore) -> None:
    """Say which documents no configured source feeds any more: nothing of theirs is changed."""
    for source, collection, documents in strangers(settings, store):
        log.warning(
            "documents that no configured source feeds any more stay as they are",
            source=source,
            collection=collection,
            documents=documents,
            cure=f"put the source back, or delete them with: ingestd forget --source {source}",
        )


def _overview(ground: _Ground, sources: Mapping[str, Source], pipelines: Mapping[str, Pipeline]) -> Mapping[str, Json]:
    counts = ground.store.counts()
    return {
        "milvus": ground.settings.milvus.uri,
        "sources": [
            {
                "name": name,
                "type": ground.settings.sources[name].type,
                "collection": source.collection,
                **_plain(counts.get(name)),
            }
            for name, source in sources.items()
        ],
        "collections": [
            {
                "name": name,
                "rows": ground.store.rows(name),
                "in_flight": pipeline.lanes.events,
                "limit": _limit(pipeline),
                **{f"waits_for_{stage}": depth for stage, depth in pipeline.depths().items()},
            }
            for name, pipeline in pipelines.items()
        ],
        "stages": [
            {
                "collection": name,
                "stage": stage,
                "busy_share": round(share.busy, 3),
                "blocked_share": round(share.blocked, 3),
                "waits": depths[stage],
            }
            for name, pipeline in pipelines.items()
            for depths in (pipeline.depths(),)
            for stage, share in pipeline.workload.shares().items()
        ],
    }


def _limit(pipeline: Pipeline) -> str | None:
    """Say which stage the others wait for; None: no stage works for most of the time."""
    stage = pipeline.workload.limit()
    if stage is None:
        return None
    share, waits = pipeline.workload.shares()[stage].busy, pipeline.depths()[stage]
    return f"{stage}: busy for {share:.0%} of the last {pipeline.workload.window:.0f} s, {waits:,} wait for it"


def _plain(value: object) -> dict[str, Json]:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else {}


def _refresh(
    ground: _Ground, tally: Tally, settle: Settle, sources: Mapping[str, Source], pipelines: Mapping[str, Pipeline]
) -> None:
    """Bring the gauges up to date that nobody sets when something happens."""
    metrics, totals = ground.metrics, tally.totals()
    for source in sources.values():
        source.export(metrics.sources)
    metrics.events.dead_letters_kept.set(sum(count.dead_letters for count in ground.store.counts().values()))
    metrics.state.file_bytes.set(ground.store.file_bytes())
    metrics.events.in_flight.set(totals.in_flight)
    metrics.events.retries_parked.set(totals.retrying)
    metrics.events.in_flight_bytes.set(sum(pipeline.lanes.bytes for pipeline in pipelines.values()))
    for name, pipeline in pipelines.items():
        for stage, depth in pipeline.depths().items():
            metrics.stages.queue_depth.labels(collection=name, stage=stage).set(depth)
        threads = pipeline.workload.threads()
        for stage, spent in pipeline.workload.spent().items():
            metrics.worked(name, stage, threads[stage], spent._asdict())
    metrics.worked("", "settle", 1, settle.meter.spent()._asdict())
    for thread, age in ground.pulse.ages().items():
        collection, _, stage = thread.rpartition("/")
        metrics.stages.heartbeat_age_seconds.labels(collection=collection, stage=stage).set(age)
