"""What every implementation of ``ports.Store`` keeps, shown on the one there is."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ingestd.errors import UnavailableError
from ingestd.model import (
    Content,
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
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ingestd.ports import Store

NOW = 1_800_000_000.0
FINGERPRINTS = {"articles": Fingerprints("processing", "configuration"), "notes": Fingerprints("p2", "c2")}
FAILURE = Failure(Stage.EMBED, "TransientError", "the provider said 429")
BAD = Failure(Stage.EXTRACT, "DocumentError", "no text in it", "Traceback …")


class Clock:
    """A clock that stands still until it is moved."""

    now = NOW

    def time(self) -> float:
        """Return the time it was set to."""
        return self.now

    def monotonic(self) -> float:
        """Return the same."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock of the test's own."""
    return Clock()


@pytest.fixture
def reopen(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., SqliteStore]]:
    """Return what opens the store of the test's directory with limits, closing the one that is open."""
    opened: list[SqliteStore] = []

    def open_again(**limits: int) -> SqliteStore:
        while opened:
            opened.pop().close(clean=True)
        opened.append(SqliteStore.open(tmp_path / "state", clock=clock, wait=0.0, **limits))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close(clean=True)


@pytest.fixture
def store(reopen: Callable[..., SqliteStore]) -> SqliteStore:
    """Return an open, empty store."""
    return reopen()


def chunk(name: str) -> str:
    """Return a chunk's id."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def upsert(name: str = "a", *, version: int | None = None, source: str = "inbox", **rest: object) -> Event:
    """Return an event of a document, of a folder (no version) or a topic (its offset is the version)."""
    position = f"/in/{name}" if version is None else f"topic/0@{version}"
    number = None if version is None else Version(version, "topic/0")
    event = Event(DocumentKey("articles", name), Op.UPSERT, source, position, None, version=number)
    return replace(event, **rest)  # type: ignore[arg-type]  # whatever the test wants to differ


def entry(event: Event, *, present: int = 2, doubtful: int = 0, deleted: bool = False, number: int = 7) -> Entry:
    """Return a ledger's entry for an event's document."""
    name = event.key.document_id
    return Entry(
        event.key,
        event.source,
        event.version or Version(number, event.source),
        "processing",
        "" if deleted else "digest",
        {chunk(f"{name}{at}"): bytes([at]) * 16 for at in range(present)},
        frozenset(chunk(f"{name}?{at}") for at in range(doubtful)),
        deleted,
    )


def written(event: Event) -> Outcome:
    """Return the outcome of an event that went well."""
    return Outcome(event, Verdict.WRITTEN, entry(event))


def retrying(event: Event, wait: float = 10.0) -> Outcome:
    """Return the outcome of an event that is to be tried again."""
    return Outcome(event, Verdict.RETRYING, failure=FAILURE, wait=wait)


def dead(event: Event, content: Content | None = None) -> Outcome:
    """Return the outcome of an event that failed for good."""
    return Outcome(event, Verdict.DEAD_LETTERED, content=content, failure=BAD)


def again(parked: Parked) -> Event:
    """Return a parked event as its source revives it."""
    return Event(
        parked.key,
        parked.op,
        parked.source,
        parked.position,
        None,
        attempt=parked.attempt,
        first_failed_at=parked.first_failed_at,
    )


def test_it_is_a_store(store: SqliteStore) -> None:
    """The implementation is one of the port, which a type checker sees here, and an empty one knows nothing."""
    port: Store = store
    assert port.entries([DocumentKey("articles", "a")]) == {}
    assert [*port.seen("inbox"), *port.documents("inbox"), *port.parked(), *port.dead_letters(), *port.sources()] == []
    assert (port.next_due(), port.binding("articles"), port.rows("articles")) == (None, None, 0)
    assert port.settle([], FINGERPRINTS) == Settled()


# Ledger


def test_entries_come_back_whole(store: SqliteStore) -> None:
    """An entry that was written ahead is read back equal, by its collection and document, also after a thousand."""
    entries = [entry(upsert(f"d{at}"), present=at % 4, doubtful=at % 3, number=at) for at in range(1_200)]
    elsewhere = replace(entries[5], key=DocumentKey("notes", "d5"), version=Version(1 << 62, "päth\udcff"))
    store.write_ahead([*entries, elsewhere])
    found = store.entries([*(each.key for each in entries), elsewhere.key, DocumentKey("articles", "nobody")])
    assert found == {each.key: each for each in [*entries, elsewhere]}


def test_the_last_entry_of_a_document_counts(store: SqliteStore) -> None:
    """An entry replaces the one before it, and a tombstone stays as an entry without rows."""
    event = upsert()
    store.write_ahead([entry(event, present=3)])
    tombstone = entry(event, present=0, deleted=True, number=9)
    store.settle([Outcome(event, Verdict.DELETED, tombstone)], FINGERPRINTS)
    assert store.entries([event.key]) == {event.key: tombstone}
    assert list(store.documents("inbox")) == []
    assert store.sources() == [("inbox", "articles", 0)]


def test_ids_that_are_no_ids_are_refused(store: SqliteStore) -> None:
    """A chunk's id or digest of another length would garble all others of its entry: nothing is stored."""
    event = upsert()
    for present in ({"ab": b"x" * 16}, {chunk("a"): b"short"}):
        with pytest.raises(ValueError, match="16 bytes"):
            store.write_ahead([replace(entry(event), present=present)])
    with pytest.raises(ValueError, match="32 hexadecimal"):
        store.write_ahead([replace(entry(event), doubtful=frozenset({"ab"}))])
    assert store.entries([event.key]) == {}


def test_documents_with_doubtful_rows_are_not_whole(store: SqliteStore) -> None:
    """A source learns which of its documents it has to send again."""
    store.write_ahead([entry(upsert("a")), entry(upsert("b"), doubtful=1), entry(upsert("c", source="other"))])
    assert dict(store.documents("inbox")) == {"a": True, "b": False}
    assert list(store.documents("inbox", "notes")) == []


def test_a_first_version_that_was_interrupted_is_not_forgotten(store: SqliteStore) -> None:
    """A tombstone is no document, unless rows of an attempt may be in Milvus: those have to be found again."""
    gone, begun = entry(upsert("a"), deleted=True), entry(upsert("b"), present=0, doubtful=2, deleted=True)
    store.write_ahead([gone, begun])
    assert dict(store.documents("inbox")) == {"b": False}


def test_a_collection_streams_past_its_pages(store: SqliteStore) -> None:
    """Entries come once each however many there are, while others are written meanwhile."""
    wanted = {f"d{at}": entry(upsert(f"d{at}"), present=1) for at in range(2_500)}
    store.write_ahead(list(wanted.values()))
    stream = store.collection_entries("articles")
    first = next(stream)
    store.write_ahead([wanted["d2000"], entry(replace(upsert("x"), key=DocumentKey("notes", "x")))])
    found = [first, *stream]
    assert len(found) == len(wanted)
    assert {each.key.document_id: each for each in found} == wanted
    assert store.rows("articles") == 2_500


def test_binding_starts_a_collection_again(store: SqliteStore) -> None:
    """Binding voids the collection's entries and seens and nobody else's, and keeps what waits and what is dead."""
    gone, other = upsert("gone", signature="s"), replace(upsert("b", signature="s"), key=DocumentKey("notes", "b"))
    store.settle([written(gone), written(other), retrying(upsert("w")), dead(upsert("x"))], FINGERPRINTS)
    rebuilt = entry(upsert("c"), doubtful=2)
    store.bind("articles", "random id", iter([rebuilt]))
    assert (store.binding("articles"), store.binding("notes")) == ("random id", None)
    assert list(store.collection_entries("articles")) == [rebuilt]
    assert [seen.document_id for seen in store.seen("inbox")] == ["b"]
    assert (len(store.parked()), len(list(store.dead_letters()))) == (1, 1)


def test_a_binding_that_fails_changes_nothing(store: SqliteStore) -> None:
    """When reading the rows breaks off, the old entries, seens and binding are as they were."""
    event = upsert(signature="s")
    store.settle([written(event)], FINGERPRINTS)
    store.bind("notes", "first", [])

    def breaks_off() -> Iterator[Entry]:
        yield entry(upsert("z"))
        raise UnavailableError("milvus", "it went away")

    with pytest.raises(UnavailableError, match="it went away"):
        store.bind("articles", "second", breaks_off())
    assert store.binding("articles") is None
    assert [each.key.document_id for each in store.collection_entries("articles")] == ["a"]
    assert len(list(store.seen("inbox"))) == 1


# Seens


@pytest.mark.parametrize(
    ("verdict", "fingerprint"),
    [
        (Verdict.WRITTEN, "processing"),
        (Verdict.UNCHANGED, "processing"),
        (Verdict.DEAD_LETTERED, "configuration"),
        (Verdict.SUPERSEDED, None),
        (Verdict.RETRYING, None),
    ],
)
def test_what_was_seen_is_noted_with_the_verdict(store: SqliteStore, verdict: Verdict, fingerprint: str | None) -> None:
    """An end notes what was seen, with the fingerprint that it rests on; what is no end leaves the note alone."""
    event = upsert(signature="stat before reading")
    store.settle([written(upsert(signature="old"))], FINGERPRINTS)
    content = Content(b"text", "a.txt", signature="stat of what was read")
    store.settle([Outcome(event, verdict, content=content, failure=FAILURE, wait=1.0)], FINGERPRINTS)
    (seen,) = store.seen("inbox")
    if fingerprint is None:
        assert seen == Seen("inbox", "a", "old", Verdict.WRITTEN, "processing")
    else:
        assert seen == Seen("inbox", "a", "stat of what was read", verdict, fingerprint)


def test_a_delete_forgets_what_was_seen(store: SqliteStore) -> None:
    """A document that is deleted is new when it comes back; one whose event has no signature keeps its note."""
    store.settle([written(upsert("a", signature="1")), written(upsert("b", signature="2"))], FINGERPRINTS)
    store.settle([Outcome(replace(upsert("a"), op=Op.DELETE), Verdict.DELETED), written(upsert("b"))], FINGERPRINTS)
    assert [(seen.document_id, seen.signature) for seen in store.seen("inbox")] == [("b", "2")]


def test_seens_stream_past_their_pages(store: SqliteStore) -> None:
    """Every seen of a source comes once, however many there are, and none of another source or collection."""
    store.settle([written(upsert(f"d{at}", signature=f"s{at}")) for at in range(2_300)], FINGERPRINTS)
    moved = replace(upsert("d7", signature="x"), key=DocumentKey("notes", "d7"))
    store.settle([written(upsert("other", source="other", signature="x")), written(moved)], FINGERPRINTS)
    seen = [(each.document_id, each.signature) for each in store.seen("inbox", "articles")]
    assert sorted(seen) == sorted((f"d{at}", f"s{at}") for at in range(2_300))
    assert len(list(store.seen("inbox"))) == 2_301


def test_a_confirmation_counts_once(store: SqliteStore) -> None:
    """An operator's word lets held deletes go on once, and only those of the source that it was about."""
    store.confirm("inbox", {"a", "b"})
    store.confirm("inbox", {"b", "c"})
    assert store.confirmed("other") == frozenset()
    assert [store.confirmed("inbox"), store.confirmed("inbox")] == [{"a", "b", "c"}, frozenset()]


# The retry queue


def test_a_failed_event_waits_for_its_next_try(store: SqliteStore, clock: Clock) -> None:
    """Parking keeps all that is needed to try again, and remembers the first failure over later ones."""
    event = upsert("a", position="/in/n\udcff.txt")
    store.settle([retrying(event, 10.0)], FINGERPRINTS)
    waits = Parked(event.key, Op.UPSERT, "inbox", "/in/n\udcff.txt", 2, NOW, NOW + 10, FAILURE)
    assert store.parked() == [waits]
    clock.now += 15
    store.settle([retrying(again(waits), 40.0)], FINGERPRINTS)
    assert store.parked() == [replace(waits, attempt=3, due_at=NOW + 55)]
    assert store.next_due() == NOW + 55


def test_due_events_come_soonest_first_and_stay(store: SqliteStore) -> None:
    """Asking what is due takes nothing out, and leaves what is not due yet."""
    for name, wait in [("c", 30.0), ("a", 10.0), ("b", 20.0)]:
        store.settle([retrying(upsert(name), wait)], FINGERPRINTS)
    due = [each.key.document_id for each in store.due(NOW + 20, 10)]
    assert due == ["a", "b"] == [each.key.document_id for each in store.due(NOW + 20, 10)]
    assert [each.key.document_id for each in store.due(NOW + 99, 1)] == ["a"]
    assert [each.key.document_id for each in store.parked(limit=2)] == ["a", "b"]


def test_a_daemon_asks_for_its_own_events_alone(store: SqliteStore) -> None:
    """Of several sources and collections the soonest come, past what is not asked for; all are counted, due or not."""
    for at, source in enumerate(("inbox", "cms", "gone", "gone", "inbox", "cms")):
        event = upsert(f"d{at}", source=source)
        failure = replace(FAILURE, traceback="Traceback …")
        store.settle([Outcome(event, Verdict.RETRYING, failure=failure, wait=float(at))], FINGERPRINTS)
    elsewhere = replace(upsert("n", source="cms"), key=DocumentKey("notes", "n"))
    store.settle([retrying(elsewhere, 0.0)], FINGERPRINTS)
    owned = [("inbox", "articles"), ("cms", "articles"), ("inbox", "articles"), ("inbox", "notes")]
    due = store.due(NOW + 4, 9, owned)
    assert [each.key.document_id for each in due] == ["d0", "d1", "d4"]
    assert [each.failure for each in due] == [FAILURE] * 3, "all but the traceback"
    assert store.due(NOW + 4, 2, owned) == due[:2]
    assert list(store.due(NOW + 99, 9, [])) == []
    assert len(store.due(NOW + 99, 9)) == 7
    assert (store.waiting(owned), store.waiting({("gone", "articles")}), store.waiting([])) == (4, 2, 0)
    store.settle([written(again(each)) for each in due], FINGERPRINTS)
    assert store.waiting(owned) == 1


def test_what_is_postponed_waits_on_with_its_tries(store: SqliteStore) -> None:
    """Behind what is due by then; one that was settled meanwhile, or has failed once more, is left as it is."""
    for name in ("a", "b", "c"):
        store.settle([retrying(upsert(name), 1.0)], FINGERPRINTS)
    a, b, c = store.due(NOW + 1, 9)
    store.settle([written(again(b)), retrying(again(c), 5.0)], FINGERPRINTS)
    assert store.postpone([a, b, c], NOW + 30) == 1
    assert store.parked() == [replace(c, attempt=3, due_at=NOW + 5), replace(a, due_at=NOW + 30)]


def test_hastening_makes_all_due_now(store: SqliteStore) -> None:
    """What waits is due at once, what was due already keeps its turn, and all are counted."""
    store.settle([retrying(upsert("late"), 500.0), retrying(upsert("early"), 1.0)], FINGERPRINTS)
    assert store.hasten(NOW + 5) == 2
    assert [(each.key.document_id, each.due_at) for each in store.due(NOW + 5, 9)] == [
        ("early", NOW + 1),
        ("late", NOW + 5),
    ]


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.RETRYING])
def test_a_retry_leaves_the_queue_with_its_own_end(store: SqliteStore, verdict: Verdict) -> None:
    """Whatever a retried event comes to, it is out of the queue in the same transaction, and supersedes nothing."""
    store.settle([retrying(upsert())], FINGERPRINTS)
    (waits,) = store.parked()
    settled = store.settle([Outcome(again(waits), verdict, failure=BAD)], FINGERPRINTS)
    assert store.parked() == []
    assert settled.superseded == 0


@pytest.mark.parametrize(
    ("verdict", "left"),
    [
        (Verdict.WRITTEN, 0),
        (Verdict.DELETED, 0),
        (Verdict.UNCHANGED, 0),
        (Verdict.SUPERSEDED, 1),
        (Verdict.DEAD_LETTERED, 1),
    ],
)
def test_a_newer_event_supersedes_what_waits_if_it_ends_well(store: SqliteStore, verdict: Verdict, left: int) -> None:
    """A newer event makes a parked older one moot when it is applied; a failed or superseded one does not."""
    store.settle([retrying(upsert())], FINGERPRINTS)
    settled = store.settle([Outcome(upsert(), verdict, failure=BAD)], FINGERPRINTS)
    assert (len(store.parked()), settled.superseded) == (left, 1 - left)


def test_each_record_of_a_topic_waits_by_itself(store: SqliteStore) -> None:
    """An older record still waits when a newer one of its document waits too, and each leaves with its own end."""
    old, new = upsert(version=5), upsert(version=6)
    store.settle([retrying(old, 1.0), retrying(new, 2.0)], FINGERPRINTS)
    assert [each.position for each in store.parked()] == ["topic/0@5", "topic/0@6"]
    first, second = (again(each) for each in store.parked())
    store.settle([dead(replace(second, version=new.version))], FINGERPRINTS)
    assert [each.position for each in store.parked()] == ["topic/0@5"]
    store.settle([written(replace(first, version=old.version))], FINGERPRINTS)
    assert store.parked() == []


def test_an_older_version_never_supersedes_a_newer_one_that_waits(store: SqliteStore) -> None:
    """The retry of an older record that succeeds leaves the newer record's in the queue."""
    store.settle([retrying(upsert(version=6))], FINGERPRINTS)
    settled = store.settle([written(upsert(version=5))], FINGERPRINTS)
    assert ([each.position for each in store.parked()], settled) == (["topic/0@6"], Settled())


def test_a_record_that_is_delivered_again_is_the_same_event(store: SqliteStore) -> None:
    """A parked record that its topic delivers a second time is superseded by nothing, and leaves at its end."""
    event = upsert(version=5)
    store.settle([retrying(event)], FINGERPRINTS)
    assert store.settle([retrying(event)], FINGERPRINTS) == Settled()
    assert len(store.parked()) == 1
    assert store.settle([dead(event)], FINGERPRINTS) == Settled()
    assert store.parked() == []


def test_a_file_waits_once(store: SqliteStore, clock: Clock) -> None:
    """A file that changes while it waits, and fails again, takes its own place in the queue with a fresh count."""
    store.settle([retrying(upsert())], FINGERPRINTS)
    (waits,) = store.parked()
    store.settle([retrying(again(waits))], FINGERPRINTS)
    clock.now += 100
    assert store.settle([retrying(upsert())], FINGERPRINTS) == Settled(superseded=1)
    (fresh,) = store.parked()
    assert (fresh.attempt, fresh.first_failed_at) == (2, NOW + 100)
    assert store.settle([Outcome(again(waits), Verdict.SUPERSEDED)], FINGERPRINTS) == Settled()
    assert store.parked() == [fresh]


# Dead letters


def test_a_dead_letter_keeps_what_is_needed(store: SqliteStore, clock: Clock) -> None:
    """A letter holds the original, what was said about it, why it failed, how often, and since when."""
    event = upsert(version=1 << 70, attempt=4, first_failed_at=NOW - 60, position="p\udcff", signature="s")
    content = Content(b"\x00\xff" * 8, "na\udcffme.bin", "application/x", "Title", {"k": [1, "\ud800"]}, "s")
    store.settle([dead(event, content)], FINGERPRINTS)
    (letter,) = store.dead_letters()
    assert (letter.key, letter.op, letter.source, letter.position) == (event.key, Op.UPSERT, "inbox", "p\udcff")
    assert (letter.failure, letter.attempts, letter.fingerprint) == (BAD, 4, "configuration")
    assert (letter.first_failed_at, letter.last_failed_at, letter.version) == (NOW - 60, NOW, event.version)
    assert (letter.name, letter.content_type, letter.metadata) == (content.name, "application/x", content.metadata)
    assert (letter.size, letter.data) == (16, content.data)
    assert [each.data for each in store.dead_letters(data=False)] == [None]


def test_the_same_failure_again_takes_the_place_of_the_first(store: SqliteStore, clock: Clock) -> None:
    """A rescan or a second delivery adds no letter, keeps the id and the first failure; new content adds one."""
    event = upsert(signature="s")
    content = Content(b"abc", "a", signature="s")
    store.settle([dead(event, content)], FINGERPRINTS)
    (first,) = store.dead_letters()
    clock.now += 50
    store.settle([dead(replace(event, attempt=2))], FINGERPRINTS)
    assert list(store.dead_letters()) == [replace(first, attempts=2, last_failed_at=NOW + 50)]
    store.settle([dead(upsert(signature="changed"))], FINGERPRINTS)
    assert [each.id for each in store.dead_letters()] == [first.id, first.id + 1]


def test_the_last_letter_of_a_document(store: SqliteStore, clock: Clock) -> None:
    """The one that failed last, whichever came first, of this source and collection alone, without its original."""
    content = Content(b"abc", "a", signature="s")
    store.settle([dead(upsert(signature="s"), content), dead(upsert(signature="t"))], FINGERPRINTS)
    store.settle([dead(upsert(source="other")), dead(upsert("b"))], FINGERPRINTS)
    collection = upsert().key.collection
    first, second, *_ = store.dead_letters(data=False)
    assert store.letter("inbox", "a", collection) == second
    clock.now += 1
    store.settle([dead(upsert(signature="s"))], FINGERPRINTS)
    assert store.letter("inbox", "a", collection) == replace(first, last_failed_at=NOW + 1)
    assert store.letter("inbox", "c", collection) is None
    assert store.letter("nobody", "a", collection) is None
    assert store.letter("inbox", "a", "notes") is None


def test_ids_are_never_used_again(store: SqliteStore) -> None:
    """The id of a letter that was discarded does not come to mean another one."""
    store.settle([dead(upsert("a")), dead(upsert("b"))], FINGERPRINTS)
    assert store.discard([1, 2, 77]) == 2
    store.settle([dead(upsert("c"))], FINGERPRINTS)
    assert [letter.id for letter in store.dead_letters()] == [3]


def test_letters_that_are_replayed_wait_in_the_retry_queue(store: SqliteStore, clock: Clock) -> None:
    """A replay moves letters to the queue, due now and with all their tries before them; one that waits is replaced."""
    waiting = upsert("b")
    store.settle([dead(upsert("a")), dead(waiting), retrying(waiting), dead(upsert("c"))], FINGERPRINTS)
    clock.now = NOW + 5
    assert store.requeue([1, 2, 77]) == {"inbox": 1}, "b waited already"
    assert [letter.key.document_id for letter in store.dead_letters()] == ["c"]
    assert {(p.key.document_id, p.attempt, p.due_at, p.first_failed_at) for p in store.parked()} == {
        ("a", 1, NOW + 5, NOW),
        ("b", 1, NOW + 5, NOW),
    }


def test_of_two_letters_of_a_file_one_waits(store: SqliteStore) -> None:
    """Letters of one file's two contents are one event, the later one; what is counted is what waits in addition."""
    later = Outcome(upsert("a", signature="2"), Verdict.DEAD_LETTERED, failure=FAILURE)
    store.settle([dead(upsert("a", signature="1")), later, dead(upsert("b"))], FINGERPRINTS)
    assert store.requeue([3, 2, 1, 2]) == {"inbox": 2}
    assert {each.key.document_id: each.failure.message for each in store.parked()} == {
        "a": FAILURE.message,
        "b": BAD.message,
    }
    assert list(store.dead_letters()) == []


def test_a_new_event_of_a_file_supersedes_its_replayed_letter(store: SqliteStore) -> None:
    """Both are first tries; only the one that was brought back from the queue is the record itself."""
    store.settle([dead(upsert())], FINGERPRINTS)
    store.requeue([1])
    (waits,) = store.parked()
    assert store.settle([dead(upsert(signature="2"))], FINGERPRINTS) == Settled()
    assert store.parked() == [waits], "a new event that fails says nothing about what waits"
    assert store.settle([written(upsert())], FINGERPRINTS) == Settled(superseded=1, mended=1)
    assert store.parked() == []
    store.settle([dead(upsert())], FINGERPRINTS)
    store.requeue([letter.id for letter in store.dead_letters()])
    assert store.settle([retrying(upsert())], FINGERPRINTS) == Settled(superseded=1)
    (waits,) = store.parked()
    assert store.settle([written(again(waits))], FINGERPRINTS) == Settled()


def test_what_is_replayed_is_left_to_the_retry_queue(store: SqliteStore) -> None:
    """The source learns that the document waits there, so that it is not handed in a second time."""
    store.settle([dead(upsert("a", signature="stat"))], FINGERPRINTS)
    store.requeue([1])
    assert [(seen.document_id, seen.signature, seen.verdict) for seen in store.seen("inbox")] == [
        ("a", "stat", Verdict.RETRYING)
    ]


def test_a_replayed_letter_that_comes_to_nothing_is_forgotten(store: SqliteStore) -> None:
    """Its file was away when it was tried again: nothing waits for it any more, so a file that is back is looked at."""
    store.settle([dead(upsert("a", signature="stat")), written(upsert("b", signature="other"))], FINGERPRINTS)
    store.requeue([1])
    (waits,) = store.parked()
    store.settle([Outcome(again(waits), Verdict.SUPERSEDED)], FINGERPRINTS)
    store.settle([Outcome(upsert("b", signature="newer"), Verdict.SUPERSEDED)], FINGERPRINTS)
    assert [(seen.document_id, seen.signature, seen.verdict) for seen in store.seen("inbox")] == [
        ("b", "other", Verdict.WRITTEN)
    ]
    assert list(store.parked()) == []


def test_letters_come_oldest_first_and_by_id(store: SqliteStore) -> None:
    """All letters stream in order past their pages, and a choice of them in the same order, each once."""
    store.settle([dead(upsert(f"d{at}")) for at in range(1_100)], FINGERPRINTS)
    assert [letter.id for letter in store.dead_letters(data=False)] == list(range(1, 1_101))
    assert [letter.id for letter in store.dead_letters()] == list(range(1, 1_101))
    wanted = [900, 3, 3, 5_000, *range(10, 60)]
    assert [letter.id for letter in store.dead_letters(wanted)] == [3, *range(10, 60), 900]
    assert list(store.dead_letters([])) == []


def test_originals_are_bounded_each_and_in_all(reopen: Callable[..., SqliteStore]) -> None:
    """A large original, or one beyond the total, becomes a reference with its size; room that is freed is used."""
    store = reopen(dead_letter_bytes=99, keep_bytes=60)

    def sizes() -> list[tuple[int | None, bool]]:
        return [(letter.size, letter.data is not None) for letter in store.dead_letters()]

    store.settle([dead(upsert(f"d{size}"), Content(b"x" * size, "n")) for size in (61, 50, 40, 10, 9)], FINGERPRINTS)
    assert sizes() == [(61, False), (50, True), (40, True), (10, False), (9, True)]
    store.discard([2])
    store.settle([dead(upsert("later"), Content(b"x" * 30, "n"))], FINGERPRINTS)
    assert sizes()[-1] == (30, True)


@pytest.mark.parametrize("verdict", [Verdict.WRITTEN, Verdict.DELETED, Verdict.UNCHANGED])
def test_a_good_later_version_mends_the_letter(store: SqliteStore, verdict: Verdict) -> None:
    """When a document's fault is mended there is nothing left to replay; other sources' letters stay."""
    store.settle([dead(upsert(signature="1")), dead(upsert(source="other")), dead(upsert("b"))], FINGERPRINTS)
    assert store.settle([Outcome(upsert(signature="2"), verdict)], FINGERPRINTS) == Settled(mended=1)
    assert [(each.source, each.key.document_id) for each in store.dead_letters()] == [("other", "a"), ("inbox", "b")]


def test_an_older_version_mends_nothing(store: SqliteStore) -> None:
    """The late success of an older record, or of an older try, leaves the newer one's letter."""
    store.settle([dead(upsert(version=6)), dead(upsert("b", first_failed_at=NOW - 5))], FINGERPRINTS)
    older = [written(upsert(version=5)), written(upsert("b", attempt=3, first_failed_at=NOW - 60))]
    assert store.settle(older, FINGERPRINTS) == Settled()
    assert store.settle([written(upsert(version=7))], FINGERPRINTS) == Settled(mended=1)


def test_too_many_letters_hold_everything(reopen: Callable[..., SqliteStore]) -> None:
    """At the limit a settlement that adds a letter is refused whole, and goes through when there is room."""
    store = reopen(max_dead_letters=2)
    store.settle([dead(upsert("a")), dead(upsert("b"))], FINGERPRINTS)
    batch = [written(upsert("w", signature="s")), retrying(upsert("r")), dead(upsert("c"))]
    with pytest.raises(UnavailableError, match="dead-letters list") as refused:
        store.settle(batch, FINGERPRINTS)
    assert refused.value.dependency == "dead letters"
    assert (store.entries([batch[0].event.key]), store.parked(), list(store.seen("inbox"))) == ({}, [], [])
    assert store.settle([written(upsert("w")), dead(upsert("a"))], FINGERPRINTS) == Settled()
    assert store.settle([dead(upsert("c")), written(upsert("b"))], FINGERPRINTS) == Settled(mended=1)
    store = reopen(max_dead_letters=1)
    store.settle([written(upsert("w")), dead(upsert("a"))], FINGERPRINTS)
    store.discard([1])
    with pytest.raises(UnavailableError):
        store.settle([dead(upsert("d"))], FINGERPRINTS)


def test_long_messages_are_clipped(store: SqliteStore) -> None:
    """An error that quotes a whole document does not put it into the state a second time."""
    failure = Failure(Stage.EXTRACT, "DocumentError", "m" * 1_000_000, "t" * 1_000_000)
    store.settle([Outcome(upsert(), Verdict.DEAD_LETTERED, failure=failure)], FINGERPRINTS)
    (letter,) = store.dead_letters()
    assert letter.failure.message.endswith("m … (clipped)")
    assert (letter.failure.traceback or "").startswith("(clipped) … t")
    assert len(letter.failure.message) + len(letter.failure.traceback or "") < 30_000


def test_room_for_originals_is_reckoned_within_a_batch(reopen: Callable[..., SqliteStore]) -> None:
    """A letter that is mended, or replaced by its like, makes room for the next one of the same settlement."""
    store = reopen(dead_letter_bytes=50)

    def content(size: int) -> Content:
        return Content(b"x" * size, "n")

    store.settle([dead(upsert("a"), content(50))], FINGERPRINTS)
    store.settle([dead(upsert("a"), content(40)), dead(upsert("b"), content(10))], FINGERPRINTS)
    assert [letter.data for letter in store.dead_letters()] == [b"x" * 40, b"x" * 10]
    store.settle([written(upsert("a")), dead(upsert("c"), content(40)), dead(upsert("d"), content(1))], FINGERPRINTS)
    assert [letter.data for letter in store.dead_letters()] == [b"x" * 10, b"x" * 40, None]


def test_metadata_counts_as_part_of_the_original(reopen: Callable[..., SqliteStore]) -> None:
    """Metadata takes of the same room as the bytes, and where there is none for either the letter is still there."""
    store = reopen(dead_letter_bytes=60, keep_bytes=50)
    for name in ("a", "b"):
        content = Content(b"x" * 20, "n", metadata={"k": "v" * 20})  # 28 bytes of JSON
        store.settle([dead(upsert(name), content)], FINGERPRINTS)
    first, second = store.dead_letters()
    assert (first.metadata, first.data) == ({"k": "v" * 20}, b"x" * 20)
    assert (second.metadata, second.data, second.size) == ({}, None, 20)


# Records, and the leases that they came under


class Lease:
    """A lease of which only what is stored counts (``model.Lease``)."""

    ended = False

    def __init__(self, name: str, *, lent: bool = False) -> None:
        self.id, self.lent = name, lent

    def enter(self) -> bool:
        """Begin a call: nobody makes one here."""
        raise NotImplementedError

    def leave(self) -> None:
        """End it."""
        raise NotImplementedError


RECORDS = [
    Record("t", 0, 0, 1_700_000_000_000, b"key", b'{"id": "a"}', (("h", b"\x00\xff"), ("h", None), ("ü", b""))),
    Record("t", 3, 2**62, -1, None, b"", ()),
    Record("t.ü", 1, 5, 0, b"\x00\xff", None, ()),
]


def of_record(record: Record, lease: Lease | None = None) -> Event:
    """Return the event of a record."""
    event = upsert(f"d{record.offset}", source="cms", position=record.position, lease=lease, record=record)
    return replace(event, version=Version(record.offset, "t"))


@pytest.mark.parametrize("record", RECORDS)
def test_a_parked_record_comes_back_whole(reopen: Callable[..., SqliteStore], record: Record) -> None:
    """Key, value, headers and timestamp, each of them bytes, empty or null as it was: its event can be made again."""
    reopen().settle([retrying(of_record(record, Lease("tenure")))], FINGERPRINTS)
    store = reopen()
    [waits] = store.due(NOW + 99, 9)
    assert (waits.tenure, waits.version) == ("tenure", Version(record.offset, "t"))
    assert store.whole(waits).record == record
    assert store.due(NOW + 99, 9, [("cms", "articles")]) == store.parked() == [waits]
    assert waits.record is None, "what is only looked at needs no copies"


def test_of_a_large_record_no_copy_waits(store: SqliteStore) -> None:
    """Thousands may wait: its topic has it, and nothing else of it is large. A replayed letter's copy is all."""
    record = Record("t", 0, 1, 0, b"k", b"x" * 70_000)
    store.settle([retrying(of_record(record, Lease("tenure")))], FINGERPRINTS)
    [waits] = store.due(NOW + 99, 9)
    assert store.whole(waits).record is None
    store.settle([dead(of_record(record, Lease("tenure")))], FINGERPRINTS)
    [letter] = store.dead_letters()
    store.requeue([letter.id])
    [waits] = store.due(NOW, 9)
    assert store.whole(waits).record == record


def test_what_waits_can_come_to_wait_under_another_document(store: SqliteStore) -> None:
    """A record whose document could not be told before; what waited there from the same place gives way."""
    record = Record("t", 0, 1, 0, b"k", b"v")
    store.settle([retrying(of_record(record, Lease("tenure")))], FINGERPRINTS)
    [waits] = store.due(NOW + 99, 9)
    true = DocumentKey("articles", "true")
    for _ in range(2):
        store.rename(waits, true)
    [renamed] = store.due(NOW + 99, 9)
    assert renamed == replace(waits, key=true)
    assert store.whole(renamed).record == record
    assert store.waiting([("cms", "articles")]) == 1


def test_the_tenure_of_an_entry_is_kept(store: SqliteStore) -> None:
    """It says under which lease the entry can be relied on; the last one counts."""
    known = entry(upsert())
    store.write_ahead([known, replace(known, tenure="first")])
    assert store.entries([known.key])[known.key].tenure == "first"
    store.settle([replace(written(upsert()), entry=replace(known, tenure="second"))], FINGERPRINTS)
    assert [each.tenure for each in store.collection_entries("articles")] == ["second"]
    store.write_ahead([known])
    assert store.entries([known.key]) == {known.key: known}


def test_what_was_parked_under_a_lease_can_be_withdrawn(store: SqliteStore) -> None:
    """By source and lease, each once; what waits here and nowhere else (a file, a replay on a loan) stays."""
    parked = [
        upsert("a", version=1, source="cms", lease=Lease("one")),
        upsert("a", version=2, source="cms", lease=Lease("two")),
        upsert("b", version=3, source="cms", lease=Lease("one")),
        upsert("c", version=4, source="cms", lease=Lease("loan", lent=True)),
        upsert("d", version=5, source="wiki", lease=Lease("one")),
        upsert("e"),
    ]
    store.settle([retrying(event) for event in parked], FINGERPRINTS)

    def left() -> list[str]:
        return sorted(each.key.document_id + each.position[-1] for each in store.parked())

    assert store.withdraw("cms", []) == store.withdraw("cms", {"none"}) == []
    gone = store.withdraw("cms", {"one", "none"})
    assert sorted((each.key.document_id, each.source, each.position, each.attempt, each.tenure) for each in gone) == [
        ("a", "cms", "topic/0@1", 2, "one"),
        ("b", "cms", "topic/0@3", 2, "one"),
    ]
    assert left() == ["a2", "c4", "d5", "ee"]
    assert store.waiting([("cms", "articles")]) == 2
    assert [each.tenure for each in store.withdraw("cms", None)] == ["two"]
    assert store.withdraw("cms", None) == []
    assert left() == ["c4", "d5", "ee"]


def test_some_events_of_a_source_are_hastened(store: SqliteStore) -> None:
    """Those of its positions that are named, or all of its own; another source's wait as they did."""
    positions = ["topic/0@1", "/n\udcff"]
    events = [upsert("a", source="cms", position=at) for at in [*positions, "topic/0@2"]]
    store.settle([retrying(event, 500.0) for event in [*events, upsert("a", position=positions[0])]], FINGERPRINTS)
    assert store.hasten(NOW + 1, "cms", []) == 0
    assert store.hasten(NOW + 1, "cms", [*positions, "topic/0@9"]) == 2
    assert sorted(each.position for each in store.due(NOW + 1, 9)) == sorted(positions)
    assert store.hasten(NOW + 2, "cms") == 3
    assert sorted(each.due_at for each in store.parked()) == [NOW + 1, NOW + 1, NOW + 2, NOW + 500]


def test_sources_are_told_which_parked_events_were_superseded(store: SqliteStore) -> None:
    """Each with its place, so that its source can move on past it; not the event's own earlier try."""
    for number in (1, 2):
        store.settle([retrying(upsert(version=number, source="cms"))], FINGERPRINTS)
    [first, _second] = store.due(NOW + 99, 9)
    settled = store.settle([written(replace(again(first), version=Version(3, "topic/0")))], FINGERPRINTS)
    assert settled.superseded == 1
    [other] = settled.replaced
    assert (other.key, other.source, other.position, other.version) == (
        first.key,
        "cms",
        "topic/0@2",
        Version(2, "topic/0"),
    )


def test_what_is_returned_leaves_nothing_but_its_entry(store: SqliteStore) -> None:
    """Another member does it: it neither waits here, nor mends or supersedes anything, nor was it seen."""
    event = upsert(version=5, source="cms", signature="s", lease=Lease("one"))
    store.settle([dead(upsert(version=3, source="cms")), retrying(upsert(version=4, source="cms"))], FINGERPRINTS)
    store.settle([retrying(event)], FINGERPRINTS)
    waits = next(each for each in store.parked() if each.position == event.position)
    returned = Outcome(replace(again(waits), signature="s"), Verdict.RETURNED, entry(event), failure=FAILURE)
    assert store.settle([returned], FINGERPRINTS) == Settled()
    assert [each.position for each in store.parked()] == ["topic/0@4"]
    assert [letter.position for letter in store.dead_letters()] == ["topic/0@3"]
    assert list(store.seen("cms")) == []
    assert store.entries([event.key]) == {event.key: entry(event)}


@pytest.mark.parametrize("content", [None, Content(b"the text", "name", "text/plain", None, {"k": 1}, text="the text")])
@pytest.mark.parametrize("record", RECORDS)
def test_a_dead_letter_keeps_the_record_as_it_came(
    reopen: Callable[..., SqliteStore], record: Record, content: Content | None
) -> None:
    """Its value is the original, not what was read out of it; what else was read stands beside it."""
    reopen().settle([dead(of_record(record), None if record.value is None else content)], FINGERPRINTS)
    store = reopen()
    [letter] = store.dead_letters()
    assert (letter.record, letter.data, letter.version) == (record, record.value, Version(record.offset, "t"))
    if record.value is not None:
        assert letter.size == len(record.value)
        read = ("name", "text/plain", {"k": 1}) if content else (f"d{record.offset}", None, {})
        assert (letter.name, letter.content_type, letter.metadata) == read
    assert store.requeue([letter.id]) == {"cms": 1}
    [waits] = store.due(NOW, 9)
    assert (store.whole(waits).record, waits.tenure, waits.attempt) == (record, "", 1)
    assert store.withdraw("cms", None) == [], "a replay waits here and nowhere else"


def test_a_record_that_is_too_large_is_a_reference(reopen: Callable[..., SqliteStore]) -> None:
    """Of its value the size is kept, and it is read again from its place; its headers count as well."""
    store = reopen(keep_bytes=500, dead_letter_bytes=1000)

    def kept(record: Record) -> tuple[int | None, bool, bool]:
        store.settle([dead(of_record(record))], FINGERPRINTS)
        letter = list(store.dead_letters())[-1]
        assert letter.position == record.position
        return letter.size, letter.data is not None, letter.record == record

    small = Record("t", 0, 1, 0, b"k", b"x" * 500)
    assert kept(small) == (500, True, True)
    assert kept(replace(small, offset=2, value=b"x" * 501)) == (501, False, False)
    assert kept(replace(small, offset=3, value=b"x", headers=(("h", b"x" * 500),))) == (1, True, False)
    assert kept(replace(small, offset=4, value=None, headers=(("h", b"x" * 500),))) == (None, False, False)
    assert kept(replace(small, offset=5)) == (500, False, False), "there is no room for all of it any more"
    assert store.discard([1]) == 1
    assert kept(replace(small, offset=6)) == (500, True, True)


def test_an_original_that_is_left_out_leaves_its_record_out(store: SqliteStore) -> None:
    """A list of letters reads no values: a record without its value would be a tombstone."""
    store.settle([dead(of_record(record)) for record in RECORDS], FINGERPRINTS)
    assert [letter.record for letter in store.dead_letters(data=False)] == [None, None, RECORDS[2]]
    assert [letter.record for letter in store.dead_letters()] == RECORDS


# All together


def test_what_is_known_of_some_documents(store: SqliteStore) -> None:
    """Which of many wait, which have dead letters, and what was seen of them: in their collection, past 500 of them."""
    elsewhere = replace(upsert("c"), key=DocumentKey("notes", "c"))
    store.settle([retrying(upsert("a")), dead(upsert("b", signature="stat")), retrying(elsewhere)], FINGERPRINTS)
    store.settle([dead(replace(elsewhere, key=DocumentKey("notes", "d")))], FINGERPRINTS)
    names = [*(f"none{at}" for at in range(600)), "a", "b", "c", "d", "a"]
    assert {"a"} == store.parked_of("articles", names)
    assert {"c"} == store.parked_of("notes", names)
    assert {"b"} == store.letters_of("articles", names)
    assert {"d"} == store.letters_of("notes", names)
    seen = Seen("inbox", "b", "stat", Verdict.DEAD_LETTERED, "configuration")
    assert store.seen_of("inbox", "articles", names) == {"b": seen}
    assert store.seen_of("inbox", "notes", names) == store.seen_of("other", "articles", names) == {}
    assert (store.parked_of("articles", []), store.letters_of("articles", [])) == (frozenset(), frozenset())


def test_mending_puts_entries_right_and_parks_their_events(store: SqliteStore) -> None:
    """Both or neither; an event takes the place of what waits there, and what is counted waits in addition."""
    first, second = upsert("a", version=1), upsert("b", version=2)
    store.settle([written(first), written(second), retrying(upsert("b", version=2))], FINGERPRINTS)
    right = [entry(event, present=1, doubtful=1) for event in (first, second)]
    again = [
        Parked(event.key, Op.UPSERT, "inbox", event.position, 1, NOW, NOW, BAD, event.version, RECORDS[0])
        for event in (first, second)
    ]
    assert store.mend(right, again) == {"inbox": 1}
    assert store.entries([first.key, second.key]) == {each.key: each for each in right}
    assert {each.key: store.whole(each) for each in store.parked()} == {each.key: each for each in again}
    assert store.mend([], []) == {}
    with pytest.raises(ValueError, match="16 bytes"):
        store.mend([replace(right[0], present={chunk("a"): b"short"})], [replace(again[0], position="elsewhere")])
    assert len(store.parked()) == 2


def test_a_settlement_is_whole_or_not_at_all(store: SqliteStore) -> None:
    """When one outcome of a batch cannot be stored, none is, and the store goes on."""
    good = written(upsert("a", signature="s"))
    for bad in (Outcome(upsert("b"), Verdict.RETRYING, failure=FAILURE), Outcome(upsert("b"), Verdict.DEAD_LETTERED)):
        with pytest.raises(ValueError, match="'b'"):
            store.settle([good, bad], FINGERPRINTS)
    with pytest.raises(KeyError):
        store.settle([good, written(replace(upsert(), key=DocumentKey("unknown", "a")))], FINGERPRINTS)
    assert (store.entries([good.event.key]), list(store.seen("inbox"))) == ({}, [])
    store.settle([good], FINGERPRINTS)
    assert store.entries([good.event.key]) == {good.event.key: good.entry}


def test_outcomes_apply_in_order(store: SqliteStore) -> None:
    """Several outcomes of one document in a batch come out as they would one after the other."""
    event = upsert(signature="s")
    batch = [dead(event), retrying(event), Outcome(replace(event, op=Op.DELETE), Verdict.DELETED)]
    assert store.settle(batch, FINGERPRINTS) == Settled(superseded=1, mended=1)
    assert store.settle([batch[2], batch[0]], FINGERPRINTS) == Settled()
    assert (len(list(store.dead_letters())), len(list(store.seen("inbox"))), store.parked()) == (1, 1, [])


def test_a_source_without_documents_is_known_by_what_is_left_of_it(store: SqliteStore) -> None:
    """A seen, a parked event or a dead letter alone is enough to find a source, and to forget it."""
    seen = Outcome(upsert(source="seen", signature="s"), Verdict.UNCHANGED)
    store.settle([seen, retrying(upsert(source="parked")), dead(upsert(source="dead"))], FINGERPRINTS)
    store.settle([retrying(replace(upsert(source="dead"), key=DocumentKey("notes", "n")))], FINGERPRINTS)
    known = [("dead", "articles", 0), ("dead", "notes", 0), ("parked", "articles", 0), ("seen", "articles", 0)]
    assert store.sources() == known
    for source, collection, _ in known:
        store.forget(source, collection)
    assert store.sources() == []


def test_forgetting_a_source_leaves_the_others(store: SqliteStore) -> None:
    """All that is known of a source in a collection goes, and nothing else."""
    for source, name in itertools.product(("inbox", "other"), "ab"):
        event = upsert(f"{source}/{name}", source=source, signature="s")
        store.settle([written(event), dead(upsert(f"{source}/{name}!", source=source))], FINGERPRINTS)
        store.settle([retrying(upsert(f"{source}/{name}?", source=source))], FINGERPRINTS)
        store.confirm(source, {"x"})
    assert store.counts() == {"inbox": Counts(2, 0, 2, 2), "other": Counts(2, 0, 2, 2)}
    store.forget("inbox", "articles")
    assert store.counts() == {"other": Counts(2, 0, 2, 2)}
    assert (list(store.seen("inbox")), store.confirmed("inbox"), store.confirmed("other")) == (
        [],
        frozenset(),
        frozenset({"x"}),
    )


def test_everything_is_there_after_a_restart(reopen: Callable[..., SqliteStore]) -> None:
    """What was stored is read back equal by the next process to open the state."""
    store = reopen()
    event = upsert(signature="s")
    store.settle([written(event), retrying(upsert("r")), dead(upsert("d"), Content(b"x", "n"))], FINGERPRINTS)
    store.bind("notes", "id", [])
    before = (store.entries([event.key]), list(store.seen("inbox")), store.parked(), list(store.dead_letters()))
    store = reopen()
    assert before == (
        store.entries([event.key]),
        list(store.seen("inbox")),
        store.parked(),
        list(store.dead_letters()),
    )
    assert store.binding("notes") == "id"
