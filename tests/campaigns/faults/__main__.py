"""The campaign of faults: events with numbers, faults while they flow, and all of Milvus compared with their fold.

Every scene issues events whose outcome it knows, breaks something, lets the system recover, and compares. It fails when
a chunk is missing, stale, orphaned or there twice, when a recovery takes longer than half a minute, and when too little
happened to show anything. Prints one JSON object a step and a table at the end, which is also written as JSON; ends
with 0, or with a traceback at the first claim that did not hold. The seed is printed: it draws the same events and the
same faults again.

    python -m tests.campaigns.faults --scenes points,random --times 0.1 --seed 7

``--without NAME`` takes a mechanism out of the daemons: the campaign has to fail then. ``--teeth`` does that for each
mechanism, on the scene that is to find out (``TEETH``), and fails if one goes unnoticed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.campaigns.faults.ground import Figures, Wish
from tests.campaigns.faults.oracle import UnequalError

from ingestd.ops import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from tests.campaigns.faults.ground import Scene

AREAS = ("kills", "milvus", "files", "documents", "disorder")
"""Modules beside this one. Each exports ``SCENES``, scenes by name. It may export ``WITHOUT``, what can be taken out of
the daemon and the code that does it (``Ground.patch``), and ``TEETH``, the scene that finds each of those out."""
OUT = Path("benchmarks-out/faults.json")
COLUMNS = ("scene", *Figures.__slots__, "seconds")


def main() -> None:
    """Run the campaign that the command line asks for."""
    asked = _asked()
    log.configure("error", json=True)  # of what is called here in place: the daemons have logs of their own
    if asked.list:
        for name, scene in scenes().items():
            sys.stdout.write(f"{name:24}{(scene.__doc__ or '').partition(chr(10))[0]}\n")
        return
    with _folder(asked.keep) as folder:
        if asked.teeth:
            show_teeth(Wish(asked.times, asked.seed, patience=asked.patience), folder, only=asked.without)
            return
        taken = {} if asked.without is None else {asked.without: without()[asked.without]}
        wish = Wish(asked.times, asked.seed, taken, asked.patience, asked.models)
        names = list(scenes()) if asked.scenes == ["all"] else asked.scenes
        report("campaign", scenes=names, seed=asked.seed, times=asked.times, without=asked.without)
        play(names, wish, folder, asked.out)
    report("done")


def play(names: list[str], wish: Wish, folder: Path, out: Path | None) -> None:
    """Play scenes, one after the other, and show the table, also when one fails."""
    table: list[dict[str, object]] = []
    try:
        for name in names:
            began = time.monotonic()
            figures = Figures(0, 0, note="failed")
            try:
                # Each its own draw: what it plays does not depend on which scenes came before it.
                figures = scenes()[name](wish, folder / name, random.Random(f"{wish.seed} {name}"), report)
            except UnequalError as error:
                found = error.found
                counts = (len(found.missing), len(found.stale), len(found.orphan), len(found.duplicate))
                figures = Figures(0, 0, *counts, note="failed")
                raise
            finally:
                table.append({"scene": name, **asdict(figures), "seconds": round(time.monotonic() - began, 1)})
                report(name, **table[-1])
    finally:
        _show(table)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"seed": wish.seed, "times": wish.times, "scenes": table}, indent=1) + "\n")


def show_teeth(asked: Wish, folder: Path, only: str | None) -> None:
    """Take each mechanism out, and see its scene fail.

    Raises:
        AssertionError: A scene did not notice.
    """
    blunt = []
    for name, scene in teeth():
        if only not in {None, name}:
            continue
        wish = replace(asked, without={name: without()[name]})
        try:
            figures = scenes()[scene](wish, folder / name / scene, random.Random(f"{wish.seed} {scene}"), report)
        except AssertionError as error:
            report("tooth", without=name, scene=scene, failed=str(error)[:600])
        else:
            report("tooth", without=name, scene=scene, unnoticed=asdict(figures))
            blunt.append(f"{name} ({scene})")
    assert not blunt, f"nobody noticed that this was taken out: {', '.join(blunt)}"


def report(step: str, **said: object) -> None:
    """Print what a step says."""
    sys.stdout.write(json.dumps({"step": step, **said}) + "\n")
    sys.stdout.flush()


def scenes() -> dict[str, Scene]:
    """Return all scenes, by name."""
    return {name: scene for area in _areas() for name, scene in area.SCENES.items()}


def without() -> dict[str, str]:
    """Return what can be taken out of the daemon, and how."""
    found: dict[str, str] = {}
    for area in _areas():
        mine: Mapping[str, str] = getattr(area, "WITHOUT", {})
        assert not found.keys() & mine.keys(), f"two areas take out {found.keys() & mine.keys()}: one would never be"
        found |= mine
    return found


def teeth() -> list[tuple[str, str]]:
    """Return what can be taken out, and each scene that finds it out."""
    return [(name, scene) for area in _areas() for name, scene in getattr(area, "TEETH", {}).items()]


def _areas() -> Iterator[ModuleType]:
    for area in AREAS:
        module = f"{__package__}.{area}"
        if importlib.util.find_spec(module) is not None:
            yield importlib.import_module(module)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = scenes()
    parser.add_argument("--scenes", default=["all"], type=lambda said: said.split(","), help=f"of {', '.join(known)}")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument(
        "--times", type=float, default=1.0, metavar="FACTOR", help="as many faults as usual, times this"
    )
    parser.add_argument("--patience", type=float, default=1.0, metavar="FACTOR", help="seconds are longer, times this")
    parser.add_argument("--models", choices=["hashing", "quickstart"], default="hashing")
    parser.add_argument("--without", choices=list(without()), default=None, help="take this out: it has to fail")
    parser.add_argument("--teeth", action="store_true", help="take out each in turn, and see that it is found out")
    parser.add_argument("--list", action="store_true", help="list the scenes")
    parser.add_argument("--keep", type=Path, default=None, metavar="FOLDER", help="work here, and leave what is there")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    unknown = [name for name in asked.scenes if name not in {*known, "all"}]
    if unknown:
        parser.error(f"no such scene: {', '.join(unknown)}; there are {', '.join(known)}")
    return asked


class _folder:  # noqa: N801 - reads as what it is
    """The folder that a campaign works in: one that is kept, or a passing one."""

    def __init__(self, kept: Path | None) -> None:
        self._kept = kept
        self._passing: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if self._kept is not None:
            self._kept.mkdir(parents=True, exist_ok=True)
            return self._kept.absolute()
        self._passing = tempfile.TemporaryDirectory(prefix="faults-")
        return Path(self._passing.name)

    def __exit__(self, *_: object) -> None:
        if self._passing is not None:
            self._passing.cleanup()


def _show(table: Sequence[Mapping[str, object]]) -> None:
    rows = [COLUMNS, *(tuple(str(row[column]) for column in COLUMNS) for row in table)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
