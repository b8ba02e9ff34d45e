"""The state under SIGKILL, a full disk, a read-only disk and failing syncs.

What runs in a child process is a function of this file, started as ``python test_store_faults.py NAME ARGUMENTS``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingestd.errors import ConfigError, UnavailableError
from ingestd.model import (
    Content,
    DocumentKey,
    Entry,
    Event,
    Failure,
    Fingerprints,
    Op,
    Outcome,
    Settled,
    Stage,
    Verdict,
    Version,
)
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FINGERPRINTS = {"c": Fingerprints("p", "q")}
FAILURE = Failure(Stage.EMBED, "TransientError", "429")
ROUNDS = 8
THREADS = 3


def batch(number: int, size: int = 0) -> list[Outcome]:
    """Return three outcomes that belong together: an entry, a parked event and a dead letter of one number."""
    events = [
        Event(DocumentKey("c", f"{kind}{number}"), Op.UPSERT, "inbox", f"/{kind}{number}", None, signature="s")
        for kind in ("written", "parked", "dead")
    ]
    entry = Entry(events[0].key, "inbox", Version(number, "inbox"), "p", "c", {f"{number:032x}": b"d" * 16})
    return [
        Outcome(events[0], Verdict.WRITTEN, entry),
        Outcome(events[1], Verdict.RETRYING, failure=FAILURE, wait=1.0),
        Outcome(events[2], Verdict.DEAD_LETTERED, content=Content(b"x" * size, "n"), failure=FAILURE),
    ]


def numbers(store: SqliteStore) -> list[set[int]]:
    """Return the numbers of the entries, of what was seen, of the parked events and of the dead letters."""
    return [
        {int(entry.key.document_id.removeprefix("written")) for entry in store.collection_entries("c")},
        {int(seen.document_id.removeprefix("dead")) for seen in store.seen("inbox") if "dead" in seen.document_id},
        {int(parked.key.document_id.removeprefix("parked")) for parked in store.parked()},
        {int(letter.key.document_id.removeprefix("dead")) for letter in store.dead_letters(data=False)},
    ]


def say(word: object) -> None:
    """Tell the parent, in one write."""
    os.write(1, f"{word}\n".encode())


# Children


def write_for_ever(state: str, start: str) -> None:
    """Settle batches from several threads until the end, saying the number of each that was acknowledged."""
    store = SqliteStore.open(Path(state), clock=time)
    say(f"crashed {store.begin() is not None}")
    counter = itertools.count(int(start))

    def write() -> None:
        while True:
            number = next(counter)
            store.settle(batch(number, size=2_000), FINGERPRINTS)
            say(number)

    for _ in range(THREADS):
        threading.Thread(target=write, daemon=True).start()
    signal.pause()


def hold(state: str) -> None:
    """Open the state, and keep it until the end."""
    with SqliteStore.open(Path(state), clock=time):
        say("open")
        signal.pause()


def full_disk(state: str) -> None:
    """Fill the disk under an open state, see writes refused, make room, and see them go through."""
    path = Path(state)
    store = SqliteStore.open(path, clock=time)
    store.begin()
    stored = set()
    ballast = path / "ballast"
    failing: list[str | None] = []
    for number in range(3):
        store.settle(batch(number), FINGERPRINTS)
        stored.add(number)
    for turn in (10, 20):
        fill(ballast)
        refused = 0
        for number in itertools.count(turn):
            try:
                store.settle(batch(number, size=20_000), FINGERPRINTS)
            except UnavailableError as error:
                refused += error.dependency == "state"
                if refused == 3:
                    break
            else:
                stored.add(number)
        failing.append(store.failing)
        assert all(found == stored for found in numbers(store)), "what was refused is not half there"
        ballast.unlink()
        store.probe()
        failing.append(store.failing)
        store.settle(batch(turn + 9), FINGERPRINTS)
        stored.add(turn + 9)
    store.close(clean=True)
    assert [word is not None for word in failing] == [True, False] * 2, "it says so while it cannot write"
    with SqliteStore.open(path, clock=time) as again:
        assert not again.rebuilt
        assert again.begin() is None
        assert all(found == stored for found in numbers(again))
    say(json.dumps(sorted(stored)))


def full_at_start(state: str) -> None:
    """Open a state on a full disk, and on one that is full in the middle: refused, nothing half made is left."""
    path = Path(state)
    ballast = path.parent / "ballast"
    fill(ballast)
    for room in (0, 24_576):
        os.truncate(ballast, ballast.stat().st_size - room)
        try:
            SqliteStore.open(path, clock=time, wait=0.0)
        except ConfigError as error:
            say(error)
        else:
            raise AssertionError("it opened on a full disk")
        assert {each.name for each in path.iterdir()} <= {"lock"}, "nothing half made is left"
    ballast.unlink()
    with SqliteStore.open(path, clock=time) as store:
        assert not store.rebuilt
        store.settle(batch(1), FINGERPRINTS)


def read_only_disk(state: str) -> None:
    """Open a state on a disk that is mounted read-only."""
    path = Path(state)
    SqliteStore.open(path, clock=time).close(clean=True)
    subprocess.run(["mount", "-o", "remount,ro", path.parent], check=True)
    for directory in (path, path.parent / "new"):
        try:
            SqliteStore.open(directory, clock=time, wait=0.0)
        except ConfigError as error:
            say(error)
        else:
            raise AssertionError("it opened on a read-only disk")


def failing_syncs(state: str) -> None:
    """Settle while some syncs fail (see the test): say how each number came out."""
    store = SqliteStore.open(Path(state), clock=time)
    outcomes: dict[str, list[int]] = {"stored": [], "refused": []}
    for number in range(60):
        try:
            store.settle(batch(number), FINGERPRINTS)
        except UnavailableError:
            outcomes["refused"].append(number)
        else:
            outcomes["stored"].append(number)
    say(json.dumps(outcomes))
    os._exit(0)  # like a crash: nothing is put in order on the way out


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def run_mounted(name: str, mount: str) -> None:
    """Run another child's function on a small tmpfs of its own."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], check=True)
    globals()[name](f"{mount}/state")


# Tests


def command(name: str, *arguments: object) -> list[str]:
    """Return the command of a child."""
    return [sys.executable, __file__, name, *map(str, arguments)]


@contextlib.contextmanager
def child(name: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """Run a child; it is killed at the end, if it is not gone then. Yields it and what reads a line of it."""
    with subprocess.Popen(command(name, *arguments), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline
        finally:
            process.kill()


def finished(*words: str) -> str:
    """Run a command to its end, and return what it said."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    """Killed at random moments in the middle of writing: all that was acknowledged is there, and nothing by halves."""
    acknowledged: set[int] = set()
    start = 0
    for turn in range(ROUNDS):
        with child("write_for_ever", tmp_path, start) as (process, line):
            assert line() == f"crashed {turn > 0}\n"
            for _ in range(random.randint(1, 150)):
                acknowledged.add(int(line()))
            process.send_signal(signal.SIGKILL)
            acknowledged |= {int(word) for word in iter(line, "") if word.endswith("\n")}
        with SqliteStore.open(tmp_path, clock=time, wait=5.0) as store:
            assert not store.rebuilt
            entries, seen, parked, letters = numbers(store)
            counts = store.counts()["inbox"]
        assert entries == seen == parked == letters
        assert acknowledged <= entries
        assert len(entries - acknowledged) <= THREADS * (turn + 1)  # stored, and killed before it could say so
        assert counts.documents == counts.parked == counts.dead_letters == len(entries)
        start = max(entries) + 1


def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    """While another process has the state this one is refused with its number; killed, it leaves no lock behind."""
    with child("hold", tmp_path) as (process, line):
        assert line() == "open\n"
        with pytest.raises(ConfigError, match=f"in use by process {process.pid}"):
            SqliteStore.open(tmp_path, clock=time, wait=0.0)
        with SqliteStore.read_only(tmp_path, clock=time) as command:
            assert list(command.dead_letters()) == []
        process.send_signal(signal.SIGKILL)
        SqliteStore.open(tmp_path, clock=time, wait=10.0).close(clean=True)


def test_a_probe_finds_out_that_the_disk_is_back(tmp_path: Path) -> None:
    """While nothing can be written each probe says so; the first one that goes through ends the failing, alone."""
    with SqliteStore.open(tmp_path, clock=time) as store:
        store.probe()
        failing = [store.failing]
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # every write of this process fails
        try:
            for _ in range(2):
                with pytest.raises(UnavailableError) as refused:
                    store.probe()
                assert refused.value.dependency == "state"
                failing.append(store.failing)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        failing.append(store.failing)
        store.probe()
        failing.append(store.failing)
        assert [why is not None for why in failing] == [False, True, True, True, False]
        assert store.settle(batch(1), FINGERPRINTS) == Settled()


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    """A process that the daemon started, and that outlives it, does not keep the state locked."""
    store = SqliteStore.open(tmp_path, clock=time)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as process:
        store.close(clean=True)
        SqliteStore.open(tmp_path, clock=time, wait=0.0).close(clean=True)
        process.communicate(b"\n")


@pytest.fixture
def mounted(tmp_path: Path) -> Callable[[str], str]:
    """Return what runs a child on a disk of 1 MiB, in a mount namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("unshare is missing or may not be used: tests of full disks need the right to mount")
        pytest.skip("mounting a small disk needs unshare and the right to use it")
    return lambda name: finished(unshare, "-m", *command("run_mounted", name, tmp_path))


def test_a_full_disk_refuses_and_recovers(mounted: Callable[[str], str]) -> None:
    """With the disk full writes are refused whole and reads go on; with room again the same store writes on."""
    assert len(json.loads(mounted("full_disk"))) >= 5


def test_a_full_disk_at_the_start_is_a_fault_of_the_set_up(mounted: Callable[[str], str]) -> None:
    """A first start on a full disk says to free space, and leaves nothing that a second one stumbles over."""
    said = mounted("full_at_start").splitlines()
    assert len(said) == 2
    assert all("state_dir: " in line and "free space on that disk" in line for line in said)


def test_a_read_only_disk_is_a_fault_of_the_set_up(mounted: Callable[[str], str]) -> None:
    """On a disk that is mounted read-only the start says so, for a state that is there and for a new one."""
    said = mounted("read_only_disk").splitlines()
    assert len(said) == 2
    assert all("Read-only file system" in line and "mount it writable" in line for line in said)


def test_failing_syncs_lose_nothing(tmp_path: Path) -> None:
    """When every third sync fails, what was acknowledged is there after a crash, and the rest was refused aloud."""
    strace = shutil.which("strace")
    inject = ["-f", "-qq", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO:when=20+3"]
    if strace is None or subprocess.run([strace, *inject, "true"], capture_output=True, check=False).returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("strace is missing or may not trace: .ci/run installs it with Debian's package strace")
        pytest.skip("failing syncs need strace and the right to trace (Debian: apt install strace)")
    SqliteStore.open(tmp_path, clock=time).close(clean=True)  # making a state syncs often, and is not what fails here
    said = json.loads(finished(strace, *inject, *command("failing_syncs", tmp_path)).splitlines()[-1])
    assert len(said["refused"]) > 3
    assert len(said["stored"]) > 3
    with SqliteStore.open(tmp_path, clock=time) as store:
        assert not store.rebuilt
        entries, seen, parked, letters = numbers(store)
        assert entries == seen == parked == letters
        assert set(said["stored"]) <= entries
        for number in said["refused"]:  # what settle does with what was refused: it tries again
            assert store.settle(batch(number), FINGERPRINTS) == Settled(superseded=number in parked)
        assert {number for found in numbers(store) for number in found} == set(range(60))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
