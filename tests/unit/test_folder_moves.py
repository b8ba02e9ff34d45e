"""When files are moved away, and when it is tried again."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.fakes import ManualClock

from ingestd.errors import UnavailableError
from ingestd.model import Seen, Verdict
from ingestd.sources._globs import Globs
from ingestd.sources._moves import FIRST_SECONDS, MOST_SECONDS, MOVED, Moves, Shelves
from ingestd.sources._shelf import Shelf
from ingestd.sources._tree import Tree
from ingestd.sources._view import File, View

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from ingestd import ports
    from ingestd.model import DeadLetter


@dataclass
class Store:
    """What was seen and what is held, as the test says."""

    seens: list[Seen] = field(default_factory=list)
    held: dict[str, bool] = field(default_factory=dict)
    away: bool = False

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """See ``ports.SeenStore``."""
        return iter(self.seens)

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """See ``ports.SeenStore``."""
        return iter(self.held.items())

    def waiting(self, owned: Collection[tuple[str, str]]) -> int:
        """See ``ports.SeenStore``."""
        return 0

    def letter(self, source: str, document_id: str, collection: str) -> DeadLetter | None:
        """See ``ports.SeenStore``."""
        if self.away:
            raise UnavailableError("state", "the disk is gone")
        return None

    def confirmed(self, source: str) -> frozenset[str]:
        """See ``ports.SeenStore``."""
        return frozenset()


@dataclass
class Scope:
    """What a source is given."""

    clock: ports.Clock
    seen: ports.SeenStore
    max_bytes: int = 1 << 20
    shared: bool = False

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the one fingerprint."""
        return "f"


class Full(Shelf):
    """A shelf that takes nothing, and counts."""

    number = 28
    tried = 0

    def put(self, *_arguments: object, **_options: object) -> str:
        """Fail."""
        self.tried += 1
        raise OSError(self.number, os.strerror(self.number))


class Bench:
    """Files in a folder that are at an end, and what moves them when the test says so."""

    def __init__(self, folder: Path, count: int, verdict: Verdict = Verdict.WRITTEN) -> None:
        self.root = folder / "inbox"
        self.root.mkdir()
        self.clock, self.store, self.view = ManualClock(), Store(), View()
        self.tree = Tree(os.fsencode(self.root), Globs(["**/*"], []))
        self.shelf = Full(os.fsencode(folder / "shelf"), self.tree, "s")
        self.moves = Moves("s", "c", self.tree, Scope(self.clock, self.store), Shelves(self.shelf, self.shelf))
        for number in range(count):
            (self.root / f"{number}").write_text("text")
            found = self.tree.look(b"%d" % number)
            assert found is not None
            file = self.view.files[f"s/{number}"] = File(found.signature, verdict, known=True)
            self.moves.put(f"s/{number}", file)

    def turn(self) -> list[str]:
        """Move what is due; return what is to be looked at."""
        return list(self.moves.turn(self.view, lambda: None))


def test_a_shelf_that_is_full_is_not_asked_for_each_file(tmp_path: Path) -> None:
    """One file in five seconds finds out; the others wait, each longer and longer."""
    bench = Bench(tmp_path, 10)
    assert bench.moves.busy
    bench.turn()
    assert (bench.shelf.tried, len(bench.moves.stuck), bench.moves.busy) == (1, 10, False)
    assert "10 files" in bench.moves.check().detail
    for _ in range(100):
        bench.clock.advance(FIRST_SECONDS + 1)
        bench.turn()
    assert bench.shelf.tried <= 100
    assert len(bench.moves.stuck) == 10


def test_a_file_that_cannot_be_moved_holds_no_other_up(tmp_path: Path) -> None:
    """What is wrong with one is asked for each, again and again, in longer and longer steps."""
    bench = Bench(tmp_path, 2)
    bench.shelf.number = 1
    gaps, before = [], 0.0
    for second in range(2000):
        tried = bench.shelf.tried
        bench.turn()
        if bench.shelf.tried > tried:
            assert bench.shelf.tried == tried + 2
            gaps.append(second - before)
            before = second
        bench.clock.advance(1.0)
    assert gaps[:7] == [0, 5, 10, 20, 40, 80, 160]
    assert set(gaps[7:]) == {MOST_SECONDS}


def test_a_turn_moves_a_bounded_number(tmp_path: Path) -> None:
    """The rest is moved in the next ones."""
    bench = Bench(tmp_path, MOVED + 1)
    bench.shelf.number = 1
    bench.turn()
    assert bench.shelf.tried == MOVED
    bench.turn()
    assert bench.shelf.tried == MOVED + 1


def test_without_the_state_no_file_that_failed_is_moved(tmp_path: Path) -> None:
    """Its reason is there: it is asked later, and the process goes on."""
    bench = Bench(tmp_path, 1, Verdict.DEAD_LETTERED)
    bench.moves.shelves = Shelves(None, Shelf(bench.shelf.root, bench.tree, "s"))
    bench.store.away = True
    assert bench.turn() == []
    assert "the disk is gone" in bench.moves.check().detail
    bench.store.away = False
    bench.clock.advance(FIRST_SECONDS)
    bench.turn()
    assert bench.moves.check().ok
    assert {"0", "0.reason.json"} == {path.name for path in (tmp_path / "shelf").iterdir()}


def test_what_failed_and_is_away_is_sent_again_when_it_is_back(tmp_path: Path) -> None:
    """Also on a file system where a rename leaves all time stamps as they are; and its absence deletes nothing."""
    bench = Bench(tmp_path, 1, Verdict.DEAD_LETTERED)
    file = bench.view.files["s/0"]
    file.failed = True
    bench.moves.shelves = Shelves(None, Shelf(bench.shelf.root, bench.tree, "s"))
    bench.turn()
    assert bench.view.files["s/0"].signature is None
    assert bench.moves.keeps("s/0", file)


@pytest.mark.parametrize("verdict", [Verdict.RETRYING, Verdict.SUPERSEDED, None])
def test_what_is_not_at_an_end_stays(tmp_path: Path, verdict: Verdict | None) -> None:
    """A file that waits for its next try is read again where it is."""
    bench = Bench(tmp_path, 0)
    bench.moves.put("s/0", File("signature", verdict))
    assert not bench.moves.busy


def test_of_a_drop_box_only_what_is_there_is_loaded() -> None:
    """And documents that are not whole: years of files that went by take no memory at the start."""
    store = Store(
        [Seen("s", f"s/{number}", "signature", Verdict.WRITTEN, "f") for number in range(100)],
        {f"s/{number}": number != 7 for number in range(200)},
    )
    view = View.load("s", "c", Scope(ManualClock(), store), {"s/3", "s/150", "s/new"})
    assert {document: (file.signature, file.whole) for document, file in view.files.items()} == {
        "s/3": ("signature", True),
        "s/7": (None, False),
        "s/150": (None, True),
    }


def test_what_failed_is_known_to_have_failed_whatever_that_rested_on() -> None:
    """Also under another configuration, and while it is tried again: its absence deletes nothing."""
    seens = [
        Seen("s", "s/old", "signature", Verdict.DEAD_LETTERED, "another"),
        Seen("s", "s/again", "signature", Verdict.RETRYING, "f"),
        Seen("s", "s/good", "signature", Verdict.WRITTEN, "f"),
    ]
    view = View.load("s", "c", Scope(ManualClock(), Store(seens, {"s/good": True})))
    assert {document: file.failed for document, file in view.files.items()} == {
        "s/old": True,
        "s/again": True,
        "s/good": False,
    }


def test_of_two_sources_with_one_shelf_each_gets_its_own_file_back(tmp_path: Path) -> None:
    """The file that came last is another's: its reason tells. Where none has a reason it is the last."""
    shelves = {}
    for source in "st":
        (tmp_path / source).mkdir()
        (tmp_path / source / "a").write_text(f"of {source}")
        tree = Tree(os.fsencode(tmp_path / source), Globs(["**/*"], []), True, False)
        shelves[source] = Shelf(os.fsencode(tmp_path / "failed"), tree, source)
        found = tree.look(b"a")
        assert found is not None
        shelves[source].put(b"a", found.signature, {"document_id": f"{source}/a"})
    assert [shelves["s"].holds(b"a", f"{source}/a") for source in "stu"] == [True, True, False]
    assert not shelves["s"].holds(b"b", "s/b")
    assert shelves["s"].put_back(b"a", "s/a", 100)
    assert (tmp_path / "s" / "a").read_text() == "of s"
    assert not shelves["s"].holds(b"a", "s/a")
    assert not shelves["s"].put_back(b"a", "s/a", 100), "what is there is another's"
    (tmp_path / "failed" / "a.1.reason.json").unlink()
    assert shelves["t"].put_back(b"a", "t/a", 100)
    assert (tmp_path / "t" / "a").read_text() == "of t"
    assert not [path for path in (tmp_path / "failed").iterdir() if path.suffix != ".json"]


def test_of_a_shelf_that_is_cleaned_by_age_the_latest_comes_back(tmp_path: Path) -> None:
    """The first numbers are gone, and were given again: the greatest number is not the latest file."""
    (tmp_path / "s").mkdir()
    tree = Tree(os.fsencode(tmp_path / "s"), Globs(["**/*"], []), True, False)
    shelf = Shelf(os.fsencode(tmp_path / "done"), tree, "s")

    def put(text: str) -> None:
        time.sleep(0.02)  # the clock of a file system ticks a hundred times a second
        (tmp_path / "s" / "r.1.txt").write_text(text)
        found = tree.look(b"r.1.txt")
        assert found is not None
        shelf.put(b"r.1.txt", found.signature, None)

    put("first")
    put("second")
    (tmp_path / "done" / "r.1.txt").unlink()
    put("third")
    (tmp_path / "done" / "r.1.2.md").write_text("another's")
    (tmp_path / "done" / "r.1.07.txt").write_text("another's")
    assert {path.name for path in (tmp_path / "done").iterdir()} >= {"r.1.txt", "r.1.1.txt"}
    assert shelf.put_back(b"r.1.txt", "s/r.1.txt", 100)
    assert (tmp_path / "s" / "r.1.txt").read_text() == "third"


def test_when_a_file_failed_is_what_its_reason_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gives the files of a shelf other rights changes their times, in any order; numbers were given again."""
    (tmp_path / "s").mkdir()
    tree = Tree(os.fsencode(tmp_path / "s"), Globs(["**/*"], []), True, False)
    shelf, failed = Shelf(os.fsencode(tmp_path / "failed"), tree, "s"), tmp_path / "failed"
    for number, text in enumerate(("first", "second", "third", "fourth")):
        (tmp_path / "s" / "a.txt").write_text(text)
        found = tree.look(b"a.txt")
        assert found is not None
        said = {"document_id": "s/a.txt", "last_failed_at": f"2026-01-01T00:00:0{number}+00:00"}
        shelf.put(b"a.txt", found.signature, said)
    for name in ("a.txt", "a.1.txt"):  # by age
        (failed / name).unlink()
        (failed / f"{name}.reason.json").unlink()
    (failed / "a.2.txt").chmod(0o600)
    assert shelf.holds(b"a.txt", "s/a.txt")
    assert not shelf.holds(b"a.txt", "s/b.txt")
    assert shelf.put_back(b"a.txt", "s/a.txt", 100)
    assert (tmp_path / "s" / "a.txt").read_text() == "fourth"
    (tmp_path / "s" / "a.txt").unlink()
    monkeypatch.setattr(os, "listdir", lambda *_: pytest.fail("a listing for each file of a large shelf takes hours"))
    assert shelf.put_back(b"a.txt", "s/a.txt", 100)
    assert (tmp_path / "s" / "a.txt").read_text() == "third"


@pytest.mark.parametrize("how", ["moved", "copied", "linked"])
def test_a_file_whose_sidecar_was_put_back_alone_comes_back_to_it(tmp_path: Path, how: str) -> None:
    """The daemon was killed in between; the shelf keeps nothing of it."""
    shelf = _shelved(tmp_path)
    kept, sidecar = tmp_path / "failed" / "a.meta.json", tmp_path / "inbox" / "a.meta.json"
    if how == "copied":
        sidecar.write_bytes(kept.read_bytes())
    else:
        os.link(kept, sidecar)
    if how == "moved":
        kept.unlink()
    assert shelf.put_back(b"a", "s/a", 100)
    assert ((tmp_path / "inbox" / "a").read_text(), sidecar.read_text()) == ("text", "{}")
    assert not list((tmp_path / "failed").iterdir())


def test_of_two_sidecars_none_is_chosen(tmp_path: Path) -> None:
    """The file stays on the shelf, with its own."""
    shelf = _shelved(tmp_path)
    sidecar = tmp_path / "inbox" / "a.meta.json"
    sidecar.write_text("[]")
    assert not shelf.put_back(b"a", "s/a", 100)
    assert (sidecar.read_text(), (tmp_path / "failed" / "a.meta.json").read_text()) == ("[]", "{}")
    assert not (tmp_path / "inbox" / "a").exists()


def _shelved(tmp_path: Path) -> Shelf:
    """Put a file with its sidecar on a shelf; return the shelf."""
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a").write_text("text")
    (tmp_path / "inbox" / "a.meta.json").write_text("{}")
    tree = Tree(os.fsencode(tmp_path / "inbox"), Globs(["**/*"], []), True, False)
    shelf = Shelf(os.fsencode(tmp_path / "failed"), tree, "s")
    found = tree.look(b"a")
    assert found is not None
    shelf.put(b"a", found.signature, {"document_id": "s/a"})
    return shelf
