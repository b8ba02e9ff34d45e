"""The threads of a Kafka source die or hang: the daemon is not ready within 30 s, or ends with its reason."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.faults.kafka_place import NOTICED, SOURCE, Place
from tests.fixtures.daemon import wait_for, workplace_in

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.brokers import Tansu
    from tests.fixtures.daemon import Daemon

pytestmark = [pytest.mark.lite, pytest.mark.kafka]

STRIKES = {
    "the consumer is killed": f'kill("source/{SOURCE}")',
    "the consumer hangs": "KafkaConsumer.poll = hang",
    "the client's thread is killed": f'kill("kafka-io-ingestd-{SOURCE}")',
    "the client's thread hangs": "NetworkSelector._poll_once = hang",
}
HEALED = "the client's heartbeats stop"
"""Not in the table: the daemon gets over it."""
_HEARTBEATS = """
        from kafka.coordinator.base import BaseCoordinator
        from kafka.errors import KafkaError

        beat = BaseCoordinator._do_heartbeat

        async def fail(self):
            BaseCoordinator._do_heartbeat = beat
            raise KafkaError("struck")

        BaseCoordinator._do_heartbeat = fail
"""
_STRIKE = """\
import ctypes, os, sys, threading, time


def kill(name):
    for thread in threading.enumerate():
        if thread.name == name:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


def hang(*arguments, **options):
    threading.Event().wait()


def strike():
    while not os.path.exists("strike"):
        time.sleep(0.05)
    if "kafka" in sys.modules:
        from kafka import KafkaConsumer
        from kafka.net.selector import NetworkSelector
        {strike}


threading.Thread(target=strike, daemon=True).start()
"""


def test_a_thread_that_dies_or_hangs_is_not_silent(tansu: Tansu, tmp_path: Path) -> None:
    """Each strike is at a daemon of its own, and all at once. One that hangs all the same ends when asked to."""
    with ExitStack() as stack:
        daemons: dict[str, Daemon] = {}
        places: list[Place] = []
        for number, (name, strike) in enumerate([*STRIKES.items(), (HEALED, _HEARTBEATS)]):
            place = Place(stack.enter_context(workplace_in(tmp_path / f"{number}")), tansu.bootstrap)
            places.append(place)
            place.produce(3)
            folder = place.workplace.root / "strike-code"
            folder.mkdir()
            (folder / "sitecustomize.py").write_text(_STRIKE.format(strike=strike))  # Python imports it at its start
            paths = filter(None, (str(folder), os.environ.get("PYTHONPATH")))
            place.workplace.environment["PYTHONPATH"] = os.pathsep.join(paths)
            daemons[name] = stack.enter_context(place.workplace.daemon())
        for daemon in daemons.values():
            daemon.until_ready()
            daemon.until_settled(3)
        for number in range(len(daemons)):
            (tmp_path / f"{number}" / "strike").touch()
        struck = time.monotonic()
        places[-1].produce(3)
        healed = daemons.pop(HEALED)
        found = {
            name: wait_for(partial(_unwell, daemon), name, struck + NOTICED - time.monotonic())
            for name, daemon in daemons.items()
        }
        silent = f"thread:source/{SOURCE}"
        assert found == {
            "the consumer is killed": 1,
            "the consumer hangs": [silent],
            "the client's thread is killed": 1,
            "the client's thread hangs": [silent],
        }
        assert healed.until_said("the consumer is made anew")["source"] == SOURCE
        places[-1].until_committed()
        healed.until_ready()
        for name, daemon in daemons.items():
            if found[name] == 1:
                ended = daemon.said("a thread ended, and the process ends with it")
                assert [f"source/{SOURCE}"] == [line["thread"] for line in ended]
            else:
                daemon.send(signal.SIGTERM)
        for name, daemon in daemons.items():
            assert found[name] == 1 or daemon.wait(20) == 0, name


def _unwell(daemon: Daemon) -> int | list[str] | None:
    """Return the exit code of a daemon that has ended, or which threads of one that runs are silent."""
    if daemon.said("draining"):  # and its health server closes any moment
        return daemon.wait()
    status, body = daemon.get("/readyz")
    wrong = [check["name"] for check in body["checks"] if not check["ok"] and check["name"].startswith("thread:")]
    return wrong if status != 200 and wrong else None
