"""What edits cost: the parts of ``speed`` in which next to nothing has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.benchmarks.speed_ground import HOUR, hashing, minilm, read, worked_off, workplace_for
from tests.benchmarks.table import Line
from tests.fixtures.corpus import articles

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.speed_ground import Asked
    from tests.fixtures.daemon import Daemon, Workplace

CHUNKS = 1_000
NEAR = 20
"""How far from it the long document's chunks may be."""
_TRIES = 12


def unchanged(asked: Asked, folder: Path, figures: dict[str, Any]) -> list[Line]:
    """Look at all articles a second time.

    Both runs are timed from a daemon's readiness to the moment at which all is settled: the first reads, embeds and
    writes, the second loads what the ledger knows and lists the folder. Loading models and starting Milvus is in
    neither.
    """
    embedder = hashing() if asked.quick else minilm(asked.device, "auto")
    texts = [read(path) for path in articles()]
    figures |= {"documents": len(texts), "embedder": embedder["type"], "second_seconds": []}
    with workplace_for(folder / "w", embedder, texts) as workplace:
        with worked_off(workplace, len(texts)) as (daemon, first):
            daemon.stop()
        figures["first_seconds"] = first
        for _ in range(asked.rounds):
            with worked_off(workplace, len(texts), "unchanged") as (daemon, second):
                figures["second_seconds"].append(second)
                embedded = daemon.totals["chunks_embedded"]
                daemon.stop()
            if embedded:
                raise RuntimeError(f"of unchanged files {embedded} chunks were embedded")
    ratios = [first / second for second in figures["second_seconds"]]
    name = f"a second run over {len(texts):,} unchanged files, times as fast as the first"
    return [Line(name, ratios, 100.0, note=f"embedder: {embedder['type']}")]


def inserted(asked: Asked, folder: Path, figures: dict[str, Any]) -> list[Line]:
    """Insert a line at the top of a document of 1,000 chunks, again and again."""
    figures["embedded"] = []
    with workplace_for(folder / "w", hashing()) as workplace, workplace.daemon() as daemon:
        daemon.until_ready()
        figures["chunks"] = _long_document(workplace, daemon)
        long = workplace.inbox / "long.txt"
        for number in range(asked.rounds):
            before = daemon.totals["chunks_embedded"]
            text = long.read_text()
            workplace.write("long.txt", f"A line that was put here, number {number}.\n\n{text}")
            _rests(daemon)
            figures["embedded"].append(float(daemon.totals["chunks_embedded"] - before))
    name = f"chunks embedded after a line at the top of {figures['chunks']:,}"
    return [Line(name, figures["embedded"], 2.0, at_most=True)]


def _long_document(workplace: Workplace, daemon: Daemon) -> int:
    """Write a document of about 1,000 chunks; return how many they are."""
    parts = "\n\n".join(read(path) for path in articles()).split("\n\n")
    end, chunks = len(parts) // 8, 0
    for _ in range(_TRIES):
        workplace.write("long.txt", "\n\n".join(parts[:end]))
        _rests(daemon)
        chunks = len(workplace.rows())
        if abs(chunks - CHUNKS) <= NEAR:
            return chunks
        end = end * CHUNKS // chunks
    raise RuntimeError(f"no document of {CHUNKS} chunks, but of {chunks}")


def _rests(daemon: Daemon) -> None:
    """Wait until what was just changed is settled."""
    before = daemon.totals["accepted"]
    daemon.until(lambda: daemon.totals["accepted"] > before, "the change is seen", HOUR)
    daemon.until(lambda: not daemon.totals["in_flight"], "it is settled", HOUR)
