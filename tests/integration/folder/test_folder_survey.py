"""What a folder source says to an audit: what is there now, and what it has not come to."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING

import pytest

from ingestd.errors import DocumentError, UnavailableError
from ingestd.model import Content, Failure, Op, Parked, Stage, Version

if TYPE_CHECKING:
    from tests.integration.folder.conftest import Rig

FAILURE = Failure(Stage.WRITE, "TransientError", "for a test")


def test_a_survey_tells_what_the_source_would_hand_in(rig: Rig) -> None:
    """The same documents, signatures and contents as its events have; sidecars and left-out files are none."""
    rig.write("a.txt", "one")
    rig.write("deep/b.txt", "two")
    rig.write("a.txt.meta.json", '{"lang": "en"}')
    rig.write("left-out.tmp", "three")
    survey = rig.once().survey()
    events = {event.key.document_id: event for event in rig.engine.events}
    assert dict(survey) == {document: event.signature for document, event in events.items()}
    assert events.keys() == {"s/a.txt", "s/deep/b.txt"}
    for document, event in events.items():
        assert event.payload is not None
        assert survey.owns(document)
        assert (survey.signature(document), survey.digest(document)) == (event.signature, event.payload.read().digest())
    assert survey.digest("s/a.txt") == Content(b"one", "a.txt", metadata={"lang": "en"}).digest()


def test_what_is_not_there_and_what_is_no_file_of_this_folder(rig: Rig) -> None:
    """Gone is gone; an id of another source, or one that leads out of the folder, is nobody's here."""
    rig.write("a.txt", "one")
    (rig.root.parent / "outside.txt").write_text("outside")
    survey = rig.source().survey()
    for document in ("s/b.txt", "s/../outside.txt", "other/a.txt", "s", ""):
        assert (survey.signature(document), survey.digest(document)) == (None, None)
    assert [survey.owns(document) for document in ("s/b.txt", "s/../outside.txt", "other/a.txt")] == [
        True,
        False,
        False,
    ]


def test_a_survey_of_what_cannot_be_looked_at_says_so(rig: Rig) -> None:
    """A folder that is gone is not empty, and a file that cannot be used is told from one that cannot be reached."""
    rig.write("large.txt", "x" * 100)
    rig.write("sidecar.txt", "x")
    rig.write("sidecar.txt.meta.json", "[")
    rig.scope.max_bytes = 10
    survey = rig.source().survey()
    with pytest.raises(DocumentError, match="100 bytes"):
        survey.digest("s/large.txt")
    with pytest.raises(DocumentError, match="cannot be used as JSON"):
        survey.digest("s/sidecar.txt")
    rig.root.rename(rig.root.parent / "away")
    for look in (lambda: list(survey), lambda: survey.signature("s/a.txt"), lambda: survey.digest("s/a.txt")):
        with pytest.raises(UnavailableError, match=r"sources\.s: .*No such file"):
            look()


def test_what_can_be_looked_at_is_told_before_what_cannot(rig: Rig) -> None:
    """A file below a directory that cannot be read is not gone, and all others are what they are."""
    rig.write("a.txt", "one")
    rig.write("closed/b.txt", "two")
    survey = rig.source().survey()
    (rig.root / "closed").chmod(0o700 if os.geteuid() == 0 else 0)
    found: list[str] = []
    errors: list[str] = []

    def look() -> None:
        if os.geteuid() == 0:
            ctypes.CDLL(None).setfsuid(65534)  # of this thread alone; it drops the right to read everything
        try:
            for document, _signature in survey:
                found.append(document)
        except UnavailableError as error:
            errors.append(str(error))
        try:
            survey.signature("s/closed/b.txt")
        except UnavailableError as error:
            errors.append(str(error))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == ["s/a.txt"]
    assert errors[0].endswith("1 directories cannot be read, closed among them: Permission denied")
    assert "s/closed/b.txt cannot be looked at" in errors[1]


def test_a_look_that_is_asked_for_comes_at_once(rig: Rig) -> None:
    """Without a watch and an hour before the next scan: until it has ended the source is behind with everything."""
    with rig.running(rescan_seconds=3600, watch="poll") as source:
        rig.until(lambda: source.status().scans == 1)
        rig.write("a.txt", "one", age=60)
        resume = rig.hold_up()
        look = source.look()
        assert source.behind(["s/a.txt", "s/b.txt"], look) == {"s/a.txt", "s/b.txt"}
        resume()
        rig.until(lambda: "a.txt" in rig.texts())
        rig.until(lambda: source.behind(["s/a.txt", "s/b.txt"], look) == frozenset())
        assert source.status().scans == 2


def test_a_source_is_behind_with_what_it_has_not_finished(rig: Rig) -> None:
    """A file that is not settled, one in flight, and one that is gone and waits for its second look."""
    rig.write("gone.txt", "one", age=60)
    rig.once()
    with rig.running(rescan_seconds=3600, watch="poll", settle_seconds=1.5) as source:
        rig.engine.withhold = True
        rig.write("flies.txt", "two", age=60)
        os.utime(rig.write("settles.txt", "three"))
        (rig.root / "gone.txt").unlink()
        documents = ["s/flies.txt", "s/settles.txt", "s/gone.txt", "s/nothing.txt"]
        look = source.look()
        rig.until(lambda: source.status().scans == 2)
        rig.until(lambda: source.behind(documents, look) == set(documents[:3]))
        rig.until(lambda: len(rig.engine.withheld) == 3)
        assert source.behind(documents, look) == set(documents[:3])
        rig.engine.release()
        rig.until(lambda: source.behind(documents, look) == frozenset())
        assert rig.texts() == {"flies.txt": "two", "settles.txt": "three"}


def test_a_source_is_not_behind_with_deletes_that_it_holds(rig: Rig) -> None:
    """They wait for a person: an audit is to tell of them."""
    for number in range(10):
        rig.write(f"{number}.txt")
    rig.once()
    for number in range(5):
        (rig.root / f"{number}.txt").unlink()
    gone = [f"s/{number}.txt" for number in range(5)]
    with rig.running(rescan_seconds=3600, watch="poll", mass_delete={"documents": 5}) as source:
        look = source.look()
        rig.until(lambda: source.status().held == 5)
        assert source.behind(gone, look) == frozenset()


def test_what_brings_a_document_again(rig: Rig) -> None:
    """Its file, in the place that its events name; of an id that no file can have there is nothing."""
    rig.write("a.txt", "one")
    source = rig.once()
    versions = dict.fromkeys(["s/a.txt", "s/gone.txt", "other/a.txt"], Version(1, "s"))
    again = list(source.again(versions))
    assert [one.document_id for one in again] == ["s/a.txt", "s/gone.txt"]
    (event,) = rig.engine.events
    assert (again[0].position, again[0].record) == (event.position, None)
    parked = Parked(event.key, Op.UPSERT, "s", again[0].position, 1, 1.0, 2.0, FAILURE)
    revived = source.revive(parked)
    assert revived is not None
    assert revived.payload is not None
    assert revived.payload.read().data == b"one"


def test_a_file_that_was_moved_away_is_put_back_to_bring_its_document_again(rig: Rig) -> None:
    """The one that came last, with its sidecar; what is not there any more, or is too large by now, brings nothing."""
    done = rig.root.parent / "done"
    for name in ("a.txt", "a.1.txt", "large.txt", "sub/b.txt"):
        (done / name).parent.mkdir(parents=True, exist_ok=True)
        (done / name).write_text(f"{name} " * (100 if name == "large.txt" else 1))
    (done / "a.1.txt.meta.json").write_text('{"n": 1}')
    rig.write("here.txt", "here")
    rig.scope.max_bytes = 50
    source = rig.source(done=done)
    names = ["a.txt", "large.txt", "sub/b.txt", "here.txt", "gone.txt"]
    again = source.again({f"s/{name}": Version(1, "s") for name in names})
    assert [one.document_id for one in again] == ["s/a.txt", "s/sub/b.txt", "s/here.txt"]
    there = {"a.txt": "a.1.txt ", "a.txt.meta.json": '{"n": 1}', "sub/b.txt": "sub/b.txt ", "here.txt": "here"}
    assert rig.tree() == there
    assert {path.name for path in done.rglob("*") if path.is_file()} == {"a.txt", "large.txt"}
