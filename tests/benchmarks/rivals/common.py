"""What the rivals have in common: they get a job, load their model, and time the work from the first text on."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentence_transformers import SentenceTransformer

PACKAGES = ("torch", "sentence-transformers", "transformers")


@dataclass(frozen=True)
class Job:
    """What is to be done."""

    model: str
    """The folder of a model of sentence-transformers."""
    files: tuple[Path, ...]
    """UTF-8 texts."""
    chunks: Path
    """A JSON list of texts: the same files, cut by ingestd. For who is timed on the model alone."""
    folder: Path
    """To put a database into."""
    device: str
    dtype: str
    """float32, bfloat16 or float16; empty: the library's own default."""
    threads: int
    """0: the library's own default."""

    def sentence_transformer(self) -> SentenceTransformer:
        """Return the model, warm."""
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - after the threads are set

        model = SentenceTransformer(self.model, device=self.device, model_kwargs=self.model_kwargs())
        model.encode(["A text to see that the model works."])
        return model

    def model_kwargs(self) -> dict[str, Any]:
        """Return what the library is told when it loads the model."""
        return {"dtype": self.dtype} if self.dtype else {}


class Work(NamedTuple):
    """All is loaded, and this is to be timed."""

    ingest: Callable[[], int]
    """Does it, and says how many chunks there were."""
    model: SentenceTransformer
    """As the library loaded it."""
    packages: tuple[str, ...] = ()
    """Whose versions count."""


def run(prepare: Callable[[Job], Work]) -> None:
    """Do the job of the command line.

    Args:
        prepare: Loads everything.
    """
    said = json.loads(sys.argv[1])
    job = Job(
        said["model"],
        tuple(map(Path, said["files"])),
        Path(said["chunks"]),
        Path(said["folder"]),
        said["device"],
        said["dtype"],
        said["threads"],
    )
    if job.threads:
        os.environ["OMP_NUM_THREADS"] = str(job.threads)
    import torch  # noqa: PLC0415 - after the threads are set

    if job.threads:
        torch.set_num_threads(job.threads)
    work = prepare(job)
    began = time.perf_counter()
    chunks = work.ingest()
    seconds = time.perf_counter() - began
    answer = {
        "seconds": seconds,
        "chunks": chunks,
        "dtype": str(next(work.model.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in (*PACKAGES, *work.packages)},
    }
    print("\n" + json.dumps(answer))  # libraries print what they like: the answer is the last line


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
