"""The folder source on real files: what is handed in, and when."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from ingestd.errors import DocumentError, Stopped, UnavailableError
from ingestd.model import DeadLetter, Failure, Op, Parked, Priority, Stage, Verdict

if TYPE_CHECKING:
    from tests.integration.folder.conftest import Engine, Rig

    from ingestd.ports import Source
    from ingestd.sources.folder import FolderSource

FAILURE = Failure(Stage.WRITE, "TransientError", "for a test")


def check(source: Source, name: str) -> tuple[bool, str]:
    """Return whether a check is well, and what it says."""
    found = next(one for one in source.checks() if one.name == f"s:{name}")
    return found.ok, f"{found.detail} {found.cure}"


def test_edits_are_handed_in_within_a_second_of_settling(rig: Rig) -> None:
    """Created, edited, renamed, deleted: each is written or deleted soon, though the next scan is a minute away."""
    with rig.running(rescan_seconds=60) as source:
        rig.write("a.txt", "one")
        assert rig.until(lambda: rig.texts() == {"a.txt": "one"}) < 1.3
        rig.write("a.txt", "two!")
        assert rig.until(lambda: rig.texts() == {"a.txt": "two!"}) < 1.3
        (rig.root / "a.txt").rename(rig.root / "b.txt")
        assert rig.until(lambda: rig.texts() == {"b.txt": "two!"}) < 3.0
        (rig.root / "b.txt").unlink()
        assert rig.until(lambda: rig.texts() == {}) < 3.0
        assert source.status().overflows == 0


def test_trees_are_moved_in_and_out(rig: Rig) -> None:
    """A directory that is moved in brings its files, one that is moved out takes them, in one rename each."""
    outside = rig.root.parent / "outside"
    for name in ("a", "x/b", "x/y/c"):
        path = outside / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    with rig.running(rescan_seconds=60):
        (outside / "tree").rename(rig.root / "in")
        rig.until(lambda: rig.texts() == {"in/a": "a", "in/x/b": "x/b", "in/x/y/c": "x/y/c"})
        (rig.root / "in").rename(rig.root / "moved")
        rig.until(lambda: rig.texts() == rig.tree())
        (rig.root / "moved/x").rename(outside / "x")
        rig.until(lambda: rig.texts() == {"moved/a": "a"})


def test_a_file_that_is_being_written_is_waited_for(rig: Rig) -> None:
    """A writer that keeps appending gets no half of its file handed in, and one event when it has closed it."""
    with rig.running(rescan_seconds=0.5, settle_seconds=0.6), (rig.root / "log").open("w") as file:
        pause = threading.Event()
        for number in range(10):
            file.write(f"{number}\n")
            file.flush()
            pause.wait(0.15)  # the writer's own pace: less than the time to settle
            assert rig.engine.events == []
        file.close()
        rig.until(lambda: "log" in rig.texts())
        assert rig.texts()["log"] == "".join(f"{number}\n" for number in range(10))
        assert rig.engine.ops("s/log") == [Op.UPSERT]


def test_a_file_that_is_moved_in_is_whole(rig: Rig) -> None:
    """From outside the folder, too: it is not waited for as for one that somebody writes to."""
    with rig.running(rescan_seconds=600, settle_seconds=600):
        draft = rig.root.parent / "draft.txt"
        draft.write_text("all of it")
        draft.rename(rig.root / "a.txt")
        rig.until(lambda: rig.texts() == {"a.txt": "all of it"})
        rig.write("b.txt", "closed")
        rig.until(lambda: rig.texts().keys() == {"a.txt", "b.txt"})
        with (rig.root / "c.txt").open("w") as being_written:
            being_written.write("half")
            being_written.flush()
            rig.write("d.txt", "closed")
            rig.until(lambda: "d.txt" in rig.texts())
            assert "c.txt" not in rig.texts()


def test_what_the_watch_notices_goes_before_what_a_scan_found(rig: Rig) -> None:
    """A pipeline that is full of a backfill keeps a live file from nothing; the rest follows as there is room."""
    old = {rig.write(f"old/{number}.txt", f"{number}", age=9).name for number in range(20)}
    with rig.running(rescan_seconds=600) as source:
        rig.until(lambda: len(rig.texts()) == len(old))
        assert {event.priority for event in rig.engine.events} == {Priority.BACKFILL}
    for number in range(20):
        rig.write(f"old/{number}.txt", f"{number} anew", age=9)
    source = rig.source(rescan_seconds=600)
    engine = rig.engine
    engine.has_room = lambda event: event.priority is Priority.LIVE
    thread = threading.Thread(target=lambda: _until_stopped(source, engine))
    thread.start()
    try:
        rig.until(lambda: source.status().scans == 1)
        rig.write("new.txt", "now")
        rig.until(lambda: "new.txt" in rig.texts())
        assert [event.key.document_id for event in engine.events] == ["s/new.txt"]
        (rig.root / "old" / "3.txt").write_text("edited")
        rig.until(lambda: rig.texts()["old/3.txt"] == "edited")
        assert len(engine.events) == 2
        engine.has_room = lambda _event: True
        rig.until(lambda: rig.texts() == rig.tree())
        assert Counter(event.priority for event in engine.events) == {Priority.LIVE: 2, Priority.BACKFILL: 19}
    finally:
        engine.stop.set()
        thread.join()


def test_a_delete_waits_for_room(rig: Rig) -> None:
    """It is handed in once, when there is some, and not at all if the file is back by then."""
    for name in ("a.txt", "b.txt", "c.txt"):
        rig.write(name)
    with rig.running(rescan_seconds=600) as source:
        rig.until(lambda: len(rig.texts()) == 3)
        rig.engine.has_room = lambda _event: False
        (rig.root / "a.txt").unlink()
        (rig.root / "b.txt").unlink()
        rig.until(lambda: len(source._rounds._leaving) == 2)
        rig.write("b.txt", "text", age=0)
        before = len(rig.engine.events)
        rig.engine.has_room = lambda _event: True
        rig.until(lambda: "a.txt" not in rig.texts())
        rig.until(lambda: source.status().in_flight == 0)
        assert rig.engine.ops("s/a.txt") == [Op.UPSERT, Op.DELETE]
        assert Op.DELETE not in rig.engine.ops("s/b.txt")
        assert len(rig.engine.events) <= before + 2


def _until_stopped(source: FolderSource, engine: Engine) -> None:
    with suppress(Stopped):
        source.run(engine, once=False)


def test_time_stamps_in_the_future_do_not_wait_for_ever(rig: Rig) -> None:
    """A file that is dated tomorrow is handed in once it has kept still."""
    rig.write("a", age=-86_400)
    begun = time.monotonic()
    rig.once()
    assert rig.texts() == {"a": "text"}
    assert time.monotonic() - begun < 5


def test_what_is_no_document(rig: Rig) -> None:
    """Dot files and directories, temporary names, sidecars, FIFOs, sockets, devices, symlinks: none is handed in."""
    for name in (".hidden", ".git/config", "a.tmp", "a.part", "a~", "a.swp", "lonely.meta.json"):
        rig.write(name)
    os.mkfifo(rig.root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(rig.root / "socket"))
        if os.geteuid() == 0:
            os.mknod(rig.root / "null", 0o020666, os.makedev(1, 3))
        (rig.root / "link").symlink_to(rig.write("real"))
        (rig.root / "away").symlink_to("/etc/passwd")
        rig.once()
    assert rig.texts() == {"real": "text"}


def test_names_that_are_no_utf8(rig: Rig) -> None:
    """Any bytes can be a name: the id is text, and leads back to the file."""
    name = b"caf\xe9 %E9 100%.txt"
    with open(os.path.join(os.fsencode(rig.root), name), "wb") as file:  # noqa: PTH118, PTH123 - bytes are no Path
        file.write(b"x")
    rig.once()
    assert rig.texts() == {"caf%E9 %25E9 100%.txt": "x"}
    rig.once()
    assert rig.engine.events == []


@pytest.mark.parametrize("length", [245, 246, 255])
def test_the_longest_names(rig: Rig, length: int) -> None:
    """A file whose sidecar would have a name that is too long has none, and is a document like any other."""
    rig.write("x" * length)
    rig.once()
    assert rig.texts() == {"x" * length: "text"}


def test_a_sidecar_is_its_files_metadata(rig: Rig) -> None:
    """Its appearance, change and removal count as the file's; title and content type are set apart."""
    with rig.running(rescan_seconds=60):
        rig.write("a.md")
        rig.until(lambda: "s/a.md" in rig.store.rows)
        rig.write("a.md.meta.json", '{"title": "A", "content_type": "text/markdown", "n": [1, {"x": null}]}')
        rig.until(lambda: rig.store.rows["s/a.md"].title == "A")
        assert rig.store.rows["s/a.md"].content_type == "text/markdown"
        assert rig.store.rows["s/a.md"].metadata == {"n": [1, {"x": None}]}
        (rig.root / "a.md.meta.json").unlink()
        rig.until(lambda: rig.store.rows["s/a.md"].title is None)
        assert set(rig.store.rows) == {"s/a.md"}


def test_one_event_a_document_is_in_flight(rig: Rig) -> None:
    """What changes meanwhile is handed in when that has settled, and in its last state only."""
    with rig.running(rescan_seconds=60, settle_seconds=0.1):
        rig.engine.withhold = True
        rig.write("a", "1")
        rig.until(lambda: rig.engine.withheld)
        rig.write("a", "22")
        rig.write("a", "333")
        rig.write("b", "last")
        rig.until(lambda: rig.engine.ops("s/b"))  # by then the hints about "a" were taken
        assert rig.engine.ops("s/a") == [Op.UPSERT]
        rig.engine.release()
        assert rig.engine.verdicts("s/a") == [Verdict.SUPERSEDED]  # what was sent is not what is there
        assert rig.until(lambda: rig.texts().get("a") == "333") < 1
        assert rig.engine.ops("s/a") == [Op.UPSERT, Op.UPSERT]


def test_a_change_during_flight_is_handed_in_after_it(rig: Rig) -> None:
    """Also where what was in flight ended well: it was read before the change."""
    with rig.running(rescan_seconds=60, settle_seconds=0.1):
        rig.engine.withhold = True
        rig.write("a", "1")
        rig.until(lambda: rig.engine.withheld)
        rig.write("a", "22")
        rig.write("b")
        rig.until(lambda: rig.engine.ops("s/b"))
        rig.engine.settle(rig.engine.withheld.pop(0), Verdict.WRITTEN)
        rig.engine.release()
        assert rig.until(lambda: rig.texts().get("a") == "22") < 1


# watchdog warns of a watch that it had already, when a directory comes back that was moved out: it is only that.
comes_back = pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")


@comes_back
def test_a_file_that_is_away_for_a_moment_is_not_deleted(rig: Rig) -> None:
    """A hint takes two looks, a second apart."""
    rig.write("x/a")
    with rig.running(rescan_seconds=60, settle_seconds=0.1) as source:
        rig.until(lambda: "x/a" in rig.texts())
        (rig.root / "x").rename(rig.root.parent / "away")
        rig.until(lambda: source._rounds.missing)
        (rig.root.parent / "away").rename(rig.root / "x")
        rig.until(lambda: not source._rounds.missing)
        rig.write("b")
        rig.until(lambda: "b" in rig.texts())
        assert rig.engine.ops("s/x/a") == [Op.UPSERT]


def test_without_a_hint_absence_takes_two_scans(rig: Rig) -> None:
    """After the first one no look is due that could delete anything."""
    path = rig.write("a")
    with rig.running(rescan_seconds=2, settle_seconds=0, watch="poll") as source:
        rig.until(lambda: "a" in rig.texts() and source.status().in_flight == 0)
        path.unlink()
        rig.until(lambda: source._rounds.missing)
        scans = source.status().scans
        assert source._rounds.next_due() is None
        rig.until(lambda: rig.texts() == {})
        assert source.status().scans > scans


@comes_back
def test_a_file_that_is_back_while_its_delete_is_parked_is_sent(rig: Rig) -> None:
    """Though it is as it was: the delete may have got through."""
    rig.write("x/a")
    rig.once()
    with rig.running(rescan_seconds=60, settle_seconds=0.1):
        rig.engine.verdict = Verdict.RETRYING
        (rig.root / "x").rename(rig.root.parent / "away")
        rig.until(lambda: rig.engine.verdicts("s/x/a"))
        rig.engine.verdict = None
        (rig.root.parent / "away").rename(rig.root / "x")
        rig.until(lambda: rig.engine.ops("s/x/a") == [Op.DELETE, Op.UPSERT])


def test_a_file_that_vanishes_in_flight_is_deleted(rig: Rig) -> None:
    """The delete follows the event that was in flight, not before, not without."""
    with rig.running(rescan_seconds=60):
        rig.engine.withhold = True
        path = rig.write("a")
        rig.until(lambda: rig.engine.withheld)
        rig.engine.settle(rig.engine.withheld[0])
        rig.until(rig.texts)
        rig.write("a", "changed")
        rig.until(lambda: len(rig.engine.withheld) == 2)
        path.unlink()
        rig.write("b")
        rig.until(lambda: rig.engine.ops("s/b"))
        rig.engine.withheld.pop(0)
        rig.engine.release()
        rig.until(lambda: "a" not in rig.texts())
        assert rig.engine.ops("s/a") == [Op.UPSERT, Op.UPSERT, Op.DELETE]


@pytest.mark.parametrize("verdict", [Verdict.RETRYING, Verdict.DEAD_LETTERED])
def test_what_failed_is_left_alone_until_it_changes(rig: Rig, verdict: Verdict) -> None:
    """Neither a rescan nor a hint about an unchanged file sends it again; a change does."""
    with rig.running(rescan_seconds=0.2) as source:
        rig.engine.verdict = verdict
        rig.write("a")
        rig.until(lambda: rig.engine.verdicts("s/a"))
        scans = source.status().scans
        rig.until(lambda: source.status().scans > scans + 2)
        assert rig.engine.ops("s/a") == [Op.UPSERT]
        rig.engine.verdict = None
        rig.write("a", "better")
        rig.until(lambda: rig.texts() == {"a": "better"})


def test_superseded_means_look_again(rig: Rig) -> None:
    """An event that ends as superseded, whyever, is sent again though its file has not changed."""
    with rig.running(rescan_seconds=60):
        rig.engine.verdict = Verdict.SUPERSEDED
        rig.write("a")
        rig.until(lambda: len(rig.engine.verdicts("s/a")) == 3)
        rig.engine.verdict = None
        rig.until(lambda: rig.texts() == {"a": "text"})


def test_a_further_run_finds_all_as_it_was(rig: Rig) -> None:
    """``once`` counts each unchanged file once, as unchanged or dead-lettered, and hands in nothing."""
    for number in range(5):
        rig.write(f"{number}")
    rig.write("bad", "x" * 100)
    rig.scope.max_bytes = 50
    rig.once()
    assert rig.engine.skipped == {}
    assert rig.engine.verdicts("s/bad") == [Verdict.DEAD_LETTERED]
    rig.once()
    assert rig.engine.events == []
    assert rig.engine.skipped == {Verdict.UNCHANGED: 5, Verdict.DEAD_LETTERED: 1}


def test_a_verdict_stands_only_as_long_as_its_grounds(rig: Rig) -> None:
    """Another configuration, a document that the ledger lost, or holds with rows in doubt: each is sent again."""
    for name in ("lost", "doubtful", "good"):
        rig.write(name)
    rig.once()
    del rig.store.rows["s/lost"]
    rig.store.doubtful.add("s/doubtful")
    rig.once()
    assert {event.key.document_id for event in rig.engine.events} == {"s/lost", "s/doubtful"}
    rig.store.doubtful.clear()
    rig.scope.configuration = "another"
    rig.once()
    assert len(rig.engine.events) == 3


def test_once_works_off_what_changes_meanwhile(rig: Rig) -> None:
    """Deletes take two scans, edits during the run are settled too, and renames are a delete and a create."""
    for name in ("stays", "goes", "renamed", "edited"):
        rig.write(name)
    rig.once()
    (rig.root / "goes").unlink()
    (rig.root / "renamed").rename(rig.root / "new")
    edits = iter(["edited while it ran"])

    def edit() -> None:
        for text in edits:
            rig.write("edited", text)

    source = rig.source()
    rig.engine.on_wait = edit
    source.run(rig.engine, once=True)
    assert rig.texts() == rig.tree()
    assert rig.engine.ops("s/goes") == [Op.DELETE]
    assert rig.engine.ops("s/stays") == []


def test_narrowed_globs_are_deletes(rig: Rig) -> None:
    """What the globs no longer take is deleted; what a directory excludes is not even listed."""
    for name in ("a.md", "a.txt", "x/b.md", "drafts/c.md"):
        rig.write(name)
    rig.once()
    rig.once(include=["*.md"], exclude=["drafts/"])
    assert set(rig.texts()) == {"a.md", "x/b.md"}
    rig.once(include=["*.md"], recursive=False)
    assert set(rig.texts()) == {"a.md"}


def test_symlinks_that_are_followed_stay_inside_and_end(rig: Rig) -> None:
    """What links below the root lead to counts, directories once each; loops end; what lies outside does not count."""
    rig.write("dir/a")
    rig.write(".data/b")
    (rig.root / "loop").symlink_to(".")
    (rig.root / "dir/up").symlink_to("..")
    (rig.root / "again").symlink_to("dir")
    (rig.root / "first").symlink_to(".data")
    (rig.root / "second").symlink_to(".data")
    (rig.root / "file").symlink_to(".data/b")
    (rig.root / "out").symlink_to("/etc")
    (rig.root / "passwd").symlink_to("/etc/passwd")
    (rig.root / "broken").symlink_to("nowhere")
    rig.once(follow_symlinks=True)
    assert set(rig.texts()) == {"dir/a", "first/b", "file"}
    rig.once(follow_symlinks=True)
    assert rig.engine.events == []


def test_changes_behind_followed_symlinks_are_noticed(rig: Rig) -> None:
    """The watch sees the target, and the scan that it asks for sees the link's path."""
    rig.write(".data/b", "one")
    (rig.root / "link").symlink_to(".data")
    with rig.running(follow_symlinks=True, rescan_seconds=60):
        rig.until(lambda: rig.texts() == {"link/b": "one"})
        rig.write(".data/b", "two!")
        rig.until(lambda: rig.texts() == {"link/b": "two!"})


def test_the_root_may_be_a_symlink(rig: Rig) -> None:
    """The watch works through it."""
    link = rig.root.parent / "link"
    link.symlink_to(rig.root)
    with rig.running(path=link, rescan_seconds=60) as source:
        rig.write("x/a")
        rig.until(lambda: rig.texts() == {"x/a": "text"})
        assert check(source, "watch") == (True, "inotify ")


def parked(op: Op, document: str = "s/a", attempt: int = 3) -> Parked:
    """Return a parked event of a document."""
    from ingestd.model import DocumentKey  # noqa: PLC0415

    return Parked(DocumentKey("c", document), op, "s", document, attempt, 11.0, 12.0, FAILURE)


def test_a_parked_event_comes_back_from_its_file(rig: Rig) -> None:
    """With its attempt and first failure; a delete stays a delete; a document that is gone has nothing left to try."""
    source = rig.source()
    event = source.revive(parked(Op.DELETE))
    assert event is not None
    assert (event.op, event.payload, event.attempt, event.first_failed_at) == (Op.DELETE, None, 3, 11.0)
    assert source.revive(parked(Op.UPSERT)) is None
    rig.write("a")
    event = source.revive(parked(Op.UPSERT))
    assert event is not None
    assert event.payload is not None
    assert (event.op, event.attempt, event.size, event.payload.read().data) == (Op.UPSERT, 3, 4, b"text")
    assert source.revive(parked(Op.UPSERT, "s/../../etc/passwd")) is None
    assert source.revive(parked(Op.UPSERT, "other/a")) is None


def test_what_cannot_be_looked_at_is_neither_tried_nor_given_up(rig: Rig) -> None:
    """Whether the folder is away or a directory may not be entered: the record waits, and comes back afterwards."""
    rig.write("x/a")
    source, away, record = rig.source(), rig.root.parent / "away", parked(Op.UPSERT, "s/x/a")
    rig.root.rename(away)
    for op in Op:
        with pytest.raises(UnavailableError, match="s/x/a cannot be looked at") as raised:
            source.revive(parked(op, "s/x/a"))
        assert raised.value.dependency == "source:s"
    away.rename(rig.root)
    (rig.root / "x").chmod(0)
    as_user = ctypes.CDLL(None).setfsuid  # of this thread alone; root may enter everything
    before = as_user(65534)
    try:
        with pytest.raises(UnavailableError, match="Permission denied"):
            source.revive(record)
    finally:
        as_user(before)
        (rig.root / "x").chmod(0o755)
    assert source.revive(record) is not None
    assert not source._rounds.asked


def test_a_dead_letter_comes_back_as_a_first_try(rig: Rig) -> None:
    """Replaying begins anew."""
    rig.write("a")
    record = parked(Op.UPSERT)
    letter = DeadLetter(1, record.key, Op.UPSERT, "s", "a", FAILURE, 9, 11.0, 12.0, None, "fingerprint")
    event = rig.source().revive(letter)
    assert event is not None
    assert (event.attempt, event.first_failed_at) == (1, None)


def test_a_parked_delete_whose_file_is_back_deletes_nothing(rig: Rig) -> None:
    """It has nothing left to try, and the file is sent instead, though it is as it was."""
    path = rig.write("a")
    rig.once()
    with rig.running(rescan_seconds=60, settle_seconds=0.1) as source:
        away = path.rename(rig.root.parent / "away")
        rig.engine.verdict = Verdict.RETRYING
        rig.until(lambda: rig.engine.ops("s/a") == [Op.DELETE])
        rig.engine.verdict = None
        away.rename(path)
        assert source.revive(parked(Op.DELETE)) is None
        rig.until(lambda: rig.engine.ops("s/a") == [Op.DELETE, Op.UPSERT])


def test_a_file_over_the_limit_is_refused_unread(rig: Rig) -> None:
    """With the limit and how to raise it; a sparse terabyte costs nothing."""
    with rig.write("big").open("r+b") as file:
        file.truncate(1 << 40)
    rig.once()
    event = rig.engine.events[0]
    assert event.payload is not None
    with pytest.raises(DocumentError, match=r"s/big is 1099511627776 bytes; the most is 1048576; raise \[limits\]"):
        event.payload.read()


def test_probe_says_what_would_be_wrong(rig: Rig) -> None:
    """Before anything runs: the folder, its directories, the watch; each fault with its cure."""
    rig.write("x/a")
    assert [(one.name, one.ok) for one in rig.source().probe()] == [
        ("s:root", True),
        ("s:directories", True),
        ("s:watch", True),
    ]
    (missing,) = rig.source(path=rig.root / "nowhere").probe()
    assert (missing.name, missing.ok) == ("s:root", False)
    assert "create" in missing.cure
    assert rig.store.rows == {}
