"""A soak: documents come, change and go, some are bad, Milvus dies now and then, and nothing grows.

Ten minutes by default; ``--times 6`` is an hour. Documents go as fast as they come, so that what is kept for them stays
the same. What is sampled is compared by thirds: the first fills pools and caches, the last must not exceed the middle.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from tests.campaigns.faults.gauges import MIB, Gauges, grown, look
from tests.campaigns.faults.ground import Figures, Ground, Report, Scene, Wish, ground, pause

from ingestd.milvus.lite import running

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

SECONDS = 600.0
DOCUMENTS = 60
"""So many are there, about."""
SAMPLE = 2.0
OUTAGE = 45.0
"""Seconds between two deaths of Milvus."""
ALLOWED: dict[str, tuple[Callable[[Gauges], float], float, float]] = {
    "memory_mib": (lambda seen: seen.memory / MIB, 0.03, 12.0),
    "daemon_memory_mib": (lambda seen: seen.daemon_memory / MIB, 0.03, 6.0),
    "threads": (lambda seen: seen.threads, 0.0, 3.0),
    "descriptors": (lambda seen: seen.descriptors, 0.0, 4.0),
    "processes": (lambda seen: seen.processes, 0.0, 0.0),
    "state_mib": (lambda seen: seen.state_bytes / MIB, 0.05, 1.0),
}
"""What is watched, and by how much the last third may exceed the middle one: a share of it, and an amount."""


def soak(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Minutes of events with short outages: memory, threads, descriptors and the state's file stay flat."""
    seconds = SECONDS * wish.times
    with ground(wish, folder, draw) as place:
        place.work(DOCUMENTS)
        place.start()
        place.until_whole(time.monotonic(), 60)
        place.recoveries.clear()
        samples: list[Gauges] = []
        began = last = time.monotonic()
        while time.monotonic() < began + seconds:
            _traffic(place)
            pause(SAMPLE / 2, place)
            samples.append(look(place.workplace, place.daemon))
            if time.monotonic() - last > OUTAGE:
                _outage(place)
                last = time.monotonic()
                report("soak", minutes=round((last - began) / 60, 1), events=place.events, **_told(samples[-1]))
        place.until_whole(time.monotonic())
        figures = {}
        for name, (of, share, amount) in ALLOWED.items():
            middle, end = grown(samples, of)
            figures[name] = [round(middle, 1), round(end, 1)]
            assert end <= middle * (1 + share) + amount, f"{name} grew from {middle:.1f} to {end:.1f}: {figures}"
        report("flat", samples=len(samples), **figures)
        (folder / "samples.json").write_text(json.dumps([asdict(sample) for sample in samples]))
        note = f"{seconds / 60:g} min; " + ", ".join(f"{name} {a:g} → {b:g}" for name, (a, b) in figures.items())
        return place.finish(faults=max(1, int(seconds / OUTAGE / 2)), events=int(seconds / 2), note=note)


def _traffic(place: Ground) -> None:
    """Issue a few events, and delete what is too many."""
    place.work(3)
    while len(place.documents.expected) > DOCUMENTS:
        place.documents.delete()


def _outage(place: Ground) -> None:
    """Kill the daemon's Milvus Lite, under traffic."""
    killed = kill_lite(place)
    _traffic(place)
    until_another_lite(place, killed)
    place.until_whole(time.monotonic())
    place.faults += 1


def kill_lite(place: Ground) -> int:
    """Kill the daemon's Milvus Lite; return which process that was."""
    pid = int(json.loads((place.workplace.state / "milvus.json").read_text())["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def until_another_lite(place: Ground, killed: int) -> None:
    """Wait until another one runs: a comparison in between would start its own, and keep the daemon's out."""
    address = place.workplace.state / "milvus.json"

    def runs() -> bool:
        try:
            known = json.loads(address.read_text())
        except FileNotFoundError:
            return False
        return known["pid"] != killed and running(address) is not None

    place.daemon.until(runs, "another Milvus Lite runs")


def _told(sample: Gauges) -> dict[str, float]:
    return {name: round(of(sample), 1) for name, (of, _, _) in ALLOWED.items()}


SCENES: dict[str, Scene] = {"soak": soak}
