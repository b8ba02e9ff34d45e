"""The daemon's Milvus Lite, from within: the servicer of ``milvus_lite`` behind a gRPC server of our own.

Owns what a kill of Lite may leave in its folder, and mends it when the folder is opened: an index file that is cut
short, rows that are there twice, folders of collections that were never made.
"""

from __future__ import annotations

import functools
import logging
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc
    from milvus_lite.db import MilvusLite
    from milvus_lite.index.spec import IndexSpec
    from milvus_lite.schema.types import CollectionSchema
    from milvus_lite.storage.manifest import Manifest
    from milvus_lite.storage.segment import Segment

    from ingestd.children import Pipe

Recovered = TypeVar("Recovered")

LOOPBACK = "127.0.0.1"
LARGEST_MESSAGE = 64 << 20
"""What a server takes, so that nothing works here that would fail there."""
GRACE_SECONDS = 10.0
"""How long a child may go on after the daemon's death, to finish its request and close its database."""


class Serving(NamedTuple):
    """The child's answer: it listens on this port."""

    port: int


class Locked(NamedTuple):
    """The child's answer: another process has the folder."""

    holder: int | None


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
    if isinstance(database, Locked):
        pipe.send(database)
        return
    try:
        port, stop = _listen(database)
        try:
            pipe.send(Serving(port))
            while True:
                pipe.recv()
        finally:
            stop()
    finally:
        database.close()


def _open(data_dir: Path, lock_seconds: float) -> MilvusLite | Locked:
    from ingestd.milvus.lean import import_part, keep_pandas_out  # noqa: PLC0415 - the child's work, not the daemon's

    import_part("pymilvus.grpc_gen")
    keep_pandas_out()
    from milvus_lite.db import MilvusLite  # noqa: PLC0415
    from milvus_lite.engine import collection  # noqa: PLC0415
    from milvus_lite.exceptions import DataDirLockedError  # noqa: PLC0415
    from milvus_lite.storage.segment import Segment  # noqa: PLC0415

    collection.execute_recovery = _without_twins(collection.execute_recovery)
    Segment.build_or_load_index = _rebuilt(Segment.build_or_load_index)
    Segment.build_or_load_scalar_index = _rebuilt(Segment.build_or_load_scalar_index)
    until = time.monotonic() + lock_seconds
    while True:
        try:
            database = MilvusLite(str(data_dir))
        except DataDirLockedError:
            if time.monotonic() >= until:
                return Locked(_holder(data_dir / "LOCK"))
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


def _without_twins(recover: Callable[..., Recovered]) -> Callable[..., Recovered]:
    """Return the recovery of a collection, which then leaves logs alone whose rows are in segments already.

    Lite removes a log once its manifest names the segment that was made of it. After a kill in between it replays that
    log, and each of its rows is there twice, with equal sequence numbers, for good. The manifest says which log is the
    first that it does not cover. Where a segment that it names is not there or cannot be opened, after a power cut,
    all logs stay: they may have what it had.
    """

    @functools.wraps(recover)
    def recovering(data_dir: str, schema: CollectionSchema, manifest: Manifest) -> Recovered:
        from milvus_lite.storage.wal import WAL  # noqa: PLC0415 - the child's work, not the daemon's

        folder = Path(data_dir, "wal")
        first = manifest.active_wal_number or 0
        covered = [number for number in WAL.find_wal_files(str(folder)) if number < first]
        if covered and _has_all(Path(data_dir), manifest):
            for number in covered:
                for log in folder.glob(f"wal_*_{number:06d}.arrow"):
                    log.unlink()
        return recover(data_dir, schema, manifest)

    return recovering


def _has_all(data_dir: Path, manifest: Manifest) -> bool:
    """Return whether every file that a manifest names is there and has its end, where Parquet has its schema."""
    from pyarrow import ArrowException, parquet  # noqa: PLC0415 - the child's work, not the daemon's

    named = [*manifest.get_all_data_files().items(), *manifest.get_all_delta_files().items()]
    for file in (data_dir / "partitions" / partition / name for partition, names in named for name in names):
        try:
            parquet.ParquetFile(file).close()
        except (OSError, ArrowException) as error:
            logging.getLogger(__name__).warning("a segment cannot be read, its log stays: %s", error)
            return False
    return True


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
            # pymilvus pings every ten seconds, which servers take amiss unless told: the connection of an idle daemon
            # would be closed every minute or so, and now and then in the face of a request.
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
            ("grpc.max_send_message_length", -1),
        ],
    )
    add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
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
