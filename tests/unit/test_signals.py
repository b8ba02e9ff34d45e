"""Signals: who is told of which, and that none gets lost.

Each test is a process of its own: threads that are older than the holding, as a test runner has them, take signals too.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

BEGIN = """
import os, signal, threading, time
from ingestd.errors import Stopped
from ingestd.ops import signals as module
from ingestd.ops.signals import OURS, Signals, hold

def send(number):
    os.kill(os.getpid(), number)

def later(*numbers):
    threading.Timer(0.1, lambda: [send(number) for number in numbers]).start()

def left(signals, seconds=20.0):  # what the start was left with, by whoever waits in it
    unblocked = threading.Event()
    try:
        signals.start.on_leave(unblocked.set)
        unblocked.wait(seconds)
        signals.start.check()
    except BaseException as error:
        return type(error).__name__

def unheld():  # let signals reach this thread, and one that is older than the holding
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
    ready, release = threading.Event(), threading.Event()
    threading.Thread(target=lambda: ready.set() or release.wait(), daemon=True).start()
    ready.wait()

hold()
"""


def run(script: str, *prefix: str) -> str:
    """Return what a script prints."""
    command = [*prefix, sys.executable, "-c", BEGIN + script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_is_left_at_the_first_signal(number: int) -> None:
    """What it waits for is ended; the same signal once more, at once, changes nothing."""
    said = run(f"""
signals = Signals(reloads=True)
later({number})
print(left(signals), signals.stopping)
send({number})
print(signals.start.why is not None)
""")
    assert said == "Stopped True\nTrue"


def test_a_second_signal_ends_at_once() -> None:
    """Also where the main thread never looks."""
    script = """
signals = Signals(reloads=True)
signals.hand_over(lambda: None)
threading.Timer(0.1, send, [signal.SIGINT]).start()
threading.Timer(1.5, send, [signal.SIGINT]).start()
signal.sigtimedwait({signal.SIGUSR1}, 60)
"""
    done = subprocess.run([sys.executable, "-c", BEGIN + script], check=False, timeout=50)
    assert done.returncode == 1


def test_a_start_is_left_when_its_time_is_over() -> None:
    """That is no wish to stop; and one that is over in time is not left."""
    said = run("""
signals = Signals(reloads=False, timeout=0.1)
print(left(signals), signals.stopping)
signals.end()
signals = Signals(reloads=False, timeout=0.1)
signals.hand_over(lambda: None)
print(left(signals, 0.5))
""")
    assert said == "Late False\nNone"


def test_a_daemon_that_runs_is_drained() -> None:
    """And one that was asked to go just before it ran is left as its start."""
    said = run("""
signals, drained = Signals(reloads=True), threading.Event()
signals.hand_over(drained.set)
print(drained.is_set())
send(signal.SIGTERM)
print(drained.wait(20), signals.stopping)
signals.end()
signals, drained = Signals(reloads=True), threading.Event()
signals.leave()
try:
    signals.hand_over(drained.set)
except Stopped:
    print(drained.is_set(), signals.stopping)
""")
    assert said == "False\nTrue True\nFalse False"


def test_a_start_that_is_stuck_is_given_up() -> None:
    """Nothing of it has to be finished: the process ends, with the exit code of what it was left with."""
    script = """
module.STUCK_SECONDS = 0.3
signals = Signals(reloads=False, timeout=0.1, give_up=lambda why: {"Late": 7}[type(why).__name__])
signals.start.on_leave(lambda: print("asked to end", flush=True))
signal.sigtimedwait({signal.SIGUSR1}, 60)
"""
    command = [sys.executable, "-c", BEGIN + script]
    done = subprocess.run(command, check=False, timeout=50, capture_output=True, text=True)
    assert done.returncode == 7
    assert done.stdout.startswith("asked to end\n")
    assert "the start does not end by itself" in done.stdout + done.stderr


def test_a_hang_up_is_told_to_who_reloads() -> None:
    """Each one, and one that came before anybody was there for it is told then. It stops nothing."""
    said = run("""
signals, told = Signals(reloads=True), threading.Semaphore(0)
send(signal.SIGHUP)
while not signals._missed:
    time.sleep(0.01)
signals.on_hangup(told.release)
print(told.acquire(timeout=20))
send(signal.SIGHUP)
print(told.acquire(timeout=20), told.acquire(timeout=0.2), signals.stopping)
""")
    assert said == "True\nTrue False False"


def test_where_nothing_is_reloaded_a_hang_up_stops() -> None:
    """As ``run --once`` ends with its terminal."""
    said = run("""
signals, drained = Signals(reloads=False), threading.Event()
signals.hand_over(drained.set)
send(signal.SIGHUP)
print(drained.wait(20), signals.stopping)
""")
    assert said == "True True"


def test_what_is_pending_at_the_start() -> None:
    """A SIGHUP asks for nothing: the configuration is not read yet. A SIGTERM is heard."""
    said = run("""
send(signal.SIGHUP)
send(signal.SIGTERM)
told = threading.Event()
signals = Signals(reloads=True)
print(left(signals))
signals.on_hangup(told.set)
print(told.wait(0.5), signals.stopping)
""")
    assert said == "Stopped\nFalse True"


def test_a_hang_up_that_is_ignored_is_left_alone() -> None:
    """Under nohup."""
    said = run(
        """
signals, told = Signals(reloads=True), threading.Event()
signals.on_hangup(told.set)
send(signal.SIGHUP)
print(told.wait(0.5), signals.stopping)
""",
        *("sh", "-c", 'trap "" HUP; exec "$@"', "sh"),
    )
    assert said == "False False"


def test_after_the_end_signals_wait() -> None:
    """For the next image: none is taken, ignored or acted upon, whatever other threads there are."""
    said = run("""
threading.Thread(target=threading.Event().wait, daemon=True).start()
signals = Signals(reloads=True)
signals.hand_over(lambda: None)
signals.end()
for number in OURS:
    send(number)
print(sorted(map(int, signal.sigpending())), signals.stopping)
""")
    assert said == "[1, 2, 15] False"


def test_a_thread_that_is_not_held_loses_nothing() -> None:
    """A program that starts us in its own process may have threads already: what they take is heard too."""
    said = run("""
unheld()
signals, drained = Signals(reloads=True), threading.Event()
signals.hand_over(drained.set)
send(signal.SIGTERM)
while not drained.is_set():
    time.sleep(0.05)
print(signals.stopping)
""")
    assert said == "True"


def test_a_start_is_left_though_its_own_thread_takes_the_signal() -> None:
    """Amid whatever that does: also where it has just begun to say how a wait is ended."""
    said = run("""
unheld()
signals = Signals(reloads=True)
signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
with signals.start._lock:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
    time.sleep(0.2)
print(left(signals), signals.stopping)
""")
    assert said == "Stopped True"
