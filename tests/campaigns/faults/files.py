"""Files that misbehave while others come and go: writers that take their time, storms, folders that vanish, traps.

A whole daemon watches the folder, and ``flowing`` goes on creating, editing, renaming and deleting documents in it
while a scene does its worst beside them. What a scene puts into the folder itself it adds to what is expected, so that
the comparison of all of Milvus covers it as well: a text that was read half, or from outside, is stale or an orphan.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families
from tests.campaigns.faults.events import Documents
from tests.campaigns.faults.ground import Figures, Ground, Report, Scene, Wish, ground, pause
from tests.campaigns.faults.oracle import Held
from tests.campaigns.faults.traffic import flowing
from tests.fixtures.daemon import wait_for

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SETTLE = 3.0
"""Seconds for which a file has to be still."""
NEVER = 3600
"""Seconds between two scans, where something else has to find out."""
LATE = 120.0
"""Seconds for a daemon to notice, on a machine that is busy."""
STORM = 20_000
SECRET = "What is outside of the folder is nobody's business."
SLOW_READS = """\
import time
from ingestd.sources import _payload
read = _payload._read_up_to

def slow(descriptor, limit):
    if limit > 20_000:
        time.sleep(0.4)  # between the first look and the reading, or the writer would never come in between
    return read(descriptor, limit)

_payload._read_up_to = slow
"""
WITHOUT = {
    # A file is read the moment that it is seen.
    "settling": """\
from ingestd.sources._agenda import Settling
Settling.rests_at = lambda self, document, found, *, closed, wall, now: now
""",
    # The watcher is believed: that it lost something leads to nothing.
    "rescan": """\
from ingestd.sources._watch import Hints
def overflow(self):
    self._overflows += 1
assert Hints._overflow
Hints._overflow = overflow
""",
    # Symlinks are followed, wherever they lead.
    "inside": """\
from ingestd.sources import _scan, _tree, folder
tree = folder.Tree
folder.Tree = lambda root, globs, recursive, follow: tree(root, globs, recursive, True)
assert _tree._require_inside and _tree.inside and _scan.inside
_tree._require_inside = lambda root, descriptor, name: None
_tree.inside = _scan.inside = lambda root, descriptor: True
""",
    # Deletes go through, however many there are at once.
    "guard": """\
from ingestd.sources._guard import DeleteGuard
assert DeleteGuard.allows
DeleteGuard.allows = lambda self, gone, known, now: True
""",
}
TEETH = {
    "settling": "writers",
    "rescan": "overflow",
    "inside": "traps",
    "guard": "mounts",
}


def writers(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Files that grow for seconds, that are written anew while they are read, that drop in by a rename."""
    count = wish.count(8, 2)
    settings = {"sources.inbox.settle_seconds": SETTLE, "sources.inbox.rescan_seconds": 1}
    with ground(wish, folder, draw, settings=settings) as place:
        place.patch("slow_reads", SLOW_READS)
        place.work(10)
        place.start()
        place.daemon.until_ready()
        with flowing(place) as traffic:
            for number in range(count):
                with _growing(place.workplace.inbox, [f"slow-{number}-{at}.txt" for at in range(3)]) as texts:
                    pause(SETTLE + 1.5, place)
                    seen = {f"inbox/{name}" for name in texts} & place.rows().keys()
                    assert not seen, f"read while it was being written: {seen}"
                for name, text in texts.items():
                    _expect(place, traffic, name, text)
                _drop_in(place, traffic, f"dropped-{number % 3}.txt", "".join(_text(draw, 6)))
                _cut(place, traffic, f"cut-{number}.txt", draw)
                place.faults += 5
        report("written", seconds=place.until_whole(time.monotonic()), totals=place.look())
        return place.finish(faults=5 * count, events=10 + 10 * count)


def overflow(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Inotify's queue runs over, and no scan is due for an hour; then 20,000 files in half a second."""
    count = wish.count(3)
    with ground(wish, folder, draw, settings={"sources.inbox.rescan_seconds": NEVER}) as place:
        place.work(20)
        place.start()
        place.daemon.until_ready()
        place.until_whole(time.monotonic())
        for _ in range(count):
            before = _overflows(place)
            place.daemon.send(signal.SIGSTOP)
            _flood(place.workplace.inbox)
            place.work(30)
            place.daemon.send(signal.SIGCONT)
            since = time.monotonic()
            wait_for(partial(_overflowed, place, before), "events were lost", LATE)
            place.faults += 1
            report("overflow", seconds=place.until_whole(since))
        if wish.times < 1:
            return place.finish(faults=count, events=20 + 30 * count)
        storm = _storm(place, STORM)
        place.faults += 1
        report("storm", files=STORM, made_in=storm, settled_after=place.until_whole(time.monotonic(), 1200))
        place.recoveries.pop()  # that much work takes its time
        return place.finish(faults=count + 1, events=20 + 30 * count)


def watches(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """A user may have fewer watches than there are directories: the daemon says so, and scans find everything."""
    settings = {"sources.inbox.rescan_seconds": 2}
    with ground(wish, folder, draw, settings=settings) as place:
        for number in range(20):
            place.documents.create(f"{draw.choice('abc')}/deep-{number}/d.txt")
        limited = 'echo 3 > /proc/sys/user/max_inotify_watches && exec "$@"'
        place.workplace.prefix = ("unshare", "--user", "--map-root-user", "sh", "-c", limited, "sh")
        place.start()
        place.daemon.until(lambda: not _is_well(place, "watch"), "it says that not all is watched", LATE)
        place.faults += 1
        for _ in range(wish.count(4)):
            for _ in range(10):
                deep = f"{draw.choice('abc')}/new-{place.events}/d.txt"
                place.documents.create(deep)
                place.work(1)
            report("limit", seconds=place.until_whole(time.monotonic()))
        assert "inotify watch limit" in str(place.daemon.check("inbox:watch"))
        return place.finish(faults=1, events=20 + 20 * wish.count(4))


def roots(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The watched folder is deleted and made again, moved away and back, or replaced by another."""
    count = wish.count(4)
    # What is absent after that waits for another scan: a folder that came back may be still being filled.
    settings = {"sources.inbox.rescan_seconds": 8}
    with ground(wish, folder, draw, settings=settings) as place:
        inbox, away = place.workplace.inbox, folder / "away"
        place.work(20)
        place.start()
        place.daemon.until_ready()
        place.until_whole(time.monotonic())
        for number in range(count):
            for way in ("deleted", "moved", "replaced"):
                if way == "replaced":
                    inbox.rename(away)
                    shutil.copytree(away, inbox)
                    shutil.rmtree(away)
                else:
                    if way == "deleted":
                        shutil.copytree(inbox, away)
                        shutil.rmtree(inbox)
                    else:
                        inbox.rename(away)
                    place.daemon.until(lambda: not _is_well(place, "root"), "it says that the folder is gone", LATE)
                    missing = place.documents.expected.keys() - place.rows().keys()
                    assert not missing, f"deleted with the folder: {missing}"
                    away.rename(inbox)
                since = time.monotonic()
                place.faults += 1
                with flowing(place, 0.05):
                    pause(1.5, place)
                report(way, number=number, seconds=place.until_whole(since))
                place.daemon.until(lambda: _is_well(place, "root") and _is_well(place, "watch"), "it is well", LATE)
        return place.finish(faults=3 * count, events=20 + 20 * count)


def mounts(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The disk under the folder is unmounted, so that the folder is there and empty, and mounted again."""
    count = wish.count(5)
    settings = {"sources.inbox.mass_delete": {"documents": 10}, "sources.inbox.rescan_seconds": 2}
    with ground(wish, folder, draw, settings=settings) as place:
        inbox, disk = place.workplace.inbox, folder / "disk"
        disk.mkdir()
        place.documents = Documents(disk, draw)
        bound = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        place.workplace.prefix = ("unshare", "-m", "sh", "-c", bound, "sh", str(disk), str(inbox))
        for _ in range(30):
            place.documents.create()
        place.start()
        place.daemon.until_ready()
        place.until_whole(time.monotonic())
        for number in range(count):
            before = set(place.documents.expected)
            _inside(place, "umount", "--lazy", str(inbox))
            place.daemon.until(lambda: not _is_well(place, "deletes"), "the deletes are held", LATE)
            place.work(5)
            missing = before - place.rows().keys()
            assert not missing, f"deleted with the mount: {missing}"
            _inside(place, "mount", "--bind", str(disk), str(inbox))
            since = time.monotonic()
            place.faults += 1
            report("mount", number=number, seconds=place.until_whole(since))
            place.daemon.until(lambda: _is_well(place, "deletes"), "nothing is held any more", LATE)
        return place.finish(faults=count, events=30 + 5 * count)


def traps(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Symlinks out of the folder, FIFOs in the place of files, swapped directories, rights that come and go."""
    count = wish.count(4)
    with ground(wish, folder, draw, settings={"sources.inbox.rescan_seconds": 1}) as place:
        if os.geteuid() == 0:  # root may read everything, unless it gives that up
            place.workplace.prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        inbox, outside = place.workplace.inbox, folder / "outside"
        outside.mkdir()
        for name in ("secret.txt", "d.txt"):
            (outside / name).write_text(SECRET)
        place.work(20)
        place.start()
        place.daemon.until_ready()
        for number in range(count):
            with flowing(place) as traffic:
                (inbox / f"link-{number}.txt").symlink_to(outside / "secret.txt")
                (inbox / f"links-{number}").symlink_to(outside)
                (inbox / f"hard-{number}.txt.meta.json").symlink_to(outside / "secret.txt")
                os.mkfifo(inbox / f"pipe-{number}.txt")
                # Of its own, which the traffic knows nothing of.
                swapped, piped = f"swap-{number}/d.txt", f"to-be-piped-{number}.txt"
                closed, shut = f"closed-{number}.txt", f"shut-{number}/d.txt"
                for name in (swapped, piped, closed, shut):
                    text = "".join(_text(draw, 5))
                    place.workplace.write(name, text)
                    _expect(place, traffic, name, text)
                (inbox / closed).chmod(0)
                (inbox / shut).parent.chmod(0)
                _swap(inbox, swapped, outside)
                (inbox / piped).rename(inbox / f"moved-{number}.txt")
                os.mkfifo(inbox / piped)
                wait_for(partial(_is_letter, place, closed), "what may not be read is a letter", LATE)
                place.daemon.until(lambda: not _is_well(place, "directories"), "what is shut is said", LATE)
                found = [name for name, rows in place.rows().items() if any(SECRET in row.text for row in rows)]
                assert not found, f"read from outside of the folder: {found}"
                (inbox / piped).unlink()
                (inbox / f"moved-{number}.txt").rename(inbox / piped)
                (inbox / closed).chmod(0o644)
                (inbox / shut).parent.chmod(0o755)
                (inbox / swapped).parent.unlink()
                (inbox / f"swapped-{number}").rename((inbox / swapped).parent)
                place.faults += 8
                # On a fast machine a round is over before much has flowed.
                wait_for(lambda wanted=24 + 4 * number: place.events >= wanted, "events flow", LATE)  # type: ignore[misc]
            report("traps", number=number, seconds=place.until_whole(time.monotonic()))
        return place.finish(faults=8 * count, events=20 + 4 * count)


SCENES: dict[str, Scene] = {
    "writers": writers,
    "overflow": overflow,
    "watches": watches,
    "roots": roots,
    "mounts": mounts,
    "traps": traps,
}


@contextmanager
def _growing(inbox: Path, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Have files grow, a line at a time, while the body runs, and closed at its end; yield what is in them."""
    texts, over = dict.fromkeys(names, ""), threading.Event()

    def run() -> None:
        with ExitStack() as stack:
            files = {name: stack.enter_context((inbox / name).open("w")) for name in names}
            while not over.wait(0.2):
                for name, file in files.items():
                    line = f"Line {len(texts[name])} of {name}, that is written by and by.\n"
                    texts[name] += line
                    file.write(line)
                    file.flush()

    thread = threading.Thread(target=run, name="writer")
    thread.start()
    try:
        yield texts
    finally:
        over.set()
        thread.join()


def _text(draw: random.Random, lines: int) -> list[str]:
    return [f"Line {at} of {draw.randrange(10**9)}, that was written by and by.\n" for at in range(lines)]


def _expect(place: Ground, traffic: threading.Lock, name: str, text: str) -> None:
    """Add a file without a sidecar to what has to be there."""
    with traffic:
        place.documents.expected[f"inbox/{name}"] = Held(text, {})


def _drop_in(place: Ground, traffic: threading.Lock, name: str, text: str) -> None:
    """Have a file appear whole, by a rename from outside of the folder, the second time over the first."""
    made = place.workplace.root / "made.txt"
    made.write_text(text)
    made.rename(place.workplace.inbox / name)
    _expect(place, traffic, name, text)


def _cut(place: Ground, traffic: threading.Lock, name: str, draw: random.Random) -> None:
    """Write a file, and write it anew while it is being read: shorter first, and then as long as it was."""
    path = place.workplace.inbox / name
    first, second = (_text(draw, 500) for _ in range(2))
    path.write_text("".join(first))
    accepted = place.look()["accepted"]
    wait_for(lambda: place.look()["accepted"] > accepted, "an event came in", LATE)
    with path.open("r+") as file:
        file.truncate(1000)
        pause(0.2, place)
        file.seek(0)
        file.writelines(second)
        file.truncate()
    _expect(place, traffic, name, "".join(second))


def _flood(inbox: Path) -> None:
    """Fill inotify's queue with what matters to nobody: names that are left out."""
    for number in range(8_000):
        path = inbox / f"flood-{number % 7}.tmp"
        path.touch()
        path.unlink()


def _storm(place: Ground, count: int) -> float:
    """Make many small files as fast as it goes; return the seconds that it took."""
    inbox = place.workplace.inbox
    for number in range(count // 1000):
        (inbox / f"storm-{number}").mkdir()
    began = time.monotonic()
    for number in range(count):
        name = f"storm-{number // 1000}/{number}.txt"
        descriptor = os.open(inbox / name, os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"Drop %d." % number)
        os.close(descriptor)
        place.documents.expected[f"inbox/{name}"] = Held(f"Drop {number}.", {})
    return round(time.monotonic() - began, 2)


def _swap(inbox: Path, name: str, outside: Path) -> None:
    """Put a symlink that leads outside into the place of a document's directory."""
    directory = (inbox / name).parent
    directory.rename(inbox / directory.name.replace("swap", "swapped"))
    directory.symlink_to(outside)


def _is_well(place: Ground, check: str) -> bool:
    found = place.daemon.check(f"inbox:{check}")
    return found is not None and bool(found["ok"])


def _overflowed(place: Ground, before: float) -> bool:
    return _overflows(place) > before


def _is_letter(place: Ground, name: str) -> bool:
    return any(letter["document_id"] == f"inbox/{name}" for letter in place.letters())


def _overflows(place: Ground) -> float:
    for family in text_string_to_metric_families(place.daemon.get("/metrics")[1]):
        for sample in family.samples:
            if sample.name == "ingestd_source_watcher_overflows_total":
                return float(sample.value)
    return 0.0


def _inside(place: Ground, *command: str) -> None:
    """Run a command among the daemon's mounts, which are nobody else's."""
    subprocess.run(
        ["nsenter", "-t", str(place.daemon.pid), "-m", *command], check=True, capture_output=True, timeout=30
    )
