"""Whatever happens in whatever order, the store says what a plain model in memory says, also after it was killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ingestd.model import (
    Content,
    DeadLetter,
    DocumentKey,
    Entry,
    Event,
    Failure,
    Fingerprints,
    Op,
    Outcome,
    Parked,
    Record,
    Seen,
    Settled,
    Stage,
    Verdict,
    Version,
)
from ingestd.store.holdings import Counts
from ingestd.store.records import pack
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FINGERPRINTS = {"c1": Fingerprints("p1", "q1"), "c2": Fingerprints("p2", "q2")}
GOOD = {Verdict.WRITTEN, Verdict.DELETED, Verdict.UNCHANGED}
KEEP = 150
"""Some records fit, and some do not."""
ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
texts = st.text(st.characters(codec=None), max_size=6)
documents = st.sampled_from(["a", "b", "ü/文"])
sources = st.sampled_from(["inbox", "cms"])
collections = st.sampled_from(["c1", "c2"])
places = st.sampled_from(["t/0@0", "t/0@1", "t/0@2", "/a", "/ü/文"])


@dataclass
class Lease:
    """A lease of which only what is stored counts (``model.Lease``)."""

    id: str
    lent: bool = False
    ended: bool = False

    def enter(self) -> bool:
        """Begin a call: nobody makes one here."""
        raise NotImplementedError

    def leave(self) -> None:
        """End it."""
        raise NotImplementedError


leases = st.none() | st.sampled_from([Lease("one"), Lease("two"), Lease("loan", lent=True)])


@st.composite
def records(draw: st.DrawFn, offset: int) -> Record:
    """Draw a record of a topic; each of its bytes may be missing."""
    some = st.none() | st.binary(max_size=3)
    headers = st.lists(st.tuples(texts, some), max_size=2).map(tuple)
    return Record("t", 0, offset, draw(st.integers(-1, 9)), draw(some), draw(some), draw(headers))


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Draw an event of few documents, so that they meet: a file's, or a record's with its offset as the version."""
    document, source = draw(documents), draw(sources)
    offset = draw(st.integers(0, 3)) if source == "cms" else None
    attempt = draw(st.integers(1, 3))
    position = f"/{document}" if offset is None else f"t/0@{offset}"
    return Event(
        DocumentKey(draw(collections), document),
        draw(st.sampled_from(Op)),
        source,
        position,
        None,
        version=None if offset is None else Version(offset, "t/0"),
        signature=draw(st.none() | st.sampled_from(["s1", "s\udcff"])),
        attempt=attempt,
        first_failed_at=None if attempt == 1 else float(draw(st.integers(0, 5))),
        lease=None if offset is None else draw(leases),
        record=None if offset is None else draw(records(offset)),
    )


@st.composite
def entries(draw: st.DrawFn, key: DocumentKey | None = None) -> Entry:
    """Draw an entry of the ledger, of any shape."""
    return Entry(
        key or DocumentKey(draw(collections), draw(documents)),
        draw(sources),
        Version(draw(st.integers(-(2**63), 2**63 - 1)), draw(texts)),
        draw(st.sampled_from(["p1", "p2"])),
        draw(st.sampled_from(["", "digest"])),
        draw(st.dictionaries(ids, st.binary(min_size=16, max_size=16), max_size=3)),
        draw(st.frozensets(ids, max_size=3)),
        draw(st.booleans()),
        draw(st.sampled_from(["", "one", "two"])),
    )


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """Draw an outcome of any verdict, with all that the verdict needs."""
    event = draw(events())
    content = st.builds(
        Content,
        st.sampled_from([0, 3, KEEP, KEEP + 1]).map(bytes),
        texts,
        content_type=st.none() | texts,
        signature=st.none() | st.just("s2"),
    )
    return Outcome(
        event,
        draw(st.sampled_from(Verdict)),
        draw(st.none() | entries(event.key)),
        draw(st.none() | content),
        Failure(draw(st.sampled_from(Stage)), "SomeError", draw(texts), draw(st.none() | texts)),
        wait=float(draw(st.integers(0, 3))),
    )


class Clock:
    """A clock that is moved by hand."""

    now = 10.0

    def time(self) -> float:
        """Return the time it was set to."""
        return self.now

    def monotonic(self) -> float:
        """Return the same."""
        return self.now


@dataclass
class Model:
    """What the store should know, in plain lists and dictionaries."""

    entries: dict[DocumentKey, Entry] = field(default_factory=dict)
    seen: dict[tuple[str, DocumentKey], Seen] = field(default_factory=dict)
    parked: list[tuple[Parked, Version | None]] = field(default_factory=list)
    letters: list[tuple[DeadLetter, str | None]] = field(default_factory=list)
    bindings: dict[str, str] = field(default_factory=dict)
    confirmed: set[str] = field(default_factory=set)
    last_letter: int = 0

    def settle(self, outcome: Outcome, now: float) -> Settled:
        """Apply an outcome."""
        event = outcome.event
        if outcome.entry is not None:
            self.entries[event.key] = outcome.entry
        signature = (outcome.content and outcome.content.signature) or event.signature
        dead = outcome.verdict is Verdict.DEAD_LETTERED
        if outcome.verdict is Verdict.DELETED:
            self.seen.pop((event.source, event.key), None)
        elif (dead or outcome.verdict in GOOD) and signature:
            fingerprints = FINGERPRINTS[event.key.collection]
            fingerprint = fingerprints.configuration if dead else fingerprints.processing
            seen = Seen(event.source, event.key.document_id, signature, outcome.verdict, fingerprint)
            self.seen[event.source, event.key] = seen
        replaced = tuple(self.queue(outcome, now))
        return Settled(len(replaced), replaced, self.bury(outcome, signature, now))

    def queue(self, outcome: Outcome, now: float) -> list[Parked]:
        """Apply an outcome to the retry queue; return what it took the place of."""
        event, superseded, left = outcome.event, [], []
        for parked, version in self.parked:
            here = (parked.source, parked.position) == (event.source, event.position)
            tried = event.attempt == parked.attempt and event.first_failed_at == parked.first_failed_at
            itself = here and (tried or (version is not None and version == event.version))
            good = outcome.verdict in GOOD and not older(event, version, parked.first_failed_at)
            moot = here if outcome.verdict is Verdict.RETRYING else (itself or good)
            if parked.key == event.key and moot:
                superseded += [] if itself else [parked]
            else:
                left.append((parked, version))
        self.parked = left
        if outcome.verdict is Verdict.RETRYING:
            assert outcome.failure is not None
            assert outcome.wait is not None
            first = now if event.first_failed_at is None else event.first_failed_at
            due = now + outcome.wait
            lease = "" if event.lease is None or event.lease.lent else event.lease.id
            what = event.key, event.op, event.source, event.position, event.attempt + 1, first, due, outcome.failure
            waits = Parked(*what, event.version, event.record, lease)
            self.parked.append((waits, event.version))
        return superseded

    def replay(self, letter: DeadLetter, now: float) -> None:
        """Move a letter to the retry queue, to the place of what waits there; its source leaves it alone meanwhile."""
        seen = self.seen.get((letter.source, letter.key))
        if seen is not None and seen.verdict is Verdict.DEAD_LETTERED:
            self.seen[letter.source, letter.key] = replace(seen, verdict=Verdict.RETRYING)
        where = (letter.key, letter.source, letter.position)
        self.letters = [each for each in self.letters if each[0].id != letter.id]
        self.parked = [each for each in self.parked if (each[0].key, each[0].source, each[0].position) != where]
        what = *where[:1], letter.op, *where[1:], 1, letter.first_failed_at, now, letter.failure
        waits = Parked(*what, letter.version, letter.record)
        self.parked.append((waits, letter.version))

    def bury(self, outcome: Outcome, signature: str | None, now: float) -> int:
        """Apply an outcome to the dead letters."""
        event, content = outcome.event, outcome.content
        if outcome.verdict in GOOD:
            before = len(self.letters)
            self.letters = [
                (letter, seen)
                for letter, seen in self.letters
                if (letter.key, letter.source) != (event.key, event.source)
                or older(event, letter.version, letter.first_failed_at)
            ]
            return before - len(self.letters)
        if outcome.verdict is not Verdict.DEAD_LETTERED:
            return 0
        assert outcome.failure is not None
        fresh = DeadLetter(
            self.last_letter + 1,
            event.key,
            event.op,
            event.source,
            event.position,
            outcome.failure,
            event.attempt,
            now if event.first_failed_at is None else event.first_failed_at,
            now,
            event.version,
            FINGERPRINTS[event.key.collection].configuration,
        )
        which = (event.key, event.source, event.position, signature)
        for at, (letter, seen) in enumerate(self.letters):
            if (letter.key, letter.source, letter.position, seen) == which:
                original = {
                    name: getattr(letter, name) for name in ("name", "content_type", "metadata", "size", "data")
                }
                fresh = replace(fresh, id=letter.id, first_failed_at=letter.first_failed_at, **original)
                self.letters[at] = (with_original(fresh, event, content), signature)
                return 0
        self.last_letter += 1
        self.letters.append((with_original(fresh, event, content), signature))
        return 0


def placed(parked: Iterable[Parked]) -> Counter[tuple[object, ...]]:
    """Return what tells parked events apart."""
    return Counter((each.key, each.source, each.position, each.attempt, each.version) for each in parked)


def older(event: Event, version: Version | None, first_failed_at: float) -> bool:
    """Say whether an event came before one that failed."""
    if event.version and version and event.version.domain == version.domain:
        return event.version.number < version.number
    return event.first_failed_at is not None and event.first_failed_at < first_failed_at


def with_original(letter: DeadLetter, event: Event, content: Content | None) -> DeadLetter:
    """Return the letter with what is kept of its original: of a record its value, as it came."""
    record = event.record
    if record is not None and record.value is not None:
        content = replace(content or Content(b"", event.key.document_id), data=record.value)
    if content is not None:
        data = content.data if len(content.data) <= KEEP else None
        size = len(content.data)
        letter = replace(
            letter, name=content.name, content_type=content.content_type, size=size, data=data, metadata={}
        )
    fits = record is not None and len(pack(record)) <= KEEP
    return replace(letter, record=record if fits else None)


class StoreMachine(RuleBasedStateMachine):
    """The store and the model, side by side."""

    def __init__(self) -> None:
        """Open an empty store."""
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.generation = 0
        self.clock = Clock()
        self.model = Model()
        self.store = self.open()

    def open(self) -> SqliteStore:
        """Open the present directory."""
        return SqliteStore.open(self.root / str(self.generation), clock=self.clock, keep_bytes=KEEP, wait=0.0)

    @initialize()
    def begin(self) -> None:
        """Begin a run, so that how it ends is told."""
        assert self.store.begin() is None

    @rule(batch=st.lists(outcomes(), max_size=4))
    def settle(self, batch: list[Outcome]) -> None:
        """Settle a batch."""
        each = [self.model.settle(outcome, self.clock.now) for outcome in batch]
        expected = Settled(sum(s.superseded for s in each), mended=sum(s.mended for s in each))
        settled = self.store.settle(batch, FINGERPRINTS)
        assert settled == expected
        assert placed(settled.replaced) == placed(parked for one in each for parked in one.replaced)

    @rule(entry=entries())
    def write_ahead(self, entry: Entry) -> None:
        """Write an entry ahead."""
        self.model.entries[entry.key] = entry
        self.store.write_ahead([entry])

    @rule(collection=collections, some=st.lists(entries(), max_size=3))
    def bind(self, collection: str, some: list[Entry]) -> None:
        """Start a collection again."""
        some = [replace(entry, key=replace(entry.key, collection=collection)) for entry in some]
        model = self.model
        model.entries = {key: entry for key, entry in model.entries.items() if key.collection != collection}
        model.seen = {where: seen for where, seen in model.seen.items() if where[1].collection != collection}
        model.entries |= {entry.key: entry for entry in some}
        model.bindings[collection] = f"id {len(some)}"
        self.store.bind(collection, f"id {len(some)}", some)

    @rule(source=sources, collection=collections)
    def forget(self, source: str, collection: str) -> None:
        """Forget a source."""
        model, mine = self.model, (source, collection)
        model.entries = {k: e for k, e in model.entries.items() if (e.source, k.collection) != mine}
        model.seen = {w: s for w, s in model.seen.items() if (w[0], w[1].collection) != mine}
        model.parked = [p for p in model.parked if (p[0].source, p[0].key.collection) != mine]
        model.letters = [x for x in model.letters if (x[0].source, x[0].key.collection) != mine]
        model.confirmed.discard(source)
        self.store.forget(source, collection)

    @rule(which=st.lists(st.integers(0, 5), max_size=3))
    def discard(self, which: list[int]) -> None:
        """Discard letters, some of which may not be there."""
        there = [self.model.letters[at][0].id for at in set(which) if at < len(self.model.letters)]
        self.model.letters = [x for x in self.model.letters if x[0].id not in there]
        assert self.store.discard([*there, 10_000]) == len(there)

    @rule(which=st.lists(st.integers(0, 5), max_size=3))
    def requeue(self, which: list[int]) -> None:
        """Replay letters, some of which may not be there."""
        chosen = [self.model.letters[at][0] for at in sorted(set(which)) if at < len(self.model.letters)]
        waited = Counter(parked.source for parked, _ in self.model.parked)
        for letter in chosen:
            self.model.replay(letter, self.clock.now)
        waits = Counter(parked.source for parked, _ in self.model.parked)
        assert +Counter(self.store.requeue([letter.id for letter in chosen])) == waits - waited

    @rule(passed=st.integers(0, 3))
    def hasten(self, passed: int) -> None:
        """Let time pass, and make all that waits due."""
        self.clock.now += passed
        now = self.clock.now
        self.model.parked = [(replace(p, due_at=min(p.due_at, now)), v) for p, v in self.model.parked]
        assert self.store.hasten(now) == len(self.model.parked)

    @rule(passed=st.integers(0, 3), source=sources, positions=st.none() | st.sets(places))
    def hasten_some(self, passed: int, source: str, positions: set[str] | None) -> None:
        """Let time pass, and make some of a source's due."""
        self.clock.now += passed
        now, hastened = self.clock.now, 0
        for at, (parked, version) in enumerate(self.model.parked):
            if parked.source == source and (positions is None or parked.position in positions):
                self.model.parked[at] = (replace(parked, due_at=min(parked.due_at, now)), version)
                hastened += 1
        assert self.store.hasten(now, source, positions) == hastened

    @rule(source=sources, tenures=st.none() | st.sets(st.sampled_from(["one", "two", "loan", ""])))
    def withdraw(self, source: str, tenures: set[str] | None) -> None:
        """Leases end."""
        gone = [
            parked
            for parked, _ in self.model.parked
            if parked.source == source and parked.tenure and (tenures is None or parked.tenure in tenures)
        ]
        self.model.parked = [each for each in self.model.parked if each[0] not in gone]
        assert placed(self.store.withdraw(source, tenures)) == placed(gone)

    @rule(source=sources)
    def confirm(self, source: str) -> None:
        """Confirm a source's deletes."""
        self.model.confirmed.add(source)
        self.store.confirm(source, {"gone"})

    @rule(source=sources)
    def confirmed(self, source: str) -> None:
        """Take the confirmation."""
        assert self.store.confirmed(source) == ({"gone"} if source in self.model.confirmed else set())
        self.model.confirmed.discard(source)

    @rule()
    def reopen(self) -> None:
        """End well, and start again: nothing is in doubt."""
        self.store.close(clean=True)
        self.store = self.open()
        assert self.store.begin() is None

    @rule()
    def kill(self) -> None:
        """Go on from the files as they are on the disk now, as after a SIGKILL, which closes nothing."""
        before = self.root / str(self.generation)
        self.generation += 1
        after = self.root / str(self.generation)
        after.mkdir()
        for name in os.listdir(before):  # noqa: PTH208 - names only
            if not name.endswith("-shm"):  # is memory, and rebuilt
                shutil.copyfile(before / name, after / name)
        self.store.close(clean=False)
        self.store = self.open()
        unclean = self.store.begin()
        assert unclean is not None
        assert unclean.crashed
        self.store.verified()

    @invariant()
    def ledger_agrees(self) -> None:
        """The ledger and the seens are the model's."""
        store, model = self.store, self.model
        keys = [
            DocumentKey(collection, document) for collection in FINGERPRINTS for document in ("a", "b", "ü/文", "x")
        ]
        assert store.entries(keys) == model.entries
        for collection in FINGERPRINTS:
            here = {key: entry for key, entry in model.entries.items() if key.collection == collection}
            assert {entry.key: entry for entry in store.collection_entries(collection)} == here
            assert store.rows(collection) == sum(len(entry.present) for entry in here.values())
            assert store.binding(collection) == model.bindings.get(collection)
        for source in ("inbox", "cms"):
            seen = [seen for (name, _), seen in model.seen.items() if name == source]
            assert sorted(store.seen(source), key=repr) == sorted(seen, key=repr)
            live = [e for e in model.entries.values() if e.source == source and (not e.deleted or e.doubtful)]
            assert sorted(store.documents(source)) == sorted((e.key.document_id, not e.doubtful) for e in live)

    @invariant()
    def queues_agree(self) -> None:
        """The retry queue, the dead letters and the counts are the model's."""
        store, model = self.store, self.model
        parked = [parked for parked, _ in model.parked]
        listed = [replace(each, record=None) for each in parked]
        assert sorted(store.parked(), key=repr) == sorted(listed, key=repr)
        now = self.clock.now
        due = [replace(p, failure=replace(p.failure, traceback=None)) for p in listed if p.due_at <= now]
        whole = [store.whole(each) for each in store.parked()]
        assert sorted(whole, key=repr) == sorted(parked, key=repr)
        assert sorted(store.due(now, 99), key=repr) == sorted(due, key=repr)
        for owned in ([("inbox", "c1"), ("cms", "c2")], [("inbox", "c2")]):
            mine = [p for p in due if (p.source, p.key.collection) in owned]
            assert sorted(store.due(now, 99, owned), key=repr) == sorted(mine, key=repr)
            assert store.waiting(owned) == sum((p.source, p.key.collection) in owned for p in parked)
        assert store.next_due() == min((p.due_at for p in parked), default=None)
        assert [p.due_at for p in store.parked()] == sorted(p.due_at for p in parked)
        letters = [letter for letter, _ in model.letters]
        assert list(store.dead_letters()) == letters
        assert list(store.dead_letters([letter.id for letter in letters])) == letters
        assert dict(store.counts()) == {source: counts for source in ("cms", "inbox") if (counts := self.count(source))}

    @invariant()
    def sources_agree(self) -> None:
        """Whatever is known of a source is found by it."""
        model = self.model
        live = Counter((entry.source, key.collection) for key, entry in model.entries.items() if not entry.deleted)
        known = {(entry.source, key.collection) for key, entry in model.entries.items()}
        known |= {(source, key.collection) for source, key in model.seen}
        known |= {(parked.source, parked.key.collection) for parked, _ in model.parked}
        known |= {(letter.source, letter.key.collection) for letter, _ in model.letters}
        assert self.store.sources() == sorted((*owner, live[owner]) for owner in known)

    def count(self, source: str) -> Counts | None:
        """Count what the model has of a source; None where that is nothing."""
        mine: Callable[[Entry | Parked | DeadLetter], bool] = lambda each: each.source == source  # noqa: E731 - three uses
        entries = list(filter(mine, self.model.entries.values()))
        dead = sum(entry.deleted for entry in entries)
        parked = sum(mine(each) for each, _ in self.model.parked)
        letters = sum(mine(each) for each, _ in self.model.letters)
        counts = Counts(len(entries) - dead, dead, parked, letters)
        return counts if counts != Counts() else None

    def teardown(self) -> None:
        """Close, and remove the files."""
        self.store.close(clean=True)
        shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
