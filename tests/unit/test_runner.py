"""The runner: starts, watches and ends the daemon's threads, with the exit code that its end deserves."""

from __future__ import annotations

import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes import COLLECTION, FINGERPRINT, QUICK, Assembly, ListSource, MemorySink, open_store, upsert

from ingestd.engine import pipeline, runner
from ingestd.engine.breaker import Breakers
from ingestd.engine.channel import Channel
from ingestd.engine.halts import HaltRule, Halts
from ingestd.engine.lanes import Lanes
from ingestd.engine.pipeline import Pipeline
from ingestd.engine.pulse import Pulse
from ingestd.engine.retry import RetryPolicy
from ingestd.engine.runner import Exit, Faults, Parts, Runner
from ingestd.engine.settle import Settle
from ingestd.engine.sources import RetryQueue, SourceThread
from ingestd.engine.tally import Tally
from ingestd.errors import DocumentError, TransientError, UnavailableError
from ingestd.metrics import Metrics
from ingestd.model import Check, Failure, Fingerprints, Outcome, Stage, Totals, Verdict
from ingestd.parts import SystemClock
from ingestd.ports import always
from ingestd.stages.embed import Embed
from ingestd.stages.write import Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ingestd.model import Content, Document, Event, Role, VectorKind, Vectors
    from ingestd.ports import Intake
    from ingestd.store.sqlite import SqliteStore

DEADLINE = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    opened = open_store(tmp_path / "state", SystemClock())
    yield opened
    opened.close(clean=True)


class Buggy:
    """A stage with a bug."""

    def process(self, _batch: Sequence[object], _flush: Callable[[], None]) -> Iterator[Any]:
        """Raise."""
        raise RuntimeError("a bug")


class Daemon:
    """All of the engine on its threads, between a list of events and a collection in memory."""

    def __init__(
        self, store: SqliteStore, *events: Event, once: bool = True, attempts: int = 3, broken: str | None = None
    ) -> None:
        self.store, self.sink, self.source = store, MemorySink(), ListSource(events)
        self.stages = Assembly(store, self.sink)
        self.clock, self.breakers, self.faults = SystemClock(), Breakers(backoff=QUICK), Faults()
        self.pulse, self.stop, self.once = Pulse(self.clock), threading.Event(), once
        self.halts = Halts(["cms"], HaltRule(5, 1.0))
        self.tally = Tally(Metrics("0"), parked=len(store.parked()))
        self.lanes: dict[str, Lanes] = {}
        sources = {"cms": self.source}
        self.retries = RetryQueue(
            store,
            sources=sources,
            lanes=self.lanes,
            tally=self.tally,
            pulse=self.pulse,
            clock=self.clock,
            stop=self.stop,
            fail=self.faults.fail,
        )
        self.settle = Settle(
            store,
            breakers=self.breakers,
            policy=RetryPolicy(attempts, 0.001, 0.001),
            tally=self.tally,
            fingerprints={COLLECTION: Fingerprints(FINGERPRINT, "configuration")},
            lanes=self.lanes,
            sources=sources,
            pulse=self.pulse,
            fail=self.faults.fail,
            on_settled=self._settled,
        )
        self.pipeline = self._pipeline(broken)

    def _settled(self, outcomes: Sequence[Outcome]) -> None:
        self.retries.settled(outcomes)
        self.halts.note(outcomes)

    def _pipeline(self, broken: str | None) -> Pipeline:
        events: Channel[Event] = Channel("recall", None)
        self.lanes[COLLECTION] = Lanes(events, max_events=50, max_bytes=10_000)
        patience = self.breakers.patience(COLLECTION, lambda: None)
        works: dict[str, Any] = {
            "recall": self.stages.recall,
            "extract": self.stages.extract,
            "extract_long": self.stages.extract_long,
            "chunk": self.stages.chunk,
            "embed": Embed(self.stages.embed._fields, window=4, patience=patience),
            "write": Write(self.sink, self.store, fingerprint=FINGERPRINT, patience=patience),
        }
        if broken is not None:
            works[broken] = Buggy()
        return Pipeline(
            COLLECTION,
            sink=self.sink,
            identity=self.sink.identity() or "",
            lanes=self.lanes[COLLECTION],
            events=events,
            readers=2,
            **works,
            window=4,
            linger=0.0,
            silence=dict.fromkeys(("recall", "extract", "chunk", "embed", "write"), 60.0),
            settle=self.settle.extend,
            pulse=self.pulse,
            fail=self.faults.fail,
        )

    def run(
        self, *, drain: float = DEADLINE, timeout: float | None = DEADLINE, tick: Callable[[], None] = lambda: None
    ) -> Exit:
        """Start all, run until the end, and return the exit code."""
        thread = SourceThread(
            self.source,
            self.lanes[COLLECTION],
            self.tally,
            self.pulse,
            self.stop,
            retries=self.retries,
            once=self.once,
            fail=self.faults.fail,
            on_accept=lambda events: self.halts.accepted("cms", events),
            is_halted=lambda: self.halts.halted("cms"),
        )
        parts = Parts(
            pulse=self.pulse,
            breakers=self.breakers,
            halts=self.halts,
            faults=self.faults,
            tally=self.tally,
            settle=self.settle,
            pipelines={COLLECTION: self.pipeline},
            sources={"cms": self.source},
            threads={"cms": thread},
            retries=self.retries,
            heal=lambda: None,
            stop=self.stop,
        )
        self.runner = Runner(parts, drain_seconds=drain)
        self.runner.start()
        return self.runner.run(once=self.once, timeout=timeout, tick=tick)


def many(count: int) -> list[Event]:
    """Return events of so many documents."""
    return [upsert(f"d{n}", f"{n} one\n{n} two", n) for n in range(count)]


def test_once_works_off_what_is_there(store: SqliteStore) -> None:
    """All is written, the accounts add up, every thread ends, and the exit code is 0."""
    daemon = Daemon(store, *many(120), upsert("d0", "changed", 200))
    assert daemon.run() is Exit.DONE
    assert daemon.tally.totals() == Totals(accepted=121, written=121, chunks_embedded=241)
    assert daemon.sink.texts()["d0"] == ("changed",)
    assert (len(daemon.sink.texts()), daemon.faults.ended_well) == (120, True)
    assert [name for name in daemon.pulse.ages() if name != "probe"] == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith((COLLECTION, "source", "settle"))]


def test_once_with_dead_letters_ends_with_3(store: SqliteStore) -> None:
    """What failed for good is told by the exit code; everything else is written."""
    daemon = Daemon(store, *many(20))
    daemon.stages.extraction.errors["d7"] = DocumentError("no text in it")
    assert daemon.run() is Exit.DEAD_LETTERS
    assert daemon.tally.totals() == Totals(accepted=20, written=19, dead_lettered=1, chunks_embedded=38)


def test_once_works_off_retries_too(store: SqliteStore) -> None:
    """An event that fails for a while is written within the same run; one that fails on is a dead letter."""
    daemon = Daemon(store, *many(3))
    tries = {"d0": 0, "d1": 0}
    extract = daemon.stages.extraction.extract

    def flaky(content: Content, *, hurried: bool = False, waiting: Callable[[], None] = always) -> Document:
        name = content.name
        if name == "d1" or tries.get(name) == 0:
            tries[name] += 1
            raise TransientError("busy")
        return extract(content)

    daemon.stages.extraction.extract = flaky  # type: ignore[method-assign]
    assert daemon.run() is Exit.DEAD_LETTERS
    assert tries == {"d0": 1, "d1": 3}
    assert daemon.tally.totals() == Totals(accepted=3, written=2, dead_lettered=1, chunks_embedded=4)


def test_a_difficult_document_goes_the_long_way(store: SqliteStore) -> None:
    """What a reader in a hurry hands on is read by another one, and written like all the others."""
    daemon = Daemon(store, *many(3))
    daemon.stages.extraction.difficult = {"d1"}
    assert daemon.run() is Exit.DONE
    assert daemon.tally.totals() == Totals(accepted=3, written=3, chunks_embedded=6)
    assert sorted(daemon.stages.extraction.read) == ["d0", "d1", "d2"]


def test_once_that_is_not_done_in_time_fails(store: SqliteStore) -> None:
    """An event that is still parked at the timeout is not done: exit 1, and it stays parked."""
    daemon = Daemon(store, *many(1), attempts=8)
    daemon.stages.extraction.errors["d0"] = TransientError("busy", wait=3600.0)
    assert daemon.run(timeout=1.0) is Exit.FAILURE
    assert daemon.tally.totals() == Totals(accepted=1, retrying=1)
    assert len(store.parked()) == 1


def test_once_with_something_held_fails(store: SqliteStore) -> None:
    """A source that holds deletes, or cannot read its folder, has not done its work."""
    daemon = Daemon(store, *many(1))
    daemon.source.held = [Check("cms:deletes", ok=False, detail="60 documents are gone at once")]
    assert daemon.run() is Exit.FAILURE


def test_once_with_a_source_that_is_halted_fails(store: SqliteStore, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends, though the source has more to hand in: exit 1, with the reason; the rest is left as it was."""
    daemon = Daemon(store, *many(200))
    daemon.stages.extraction.errors.update({f"d{n}": DocumentError("no text in it") for n in range(200)})
    assert daemon.run() is Exit.FAILURE
    totals = daemon.tally.totals()
    assert totals.accepted == totals.dead_lettered + totals.in_flight
    assert 5 <= totals.dead_lettered < 200
    said = "".join(capsys.readouterr())
    assert ("cms:intake" in said, "not done within the timeout" in said) == (True, False)


def ask_once(daemon: Daemon, condition: Callable[[], bool]) -> Callable[[], None]:
    """Return a tick that asks the daemon to stop when something has come about."""

    def tick() -> None:
        if condition():
            daemon.runner.ask_to_stop()

    return tick


@pytest.mark.parametrize("together", [1, pipeline.CHUNKED])
def test_a_stop_leaves_what_no_model_has_begun(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """One batch is at the model: it is written; no text of another document is embedded, however far it had come.

    Cut one by one, documents wait before each stage; cut together, all of them are in the chunking stage's hands.
    """
    monkeypatch.setattr(pipeline, "CHUNKED", together)
    daemon = Daemon(store, *many(40), once=False)
    go, embed = threading.Event(), daemon.stages.embedder.embed

    def hold(texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        vectors = embed(texts, role, kinds)
        assert go.wait(DEADLINE)
        return vectors

    daemon.stages.embedder.embed = hold  # type: ignore[method-assign]

    def let_go() -> None:
        _until(lambda: daemon.pipeline.dropped > 0)
        go.set()

    waiting = threading.Thread(target=let_go)
    waiting.start()

    def all_stages_are_full() -> bool:
        depths = daemon.pipeline.depths()
        waits = depths["chunk"] > 0 or together > 1
        return bool(daemon.stages.embedder.calls) and depths["embed"] >= 4 and waits

    assert daemon.run(tick=ask_once(daemon, all_stages_are_full)) is Exit.DONE
    waiting.join(DEADLINE)
    (batch,) = daemon.stages.embedder.calls
    assert len(batch) == 4
    assert daemon.tally.totals() == Totals(accepted=40, written=2, in_flight=38, chunks_embedded=4)
    assert daemon.pipeline.dropped == 38
    assert not daemon.pipeline.lanes.events


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_a_document_that_is_being_read_is_left_too(store: SqliteStore) -> None:
    """It comes out of its extraction after the stop, and no model gets it: the next start reads it again."""
    daemon = Daemon(store, *many(1), once=False)
    reading, go, extract = threading.Event(), threading.Event(), daemon.stages.extraction.extract

    def hold(content: Content, *, hurried: bool = False, waiting: Callable[[], None] = always) -> Document:
        reading.set()
        assert go.wait(DEADLINE)
        return extract(content, hurried=hurried)

    daemon.stages.extraction.extract = hold  # type: ignore[method-assign]

    def let_go() -> None:
        _until(daemon.pipeline._giving_up.is_set)
        go.set()

    waiting = threading.Thread(target=let_go)
    waiting.start()
    assert daemon.run(tick=ask_once(daemon, reading.is_set)) is Exit.DONE
    waiting.join(DEADLINE)
    assert daemon.stages.embedder.calls == []
    assert (daemon.pipeline.dropped, daemon.tally.totals()) == (1, Totals(accepted=1, in_flight=1))


def test_what_has_its_vectors_is_written_although_the_drain_was_given_up(store: SqliteStore) -> None:
    """A batch is stuck at the model when the deadline comes, and Milvus is slow: what came before it is not lost."""
    daemon = Daemon(store, *many(40), once=False)
    slow, go, stuck = threading.Event(), threading.Event(), threading.Event()

    def hold(operation: str, _ids: Sequence[str]) -> None:
        if operation == "upsert":
            slow.set()
            assert go.wait(DEADLINE)

    daemon.sink.before = hold
    embedder, embed = daemon.stages.embedder, daemon.stages.embedder.embed

    def fifth_is_stuck(
        texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]
    ) -> Mapping[VectorKind, Vectors]:
        vectors = embed(texts, role, kinds)
        if len(embedder.calls) == 2:
            assert slow.wait(DEADLINE)
        if len(embedder.calls) == 5:
            stuck.wait(DEADLINE)
        return vectors

    embedder.embed = fifth_is_stuck  # type: ignore[method-assign]

    def let_go() -> None:
        _until(lambda: daemon.faults.closing)
        go.set()

    waiting = threading.Thread(target=let_go)
    waiting.start()
    try:
        assert daemon.run(drain=0.1, tick=ask_once(daemon, lambda: len(embedder.calls) == 5)) is Exit.DONE
    finally:
        stuck.set()
    waiting.join(DEADLINE)
    embedded = [text for call in embedder.calls[:4] for text in call]
    assert 16 == len(embedded) == len(daemon.sink.rows) == daemon.tally.totals().chunks_embedded


def test_a_stop_drains_what_is_begun(store: SqliteStore) -> None:
    """Asked to stop, the daemon ends begun documents, drops the rest unmoved, and exits 0."""
    daemon = Daemon(store, *many(40), once=False)
    began, go = threading.Event(), threading.Event()

    def hold(operation: str, _ids: Sequence[str]) -> None:
        if operation == "upsert":
            began.set()
            assert go.wait(DEADLINE)

    daemon.sink.before = hold

    def let_go() -> None:
        assert daemon.stop.wait(DEADLINE)
        go.set()

    waiting = threading.Thread(target=let_go)
    waiting.start()
    assert daemon.run(tick=ask_once(daemon, began.is_set)) is Exit.DONE
    waiting.join(DEADLINE)
    totals = daemon.tally.totals()
    assert totals.written == len(daemon.source.outcomes) == len(daemon.sink.texts()) > 0
    assert totals.accepted == totals.written + totals.in_flight
    entries = list(store.collection_entries(COLLECTION))
    assert {entry.key.document_id for entry in entries if not entry.doubtful} == daemon.sink.texts().keys()
    assert daemon.faults.ended_well


def test_a_stop_waits_for_a_dependency_that_comes_back(store: SqliteStore) -> None:
    """A batch that is held when the daemon is asked to stop is written, if Milvus answers before the deadline."""
    daemon = Daemon(store, *many(1), once=False)
    daemon.sink.outage = 1_000_000_000
    calls = count()

    def come_back(_operation: str, _ids: Sequence[str]) -> None:
        if daemon.stop.is_set() and next(calls) == 50:
            daemon.sink.outage = 0

    daemon.sink.before = come_back
    assert daemon.run(tick=ask_once(daemon, lambda: not daemon.breakers.passes(COLLECTION))) is Exit.DONE
    assert daemon.tally.totals() == Totals(accepted=1, written=1, chunks_embedded=2)


def test_a_drain_that_takes_too_long_is_cut_short(store: SqliteStore) -> None:
    """A write that hangs does not keep the daemon from ending in time; its position has not moved."""
    daemon = Daemon(store, *many(1), once=False)
    began, go = threading.Event(), threading.Event()

    def hang(operation: str, _ids: Sequence[str]) -> None:
        if operation == "upsert":
            began.set()
            go.wait(DEADLINE)

    daemon.sink.before = hang
    try:
        since = time.monotonic()
        assert daemon.run(drain=0.2, tick=ask_once(daemon, began.is_set)) is Exit.DONE
        assert time.monotonic() - since < DEADLINE / 2
        assert (daemon.source.outcomes, daemon.tally.totals().in_flight) == ([], 1)
        [entry] = store.collection_entries(COLLECTION)
        assert (len(entry.doubtful), dict(entry.present)) == (2, {})
    finally:
        go.set()
        for thread in daemon.pipeline._steps[-1][1]:
            assert thread.join(DEADLINE)


def test_a_stop_does_not_wait_for_an_outage(store: SqliteStore) -> None:
    """While Milvus is away the drain ends at its deadline, and what is held has moved nothing."""
    daemon = Daemon(store, *many(1), once=False)
    daemon.sink.outage = 1_000_000_000
    tick = ask_once(daemon, lambda: not daemon.breakers.passes(COLLECTION))
    assert daemon.run(drain=0.2, tick=tick) is Exit.DONE
    assert (daemon.source.outcomes, daemon.sink.rows) == ([], {})


@pytest.mark.parametrize("stage", ["recall", "extract", "chunk", "embed", "write"])
def test_a_dead_stage_ends_the_process(store: SqliteStore, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that is not about a document: exit 1, no clean end, and the daemon does not limp on."""
    daemon = Daemon(store, *many(5), once=False, broken=stage)
    assert daemon.run(timeout=None) is Exit.FAILURE
    assert (daemon.faults.ended_well, daemon.source.outcomes) == (False, [])
    assert "a bug" in "".join(capsys.readouterr())


def crash(_intake: Intake, *, once: bool) -> None:
    """Raise what nobody caught."""
    raise UnavailableError("kafka", "nobody caught it")


def end(_intake: Intake, *, once: bool) -> None:
    """Return, as if there were nothing more to watch."""


def test_a_collection_that_was_made_again_ends_the_process(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ledger says is about another collection: the next start writes this one anew."""
    monkeypatch.setattr(runner, "PROBE_SECONDS", 0.01)
    daemon = Daemon(store, once=False)
    daemon.sink.made = "another"
    assert daemon.run(timeout=None) is Exit.FAILURE


@pytest.mark.parametrize("run", [crash, end])
def test_a_source_that_ends_by_itself_ends_the_process(store: SqliteStore, run: Callable[..., None]) -> None:
    """A dead consumer is not silently healthy, however it died."""
    daemon = Daemon(store, once=False)
    daemon.source.run = run  # type: ignore[method-assign]
    assert daemon.run(timeout=None) is Exit.FAILURE


def test_checks_speak_of_threads_dependencies_and_sources(store: SqliteStore) -> None:
    """What /readyz says is put together of all three."""
    daemon = Daemon(store, *many(1))
    daemon.breakers.register("milvus")
    daemon.source.held = [Check("cms:root", ok=True)]
    assert daemon.run() is Exit.DONE
    assert {check.name for check in daemon.runner.checks()} == {"threads", "milvus", "cms:root", "cms:intake"}


def test_a_parked_event_of_an_earlier_run_is_worked_off(store: SqliteStore) -> None:
    """It counts as accepted, and as retrying until then."""
    event = upsert("a", "one", 1)
    failure = Failure(Stage.EXTRACT, "TransientError", "busy")
    outcome = Outcome(event, Verdict.RETRYING, failure=failure, wait=0.0)
    store.settle([outcome], {COLLECTION: Fingerprints(FINGERPRINT, "configuration")})
    daemon = Daemon(store)
    daemon.source.revive = lambda _parked: event  # type: ignore[assignment, method-assign]
    assert daemon.tally.totals() == Totals(accepted=1, retrying=1)
    assert daemon.run() is Exit.DONE
    assert daemon.tally.totals() == Totals(accepted=1, written=1, chunks_embedded=1)
