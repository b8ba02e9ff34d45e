"""Events that come twice, in another order, or too early; and files that change places faster than anybody can look.

In the topics 30 in 100 events are there twice, 30 in 100 are moved some places from where they were issued, and of some
documents the delete is before the create. Where events bring versions of their producer's own the greatest version
counts, whatever the order; where they bring none the topic's order counts, and a copy that comes late is the latest.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.campaigns.faults.events import SIDECAR
from tests.campaigns.faults.ground import Figures, Ground, Report, Scene, Wish, ground
from tests.campaigns.faults.kafka_events import PARTITIONS, Records
from tests.campaigns.faults.oracle import Held
from tests.campaigns.kafka_ground import TOPIC
from tests.fixtures.brokers import produce

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from tests.fixtures.brokers import Record

DOCUMENTS = 60
TWICE = MOVED = 0.3
FAR = 40
"""Places that an event is moved, at most, and a copy of one comes later, at most."""
EARLY = 0.1
"""The share of documents whose delete is issued before their create."""
WITHOUT = {
    # What comes later is later, whatever its version says.
    "versions": """\
from ingestd.stages.recall import Recall
assert Recall._admit
Recall._admit = lambda self, event, entry: None
""",
}
TEETH = {"versions": "versions"}


class Issued(NamedTuple):
    """An event, with its place in the order that its producer meant."""

    document: str
    version: int
    text: str | None
    """None: a delete."""


class Disorderly(Records):
    """A topic whose records come in any order, and some twice.

    Args:
        folder: For the broker.
        draw: Of the events, and of what befalls them.
        versions: Whether each event says its version.
    """

    def __init__(self, folder: Path, draw: random.Random, *, versions: bool) -> None:
        super().__init__(folder, draw.randrange(2**32))
        self._draw = draw
        self._versions = versions
        self._last: dict[str, int] = {}
        self._latest: dict[str, Issued] = {}
        self.twice = self.moved = self.early = 0
        self._past: list[Issued] = []

    def do(self, count: int) -> None:
        """Issue so many events, and produce them as they come."""
        self._produce(self._disturbed([event for _ in range(count) for event in self._issue()]))

    def again(self) -> None:
        """Produce all that there ever was once more, in any order: of use only where versions say what is old."""
        past = list(dict.fromkeys(self._past))
        self._draw.shuffle(past)
        self.twice += len(past)
        self._produce(past)

    def expected(self) -> dict[str, Held]:
        """Return what has to be in Milvus."""
        if not self._versions:
            return super().expected()
        return {
            event.document: Held(event.text, {"n": event.version})
            for event in self._latest.values()
            if event.text is not None
        }

    def check_letters(self, letters: Iterable[Mapping[str, Any]]) -> None:
        """Check that there are none: nothing is bad about any event."""
        found = [letter["message"] for letter in letters]
        assert not found, f"dead letters of good events: {found[:5]}"

    def _issue(self) -> list[Issued]:
        draw = self._draw
        if draw.random() < EARLY:
            name = f"early-{len(self._last)}"
            self.early += 1
            return [self._event(name, 2, delete=True), self._event(name, 1, delete=False)]
        name = f"doc-{draw.randrange(DOCUMENTS)}"
        return [self._event(name, self._last.get(name, 0) + 1, delete=draw.random() < 0.2)]

    def _event(self, name: str, version: int, *, delete: bool) -> Issued:
        text = None if delete else f"Version {version} of {name}, drawn {self._draw.randrange(10**9)}."
        event = Issued(name, version, text)
        self._last[name] = max(version, self._last.get(name, 0))
        if name not in self._latest or version > self._latest[name].version:
            self._latest[name] = event
        return event

    def _disturbed(self, events: list[Issued]) -> list[Issued]:
        """Return the events as they reach the topic."""
        draw = self._draw
        places = []
        for at, event in enumerate(events):
            place: float = at
            if draw.random() < MOVED and not event.document.startswith("early"):
                place += draw.uniform(-FAR, FAR)
                self.moved += 1
            places.append((place, event))
            if draw.random() < TWICE:
                places.append((place + draw.uniform(0, FAR), event))
                self.twice += 1
        return [event for _, event in sorted(places, key=lambda placed: placed[0])]

    def _produce(self, events: list[Issued]) -> None:
        self._past += events
        records: list[Record] = []
        for event in events:
            said: dict[str, object] = {"id": event.document}
            if event.text is None:
                said["op"] = "delete"
            else:
                said |= {"text": event.text, "metadata": {"n": event.version}}
            if self._versions:
                said["version"] = event.version
            partition = sum(event.document.encode()) % PARTITIONS
            records.append((event.document.encode(), json.dumps(said).encode(), [], partition))
        for partition, offset in produce(self.broker.bootstrap, TOPIC, records):
            self._ends[partition] = max(self._ends[partition], offset + 1)
        self._expected = None


def versions(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Events with versions of their own, in any order and twice, and all of them once more at the end."""
    return _disorder(wish, folder, draw, report, versions=True)


def repeats(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The same without versions: the topic's order counts."""
    return _disorder(wish, folder, draw, report, versions=False)


def _disorder(wish: Wish, folder: Path, draw: random.Random, report: Report, *, versions: bool) -> Figures:
    count = wish.count(10)
    with ground(wish, folder, draw) as place:
        records = Disorderly(folder / "broker", draw, versions=versions)
        place.stack.callback(records.close)
        records.configure(place.workplace)
        place.records = records
        place.work(40)
        place.start()
        place.daemon.until_ready()
        for number in range(count):
            records.do(300)
            place.documents.do(5)
            if number % 3 == 1:  # what was not committed comes again
                place.daemon.until(lambda: place.look().get("in_flight"), "it is at work")
                place.kill()
                place.start()
                place.faults += 1
            report("disorder", number=number, seconds=place.until_whole(time.monotonic()))
        if versions:
            records.again()
            since = time.monotonic()
            records.check_committed(60)  # before that it may not have read them
            report("again", seconds=place.until_whole(since, 90))
        place.faults += records.twice + records.moved + records.early
        told = f"{records.twice} twice, {records.moved} moved, {records.early} deleted before they were made"
        assert min(records.twice, records.moved) > 0.2 * 300 * count, f"too little disorder: {told}"
        assert records.early > 10 * count, f"too few deletes before creates: {told}"
        return place.finish(faults=200 * count, events=300 * count, note=told)


def swaps(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Files that are renamed again and again, over one another too, and deleted and made again at once."""
    count = wish.count(15)
    with ground(wish, folder, draw, settings={"sources.inbox.rescan_seconds": 5}) as place:
        documents = place.documents
        names = [documents.create(f"swap/d{number}.txt") for number in range(40)]
        place.start()
        place.daemon.until_ready()
        for number in range(count):
            for _ in range(60):
                step = draw.random()
                name = draw.choice(names)
                if step < 0.4:
                    _change_places(place, *draw.sample(names, 2))
                elif step < 0.6:
                    documents.delete(name)
                    documents.create(name)
                elif step < 0.8:
                    names[names.index(name)] = documents.rename(name)
                else:
                    _move_over(place, name, victim := draw.choice([other for other in names if other != name]))
                    names.remove(name)
                    names.append(documents.create(f"swap/again-{place.events}-{len(victim)}.txt"))
                place.faults += 1
            report("swaps", number=number, seconds=place.until_whole(time.monotonic()))
        return place.finish(faults=60 * count, events=40 + 20 * count)


SCENES: dict[str, Scene] = {"versions": versions, "repeats": repeats, "swaps": swaps}


def _change_places(place: Ground, one: str, other: str) -> None:
    """Have two documents change their names: neither is ever written, and both are another text now."""
    inbox, documents = place.workplace.inbox, place.documents
    for ending in (SIDECAR, ""):
        aside = inbox / ".aside"
        (inbox / (one + ending)).replace(aside)
        (inbox / (other + ending)).replace(inbox / (one + ending))
        aside.replace(inbox / (other + ending))
    texts, expected = documents._texts, documents.expected
    texts[one], texts[other] = texts[other], texts[one]
    first, second = f"inbox/{one}", f"inbox/{other}"
    expected[first], expected[second] = expected[second], expected[first]
    documents.number += 2


def _move_over(place: Ground, name: str, victim: str) -> None:
    """Rename a document over another one."""
    inbox, documents = place.workplace.inbox, place.documents
    for ending in (SIDECAR, ""):
        (inbox / (name + ending)).replace(inbox / (victim + ending))
    documents._texts[victim] = documents._texts.pop(name)
    documents.expected[f"inbox/{victim}"] = documents.expected.pop(f"inbox/{name}")
    documents.number += 1
