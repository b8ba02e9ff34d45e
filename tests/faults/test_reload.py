"""SIGHUP: the configuration is read again, in the same process, whatever else goes on; nothing is lost or left over."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.faults.kafka_place import Place, metric, record
from tests.fixtures.brokers import create_topic, produce
from tests.fixtures.corpus import copy_articles, fold
from tests.fixtures.daemon import COLLECTION, Daemon

if TYPE_CHECKING:
    from tests.fixtures.brokers import Tansu
    from tests.fixtures.daemon import Workplace
    from tests.fixtures.lite_server import LiteServer

pytestmark = [pytest.mark.lite, pytest.mark.timeout(900)]

REFUSED = "config refused; the old one goes on"
ACCEPTED = "config accepted; draining, to begin again with it"
READING = "reading the configuration again"
SPARE_THREADS = 3
"""gRPC's pool breathes."""
OURS = 1 << (signal.SIGHUP - 1) | 1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)


def test_a_new_configuration_takes_over_in_the_same_process(workplace: Workplace) -> None:
    """A second source is read, the log is another, and nothing is embedded again; the process is the same."""
    workplace.write("one.txt", "The first text.")
    with workplace.daemon() as daemon:
        daemon.until_settled(1)
        began = _process(daemon)
        (workplace.root / "second").mkdir()
        (workplace.root / "second" / "two.txt").write_text("The second text.")
        workplace.settings["sources"]["second"] = {**workplace.settings["sources"]["inbox"], "path": "second"}
        workplace.configure("log.level", "debug")
        daemon.reload()
        daemon.until_image(2)
        totals = daemon.until_settled(2)
        assert (1, 1, 1) == (totals["written"], totals["unchanged"], totals["chunks_embedded"])
        assert began == _process(daemon)
        assert any('"level": "debug"' in line for line in daemon.log.splitlines())
        assert (1, 0) == (_count(daemon, "applied"), _count(daemon, "refused"))
        free = _not_holding(daemon)
        assert len(free) == 1, free  # the thread that takes them
        daemon.until_ready()
        assert daemon.stop() == 0
    assert {"inbox/one.txt", "second/two.txt"} == workplace.documents()
    workplace.until_gone()


def _process(daemon: Daemon) -> tuple[int, str]:
    """Return the daemon's id, and when it began: an id alone may be used again."""
    return daemon.pid, Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[19]


def _count(daemon: Daemon, result: str) -> float:
    return metric(daemon, "ingestd_config_reloads_total", f'result="{result}"')


def test_a_bad_configuration_is_refused_and_documents_flow_on(workplace: Workplace) -> None:
    """Each fault is in the log; it is counted, and /readyz names it and stays 200. The next good one takes over."""
    with workplace.daemon() as daemon:
        daemon.until_ready()
        children = _children(daemon)
        workplace.configure("sources.inbox.colection", COLLECTION)
        workplace.configure("http.listen", "nowhere")
        daemon.reload()
        faults = daemon.until_said(REFUSED)["faults"]
        assert 2 == len(faults), faults
        assert any("sources.inbox.colection: unknown key; did you mean 'collection'?" in fault for fault in faults)
        assert any(fault.startswith("http.listen: ") for fault in faults)
        workplace.write("one.txt", "A text that comes after it.")
        daemon.until_settled(1)
        check = daemon.check("configuration")
        assert check is not None
        assert "a newer one was refused at" in check["detail"]
        assert (200, 1) == (daemon.get("/readyz")[0], _count(daemon, "refused"))
        assert children <= _children(daemon)
        assert not daemon.said(ACCEPTED)
        del workplace.settings["sources"]["inbox"]["colection"]
        workplace.configure("http.listen", "127.0.0.1:0")
        daemon.reload()
        daemon.until_image(2)
        assert (1, 1) == (_count(daemon, "applied"), _count(daemon, "refused"))
        check = daemon.check("configuration")
        assert check is not None
        assert "refused" not in check["detail"]


def _children(daemon: Daemon) -> set[int]:
    return {child.pid for child in psutil.Process(daemon.pid).children()}


@pytest.mark.parametrize(
    "drain", [pytest.param(25.0, id="drained", marks=pytest.mark.long), pytest.param(0.5, id="given up")]
)
def test_amid_heavy_work_nothing_is_lost_or_doubled(workplace: Workplace, drain: float) -> None:
    """Two reloads while articles are embedded, with files that change meanwhile: rows are what the folder says.

    Where the drain is given up, what was begun is begun again by the next image.
    """
    # Where it is to be given up, two texts that go into the model together are late already.
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.05 if drain > 1 else 0.4)
    workplace.configure("embedding.window", 32)
    workplace.configure("shutdown.drain_seconds", drain)
    copies = copy_articles(workplace.inbox, every=6)
    with workplace.daemon() as daemon:
        for image in (1, 2):
            daemon.until_image(image)
            daemon.until(lambda: daemon.totals.get("in_flight", 0) > 5, "it is amid the work")
            if image == 2:
                workplace.configure("embedders.hash.delay_seconds_per_text", 0)
            daemon.reload()
            copies[image].write_text(f"An article that was written anew before image {image + 1}.")
            copies[10 * image].unlink()
        daemon.until_image(3)
        daemon.until(lambda: _idle(daemon, len(copies) - 2), "all is done")
        given_up = daemon.said("not drained in time: begun documents are begun again after the next start")
        assert bool(given_up) is (drain < 1)
        assert [0, 0] == [line["exit_code"] for line in daemon.said("ended")]
        assert daemon.stop() == 0
    assert 0 == workplace.once()["chunks_embedded"]  # the deletes may be left for it
    assert fold(workplace.inbox, workplace.config_file) == workplace.rows()


def _idle(daemon: Daemon, documents: int) -> bool:
    status = daemon.status()
    totals = status.get("totals", {})
    return bool(status.get("ready")) and not totals["in_flight"] and totals["accepted"] >= documents


@pytest.mark.long
def test_ten_reloads_leave_nothing_behind(workplace: Workplace) -> None:
    """No descriptor, no thread and no child more than before, and no folder or file in the state directory."""
    workplace.write("one.txt", "A text.")
    with workplace.daemon() as daemon:
        daemon.until_settled(1)
        before, threads = _belongings(workplace, daemon), psutil.Process(daemon.pid).num_threads()
        descriptors = _descriptors(daemon)
        for image in range(2, 12):
            daemon.reload()
            daemon.until_image(image)
        workplace.write("two.txt", "A text for the last image: it has a process that reads it, as the first one had.")
        daemon.until_settled(2)
        assert 10 == _count(daemon, "applied")
        assert _belongings(workplace, daemon) == before
        daemon.until(lambda: _descriptors(daemon) <= descriptors, f"it has what it had: {descriptors}")
        assert psutil.Process(daemon.pid).num_threads() <= threads + SPARE_THREADS
        assert daemon.stop() == 0
    workplace.until_gone()


def _descriptors(daemon: Daemon) -> Counter[str]:
    """Return what a daemon has open, less the readers of the state: as many as were needed at a time."""
    found: Counter[str] = Counter()
    for entry in list(Path(f"/proc/{daemon.pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # closed meanwhile
            found[str(entry.readlink()).partition(":")[0]] += 1
    return Counter({kind: count for kind, count in found.items() if "/ingestd.db" not in kind})


def _belongings(workplace: Workplace, daemon: Daemon) -> dict[str, object]:
    """Return what else a daemon has."""
    return {
        "children": len(_children(daemon)),
        "processes": len(workplace.processes()),
        "files": sorted(entry.name for entry in workplace.state.iterdir()),
    }


def _not_holding(daemon: Daemon) -> list[str]:
    """Return the threads of a daemon that would be given its signals."""
    found = []
    for task in list(Path(f"/proc/{daemon.pid}/task").iterdir()):
        try:
            lines = (task / "status").read_text().splitlines()
        except FileNotFoundError:  # gRPC's come and go
            continue
        said = dict(line.split(":\t") for line in lines if ":\t" in line)
        if int(said["SigBlk"], 16) & OURS != OURS:
            found.append(f"{said['Name']} {said['SigBlk']}")
    return found


def test_sigterm_is_stronger_than_a_reload(workplace: Workplace) -> None:
    """While the new configuration is looked at, and in the drain for it: exit 0 after the drain, and no new image."""
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.2)
    workplace.configure("embedding.window", 8)
    workplace.configure("shutdown.drain_seconds", 6)
    for number in range(100):
        workplace.write(f"{number}.txt", f"A text, number {number}.")
    for moment in (READING, "draining"):
        with workplace.daemon() as daemon:
            daemon.until_said("ready")
            daemon.until(lambda: daemon.totals.get("in_flight", 0) > 20, "it is amid the work")
            daemon.reload()
            daemon.until_said(moment)
            assert daemon.stop() == 0
            assert 1 == len(daemon.said("ready"))
            assert 1 == len(daemon.said("ended"))
            assert moment == READING or daemon.said(ACCEPTED)
            workplace.until_gone(5)


def test_a_second_sigterm_ends_the_drain_of_a_reload_at_once(workplace: Workplace) -> None:
    """A SIGHUP is not one of the two."""
    workplace.configure("embedders.hash.delay_seconds_per_text", 300)
    workplace.write("one.txt", "A text that takes longer than anybody waits.")
    with workplace.daemon() as daemon:
        daemon.until(lambda: daemon.totals.get("in_flight") == 1, "it is amid the work")
        daemon.reload()
        daemon.until_said("draining")
        daemon.send(signal.SIGTERM)
        pause = time.monotonic() + 1.2
        daemon.send(signal.SIGHUP)
        daemon.until(lambda: time.monotonic() > pause, "the next signal is one of its own")
        daemon.send(signal.SIGTERM)
        assert daemon.wait(3) == 1
        workplace.until_gone()


def test_wishes_at_the_same_time_are_one(workplace: Workplace) -> None:
    """Five SIGHUPs before the new configuration is accepted, five in the drain: one new image, and it goes on."""
    workplace.configure("embedders.hash.delay_seconds_per_text", 3)
    workplace.write("one.txt", "A text that takes three seconds.")
    with workplace.daemon() as daemon:
        daemon.until_said("ready")
        for _ in range(5):
            daemon.reload()
        daemon.until_said(READING)
        daemon.until(lambda: daemon.totals.get("in_flight") == 1 or daemon.totals.get("written"), "it has begun")
        workplace.write("one.txt", "Another text that takes three seconds.")
        daemon.until_said("draining")
        for _ in range(5):
            daemon.reload()
        daemon.until_image(2)
        daemon.until_settled(1)
        assert len(daemon.said(READING)) <= 2
        assert 1 == len(daemon.said(ACCEPTED)) == _count(daemon, "applied")
        workplace.write("two.txt", "A text for the second image.")
        daemon.until_settled(2)
        assert 2 == len(daemon.said("ready"))


def test_what_was_changed_meanwhile_is_looked_at_before_it_takes_over(workplace: Workplace) -> None:
    """A good configuration has been read, and a broker that it names is asked; then a bad one comes with a SIGHUP."""
    with socket.create_server(("127.0.0.1", 0)) as silent, workplace.daemon() as daemon:
        silent.settimeout(60)
        daemon.until_ready()
        Place(workplace, f"127.0.0.1:{silent.getsockname()[1]}", partitions=0)
        daemon.reload()
        asked, _address = silent.accept()
        with asked:
            workplace.configure("log.level", "chatty")
            daemon.reload()
            assert "log.level" in daemon.until_said(REFUSED)["faults"][0]
        assert not daemon.said(ACCEPTED)
        assert 2 == len(daemon.said(READING))


def test_a_start_that_cannot_end_is_left_for_a_new_configuration(workplace: Workplace, lite_server: LiteServer) -> None:
    """The address of Milvus is wrong, so the start waits for it: a SIGHUP with the right one, and a bad one before."""
    workplace.write("one.txt", "A text.")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    workplace.configure("milvus.uri", f"http://127.0.0.1:{port}")
    workplace.configure("milvus.connect_timeout_seconds", 1)
    with workplace.daemon() as daemon:
        daemon.until_said(f"comparing the collection {COLLECTION}")
        workplace.configure("log.level", "chatty")
        daemon.reload()
        daemon.until_said(REFUSED)
        assert not daemon.said("ready")
        assert daemon.get("/startupz")[0] == 503
        lite_server.start()
        workplace.configure("log.level", "info")
        workplace.configure("milvus.uri", lite_server.uri)
        daemon.reload()
        daemon.until_image(1)
        daemon.until_settled(1)
        assert (1, 1) == (_count(daemon, "applied"), _count(daemon, "refused"))
        assert daemon.stop() == 0
    assert {"inbox/one.txt"} == workplace.documents(lite_server.uri)
    workplace.until_gone()


def test_systemd_is_told(workplace: Workplace, tmp_path: Path) -> None:
    """RELOADING=1 when a configuration is looked at, READY=1 when it was refused or when the next image is ready.

    The watchdog, which is awake over a reload, bears the silence of the next start, and is fed in time otherwise. It
    is never told that the service stops.
    """
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(address)
        supervisor.settimeout(0.2)
        workplace.environment |= {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"}
        said: list[dict[str, str]] = []
        with workplace.daemon() as daemon:
            _until_told(daemon, supervisor, said, "READY")
            assert "RELOADING" not in {key for one in said for key in one}
            assert not any("WATCHDOG_USEC" in one for one in said[:-1])
            said.clear()
            workplace.configure("log.level", "chatty")
            daemon.reload()
            _until_told(daemon, supervisor, said, "READY")
            told = [one for one in said if "WATCHDOG" not in one]
            assert ["RELOADING", "READY"] == [next(iter(one)) for one in told]
            assert int(told[0]["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            assert "refused" in told[1]["STATUS"]
            said.clear()
            workplace.configure("log.level", "info")
            daemon.reload()
            _until_told(daemon, supervisor, said, "READY")
            kinds = [next(iter(one)) for one in said if "WATCHDOG" not in one]
            assert ["RELOADING", "RELOADING", "EXTEND_TIMEOUT_USEC"] == kinds[:3]
            assert {"EXTEND_TIMEOUT_USEC", "STATUS", "READY"} == set(kinds[3:])
            assert all(int(one["WATCHDOG_USEC"]) > 6e8 for one in said if "EXTEND_TIMEOUT_USEC" in one)
            assert "20000000" == said[-1]["WATCHDOG_USEC"]
            said.clear()
            _until_told(daemon, supervisor, said, "WATCHDOG")
            daemon.send(signal.SIGTERM)
            _until_told(daemon, supervisor, said, "STOPPING")
            assert daemon.wait() == 0


def _until_told(daemon: Daemon, supervisor: socket.socket, said: list[dict[str, str]], key: str) -> None:
    """Take messages until one has a key."""

    def take() -> bool:
        try:
            message = supervisor.recv(4096).decode()
        except TimeoutError:
            return False
        said.append(dict(line.partition("=")[::2] for line in message.splitlines()))
        return key in said[-1]

    daemon.until(take, f"{key} is told")


def test_a_program_that_is_gone(workplace: Workplace, tmp_path: Path) -> None:
    """Gone before: the configuration is refused. Gone in the drain: exit 1, for systemd to start again."""
    python = _own_interpreter(tmp_path)
    workplace.configure("embedders.hash.delay_seconds_per_text", 4)
    command = [str(python), *workplace.command(["run"])[1:]]
    daemon = Daemon(workplace, command, workplace.root / "daemon")
    try:
        daemon.until_ready()
        python.rename(tmp_path / "elsewhere")
        daemon.reload()
        assert "cannot be executed" in daemon.until_said(REFUSED)["faults"][0]
        (tmp_path / "elsewhere").rename(python)
        workplace.write("one.txt", "A text that takes four seconds.")
        daemon.until(lambda: daemon.totals.get("in_flight") == 1, "it is amid the work")
        daemon.reload()
        daemon.until_said(ACCEPTED)
        python.unlink()
        assert daemon.wait() == 1
        assert daemon.said("the program cannot be started again, and the process ends")
        workplace.until_gone()
    finally:
        daemon.close()


def _own_interpreter(folder: Path) -> Path:
    """Make a virtual environment that is this one under another path; return its interpreter."""
    made = folder / "venv"
    (made / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", made)
    (made / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = made / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    return python


IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_terminal_that_goes_away_ends_what_was_started_in_it(workplace: Workplace) -> None:
    """While it is there a SIGHUP is a wish for a new configuration, as anywhere."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, *workplace.command(["run"])]
    daemon = Daemon(workplace, command, workplace.root / "daemon", stdin=slave)
    try:
        os.close(slave)
        daemon.until_ready()
        daemon.reload()
        daemon.until_image(2)
        os.close(master)
        assert daemon.wait() == 0
        assert 1 == len(daemon.said(READING))
        workplace.until_gone()
    finally:
        daemon.close()


@pytest.mark.kafka
def test_a_member_is_let_in_again_and_goes_on_committing(workplace: Workplace, tansu: Tansu) -> None:
    """It leaves its group in the drain; nothing that was committed comes again, and a second topic is read."""
    place, other = Place(workplace, tansu.bootstrap), workplace.settings["sources"]
    documents = place.produce(20)
    with workplace.daemon() as daemon:
        daemon.until_settled(20)
        place.until_committed()
        second = {**other["cms"], "topics": [f"{place.topic}-2"], "group_id": f"{place.group}-2"}
        create_topic(tansu.bootstrap, f"{place.topic}-2", 1)
        produce(tansu.bootstrap, f"{place.topic}-2", [record("second")])
        workplace.configure("sources.second", second)
        documents |= {"second"} | place.produce(5)
        daemon.reload()
        daemon.until_image(2)
        documents |= place.produce(5)
        place.until_committed()
        daemon.until(lambda: not daemon.totals.get("in_flight", 1), "nothing is under way")
        written = sum(line["written"] for line in daemon.said("ended")) + daemon.totals["written"]
        assert 31 == written
        assert daemon.stop() == 0
    assert documents == workplace.documents()
