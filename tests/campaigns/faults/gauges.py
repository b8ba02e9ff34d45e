"""What a daemon and its children take of the machine: memory, threads, descriptors, processes, and the state's file."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.fixtures.daemon import Daemon, Workplace

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gauges:
    """One look at a daemon and all its children."""

    at: float
    """Of the monotonic clock."""
    memory: int
    """Proportional set size of all processes, bytes: pages that several share count once."""
    daemon_memory: int
    """Of the daemon's own process."""
    processes: int
    threads: int
    descriptors: int
    state_bytes: int
    """The database and its log."""


def look(workplace: Workplace, daemon: Daemon) -> Gauges:
    """Take a look. A process that ends meanwhile does not count."""
    memory = threads = descriptors = found = own = 0
    for pid in workplace.processes():
        try:
            size = _pss(pid)
            count = _threads(pid)
            open_ones = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += 1
        memory, threads, descriptors = memory + size, threads + count, descriptors + open_ones
        own = size if pid == daemon.pid else own
    sizes = (path.stat().st_size for path in workplace.state.glob("ingestd.db*") if "corrupt" not in path.name)
    return Gauges(time.monotonic(), memory, own, found, threads, descriptors, sum(sizes))


def grown(samples: Sequence[Gauges], of: Callable[[Gauges], float]) -> tuple[float, float]:
    """Return the medians of the middle third and of the last third of what a soak saw.

    The first third is left out: pools, caches and the allocator fill up. Medians, because a batch is a peak.
    """
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    return statistics.median(map(of, middle)), statistics.median(map(of, last))


def metric(daemon: Daemon, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(daemon.get("/metrics")[1])
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _threads(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Threads:"):
            return int(line.split()[1])
    return 0
