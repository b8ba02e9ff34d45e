"""The campaign: 2,225 news articles through edits, renames and kills, with the quick start's models or hashed words.

``make test`` has the short forms of this. Here the whole corpus is the folder, the models are real if wanted, and the
daemon is killed ten times. Prints one JSON object a step; ends with 0 when every claim held, and with a traceback at
the first that did not. What it needs is in the environment of ``make setup``.

    python -m tests.campaigns.articles --models quickstart --kills 10
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fixtures.corpus import ARTICLES, copy_articles, fold
from tests.fixtures.daemon import Workplace, workplace_in
from tests.fixtures.kills import START_UP, check_whole, kill_and_change

from ingestd.ops import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
LOADING = 20.0
"""Seconds, about, in which the quick start's models are loaded."""
SLOW = 0.004
"""Seconds a chunk with hashed words, so that there is a middle to be killed in."""
HOUR = 3600.0


def main() -> None:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=["quickstart", "hashing"], default="quickstart")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", choices=["life", "kills"], default=None, help="default: both")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th article only")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a new one in the system's")
    wish = parser.parse_args()
    log.configure("warning", json=True)  # of what is called here in place: the daemons have logs of their own
    _report("campaign", models=wish.models, kills=wish.kills, every=wish.every, seed=wish.seed)
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=wish.folder) as name:
        folder = Path(name)
        if wish.only != "kills":
            with _workplace(folder / "life", wish.models) as workplace:
                _life(workplace, wish.every)
        if wish.only != "life":
            with _workplace(folder / "kills", wish.models) as workplace:
                _kills(workplace, wish, folder / "unkilled")
    _report("done")


@contextmanager
def _workplace(root: Path, models: str) -> Iterator[Workplace]:
    with workplace_in(root) as workplace:
        if models == "quickstart":
            settings = tomllib.loads((ROOT / "config" / "quickstart.toml").read_text())
            for table in ("embedders", "collections"):
                workplace.settings[table] = settings[table]
        else:
            workplace.configure("embedders.hash.delay_seconds_per_text", SLOW)
            workplace.configure("embedding.window", 64)
        yield workplace


def _life(workplace: Workplace, every: int) -> None:
    """One folder from its first run through edits, deletes and renames."""
    files = copy_articles(workplace.inbox, every)
    first = _timed("first run", workplace)
    assert len(files) == first["written"] == first["accepted"]
    rows = workplace.rows()
    assert len({row.document_id for row in rows}) == len(files)
    assert fold(workplace.inbox, workplace.config_file) == rows
    _report("rows", documents=len(files), chunks=len(rows), expected_of_all=ARTICLES)
    again = _timed("second run", workplace)
    assert (len(files), 0) == (again["unchanged"], again["chunks_embedded"])
    longest = max(files, key=lambda path: path.stat().st_size)
    for place in ("top", "end"):
        text = longest.read_text()
        line = f"A line that was added at the {place}."
        longest.write_text(f"{line}\n{text}" if place == "top" else f"{text}\n{line}\n")
        edited = _timed(f"a line at the {place}", workplace)
        assert 1 <= edited["chunks_embedded"] <= 2
    others = [path for path in files if path != longest]
    for path in others[:10]:
        path.unlink()
    for number, path in enumerate(others[-10:]):
        path.rename(workplace.inbox / f"renamed-{number}.txt")
    changed = _timed("10 deleted, 10 renamed", workplace)
    assert (20, 10) == (changed["deleted"], changed["written"])
    assert fold(workplace.inbox, workplace.config_file) == workplace.rows()


def _kills(workplace: Workplace, wish: argparse.Namespace, spare: Path) -> None:
    """The same folder, whose daemon is killed at random moments while files change."""
    copy_articles(workplace.inbox, wish.every)
    began = time.monotonic()
    start_up = LOADING if wish.models == "quickstart" else START_UP
    for kill in kill_and_change(workplace, wish.kills, random.Random(wish.seed), start_up):
        _report("kill", **asdict(kill))
    totals = check_whole(workplace, spare)
    _report("rows are those of a run without kills", seconds=round(time.monotonic() - began, 1), last_run=totals)


def _timed(step: str, workplace: Workplace) -> Mapping[str, int]:
    began = time.monotonic()
    totals = workplace.once(timeout=4 * HOUR)
    _report(step, seconds=round(time.monotonic() - began, 1), totals=totals)
    return totals


def _report(step: str, **said: object) -> None:
    sys.stdout.write(json.dumps({"step": step, **said}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
