"""Milvus Lite as a child: what happens when it, its parent, or their group is ended, and what is left of the rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import psutil
import pytest
from tests.fixtures.milvus import articles, connected, sample

from ingestd.errors import ConfigError, UnavailableError
from ingestd.milvus.lite import Lite, running
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fixtures.milvus import Server

    from ingestd.milvus.client import Connection

pytestmark = pytest.mark.lite


@pytest.fixture
def connection(own_lite: Lite) -> Iterator[Connection]:
    """A connection to a Lite that the test may kill."""
    made = connected({"timeout_seconds": 10}, own_lite)
    yield made
    made.close()


def _kill(lite: Lite) -> None:
    """Kill the child that runs now. Somebody's next call may have started another one when this returns."""
    killed = lite.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    _wait(lambda: lite.pid != killed or not lite.alive)


def _wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition, or fail."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        threading.Event().wait(0.02)


def test_acknowledged_rows_survive_a_kill_among_writers(own_lite: Lite, connection: Connection) -> None:
    """Four threads write, the child is killed in the middle: every row that was acknowledged is there afterwards.

    With several workers in the child, rows are gone that came while a memtable became a segment; the texts are long
    so that this happens many times.
    """
    sink = MilvusSink(connection, articles("killed"))
    sink.prepare()
    acknowledged: list[str] = []
    lock = threading.Lock()
    stop = threading.Event()

    def write(first: int) -> None:
        number = first
        while not stop.is_set():
            rows = [sample(number + n, text="x" * 8000) for n in range(10)]
            try:
                sink.upsert(rows)
            except UnavailableError:
                return
            with lock:
                acknowledged.extend(row.id for row in rows)
            number += 10

    writers = [threading.Thread(target=write, args=(number * 1_000_000,)) for number in range(4)]
    for writer in writers:
        writer.start()
    _wait(lambda: len(acknowledged) >= 3000, seconds=60)
    _kill(own_lite)
    stop.set()
    for writer in writers:
        writer.join(timeout=60)
    assert not any(writer.is_alive() for writer in writers)
    assert sink.existing(acknowledged) == set(acknowledged)


def test_a_dead_child_is_started_again_by_the_next_call(own_lite: Lite, connection: Connection) -> None:
    """The connection asks for the address before every call: a new child, on another port, loaded again."""
    sink = MilvusSink(connection, articles("again"))
    identity = sink.prepare()
    sink.upsert([sample(n) for n in range(5)])
    before = own_lite.ensure()
    _kill(own_lite)
    assert sink.existing([sample(1).id]) == {sample(1).id}
    assert own_lite.ensure() != before
    assert sink.prepare(create=False) == identity
    assert sink.count() == 5


def test_a_kill_under_a_request_is_unavailable(own_lite: Lite, connection: Connection) -> None:
    """Whoever waits for an answer of the dying child gets the verdict of an outage, not a crash and not a wait."""
    sink = MilvusSink(connection, articles("under"))
    sink.prepare()
    rows = [sample(n, text="x" * 600) for n in range(1000)]
    seen: list[Exception] = []

    def write() -> None:
        try:
            while True:
                sink.upsert(rows)
        except Exception as error:  # noqa: BLE001 - its kind is the claim
            seen.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    _wait(lambda: sink.count() > 0, seconds=30)
    _kill(own_lite)
    own_lite.close()  # so that it is not started again under the writer
    writer.join(timeout=30)
    assert not writer.is_alive()
    assert [type(error) for error in seen] == [UnavailableError]


def test_a_stopped_child_does_not_hang_its_callers(own_lite: Lite, tmp_path: Path) -> None:
    """A process that is stopped accepts connections and answers none: every call ends at its timeout."""
    connection = connected({"timeout_seconds": 1.5, "connect_timeout_seconds": 1.5}, own_lite)
    sink = MilvusSink(connection, articles("stopped"))
    sink.prepare()
    assert own_lite.pid is not None
    os.kill(own_lite.pid, signal.SIGSTOP)
    try:
        calls = (sink.probe, sink.count, lambda: sink.upsert([sample(1)]), lambda: next(sink.stored()), sink.plan)
        for call in calls:
            started = time.monotonic()
            with pytest.raises(UnavailableError):
                call()
            assert time.monotonic() - started < 4.0
        fresh = connected({"connect_timeout_seconds": 1.5}, own_lite)
        with pytest.raises(UnavailableError, match="connecting"):
            fresh.capabilities()
        fresh.close()
    finally:
        os.kill(own_lite.pid, signal.SIGCONT)
    _wait(lambda: sink.count() >= 0)
    connection.close()


def test_signals_to_the_child_do_not_end_it(own_lite: Lite, connection: Connection) -> None:
    """The daemon decides when the database closes: not a service manager that signals every process."""
    assert own_lite.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(own_lite.pid, number)
    assert connection.call("list_collections", doing="asking") == []
    assert own_lite.alive
    assert os.getsid(own_lite.pid) != os.getsid(0)


PARENT = textwrap.dedent("""
    import sys
    from pathlib import Path
    from ingestd.milvus.lite import Lite
    from ingestd.sinks.milvus import MilvusSink
    from tests.fixtures.milvus import articles, connected, sample

    lite = Lite(Path(sys.argv[1]), Path(sys.argv[2]))
    lite.start()
    sink = MilvusSink(connected({}, lite), articles("parent"))
    sink.prepare()
    print(lite.pid, flush=True)
    number = 0
    while True:
        sink.upsert([sample(number + n, text="x" * 600) for n in range(50)])
        number += 50
        print(number, flush=True)
""")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parent_that_dies_takes_its_child_along(tmp_path: Path, number: signal.Signals) -> None:
    """However the daemon dies, its Lite ends within seconds, and the next start finds every acknowledged row."""
    data, address = tmp_path / "data", tmp_path / "address.json"
    command = [sys.executable, "-c", PARENT, str(data), str(address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        lines = [int(parent.stdout.readline()) for _ in range(4)]
        assert running(address) is not None
        os.killpg(parent.pid, number)
        lines += [int(line) for line in parent.stdout.read().splitlines()]
    started = time.monotonic()
    lite = Lite(data, address)
    lite.start()
    assert time.monotonic() - started < 10
    _wait(lambda: not psutil.pid_exists(child), seconds=5)
    connection = connected({}, lite)
    sink = MilvusSink(connection, articles("parent"))
    sink.prepare()
    ids = [sample(n).id for n in range(lines[-1])]
    assert sink.existing(ids) == set(ids)
    connection.close()
    lite.close()


DIES_IN_ITS_FLUSH = textwrap.dedent("""
    import os, sys
    from ingestd.milvus.client import import_pymilvus
    import_pymilvus()
    from milvus_lite.db import MilvusLite
    from milvus_lite.storage.wal import WAL

    database = MilvusLite(sys.argv[1])
    database.get_collection("notes")
    WAL.close_and_delete = lambda wal: os._exit(9)
    database.close()
""")


@pytest.mark.parametrize("lost", [False, True])
def test_a_kill_between_a_segment_and_its_log_doubles_no_row(tmp_path: Path, *, lost: bool) -> None:
    """Lite has written the segment, and not removed the log that it was made of: no row is there twice after it.

    A power cut may take the segment, which Lite does not sync: then the log has the rows.
    """
    lite = Lite(tmp_path / "data", tmp_path / "address.json")
    lite.start()
    connection = connected({}, lite)
    sink = MilvusSink(connection, articles("notes"))
    sink.prepare()
    sink.upsert([sample(number) for number in range(5)])
    assert lite.pid is not None
    os.kill(lite.pid, signal.SIGKILL)
    _wait(lambda: not lite.alive)
    command = [sys.executable, "-c", DIES_IN_ITS_FLUSH, str(tmp_path / "data")]
    assert subprocess.run(command, check=False).returncode == 9
    logs, segments = (list((tmp_path / "data").rglob(f"{kind}_*")) for kind in ("wal", "data"))
    assert logs, "the log is still there"
    assert segments, "the segment is there"
    if lost:
        (tmp_path / "data").rglob("data_*.parquet").__next__().unlink()
    lite.ensure()
    _wait(lambda: sink.count() >= 0)
    assert sink.count() == 5
    assert sorted(row.id for row in sink.stored()) == sorted(sample(number).id for number in range(5))
    sink.delete([sample(0).id])
    assert sink.count() == 4
    connection.close()
    lite.close()


def test_a_folder_in_use_names_its_holder(own_lite: Lite, tmp_path: Path) -> None:
    """Two daemons on one folder: the second one says who has it, and leaves it alone."""
    second = Lite(tmp_path / "lite", tmp_path / "other.json", lock_seconds=0.2)
    with pytest.raises(ConfigError, match=f"process {own_lite.pid} has it open"):
        second.start()
    with pytest.raises(UnavailableError):
        second.ensure()
    assert not (tmp_path / "other.json").exists()
    second.close()
    assert own_lite.alive


def test_close_ends_a_start_that_hangs(own_lite: Lite, tmp_path: Path) -> None:
    """A child that waits for a folder in use does not hold up the end of the daemon: not it, and not its callers."""
    hanging = Lite(tmp_path / "lite", tmp_path / "other.json", lock_seconds=120)
    seen: list[Exception] = []

    def call(method: Callable[[], str]) -> None:
        try:
            method()
        except UnavailableError as error:
            seen.append(error)

    callers = [threading.Thread(target=call, args=(method,)) for method in (hanging.start, hanging.ensure)]
    for caller in callers:
        caller.start()
    _wait(lambda: hanging.alive)
    child = hanging.pid
    assert child is not None
    started = time.monotonic()
    hanging.close()
    for caller in callers:
        caller.join(timeout=5)
    assert time.monotonic() - started < 5
    assert [str(error) for error in seen] == ["Milvus Lite is closed"] * 2
    assert not psutil.pid_exists(child)
    assert own_lite.alive


def test_a_child_that_does_not_come_up_is_given_pauses(own_lite: Lite, tmp_path: Path) -> None:
    """Calls between two starts fail at once and say how long to wait; the pauses double; a good start ends them."""
    now = 1000.0
    lite = Lite(tmp_path / "lite", tmp_path / "other.json", lock_seconds=0.1, clock=lambda: now)
    with pytest.raises(ConfigError):
        lite.start()
    for pause in (1.0, 2.0, 4.0):
        with pytest.raises(UnavailableError, match=r"in use: .* the next time is in") as caught:
            lite.ensure()
        assert caught.value.wait == pause
        assert lite.pid is None
        now += pause
        with pytest.raises(UnavailableError, match="does not start again"):
            lite.ensure()
    now += 8.0
    own_lite.close()
    assert lite.ensure()
    lite.close()


def test_an_index_that_cannot_be_kept_is_an_outage(own_lite: Lite, connection: Connection, tmp_path: Path) -> None:
    """Lite answers trouble with its disk as it answers all else, with 1: of a load after a restart it is an outage.

    A file where the indexes' folder should be stands for a disk that is full.
    """
    sink = MilvusSink(connection, articles("full"))
    sink.prepare()
    sink.upsert([sample(n) for n in range(100)])
    own_lite.restart()
    sink.probe()
    own_lite.restart()
    folders = {file.parent for file in (tmp_path / "lite").rglob("*.idx")}
    assert folders
    for folder in folders:
        shutil.rmtree(folder)
        folder.touch()
    for call in (sink.probe, lambda: sink.existing([sample(1).id])):  # counting alone needs no index
        with pytest.raises(UnavailableError, match=r"loading full: .*\[code 1\]"):
            call()
    for folder in folders:
        folder.unlink()
    assert sink.existing([sample(1).id]) == {sample(1).id}


def test_the_address_is_written_for_others(own_lite: Lite, tmp_path: Path) -> None:
    """A search from another process finds a running Lite, and does not take a stranger for one."""
    address = tmp_path / "state" / "address.json"
    assert running(address) == own_lite.ensure()
    assert stat.S_IMODE(address.stat().st_mode) == 0o600
    assert json.loads(address.read_text()) == {"uri": own_lite.ensure(), "pid": own_lite.pid}
    stranger = tmp_path / "stranger.json"
    here, pid = own_lite.ensure(), own_lite.pid
    for known in ({"uri": here, "pid": os.getpid()}, {"uri": "http://127.0.0.1:1", "pid": pid}, {"uri": here}):
        stranger.write_text(json.dumps(known))
        assert running(stranger) is None
    assert running(tmp_path / "absent.json") is None
    own_lite.close()
    assert not address.exists()
    with pytest.raises(UnavailableError, match="closed"):
        own_lite.ensure()


def test_it_listens_on_the_loopback_address_alone(own_lite: Lite) -> None:
    """Milvus Lite asks nobody for a password."""
    listening = [at for at in psutil.Process(own_lite.pid).net_connections() if at.status == psutil.CONN_LISTEN]
    assert [at.laddr.ip.removeprefix("::ffff:") for at in listening] == ["127.0.0.1"]


def test_the_connection_of_an_idle_client_stays(own_lite: Lite) -> None:
    """The client pings, which servers take amiss unless told: a request that came just then was refused.

    Here a client that pings thirty times as often, so that it need not be idle for minutes.
    """
    options = [("grpc.keepalive_time_ms", 300), ("grpc.keepalive_permit_without_calls", 1)]
    often = ("grpc.http2.max_pings_without_data", 0)
    states: list[grpc.ChannelConnectivity] = []
    address = own_lite.start().removeprefix("http://")
    with grpc.insecure_channel(address, options=[*options, often]) as channel:
        grpc.channel_ready_future(channel).result(20)
        channel.subscribe(states.append)
        time.sleep(4)  # four pings and it was closed, with the server as it comes
    assert states == [grpc.ChannelConnectivity.READY]


def test_a_restart_keeps_what_was_written(own_lite: Lite, connection: Connection) -> None:
    """Closing in an orderly way writes all down; an indexed collection has to be loaded again, and is."""
    sink = MilvusSink(connection, articles("orderly"))
    sink.prepare()
    sink.upsert([sample(n) for n in range(100)])
    own_lite.restart()
    assert sink.count() == 100
    assert len(list(sink.stored())) == 100


def test_an_index_file_that_was_cut_short_is_built_again(
    own_lite: Lite, connection: Connection, tmp_path: Path
) -> None:
    """Lite writes indexes in place: a kill in the middle must not keep the collection from loading for ever."""
    sink = MilvusSink(connection, articles("cut"))
    sink.prepare()
    rows = [sample(n, text="x" * 8000) for n in range(1500)]
    sink.upsert(rows)
    own_lite.restart()
    sink.count()
    sink.prepare()
    files = list((tmp_path / "lite").rglob("*.idx"))
    assert files
    _kill(own_lite)
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    sink.prepare()
    assert sink.search("dense", np.stack([np.asarray(rows[7].vectors["dense"])]), 1)[0][0].id == rows[7].id
    assert sink.count() == len(rows)


def test_a_collection_whose_making_was_cut_short_can_be_made(tmp_path: Path) -> None:
    """Lite makes a collection's folder first: a kill right after must not keep its name taken for ever."""
    (tmp_path / "lite" / "collections" / "begun").mkdir(parents=True)
    lite = Lite(tmp_path / "lite", tmp_path / "address.json")
    lite.start()
    connection = connected({}, lite)
    assert MilvusSink(connection, articles("begun")).prepare()
    connection.close()
    lite.close()


@pytest.mark.milvus
def test_a_real_server_that_is_killed_comes_back(own_milvus_server: Server) -> None:
    """The same connection works again, and every acknowledged row is there."""
    connection = connected({"uri": own_milvus_server.uri, "timeout_seconds": 5, "connect_timeout_seconds": 2})
    sink = MilvusSink(connection, articles("server", sparse=False, nullable=False))
    sink.prepare()
    rows = [sample(n, sparse=False) for n in range(200)]
    sink.upsert(rows)
    own_milvus_server.kill()
    with pytest.raises(UnavailableError):
        sink.probe()
    own_milvus_server.start()

    def back() -> bool:
        try:
            sink.probe()
        except UnavailableError:
            return False
        return True

    _wait(back, seconds=60)
    assert sink.existing([row.id for row in rows]) == {row.id for row in rows}
    own_milvus_server.send(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        sink.upsert(rows)
    assert time.monotonic() - started < 12
    own_milvus_server.send(signal.SIGCONT)
    connection.close()
