"""What a scene of the fault campaign stands on: events, a daemon that comes and goes, and the comparison at the end.

A scene is called with a wish, a folder of its own, a seeded draw and a report, and returns its figures. It makes a
``Ground``, issues events with ``Ground.work``, injects its faults, and says after each ``Ground.until_whole(since)``:
the system then has ``RECOVERY`` seconds to be idle and equal to the events' fold, in all of Milvus. At its end it
calls ``Ground.finish``, which holds everything against everything and fails when too little happened.

The daemon is the real one, as a process. What a fault needs inside of it is brought in by ``Ground.patch``, through
Python's own ``sitecustomize``, so that the daemon's code knows nothing of tests.
"""

from __future__ import annotations

import os
import random  # noqa: TC003 - a scene's signature, for whoever reads it
import signal
import time
import tomllib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tests.campaigns.faults.events import Documents
from tests.campaigns.faults.kafka_events import Records
from tests.campaigns.faults.oracle import Differences, UnequalError, compare, stored
from tests.fixtures.daemon import COLLECTION, Workplace, wait_for, workplace_in

from ingestd.milvus.lite import Lite, running
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.campaigns.faults.oracle import Held, Stored
    from tests.fixtures.daemon import Daemon

ROOT = Path(__file__).parents[3]
RECOVERY = 30.0
"""Seconds from a fault's end within which Milvus holds what it should, on a machine that has nothing else to do."""
ENDS = ("written", "deleted", "unchanged", "superseded", "dead_lettered", "retrying", "in_flight")
"""What an accepted event is, one of."""
SETTLED = "nothing in flight or waiting, and Milvus equal to the events' fold"
_SITE = '''\
"""Brings what the campaign needs into the daemon, before anything of it is imported; its children are left alone."""
import os, sys, traceback
from pathlib import Path
if sys.orig_argv[1:4] == ["-m", "ingestd", "run"]:
    for path in sorted(Path(__file__).parent.glob("patch_*.py")):
        try:
            exec(compile(path.read_text(), str(path), "exec"), {"__name__": path.stem, "__file__": str(path)})
        except BaseException:
            traceback.print_exc()  # Python itself would go on without
            os._exit(70)
'''


class Report(Protocol):
    """Takes what a step says."""

    def __call__(self, step: str, **said: object) -> None:
        """Take it."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What a campaign is asked for."""

    times: float = 1.0
    """Every scene does its faults so many times as often as it does by itself."""
    seed: int = 0
    without: Mapping[str, str] = field(default_factory=dict)
    """What is taken out of all daemons: a name, and the code for ``Ground.patch`` that does it."""
    patience: float = 1.0
    """What is to happen within some seconds may take so many times as long: a machine may have other things to do."""
    models: str = "hashing"
    """Or ``quickstart``: the real models of config/quickstart.toml, for scenes that can have them."""

    def count(self, number: int, least: int = 1) -> int:
        """Return how often something is to be done that a scene does so often by itself."""
        return max(least, round(number * self.times))


@dataclass(frozen=True, slots=True)
class Figures:
    """What a scene shows: one line of the table at the end."""

    faults: int
    events: int
    missing: int = 0
    stale: int = 0
    orphan: int = 0
    duplicate: int = 0
    recovery_seconds: float = 0.0
    """The longest, from a fault's end."""
    note: str = ""
    """What else is worth knowing, in one line."""


class Scene(Protocol):
    """Injects faults while traffic flows, and shows that nothing came of them.

    What a draw says is all that differs from run to run: the same seed gives the same events and the same faults, as
    far as threads and clocks allow.
    """

    def __call__(self, wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
        """Play it. Raises AssertionError where a claim does not hold, or too little happened."""
        ...


class Ground:
    """The place of one scene. Made by ``ground``.

    Args:
        wish: What is asked for.
        workplace: Where the daemon runs; its settings may be changed before ``start``.
        documents: The folder's events.
        records: The topic's; None: there is none.
        uri: A Milvus that is no child of the daemon's; None: its own Lite.
        stack: Ends everything, at the scene's end.
    """

    def __init__(
        self,
        wish: Wish,
        workplace: Workplace,
        documents: Documents,
        records: Records | None,
        *,
        uri: str | None,
        stack: ExitStack,
    ) -> None:
        self.wish = wish
        self.workplace = workplace
        self.documents = documents
        self.records = records
        self.uri = uri
        self.stack = stack
        self.faults = 0
        """Injected so far; a scene counts them, those that were seen to have happened alone."""
        self.recoveries: list[float] = []
        """Seconds that each recovery took."""
        self.found = Differences()
        """What the last comparison found."""
        self._daemon: Daemon | None = None

    @property
    def daemon(self) -> Daemon:
        """The daemon that was started last."""
        assert self._daemon is not None, "none was started"
        return self._daemon

    @property
    def events(self) -> int:
        """The number of events that were issued."""
        return self.documents.number + (0 if self.records is None else self.records.number)

    @property
    def expected(self) -> dict[str, Held]:
        """What has to be in Milvus, by document: of the folder, and of the topic, whose documents are others."""
        return self.documents.expected if self.records is None else self.documents.expected | self.records.expected()

    def work(self, count: int) -> None:
        """Issue so many events: half of them in the topic, if there is one."""
        half = 0 if self.records is None else count // 2
        self.documents.do(count - half)
        if self.records is not None:
            self.records.do(half)

    def patch(self, name: str, code: str) -> None:
        """Have daemons run some code, from the next start on, before anything of theirs is imported.

        If it raises, the daemon ends with 70: code that wraps a function which is gone must say so.

        Args:
            name: An identifier; the same name again replaces it.
            code: Python.
        """
        folder = self.workplace.root / "patches"
        folder.mkdir(exist_ok=True)
        (folder / f"patch_{name}.py").write_text(code)
        (folder / "sitecustomize.py").write_text(_SITE)
        paths = [str(folder), os.environ.get("PYTHONPATH", "")]
        self.workplace.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def unpatch(self, name: str) -> None:
        """Leave some code out, from the next start on."""
        (self.workplace.root / "patches" / f"patch_{name}.py").unlink()

    def start(self, *arguments: str) -> Daemon:
        """Start the daemon; what is left of it is killed at the scene's end, and not before."""
        self._daemon = self.stack.enter_context(self.workplace.daemon(*arguments))
        return self._daemon

    def kill(self) -> None:
        """Kill the daemon's own process, and nothing else of it."""
        self.daemon.kill()

    def stop(self) -> None:
        """Ask the daemon to end, and wait until it has; the exit code has to be 0."""
        code = self.daemon.stop()
        assert code == 0, f"exit {code}:\n{self.daemon.log[-4000:]}"

    def look(self) -> dict[str, int]:
        """Return the running daemon's totals, having added them up; nothing while it starts."""
        totals = self.daemon.totals
        if totals:
            assert totals["accepted"] == sum(totals[name] for name in ENDS), totals
        return totals

    def rows(self) -> dict[str, list[Stored]]:
        """Return all that Milvus holds, by document. While no daemon runs its Lite is opened by one of our own."""
        collections = list(self.workplace.settings["collections"])
        uri = self.uri or running(self.workplace.state / "milvus.json")
        if uri is not None:
            return stored(uri, collections)
        lite = Lite(self.workplace.milvus, self.workplace.root / "reader.json")
        try:
            return stored(lite.start(), collections)
        finally:
            lite.close()

    def until_whole(self, since: float, seconds: float = RECOVERY) -> float:
        """Wait until the running daemon is idle and Milvus holds what it should; return the seconds that it took.

        Args:
            since: When the fault ended, in the terms of ``time.monotonic``.
            seconds: The most that it may take from there, where the wish is for no patience.

        Raises:
            UnequalError: It does not, and what differs.
        """
        seconds *= self.wish.patience
        until = since + seconds
        while True:
            self.daemon.until(lambda: True, "it has not ended by itself")
            idle = self._is_idle()
            self.found = self._differences() if idle else self.found
            if idle and not self.found and self._is_idle():
                break
            if time.monotonic() > until:
                # Once more, whatever it is doing: a daemon that is never idle has to be told from rows that are wrong.
                self.found = self._differences()
                raise UnequalError(f"not within {seconds:g} s ({SETTLED}); {self.daemon.totals}", self.found)
            time.sleep(0.3)
        took = time.monotonic() - since
        self.recoveries.append(took)
        self.documents.seen()
        return took

    def audit(self) -> int:
        """Wait until the running daemon is idle, and have an audit mend; return how many differences it found."""
        self.daemon.until(self._is_idle, "it is idle", RECOVERY * self.wish.patience)
        answer = self.workplace.ask("audit", "--repair", "--json")
        assert answer.code in {0, 4}, answer.err
        return len(answer.json["differences"])

    def check_covered(self) -> None:
        """Check, at any moment, that no document is missing in part that was there and is only being replaced.

        Reads Milvus as it is: for scenes whose Milvus outlives the daemon.
        """
        gone = self.documents.uncovered(self.rows())
        if gone:
            raise UnequalError("missing while they are replaced", Differences(missing=gone))

    def letters(self) -> list[dict[str, Any]]:
        """Return all dead letters."""
        return self.workplace.letters()

    def check_letters(self) -> int:
        """Check that the dead letters are the poison, and nothing else; return how many there are."""
        letters = self.letters()
        inbox = {letter["document_id"] for letter in letters if letter["source"] == "inbox"}
        dead = self.documents.dead
        assert dead == inbox, f"poison without a letter: {dead - inbox}; letters without poison: {inbox - dead}"
        if self.records is not None:
            self.records.check_letters([letter for letter in letters if letter["source"] != "inbox"])
        return len(letters)

    def check_state(self) -> None:
        """Check the state of a daemon that has ended: readable, nothing parked, nothing doubtful."""
        clock: Any = time  # has the two functions that a clock has
        store = SqliteStore.read_only(self.workplace.state, clock=clock)
        try:
            assert not store.parked(), "events wait though nothing failed"
            doubtful = [
                entry.key.document_id
                for collection in self.workplace.settings["collections"]
                for entry in store.collection_entries(collection)
                if entry.doubtful
            ]
            assert not doubtful, f"the ledger is not sure of {doubtful[:20]}"
        finally:
            store.close(clean=False)

    def finish(self, *, faults: int, events: int, note: str = "") -> Figures:
        """End the daemon, work off what is left, hold all against all, and return the figures.

        Args:
            faults: The fewest that have to have happened.
            events: The fewest that have to have been issued.
            note: For the table.

        Raises:
            UnequalError: Milvus does not hold what it should.
        """
        if self._daemon is None or not self._daemon.runs:
            self._once()
        else:
            self.until_whole(time.monotonic())
            self.stop()
        again = self._once()
        assert again["chunks_embedded"] == 0, f"a run embeds what is there: {again}"
        self.found = self._differences()
        if self.found:
            raise UnequalError("after the last run", self.found)
        self.check_letters()
        self.check_state()
        if self.records is not None:
            self.records.check_committed()
        assert self.faults >= faults, f"too little happened: {self.faults} faults, and {faults} were wanted"
        assert self.events >= events, f"too little happened: {self.events} events, and {events} were wanted"
        return self.figures(note)

    def figures(self, note: str = "") -> Figures:
        """Return the figures as they are."""
        found = self.found
        return Figures(
            faults=self.faults,
            events=self.events,
            missing=len(found.missing),
            stale=len(found.stale),
            orphan=len(found.orphan),
            duplicate=len(found.duplicate),
            recovery_seconds=round(max(self.recoveries, default=0.0), 1),
            note=note,
        )

    def _once(self) -> dict[str, int]:
        """Work off what is there, and return the totals, having added them up."""
        answer = self.workplace.ask("run", "--once", "--json", timeout=600)
        assert answer.code in {0, 3}, f"exit {answer.code}\n{answer.err[-4000:]}"
        totals = answer.totals
        assert totals["accepted"] == sum(totals[name] for name in ENDS), totals
        assert totals["in_flight"] == totals["retrying"] == 0, totals
        return totals

    def _is_idle(self) -> bool:
        if not self.daemon.said("ready"):
            return False
        totals = self.look()
        return bool(totals) and not totals["in_flight"] and not totals["retrying"]

    def _differences(self) -> Differences:
        return compare(self.expected, self.rows())


@contextmanager
def ground(
    wish: Wish,
    folder: Path,
    draw: random.Random,
    *,
    kafka: Literal["tansu", "noida"] | None = None,
    uri: str | None = None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Ground]:
    """Make the place of one scene.

    Args:
        wish: What is asked for.
        folder: For everything.
        draw: For the events.
        kafka: The broker of a topic (``Records``); None: there is a folder alone.
        uri: A Milvus that the scene runs; None: the daemon's own Lite.
        settings: Keys of the configuration that are otherwise, ``{"embedding.window": 16}``.
    """
    with ExitStack() as stack:
        workplace = stack.enter_context(workplace_in(folder / "place"))
        # Small chunks and windows: a document is several of them, so that there is a middle to be hit in.
        workplace.configure(f"collections.{COLLECTION}.chunker.max_tokens", 60)
        workplace.configure("embedding.window", 16)
        workplace.configure("embedders.hash.dimension", 64)
        workplace.configure("sources.inbox.settle_seconds", 0.2)
        workplace.configure("sources.inbox.rescan_seconds", 5)
        workplace.configure("sources.inbox.mass_delete", {"documents": 1_000_000})
        if wish.models == "quickstart":
            quickstart = tomllib.loads((ROOT / "config" / "quickstart.toml").read_text())
            workplace.settings["embedders"] |= quickstart["embedders"]
            workplace.settings["collections"][COLLECTION]["vectors"] = quickstart["collections"]["articles"]["vectors"]
        records = None
        if kafka is not None:
            records = Records(folder / "broker", draw.randrange(2**32), kafka)
            stack.callback(records.close)
            records.configure(workplace)
        if uri is not None:
            workplace.configure("milvus.uri", uri)
        for key, value in (settings or {}).items():
            workplace.configure(key, value)
        place = Ground(wish, workplace, Documents(workplace.inbox, draw), records, uri=uri, stack=stack)
        for name, code in wish.without.items():
            place.patch(f"without_{name}", code)
        yield place


def pause(seconds: float, place: Ground) -> None:
    """Let time pass, for a fault that is one of time; the daemon must not end by itself meanwhile."""
    until = time.monotonic() + seconds
    place.daemon.until(lambda: time.monotonic() >= until, f"{seconds:g} s have gone by", seconds + 30)


def signalled(daemon: Daemon, number: signal.Signals = signal.SIGKILL, seconds: float = 60.0) -> None:
    """Wait until a daemon has ended by a signal that it sent itself.

    Raises:
        AssertionError: It ended otherwise, or it did not.
    """
    wait_for(lambda: not daemon.runs, f"it ends by {number.name}\n{daemon.log[-2000:]}", seconds)
    code = daemon.wait()
    assert code == -number, f"it ended with {code}, and not by {number.name}:\n{daemon.log[-4000:]}"


def at_points(points: Sequence[str], times: int, draw: random.Random) -> list[str]:
    """Return each of some points so many times, in an order of the draw's."""
    found = [point for point in points for _ in range(times)]
    draw.shuffle(found)
    return found
