"""A drop box: files leave the folder when they are at an end, whatever ends the daemon in between, and none is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.faults.kafka_place import metric
from tests.fixtures.daemon import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = pytest.mark.lite

NO_TEXT = "half a text\0\0\0"
GOOD, BAD = 12, 4
KILL = """\
import os, signal
from ingestd.sources import _shelf, _transfer

def kill(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def when(holder, name, nth, before=True, matches=lambda arguments: True):
    real, calls = getattr(holder, name), []
    def wrapped(*arguments, **options):
        calls.extend([None] * matches(arguments))
        if before and len(calls) == nth:
            kill()
        found = real(*arguments, **options)
        if not before and len(calls) == nth:
            kill()
        return found
    setattr(holder, name, wrapped)

"""
MOMENTS = {
    "before a move": 'when(_shelf.Shelf, "put", 5)',
    "between a file and its sidecar": 'when(_shelf.Shelf, "_put_sidecar", 3)',
    "after a copy": 'when(_transfer, "_take_away", 5)',
    "before it is taken away": 'when(os, "unlink", 4, matches=lambda a: os.fsencode(a[0]).startswith(_transfer.ASIDE))',
}
"""What ends the daemon, in the words of a module that Python imports when it starts."""
COPIES = ("after a copy", "before it is taken away")


@pytest.fixture
def other_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than pytest's."""
    above = Path("/dev/shm") / f"ingestd-{os.getpid()}-{threading.get_ident()}"
    above.mkdir()
    if above.stat().st_dev == tmp_path.stat().st_dev:
        above.rmdir()
        pytest.skip("/dev/shm is no other file system here")
    yield above
    shutil.rmtree(above)


def drop_box(workplace: Workplace, above: Path) -> tuple[Path, Path]:
    """Have files moved to two folders; return them."""
    done, failed = above / "done", above / "failed"
    workplace.configure("sources.inbox.done", str(done))
    workplace.configure("sources.inbox.failed", str(failed))
    return done, failed


def fill(workplace: Workplace) -> None:
    """Drop good files, half of them with a sidecar, and bad ones."""
    for number in range(GOOD):
        workplace.write(f"x/{number:02}.txt", f"A good text, number {number}.")
        if number % 2:
            workplace.write(f"x/{number:02}.txt.meta.json", json.dumps({"number": number}))
    for number in range(BAD):
        workplace.write(f"bad-{number}.txt", f"{NO_TEXT}{number}")


def contents(folder: Path) -> Counter[str]:
    """Return the texts of all files in a folder, reasons aside."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".reason.json"))
    return Counter(path.read_text() for path in paths)


def names(folder: Path) -> set[str]:
    """Return the paths of all files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_drop_box(workplace: Workplace) -> None:
    """Dropped, found, gone; failed, with its reason; mended by the configuration and a replay, or by hand."""
    done, failed = drop_box(workplace, workplace.root)
    workplace.configure("limits.max_chunks", 20)
    fill(workplace)
    workplace.write("long.txt", "\n".join(f"Line {line} is one of very many lines." for line in range(2000)))
    with workplace.daemon() as daemon:
        daemon.until_settled(GOOD + BAD + 1)
        wait_for(lambda: names(workplace.inbox) == set(), "all files are moved")
        expected = {f"x/{number:02}.txt" for number in range(GOOD)}
        assert names(done) == expected | {f"x/{number:02}.txt.meta.json" for number in range(1, GOOD, 2)}
        bad = {f"bad-{number}.txt" for number in range(BAD)} | {"long.txt"}
        assert names(failed) == bad | {f"{name}.reason.json" for name in bad}
        assert {f"inbox/{name}" for name in expected} == workplace.documents()
        letters = {letter["document_id"]: letter for letter in workplace.letters()}
        reason = json.loads((failed / "bad-0.txt.reason.json").read_text())
        letter = letters["inbox/bad-0.txt"]
        same = {"document_id", "stage", "error", "message", "attempts"}
        assert {key: reason[key] for key in same} == {key: letter[key] for key in same}
        assert reason["dead_letter"] == letter["id"]
        assert len(reason["configuration"]) == 64
        assert daemon.check("inbox:moves")["ok"]  # type: ignore[index]
        assert metric(daemon, "ingestd_source_unmoved_files") == 0

        workplace.write("x/00.txt", "A newer text of the same name.")
        shutil.move(failed / "bad-1.txt", workplace.inbox / "bad-1.txt")
        workplace.write("bad-2.txt", "Now this is a text.")
        daemon.until_settled(GOOD + BAD + 4)
        wait_for(lambda: names(workplace.inbox) == set(), "all files are moved")
        assert {"x/00.1.txt", "bad-2.txt"} <= names(done)
        assert {"bad-1.txt", "bad-2.txt"} <= names(failed)
        assert daemon.totals["deleted"] == 0
        assert daemon.stop() == 0

    workplace.configure("limits.max_chunks", 20_000)
    assert workplace.once()["accepted"] == 0
    long = str(letters["inbox/long.txt"]["id"])
    assert workplace.ask("dead-letters", "replay", long, "--json").json == {"replayed": 1, "left": []}
    totals = workplace.once()
    assert (totals["accepted"], totals["written"]) == (1, 1)
    assert "long.txt" in names(done)
    assert {"long.txt", "long.txt.reason.json"} & names(failed) == set()
    assert "inbox/long.txt" in workplace.documents()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_amid_a_move_is_made_up_for(workplace: Workplace, other_system: Path, moment: str) -> None:
    """SIGKILL in the worst moments: the next start moves what is left, and no file is lost."""
    done, failed = drop_box(workplace, other_system if moment in COPIES else workplace.root)
    workplace.configure("sources.inbox.exclude", ["*.tmp"])  # dot files are documents too: ours may not be
    fill(workplace)
    before = contents(workplace.inbox)
    injected = workplace.root / "injected"
    injected.mkdir()
    (injected / "sitecustomize.py").write_text(KILL + MOMENTS[moment])
    python_path = workplace.whole_environment().get("PYTHONPATH", "")
    workplace.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(injected), python_path]))
    with workplace.daemon() as daemon:
        assert daemon.wait() == -signal.SIGKILL
        workplace.until_gone()
    amid = contents(workplace.inbox) + contents(done) + contents(failed)
    assert before - amid == Counter(), "a file is lost"
    assert sum((amid - before).values()) <= 1, "more than the one that is being moved is there twice"
    assert contents(workplace.inbox)

    workplace.environment["PYTHONPATH"] = python_path
    answer = workplace.ask("run", "--once", "--json", timeout=240)
    assert answer.code in {0, 3}, answer.err[-4000:]
    assert names(workplace.inbox) == set()
    after = contents(done) + contents(failed)
    assert before - after == Counter()
    if moment not in COPIES:
        assert after == before
    assert {f"inbox/x/{number:02}.txt" for number in range(GOOD)} == workplace.documents()
    assert len([name for name in names(failed) if name.endswith(".reason.json")]) >= BAD
    assert not [name for name in names(done) | names(failed) if "/.ingestd" in f"/{name}"]
    assert all((done / name.removesuffix(".meta.json")).exists() for name in names(done)), "a sidecar is alone"


def _after(daemon: Daemon, seconds: float) -> None:
    until = time.monotonic() + seconds
    daemon.until(lambda: time.monotonic() >= until, "the moment of the kill")


@pytest.mark.long
def test_nothing_is_lost_whenever_the_daemon_is_killed(workplace: Workplace) -> None:
    """Files and newer ones of their names are dropped, and the daemon is killed again and again."""
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")  # shown when the test fails
    draw = random.Random(seed)
    done, _failed = drop_box(workplace, workplace.root)
    workplace.configure("sources.inbox.settle_seconds", 0.1)
    workplace.configure("embedding.window", 8)
    last: dict[str, str] = {}
    dropped: set[str] = set()
    for round_ in range(4):
        for number in draw.sample(range(40), 25):
            text = last[f"{number:02}.txt"] = f"Text {number} of round {round_}."
            dropped.add(text)
            ready = workplace.root / "ready"
            ready.write_text(text)
            ready.replace(workplace.inbox / f"{number:02}.txt")
        with workplace.daemon() as daemon:
            daemon.until_said("ready")
            daemon.until(lambda: daemon.totals.get("accepted", 0) > 0, "it has begun")
            _after(daemon, draw.uniform(0.0, 1.5))
            daemon.kill()
            workplace.until_gone()
    workplace.once()
    assert names(workplace.inbox) == set()
    rows = {row.document_id.removeprefix("inbox/"): row.text for row in workplace.rows()}
    assert rows == last
    there = contents(done)
    assert set(last.values()) <= there.keys() <= dropped
    assert set(there.values()) == {1}
