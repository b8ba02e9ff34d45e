"""Children that are forked from one that has imported everything: they are up in milliseconds.

A fresh interpreter takes half a second of a core to import what reads documents, which is a lot where bad documents
end their workers one after the other. So one child, the nursery, imports it and does nothing else; it has one thread
and no connection, which is what a fork survives. A forked child gets descriptors of its own from the daemon, through a
socket, and is then what any child is (``children``): same pipe, same lifeline, its own session. It also ends with the
nursery, which alone can say how it ended.

``multiprocessing``'s fork server was turned down for what ``children`` says of multiprocessing.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import threading
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from ingestd.children import Child, ChildDied, Ends, Pipe, follow, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

START_SECONDS = 60.0
"""Time for the nursery to start; it takes half a second on a machine that is not busy."""
FORK_SECONDS = 30.0
"""Time for a fork, and for a kill; both take milliseconds."""
MESSAGE = 65_536
"""Bytes of the longest message between daemon and nursery."""
DESCRIPTORS = len(Ends._fields) + 1
NOBODY = -signal.SIGKILL
"""What a child is said to have ended with when nobody is left to say it."""


@dataclass(frozen=True, slots=True)
class Order:
    """The first message to a nursery."""

    target: str
    """``module:function``: what its children run."""
    modules: tuple[str, ...]
    """What they need."""
    descriptor: int
    """The nursery's end of the socket."""


class Nursery:
    """The daemon's side. Safe to call from several threads.

    Args:
        target: ``module:function``; the function takes the child's end of the pipe.
        modules: What is imported ahead. None may start a thread.
        name: What people see in process lists and messages.
        env: Environment variables to add.
    """

    def __init__(
        self, target: str, modules: Collection[str], *, name: str, env: Mapping[str, str] | None = None
    ) -> None:
        self._target = target
        self._modules = tuple(modules)
        self._name = name
        self._env = env
        self._lock = threading.Lock()
        """One request at a time."""
        self._state = threading.Lock()
        """Guards what follows, and is never held for long."""
        self._child: Child | None = None
        self._socket: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The nursery's process id; None while there is none."""
        with self._state:
            return None if self._child is None else self._child.pid

    def child(self, name: str) -> Child:
        """Fork a child.

        Args:
            name: What people see in process lists (its first 15 characters) and messages.

        Raises:
            ChildDied: The nursery does not start, or was closed.
            OSError: There is no process to be had.
        """
        with self._lock:
            calls = self._running()
            try:
                return self._fork(calls, name)
            except ChildDied:  # it was ended from outside since the last one
                self._end()
                return self._fork(self._running(), name)

    def close(self) -> None:
        """End the nursery, and with it all of its children that still are."""
        with self._state:
            self._closed = True
            if self._child is not None:
                self._child.kill()  # whoever waits for it goes on
        with self._lock:
            self._end()

    def _end(self) -> None:
        with self._state:
            child, self._child = self._child, None
            calls, self._socket = self._socket, None
        if calls is not None:
            calls.close()
        if child is not None:
            child.kill()
            child.close()

    def _fork(self, calls: socket.socket, name: str) -> Child:
        return Child(name, lambda theirs: self._forked(calls, name, theirs))

    def _forked(self, calls: socket.socket, name: str, theirs: Ends) -> _Forked:
        status_read, status_write = os.pipe()
        status = Connection(status_read, writable=False)
        try:
            socket.send_fds(calls, [json.dumps(["fork", name]).encode()], [*theirs, status_write])
            answer = calls.recv(MESSAGE)
        except OSError as error:
            raise ChildDied(f"{self._name} does not answer: {error}") from error
        finally:
            os.close(status_write)
        if not answer:
            raise ChildDied(f"{self._name} ended")
        pid, message = json.loads(answer)
        if message is not None:
            raise OSError(message)
        return _Forked(pid, status, calls, self._end)

    def _running(self) -> socket.socket:
        """Return the socket of a nursery that is up."""
        with self._state:
            if self._closed:
                raise ChildDied(f"{self._name} was closed")
            if self._child is not None and self._socket is not None and self._child.alive:
                return self._socket
        self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(FORK_SECONDS)
        with theirs:
            child = spawn("ingestd.nursery:serve", name=self._name, env=self._env, keep=[theirs.fileno()])
            self._keep(child, ours)
            answer = child.request(Order(self._target, self._modules, theirs.fileno()), START_SECONDS)
        if answer is not None:
            self._end()
            raise ChildDied(str(answer))
        return ours

    def _keep(self, child: Child, calls: socket.socket) -> None:
        with self._state:
            self._child, self._socket = child, calls
            if self._closed:
                child.kill()  # whoever asked finds it dead


class _Forked:
    """A process that the nursery forked (``children.Process``). Safe to call from any thread.

    Args:
        pid: Its id.
        status: Brings its exit status, once; ends without one if the nursery ends.
        calls: The nursery's socket.
        end: Ends the nursery.
    """

    def __init__(self, pid: int, status: Connection, calls: socket.socket, end: Callable[[], None]) -> None:
        self.pid = pid
        self._status = status  # closed with this object: another thread may wait for it
        self._calls = calls
        self._end = end
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """See ``children.Process``."""
        with self._lock:
            if self._code is None and self._status.poll(0):
                try:
                    self._code = int(self._status.recv_bytes())
                except EOFError:
                    self._code = NOBODY
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        """See ``children.Process``."""
        if self.poll() is None:
            self._status.poll(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        """See ``children.Process``. The nursery does it: it knows whether the id is still the child's."""
        if self.poll() is not None:
            return
        with contextlib.suppress(OSError):  # the nursery is gone, and its children with it
            self._calls.send(json.dumps(["kill", self.pid]).encode())
        try:
            self.wait(FORK_SECONDS)
        except subprocess.TimeoutExpired:
            self._end()


class _Born(NamedTuple):
    """What the nursery has of a child."""

    status: Connection
    life: int
    """Never written to: its end says that the nursery is gone."""

    def close(self) -> None:
        self.status.close()
        os.close(self.life)


class _Fork(NamedTuple):
    """What a forked child needs to begin."""

    ends: Ends
    life: int


def serve(pipe: Pipe) -> None:
    """Import what was ordered, and fork children until the daemon closes the socket."""
    order = cast("Order", pipe.recv())
    try:
        for module in order.modules:
            import_module(module)
        name, _, function = order.target.partition(":")
        target: Callable[[Pipe], None] = getattr(import_module(name), function)
    except Exception as error:  # noqa: BLE001 - whatever a plug-in's module raises: the daemon is told, and decides
        pipe.send(f"{type(error).__name__}: {error}")
        return
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        pipe.send(
            f"importing {', '.join(order.modules)} started {threads - 1} threads, which a fork does not survive; "
            "let the extractor start them when it is built"
        )
        return
    gc.collect()
    gc.freeze()  # what is here for good stays in memory that all children share
    with socket.socket(fileno=order.descriptor) as calls:
        pipe.send(None)
        begun = _Parent(calls).run()
        if begun is None:
            return
    pipe.close()
    _begin(begun, target)


class _Parent:
    """The nursery's loop."""

    def __init__(self, calls: socket.socket) -> None:
        self._calls = calls
        self._born: dict[int, _Born] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> _Fork | None:
        """Do what the daemon asks for. Returns None at its end, and in each child what it begins with."""
        looked_at = select.poll()
        for descriptor in (self._calls.fileno(), self._wake_read):
            looked_at.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in looked_at.poll()}
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, MESSAGE)
                self._take_in()
            if self._calls.fileno() not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(self._calls, MESSAGE, DESCRIPTORS)
            if not message:
                return None
            what, argument = json.loads(message)
            if what == "kill":
                if argument in self._born:  # not taken in yet: the id is nobody else's
                    os.kill(argument, signal.SIGKILL)
                continue
            begun = self._fork(argument, descriptors)
            if begun is not None:
                return begun

    def _take_in(self) -> None:
        """Take in children that ended, and tell the daemon."""
        while self._born:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            born = self._born.pop(pid, None)
            if born is None:
                continue  # what a library started when it was imported
            with contextlib.suppress(OSError):  # the daemon has forgotten it
                born.status.send_bytes(str(os.waitstatus_to_exitcode(status)).encode())
            born.close()

    def _fork(self, name: str, descriptors: list[int]) -> _Fork | None:
        answer: tuple[int | None, str | None]
        try:
            read, write, lifeline, status = descriptors
            life_read, life_write = os.pipe()
        except (OSError, ValueError) as error:  # there is no room for more descriptors
            for descriptor in descriptors:
                os.close(descriptor)
            self._calls.send(json.dumps([None, str(error)]).encode())
            return None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        born = _Born(Connection(status, readable=False), life_write)
        try:
            pid = os.fork()
        except OSError as error:
            born.close()
            answer = None, str(error)
        else:
            if not pid:
                born.close()
                self._leave(name)
                return _Fork(Ends(read, write, lifeline), life_read)
            self._born[pid] = born
            answer = pid, None
        for descriptor in (read, write, lifeline, life_read):
            os.close(descriptor)
        self._calls.send(json.dumps(answer).encode())
        return None

    def _leave(self, name: str) -> None:
        """Let go, in a child, of all that is the nursery's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wake_read)
        os.close(self._wake_write)
        for born in self._born.values():
            born.close()
        os.setsid()
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="utf-8") as comm:  # noqa: PTH123 - one write
            comm.write(name)


def _begin(begun: _Fork, target: Callable[[Pipe], None]) -> None:
    """Live as a child, to the end of the process."""
    code = 1
    try:
        follow(begun.ends.lifeline, 0)
        follow(begun.life, 0)
        with contextlib.suppress(EOFError, BrokenPipeError):
            target(Pipe(begun.ends.read, begun.ends.write))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - it is the child's end either way
        traceback.print_exc()
    finally:
        os._exit(code)  # not through the nursery's own end, which is behind us on the stack
