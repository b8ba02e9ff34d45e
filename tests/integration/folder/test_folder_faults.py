"""The folder source when things go wrong: storms, lost events, dead threads, vanished roots, hostile swaps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ingestd
from ingestd.model import Op

if TYPE_CHECKING:
    from tests.integration.folder.conftest import Rig

    from ingestd.ports import Source
    from ingestd.sources._watch import Hints
    from ingestd.sources.folder import FolderSource


def check(source: Source, name: str) -> tuple[bool, str]:
    """Return whether a check is well, and what it says."""
    found = next(one for one in source.checks() if one.name == f"s:{name}")
    return found.ok, f"{found.detail} {found.cure}"


def _is_done(rig: Rig, source: FolderSource, left: int) -> bool:
    return len(rig.store.rows) == left or source.status().held > 0


def hints(source: FolderSource) -> Hints:
    """Return what the watch has collected."""
    assert source._lookout._watcher is not None
    return source._lookout._watcher._hints


def fill(rig: Rig, count: int, prefix: str = "") -> None:
    """Write some files that differ."""
    for number in range(count):
        rig.write(f"{prefix}{number}", f"text {number}")


def test_a_storm_of_files_is_not_missed(rig: Rig) -> None:
    """20,000 files at once, in new directories too: all are written, though the next scan is a minute away."""
    with rig.running(rescan_seconds=60) as source:
        resume = rig.hold_up()
        (rig.root / "new/dir").mkdir(parents=True)
        for number in range(20_000):
            name = f"new/dir/{number}" if number % 2 else f"{number}"
            descriptor = os.open(rig.root / name, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, b"x")
            os.close(descriptor)
        rig.until(lambda: hints(source)._overflowed)
        resume()
        rig.until(lambda: len(rig.store.rows) == 20_000, 40)
        assert source.status().overflows == 1
        assert len(rig.engine.events) == 20_000
    assert rig.once().status().last_scan_seconds < 2  # 0.1 s on an idle machine
    assert rig.engine.events == []


def test_a_storm_of_renames_leaves_what_is_there(rig: Rig) -> None:
    """Each file is renamed again and again, into other directories and over one another."""
    fill(rig, 40)
    with rig.running(rescan_seconds=60, mass_delete={"share": 1.0}):
        rig.until(lambda: len(rig.store.rows) == 40)
        for turn in range(10):
            (rig.root / f"d{turn % 3}").mkdir(exist_ok=True)
            for number, path in enumerate(sorted(path for path in rig.root.rglob("*") if path.is_file())):
                path.rename(rig.root / f"d{turn % 3}" / f"{(number * 7 + turn) % 45}")
        rig.until(lambda: rig.texts() == rig.tree())


@pytest.mark.parametrize("part", ["emitter", "reader", "dispatcher"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_watch_is_made_anew(rig: Rig, part: str) -> None:
    """Whichever of watchdog's threads dies: changes are handed in soon, and the restart is counted."""
    with rig.running(rescan_seconds=60) as source:
        watcher = source._lookout._watcher
        assert watcher is not None
        observer, reader = watcher._observer, watcher._reader
        assert observer is not None
        assert reader is not None
        if part == "emitter":
            next(iter(observer.emitters)).stop()
        elif part == "reader":
            reader.stop()
        else:
            observer.event_queue.put(None)  # cannot be unpacked: as fatal to it as an exception in a handler
        rig.write("a")
        rig.until(lambda: rig.texts() == {"a": "text"})
        rig.until(lambda: source.status().watcher_restarts == 1)
        rig.until(lambda: check(source, "watch")[0])
        rig.write("b")
        rig.until(lambda: "b" in rig.texts())
        assert source.status().overflows == 0


def test_a_dead_watch_shows_before_it_is_made_anew(rig: Rig) -> None:
    """The check looks at the threads itself: it does not wait for a source that is busy handing in."""
    with rig.running(rescan_seconds=60) as source:
        resume = rig.hold_up()
        watcher = source._lookout._watcher
        assert watcher is not None
        assert watcher._reader is not None
        watcher._reader.stop()
        rig.until(lambda: not check(source, "watch")[0])
        resume()
        rig.until(lambda: check(source, "watch")[0])


def test_a_root_that_is_made_again(rig: Rig) -> None:
    """While it is gone nothing is deleted and the checks say so; then it is scanned, and watched, again."""
    fill(rig, 5)
    with rig.running(rescan_seconds=60) as source:
        rig.until(lambda: len(rig.store.rows) == 5)
        shutil.rmtree(rig.root)
        rig.until(lambda: not check(source, "root")[0])
        assert "create" in check(source, "root")[1]
        assert not check(source, "deletes")[0]
        assert source.confirm() == 0
        rig.root.mkdir()
        fill(rig, 5)
        rig.write("new")
        rig.until(lambda: rig.texts() == rig.tree())
        rig.until(lambda: all(one.ok for one in source.checks()))
        rig.write("later")
        rig.until(lambda: "later" in rig.texts())
        assert all(event.op is Op.UPSERT for event in rig.engine.events)
        assert source.status().watcher_restarts >= 1


def test_a_root_that_is_replaced_by_a_rename(rig: Rig) -> None:
    """The old directory is still watched under the root's name: that is noticed, and the new one is watched."""
    with rig.running(rescan_seconds=60):
        rig.root.rename(rig.root.parent / "old")
        rig.root.mkdir()
        rig.write("a")
        rig.until(lambda: rig.texts() == {"a": "text"})
        rig.write("b")
        rig.until(lambda: "b" in rig.texts())


def test_many_deletes_at_once_are_held_until_confirmed(rig: Rig) -> None:
    """More than the share of fifty or more documents: held, shown with the cure, and let go by a confirmation."""
    fill(rig, 60)
    with rig.running(rescan_seconds=60, settle_seconds=0) as source:
        rig.until(lambda: len(rig.store.rows) == 60)
        resume = rig.hold_up()
        for number in range(30):
            (rig.root / str(number)).unlink()
        rig.until(lambda: len(hints(source)._paths) == 30)
        resume()
        rig.until(lambda: source.status().held == 30)
        well, said = check(source, "deletes")
        assert not well
        assert "30 documents" in said
        assert "ingestd forget --source s --absent" in said
        assert len(rig.store.rows) == 60
        rig.write("0", "back")
        rig.until(lambda: source.status().held == 29)
        assert source.confirm() == 29
        rig.until(lambda: rig.texts() == rig.tree())
        rig.until(lambda: check(source, "deletes")[0])


def test_the_guard_counts_small_batches_together(rig: Rig) -> None:
    """A folder that empties a few files at a time is held when the share is reached, not never."""
    fill(rig, 60)
    with rig.running(rescan_seconds=60, settle_seconds=0) as source:
        rig.until(lambda: len(rig.store.rows) == 60)
        for left in (52, 44):
            for number in range(left, left + 8):
                (rig.root / str(number)).unlink()
            rig.until(partial(_is_done, rig, source, left))
        rig.until(lambda: source.status().held == 8)
        assert len(rig.store.rows) == 52


def test_held_deletes_end_when_the_files_come_back(rig: Rig) -> None:
    """A mount that was gone and is back leaves no trace: nothing was deleted, nothing is sent again."""
    fill(rig, 60)
    away = rig.root.parent / "away"
    with rig.running(rescan_seconds=0.5, settle_seconds=0, watch="poll") as source:
        rig.until(lambda: len(rig.store.rows) == 60)
        rig.root.rename(away)
        rig.root.mkdir()
        rig.until(lambda: source.status().held == 60)
        rig.root.rmdir()
        away.rename(rig.root)
        rig.until(lambda: source.status().held == 0 and all(one.ok for one in source.checks()))
        assert [event.op for event in rig.engine.events] == [Op.UPSERT] * 60


def test_once_returns_with_held_deletes_and_says_so(rig: Rig) -> None:
    """It does not wait for a person; a confirmation that was noted meanwhile counts for the next run, once."""
    fill(rig, 60)
    rig.once()
    shutil.rmtree(rig.root)
    rig.root.mkdir()
    source = rig.once()
    assert len(rig.store.rows) == 60
    assert not check(source, "deletes")[0]
    rig.store.confirmed_documents = source.absent()
    assert len(rig.store.confirmed_documents) == 60
    source = rig.once()
    assert rig.store.rows == {}
    assert check(source, "deletes")[0]


def test_a_confirmation_is_about_what_was_gone_when_it_was_given(rig: Rig) -> None:
    """Nothing is missing, and it is confirmed all the same: the folder that is emptied before the next run is held."""
    fill(rig, 60)
    source = rig.once()
    rig.store.confirmed_documents = source.absent()
    assert rig.store.confirmed_documents == frozenset()
    shutil.rmtree(rig.root)
    rig.root.mkdir()
    source = rig.once()
    assert len(rig.store.rows) == 60
    assert not check(source, "deletes")[0]


def test_a_confirmation_from_before_the_start_does_not_outlast_it(rig: Rig) -> None:
    """It is for what the first two scans find: a mount that goes away an hour later is held."""
    fill(rig, 60)
    rig.once()
    rig.store.confirmed_documents = frozenset(rig.store.rows)
    with rig.running(rescan_seconds=0.2, watch="poll") as source:
        rig.until(lambda: source.status().scans > 3)
        for path in rig.root.iterdir():
            path.unlink()
        rig.until(lambda: source.status().held == 60)


def test_once_without_its_root_deletes_nothing_and_is_not_well(rig: Rig) -> None:
    """A missing root says nothing about its documents."""
    fill(rig, 3)
    rig.once()
    shutil.rmtree(rig.root)
    source = rig.once()
    assert len(rig.store.rows) == 3
    assert not check(source, "root")[0]
    assert not check(source, "deletes")[0]


def test_what_is_below_an_unreadable_directory_is_not_gone(rig: Rig) -> None:
    """It stays as it is, the check names the directory and the cure, and when it is readable again all goes on."""
    fill(rig, 3, "closed/")
    rig.write("open")
    with rig.running(nobody=True, rescan_seconds=0.3) as source:
        rig.until(lambda: len(rig.store.rows) == 4)
        (rig.root / "closed").chmod(0o700 if os.geteuid() == 0 else 0)
        (rig.root / "open").unlink()
        rig.until(lambda: not check(source, "directories")[0])
        assert "closed (Permission denied)" in check(source, "directories")[1]
        rig.until(lambda: "open" not in rig.texts())
        assert len(rig.store.rows) == 3
        (rig.root / "closed").chmod(0o755)
        (rig.root / "closed/0").unlink()
        rig.until(lambda: check(source, "directories")[0])
        rig.until(lambda: set(rig.texts()) == {"closed/1", "closed/2"})


def test_a_directory_that_is_swapped_for_a_symlink_leads_nowhere(rig: Rig) -> None:
    """Neither a scan, nor a look, nor a read in flight gets to what the symlink points at."""
    outside = rig.root.parent / "outside"
    outside.mkdir()
    (outside / "a").write_text("secret")
    with rig.running(rescan_seconds=0.5):
        rig.engine.withhold = True
        rig.write("x/a", "public")
        rig.until(lambda: rig.engine.withheld)
        shutil.rmtree(rig.root / "x")
        (rig.root / "x").symlink_to(outside)
        rig.engine.release()
        rig.write("b")
        rig.until(lambda: "b" in rig.texts())
        (outside / "a").write_text("secret again")
        rig.write("c")
        rig.until(lambda: "c" in rig.texts())
        assert rig.texts() == {"b": "text", "c": "text"}


def test_a_file_that_may_not_be_read_comes_back_with_its_permission(rig: Rig) -> None:
    """It is a dead letter with that reason; a chmod is a change."""
    path = rig.write("a")
    path.chmod(0)
    with rig.running(nobody=True, rescan_seconds=60):
        rig.until(lambda: rig.engine.outcomes)
        assert rig.store.rows == {}
        path.chmod(0o644)
        # The engine reads on the source's thread here, which is nobody's.
        rig.until(lambda: rig.texts() == {"a": "text"})


LIMITED = """
import threading
from pathlib import Path
import sys, time
from types import SimpleNamespace
from ingestd.errors import Stopped
from ingestd.sources.folder import Config

class Intake:
    stop = False
    def offer(self, events): return len(events)
    def skip(self, verdict, count=1): pass
    def wait(self, seconds):
        if self.stop: raise Stopped
        time.sleep(seconds)

seen = SimpleNamespace(seen=lambda s, c: [], documents=lambda s, c: [], confirmed=lambda s: False)
scope = SimpleNamespace(clock=time, seen=seen, max_bytes=9, fingerprint=str)
source = Config(path=Path(sys.argv[1]), collection="c").build("s", scope)
print(next(one for one in source.probe() if one.name == "s:watch"))
intake = Intake()
def run():
    try: source.run(intake, once=False)
    except Stopped: pass
thread = threading.Thread(target=run)
thread.start()
deadline = time.monotonic() + 10
while time.monotonic() < deadline and not source.status().scans: time.sleep(0.01)
print(next(one for one in source.checks() if one.name == "s:watch"), source.status().scans)
intake.stop = True
thread.join()
"""


@pytest.mark.parametrize("limit", [0, 3])
def test_a_reached_inotify_limit_is_said(rig: Rig, limit: int) -> None:
    """Where the root, or only some directories, cannot be watched: not well, with the cure; scans go on."""
    for number in range(9):
        rig.write(f"{number}/a")
    script = f"echo {limit} > /proc/sys/user/max_inotify_watches && exec {sys.executable} - {rig.root}"
    limited = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*limited, "true"], check=False, capture_output=True).returncode:
        if os.environ.get("CI"):
            pytest.fail("unshare may make no user namespace: the test of the watch limit needs one")
        pytest.skip("no user namespaces here")
    daemon = Path(ingestd.__file__).parents[1]
    done = subprocess.run(
        [*limited, script],
        input=textwrap.dedent(LIMITED),
        env={**os.environ, "PYTHONPATH": str(daemon)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    probed, checked = (line for line in done.stdout.splitlines() if line.startswith("Check("))
    for line in (probed, checked):
        assert "ok=False" in line
        assert "inotify watch limit reached" in line
        assert "max_user_watches" in line
    assert checked.endswith(" 1")
