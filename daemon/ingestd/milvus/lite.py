"""Milvus Lite as a child of the daemon: a real Milvus protocol on a loopback port, with no server to install.

``Lite`` is the parent's end, which starts it, writes down where it listens, and starts it again when it died. The
child's end is ``lite_child``.

``milvus-lite server`` was turned down: it listens on every interface, shares a port that is taken already
(SO_REUSEPORT) with whoever listens there, loses acknowledged rows when several of its threads write one collection
and it is killed (400 of 10,000 rows were left), and does not close its database when it is told to stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psutil

from ingestd.children import ChildDied, spawn
from ingestd.errors import ConfigError, UnavailableError
from ingestd.milvus.lite_child import GRACE_SECONDS, LOOPBACK, Locked, Serving
from ingestd.milvus.verdict import DEPENDENCY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ingestd.children import Child

LOCK_SECONDS = GRACE_SECONDS + 5
"""How long a new child waits for the folder's lock: the last one may still be closing."""
START_SECONDS = 120.0
"""How long a child may take to answer: an interpreter, the libraries, the write-ahead log of the last run."""
MEMTABLE_BYTES = 4 << 20
"""Rows that are not in a segment yet are searched one by one: 4 MiB keep that at 85 ms, the default at 2.6 s."""
LONGEST_PAUSE = 30.0
"""Seconds between two starts, at most, of a Lite that does not come up: it begins with one, and doubles."""


class Lite:
    """The daemon's Milvus Lite. Safe to call from several threads.

    Args:
        data_dir: Its data folder; made if need be. One process at a time can have it.
        address_file: Where to write down the address for other processes, who search through it while it ingests.
        lock_seconds: How long to wait for another process that has the folder.
        clock: Seconds, as ``time.monotonic`` gives them.
    """

    def __init__(
        self,
        data_dir: Path,
        address_file: Path,
        *,
        lock_seconds: float = LOCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._address_file = address_file
        self._lock_seconds = lock_seconds
        self._clock = clock
        # Held while the child starts and ends, which may take minutes. ``close`` must not wait that long for it.
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._uri = ""
        self._failures = 0
        """Starts that failed, in a row."""
        self._failed_at = 0.0
        self._failure = ""
        # Held for moments: what ``close`` has to know of a start that is under way.
        self._brief = threading.Lock()
        self._starting: Child | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The child's process id, or None before the first start."""
        child = self._child
        return child.pid if child is not None else None

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        child = self._child
        return child is not None and child.alive

    def start(self) -> str:
        """Start the child, if it does not run, and return its address.

        Raises:
            ConfigError: Another process has the folder, or it cannot be written.
            UnavailableError: The child died, or did not answer; or it was closed.
        """
        with self._lock:
            return self._start()

    def ensure(self) -> str:
        """Return the address of a child that runs: a new one if the last one died.

        After starts that failed there is a pause, in which this raises at once: there are many callers, and each of
        them would wait for a start of its own.

        Raises:
            UnavailableError: It does not start now.
        """
        with self._lock:
            self._pause()
            try:
                return self._start()
            except ConfigError as error:
                # It ran in this folder before, so the set-up is good: whoever has the lock now will let go of it.
                raise UnavailableError(DEPENDENCY, f"Milvus Lite does not start again: {error}") from error

    def restart(self) -> str:
        """Close the child and start a new one; return its address.

        Raises:
            ConfigError: As ``start``.
            UnavailableError: As ``start``.
        """
        with self._lock:
            self._end()
            return self._start()

    def close(self) -> None:
        """Let the child finish its request and close its database, and remove the address file.

        A child that has not answered yet is killed, and whoever waits for its start gets UnavailableError: what it
        has in its folder survives a kill.
        """
        with self._brief:
            self._closed = True
            if self._starting is not None:
                self._starting.kill()
        with self._lock:
            self._end()

    def _pause(self) -> None:
        if self._closed or self.alive or not self._failures:
            return
        left = self._failed_at + min(2.0 ** (self._failures - 1), LONGEST_PAUSE) - self._clock()
        if left > 0:
            message = f"{self._failure} (tried {self._failures} times, the next time is in {left:.0f} s)"
            raise UnavailableError(DEPENDENCY, message, wait=left)

    def _start(self) -> str:
        self._check_open()
        if self.alive:
            return self._uri
        self._end()
        try:
            self._uri = self._fresh()
        except (ConfigError, UnavailableError, OSError) as error:
            self._failures += 1
            self._failed_at = self._clock()
            self._failure = str(error)
            self._end()
            if isinstance(error, OSError):  # no process to be had, or no room for the address file
                raise UnavailableError(DEPENDENCY, f"Milvus Lite did not start: {error}") from error
            raise
        self._failures = 0
        return self._uri

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(DEPENDENCY, "Milvus Lite is closed")

    def _fresh(self) -> str:
        """Start a child and return its address."""
        try:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            self._address_file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"milvus.uri: the folder {self._data_dir} cannot be used: {error}") from error
        with self._brief:
            self._check_open()
            child = self._child = self._starting = spawn(
                "ingestd.milvus.lite_child:serve",
                name="milvus-lite",
                env={"MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES": str(MEMTABLE_BYTES), "GRPC_VERBOSITY": "ERROR"},
                grace=GRACE_SECONDS,
            )
        try:
            answer = child.request((str(self._data_dir), self._lock_seconds), self._lock_seconds + START_SECONDS)
        except ChildDied as error:
            child.kill()  # it may live on without its pipe
            self._check_open()
            raise UnavailableError(DEPENDENCY, f"Milvus Lite did not start: {error}; see its messages above") from error
        finally:
            with self._brief:
                self._starting = None
        if isinstance(answer, Locked):
            self._end()
            raise ConfigError(self._locked(answer))
        assert isinstance(answer, Serving)  # noqa: S101 - our own child on our own pipe, for the type checker
        uri = f"http://{LOOPBACK}:{answer.port}"
        _write(self._address_file, json.dumps({"uri": uri, "pid": child.pid}))
        return uri

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.close(GRACE_SECONDS + 5)
        with contextlib.suppress(FileNotFoundError):
            self._address_file.unlink()

    def _locked(self, answer: Locked) -> str:
        who = f"process {answer.holder} has it open" if answer.holder else "another process has it open"
        return (
            f"milvus.uri: the folder {self._data_dir} is in use: {who} since {self._lock_seconds:g} s or more; "
            "stop that one, or give this daemon a folder of its own"
        )


def running(address_file: Path) -> str | None:
    """Return the address of a Milvus Lite that another process runs, or None.

    The process that is named in the file must be the one that listens on the port: after a crash, both numbers may
    belong to strangers.
    """
    try:
        known = json.loads(address_file.read_text())
        uri, pid = str(known["uri"]), int(known["pid"])
        port = int(uri.rpartition(":")[2])
        listening = {
            at.laddr.port
            for at in psutil.Process(pid).net_connections(kind="tcp")
            if at.status == psutil.CONN_LISTEN and at.laddr
        }
        if port not in listening:
            return None
        with socket.create_connection((LOOPBACK, port), timeout=1.0):
            return uri
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def _write(path: Path, text: str) -> None:
    """Replace a small file in one step; only its owner may read it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)
