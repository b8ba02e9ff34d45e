"""Whether bad documents delay good ones: how long a good file takes to its rows, with and without poison among them.

Files drop into a folder at a steady pace, and a whole daemon (the real ledger, the real extraction workers, Milvus
Lite; hashed words for a model, so that the daemon's own share of the time is all of it) makes rows of them. A file's
latency is from its appearance to the moment at which its outcome is durable. Rounds with and without poison take
turns on one daemon; in both the same good articles come at the same moments. In the rounds with poison one file in
twenty more is bad, each kind in its turn: bad encodings, binaries, broken and deeply nested JSON, what is over a limit,
vectors that are no numbers, and what makes an extraction worker crash, run out of memory, or hang.

Milvus Lite writes nothing for half a second each time its memory for new rows is full, poison or not. It has so much
here that this does not happen: ten who wait then are more than one in a hundred.

    python -m tests.benchmarks.poison --rounds 3 --files 600 --out benchmarks-out/poison.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.bomb_extractors import KIND
from tests.fixtures.corpus import articles
from tests.fixtures.daemon import toml

from ingestd import config, flow
from ingestd.cli.run import calm_interpreter
from ingestd.milvus import lite
from ingestd.model import Verdict
from ingestd.ops import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingestd.model import Outcome

EVERY = 20
"""One file in so many is poison."""
MOST = 1.2
"""How many times the p99 without poison the one with it may be."""
MEMTABLE_BYTES = 128 << 20
"""Milvus Lite's own default."""
PATIENCE = 900.0
SOURCE, COLLECTION = "inbox", "articles"


def _bomb(action: str) -> tuple[bytes, dict[str, str]]:
    return action.encode(), {"content_type": KIND}


POISON: dict[str, tuple[bytes, dict[str, str] | str]] = {
    "binary.bin": (bytes(range(256)) * 40, {}),
    "half-a-text.txt": (b"half a text\0\0\0", {}),
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(100), {}),
    "broken.json": (b'{"text": "a', {}),
    "nested.json": (b"[" * 100_000, {}),
    "too-large.txt": (b"word " * 250_000, {}),
    "too-many-chunks.txt": (b"Line upon line of very many lines.\n" * 3_000, {}),
    "bad-sidecar.txt": (b"A text with a bad sidecar.", '{"title": '),
    "no-number.txt": (b"This is POISON to the model.", {}),
    "nested.html": (b"<div>" * 150_000, {}),
    "crash.txt": _bomb("abort"),
    "memory.txt": _bomb("allocate"),
    "loop.txt": _bomb("loop"),
    "sleep.txt": _bomb("sleep"),
}
"""Name, bytes, and sidecar. The limits of ``_settings`` make those bad that are only large."""


@dataclass(slots=True)
class Seen:
    """When files came, and when and how they ended. Written by two threads, each its own part."""

    came: dict[str, float] = field(default_factory=dict)
    ended: dict[str, tuple[float, Verdict]] = field(default_factory=dict)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of outcomes."""
        now = time.monotonic()
        for outcome in outcomes:
            self.ended[outcome.event.key.document_id] = (now, outcome.verdict)


@dataclass(frozen=True, slots=True)
class Round:
    """One pass."""

    poison: bool
    latencies: list[float]
    """Seconds, of the good files."""
    bad: int
    seconds: float
    """Until all was settled, the bad files too."""

    def at(self, share: float) -> float:
        """Return the latency within which this share of the good files was done."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Measure, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of each kind")
    parser.add_argument("--files", type=int, default=600, help="good ones of a round")
    parser.add_argument("--pace", type=float, default=20.0, help="good files a second")
    parser.add_argument("--workers", type=int, default=None, help="extraction.workers; default: the daemon's own")
    parser.add_argument("--cpu-seconds", type=float, default=5.0, help="extraction.cpu_seconds")
    parser.add_argument("--wall-seconds", type=float, default=10.0, help="extraction.wall_seconds")
    parser.add_argument("--kinds", nargs="*", choices=POISON, default=list(POISON), help="which poison")
    parser.add_argument("--out", type=Path, default=None, help="where to write the figures as JSON")
    asked = parser.parse_args()
    log.configure("error", json=True)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="poison-") as folder:
        place = Path(folder)
        with _daemon(place, _settings(place, asked), asked.rounds) as seen:
            _round(place, seen, 0, asked, poison=False)  # starts the workers, fills the caches
            for number in range(1, 2 * asked.rounds + 1):
                rounds.append(_round(place, seen, number, asked, poison=number % 2 == 0))
                _print(rounds[-1])
    figures = _figures(rounds)
    print(json.dumps(figures, indent=2))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps({**figures, "asked": {**vars(asked), "out": str(asked.out)}}, indent=2) + "\n")


def _settings(place: Path, asked: argparse.Namespace) -> dict[str, Any]:
    extraction = {"cpu_seconds": asked.cpu_seconds, "wall_seconds": asked.wall_seconds, "memory_bytes": 256 * 2**20}
    if asked.workers is not None:
        extraction["workers"] = asked.workers
    return {
        "state_dir": str(place / "state"),
        "milvus": {"uri": str(place / "milvus")},
        "http": {"listen": "127.0.0.1:0"},
        "limits": {"max_bytes": 1_000_000, "max_chunks": 50},
        "extraction": extraction,
        "embedders": {"hash": {"type": "tests.fixtures.poison_embedder", "dimension": 64, "kinds": ["dense"]}},
        "extractors": {"bomb": {"type": "tests.faults.bomb_extractors"}},
        "collections": {
            COLLECTION: {
                "chunker": {"type": "stable", "max_tokens": 250},
                "vectors": {"dense": {"embedder": "hash"}},
            }
        },
        "sources": {SOURCE: {"type": "folder", "path": str(place / "inbox"), "collection": COLLECTION}},
    }


@contextmanager
def _daemon(place: Path, settings: dict[str, Any], rounds: int) -> Iterator[Seen]:
    """Run a daemon in this process, and see what becomes of its files."""
    for number in range(1 + 2 * rounds):  # before the watch begins: files in a directory that is new are found late
        (place / "inbox" / str(number)).mkdir(parents=True)
    file = place / "ingestd.toml"
    file.write_text(toml(settings))
    lite.MEMTABLE_BYTES = MEMTABLE_BYTES
    seen = Seen()
    with flow.daemon(config.load(file), once=False, beginning=lambda *_: None) as daemon:
        source = daemon.sources[SOURCE]
        its_own = source.settled

        def settled(outcomes: Sequence[Outcome]) -> None:
            seen.settled(outcomes)
            its_own(outcomes)

        source.settled = settled  # type: ignore[method-assign]  # what settle calls once an outcome is durable
        calm_interpreter()
        daemon.runner.start()
        runner = threading.Thread(
            target=daemon.runner.run, kwargs={"once": False, "timeout": None, "tick": lambda: None}, name="runner"
        )
        runner.start()
        try:
            yield seen
        finally:
            daemon.runner.ask_to_stop()
            runner.join()
        if daemon.faults.cause is not None:
            raise daemon.faults.cause


def _round(place: Path, seen: Seen, number: int, asked: argparse.Namespace, *, poison: bool) -> Round:
    """Drop in the files of a round, and wait until all of them are settled."""
    texts = articles()
    kinds = list(asked.kinds)
    inbox = place / "inbox" / str(number)
    good: list[str] = []
    bad: list[str] = []
    began = time.monotonic()
    pause = threading.Event()
    for at in range(asked.files):
        pause.wait(max(0.0, began + at / asked.pace - time.monotonic()))
        data = texts[(number * 1009 + at) % len(texts)].read_bytes() + b"\nRound %d." % number
        good.append(_drop(place, seen, inbox / f"{at}.txt", data, {}))
        if poison and at % (EVERY - 1) == EVERY // 2:
            pause.wait(max(0.0, began + (at + 0.5) / asked.pace - time.monotonic()))  # at a moment of its own
            name = kinds[len(bad) % len(kinds)]
            data, sidecar = POISON[name]
            bad.append(_drop(place, seen, inbox / f"bad-{at}-{name}", data, sidecar))
    until = time.monotonic() + PATIENCE
    while any(name not in seen.ended for name in (*good, *bad)):
        assert time.monotonic() < until, [name for name in (*good, *bad) if name not in seen.ended]
        pause.wait(0.1)
    verdicts = Counter((name in bad, seen.ended[name][1]) for name in (*good, *bad))
    expected = {(False, Verdict.WRITTEN): len(good)} | ({(True, Verdict.DEAD_LETTERED): len(bad)} if bad else {})
    assert verdicts == expected, verdicts
    latencies = [seen.ended[name][0] - seen.came[name] for name in good]
    return Round(poison, latencies, len(bad), time.monotonic() - began)


def _drop(place: Path, seen: Seen, path: Path, data: bytes, sidecar: dict[str, str] | str) -> str:
    """Write a file, its sidecar before it."""
    if sidecar:
        said = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
        path.with_name(path.name + ".meta.json").write_text(said)
    name = f"{SOURCE}/{path.relative_to(place / 'inbox').as_posix()}"
    path.write_bytes(data)
    seen.came[name] = time.monotonic()
    return name


def _figures(rounds: Sequence[Round]) -> dict[str, Any]:
    said: dict[str, Any] = {"cores": os.cpu_count(), "rounds": len(rounds) // 2}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0)):
        clean, poisoned = (
            statistics.median(one.at(share) for one in rounds if one.poison is poison) for poison in (False, True)
        )
        said[name] = {
            "without_poison_seconds": round(clean, 3),
            "with_poison_seconds": round(poisoned, 3),
            "ratio": round(poisoned / clean, 2),
        }
    said["bad_files"] = sum(one.bad for one in rounds)
    said["p99_ratio_at_most"] = MOST
    return said


def _print(one: Round) -> None:
    kind = f"{one.bad} bad files" if one.poison else "no poison"
    shares = "  ".join(f"p{share * 100:g} {one.at(share):.3f} s" for share in (0.5, 0.9, 0.99, 1.0))
    print(f"{kind:<14} {len(one.latencies)} good files  {shares}  all settled after {one.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
