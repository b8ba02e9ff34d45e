"""SIGKILL of the daemon: at every named point of an event's way, and at random moments.

``inside`` is brought into the daemon and kills it from there, at a passage of a point that the draw says; the marker
that it leaves is what counts as a kill. Each kill is followed by another start, at once, while what the last daemon
left is still ending, or after all of it is gone; and by events about the very documents that it died over. After a few
kills the system recovers, and all of Milvus is compared: a fault is found near its cause.

Half of the kills are of a daemon with its own Milvus Lite, which ends with it. In the other half Milvus outlives the
daemon: there it is also looked at right after each kill, before anything mends what is not as it should be. A document
that is only being replaced must be there then too.
"""

from __future__ import annotations

import inspect
import shutil
import signal
import statistics
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from tests.campaigns.faults import inside
from tests.campaigns.faults.ground import Figures, Report, Scene, Wish, at_points, ground, signalled
from tests.campaigns.kafka_ground import WITHOUT as KAFKA_WITHOUT
from tests.fixtures.daemon import wait_for
from tests.fixtures.lite_server import LiteServer

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.campaigns.faults.ground import Ground
    from tests.fixtures.daemon import Daemon

TIMES = 20
"""Kills at each point."""
RANDOM = 500
CHAIN = 5
"""Kills between two comparisons."""
MODELS = 10
"""Kills of a daemon with real models."""
REACHED = 90.0
"""Seconds within which traffic brings a daemon to a point."""
GROUPS = {
    "reading": ("read", "extracted", "chunked", "embedded"),
    "writing": (
        "upsert-before",
        "upsert-sent",
        "upsert-applied",
        "upsert-between",
        "upsert-after",
    ),
    "deleting": ("delete-before", "delete-after"),
    "settling": (
        "ahead-before-commit",
        "ahead-after-commit",
        "settle-before-commit",
        "settle-after-commit",
        "offset-before-commit",
        "letter-written",
    ),
}
"""The named points, by scene. All commits of the state are among the last: without what they store, the others are
still passed (``TEETH``)."""
PLACES = ("server", "own")
"""A Milvus that outlives the daemon, and the daemon's own."""
START_UP, LOADING = 4.0, 20.0
"""Seconds, about, that a start takes, with hashed words and with real models."""
WITH_RECORDS = frozenset({"embedded", "offset-before-commit"})
"""Points that are about records, or among others."""
BY_DOCUMENT = frozenset({"read", "extracted", "chunked"})
"""Points that are passed once for each document; the others once for each batch."""
SETTINGS = {
    # A call of the sink is several requests, and there is always something in flight while events come.
    "milvus.batch_rows": 8,
    "embedders.hash.delay_seconds_per_text": 0.03,
    # One process less to start, again and again.
    "extraction.workers": 1,
}

WITHOUT = {
    # What is about to be touched is not noted: rows of an attempt that did not finish are known to nobody.
    "write-ahead": """\
from ingestd.stages.write import Write

class Nothing:
    def write_ahead(self, entries):
        pass

begin = Write._begin

def unsaid(self, windows):
    ledger, self._ledger = self._ledger, Nothing()
    try:
        begin(self, windows)
    finally:
        self._ledger = ledger

Write._begin = unsaid
""",
    # What is to be touched is noted as if it were done: there are no doubtful rows.
    "doubtful": """\
from dataclasses import replace
from ingestd.stages.write import Write

class Sure:
    def __init__(self, ledger, digests):
        self.ledger, self.digests = ledger, digests

    def write_ahead(self, entries):
        self.ledger.write_ahead([replace(one, present=self.digests[one.key], doubtful=frozenset()) for one in entries])

begin = Write._begin

def sure(self, windows):
    ledger = self._ledger
    self._ledger = Sure(ledger, {window.event.key: window.chunked.digests for window in windows})
    try:
        begin(self, windows)
    finally:
        self._ledger = ledger

Write._begin = sure
""",
    # Stale rows are deleted before the new ones are written.
    "order": """\
from ingestd.stages.write import Write

upsert = Write._upsert

def deleting_first(self, windows):
    self._delete([self._open[window.event.key] for window in windows if window.first])
    upsert(self, windows)

Write._upsert = deleting_first
""",
    # Offsets are committed as soon as their records are taken.
    "position": KAFKA_WITHOUT["watermarks"],
}
TEETH = {
    "write-ahead": "writing",
    "doubtful": "writing",
    "order": "deleting",
    "verification": "set-back",
    "position": "reading",
}


def _points(group: str, wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Kill at each point of a group, in both places."""
    points = at_points(GROUPS[group], wish.count(TIMES // 2), draw)
    return _together([kill_at(points, wish, folder / place, draw, report) for place in PLACES])


def kill_at(
    points: Sequence[str], wish: Wish, folder: Path, draw: random.Random, report: Report, *, chain: int = CHAIN
) -> Figures:
    """Kill at some points, one after the other.

    Args:
        points: Of ``inside.POINTS``.
        wish: What is asked for.
        folder: For everything. Its name says which of ``PLACES`` it is.
        draw: Says at which passage, and what happens meanwhile.
        report: Takes a line for each comparison.
        chain: Kills between two comparisons.
    """
    server = folder.name == "server"
    with _ground(wish, folder, draw) as place:
        starts = _Starts(place)
        place.work(30)
        starts.next()
        place.until_whole(time.monotonic(), 90)
        for begin in range(0, len(points), chain):
            place.kill()
            some = points[begin : begin + chain]
            for number, point in enumerate(some):
                _kill_at(place, starts, point, draw)
                if server:
                    place.check_covered()
                place.documents.again(2)
                if number % 2:
                    place.workplace.until_gone()
            since = time.monotonic()
            starts.next()
            place.work(3)
            seconds = round(place.until_whole(since), 1)
            report("recovered", place=folder.name, after=some, seconds=seconds, faults=place.faults)
        return place.finish(faults=len(points), events=3 * len(points), note=starts.note())


def _kill_at(place: Ground, starts: _Starts, point: str, draw: random.Random) -> None:
    """Start a daemon, have it come to a point, and die there."""
    marker = place.workplace.root / "killed"
    marker.unlink(missing_ok=True)
    passage = draw.randint(1, 10 if point in BY_DOCUMENT else 3)
    delay = draw.uniform(0.0, 0.02)
    place.patch("kill", f"{inspect.getsource(inside)}\narm({point!r}, {passage}, {delay}, {str(marker)!r})\n")

    def bring() -> None:
        if point.startswith("delete"):
            for _ in range(3):  # deletes of stale rows, more than those of documents that are gone
                place.documents.replace()
            return
        _work(place, draw, records=point in WITH_RECORDS)
        if point == "letter-written":
            place.documents.poison()

    bring()
    daemon = starts.next()

    def died() -> bool:
        if daemon.said("ready"):
            bring()
        return not daemon.runs

    _every(0.3, died, f"it comes to {point} for the {passage}. time", REACHED * place.wish.patience, daemon)
    signalled(daemon)
    assert marker.read_text() == point, f"it did not die at {point}"
    place.unpatch("kill")
    place.faults += 1


def at_random(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Kill at random moments: in the start, in the work, and in the drain; a folder and a topic."""
    times = wish.count(RANDOM // 2)
    return _together([kill_at_random(times, wish, folder / place, draw, report) for place in PLACES])


def kill_at_random(times: int, wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Kill so many times at random moments.

    Args:
        times: How often.
        wish: What is asked for.
        folder: For everything. Its name says which of ``PLACES`` it is.
        draw: Says when, and what happens meanwhile.
        report: Takes a line for each comparison.
    """
    server = folder.name == "server"
    start_up = START_UP if wish.models == "hashing" else LOADING
    with _ground(wish, folder, draw) as place:
        starts = _Starts(place)
        place.work(30)
        starts.next()
        place.until_whole(time.monotonic(), 90 + 10 * start_up)
        done = 0
        while done < times:
            place.kill()
            kinds = []
            for number in range(min(2 * CHAIN, times - done)):
                kinds.append(_kill_somewhere(place, starts, draw, start_up))
                if server:
                    place.check_covered()
                place.documents.again(2)
                if number % 2:
                    place.workplace.until_gone()
            done += len(kinds)
            since = time.monotonic()
            starts.next()
            place.work(3)
            seconds = round(place.until_whole(since), 1)
            report("recovered", place=folder.name, after=kinds, seconds=seconds, faults=place.faults)
        assert starts.at_work >= times // 4, f"too few kills at work: {starts.at_work} of {times}"
        note = f"{starts.at_work} at work; {starts.note()}"
        return place.finish(faults=times, events=2 * times, note=note)


def _kill_somewhere(place: Ground, starts: _Starts, draw: random.Random, start_up: float) -> str:
    """Start a daemon, and kill it at a moment that the draw says; return what it was at."""
    kind = draw.choices(["start", "work", "drain"], [0.25, 0.5, 0.25])[0]
    place.work(draw.randint(2, 8))
    daemon = starts.next()
    if kind == "start":
        _after(draw.uniform(0.05, 1.2) * start_up, place, draw, daemon)
    else:
        daemon.until_said("ready")
        _after(draw.uniform(0.0, 4.0), place, draw, daemon)
    if kind == "drain":
        place.work(6)
        daemon.send(signal.SIGTERM)
        until = time.monotonic() + draw.uniform(0.0, 0.5)
        wait_for(lambda: time.monotonic() >= until or not daemon.runs, "a moment of the drain", 30)
    starts.at_work += bool(daemon.said("ready") and daemon.totals.get("in_flight"))
    if not daemon.runs:
        assert daemon.wait() == 0, daemon.log[-4000:]
        kind = "after the drain"  # it was quicker: an end as it should be among the others
    daemon.kill()
    place.faults += 1
    return kind


def with_models(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Kill a daemon with the quick start's models at random moments."""
    wish = replace(wish, models="quickstart")
    return kill_at_random(wish.count(MODELS), wish, folder / "own", draw, report)


def set_back(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Kill the daemon and its Milvus, which comes back without the rows that it had acknowledged last."""
    with ground(wish, folder, draw, settings=SETTINGS) as place:
        starts = _Starts(place)
        data, kept = place.workplace.milvus, place.workplace.root / "kept"
        place.documents.do(30)
        starts.next()
        place.until_whole(time.monotonic(), 90)
        for _ in range(wish.count(5)):
            place.stop()
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(data, kept)
            starts.next()
            for _ in range(10):
                place.documents.create()
            place.until_whole(time.monotonic(), 90)
            place.kill()
            place.workplace.until_gone()
            shutil.rmtree(data)
            kept.rename(data)
            lost = len(place.expected.keys() - place.rows().keys())
            assert lost >= 5, f"too little was lost: {lost} documents"
            place.faults += 1
            since = time.monotonic()
            starts.next()
            report("recovered", lost=lost, seconds=round(place.until_whole(since), 1))
        return place.finish(faults=wish.count(5), events=30 + 10 * wish.count(5), note=starts.note())


def starting(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Kill a daemon that has nothing to do, and see how long the next takes until it is ready."""
    with ground(wish, folder, draw) as place:
        starts = _Starts(place)
        place.documents.do(100)
        starts.next()
        place.until_whole(time.monotonic(), 90)
        for _ in range(wish.count(10)):
            place.kill()
            place.workplace.until_gone()
            place.faults += 1
            since = time.monotonic()
            starts.next().until_said("ready")
            place.until_whole(since)
        report("starts", seconds=[round(seconds, 2) for seconds in starts.seconds])
        return place.finish(faults=wish.count(10), events=100, note=starts.note())


class _Starts:
    """Starts a daemon again and again, and notes how long each took.

    Args:
        place: Where.
    """

    def __init__(self, place: Ground) -> None:
        self._place = place
        self._last: tuple[float, Daemon] | None = None
        self.seconds: list[float] = []
        """From a start to ``ready``, of those that came so far."""
        self.at_work = 0
        """Kills at which something was in flight."""

    def next(self) -> Daemon:
        """Start the next one."""
        self._note()
        began = time.time()
        daemon = self._place.start()
        self._last = began, daemon
        return daemon

    def note(self) -> str:
        """Return the median of the starts."""
        self._note()
        return f"{len(self.seconds)} starts, {statistics.median(self.seconds):.1f} s in the median"

    def _note(self) -> None:
        if self._last is None:
            return
        began, daemon = self._last
        self._last = None
        for said in daemon.said("ready"):
            self.seconds.append(datetime.fromisoformat(said["timestamp"]).timestamp() - began)


@contextmanager
def _ground(wish: Wish, folder: Path, draw: random.Random) -> Iterator[Ground]:
    """Make the place of a scene of kills: a folder and a topic."""
    if folder.name == "own":
        with ground(wish, folder, draw, kafka="noida", settings=SETTINGS) as place:
            yield place
        return
    folder.mkdir(parents=True)
    beside = LiteServer(folder / "milvus")
    try:
        beside.start()
        with ground(wish, folder, draw, kafka="noida", uri=beside.uri, settings=SETTINGS) as place:
            yield place
    finally:
        beside.kill()


def _work(place: Ground, draw: random.Random, *, records: bool = False) -> None:
    """Issue some events to a daemon that runs: a folder's are cheap, a topic's take a producer each time."""
    place.documents.do(2)
    if place.records is not None and (records or draw.random() < 0.2):
        place.records.do(3)


def _after(seconds: float, place: Ground, draw: random.Random, daemon: Daemon) -> None:
    """Let time pass, with events."""
    until = time.monotonic() + seconds

    def come() -> bool:
        if time.monotonic() >= until:
            return True
        if daemon.said("ready"):
            _work(place, draw)
        return False

    _every(0.3, come, "the moment of the kill", seconds + 60, daemon)
    daemon.until(lambda: True, "it has not ended by itself")


def _every(seconds: float, come: Callable[[], bool], what: str, most: float, daemon: Daemon) -> None:
    """Ask every so often whether something has come; what is done each time is part of the asking."""
    asked = 0.0

    def due() -> bool:
        nonlocal asked
        if not daemon.runs:
            return True
        if time.monotonic() - asked < seconds:
            return False
        asked = time.monotonic()
        return come()

    wait_for(due, f"{what}\n{daemon.log[-2000:]}", most)


def _together(figures: Sequence[Figures]) -> Figures:
    return Figures(
        faults=sum(one.faults for one in figures),
        events=sum(one.events for one in figures),
        recovery_seconds=max(one.recovery_seconds for one in figures),
        note="; ".join(one.note for one in figures),
    )


def _scene(group: str) -> Scene:
    def scene(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
        return _points(group, wish, folder, draw, report)

    scene.__doc__ = f"Kill at: {', '.join(GROUPS[group])}."
    return scene


SCENES: dict[str, Scene] = {
    **{group: _scene(group) for group in GROUPS},
    "random": at_random,
    "random-models": with_models,
    "set-back": set_back,
    "starting": starting,
}
