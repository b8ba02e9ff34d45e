"""Child processes: a pipe, a session of their own, and an end with the daemon, however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from ingestd.children import ChildDied, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestd.children import Child

DEADLINE = 30.0
MODULE = """
import ctypes, os, sys, time

def echo(pipe):
    while True:
        pipe.send(pipe.recv())

def about(pipe):
    descriptors = os.listdir("/proc/self/fd")
    pipe.send((os.getsid(0), os.getpid(), os.environ.get("INGESTD_TEST"), sys.argv, descriptors))
    pipe.recv()

def deaf(pipe):
    pipe.send("up")
    time.sleep(3600)

def stuck(pipe):
    pipe.send("up")
    ctypes.PyDLL(None).sleep(3600)  # holds the interpreter's lock

def dies(pipe):
    pipe.recv()
    os._exit(7)

def closes(pipe):
    try:
        while True:
            pipe.recv()
    except EOFError:
        open(os.environ["MARK"], "w").write("closed")
"""
DAEMON = """
import sys, time
from ingestd.children import spawn
children = [spawn(f"child_targets:{name}", name=name) for name in ("echo", "deaf", "stuck")]
children.append(spawn("child_targets:deaf", name="graceful", grace=0.2))
children[0].send("up")
assert [child.receive(30) for child in children] == ["up"] * 4
print(*(child.pid for child in children), flush=True)
time.sleep(3600)
"""


def path_with(folder: Path) -> str:
    """Return the path on which a child finds modules, with a folder in front."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Return what starts a child that runs a function of ``MODULE``."""
    (tmp_path / "child_targets.py").write_text(MODULE)
    children: list[Child] = []

    def started(function: str, grace: float = 0.0, **env: str) -> Child:
        env["PYTHONPATH"] = path_with(tmp_path)
        child = spawn(f"child_targets:{function}", name=function, env=env, grace=grace)
        children.append(child)
        return child

    yield started
    for child in children:
        child.kill()
        child.close()


def test_messages_go_both_ways(start: Callable[..., Child]) -> None:
    """What is sent comes back, also when it is larger than a pipe."""
    child = start("echo")
    for message in ({"a": [1, "ü"]}, b"x" * 5_000_000, None):
        assert child.request(message, DEADLINE) == message
    assert (child.alive, child.returncode) == (True, None)


def test_a_child_is_in_a_session_of_its_own_and_inherits_its_pipes_alone(start: Callable[..., Child]) -> None:
    """A Ctrl-C does not reach it, and no file of the daemon is open in it."""
    with Path(__file__).open() as _open_here:
        child = start("about", INGESTD_TEST="here")
        found = child.receive(DEADLINE)
    assert isinstance(found, tuple)
    session, pid, variable, arguments, descriptors = found
    assert (session, pid, variable) == (child.pid, child.pid, "here")
    assert session != os.getsid(0)
    assert arguments[-1] == "about"
    assert len(descriptors) <= 3 + 3 + 1


def test_a_child_that_ends_is_told(start: Callable[..., Child]) -> None:
    """The error says which process ended, and how; so does the next call."""
    child = start("dies")
    with pytest.raises(ChildDied, match=rf"dies \(process {child.pid}\) ended with exit status 7"):
        child.request("go", DEADLINE)
    with pytest.raises(ChildDied):
        child.request("again", DEADLINE)
    assert (child.alive, child.returncode) == (False, 7)


def test_a_child_that_is_killed_is_told(start: Callable[..., Child]) -> None:
    """By the number of the signal: 9 is what the kernel sends when memory runs out."""
    child = start("echo")
    child.request("ready", DEADLINE)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildDied, match="signal 9"):
        child.receive(DEADLINE)


def test_a_child_that_does_not_answer_is_ended(start: Callable[..., Child]) -> None:
    """Nothing hangs: after the timeout it is gone."""
    child = start("deaf")
    assert child.receive(DEADLINE) == "up"
    with pytest.raises(ChildDied, match=r"did not answer within 0\.1 s and was ended"):
        child.request("anybody?", 0.1)
    assert not child.alive


def test_close_lets_a_child_put_its_things_away(start: Callable[..., Child], tmp_path: Path) -> None:
    """Its pipe ends, it has its grace, and it is waited for. Closing again does nothing."""
    child = start("closes", grace=DEADLINE, MARK=str(tmp_path / "mark"))
    child.send("something")
    child.close(DEADLINE)
    assert (tmp_path / "mark").read_text() == "closed"
    assert child.returncode == 0
    child.close()


@pytest.mark.parametrize(("function", "grace"), [("deaf", 0.0), ("stuck", 0.0), ("deaf", 0.1)])
def test_close_ends_a_child_that_does_not_listen(start: Callable[..., Child], function: str, grace: float) -> None:
    """The lifeline's end is enough: also deep in C code, and, for one that has a grace, after it. No kill is needed."""
    child = start(function, grace)
    assert child.receive(DEADLINE) == "up"
    child.close(DEADLINE)
    assert child.returncode in (0, -signal.SIGIO)


def test_no_descriptor_is_left(start: Callable[..., Child]) -> None:
    """A child that was started and closed leaves nothing open; neither does one that could not be started."""
    here = Path("/proc/self/fd")
    before = len(list(here.iterdir()))
    for _ in range(3):
        child = start("echo")
        child.kill()
        child.close()
    executable = sys.executable
    try:
        sys.executable = "/nowhere/python"
        with pytest.raises(FileNotFoundError):
            start("echo")
    finally:
        sys.executable = executable
    assert len(list(here.iterdir())) == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_the_daemon_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    """Nothing outlives it: neither a child that listens to its pipe, nor one that is deep in C code, nor a slow one."""
    (tmp_path / "child_targets.py").write_text(MODULE)
    env = {**os.environ, "PYTHONPATH": path_with(tmp_path)}
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE, text=True, env=env)
    pids: list[int] = []
    assert daemon.stdout is not None
    try:
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        assert len(pids) == 4
        children = [psutil.Process(pid) for pid in pids]
        daemon.send_signal(how)
        daemon.wait(DEADLINE)
        gone, alive = psutil.wait_procs(children, DEADLINE)
        assert (len(gone), alive) == (4, [])
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
