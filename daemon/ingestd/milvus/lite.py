"""Milvus Lite as a child of the daemon: a real Milvus protocol on a loopback port, with no server to install.

This module has both ends. ``serve`` is the child: the servicer of ``milvus_lite`` behind a gRPC server of our own.
``Lite`` is the parent's end, which starts it, writes down where it listens, and starts it again when it died.

``milvus-lite server`` was turned down: it listens on every interface, shares a port that is taken already
(SO_REUSEPORT) with whoever listens there, loses acknowledged rows when several of its threads write one collection
and it is killed (400 of 10,000 rows were left), and does not close its database when it is told to stop.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from ingestd.children import Child, ChildDied
from ingestd.errors import ConfigError, UnavailableError
from ingestd.milvus.verdict import DEPENDENCY

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc
    from milvus_lite.db import MilvusLite
    from milvus_lite.index.spec import IndexSpec
    from milvus_lite.storage.segment import Segment

    from ingestd.children import Pipe

GRACE_SECONDS = 10.0
"""How long a child may go on after the daemon's death, to finish its request and close its database."""
LOCK_SECONDS = GRACE_SECONDS + 5
"""How long a new child waits for the folder's lock: the last one may still be closing."""
START_SECONDS = 120.0
"""How long a child may take to answer: an interpreter, the libraries, the write-ahead log of the last run."""
MEMTABLE_BYTES = 4 << 20
"""Rows that are not in a segment yet are searched one by one: 4 MiB keep that at 85 ms, the default at 2.6 s."""
LARGEST_MESSAGE = 64 << 20
"""What a server takes, so that nothing works here that would fail there."""
LONGEST_PAUSE = 30.0
"""Seconds between two starts, at most, of a Lite that does not come up: it begins with one, and doubles."""
_LOOPBACK = "127.0.0.1"


class _Serving(NamedTuple):
    """The child's answer: it listens on this port."""

    port: int


class _Locked(NamedTuple):
    """The child's answer: another process has the folder."""

    holder: int | None


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
            child = self._child = self._starting = Child(
                "ingestd.milvus.lite:serve",
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
        if isinstance(answer, _Locked):
            self._end()
            raise ConfigError(self._locked(answer))
        assert isinstance(answer, _Serving)  # noqa: S101 - our own child on our own pipe, for the type checker
        uri = f"http://{_LOOPBACK}:{answer.port}"
        _write(self._address_file, json.dumps({"uri": uri, "pid": child.pid}))
        return uri

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.close(GRACE_SECONDS + 5)
        with contextlib.suppress(FileNotFoundError):
            self._address_file.unlink()

    def _locked(self, answer: _Locked) -> str:
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
        with socket.create_connection((_LOOPBACK, port), timeout=1.0):
            return uri
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def serve(pipe: Pipe) -> None:
    """Be the child: open the folder, listen, say where, and close all at the end of the pipe."""
    # The daemon decides when this ends: a signal to it must not take the database away before the drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="milvus-lite: %(levelname)s: %(message)s")
    message = pipe.recv()
    assert isinstance(message, tuple)  # noqa: S101 - from our own parent, for the type checker
    data_dir, lock_seconds = message
    database = _open(Path(data_dir), lock_seconds)
    if isinstance(database, _Locked):
        pipe.send(database)
        return
    try:
        port, stop = _listen(database)
        try:
            pipe.send(_Serving(port))
            while True:
                pipe.recv()
        finally:
            stop()
    finally:
        database.close()


def _open(data_dir: Path, lock_seconds: float) -> MilvusLite | _Locked:
    from ingestd.milvus.client import import_pymilvus  # noqa: PLC0415 - the child's work, not the daemon's
    from ingestd.milvus.lean import keep_pandas_out  # noqa: PLC0415

    import_pymilvus()
    keep_pandas_out()
    from milvus_lite.db import MilvusLite  # noqa: PLC0415
    from milvus_lite.exceptions import DataDirLockedError  # noqa: PLC0415
    from milvus_lite.storage.segment import Segment  # noqa: PLC0415

    Segment.build_or_load_index = _rebuilt(Segment.build_or_load_index)
    Segment.build_or_load_scalar_index = _rebuilt(Segment.build_or_load_scalar_index)
    until = time.monotonic() + lock_seconds
    while True:
        try:
            database = MilvusLite(str(data_dir))
        except DataDirLockedError:
            if time.monotonic() >= until:
                return _Locked(_holder(data_dir / "LOCK"))
            time.sleep(0.05)
        else:
            _sweep(data_dir)
            return database


def _rebuilt(build_or_load: Callable[..., None]) -> Callable[..., None]:
    """Return the method of a segment, which then builds an index again whose file cannot be read.

    Lite writes these files in place. A kill in the middle leaves one that is cut short, and from then on the whole
    collection fails to load. The vectors are in the segment, so nothing is lost with the file.
    """

    @functools.wraps(build_or_load)
    def rebuilding(segment: Segment, spec: IndexSpec, index_dir: str, *dtype: object) -> None:
        try:
            build_or_load(segment, spec, index_dir, *dtype)
        except Exception:
            file = Path(segment.index_file_path(index_dir, spec.index_type, spec.field_name, scalar=bool(dtype)))
            if not file.exists():
                raise
            logging.getLogger(__name__).warning("building the index %s again, its file cannot be read", file.name)
            file.unlink()
            build_or_load(segment, spec, index_dir, *dtype)

    return rebuilding


def _sweep(data_dir: Path) -> None:
    """Remove folders of collections whose making was cut short: without a schema they only stand in the way."""
    for pattern in ("collections/*", "databases/*/collections/*"):
        for folder in data_dir.glob(pattern):
            if folder.is_dir() and all(file.name == "schema.json.tmp" for file in folder.iterdir()):
                shutil.rmtree(folder)


def _listen(database: MilvusLite) -> tuple[int, Callable[[], None]]:
    """Serve the database on a loopback port of the kernel's choice; return the port and what stops it."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - the child's work, not the daemon's

    import grpc  # noqa: PLC0415
    from milvus_lite.adapter.grpc.servicer import MilvusServicer  # noqa: PLC0415
    from pymilvus.grpc_gen.milvus_pb2_grpc import add_MilvusServiceServicer_to_server  # noqa: PLC0415

    # One: rows that several workers wrote into one collection, and had acknowledged, were gone after a kill.
    worker = ThreadPoolExecutor(max_workers=1)
    server: grpc.Server = grpc.server(
        worker,
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
            ("grpc.max_send_message_length", -1),
        ],
    )
    add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
    port = server.add_insecure_port(f"{_LOOPBACK}:0")
    server.start()

    def stop() -> None:
        server.stop(grace=GRACE_SECONDS / 2).wait()
        # A request whose answer nobody waits for any more may still be at work on the database.
        worker.shutdown(wait=True, cancel_futures=True)

    return port, stop


def _holder(lock: Path) -> int | None:
    """Return the process that has the file locked, as the kernel lists it, or None if it does not say."""
    try:
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            parts = line.split()
            if "FLOCK" in parts and "->" not in parts and parts[5].rpartition(":")[2] == str(inode):
                return int(parts[4]) or None
    except (OSError, ValueError, IndexError):
        return None
    return None


def _write(path: Path, text: str) -> None:
    """Replace a small file in one step; only its owner may read it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)
