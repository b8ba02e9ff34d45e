"""Which differences count: those that are found again in documents that nothing is under way for."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import (
    COLLECTION,
    FINGERPRINT,
    Assembly,
    ManualClock,
    ManualLease,
    MemorySink,
    delete,
    open_store,
    upsert,
)

from ingestd.audit import looking
from ingestd.audit.compare import Kind
from ingestd.audit.looking import AT_REST, Counts, Feeds, Looker, audit
from ingestd.audit.scratch import Scratch
from ingestd.errors import DocumentError, UnavailableError
from ingestd.model import Content, Failure, Fingerprints, Outcome, Stage, Verdict, chunk_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from ingestd.store.sqlite import SqliteStore

OURS = Feeds(frozenset({"cms"}), frozenset({"cms"}), shared=False)
TWO = chunk_ids("a", ["one", "two"])[1]
FAILURE = Failure(Stage.EMBED, "TransientError", "the provider said 429")


class Folder:
    """What is there now, by document: signature and content (``ports.Survey``)."""

    def __init__(self, name: str = "cms") -> None:
        self.name = name
        self.files: dict[str, tuple[str, str | Exception]] = {}
        self.away = self.moved = False
        self.closed: set[str] = set()
        """Documents that cannot be looked at."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield what is there."""
        self._look()
        return iter([(document, signature) for document, (signature, _content) in self.files.items()])

    def owns(self, document: str) -> bool:
        """Own everything but what is somebody else's by name."""
        return not document.startswith("other/")

    def signature(self, document: str) -> str | None:
        """Return it."""
        self._look(document)
        return self.files[document][0] if document in self.files else None

    def leaves(self, verdict: Verdict | None) -> bool:
        """Return what it was told."""
        del verdict
        return self.moved

    def digest(self, document: str) -> str | None:
        """Return that of the bytes that ``upsert`` makes of a text; an empty one is changing."""
        content = self.files[document][1]
        if isinstance(content, Exception):
            raise content
        return Content(content.encode(), document).digest() if content else None

    def _look(self, document: str = "") -> None:
        if self.away or document in self.closed:
            raise UnavailableError("source:cms", "the folder is gone")


class Colleague:
    """A daemon at work (``looking.Beside``)."""

    def __init__(self) -> None:
        self.busy: set[str] = set()
        self.files: set[str] = set()
        """Busy only where the files count."""
        self.looks = 0
        self.asked: Callable[[], None] = lambda: None
        """Called after each answer."""

    def look(self) -> None:
        """Count."""
        self.looks += 1

    def unsettled(self, collection: str, documents: Sequence[str], files: Collection[str]) -> frozenset[str]:
        """Return what the test put there."""
        assert collection == COLLECTION
        found = frozenset(documents) & self.busy | frozenset(files) & self.files
        self.asked()
        return found


class Ground:
    """A collection that the real stages wrote, and an audit of it."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.sink = MemorySink()
        self.stages = Assembly(store, self.sink)
        self.feeds = OURS
        self.surveys: dict[str, Folder] = {}
        self.daemon: Colleague | None = None
        self.clock = ManualClock()
        self.waits: list[float] = []
        self.at_wait: Callable[[], None] = lambda: None

    def audit(self) -> tuple[Counts, set[tuple[Kind, str, str]]]:
        """Return what was gone over, and what differs: kind, document, chunk."""
        with closing(Scratch()) as scratch:
            looker = Looker(self.sink, self.store, self.feeds, self.surveys)
            counts = audit(looker, scratch, self.daemon, patience=60.0, wait=self._wait, clock=self.clock.monotonic)
            found = [one for kind in Kind for one in scratch.differences(COLLECTION, kind)]
            assert len(found) == sum(scratch.counts(COLLECTION).values()) == scratch.left()
            return counts, {(one.fault.kind, one.document_id, one.fault.chunk_id) for one in found}

    def found(self) -> set[tuple[Kind, str, str]]:
        """Return what differs."""
        return self.audit()[1]

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)
        self.at_wait()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Two documents, and nobody at work."""
    with open_store(tmp_path / "state") as store:
        made = Ground(store)
        made.stages.run(upsert("a", "one\ntwo", 1), upsert("b", "three", 2))
        yield made


def test_nothing_differs(ground: Ground) -> None:
    """Documents and rows are counted; nobody is waited for."""
    assert ground.audit() == (Counts(2, 3, 0, {}, {}), set())
    assert ground.waits == []


def test_differences_are_found_wherever_they_are_known(ground: Ground) -> None:
    """In a document of the ledger, in one that Milvus alone has, in one that was deleted; others are as they were."""
    ground.stages.run(upsert("c", "four", 3))
    four = dict(ground.sink.rows)
    ground.stages.run(delete("c", 4))
    (at,) = chunk_ids("c", ["four"])
    ground.sink.rows[at] = four[at]
    del ground.sink.rows[TWO]
    ground.sink.rows["f" * 32] = replace(four[at], id="f" * 32, document_id="nobody")
    assert ground.audit() == (
        Counts(4, 4, 0, {}, {}),
        {(Kind.MISSING, "a", TWO), (Kind.ORPHAN, "c", at), (Kind.ORPHAN, "nobody", "f" * 32)},
    )


def test_many_documents_are_looked_at_in_batches(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number and by that of their rows; whole pages of either kind lose nothing."""
    monkeypatch.setattr(looking, "DOCUMENTS", 3)
    monkeypatch.setattr(looking, "ROWS", 5)
    monkeypatch.setattr(looking, "PAGE", 2)
    ground.stages.run(*(upsert(f"d{n}", "\n".join(f"{n} {line}" for line in range(n)), 10 + n) for n in range(8)))
    questions: list[int] = []
    ground.sink.before = lambda operation, ids: questions.append(len(ids)) if operation == "held" else None
    gone, *_ = chunk_ids("d7", ["7 0"])
    del ground.sink.rows[gone]
    assert ground.audit() == (Counts(10, 30, 0, {}, {}), {(Kind.MISSING, "d7", gone)})
    assert questions == [3, 2, 1, 1, 1, 1, 1, 1], "with d3 there would be six rows; d7 is looked at twice"


def test_a_document_that_something_is_under_way_for_is_waited_for(ground: Ground) -> None:
    """What it differs by at the moment is no difference; if it still does when it is at rest, that counts."""
    ground.daemon = Colleague()
    for mended in (True, False):
        row = ground.sink.rows.pop(TWO)
        ground.daemon.busy = {"a"}

        def end(*, mended: bool = mended, row: object = row, daemon: Colleague = ground.daemon) -> None:
            if len(ground.waits) == 3:
                daemon.busy.clear()
                if mended:
                    ground.sink.rows[TWO] = row  # type: ignore[assignment]  # the row that was there

        ground.at_wait = end
        counts, found = ground.audit()
        assert counts.undecided == 0
        assert found == (set() if mended else {(Kind.MISSING, "a", TWO)})
        assert (len(ground.waits), ground.daemon.looks) == (3, 1 if mended else 2)
        ground.waits.clear()


def test_what_begins_during_a_look_does_not_count(ground: Ground) -> None:
    """It is asked for before the look and after it."""
    ground.daemon = daemon = Colleague()
    del ground.sink.rows[TWO]
    answers: list[int] = []

    def asked() -> None:
        answers.append(1)
        daemon.busy = {"a"} if len(answers) == 1 else set()

    daemon.asked = asked
    assert ground.found() == {(Kind.MISSING, "a", TWO)}
    assert (len(answers), len(ground.waits)) == (4, 1)


def test_what_never_comes_to_rest_is_not_judged(ground: Ground) -> None:
    """After a while it is counted as undecided, and the rest stands."""
    ground.daemon = Colleague()
    ground.daemon.busy = {"a"}
    ground.sink.rows.clear()
    (three,) = chunk_ids("b", ["three"])
    counts, found = ground.audit()
    assert (counts.undecided, found) == (1, {(Kind.MISSING, "b", three)})
    assert sum(ground.waits) == 60.0


def test_a_document_that_is_at_another_version_by_now_is_looked_at_anew(ground: Ground) -> None:
    """The same chunk is missing of another version: it takes two looks at that one."""
    ground.daemon = daemon = Colleague()
    looks: list[int] = []

    def write() -> None:
        looks.append(1)
        if len(looks) <= 2:
            entry = replace(ground.store.entries([key])[key], version=replace(version, number=10 + len(looks)))
            ground.store.write_ahead([entry])

    (key,) = [entry.key for entry in ground.store.collection_entries(COLLECTION) if entry.key.document_id == "a"]
    version = ground.store.entries([key])[key].version
    daemon.asked = write
    del ground.sink.rows[TWO]
    assert ground.found() == {(Kind.MISSING, "a", TWO)}
    assert len(ground.waits) == 2


def test_an_entry_that_changes_during_a_look_says_nothing(ground: Ground) -> None:
    """Rows were read between the two: they may be of either version."""
    ground.daemon = Colleague()
    del ground.sink.rows[TWO]
    looks: list[int] = []

    def before(operation: str, _ids: object) -> None:
        if operation == "held":
            looks.append(1)
            ground.stages.store.write_ahead(
                [
                    replace(entry, version=replace(entry.version, number=len(looks)))
                    for entry in ground.store.collection_entries(COLLECTION)
                    if len(looks) < 5
                ]
            )

    ground.sink.before = before
    assert ground.found() == {(Kind.MISSING, "a", TWO)}
    assert len(looks) == 6


def test_a_document_that_waits_for_another_try_is_not_judged(ground: Ground) -> None:
    """While no daemon runs it is not waited for either."""
    event = upsert("a", "one\nnew", 5)
    parked = Outcome(event, Verdict.RETRYING, failure=FAILURE, wait=10.0)
    ground.store.settle([parked], {COLLECTION: Fingerprints(FINGERPRINT, "")})
    del ground.sink.rows[TWO]
    counts, found = ground.audit()
    assert (counts.undecided, found, ground.waits) == (1, set(), [])


def test_where_members_share_a_collection_two_looks_are_apart(ground: Ground) -> None:
    """Nobody can say what is under way at the others: what differs for a moment only is not counted."""
    ground.feeds = Feeds(frozenset({"cms"}), frozenset(), shared=True)
    row = ground.sink.rows.pop(TWO)
    ground.at_wait = lambda: ground.sink.rows.__setitem__(TWO, row)
    assert ground.found() == set()
    assert ground.waits == [AT_REST]
    ground.at_wait = lambda: None
    del ground.sink.rows[TWO]
    assert ground.found() == {(Kind.MISSING, "a", TWO)}


def test_documents_of_sources_that_feed_it_no_more_are_named(ground: Ground) -> None:
    """They are held against nothing: nobody says what they should be."""
    ground.feeds = Feeds(frozenset({"inbox"}), frozenset({"inbox"}), shared=False)
    ground.sink.rows.clear()
    assert ground.audit() == (Counts(0, 0, 0, {}, {}), set())
    ground.stages.run(upsert("e", "five", 5, source="inbox"))
    ground.stages.run(upsert("f", "six", 5))
    ground.sink.rows["f" * 32] = replace(
        next(iter(ground.sink.rows.values())), id="f" * 32, document_id="g", source="x"
    )
    counts, found = ground.audit()
    assert (counts.documents, counts.strangers, found) == (2, {"cms": 1}, {(Kind.ORPHAN, "g", "f" * 32)})


def test_rows_of_another_members_source_are_named(ground: Ground) -> None:
    """Where others share the collection, what this one knows nothing of is theirs."""
    ground.feeds = Feeds(frozenset({"cms"}), frozenset({"cms"}), shared=True)
    theirs = upsert("e", "five", 5, source="theirs")
    other = Assembly(ground.store, ground.sink, shared=True)
    other.run(replace(theirs, lease=ManualLease()))
    ground.store.forget("theirs", COLLECTION)
    counts, found = ground.audit()
    assert (counts.strangers, found) == ({"theirs": 1}, set())


# Files


@pytest.fixture
def folder(ground: Ground) -> Folder:
    """The files of both documents, as they were written."""
    made = ground.surveys["cms"] = Folder()
    for document, text in (("a", "one\ntwo"), ("b", "three")):
        made.files[document] = ("1", text)
    return made


def settle(ground: Ground, document: str, verdict: Verdict, signature: str) -> None:
    """Have the source remember that a content ended so."""
    event = replace(upsert(document, "", None), signature=signature)
    failure = FAILURE if verdict is Verdict.DEAD_LETTERED else None
    ground.store.settle([Outcome(event, verdict, failure=failure)], {COLLECTION: Fingerprints(FINGERPRINT, "")})


def test_files_are_held_against_the_ledger(ground: Ground, folder: Folder) -> None:
    """New, edited and gone; one that was merely touched is as it was."""
    assert ground.found() == set()
    folder.files = {"a": ("2", "one\ntwo\nthree"), "new": ("1", "new")}
    assert ground.audit() == (
        Counts(3, 3, 0, {}, {}),
        {(Kind.STALE, "a", ""), (Kind.ORPHAN, "b", ""), (Kind.MISSING, "new", "")},
    )


def test_a_file_is_not_read_where_its_signature_was_settled(ground: Ground, folder: Folder) -> None:
    """Reading all of a large folder would take as long as ingesting it."""
    settle(ground, "a", Verdict.UNCHANGED, "1")
    folder.files["a"] = ("1", AssertionError("it was read"))
    assert ground.found() == set()


def test_what_failed_with_what_is_there_now_is_no_difference(ground: Ground, folder: Folder) -> None:
    """Of a document that is there, and of a new one; what has changed since then is one."""
    folder.files |= {"a": ("9", "bad"), "new": ("9", "bad"), "lost": ("1", "bad")}
    for document in ("a", "new", "lost"):
        settle(ground, document, Verdict.DEAD_LETTERED, "9")
    assert ground.found() == {(Kind.MISSING, "lost", "")}
    folder.files["a"] = folder.files["new"] = ("10", "good")
    assert ground.found() == {(Kind.STALE, "a", ""), (Kind.MISSING, "new", ""), (Kind.MISSING, "lost", "")}


def test_a_dead_letter_of_an_unknown_content_excuses_its_file(ground: Ground, folder: Folder) -> None:
    """What the source saw of it was forgotten with the collection: it cannot be told whether it is another by now."""
    settle(ground, "new", Verdict.DEAD_LETTERED, "9")
    ground.store.bind(COLLECTION, "another", [])
    ground.sink.rows.clear()
    folder.files = {"new": ("9", "bad")}
    assert ground.found() == set()


def test_a_file_that_was_settled_and_is_unknown_is_missing(ground: Ground, folder: Folder) -> None:
    """The source would leave it alone."""
    settle(ground, "new", Verdict.WRITTEN, "1")
    folder.files["new"] = ("1", "new")
    assert ground.found() == {(Kind.MISSING, "new", "")}


def test_an_edit_that_cannot_be_read_is_told_with_its_reason(ground: Ground, folder: Folder) -> None:
    """Milvus has the version before it, and why that stays so is said; in the midst of a change nothing is."""
    folder.files |= {"a": ("2", DocumentError("cms/a is 9 bytes; the most is 1")), "b": ("2", "")}
    with closing(Scratch()) as scratch:
        audit(Looker(ground.sink, ground.store, OURS, ground.surveys), scratch, None, patience=1.0)
        (found,) = scratch.differences(COLLECTION, Kind.STALE)
    assert found.document_id == "a"
    assert found.fault.detail.endswith("since version 1: cms/a is 9 bytes; the most is 1")


def test_a_document_of_another_source_is_no_files(ground: Ground, folder: Folder) -> None:
    """Its file is refused, and that is a dead letter; that it has none is no reason either."""
    ground.surveys = {"other": folder}
    folder.files = {"a": ("2", "another")}
    ground.feeds = Feeds(frozenset({"cms", "other"}), frozenset({"cms", "other"}), shared=False)
    assert ground.found() == set()


def test_a_rebuilt_ledger_does_not_know_contents(ground: Ground, folder: Folder) -> None:
    """Its source sends every document again when it next runs."""
    entries = list(ground.store.collection_entries(COLLECTION))
    ground.store.write_ahead([replace(entry, content="") for entry in entries])
    folder.files["a"] = ("2", "another")
    assert ground.found() == set()


def test_a_folder_that_cannot_be_looked_at_says_nothing_of_its_files(ground: Ground, folder: Folder) -> None:
    """They are not gone; what the ledger and Milvus say is compared all the same."""
    folder.away = True
    del ground.sink.rows[TWO]
    counts, found = ground.audit()
    assert counts.unknown == {"cms": "the folder is gone"}
    assert found == {(Kind.MISSING, "a", TWO)}


def test_a_file_that_cannot_be_looked_at_says_nothing_of_others(ground: Ground, folder: Folder) -> None:
    """One that is below a directory that may not be read: it is not gone, and what others say counts."""
    folder.closed = {"a"}
    folder.files["b"] = ("2", "edited")
    counts, found = ground.audit()
    assert counts.unknown == {"cms": "the folder is gone"}
    assert found == {(Kind.STALE, "b", "")}


def test_files_that_the_daemon_has_not_come_to_are_waited_for(ground: Ground, folder: Folder) -> None:
    """Its source is asked to look at once; as long as it is behind a new file is no difference."""
    ground.daemon = daemon = Colleague()
    folder.files["new"] = ("1", "new")
    daemon.files = {"new"}

    def write() -> None:
        if len(ground.waits) == 2:
            ground.stages.run(upsert("new", "new"))
            daemon.files.clear()

    ground.at_wait = write
    assert ground.found() == set()
    assert (len(ground.waits), daemon.looks) == (2, 1)
