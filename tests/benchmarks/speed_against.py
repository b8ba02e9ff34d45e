"""The first part of ``speed``: a folder of articles to rows in Milvus Lite, beside the bare model and what people use.

Ours is a daemon that has written one document, and gets the articles by renames into its inbox: timed from the first
rename to when the last row is settled. It takes files as they come (``settle_seconds = 0``), as by default it takes
those that have been there for a while: to wait until a file is still is no work.

Theirs are the scripts in ``rivals``, in an environment of their own: timed from the first file's reading to the last
row's acknowledgement, with the model loaded and warm, and the collection made. In each round all of them take turns.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.speed_ground import (
    HOUR,
    WARM_UP,
    alternating,
    cores,
    dtype_of,
    minilm,
    model_folder,
    move_in,
    stage,
    warm,
    workplace_for,
)
from tests.benchmarks.speed_ground import sample as articles_of
from tests.benchmarks.table import Line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.speed_ground import Asked

OWN = "own defaults"
BARE = "bare"
WANTED = {BARE: 1.0, "script": 1.25, "with_llamaindex": 1.25, "with_langchain": 1.05}
"""How many times as fast ours is to be in the same dtype with the same number of threads."""
WANTED_DEFAULTS = {"script": 2.5, "with_llamaindex": 2.5, "with_langchain": 2.0}
"""At each one's own defaults: ours chooses the dtype."""
TITLES = {
    BARE: "encode on all chunks at once",
    "script": "the script that people write",
    "with_llamaindex": "LlamaIndex",
    "with_langchain": "LangChain",
}
_SCRIPTS = Path(__file__).parent / "rivals"


def against(asked: Asked, folder: Path, figures: dict[str, Any]) -> list[Line]:
    """Time ours and theirs in turn: in the same dtype with as many threads, and each at its own defaults."""
    race = _Race(asked, folder, articles_of(asked.articles), figures)
    for number in range(asked.rounds):
        race.round(number)
    print(json.dumps({"versions": figures.get("versions", {}), "chunks": figures["chunks"]}), flush=True)
    return race.lines()


@dataclass(slots=True)
class _Race:
    """Rounds of all of them.

    Attributes:
        seconds: Of each round, by who and in which form: a dtype, or ``OWN``.
        forms: The dtype and the threads of each at its own defaults.
        failed: Why one is out of it.
    """

    asked: Asked
    folder: Path
    texts: Sequence[str]
    figures: dict[str, Any]
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    forms: dict[str, tuple[str, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def round(self, number: int) -> None:
        """Have each do it once, ours first in the first round: it says which dtypes there are, and has the chunks."""
        theirs = [functools.partial(self._theirs, name, number) for name in WANTED]
        alternating(number, [lambda: self._ours(number), *theirs])
        seconds = {f"{who}, {form}": took for (who, form), took in self.seconds.items()}
        characters = sum(map(len, self.texts))
        self.figures |= {
            "documents": len(self.texts),
            "characters": characters,
            "own_defaults": {who: {"dtype": dtype, "threads": count} for who, (dtype, count) in self.forms.items()},
            "seconds": seconds,
            "characters_per_second": {name: characters / statistics.median(took) for name, took in seconds.items()},
            "failed": self.failed,
        }
        print(
            json.dumps({"round": number + 1, **{name: round(took[-1], 2) for name, took in seconds.items()}}),
            flush=True,
        )

    def lines(self) -> list[Line]:
        """Return the ratios, round by round: how many times as long they took."""
        found = [
            self._line(name, f"characters/s over {TITLES[name]}, {dtype}", (name, dtype), ("ours", dtype), wanted)
            for dtype in self._dtypes()
            for name, wanted in WANTED.items()
        ]
        ours, _ = self.forms["ours"]
        for name, wanted in WANTED_DEFAULTS.items():
            line = self._line(
                name, f"characters/s over {TITLES[name]}, each at its own defaults", (name, OWN), ("ours", OWN), wanted
            )
            said = f"ours {ours}, theirs {self.forms[name][0]}" if name in self.forms else ""
            found.append(line._replace(note=line.note or said))
        return found

    def _line(self, name: str, title: str, theirs: tuple[str, str], ours: tuple[str, str], wanted: float) -> Line:
        if name in self.failed:
            return Line(title, (), wanted, note=self.failed[name])
        pairs = zip(self._of(*theirs), self._of(*ours), strict=True)
        return Line(title, [their / our for their, our in pairs], wanted)

    def _of(self, who: str, form: str) -> list[float]:
        """Return the seconds of all rounds in a form, which may have been that of its own defaults."""
        return self.seconds.get((who, form)) or self.seconds[who, OWN]

    def _dtypes(self) -> list[str]:
        return list(dict.fromkeys(["float32", self.forms["ours"][0]]))

    def _ours(self, number: int) -> None:
        # What auto finds out in the first round goes for all: on a busy machine it might change its mind.
        chosen = self.forms["ours"][0] if "ours" in self.forms else "auto"
        self._run_ours(number, OWN, minilm(self.asked.device, chosen))
        for dtype in self._missing("ours"):
            self._run_ours(number, dtype, minilm(self.asked.device, dtype, threads=cores()))

    def _run_ours(self, number: int, form: str, embedder: dict[str, Any]) -> None:
        texts = {f"{at}.txt": text for at, text in enumerate(self.texts)}
        place = self.folder / f"ours-{form}-{number}"
        with workplace_for(place, embedder, settle_seconds=0) as workplace, warm(workplace) as daemon:
            stage(workplace, texts)
            self.seconds.setdefault(("ours", form), []).append(move_in(workplace, daemon, texts))
            self.forms.setdefault("ours", (dtype_of(daemon), self.asked.threads))
            if not self._chunks.exists():
                rows = sorted(workplace.rows(), key=lambda row: (row.document_id, row.chunk_index))
                chunks = [row.text for row in rows if row.document_id != f"inbox/{WARM_UP}"]
                self._chunks.write_text(json.dumps(chunks))
                self._count("ours", len(chunks))

    def _theirs(self, name: str, number: int) -> None:
        if name in self.failed:
            return
        try:
            if name != BARE:
                self._run_theirs(name, number, OWN)
            for dtype in self._missing(name):
                self._run_theirs(name, number, dtype)
        except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
            self.failed[name] = f"{type(error).__name__}: {error}"[-400:]

    def _missing(self, who: str) -> list[str]:
        """Return the dtypes that its own defaults do not show with all cores."""
        return [dtype for dtype in self._dtypes() if self.forms.get(who) != (dtype, cores())]

    def _run_theirs(self, name: str, number: int, form: str) -> None:
        """Have a script do it.

        Raises:
            RuntimeError: It failed, or there is no environment for it.
        """
        if self.asked.rivals is None:
            raise RuntimeError("not measured: --rivals names no Python that has it")
        place = self.folder / f"{name}-{form}-{number}"
        place.mkdir()
        files = [place / f"{at}.txt" for at in range(len(self.texts))]
        for file, text in zip(files, self.texts, strict=True):
            file.write_text(text)
        job = {
            "model": str(model_folder()),
            "files": list(map(str, files)),
            "chunks": str(self._chunks),
            "folder": str(place),
            "device": self.asked.device,
            "dtype": "" if form == OWN else form,
            "threads": 0 if form == OWN else cores(),
        }
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [str(self.asked.rivals.absolute()), str(_SCRIPTS / f"{name}.py"), json.dumps(job)],
            env=environment,
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
            timeout=HOUR,
        )
        if done.returncode != 0:
            raise RuntimeError(f"it ended with {done.returncode}: {done.stderr[-300:]}")
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        self.seconds.setdefault((name, form), []).append(float(answer["seconds"]))
        self.figures.setdefault("versions", {}).update(answer["versions"])
        self._count(name, answer["chunks"])
        if form == OWN:
            self.forms[name] = (answer["dtype"], answer["threads"])

    def _count(self, who: str, chunks: int) -> None:
        """Take note of how many chunks one makes of the texts: each has a splitter of its own."""
        self.figures.setdefault("chunks", {})[who] = chunks

    @property
    def _chunks(self) -> Path:
        return self.folder / "chunks.json"
