"""A repair from outside the daemon: whom it asks for what, when a document counts as mended, and when it is left."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, ManualClock

from ingestd.audit.compare import Fault, Kind
from ingestd.audit.looking import AT_REST, Feeds, Look
from ingestd.audit.mending import Done, Mended
from ingestd.audit.repairing import ELSEWHERE, Repair
from ingestd.audit.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

MISSING = Fault(Kind.MISSING, "c1", "no such row")
GAP = Fault(Kind.MISSING, "", "chunk 1 is not there, and chunk 2 is")
EDITED = Fault(Kind.STALE, "", "the file has changed", of_file=True)


class Ground:
    """A looker whose documents are what the test says, and a daemon that mends as it says."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch
        self.collection = COLLECTION
        self.feeds = Feeds(frozenset({"inbox"}), frozenset({"inbox"}), shared=False)
        self.faults: dict[str, list[Fault]] = {}
        self.dead: set[str] = set()
        self.busy: set[str] = set()
        self.holds: dict[str, str] = {}
        self.asked: list[tuple[tuple[str, ...], frozenset[str]]] = []
        """Of each request to mend: the documents, and whose files differ."""
        self.mends: Callable[[str], Mended] = lambda document: (
            Mended(Done.SENT) if self.faults.pop(document, None) else Mended(Done.SOUND)
        )
        self.clock = ManualClock()
        self.at_wait: Callable[[], None] = lambda: None

    def find(self, **faults: list[Fault]) -> None:
        """Have an audit have found these."""
        for document, found in faults.items():
            self.faults[document] = found
            self.scratch.found(COLLECTION, document, found)

    def repair(self, seconds: float = 100.0) -> dict[str, str | None]:
        """Repair, and return what became of each document."""
        Repair(self, self.scratch, self, wait=self._wait, clock=self.clock.monotonic).run(seconds)  # type: ignore[arg-type]  # as much of a looker as is asked
        found = (one for kind in Kind for one in self.scratch.differences(COLLECTION, kind))
        return {one.document_id: one.outcome for one in found}

    # Of the looker

    def look(self, documents: Sequence[str] = ()) -> dict[str, Look]:
        """Return what is wrong with each."""
        return {document: Look(tuple(self.faults.get(document, ())), b"", moved=False) for document in documents}

    def letters(self, documents: Sequence[str]) -> frozenset[str]:
        """Return those with dead letters."""
        return frozenset(documents) & self.dead

    def owner(self, document: str) -> str | None:
        """Return the one source there is."""
        del document
        return "inbox"

    # Of the daemon

    def unsettled(self, collection: str, documents: Sequence[str], files: Collection[str]) -> frozenset[str]:
        """Return those that something is under way for."""
        del files
        assert collection == COLLECTION
        return frozenset(documents) & self.busy

    def mend(self, collection: str, documents: Sequence[str], files: Collection[str]) -> Iterator[Mapping[str, Mended]]:
        """Mend as the test says, one document at a time."""
        assert collection == COLLECTION
        if documents:
            self.asked.append((tuple(documents), frozenset(files)))
        for document in documents:
            yield {document: self.mends(document)}

    def held(self) -> Mapping[str, str]:
        """Return what the test put there."""
        return self.holds

    def _wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.at_wait()


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Nothing is wrong yet."""
    with closing(Scratch()) as scratch:
        yield Ground(scratch)


def test_what_is_wrong_is_mended(ground: Ground) -> None:
    """Each document is asked for once; only those whose files differ are named as such, and no gap among rows is."""
    ground.find(a=[MISSING], b=[GAP], c=[EDITED, MISSING])
    assert ground.repair() == {"a": "", "b": "", "c": ""}
    assert ground.asked == [(("a", "b", "c"), frozenset({"c"}))]


def test_what_was_mended_by_itself_counts(ground: Ground) -> None:
    """An event of its own came meanwhile: the daemon finds it sound."""
    ground.find(a=[MISSING])
    ground.faults.clear()
    assert ground.repair() == {"a": ""}


def test_what_something_is_under_way_for_is_waited_for(ground: Ground) -> None:
    """It is asked for again when the daemon was busy with it, and looked at again when it has been sent."""
    ground.find(a=[MISSING], b=[MISSING])
    answers = iter([Mended(Done.BUSY), Mended(Done.SENT)])
    ground.mends = lambda document: next(answers) if document == "a" else Mended(Done.SENT)
    ground.busy = {"a", "b"}

    def settle() -> None:
        if ground.clock.monotonic() >= began + 10:
            ground.busy.clear()
            ground.faults.clear()

    began, ground.at_wait = ground.clock.monotonic(), settle
    assert ground.repair() == {"a": "", "b": ""}
    assert [documents for documents, _files in ground.asked] == [("a", "b"), ("a",)]


def test_what_cannot_be_mended_is_left_at_once(ground: Ground) -> None:
    """With the daemon's reason."""
    ground.find(a=[MISSING], b=[MISSING])
    ground.mends = lambda document: Mended(Done.LEFT, "its record is gone") if document == "a" else Mended(Done.SENT)
    ground.at_wait = ground.faults.clear
    assert ground.repair() == {"a": "its record is gone", "b": ""}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (MISSING, "it was mended, and differs again: audit again"),
        (EDITED, "30 documents are gone at once; confirm"),
        (GAP, "it was mended, and differs again: audit again"),
    ],
)
def test_what_differs_after_two_tries_is_left(ground: Ground, fault: Fault, why: str) -> None:
    """A file's delete may be held: the source says so, and how to go on."""
    ground.find(a=[fault])
    ground.mends = lambda _document: Mended(Done.SENT)
    ground.holds = {"inbox": "30 documents are gone at once; confirm"}
    assert ground.repair() == {"a": why}
    assert len(ground.asked) == 2


def test_what_failed_again_is_not_called_mended(ground: Ground) -> None:
    """An edit that is a dead letter now is no difference any more, and rows that could not be written are one."""
    ground.find(a=[EDITED], b=[MISSING], c=[MISSING])
    ground.dead = {"a", "b", "c"}
    ground.mends = lambda document: Mended(Done.SENT)

    def fail() -> None:
        ground.faults.pop("a", None)
        ground.faults.pop("c", None)

    ground.at_wait = fail
    why = "it failed and is a dead letter: ingestd dead-letters list says why"
    assert ground.repair() == {"a": why, "b": why, "c": ""}


def test_another_member_has_time_for_a_record(ground: Ground) -> None:
    """It reads it from the topic: until then nothing is under way here, and the rows are as they were."""
    ground.feeds = Feeds(frozenset({"cms"}), frozenset(), shared=True)
    ground.find(a=[MISSING])
    ground.mends = lambda _document: Mended(Done.SENT)
    began = ground.clock.monotonic()

    def written() -> None:
        if ground.clock.monotonic() >= began + ELSEWHERE - AT_REST:
            ground.faults.clear()

    ground.at_wait = written
    assert ground.repair() == {"a": ""}
    assert len(ground.asked) == 1


def test_what_is_not_done_in_time_goes_on(ground: Ground) -> None:
    """The command ends; what was begun stays in the daemon's hands."""
    ground.find(a=[MISSING], b=[MISSING])
    ground.mends = lambda _document: Mended(Done.SENT)
    ground.busy = {"a"}
    ground.at_wait = lambda: ground.faults.pop("b", None)  # type: ignore[assignment]  # what it returns is nobody's
    began = ground.clock.monotonic()
    late = "it was not done within 20 s, and goes on while a daemon runs: audit again"
    assert ground.repair(20.0) == {"a": late, "b": ""}
    assert ground.clock.monotonic() == began + 20.0
