"""Children that are forked: as those on interpreters of their own, and no trace of the others in them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ingestd.children import ChildDied
from ingestd.nursery import Nursery

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 30.0
MODULE = """
import os, sys, time

IMPORTED = os.getpid()

def serve(pipe):
    while True:
        what, argument = pipe.recv()
        if what == "echo":
            pipe.send(argument)
        elif what == "about":
            open_here = {}
            for name in os.listdir("/proc/self/fd"):
                try:
                    open_here[int(name)] = os.readlink(f"/proc/self/fd/{name}")
                except OSError:
                    pass
            comm = open("/proc/self/comm").read().strip()
            ignored = [line for line in open("/proc/self/status") if line.startswith(("SigIgn", "SigBlk"))]
            pipe.send((os.getpid(), os.getppid(), os.getsid(0), IMPORTED, comm, open_here, ignored))
        elif what == "exit":
            sys.exit(argument)
        elif what == "raise":
            raise RuntimeError(argument)
        elif what == "abort":
            os.abort()
        elif what == "spin":
            print("spinning", file=open(argument, "w"), flush=True)
            sum(iter(int, 1))
"""
DAEMON = """
import sys, time
from ingestd.nursery import Nursery
nursery = Nursery("forked_targets:serve", ["forked_targets"], name="nursery")
children = [nursery.child(f"child-{n}") for n in range(2)]
children[0].send(("spin", sys.argv[1]))
print(nursery.pid, *(child.pid for child in children), flush=True)
time.sleep(3600)
"""


@pytest.fixture
def nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nursery]:
    """A nursery for children that run ``MODULE``."""
    (tmp_path / "forked_targets.py").write_text(MODULE)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    with closing(Nursery("forked_targets:serve", ["forked_targets"], name="nursery")) as made:
        yield made


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(*pids: int) -> None:
    """Wait for the end of processes."""
    deadline = time.monotonic() + DEADLINE
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, "they are still there"
        threading.Event().wait(0.01)


def test_messages_go_both_ways(nursery: Nursery) -> None:
    """What is sent comes back, also when it is larger than a pipe, from several at a time."""
    children = [nursery.child(f"child-{number}") for number in range(3)]
    for child in children:
        child.send(("echo", (child.name, b"x" * 5_000_000)) if child is children[0] else ("echo", child.name))
    assert children[0].receive(DEADLINE) == ("child-0", b"x" * 5_000_000)
    assert [child.receive(DEADLINE) for child in children[1:]] == ["child-1", "child-2"]
    assert [(child.alive, child.returncode) for child in children] == [(True, None)] * 3


def test_a_child_has_its_own_alone(nursery: Nursery) -> None:
    """It is in a session of its own under its name, shares what was imported, and no descriptor of a sibling."""
    first, second = (nursery.child(f"child-{number}") for number in (1, 2))
    found = []
    for child in (first, second):
        said: Any = child.request(("about", None), DEADLINE)
        pid, parent, session, imported, comm, descriptors, signals = said
        assert pid == session == child.pid
        assert parent == imported == nursery.pid
        assert comm == child.name
        status = Path(f"/proc/{nursery.pid}/status").read_text().splitlines()
        assert [line.strip() for line in signals] == [one for one in status if one.startswith(("SigIgn", "SigBlk"))]
        found.append({number: name for number, name in descriptors.items() if not name.startswith("/")})
    # Pipe in and out, lifeline, the nursery's life; and the nursery's own lifeline, which it has no use for.
    assert [len(names) for names in found] == [5, 5]
    assert len(set(found[0].values()) & set(found[1].values())) <= 1


@pytest.mark.parametrize(
    ("what", "argument", "code"),
    [("exit", 3, 3), ("exit", 0, 0), ("raise", "odd", 1), ("abort", None, -signal.SIGABRT)],
)
def test_an_end_is_told(nursery: Nursery, what: str, argument: object, code: int) -> None:
    """Its exit status, or its signal; and the next child is none the worse."""
    child = nursery.child("child")
    with pytest.raises(ChildDied, match=f"signal {-code}" if code < 0 else f"exit status {code}"):
        child.request((what, argument), DEADLINE)
    assert (child.alive, child.returncode) == (False, code)
    assert nursery.child("next").request(("echo", 1), DEADLINE) == 1


def test_a_kill_is_told(nursery: Nursery) -> None:
    """By us or by somebody else; killing again does nothing."""
    ours, theirs = nursery.child("ours"), nursery.child("theirs")
    ours.kill()
    ours.kill()
    os.kill(theirs.pid, signal.SIGKILL)
    with pytest.raises(ChildDied, match="signal 9"):
        theirs.request(("echo", 1), DEADLINE)
    assert ours.returncode == theirs.returncode == -signal.SIGKILL
    assert gone(ours.pid)


def test_what_does_not_answer_is_ended(nursery: Nursery, tmp_path: Path) -> None:
    """Also deep in C code."""
    child = nursery.child("child")
    with pytest.raises(ChildDied, match="did not answer within"):
        child.request(("spin", str(tmp_path / "spinning")), 1.0)
    assert gone(child.pid)


def test_close_ends_a_child(nursery: Nursery, tmp_path: Path) -> None:
    """At the end of its lifeline, whatever it does; nothing is left of it here or in the nursery."""
    nursery.child("warm").close()
    here, there = Path("/proc/self/fd"), Path(f"/proc/{nursery.pid}/fd")
    gc.collect()
    before = len(list(here.iterdir())), len(list(there.iterdir()))

    def once() -> None:
        child = nursery.child("child")
        child.send(("spin", str(tmp_path / "spinning")))
        child.close()
        assert gone(child.pid)

    for _ in range(5):
        once()
    gc.collect()
    assert (len(list(here.iterdir())), len(list(there.iterdir()))) == before


def test_children_end_with_their_nursery(nursery: Nursery, tmp_path: Path) -> None:
    """Somebody kills it: they end too, that is told as a kill from outside, and the next child has a new nursery."""
    children = [nursery.child(f"child-{number}") for number in range(2)]
    children[0].send(("spin", str(tmp_path / "spinning")))
    assert nursery.pid is not None
    os.kill(nursery.pid, signal.SIGKILL)
    wait_until_gone(*(child.pid for child in children))
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2
    children[0].kill()
    assert nursery.child("next").request(("echo", 1), DEADLINE) == 1


def test_nothing_outlives_a_daemon_that_is_killed(nursery: Nursery, tmp_path: Path) -> None:
    """Neither the nursery nor what it forked, idle or deep in C code."""
    spinning = tmp_path / "spinning"
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON, str(spinning)], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    pids = [int(pid) for pid in daemon.stdout.readline().split()]
    assert len(pids) == 3
    deadline = time.monotonic() + DEADLINE
    while not spinning.exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    daemon.kill()
    daemon.communicate()
    wait_until_gone(*pids)


def test_closing_ends_all(nursery: Nursery) -> None:
    """All children, and whatever is asked for afterwards."""
    children = [nursery.child(f"child-{number}") for number in range(2)]
    nursery.close()
    nursery.close()
    wait_until_gone(*(child.pid for child in children))
    assert [child.returncode for child in children] == [-signal.SIGKILL] * 2
    with pytest.raises(ChildDied, match="was closed"):
        nursery.child("late")


def test_closing_does_not_wait_for_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that hangs holds nobody."""
    (tmp_path / "hangs.py").write_text(
        "import time, pathlib\npathlib.Path(__file__ + '.up').touch()\ntime.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    made = Nursery("hangs:serve", ["hangs"], name="nursery")
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            made.child("child")
        except ChildDied as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + DEADLINE
    while not (tmp_path / "hangs.py.up").exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    made.close()
    thread.join(DEADLINE)
    assert len(caught) == 1


def test_what_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the error, and each time anew."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with closing(Nursery("no_such_module:serve", ["no_such_module"], name="nursery")) as made:
        for _ in range(2):
            with pytest.raises(ChildDied, match="ModuleNotFoundError: No module named 'no_such_module'"):
                made.child("child")
