"""Child processes that end with the daemon, however it ends.

A child is a fresh interpreter (never a fork of the daemon: CUDA and gRPC do not survive one) that runs one function on
one end of a pipe; where a fresh one for each would take too long, ``nursery`` forks them from one. It sits in a session
of its own, so that a Ctrl-C or a signal to the daemon's process group does not take it before the drain. A second pipe,
the lifeline, is never written to: its end of file says that the daemon is gone. A child that holds nothing has the
kernel end it then (``O_ASYNC``, fcntl(2)), also in the middle of C code that never lets go of the interpreter; one that
owns a database has a thread of its own watch the lifeline, and time to close.

``multiprocessing`` was turned down: it imports the daemon's ``__main__`` again, keeps a resource tracker beside the
daemon, and ties children to the thread that started them. ``PR_SET_PDEATHSIG`` was too: it follows that thread, and
gives a child that owns a database no chance to close it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping


class ChildDied(Exception):  # noqa: N818 - a state, and each caller has its own verdict on it
    """The child ended, or did not answer in time and was ended."""


class Process(Protocol):
    """What a child's process has: ``subprocess.Popen`` is one."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: It goes on.
        """
        ...

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        ...


class Ends(NamedTuple):
    """The descriptors that a child gets."""

    read: int
    write: int
    lifeline: int


class Child:
    """A running child and the daemon's end of its pipe. One thread at a time may talk to it.

    Args:
        name: What people see in messages.
        start: Starts its process, which inherits these descriptors.
    """

    def __init__(self, name: str, start: Callable[[Ends], Process]) -> None:
        self.name = name
        # multiprocessing's Connection frames and pickles; only its process handling is not wanted here.
        here_read, there_write = os.pipe()
        there_read, here_write = os.pipe()
        lifeline_read, self._lifeline = os.pipe()
        theirs = Ends(there_read, there_write, lifeline_read)
        self._reader = Connection(here_read, writable=False)
        self._writer = Connection(here_write, readable=False)
        try:
            self._process = start(theirs)
        except BaseException:
            self._close_pipes()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child is running."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def send(self, message: object) -> None:
        """Send a picklable message.

        Raises:
            ChildDied: The child is gone.
        """
        try:
            self._writer.send(message)
        except OSError as error:
            raise ChildDied(self._epitaph()) from error

    def receive(self, timeout: float | None) -> object:
        """Return the next message. A child that does not answer in time is ended.

        Raises:
            ChildDied: The child is gone.
        """
        try:
            if not self._reader.poll(timeout):
                self.kill()
                raise ChildDied(f"{self.name} did not answer within {timeout:g} s and was ended")
            return self._reader.recv()
        except (EOFError, OSError) as error:
            raise ChildDied(self._epitaph()) from error

    def request(self, message: object, timeout: float | None) -> object:
        """Send a message and return the answer."""
        self.send(message)
        return self.receive(timeout)

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()
        self._process.wait()

    def close(self, timeout: float = 10.0) -> None:
        """Let the child end by itself, at the end of its pipe; end it if it does not within the timeout."""
        self._close_pipes()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def _close_pipes(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()
            self._reader.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _epitaph(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self.returncode
        if code is None:
            return f"{self.name} closed its pipe"
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"{self.name} (process {self.pid}) ended with {how}"


def spawn(
    target: str,
    *,
    name: str,
    env: Mapping[str, str] | None = None,
    grace: float = 0.0,
    keep: Collection[int] = (),
) -> Child:
    """Start a child on an interpreter of its own.

    Args:
        target: ``module:function``; the function takes the child's end of the pipe.
        name: What people see in process lists and messages.
        env: Environment variables to add.
        grace: Seconds that the child may go on after the daemon's death, to close what it holds.
        keep: Descriptors that it inherits beside its own, under the same numbers.

    Raises:
        OSError: There is no process to be had.
    """

    def start(theirs: Ends) -> Process:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "ingestd.children", target, *map(str, theirs), str(grace), name],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
            pass_fds=(*theirs, *keep),
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )

    return Child(name, start)


class Pipe:
    """A child's end: ``recv`` raises EOFError when the daemon is gone or has let go."""

    def __init__(self, read: int, write: int) -> None:
        self._reader = Connection(read, writable=False)
        self._writer = Connection(write, readable=False)

    def recv(self) -> object:
        """Return the next message."""
        return self._reader.recv()

    def send(self, message: object) -> None:
        """Send a picklable message."""
        self._writer.send(message)

    def close(self) -> None:
        """Close this end."""
        self._reader.close()
        self._writer.close()


def _has_descriptor(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() >= 0
    except (OSError, ValueError):  # what a test runner puts in its place may have none
        return False


def follow(lifeline: int, grace: float) -> None:
    """End this process at the end of the lifeline, after the grace."""
    if grace:
        threading.Thread(target=_wait, args=(lifeline, grace), daemon=True, name="lifeline").start()
        return
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # the default action is to end the process
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    ended = select.poll()
    ended.register(lifeline, select.POLLIN)
    if ended.poll(0):
        os._exit(0)  # it ended before the kernel was told to say so


def _wait(lifeline: int, grace: float) -> None:
    os.read(lifeline, 1)
    time.sleep(grace)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Run a child: find the function, watch the lifeline, hand over the pipe."""
    # The daemon holds its signals, and a child begins with what its parent held.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    target, read, write, lifeline, grace, _name = arguments
    follow(int(lifeline), float(grace))
    module, _, function = target.partition(":")
    serve: Callable[[Pipe], None] = getattr(import_module(module), function)
    with contextlib.suppress(EOFError, BrokenPipeError):
        serve(Pipe(int(read), int(write)))


if __name__ == "__main__":
    main(sys.argv[1:])
