"""The catalogue of metrics: every number that the daemon exports, in one place, with what it means.

One ``Metrics`` is made when the daemon is put together and passed down. It owns its registry: the library's global
one was turned down, because two daemons in one process (tests) would then count into each other, and because
whatever else is imported could add to what is exported.

Names follow Prometheus: the prefix ``ingestd_``, base units (seconds, bytes), ``_total`` for what only grows. A label
has few values, all known from the configuration or from the code: never a path, a document, a topic's key or a text
of an error. Label values are plain strings, as the enumerations of ``model`` are.
"""

from __future__ import annotations

import platform
import threading
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds for what takes from a millisecond (a small upsert) to a minute (a call at its timeout)."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Bounds for the number of things in a batch."""

if TYPE_CHECKING:
    from collections.abc import Mapping


class EventMetrics:
    """What became of the events: ``accepted`` = outcomes that are ends + parked + in flight."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Every event that a source handed in, and every document that it looked at and needed no event for.
        self.accepted = Counter(
            "ingestd_events_accepted_total", "Events accepted from sources.", ["source"], registry=registry
        )
        # Ends, by verdict. "retrying" is no end: the same event is counted again when it ends.
        self.settled = Counter(
            "ingestd_events_settled_total",
            "Events settled, by how they ended; retrying is a try that failed and was parked.",
            ["source", "verdict"],
            registry=registry,
        )
        # Versions compare only within one partition, or among a producer's own: the later arrival won.
        self.crossed = Counter(
            "ingestd_events_across_domains_total",
            "Events whose version did not compare with the one that was applied.",
            ["source"],
            registry=registry,
        )
        # Failures for good. The error is the name of its class.
        self.dead_letters = Counter(
            "ingestd_dead_letters_total",
            "Events that became dead letters, by the stage and the class of the error.",
            ["stage", "error"],
            registry=registry,
        )
        # What waits for a person now, also from before this start.
        self.dead_letters_kept = Gauge(
            "ingestd_dead_letters_kept", "Dead letters that are kept, waiting for a person.", registry=registry
        )
        # What waits for its next try now.
        self.retries_parked = Gauge(
            "ingestd_retries_parked", "Events in the retry queue, waiting for their next try.", registry=registry
        )
        # Accepted and not settled yet: bounded, whatever arrives.
        self.in_flight = Gauge(
            "ingestd_events_in_flight", "Events that were accepted and are not settled yet.", registry=registry
        )
        # The memory that their bytes take, as far as the sources know sizes.
        self.in_flight_bytes = Gauge(
            "ingestd_events_in_flight_bytes", "Bytes of the documents that are in flight.", registry=registry
        )


class StageMetrics:
    """How the pipeline between the sources and settle is doing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # A full queue is back-pressure: the stage behind it is the slow one.
        self.queue_depth = Gauge(
            "ingestd_stage_queue_depth",
            "Envelopes that wait in front of a stage.",
            ["collection", "stage"],
            registry=registry,
        )
        # Where the time goes: the stage that is busy all the time is the limit, and those before it wait for room.
        self.stage_seconds = Counter(
            "ingestd_stage_seconds_total",
            "Time that a stage's threads worked (busy), or waited for room in front of the next stage (blocked).",
            ["collection", "stage", "state"],
            registry=registry,
        )
        # To divide that time by: extraction has as many as workers, embedding as many as devices.
        self.stage_threads = Gauge(
            "ingestd_stage_threads", "Threads that run a stage.", ["collection", "stage"], registry=registry
        )
        # Read when it is asked for (set_function), so that a stage that hangs is seen to grow old.
        self.heartbeat_age_seconds = Gauge(
            "ingestd_stage_heartbeat_age_seconds",
            "Time since a stage last said that it is alive.",
            ["collection", "stage"],
            registry=registry,
        )
        # A dependency is down or refusing: the batch is held and the sources behind it pause.
        self.breaker_open = Gauge(
            "ingestd_breaker_open",
            "1 while a dependency counts as down and intake behind it pauses, else 0.",
            ["dependency"],
            registry=registry,
        )
        # How often that began.
        self.breaker_openings = Counter(
            "ingestd_breaker_openings_total", "Times that a breaker opened.", ["dependency"], registry=registry
        )
        # Written without a chunk: nothing of them can be found.
        self.empty_documents = Counter(
            "ingestd_documents_without_text_total",
            "Documents that were written without a chunk because they hold no text.",
            ["collection"],
            registry=registry,
        )


class EmbeddingMetrics:
    """What the models did."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # New or changed chunks: the work that costs.
        self.chunks_embedded = Counter(
            "ingestd_chunks_embedded_total", "Chunks that were embedded.", ["collection"], registry=registry
        )
        # Chunks that an edit left as they were: the work that was saved.
        self.chunks_reused = Counter(
            "ingestd_chunks_reused_total",
            "Chunks that were in Milvus already and were not embedded again.",
            ["collection"],
            registry=registry,
        )
        # Texts that came again, in other documents: the work that embedding.cache_bytes saved.
        self.texts_remembered = Counter(
            "ingestd_embed_cached_texts_total",
            "Texts whose vectors were in the cache, and that no model was asked for.",
            ["embedder"],
            registry=registry,
        )
        # Small batches under load mean that batching is starved.
        self.batch_texts = Histogram(
            "ingestd_embed_batch_texts",
            "Texts in one call of a model.",
            ["embedder"],
            buckets=SIZES,
            registry=registry,
        )
        # One call of a model, with the way to its worker and back.
        self.batch_seconds = Histogram(
            "ingestd_embed_batch_seconds",
            "Time that one call of a model took.",
            ["embedder"],
            buckets=SECONDS,
            registry=registry,
        )
        # Chunks of documents, queries and probes alike.
        self.texts = Counter(
            "ingestd_embedded_texts_total", "Texts that a model embedded.", ["embedder"], registry=registry
        )
        # What a provider charges for, by its own count where it says.
        self.tokens = Counter(
            "ingestd_embedded_tokens_total", "Tokens that a provider embedded.", ["embedder"], registry=registry
        )
        # In the currency of the configured price.
        self.cost = Counter(
            "ingestd_embedding_cost_total",
            "What a provider was paid, by the configured price for a million tokens.",
            ["embedder"],
            registry=registry,
        )
        # Since midnight (UTC), over restarts: what the daily limit is held against.
        self.cost_today = Gauge(
            "ingestd_embedding_cost_today",
            "What a provider was paid since midnight, by UTC.",
            ["embedder"],
            registry=registry,
        )
        # Longer than the model sees: of these only the beginning can be found.
        self.texts_cut = Counter(
            "ingestd_embedded_texts_cut_total",
            "Texts that were longer than the model sees, and were embedded by their beginning.",
            ["embedder"],
            registry=registry,
        )


class MilvusMetrics:
    """What was asked of Milvus. Operations are the names of the sink's methods."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Each request, also one that failed or timed out.
        self.request_seconds = Histogram(
            "ingestd_milvus_request_seconds",
            "Time that one request to Milvus took.",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )


class SourceMetrics:
    """How the sources are doing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # A streak of dead letters: a person has to look, mend the cause, and restart.
        self.halted = Gauge(
            "ingestd_source_halted",
            "1 while a source is halted because too many documents in a row failed, else 0.",
            ["source"],
            registry=registry,
        )
        # The rescan is the truth: it has to be quick beside its interval.
        self.scan_seconds = Histogram(
            "ingestd_source_scan_seconds",
            "Time that one whole scan of a folder took.",
            ["source"],
            buckets=(*SECONDS, 300.0),
            registry=registry,
        )
        # What the last whole scan found.
        self.files = Gauge(
            "ingestd_source_files", "Files that the last whole scan of a folder found.", ["source"], registry=registry
        )
        # Read when it is asked for (set_function): old means that the truth is not looked at.
        self.scan_age_seconds = Gauge(
            "ingestd_source_scan_age_seconds",
            "Time since the last whole scan of a folder ended.",
            ["source"],
            registry=registry,
        )
        # The mass-delete guard at work: somebody has to confirm, or bring the folder back.
        self.held_deletes = Gauge(
            "ingestd_source_held_deletes",
            "Deletes that are held because there were too many at once, waiting for a person to confirm them.",
            ["source"],
            registry=registry,
        )
        # Files that are at an end wait in the watched folder: where they belong is full, or may not be written.
        self.unmoved_files = Gauge(
            "ingestd_source_unmoved_files",
            "Files of a folder that are done or failed and cannot be moved away.",
            ["source"],
            registry=registry,
        )
        # The kernel dropped change notices; a rescan follows each.
        self.watcher_overflows = Counter(
            "ingestd_source_watcher_overflows_total",
            "Times that the kernel's queue of change notices ran over.",
            ["source"],
            registry=registry,
        )
        # The watcher died and was started again; a rescan follows each.
        self.watcher_restarts = Counter(
            "ingestd_source_watcher_restarts_total",
            "Times that a folder's watcher had to be started again.",
            ["source"],
            registry=registry,
        )
        self.kafka = KafkaMetrics(registry)


class KafkaMetrics:
    """How the Kafka sources are doing. What became of records is in ``EventMetrics``, by source."""

    def __init__(self, registry: CollectorRegistry) -> None:
        where = ["source", "topic", "partition"]
        # From the broker's own end offset to what is done and may be committed.
        self.lag = Gauge(
            "ingestd_kafka_lag_records",
            "Offsets of a partition that are not done: its end, less the watermark.",
            where,
            registry=registry,
        )
        # One record that is stuck holds the watermark, whatever is done behind it.
        self.watermark_age_seconds = Gauge(
            "ingestd_kafka_watermark_age_seconds",
            "Time since the first record of a partition that is not done was received; 0 when all are done.",
            where,
            registry=registry,
        )
        # None for long means that this member does nothing.
        self.partitions = Gauge(
            "ingestd_kafka_partitions", "Partitions that this member holds.", ["source"], registry=registry
        )
        # Many are a sign of members that come and go, or that are too slow to be heard.
        self.rebalances = Counter(
            "ingestd_kafka_rebalances_total", "Rebalances that this member went through.", ["source"], registry=registry
        )
        # Each means that records may come again.
        self.refused_commits = Counter(
            "ingestd_kafka_refused_commits_total", "Commits that were refused.", ["source"], registry=registry
        )
        # Back-pressure, or a broker that does not answer.
        self.paused = Gauge("ingestd_kafka_paused", "1 while reading is paused, else 0.", ["source"], registry=registry)


class StateMetrics:
    """The daemon's own state."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Never silently empty: each of these reads everything back from Milvus and the sources.
        self.ledger_rebuilds = Counter(
            "ingestd_ledger_rebuilds_total",
            "Times that a collection's ledger was rebuilt, by why: unbound, corrupt, anew (it is another collection).",
            ["collection", "reason"],
            registry=registry,
        )
        # The state file with its write-ahead log.
        self.file_bytes = Gauge("ingestd_state_file_bytes", "Size of the state file on disk.", registry=registry)


class ConfigurationMetrics:
    """What became of the wishes for a new configuration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # Counted over all images of the process: one that is applied replaces the image.
        self.reloads = Counter(
            "ingestd_config_reloads_total",
            "Configurations that were read on SIGHUP, by what became of them: applied, refused.",
            ["result"],
            registry=registry,
        )


class Metrics:
    """All metrics of one daemon, by what they are about.

    Args:
        version: The daemon's own version, for the build's information.
    """

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.events = EventMetrics(self.registry)
        self.stages = StageMetrics(self.registry)
        self.embedding = EmbeddingMetrics(self.registry)
        self.milvus = MilvusMetrics(self.registry)
        self.sources = SourceMetrics(self.registry)
        self.state = StateMetrics(self.registry)
        self.configuration = ConfigurationMetrics(self.registry)
        self._spent: dict[tuple[str, str, str], float] = {}
        """Exported so far."""
        self._spending = threading.Lock()
        # Always 1; its labels say what is running.
        self.build = Info("ingestd_build", "What is running.", registry=self.registry)
        self.build.info({"version": version, "python": platform.python_version()})
        # process_…: memory, descriptors, CPU time, start. python_gc_…: pauses have their cause here.
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def worked(self, collection: str, stage: str, threads: int, spent: Mapping[str, float]) -> None:
        """Bring the time that a stage's threads spent up to date.

        Args:
            collection: The pipeline's.
            stage: Its name.
            threads: How many there are.
            spent: Seconds since the start, by state.
        """
        self.stages.stage_threads.labels(collection=collection, stage=stage).set(threads)
        for state, seconds in spent.items():
            with self._spending:
                before = self._spent.get((collection, stage, state), 0.0)
                self._spent[collection, stage, state] = max(before, seconds)
                self.stages.stage_seconds.labels(collection=collection, stage=stage, state=state).inc(
                    max(0.0, seconds - before)
                )

    def accepted(self, source: str, count: int) -> None:
        """Count events that a source handed in, or documents that it looked at and needed no event for."""
        self.events.accepted.labels(source=source).inc(count)

    def settled(self, source: str, verdict: str, count: int) -> None:
        """Count events by how they ended.

        Args:
            source: The configured source's name.
            verdict: A ``model.Verdict``.
            count: How many.
        """
        self.events.settled.labels(source=source, verdict=str(verdict)).inc(count)
