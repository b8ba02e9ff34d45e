"""The parts of ``speed`` about one document at a time, a second worker, and what documents cost as more are there."""

from __future__ import annotations

import functools
import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
from tests.benchmarks.speed_ground import (
    HOUR,
    STAGING,
    alternating,
    bare,
    cores,
    dtype_of,
    hashing,
    minilm,
    move_in,
    sample,
    stage,
    warm,
    workplace_for,
)
from tests.benchmarks.table import Line
from tests.fixtures.corpus import fold
from tests.fixtures.daemon import COLLECTION, wait_for

from ingestd.milvus.client import import_pymilvus
from ingestd.milvus.lite import running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pymilvus import MilvusClient
    from tests.benchmarks.speed_ground import Asked, Bare
    from tests.fixtures.daemon import Daemon, Workplace

SOON = 0.015
"""Seconds between two looks at whether a document is found. Each costs 4 ms of the cores that the model works on."""
AT_ONCE = 5_000
"""Files that are moved into the inbox together, at most: fewer than inotify's queue holds."""
PROBES = 3
"""How often a document's cost is measured at one size of the collection."""
A_DAY = 86_400


# --- devices


def workers(asked: Asked, folder: Path, figures: dict[str, Any]) -> list[Line]:
    """Two workers on the CPU with a thread each over one, and over what two bare processes gain over one.

    Not measured where the configuration has no way to ask for two workers, or the machine no two cores.
    """
    name = "gain of a second worker (CPU, a thread each) over that of a second bare process"
    if cores() < 2:
        return [Line(name, (), 0.95, note="not measured: one core")]
    texts = {f"{at}.txt": text for at, text in enumerate(sample(max(1, asked.articles // 2)))}
    took: dict[str, list[float]] = {}
    figures["seconds"] = took
    chunks: list[str] = []

    def ours(number: int, count: int) -> None:
        settings = minilm("cpu", "float32", threads=1) | {"device": ["cpu"] * count}
        place = folder / f"{count}-{number}"
        with workplace_for(place, settings, settle_seconds=0) as workplace, warm(workplace) as daemon:
            stage(workplace, texts)
            took.setdefault(f"workers: {count}", []).append(move_in(workplace, daemon, texts))
            chunks[:] = [row.text for row in workplace.rows()]

    def theirs(count: int) -> None:
        with bare(count, "cpu", "float32", threads=1) as models:
            began = time.perf_counter()
            for at, model in enumerate(models):
                model.ask(chunks[at::count])
            for model in models:
                model.answer()
            took.setdefault(f"bare processes: {count}", []).append(time.perf_counter() - began)

    for number in range(asked.rounds):
        alternating(
            number,
            [functools.partial(ours, number, count) for count in (1, 2)]
            + [functools.partial(theirs, count) for count in (1, 2)],
        )
    figures["gain"] = _ratios(took["workers: 1"], took["workers: 2"])
    figures["bare_gain"] = _ratios(took["bare processes: 1"], took["bare processes: 2"])
    return [Line(name, _ratios(figures["gain"], figures["bare_gain"]), 0.95)]


def _ratios(these: Sequence[float], those: Sequence[float]) -> list[float]:
    return [this / that for this, that in zip(these, those, strict=True)]


# --- one document at a time


def latency(asked: Asked, folder: Path, figures: dict[str, Any]) -> list[Line]:
    """One document at a time into an idle daemon: until a search finds it, over the model's own time for it.

    A document is a file that is moved into the inbox. The model's own time is ``encode`` of the document's chunks in a
    process of its own, on the same device, in the same dtype and with the threads that torch takes by default: the
    median of three, just before. The search is a client's of its own, for the first chunk's vector. How long a file
    has to be still before it is an event is a setting (``settle_seconds``): 0 here, and the default in another line.
    """
    figures |= {"whole": [], "model": []}
    rounds = [(f"{number}-", asked.singles) for number in range(asked.rounds)]
    over = _one_by_one(asked, folder / "at-once", figures, rounds, settle_seconds=0)
    figures |= {"over_p50": [_share(one, 0.5) for one in over], "over_p99": [_share(one, 0.99) for one in over]}
    [settled] = _one_by_one(asked, folder / "settled", {"whole": [], "model": []}, [("s-", 5)], settle_seconds=None)
    figures["over_at_default_settle_seconds"] = settled
    title = "event to searchable over the model's own time, seconds, "
    return [
        Line(f"{title}p99", figures["over_p99"], 0.1, at_most=True),
        Line(f"{title}p50", figures["over_p50"]),
        Line(f"{title}p50 with the default settle_seconds", [statistics.median(settled)]),
    ]


def _one_by_one(
    asked: Asked, folder: Path, figures: dict[str, Any], rounds: Sequence[tuple[str, int]], settle_seconds: float | None
) -> list[list[float]]:
    """Return, for each round, the seconds over the model's own, in order. A round is its files' prefix and number."""
    with workplace_for(folder, minilm(asked.device, "auto"), settle_seconds=settle_seconds) as workplace:
        texts = {"first.txt": "A text to see that all of it works."}
        for number, (prefix, count) in enumerate(rounds):
            texts |= {f"{prefix}{at}.txt": text for at, text in enumerate(sample(count, number))}
        stage(workplace, texts)
        workplace.command(())  # writes the configuration, which says how texts are cut
        chunks: dict[str, list[str]] = {name: [] for name in texts}
        for row in sorted(fold(workplace.root / STAGING, workplace.config_file), key=lambda row: row.chunk_index):
            chunks[row.document_id.removeprefix("inbox/")].append(row.text)
        with workplace.daemon() as daemon:
            daemon.until_ready(HOUR)
            with bare(1, asked.device, dtype_of(daemon)) as [model]:
                idle = _Idle(workplace, daemon, _client(workplace), model, chunks)
                idle.take("first.txt")  # whatever is slow the first time
                for prefix, count in rounds:
                    found = [idle.take(f"{prefix}{at}.txt") for at in range(count)]
                    figures["whole"].append([whole for whole, _ in found])
                    figures["model"].append([its for _, its in found])
                idle.client.close()
    pairs = zip(figures["whole"], figures["model"], strict=True)
    return [sorted(one - own for one, own in zip(whole, model, strict=True)) for whole, model in pairs]


@dataclass(frozen=True, slots=True)
class _Idle:
    """A daemon with nothing to do, a client of its Milvus, and the model by itself."""

    workplace: Workplace
    daemon: Daemon
    client: MilvusClient
    model: Bare
    chunks: Mapping[str, Sequence[str]]
    """Of each document that waits to be moved in."""

    def take(self, name: str) -> tuple[float, float]:
        """Move a document in; return the seconds until it is found, and those that the model takes for it."""
        document = f"inbox/{name}"
        answers = []
        for _ in range(3):
            self.model.ask(self.chunks[name])
            answers.append(self.model.answer())
        its = statistics.median(answer.seconds for answer in answers)
        wait_for(lambda: not self.daemon.totals["in_flight"], "the daemon is idle", HOUR)
        began = time.perf_counter()
        (self.workplace.root / STAGING / name).rename(self.workplace.inbox / name)
        time.sleep(0.8 * its)  # it cannot be there yet, and to ask takes time from who works on it
        while time.perf_counter() - began < HOUR:
            found = self._found(answers[0].first)
            seconds = time.perf_counter() - began
            if document in found:
                return seconds, its
            time.sleep(SOON)
        raise RuntimeError(f"{document} is not found: {self.daemon.totals}")

    def _found(self, vector: list[float]) -> set[str]:
        """Return what a search finds. Some articles are there twice: so not only the nearest one."""
        fields = ["document_id"]
        hits = self.client.search(COLLECTION, [vector], anns_field="dense", limit=5, output_fields=fields, timeout=60)
        return {hit["entity"]["document_id"] for hit in hits[0]}


def _client(workplace: Workplace) -> MilvusClient:
    import_pymilvus()
    from pymilvus import MilvusClient  # noqa: PLC0415 - it may be imported only after its noise is turned off

    return MilvusClient(uri=running(workplace.state / "milvus.json"), timeout=20)


def _share(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- more and more documents


def growth(asked: Asked, folder: Path, figures: dict[str, Any]) -> list[Line]:
    """The daemon's processor time for a document and its memory, with 1 %, 10 % and all of so many documents there.

    At each size the same number of small files is moved in, three times over, with what they cost counted by process:
    the daemon's own, and Milvus Lite's. Scans of the whole folder cost by the hour and not by the document: there is
    one at the start, and the next would be due in a day.
    """
    sizes = [max(1, asked.documents // 100), asked.documents // 10, asked.documents]
    at_once = max(1, min(AT_ONCE, asked.documents // 20))  # as many at each size: what is in flight takes memory too
    probe = max(100, min(1_000, asked.documents // 100))
    cost: dict[str, list[list[float]]] = {"daemon": [], "milvus": []}
    rss: list[int] = []
    figures |= {"sizes": sizes, "documents_of_a_probe": probe, "seconds_per_document": cost, "rss": rss}
    with workplace_for(folder / "w", hashing(), settle_seconds=0) as workplace:
        workplace.configure("sources.inbox.rescan_seconds", A_DAY)
        with workplace.daemon() as daemon:
            daemon.until_ready()
            _add(workplace, daemon, 0, probe)  # starts the workers, fills the caches
            total = probe
            for size in sizes:
                while total < size:
                    total += _add(workplace, daemon, total, min(at_once, size - total))
                rss.append(psutil.Process(daemon.pid).memory_info().rss)
                spent: list[dict[str, float]] = []
                for _ in range(PROBES):
                    before = _processor_seconds(workplace, daemon)
                    total += _add(workplace, daemon, total, probe)
                    after = _processor_seconds(workplace, daemon)
                    spent.append({name: (after[name] - before[name]) / probe for name in cost})
                for name, by_size in cost.items():
                    by_size.append([one[name] for one in spent])
                print(json.dumps({"documents": size, "seconds_per_document": spent, "rss": rss[-1]}), flush=True)
    figures["documents"] = total
    few, many = f"{sizes[0]:,}", f"{sizes[-1]:,}"
    title = f"cost of a document with {many} there, over that with {few}"
    return [
        Line(f"{title}: ledger and daemon", _ratios(cost["daemon"][-1], cost["daemon"][0]), 1.2, at_most=True),
        Line(f"{title}: Milvus Lite itself", _ratios(cost["milvus"][-1], cost["milvus"][0])),
        Line(f"the daemon's memory with {many} documents, over {sizes[1]:,}", [rss[-1] / rss[-2]], 1.05, at_most=True),
    ]


def _add(workplace: Workplace, daemon: Daemon, begin: int, count: int) -> int:
    """Move so many small files into the inbox, each with another text, and wait until they are rows."""
    texts = {
        f"{number}.txt": f"Document {number} says {number * 7919 % 104729} in a line of its own."
        for number in range(begin, begin + count)
    }
    stage(workplace, texts)
    move_in(workplace, daemon, texts)
    return count


def _processor_seconds(workplace: Workplace, daemon: Daemon) -> dict[str, float]:
    """Return what the daemon and its Milvus Lite have used so far."""
    lite = int(json.loads((workplace.state / "milvus.json").read_text())["pid"])
    used: dict[str, float] = {}
    for name, pid in (("daemon", daemon.pid), ("milvus", lite)):
        times = psutil.Process(pid).cpu_times()
        used[name] = float(times.user + times.system)
    return used
