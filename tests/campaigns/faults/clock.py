"""Time: the wall clock set a day forward and back under the daemon, and the daemon suspended.

The clock is changed by libfaketime, which reads the offset from a file every second and leaves the monotonic clock as
it is. It takes the monotonic moment that Python sleeps until for one of the wall clock (0.9.10), and the sleep fails:
so the daemon sleeps another way here, and its children, which have no use for the clock, are left out.

A suspended daemon is one that was stopped: when it goes on, other members may have done its work, and its broker
has given its partitions away.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.campaigns.faults.ground import Figures, Ground, Report, Scene, Wish, ground
from tests.campaigns.kafka_ground import SESSION_MS

if TYPE_CHECKING:
    import random

PATCH = """\
import os, threading, time

del os.environ["LD_PRELOAD"]
time.sleep = lambda seconds: None if seconds <= 0 else threading.Event().wait(seconds) and None
"""
DAY = 86_400
OFFSETS = (DAY, 0, -DAY, 0, 3600, -3600)
"""Seconds by which the clock is wrong, one after the other."""


def shifted(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The clock a day forward and back, while documents flow, and over restarts."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    assert library is not None, "libfaketime is not installed: .ci/run does that (Debian: apt install libfaketime)"
    offsets = OFFSETS[: wish.count(len(OFFSETS), least=4)]
    with ground(wish, folder, draw) as place:
        said = place.workplace.root / "clock"
        said.write_text("+0s\n")
        place.workplace.environment |= {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(said),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        place.patch("sleep", PATCH)
        place.work(20)
        place.start()
        place.until_whole(time.monotonic(), 60)
        place.recoveries.clear()
        for at, offset in enumerate(offsets):
            place.work(6)
            said.write_text(f"{offset:+d}s\n")
            since = time.monotonic()
            # Old documents get new versions too, which have to be greater than those that the clock was ahead for.
            place.documents.again(6)
            place.work(10)
            took = place.until_whole(since)
            assert place.daemon.get("/readyz")[0] == 200, place.daemon.get("/readyz")
            place.faults += 1
            report("clock", seconds=offset, recovery_seconds=round(took, 1))
            if at % 2:
                place.stop()
                place.start()
                place.until_whole(time.monotonic(), 60)
        assert not place.daemon.said("will be tried again")
        for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE"):
            del place.workplace.environment[name]
        place.unpatch("sleep")
        return place.finish(faults=len(offsets), events=20 + 16 * len(offsets))


def suspended(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The daemon stopped and let go on: briefly, and for longer than its broker waits for it."""
    spans = (2.0, 2 * SESSION_MS / 1000) * wish.count(2)
    with ground(wish, folder, draw, kafka="tansu", settings={"embedders.hash.delay_seconds_per_text": 0.005}) as place:
        place.work(60)
        place.start()
        place.until_whole(time.monotonic(), 90)
        place.recoveries.clear()
        for seconds in spans:
            place.work(60)
            place.daemon.until(lambda: place.look().get("in_flight"), "something is in flight")
            place.daemon.send(signal.SIGSTOP)
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                place.work(4)
                _settle(place)
            place.daemon.send(signal.SIGCONT)
            took = place.until_whole(time.monotonic())
            place.daemon.until_ready()
            place.faults += 1
            report("suspended", seconds=seconds, recovery_seconds=round(took, 1))
        return place.finish(faults=len(spans), events=60 + 60 * len(spans))


def _settle(place: Ground) -> None:
    """Let a moment pass in which the daemon must still be stopped."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert "\nState:\tT" in Path(f"/proc/{place.daemon.pid}/status").read_text()
        os.sched_yield()
        time.sleep(0.05)


SCENES: dict[str, Scene] = {"shifted": shifted, "suspended": suspended}
