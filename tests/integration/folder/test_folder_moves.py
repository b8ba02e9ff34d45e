"""Files that are at an end are moved to ``done`` and ``failed``: which, when, under what name, and what if not."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from tests.integration.folder.conftest import FAILED

from ingestd.errors import UnavailableError
from ingestd.model import DeadLetter, DocumentKey, Op, Verdict
from ingestd.sources import _moves, _transfer
from ingestd.sources.folder import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.folder.conftest import Rig

    from ingestd.sources.folder import FolderSource

BAD = "b"
"""How the names of files begin that fail."""


@pytest.fixture
def shelves(rig: Rig) -> dict[str, Any]:
    """Both folders, beside the watched one; neither is there yet."""
    return {"done": rig.root.parent / "done", "failed": rig.root.parent / "failed"}


def held(folder: Path) -> dict[str, str]:
    """Return what is in a folder, by the path below it."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    """Return the paths of the files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def is_empty(rig: Rig) -> bool:
    """Return whether no file is left in the folder: they may go while it is looked at."""
    return not names(rig.root)


def bad_fail(rig: Rig) -> None:
    """Have files whose names begin so fail."""
    settle = rig.engine.settle

    def judged(event: object, verdict: Verdict | None = None) -> None:
        bad = event.key.document_id.rpartition("/")[2].startswith(BAD)  # type: ignore[attr-defined]
        settle(event, Verdict.DEAD_LETTERED if bad and verdict is None else verdict)  # type: ignore[arg-type]

    rig.engine.settle = judged  # type: ignore[method-assign]


@contextmanager
def running(rig: Rig, **settings: Any) -> Iterator[FolderSource]:
    """Run a source for which some files fail."""
    with rig.running(**settings) as source:
        bad_fail(rig)
        yield source


def once(rig: Rig, **settings: Any) -> FolderSource:
    """Run a source once, for which some files fail."""
    source = rig.source(**settings)
    bad_fail(rig)
    source.run(rig.engine, once=True)
    return source


def check(source: FolderSource) -> tuple[bool, str]:
    """Return whether files are moved as they should be, and what is said of it."""
    found = next(one for one in source.checks() if one.name == "s:moves")
    return found.ok, f"{found.detail} {found.cure}"


def test_files_are_moved_with_their_paths_sidecars_and_reasons(rig: Rig, shelves: dict[str, Any]) -> None:
    """What is written to one, what failed to the other; nothing is deleted for it, and the next run is idle."""
    rig.write("x/y/a.txt", "good")
    rig.write("x/y/a.txt.meta.json", '{"n": 1}')
    rig.write("x/b.txt", "bad")
    rig.write("x/b.txt.meta.json", '{"n": 2}')
    rig.write("a.txt", "good too").chmod(0o640)
    once(rig, **shelves)
    assert rig.tree() == {}
    assert held(shelves["done"]) == {"x/y/a.txt": "good", "x/y/a.txt.meta.json": '{"n": 1}', "a.txt": "good too"}
    assert (shelves["done"] / "a.txt").stat().st_mode & 0o777 == 0o640
    failed = held(shelves["failed"])
    reason = json.loads(failed.pop("x/b.txt.reason.json"))
    assert failed == {"x/b.txt": "bad", "x/b.txt.meta.json": '{"n": 2}'}
    assert reason["document_id"] == "s/x/b.txt"
    assert reason["path"] == str(rig.root / "x/b.txt")
    assert (reason["stage"], reason["error"], reason["message"]) == (FAILED.stage, FAILED.error, FAILED.message)
    assert (reason["attempts"], reason["last_failed_at"]) == (1, "1970-01-01T00:01:00+00:00")
    assert (reason["dead_letter"], reason["configuration"]) == (1, "one")
    assert str(rig.root) in reason["cure"]
    assert {"s/x/y/a.txt", "s/a.txt"} == set(rig.store.rows)
    once(rig, **shelves)
    assert rig.engine.events == []
    assert {"s/x/y/a.txt", "s/a.txt"} == set(rig.store.rows)


def test_what_went_by_is_not_loaded_again(rig: Rig, shelves: dict[str, Any]) -> None:
    """A source begins with what is known of the files that are there, however many were there before."""
    for number in range(20):
        rig.write(f"{number}")
    once(rig, done=shelves["done"])
    rig.write("0", "newer")
    source = rig.source(done=shelves["done"])
    source._rounds.load()
    assert (source.status().files, len(rig.store.stats)) == (1, 20)


def test_files_are_moved_while_the_source_runs(rig: Rig, shelves: dict[str, Any]) -> None:
    """Each soon after it is settled and not before; a newer file of the same name is a newer version."""
    with running(rig, **shelves, rescan_seconds=60) as source:
        rig.engine.withhold = True
        rig.write("a", "1")
        rig.until(lambda: rig.engine.withheld)
        assert rig.tree() == {"a": "1"}
        rig.engine.release()
        rig.until(lambda: is_empty(rig))
        rig.write("a", "22")
        rig.until(lambda: rig.texts() == {"a": "22"} and is_empty(rig))
        rig.write("b", "bad")
        rig.until(lambda: is_empty(rig))
        rig.write("b", "bad again")
        rig.until(lambda: is_empty(rig))
        assert held(shelves["done"]) == {"a": "1", "a.1": "22"}
        failed = held(shelves["failed"])
        assert (failed["b"], failed["b.1"]) == ("bad", "bad again")
        assert {"b", "b.reason.json", "b.1", "b.1.reason.json"} == set(failed)
        assert [Op.UPSERT] * 2 == rig.engine.ops("s/a")
        rig.until(lambda: source.status().files == 0)  # what is away is forgotten
        assert (source.status().unmoved, check(source)) == (0, (True, " "))


def test_with_failed_alone_good_files_stay_and_their_deletes_count(rig: Rig, shelves: dict[str, Any]) -> None:
    """A file whose new version fails is moved, and the old version stays, also over a restart; a delete is one."""
    failed = {"failed": shelves["failed"]}
    rig.write("a", "good")
    rig.write("c", "good")
    once(rig, **failed)
    assert rig.tree() == rig.texts() == {"a": "good", "c": "good"}
    (rig.root / "a").rename(rig.root / "b")  # the document is another one
    rig.write("c", "bad")
    source = rig.source(**failed)
    rig.engine.verdict = Verdict.DEAD_LETTERED
    source.run(rig.engine, once=True)
    assert rig.engine.ops("s/a") == [Op.DELETE]
    rig.store.rows.pop("s/a", None)
    rig.store.stats.pop("s/a", None)
    assert rig.tree() == {}
    assert rig.texts() == {"c": "good"}
    for _ in range(2):
        once(rig, **failed)
        assert rig.engine.events == []
        assert rig.texts() == {"c": "good"}
    rig.scope.configuration = "two"
    once(rig, **failed)
    assert rig.engine.events == []
    rig.write("c", "mended")
    once(rig, **failed)
    assert rig.texts() == {"c": "mended"}
    (rig.root / "c").unlink()
    once(rig, **failed)
    assert rig.texts() == {}
    assert rig.source(**failed).absent() == frozenset()


def test_with_done_alone_failed_files_stay(rig: Rig, shelves: dict[str, Any]) -> None:
    """And no document is deleted because its file is not there, whoever took it away."""
    rig.write("a", "good")
    rig.write("b", "bad")
    once(rig, done=shelves["done"])
    assert rig.tree() == {"b": "bad"}
    (rig.root / "b").unlink()
    shutil.rmtree(shelves["done"])
    with running(rig, done=shelves["done"], rescan_seconds=0.2) as source:
        rig.until(lambda: source.status().scans > 3)
        assert rig.engine.events == []
        assert rig.texts() == {"a": "good"}
        assert source.absent() == frozenset()


def test_what_failed_and_is_away_stays_when_all_that_was_seen_is_lost(rig: Rig, shelves: dict[str, Any]) -> None:
    """A state that was lost, or a collection made anew: the ledger has the good version, and the shelf why it stays.

    What is gone and failed nowhere is deleted, as ever.
    """
    failed = shelves["failed"]
    for name in ("b.txt", "c.txt"):
        rig.write(name, "good")
        rig.once(failed=failed)
    rig.write("b.txt", "bad")
    once(rig, failed=failed)
    assert names(failed) == {"b.txt", "b.txt.reason.json"}
    rig.store.stats.clear()
    rig.store.letters.clear()
    (rig.root / "c.txt").unlink()
    rig.write("d.txt", "another")
    assert rig.source(failed=failed).absent() == {"s/c.txt"}
    rig.once(failed=failed)
    assert rig.texts() == {"b.txt": "good", "d.txt": "another"}


def test_a_file_that_is_put_back_is_tried_again(rig: Rig, shelves: dict[str, Any]) -> None:
    """By a rename, which leaves its content and time as they were; it ends in ``done`` if it is good now."""
    rig.write("b.txt", "bad")
    once(rig, **shelves)
    (shelves["failed"] / "b.txt").rename(rig.root / "b.txt")
    once(rig, **shelves)
    assert rig.engine.verdicts("s/b.txt") == [Verdict.DEAD_LETTERED]
    # Its reason is written anew, in place of the last one.
    assert {"b.txt", "b.txt.reason.json"} == names(shelves["failed"])
    with rig.running(**shelves):
        (shelves["failed"] / "b.txt").rename(rig.root / "b.txt")
        rig.until(lambda: rig.texts() == {"b.txt": "bad"} and is_empty(rig))
    assert names(shelves["done"]) == {"b.txt"}


def test_nothing_is_overwritten(rig: Rig, shelves: dict[str, Any]) -> None:
    """Names that are taken, by files, sidecars, directories, symlinks or others' reasons, get the next number."""
    done, failed = shelves.values()
    (done / "a.tar").mkdir(parents=True)
    (done / "d").write_text("a file, where a directory is needed")
    (done / "c.txt.meta.json").write_text("a sidecar of nothing")
    (done / "e").symlink_to("nowhere")
    for number in range(1, 8):
        (done / f"f.{number}.txt").write_text("taken")
    (done / "f.txt").write_text("taken")
    failed.mkdir()
    (failed / "b.reason.json").write_text('{"document_id": "somebody\'s"}')
    (failed / "b.1.reason.json").write_text("no reason at all")
    before = held(done), held(failed)
    for name in ("a.tar", "d/x", "c.txt", "e", "f.txt", "b"):
        rig.write(name, f"of {name}")
    once(rig, **shelves)
    assert rig.tree() == {}
    assert held(done) == before[0] | {
        "a.1.tar": "of a.tar",
        "d.1/x": "of d/x",
        "c.1.txt": "of c.txt",
        "e.1": "of e",
        "f.8.txt": "of f.txt",
    }
    after = held(failed)
    assert json.loads(after.pop("b.2.reason.json"))["document_id"] == "s/b"
    assert after == before[1] | {"b.2": "of b"}


@pytest.mark.parametrize("length", [200, 245, 246, 255])
def test_long_names(rig: Rig, shelves: dict[str, Any], length: int) -> None:
    """Names as long as they may be are moved whole; what is put to them is cut to fit."""
    for text in ("one", "two"):
        rig.write("b" * (length - 4) + ".txt", text)
        once(rig, **shelves)
        assert rig.tree() == {}
    failed = held(shelves["failed"])
    assert failed["b" * (length - 4) + ".txt"] == "one"
    assert [text for name, text in failed.items() if name.endswith(".1.txt")] == ["two"]
    assert len([name for name in failed if name.endswith(".reason.json")]) == 2


def test_a_file_that_is_replaced_is_looked_at_again_and_not_moved(
    rig: Rig, shelves: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the rename another one takes its name: that one goes back, is read, and then moved."""
    moved = _transfer.move
    seen: list[str] = []

    def late(origin: _transfer.Place, target: _transfer.Place) -> None:
        if origin.name == b"a" and not seen:
            other = rig.root / ".other"
            other.write_text("newer")
            other.rename(rig.root / "a")
            seen.append("replaced")
        moved(origin, target)

    monkeypatch.setattr(_transfer, "move", late)
    with rig.running(**shelves, rescan_seconds=60):
        rig.write("a", "older")
        rig.until(lambda: rig.texts() == {"a": "newer"} and is_empty(rig))
    assert held(shelves["done"]) == {"a": "newer"}
    assert rig.engine.ops("s/a") == [Op.UPSERT, Op.UPSERT]


@pytest.mark.parametrize("where", ["a", "b", "b.reason.json"])
def test_a_name_that_is_taken_meanwhile_is_not_overwritten(
    rig: Rig, shelves: dict[str, Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Between the look at the names and the rename somebody takes one: the file has the next number."""
    moved = _transfer.move
    shelf = shelves["done" if where == "a" else "failed"]

    def late(origin: _transfer.Place, target: _transfer.Place) -> None:
        if target.name == where.encode():
            (shelf / where).write_text("somebody's")
        moved(origin, target)

    monkeypatch.setattr(_transfer, "move", late)
    monkeypatch.setattr("ingestd.sources._shelf.move", late)
    rig.write("a", "good")
    rig.write("b", "bad")
    once(rig, **shelves)
    assert rig.tree() == {}
    there = {name for name in held(shelf) if name != where}
    assert there == ({"a.1"} if where == "a" else {"b.1", "b.1.reason.json"})
    assert held(shelf)[where] == "somebody's"


def test_a_file_that_changes_before_it_is_moved_stays(rig: Rig, shelves: dict[str, Any]) -> None:
    """Or whose sidecar does: it is read again first."""
    for name in ("a", "c", "c.meta.json"):
        rig.write(name, "{}")
    source = rig.source(**shelves)
    settle = rig.engine.settle

    def change_meanwhile(event: object, verdict: Verdict | None = None) -> None:
        settle(event, verdict)  # type: ignore[arg-type]
        if len(rig.engine.outcomes) == 2:
            rig.write("a", '{"changed": 1}')
            rig.write("c.meta.json", '{"changed": 1}')

    rig.engine.settle = change_meanwhile  # type: ignore[method-assign]
    source.run(rig.engine, once=True)
    assert rig.tree() == {}
    assert rig.store.rows["s/c"].metadata == {"changed": 1}
    assert rig.store.rows["s/a"].data == b'{"changed": 1}'
    assert held(shelves["done"]) == {"a": '{"changed": 1}', "c": "{}", "c.meta.json": '{"changed": 1}'}


def test_hard_links_are_names_like_any_other(rig: Rig, shelves: dict[str, Any]) -> None:
    """Of a file with two names each is moved; one outside the folder stays."""
    outside = rig.root.parent / "outside"
    rig.write("a", "text")
    os.link(rig.root / "a", rig.root / "c")
    os.link(rig.root / "a", outside)
    with rig.running(**shelves, rescan_seconds=0.5):
        rig.until(lambda: is_empty(rig))
    assert held(shelves["done"]) == {"a": "text", "c": "text"}
    assert outside.read_text() == "text"


@pytest.fixture
def unknown_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not know ``RENAME_NOREPLACE``, as NFS."""

    def refuse(*_arguments: object) -> int:
        ctypes.set_errno(22)
        return -1

    monkeypatch.setattr(_transfer, "_renameat2", refuse)


@pytest.mark.usefixtures("unknown_flag")
def test_without_the_flag_a_link_does_it(rig: Rig, shelves: dict[str, Any]) -> None:
    """Still nothing is overwritten, and what is moved is gone from the folder."""
    shelves["done"].mkdir()
    (shelves["done"] / "a").write_text("taken")
    rig.write("a", "text")
    rig.write("b", "bad")
    once(rig, **shelves)
    assert rig.tree() == {}
    assert held(shelves["done"]) == {"a": "taken", "a.1": "text"}
    assert {"b", "b.reason.json"} == names(shelves["failed"])


@pytest.mark.usefixtures("unknown_flag")
def test_without_the_flag_a_file_that_comes_meanwhile_keeps_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the link and the unlink a producer renames its next version onto the name: nobody has read that yet."""
    (tmp_path / "done").mkdir()
    (tmp_path / "a").write_text("old")
    (tmp_path / "next").write_text("new")
    sync = os.fsync

    def amid(descriptor: int) -> None:
        monkeypatch.undo()
        (tmp_path / "next").rename(tmp_path / "a")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", amid)
    origin, target = (os.open(path, os.O_RDONLY) for path in (tmp_path, tmp_path / "done"))
    try:
        _transfer._link(_transfer.Place(origin, b"a"), _transfer.Place(target, b"a"))
    finally:
        os.close(origin)
        os.close(target)
    assert held(tmp_path / "done") == {"a": "old"}
    assert held(tmp_path) == {"a": "new", "done/a": "old"}


@pytest.fixture
def other_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than pytest's."""
    above = Path("/dev/shm") / f"ingestd-{os.getpid()}-{threading.get_ident()}"
    above.mkdir()
    if above.stat().st_dev == tmp_path.stat().st_dev:
        above.rmdir()
        pytest.skip("/dev/shm is no other file system here")
    yield above
    shutil.rmtree(above)


def test_files_go_to_another_file_system(rig: Rig, other_system: Path) -> None:
    """Whole, with their times and rights, over nothing that is there; no temporary name is left anywhere."""
    done, failed = other_system / "done", other_system / "failed"
    done.mkdir()
    (done / "a").write_text("taken")
    rig.scope.max_bytes = 1 << 24
    path = rig.write("a", "x" * 3_000_000, age=1000)
    path.chmod(0o604)
    seen = path.stat()
    rig.write("x/b", "bad")
    rig.write("x/b.meta.json", "{}")
    once(rig, done=done, failed=failed)
    assert rig.tree() == {}
    assert names(done) == {"a", "a.1"}
    found = (done / "a.1").stat()
    assert (found.st_size, found.st_mtime_ns, found.st_mode) == (seen.st_size, seen.st_mtime_ns, seen.st_mode)
    assert names(failed) == {"x/b", "x/b.meta.json", "x/b.reason.json"}
    assert [path for path in rig.root.rglob("*") if path.is_file()] == []


def test_a_copy_that_may_be_the_last_of_its_file_stays(
    tmp_path: Path, other_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS answers a removal that it did, and whose answer was lost, with ENOENT: the original is gone."""
    (tmp_path / "a").write_text("text")

    def gone(origin: _transfer.Place, _seen: os.stat_result) -> None:
        os.unlink(origin.name, dir_fd=origin.directory)
        raise _transfer.ChangedError("a is gone")

    monkeypatch.setattr(_transfer, "_take_away", gone)
    origin, target = (os.open(path, os.O_RDONLY) for path in (tmp_path, other_system))
    places = _transfer.Place(origin, b"a"), _transfer.Place(target, b"a")
    try:
        with pytest.raises(_transfer.ChangedError):
            _transfer.transfer(*places, (tmp_path / "a").stat(), b"temporary")
    finally:
        os.close(origin)
        os.close(target)
    assert held(other_system) == {"a": "text"}


@pytest.mark.parametrize("when", ["replaced in the copy", "changed in the copy", "replaced after it"])
def test_a_file_that_changes_on_its_way_to_another_file_system_stays(
    rig: Rig, other_system: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What was copied of the old one goes, and the new one is read before it is moved."""
    replaced: list[bool] = []

    def replace() -> bool:
        if not replaced:
            replaced.append(True)
            other = rig.root / ("a" if when == "changed in the copy" else ".other")
            other.write_text("newer")
            other.rename(rig.root / "a")
        return True

    if when != "replaced after it":
        writing = _transfer.write_all
        monkeypatch.setattr(_transfer, "write_all", lambda *what: replace() and writing(*what))
    else:
        taking = _transfer._take_away
        monkeypatch.setattr(_transfer, "_take_away", lambda *what: replace() and taking(*what))
    given: list[bytes] = []
    moving = _transfer.move

    def note(origin: _transfer.Place, target: _transfer.Place) -> None:
        moving(origin, target)
        given.append(target.name)

    monkeypatch.setattr(_transfer, "move", note)
    with rig.running(done=other_system / "done", rescan_seconds=60):
        rig.write("a", "older")
        rig.until(lambda: rig.texts() == {"a": "newer"} and is_empty(rig))
    assert replaced
    assert held(other_system / "done") == {"a": "newer"}
    if when == "changed in the copy":
        assert given.count(b"a") == 1  # half of each is never seen under its name


def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have every copy fail for want of room; return what makes room."""

    def fail(_descriptor: int, _data: bytes) -> None:
        raise OSError(28, os.strerror(28))

    writing = _transfer.write_all
    monkeypatch.setattr(_transfer, "write_all", fail)
    return lambda: monkeypatch.setattr(_transfer, "write_all", writing)


def test_a_file_that_cannot_be_moved_stays_and_is_said(
    rig: Rig, other_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: no event again, no busy loop; when there is room it is moved."""
    monkeypatch.setattr("ingestd.sources._moves.FIRST_SECONDS", 0.3)
    make_room = full(monkeypatch)
    with rig.running(done=other_system / "done", rescan_seconds=0.2) as source:
        for number in range(5):
            rig.write(f"{number}")
        rig.until(lambda: source.status().unmoved == 5)
        scans = source.status().scans
        rig.until(lambda: source.status().scans > scans + 5)
        ok, said = check(source)
        assert not ok
        assert "5 files that are at an end cannot be moved" in said
        assert "No space left on device" in said
        assert len(rig.engine.events) == 5
        assert len(rig.tree()) == 5
        assert held(other_system / "done") == {}
        make_room()
        rig.until(lambda: is_empty(rig))
        rig.until(lambda: check(source)[0])
        assert len(rig.engine.events) == 5
    assert names(other_system / "done") == {"0", "1", "2", "3", "4"}


def test_once_says_what_cannot_be_moved_and_ends(rig: Rig, other_system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries once, and does not wait for room."""
    full(monkeypatch)
    rig.write("a")
    source = once(rig, done=other_system / "done")
    assert rig.tree() == {"a": "text"}
    assert not check(source)[0]


def test_a_shelf_that_may_not_be_written_is_said_at_the_start(rig: Rig, shelves: dict[str, Any]) -> None:
    """In ``ingestd check`` too, which makes nothing; the files are read, and moved when they may be."""
    done = shelves["done"]
    source = rig.source(done=done)
    assert [one.ok for one in source.probe() if one.name == "s:done"] == [True]
    assert not done.exists()
    done.write_text("no folder")
    assert [one.ok for one in source.probe() if one.name == "s:done"] == [False]
    with rig.running(done=done, rescan_seconds=0.2) as source:
        assert "File exists" in check(source)[1]
        rig.write("a", "text")
        rig.until(lambda: rig.texts() == {"a": "text"})
        done.unlink()
        rig.until(lambda: is_empty(rig), seconds=30)
        rig.until(lambda: check(source)[0])


def test_rights_of_a_folder(rig: Rig) -> None:
    """A folder that the daemon's user may not write to: what failed stays where it is, and other files go on."""
    shelf = rig.root.parent / "failed"
    shelf.mkdir(mode=0o755)
    with running(rig, nobody=True, failed=shelf, rescan_seconds=0.2) as source:
        if os.geteuid() == 0:
            # setfsuid of a thread does not show in access(): what is seen is the move that fails.
            rig.root.chmod(0o777)
        rig.write("b", "bad")
        rig.write("a", "good")
        rig.until(lambda: source.status().unmoved == 1 and "a" in rig.texts())
        assert "Permission denied" in check(source)[1] or "not writable" in check(source)[1]
        assert rig.tree() == {"a": "good", "b": "bad"}
        shelf.chmod(0o777)
        rig.until(lambda: names(shelf) == {"b", "b.reason.json"}, seconds=30)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"done": "{root}/done"}, "within the watched folder"),
        ({"done": "{root}/x/../done", "exclude": ["other/"]}, "within the watched folder"),
        ({"failed": "{root}"}, "within the watched folder"),
        ({"failed": "{root}/.."}, "around it"),
        ({"done": "{root}/../out", "failed": "{root}/../out/"}, "one folder"),
        ({"done": "{root}/../out", "follow_symlinks": True}, "symlinks"),
    ],
)
def test_folders_that_make_no_sense_are_refused(rig: Rig, settings: dict[str, object], fault: str) -> None:
    """When the configuration is read, with the cure."""
    filled = {key: text.format(root=rig.root) if isinstance(text, str) else text for key, text in settings.items()}
    with pytest.raises(ValidationError, match=fault):
        Config.model_validate({"path": rig.root, "collection": "c", **filled})


@pytest.mark.parametrize(
    "settings",
    [
        {"done": "{root}/done", "exclude": ["done/"]},
        {"done": "{root}/done", "exclude": ["/done/**"]},
        {"done": "{root}/.done"},
        {"done": "{root}/x/done", "recursive": False},
    ],
)
def test_a_shelf_within_the_folder_that_is_no_part_of_it(rig: Rig, settings: dict[str, object]) -> None:
    """One that is excluded is fine."""
    filled = {key: text.format(root=rig.root) if isinstance(text, str) else text for key, text in settings.items()}
    rig.write("a", "text")
    rig.once(**filled)
    assert held(Path(str(filled["done"]))) == {"a": "text"}
    rig.once(**filled)
    assert rig.engine.events == []


@pytest.mark.parametrize("pause", [0.0, _moves.FIRST_SECONDS])
def test_a_shelf_that_leads_back_by_a_symlink_takes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """What the configuration cannot show: files would be moved deeper and deeper. However long it has been so."""
    monkeypatch.setattr(_moves, "FIRST_SECONDS", pause)
    (rig.root / "deep").mkdir()
    done = rig.root.parent / "done"
    done.symlink_to(rig.root / "deep")
    rig.write("a", "text")
    source = rig.once(done=done)
    assert rig.tree() == {"a": "text"}
    assert "files would come back" in check(source)[1]


def test_a_symlink_on_the_shelf_is_not_followed(rig: Rig, shelves: dict[str, Any]) -> None:
    """A directory that is one counts as a name that is taken."""
    elsewhere = rig.root.parent / "elsewhere"
    elsewhere.mkdir()
    shelves["done"].mkdir()
    (shelves["done"] / "x").symlink_to(elsewhere)
    rig.write("x/a", "text")
    rig.once(**shelves)
    assert (held(shelves["done"]), held(elsewhere)) == ({"x.1/a": "text"}, {})


def test_a_sidecar_that_was_left_behind_follows_its_file(
    rig: Rig, shelves: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died between the two: the next one moves it, to its own file, though that has a number."""
    shelves["done"].mkdir()
    (shelves["done"] / "a.txt").write_text("an older one")
    rig.write("a.txt", "text")
    rig.write("a.txt.meta.json", "{}")
    rig.write("later.txt.meta.json", "{}")  # whose file is still to come
    transfer = _transfer.transfer

    def die(origin: _transfer.Place, *rest: object) -> None:
        if origin.name.endswith(b".meta.json"):
            raise KeyboardInterrupt
        transfer(origin, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("ingestd.sources._shelf.transfer", die)
    with pytest.raises(KeyboardInterrupt):
        rig.once(**shelves)
    monkeypatch.undo()
    assert names(rig.root) == {"a.txt.meta.json", "later.txt.meta.json"}
    rig.once(**shelves)
    assert names(rig.root) == {"later.txt.meta.json"}
    assert names(shelves["done"]) == {"a.txt", "a.1.txt", "a.1.txt.meta.json"}
    assert rig.engine.events == []


def test_a_file_that_was_being_taken_away_gets_its_name_back(
    rig: Rig, other_system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process died after the copy was made: nothing is lost, and nothing is left under a name of ours."""
    done = other_system / "done"
    rig.write("x/a", "text")

    unlink = os.unlink

    def die(name: bytes, **options: int) -> None:
        if name.startswith(_transfer.ASIDE):
            raise KeyboardInterrupt
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        rig.once(done=done, exclude=["*.tmp"])
    monkeypatch.undo()
    [left] = names(rig.root)
    assert left.startswith("x/.ingestd-aside-")
    rig.once(done=done, exclude=["*.tmp"])
    assert rig.tree() == {}
    assert set(held(done).values()) == {"text"}
    assert set(rig.store.rows) == {"s/x/a"}


def test_a_killed_copy_leaves_nothing_that_stays(rig: Rig, other_system: Path) -> None:
    """What it had written is overwritten by the next move to that directory."""
    done = other_system / "done"
    done.mkdir()
    shelf = rig.source(done=done)._rounds.moves.shelves.done
    assert shelf is not None
    (done / os.fsdecode(shelf._temporary)).write_text("half of a fi")
    rig.write("a", "text")
    rig.once(done=done)
    assert held(done) == {"a": "text"}


def replay(rig: Rig, source: FolderSource, name: str) -> object:
    """Have a dead letter tried again, as the retry queue does."""
    letter = rig.store.letters[f"s/{name}"]
    rig.store.stats.pop(f"s/{name}", None)
    return source.revive(letter)


def test_a_replay_finds_the_file_where_it_was_moved_to(rig: Rig, shelves: dict[str, Any]) -> None:
    """It is put back with its sidecar, tried once, and moved on; its reason goes."""
    rig.write("x/b.txt", "one")
    once(rig, **shelves)
    rig.write("x/b.txt", "two")
    rig.write("x/b.txt.meta.json", '{"n": 2}')
    once(rig, **shelves)
    shutil.rmtree(rig.root / "x")
    with rig.running(**shelves, rescan_seconds=0.2) as source:
        event = replay(rig, source, "x/b.txt")
        assert rig.tree() == {"x/b.txt": "two", "x/b.txt.meta.json": '{"n": 2}'}
        scans = source.status().scans
        rig.until(lambda: source.status().scans > scans + 3)
        assert rig.engine.events == []  # the source leaves it to the retry queue
        rig.engine.settle(event)  # type: ignore[arg-type]
        rig.until(lambda: is_empty(rig))
        assert rig.texts() == {"x/b.txt": "two"}
        assert rig.engine.events == []
    assert held(shelves["done"]) == {"x/b.txt": "two", "x/b.txt.meta.json": '{"n": 2}'}
    assert names(shelves["failed"]) == {"x/b.txt", "x/b.txt.reason.json"}  # the first one


def test_a_file_that_is_tried_again_is_not_moved_meanwhile(rig: Rig, shelves: dict[str, Any]) -> None:
    """It could not be moved, and is replayed where it is; by then it could."""
    shelves["failed"].write_text("no folder")
    rig.write("b", "bad")
    with running(rig, **shelves, rescan_seconds=0.2) as source:
        rig.until(lambda: source.status().unmoved == 1)
        event = replay(rig, source, "b")
        shelves["failed"].unlink()
        rig.until(lambda: check(source)[0])
        scans = source.status().scans
        rig.until(lambda: source.status().scans > scans + 3)
        assert rig.tree() == {"b": "bad"}
        rig.engine.settle(event, Verdict.WRITTEN)  # type: ignore[arg-type]
        rig.until(lambda: is_empty(rig))
        assert held(shelves["done"]) == {"b": "bad"}


def test_a_replay_that_has_ended_before_the_source_hears_of_it(rig: Rig, shelves: dict[str, Any]) -> None:
    """A fast model is done while the source's thread waits for room: the file goes away as it has ended."""
    rig.write("b", "bad")
    with running(rig, **shelves) as source:
        rig.until(lambda: is_empty(rig))
        go_on = rig.hold_up()
        event = replay(rig, source, "b")
        rig.engine.settle(event, Verdict.WRITTEN)  # type: ignore[arg-type]
        go_on()
        rig.until(lambda: is_empty(rig))
        assert held(shelves["done"]) == {"b": "bad"}


def test_what_a_replay_cannot_put_back(rig: Rig, shelves: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large: refused, with the reason. A newer file is there: that one counts. Gone: nothing. An error: later."""
    rig.write("b", "bad")
    once(rig, **shelves)
    source = rig.source(**shelves)
    (shelves["failed"] / "b").rename(rig.root / "away")
    assert replay(rig, source, "b") is None
    (rig.root / "away").rename(shelves["failed"] / "b")

    def fail(*_arguments: object) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr("ingestd.sources._shelf.transfer", fail)
    with pytest.raises(UnavailableError, match="Input/output error"):
        replay(rig, source, "b")
    monkeypatch.undo()

    rig.scope.max_bytes = 2
    small = rig.source(**shelves)
    event = replay(rig, small, "b")
    assert event.fault is not None  # type: ignore[attr-defined]
    assert "3 bytes" in event.fault.message  # type: ignore[attr-defined]
    assert "b" in names(shelves["failed"])
    rig.scope.max_bytes = 1 << 20

    rig.write("b", "newer")
    event = replay(rig, source, "b")
    assert event.payload.read().data == b"newer"  # type: ignore[attr-defined]
    assert held(shelves["failed"])["b"] == "bad"


def test_a_delete_that_is_tried_again_puts_nothing_back(rig: Rig, shelves: dict[str, Any]) -> None:
    """It is about a file that was gone."""
    rig.write("b", "bad")
    once(rig, **shelves)
    source = rig.source(**shelves)
    letter = DeadLetter(1, DocumentKey("c", "s/b"), Op.DELETE, "s", "b", FAILED, 1, 0.0, 0.0, None, "one")
    event = source.revive(letter)
    assert event is not None
    assert event.op is Op.DELETE
    assert "b" in names(shelves["failed"])


def test_documents_that_are_not_whole_and_whose_files_are_away_are_named(rig: Rig, shelves: dict[str, Any]) -> None:
    """Their rows cannot be written again from here: not ready, until the file is put back."""
    rig.write("a", "text")
    rig.once(**shelves)
    rig.store.doubtful.add("s/a")
    with rig.running(**shelves, rescan_seconds=0.3) as source:
        rig.until(lambda: not check(source)[0])
        assert "1 documents are not whole in Milvus" in check(source)[1]
        assert "s/a" in check(source)[1]
        rig.store.doubtful.clear()
        (shelves["done"] / "a").rename(rig.root / "a")
        rig.until(lambda: check(source)[0])
        rig.until(lambda: is_empty(rig))


def test_a_shelf_on_a_read_only_file_system(rig: Rig) -> None:
    """It is said, and files go when it can be written again."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting takes root")
    shelf = rig.root.parent / "done"
    shelf.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", shelf], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with rig.running(done=shelf, rescan_seconds=0.3) as source:
            rig.until(lambda: not check(source)[0])
            assert "not writable" in check(source)[1]
            rig.write("a", "text")
            rig.until(lambda: source.status().unmoved == 1)
            subprocess.run(["mount", "-o", "remount,rw", shelf], check=True, capture_output=True)
            rig.until(lambda: is_empty(rig), seconds=40)
            rig.until(lambda: check(source)[0])
    finally:
        subprocess.run(["umount", shelf], check=True)
