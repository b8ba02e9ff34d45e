"""How fast documents become rows, beside what people use today, and what an edit costs: ratios within one run.

    python -m tests.benchmarks.speed --rivals .venv-bench/bin/python --out benchmarks-out/speed.json

Every figure is a ratio of two things that were done in turn on the same machine, several times over; the median counts,
and all rounds are in the JSON. What loads a model or starts a process is not timed, on either side.

``against``     a folder of articles to rows in Milvus Lite, beside ``SentenceTransformer.encode`` on the same chunks,
                the script that people write, LlamaIndex and LangChain (``speed_against``).
``unchanged``   a second run over all articles against the first (``speed_edits``).
``inserted``    a line at the top of a document of 1,000 chunks: the chunks that are embedded.
``workers``     two workers on the CPU, one thread each, over one; and two bare processes over one (``speed_singles``).
``latency``     one document at a time into a daemon with nothing to do, until a search finds it.
``growth``      the daemon's processor time for a document, and its memory, with more and more documents there.

A part that fails or cannot be measured here has its line in the table, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.speed_against import against
from tests.benchmarks.speed_edits import inserted, unchanged
from tests.benchmarks.speed_ground import Asked, cores
from tests.benchmarks.speed_singles import growth, latency, workers
from tests.benchmarks.table import Line, show

if TYPE_CHECKING:
    from collections.abc import Callable

PLOT = Path(__file__).parent / "rivals" / "plot.py"
PARTS: dict[str, Callable[[Asked, Path, dict[str, Any]], list[Line]]] = {
    "against": against,
    "unchanged": unchanged,
    "inserted": inserted,
    "workers": workers,
    "latency": latency,
    "growth": growth,
}
"""Each measures, puts figures into the mapping as it goes, and returns its lines of the table."""
_TORCH = """
import json, sys, torch
from ingestd.embedders import _passes
from ingestd.embedders._local import LocalConfig
device, dtype, _ = _passes.settle(LocalConfig(model="any"), sys.argv[1], 1)
gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
said = {"torch": torch.__version__, "threads": torch.get_num_threads(), "gpu": gpu, "auto": _passes.name(dtype)}
print(json.dumps(said))
"""


def main() -> None:
    """Measure what the command line asks for."""
    given = _command_line()
    environment = _environment(given.device)
    print(json.dumps(environment), flush=True)
    asked = Asked(
        rivals=given.rivals,
        articles=given.articles or (20 if given.quick else 150),
        rounds=given.rounds or (1 if given.quick else 3),
        device=given.device,
        threads=environment["threads"],
        documents=given.documents or (3_000 if given.quick else 100_000),
        singles=given.singles or (10 if given.quick else 50),
        quick=given.quick,
    )
    figures: dict[str, Any] = {"environment": environment, "asked": asdict(asked) | {"rivals": str(asked.rivals)}}
    lines: list[Line] = []
    for name in given.only:
        lines += _part(name, asked, figures)
        figures["table"] = [line.plain() for line in lines]
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(figures, indent=2) + "\n")
    print("\n" + show(lines))
    if given.out is not None:
        _plot(asked, given.out)
    sys.exit(0 if all(line.holds for line in lines) else 1)


def _command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", type=Path, help="the Python of their environment; not set: none of them")
    parser.add_argument("--quick", action="store_true", help="all parts, each small: some minutes, and rough figures")
    parser.add_argument("--articles", type=int, help="of the 2,225, for what real models do (150; quick: 20)")
    parser.add_argument("--rounds", type=int, help="of each measurement (3; quick: 1)")
    parser.add_argument("--device", default="cpu", help="cuda, where there is one")
    parser.add_argument("--documents", type=int, help="the most in the collection, for growth (100,000; quick: 3,000)")
    parser.add_argument("--singles", type=int, help="documents of a round, for latency (50; quick: 10)")
    parser.add_argument("--only", type=_names, default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON; the plot goes beside them")
    return parser.parse_args()


def _names(said: str) -> list[str]:
    names = said.split(",")
    if unknown := set(names) - PARTS.keys():
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}")
    return names


def _environment(device: str) -> dict[str, Any]:
    """Say what this is measured on. torch is asked in a process of its own, as the daemon does."""
    done = subprocess.run(
        [sys.executable, "-c", _TORCH, device], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode != 0:
        sys.exit(f"torch does not say what {device} is:\n{done.stderr[-2000:]}")
    return {
        "cpu": _processor(),
        "cores": cores(),
        "device": device,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        **json.loads(done.stdout.splitlines()[-1]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _part(name: str, asked: Asked, figures: dict[str, Any]) -> list[Line]:
    """Measure a part, and show it; what goes wrong in it is its line."""
    said = figures[name] = {}
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="speed-") as folder:
            lines = PARTS[name](asked, Path(folder), said)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are measured
        traceback.print_exc()
        lines = [Line(name, (), note=f"failed: {type(error).__name__}: {error}".splitlines()[0])]
    said["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(f"{name}: {said['minutes']:g} minutes\n{show(lines)}", flush=True)
    return lines


def _plot(asked: Asked, out: Path) -> None:
    if asked.rivals is None:
        print("no plot: matplotlib is in the environment that --rivals names")
        return
    picture = out.with_suffix(".png")
    done = subprocess.run(
        [str(asked.rivals), str(PLOT), str(out), str(picture)], capture_output=True, text=True, check=False
    )
    print(picture if done.returncode == 0 else f"no plot: {done.stderr[-1000:]}")


if __name__ == "__main__":
    main()
