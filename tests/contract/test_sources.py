"""The contract of ``ports.Source``, over every source: a folder, and a topic of a real broker."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.brokers import create_topic, produce

from ingestd.errors import Stopped
from ingestd.model import Check, DocumentKey, Event, Failure, Op, Outcome, Parked, Seen, Stage, Verdict, Version
from ingestd.sources import folder, kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from ingestd import ports


class Clock:
    """The machine's."""

    def time(self) -> float:
        """See ``ports.Clock``."""
        return time.time()

    def monotonic(self) -> float:
        """See ``ports.Clock``."""
        return time.monotonic()


class Nothing:
    """A store without a past."""

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """See ``ports.SeenStore``."""
        return iter(())

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """See ``ports.SeenStore``."""
        return iter(())

    def confirmed(self, source: str) -> frozenset[str]:
        """See ``ports.SeenStore``."""
        return frozenset()


@dataclass
class Scope:
    """What a source may know."""

    clock: ports.Clock = field(default_factory=Clock)
    seen: ports.SeenStore = field(default_factory=Nothing)
    max_bytes: int = 1 << 20
    shared: bool = False

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the one fingerprint."""
        return "f"


class Intake:
    """Keeps what is handed in, and settles it at once if it is to."""

    def __init__(self, source: ports.Source, *, settles: bool) -> None:
        self.source = source
        self.settles = settles
        self.events: list[Event] = []
        self.stop = threading.Event()

    def submit(self, event: Event) -> None:
        """See ``ports.Intake``."""
        if self.stop.is_set():
            raise Stopped
        self.events.append(event)
        if self.settles:
            self.settle(event)

    def settle(self, event: Event) -> None:
        """End an event well."""
        verdict = Verdict.WRITTEN if event.op is Op.UPSERT else Verdict.DELETED
        self.source.settled([Outcome(event, verdict)])

    def offer(self, events: Sequence[Event]) -> int:
        """See ``ports.Intake``."""
        for event in events:
            self.submit(event)
        return len(events)

    def withdraw(self, tenures: Collection[str] | None = None) -> None:
        """See ``ports.Intake``."""

    def hasten(self, positions: Collection[str]) -> None:
        """See ``ports.Intake``."""

    def drained(self, seconds: float) -> bool:
        """See ``ports.Intake``: what is not settled yet is given up."""
        assert seconds
        return True

    def skip(self, verdict: Verdict, count: int = 1) -> None:
        """See ``ports.Intake``."""

    def wait(self, seconds: float) -> None:
        """See ``ports.Intake``."""
        if self.stop.wait(seconds):
            raise Stopped


@pytest.fixture(params=["folder", pytest.param("kafka", marks=pytest.mark.kafka)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], ports.Source]:
    """How to build a source of each kind, with three documents to hand in."""
    config = _folder(tmp_path) if request.param == "folder" else _topic(request.getfixturevalue("noida").bootstrap)
    return lambda: config.build("s", Scope())


def _folder(path: Path) -> folder.Config:
    for number in range(3):
        (path / f"{number}").write_text(f"text {number}")
    return folder.Config(path=path, collection="c", settle_seconds=0.1)


def _topic(bootstrap: str) -> kafka.Config:
    topic = f"t-{uuid.uuid4()}"
    create_topic(bootstrap, topic, 2)
    produce(bootstrap, topic, [(b"%d" % number, b'{"text": "text %d"}' % number, [], None) for number in range(3)])
    return kafka.Config(
        bootstrap_servers=(bootstrap,), topics=(topic,), group_id=topic, collection="c", commit_seconds=0.1
    )


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    deadline, pause = time.monotonic() + 10, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.01)


def test_events_are_whole(make: Callable[[], ports.Source]) -> None:
    """Each names its source, its collection and where it is from; its payload can be read, also twice."""
    source = make()
    intake = Intake(source, settles=True)
    source.run(intake, once=True)
    assert len({event.key.document_id for event in intake.events}) == 3
    for event in intake.events:
        assert (event.source, event.key.collection, event.attempt) == (source.name, source.collection, 1)
        assert event.position
        assert event.payload is not None
        assert event.payload.read() == event.payload.read()
        assert event.size >= len(event.payload.read().data)


def test_once_waits_for_what_it_handed_in(make: Callable[[], ports.Source]) -> None:
    """It returns when all is settled, not before."""
    source = make()
    intake = Intake(source, settles=False)
    thread = threading.Thread(target=source.run, args=(intake,), kwargs={"once": True})
    thread.start()
    until(lambda: len(intake.events) == 3)
    for event in intake.events[:2]:
        intake.settle(event)
    thread.join(0.3)
    assert thread.is_alive()
    intake.settle(intake.events[2])
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("once", [False, True])
def test_a_stop_ends_it(make: Callable[[], ports.Source], once: bool) -> None:  # noqa: FBT001 - a parameter of the port
    """``Stopped`` goes through, whatever it was doing, and leaves no thread."""
    source = make()
    intake = Intake(source, settles=False)
    ended = []

    def run() -> None:
        try:
            source.run(intake, once=once)
        except Stopped:
            ended.append(True)

    before = set(threading.enumerate())
    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: intake.events)
    intake.stop.set()
    thread.join(10)
    assert ended == [True]
    assert set(threading.enumerate()) <= before


def test_what_is_asked_before_the_start_has_an_answer(make: Callable[[], ports.Source]) -> None:
    """Checks, confirmations and outcomes may come at any time, from any thread."""
    source = make()
    assert all(isinstance(one, Check) and one.name.startswith("s:") for one in source.checks())
    assert all(isinstance(one, Check) and one.ok for one in source.probe())
    assert source.confirm() == 0
    stranger = Event(DocumentKey("c", "s/never handed in"), Op.DELETE, "s", "nowhere", payload=None)
    source.settled([Outcome(stranger, Verdict.DELETED)])
    intake = Intake(source, settles=True)
    source.run(intake, once=True)
    assert len(intake.events) == 3


def test_what_is_parked_comes_back_as_the_same_document(make: Callable[[], ports.Source]) -> None:
    """With the number of its try, and when it first failed."""
    source = make()
    intake = Intake(source, settles=True)
    source.run(intake, once=True)
    first = intake.events[0]
    failure = Failure(Stage.WRITE, "TransientError", "for a test")
    parked = Parked(first.key, first.op, "s", first.position, 4, 1.0, 2.0, failure)
    again = source.revive(parked)
    assert again is not None
    assert (again.key, again.op, again.attempt, again.first_failed_at) == (first.key, first.op, 4, 1.0)
    assert again.payload is not None
    assert first.payload is not None
    assert again.payload.read() == first.payload.read()


def test_what_an_audit_asks_has_an_answer(make: Callable[[], ports.Source]) -> None:
    """Before the start and after the end: what is there, what it has not come to, and what brings documents again."""
    source = make()
    survey = source.survey()
    intake = Intake(source, settles=True)
    source.run(intake, once=True)
    documents = {event.key.document_id: event for event in intake.events}
    if survey is not None:
        assert dict(survey) == {document: event.signature for document, event in documents.items()}
    assert source.behind([*documents, "nobody"], 0) == frozenset()
    versions = {document: event.version or Version(1, "s") for document, event in documents.items()}
    again = {one.document_id: one for one in source.again(versions)}
    assert again.keys() == documents.keys()
    for document, one in again.items():
        assert (one.position, one.record) == (documents[document].position, documents[document].record)
    look = source.look()
    assert source.behind(list(documents), look) == (set() if survey is None else documents.keys())
