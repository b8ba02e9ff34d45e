"""Properties of the folder source: whatever happens to a tree, what is handed in folds to what is in it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from ingestd.errors import Stopped, Superseded
from ingestd.model import DeadLetter, Event, Failure, Op, Outcome, Parked, Seen, Stage, Verdict, canonical_json
from ingestd.sources._ids import document_id, escape, path_of, unescape
from ingestd.sources.folder import Config, FolderSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from random import Random

    from ingestd import ports

names = st.sampled_from([b"a", b"b.txt", b"c%25", b"\xff\xfe", b".hidden", b"d.tmp"])
paths = st.lists(st.sampled_from([b"x", b"y", b".z"]), max_size=2).flatmap(
    lambda above: names.map(lambda name: b"/".join([*above, name]))
)
operations = st.one_of(
    st.tuples(st.just("write"), paths, st.binary(max_size=8)),
    st.tuples(st.just("sidecar"), paths, st.sampled_from([b"{}", b'{"a": 1}'])),
    st.tuples(st.just("remove"), paths, st.just(b"")),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("remove tree"), st.sampled_from([b"x", b"y", b"x/y"]), st.just(b"")),
    st.tuples(st.just("move tree"), st.sampled_from([b"x", b"y"]), st.sampled_from([b"w", b"y/v"])),
)


stamps = count(10**18)
"""Time stamps of its own for each write: the source is to see each, also where the kernel's clock ticks slowly."""


def act(root: Path, operation: tuple[str, bytes, bytes]) -> None:
    """Do something to the tree; what cannot be done (a missing file, a directory in the way) is left undone."""
    what, first, second = operation
    path = root / os.fsdecode(first)
    with suppress(OSError):
        if what in {"write", "sidecar"}:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path if what == "write" else Path(f"{path}.meta.json")
            written.write_bytes(second)
            stamp = next(stamps)
            os.utime(written, ns=(stamp, stamp))
        elif what == "remove":
            path.unlink()
        elif what == "remove tree":
            shutil.rmtree(path)
        else:
            other = root / os.fsdecode(second)
            other.parent.mkdir(parents=True, exist_ok=True)
            path.rename(other)


def fold(root: Path) -> dict[str, tuple[bytes, bytes]]:
    """Return what is in the tree, by an independent walk: id to content and sidecar (in canonical JSON)."""
    found = {}
    for directory, directories, files in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in files:
            if name.startswith(".") or name.endswith((".tmp", ".meta.json")):
                continue
            path = Path(directory, name)
            sidecar = Path(f"{path}.meta.json")
            said = sidecar.read_bytes().replace(b" ", b"") if sidecar.is_file() else b"{}"
            found[document_id("s", os.fsencode(path.relative_to(root)))] = path.read_bytes(), said
    return found


class Clock:
    """Time that passes by waiting. What a test writes is old enough to count as settled."""

    passed = 10.0

    def time(self) -> float:
        """Return seconds since 1970."""
        return time.time() + self.passed

    def monotonic(self) -> float:
        """Return seconds of a clock that only runs forward."""
        return time.monotonic() + self.passed


@dataclass
class Store:
    """What outlives a run: what is in Milvus, and what was seen of it."""

    rows: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    stats: dict[str, Seen] = field(default_factory=dict)

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """See ``ports.SeenStore``."""
        return iter(list(self.stats.values()))

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """See ``ports.SeenStore``."""
        return iter([(document, True) for document in self.rows])

    def waiting(self, owned: Collection[tuple[str, str]]) -> int:
        """See ``ports.SeenStore``."""
        return 0

    def letter(self, source: str, document_id: str, collection: str) -> DeadLetter | None:
        """See ``ports.SeenStore``."""
        return None

    def confirmed(self, source: str) -> frozenset[str]:
        """See ``ports.SeenStore``."""
        return frozenset()


@dataclass
class Scope:
    """What the source is given."""

    seen: ports.SeenStore
    clock: ports.Clock
    max_bytes: int = 1 << 20
    shared: bool = False

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the one fingerprint that there is."""
        return "same"


class Engine:
    """An intake with lanes: events end in any order between documents, in order within one, and as the test chooses.

    Args:
        store: Keeps what is written.
        clock: Runs while the source waits.
        chosen: Numbers that decide what happens next.
        between: Called at each wait; returns whether anything is still to happen to the tree.
    """

    def __init__(self, store: Store, clock: Clock, chosen: Iterator[int], between: Callable[[], bool]) -> None:
        self.store = store
        self.clock = clock
        self.chosen = chosen
        self.between = between
        self.source: FolderSource
        self.pending: list[Event] = []
        self.parked: dict[str, Parked] = {}
        self.quiet_since = clock.monotonic()
        self.submitted = self.skipped = 0

    def submit(self, event: Event) -> None:
        """Take an event; there is at most one of a document from the source itself."""
        assert not [one for one in self.pending if one.key == event.key and one.attempt == event.attempt == 1]
        self.pending.append(event)
        self.submitted += 1

    def offer(self, events: Sequence[Event]) -> int:
        """Take them all."""
        for event in events:
            self.submit(event)
        return len(events)

    def withdraw(self, tenures: Collection[str] | None = None) -> None:
        """Fail: a folder's events are under no lease."""
        raise NotImplementedError

    def hasten(self, positions: Collection[str]) -> None:
        """Fail: a folder's events go in no order of positions."""
        raise NotImplementedError

    def drained(self, seconds: float) -> bool:
        """Fail: a folder has nothing left to do once it is stopped."""
        raise NotImplementedError

    def skip(self, verdict: Verdict, count: int = 1) -> None:
        """Count what needs no event."""
        self.skipped += count

    def wait(self, seconds: float) -> None:
        """Let time pass, events end, parked ones come back, and the tree change. Stop after a minute of quiet."""
        self.clock.passed += seconds
        for _ in range(next(self.chosen) % 4):
            if self.pending:
                self._end(self.pending[next(self.chosen) % len(self.pending)])
        if self.parked and next(self.chosen) % 3 == 0:
            _, parked = self.parked.popitem()
            event = self.source.revive(parked)
            if event is not None:
                self.pending.append(event)
        if self.between() or self.pending or self.parked:
            self.quiet_since = self.clock.monotonic()
        elif self.clock.monotonic() - self.quiet_since > 60:
            raise Stopped

    def _end(self, picked: Event) -> None:
        event = next(one for one in self.pending if one.key == picked.key)
        self.pending.remove(event)
        outcome = self._outcome(event)
        document = event.key.document_id
        if outcome.verdict in {Verdict.WRITTEN, Verdict.DELETED}:
            self.parked.pop(document, None)
        self.source.settled([outcome])

    def _outcome(self, event: Event) -> Outcome:
        document, luck = event.key.document_id, next(self.chosen) % 8
        if luck == 0 and event.attempt < 3:
            failure = Failure(Stage.WRITE, "TransientError", "bad luck")
            self.parked[document] = Parked(
                event.key, event.op, event.source, event.position, event.attempt + 1, 0.0, 0.0, failure
            )
            return Outcome(event, Verdict.RETRYING)
        if luck == 1:
            return Outcome(event, Verdict.SUPERSEDED)
        if event.op is Op.DELETE:
            self.store.rows.pop(document, None)
            self.store.stats.pop(document, None)
            return Outcome(event, Verdict.DELETED)
        assert event.payload is not None
        try:
            content = event.payload.read()
        except Superseded:
            return Outcome(event, Verdict.SUPERSEDED)
        assert content.signature is not None
        self.store.rows[document] = content.data, canonical_json(dict(content.metadata))
        self.store.stats[document] = Seen("s", document, content.signature, Verdict.WRITTEN, "same")
        return Outcome(event, Verdict.WRITTEN)


def source_of(root: str, store: Store, clock: Clock) -> FolderSource:
    """Return a source that scans alone, every five seconds."""
    config = Config(path=Path(root), collection="c", watch="poll", rescan_seconds=5)
    return config.build("s", Scope(store, clock))


@settings(max_examples=40, deadline=None)
@given(st.lists(operations, max_size=30), st.randoms(use_true_random=False))
def test_a_tree_that_changes_all_the_time_is_folded_to_what_it_is_in_the_end(
    changes: list[tuple[str, bytes, bytes]], random: Random
) -> None:
    """Changes between, and during, scans, reads and settlements, with retries and superseded events: no difference."""
    with tempfile.TemporaryDirectory() as root:
        store, clock, left = Store(), Clock(), list(changes)

        def change() -> bool:
            if left and next(chosen) % 2:
                act(Path(root), left.pop())
            return bool(left)

        chosen = numbers(random)
        engine = Engine(store, clock, chosen, change)
        engine.source = source_of(root, store, clock)
        with suppress(Stopped):
            engine.source.run(engine, once=False)
        assert store.rows == fold(Path(root))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(operations, max_size=8), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_runs_one_after_another_fold_to_what_the_tree_is_after_the_last(
    batches: list[list[tuple[str, bytes, bytes]]], random: Random
) -> None:
    """With ``once``, and what earlier runs left in the store: deletes too. A further run has nothing to hand in."""
    with tempfile.TemporaryDirectory() as root:
        store, clock = Store(), Clock()
        for batch in [*batches, []]:
            for operation in batch:
                act(Path(root), operation)
            engine = Engine(store, clock, numbers(random), lambda: True)
            engine.source = source_of(root, store, clock)
            engine.source.run(engine, once=True)
            while engine.parked or engine.pending:  # retries are not the source's to wait for
                engine.wait(0)
        assert store.rows == fold(Path(root))
        last = Engine(store, clock, numbers(random), lambda: True)
        last.source = source_of(root, store, clock)
        last.source.run(last, once=True)
        assert (last.submitted, last.skipped) == (0, len(store.rows))


def numbers(random: Random) -> Iterator[int]:
    """Yield numbers for an engine's choices."""
    while True:
        yield random.randrange(1 << 16)


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_any_name_becomes_text_and_comes_back(name: bytes) -> None:
    """``escape`` is reversible over all names, and what it makes is UTF-8."""
    text = escape(name)
    text.encode()
    assert unescape(text) == name


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=3))
def test_a_path_comes_back_from_its_id_or_leads_nowhere(parts: list[bytes]) -> None:
    """``path_of`` undoes ``document_id`` for every path below the root, and refuses all others."""
    path = b"/".join(parts)
    below = b"\0" not in path and not any(part in {b"", b".", b".."} for part in path.split(b"/"))
    assert path_of("s", document_id("s", path)) == (path if below else None)


@given(st.text(), st.text())
def test_no_two_ids_lead_to_one_path(first: str, second: str) -> None:
    """What ``path_of`` takes, ``document_id`` gives again: an id that another one would shadow is refused."""
    for rest in (first, second, first + "%" + second):
        path = path_of("s", f"s/{rest}")
        assert path is None or document_id("s", path) == f"s/{rest}"


@given(st.text(alphabet=st.characters(exclude_characters="%/", exclude_categories=["Cs"]), min_size=1))
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    """A name in UTF-8 without a percent sign is its own id."""
    assert escape(name.encode()) == name
