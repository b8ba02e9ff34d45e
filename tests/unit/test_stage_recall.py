"""What is decided before a document is read: whether its event is worth anything, and against what that is judged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import (
    COLLECTION,
    FINGERPRINT,
    NOW,
    Assembly,
    Broken,
    Bytes,
    ManualLease,
    MemorySink,
    delete,
    open_store,
    upsert,
)

from ingestd.errors import DocumentError
from ingestd.model import (
    EXPLICIT,
    Content,
    Detail,
    DocumentKey,
    Entry,
    Extracted,
    Failure,
    Held,
    Outcome,
    Recalled,
    Stage,
    Verdict,
    Version,
    chunk_ids,
)
from ingestd.stages.recall import Recall, entry_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ingestd.model import ChunkId, Event
    from ingestd.store.sqlite import SqliteStore

KEY = DocumentKey(COLLECTION, "a")
FAULT = Failure(Stage.SOURCE, "UnreadableError", "it is no JSON")
DIGEST = b"d" * 16


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    opened = open_store(tmp_path / "state")
    yield opened
    opened.close(clean=True)


@pytest.fixture
def stages(store: SqliteStore) -> Assembly:
    """Return the stages over it."""
    return Assembly(store, MemorySink())


@pytest.fixture
def sink() -> MemorySink:
    """Return an empty collection that other processes write too."""
    return MemorySink(shared=True)


@pytest.fixture
def member(store: SqliteStore, sink: MemorySink) -> Assembly:
    """Return the stages of a member of a group over both."""
    return Assembly(store, sink, shared=True)


def extracted(stages: Assembly, event: Event) -> Extracted:
    """Return what goes on to be chunked."""
    outcomes: list[Outcome] = []
    [result] = stages.extracted([event], outcomes)
    assert outcomes == []
    return result


def ended(stages: Assembly, event: Event) -> Outcome:
    """Return the outcome of an event that goes no further."""
    outcomes: list[Outcome] = []
    assert stages.extracted([event], outcomes) == []
    [outcome] = outcomes
    return outcome


def asked(sink: MemorySink) -> list[tuple[str, ...]]:
    """Note, from now on, of which documents the sink is asked what it holds."""
    questions: list[tuple[str, ...]] = []

    def note(operation: str, ids: Sequence[ChunkId]) -> None:
        if operation == "held":
            questions.append(tuple(ids))

    sink.before = note
    return questions


def leased(event: Event, lease: ManualLease, *, keyed: bool = True) -> Event:
    """Return the event as it comes under a lease, by default of a topic whose keys are the documents' ids."""
    return replace(event, lease=lease, keyed=keyed)


def explicit(event: Event, number: int) -> Event:
    """Return the event with a version of its producer's own."""
    return replace(event, version=Version(number, EXPLICIT))


def at_hand(event: Event, text: str) -> Event:
    """Return the event as of a source that has its text in memory."""
    content = Content(text.encode(), event.key.document_id, text=text)
    return replace(event, payload=Bytes(text.encode(), event.key.document_id, at_hand=content))


def test_an_older_version_is_superseded_unread(stages: Assembly) -> None:
    """Within one domain the number decides, before the payload is read: old never overwrites new."""
    stages.run(upsert("a", "five", 5))
    for event in (upsert("a", "four", 4), delete("a", 4)):
        assert ended(stages, event).verdict is Verdict.SUPERSEDED
    assert stages.extraction.read == ["a"]


def test_the_same_version_again_is_unchanged_unread(stages: Assembly) -> None:
    """A redelivered record costs nothing."""
    stages.run(upsert("a", "five", 5))
    outcome = ended(stages, upsert("a", "five", 5))
    assert (outcome.verdict, outcome.reused, outcome.embedded) == (Verdict.UNCHANGED, 1, 0)
    assert stages.extraction.read == ["a"]


def test_the_same_version_is_redone_where_it_is_in_doubt(stages: Assembly, store: SqliteStore) -> None:
    """An attempt that did not finish is not applied, though its number is."""
    stages.run(upsert("a", "five", 5))
    entry = store.entries([KEY])[KEY]
    [chunk_id] = chunk_ids("a", ["five"])
    store.write_ahead([replace(entry, present={}, doubtful=frozenset({chunk_id}))])
    assert extracted(stages, upsert("a", "five", 5)).digest == entry.content


def test_the_same_version_is_redone_after_a_change_of_processing(stages: Assembly, store: SqliteStore) -> None:
    """Another chunker's rows are not those that are wanted now."""
    stages.run(upsert("a", "five", 5))
    entry = store.entries([KEY])[KEY]
    store.write_ahead([replace(entry, fingerprint="another chunker's")])
    assert extracted(stages, upsert("a", "five", 5)).version == Version(5, "topic/0")


def test_across_domains_the_later_arrival_wins(stages: Assembly) -> None:
    """A lower number of another partition says nothing about the order."""
    stages.run(upsert("a", "five", 5))
    stages.run(upsert("a", "one", 1, domain="topic/1"))
    assert stages.sink.texts() == {"a": ("one",)}


def test_a_file_gets_a_version_that_is_later_than_the_last(stages: Assembly, store: SqliteStore) -> None:
    """Microseconds since 1970, or one more than the last, should the clock have been set back."""
    stages.run(upsert("a", "one"))
    assert store.entries([KEY])[KEY].version == Version(int(NOW * 1_000_000), "cms")
    stages.clock.advance(-86_400)
    stages.run(upsert("a", "two"))
    assert store.entries([KEY])[KEY].version == Version(int(NOW * 1_000_000) + 1, "cms")
    stages.clock.advance(86_400 + 1)
    [deleted] = stages.run(delete("a"))
    assert deleted.verdict is Verdict.DELETED
    assert store.entries([KEY])[KEY].version == Version(int((NOW + 1) * 1_000_000), "cms")


def test_a_file_that_comes_back_is_written(stages: Assembly) -> None:
    """A tombstone does not hold a folder's document back: being looked at again is later than any delete."""
    stages.run(upsert("a", "one"))
    stages.run(delete("a"))
    [outcome] = stages.run(upsert("a", "one"))
    assert outcome.verdict is Verdict.WRITTEN
    assert stages.sink.texts() == {"a": ("one",)}


def test_two_sources_may_not_write_one_document(stages: Assembly) -> None:
    """The second one is refused with both names and the cure, also to delete; the document stays."""
    stages.run(upsert("a", "one", 5))
    for event in (upsert("a", "two", 9, source="inbox"), delete("a", 9, source="inbox")):
        outcome = ended(stages, event)
        assert outcome.verdict is Verdict.DEAD_LETTERED
        assert outcome.failure is not None
        assert (outcome.failure.stage, outcome.failure.error) == ("source", "DocumentError")
        assert all(word in outcome.failure.message for word in ("'cms'", "a belongs", "shared_ids"))
    assert stages.extraction.read == ["a"]


def test_a_deleted_document_may_be_taken_over(stages: Assembly) -> None:
    """A tombstone belongs to nobody."""
    stages.run(upsert("a", "one", 5))
    stages.run(delete("a", 6))
    assert extracted(stages, upsert("a", "two", 9, source="inbox")).event.source == "inbox"


def test_shared_ids_let_sources_take_turns(store: SqliteStore) -> None:
    """With ``shared_ids`` the version decides, and each change of the source is written, though the bytes are equal."""
    stages = Assembly(store, MemorySink(), shared_ids=True)
    stages.run(upsert("a", "one", 5))
    [outcome] = stages.run(upsert("a", "one", 6, source="inbox"))
    assert outcome.verdict is Verdict.WRITTEN
    assert {row.source for row in stages.sink.rows.values()} == {"inbox"}
    assert ended(stages, upsert("a", "old", 5)).verdict is Verdict.SUPERSEDED


def test_a_delete_of_an_unknown_document_goes_through(stages: Assembly, store: SqliteStore) -> None:
    """There is nothing to read, and its version is remembered: of a record its own, of a file the clock's."""
    found = extracted(stages, delete("a", 3))
    assert (found.version, found.entry, found.content, found.document) == (Version(3, "topic/0"), None, None, None)
    stages.run(delete("b"))
    assert store.entries([DocumentKey(COLLECTION, "b")])[DocumentKey(COLLECTION, "b")].version.domain == "cms"


# What is relied on


def test_the_ledger_is_relied_on_where_nobody_else_writes(store: SqliteStore) -> None:
    """Milvus is asked nothing, whatever the lease was."""
    stages = Assembly(store, MemorySink())
    questions = asked(stages.sink)
    stages.run(leased(upsert("a", "one", 1), ManualLease("first")))
    assert ended(stages, leased(upsert("a", "one", 1), ManualLease("second"))).verdict is Verdict.UNCHANGED
    assert questions == []


def test_a_member_relies_on_what_it_wrote_under_the_same_lease(member: Assembly, sink: MemorySink) -> None:
    """A document that is new to it is asked for once; then the ledger knows, until its partition comes anew."""
    questions, lease = asked(sink), ManualLease("first")
    member.run(leased(upsert("a", "one", 1), lease))
    assert questions == [("a",)]
    assert ended(member, leased(upsert("a", "one", 1), lease)).verdict is Verdict.UNCHANGED
    [again] = member.run(leased(upsert("a", "one", 2), lease))
    assert (again.verdict, again.embedded, again.reused) == (Verdict.WRITTEN, 0, 1)
    assert questions == [("a",)]
    assert extracted(member, leased(upsert("a", "two", 3), lease)).entry is not None
    assert questions == [("a",)]
    assert extracted(member, leased(upsert("a", "two", 3), ManualLease("second"))).entry is not None
    assert questions == [("a",), ("a",)]


@pytest.mark.parametrize("other", ["not keyed", "on a loan", "explicit"])
def test_what_can_come_in_other_partitions_too_is_always_asked_for(
    member: Assembly, sink: MemorySink, other: str
) -> None:
    """Under the very same lease: another member may have written the document from another partition since."""
    lease = ManualLease("first", lent=other == "on a loan")
    questions = asked(sink)
    for number in (1, 2):
        event = leased(upsert("a", f"text {number}", number), lease, keyed=other != "not keyed")
        member.run(explicit(event, number) if other == "explicit" else event)
    assert questions == [("a",), ("a",)]


def test_another_domains_explicit_versions_are_asked_for(member: Assembly, sink: MemorySink) -> None:
    """Offsets until now, and a producer's own version from another partition meanwhile: it is found, and it counts."""
    lease = ManualLease("first")
    member.run(leased(explicit(upsert("a", "one", 1), 5), lease))
    questions = asked(sink)
    assert refused(ended(member, leased(upsert("a", "two", 2), lease)))
    assert questions == [("a",)]


@pytest.mark.parametrize("text", ["same", ""])
def test_the_next_owner_knows_the_latest_version_whatever_it_changed(
    member: Assembly, sink: MemorySink, text: str
) -> None:
    """Equal content under a later version, or a version without text: Milvus says so, and older ones are superseded."""
    first, second = ManualLease("first"), ManualLease("second")
    member.run(leased(explicit(upsert("a", "same", 1), 5), first))
    member.run(leased(explicit(upsert("a", text, 2), 7), first))
    assert ended(member, leased(explicit(upsert("a", "late", 3), 6), second)).verdict is Verdict.SUPERSEDED
    assert sink.texts() == ({"a": ("same",)} if text else {})


def test_what_another_member_wrote_meanwhile_counts(member: Assembly, sink: MemorySink, tmp_path: Path) -> None:
    """The ledger says version 1, Milvus says 7: records between are superseded, and the delete of another too."""
    member.run(leased(upsert("a", "one", 1), ManualLease("first")), leased(upsert("b", "b", 2), ManualLease("first")))
    with open_store(tmp_path / "other") as other:
        rest = Assembly(other, sink, shared=True)
        rest.run(leased(upsert("a", "seven", 7), ManualLease("theirs")))
        rest.run(leased(delete("b", 8), ManualLease("theirs")))
    again = ManualLease("second")
    assert ended(member, leased(upsert("a", "five", 5), again)).verdict is Verdict.SUPERSEDED
    assert ended(member, leased(upsert("b", "five", 5), again)).verdict is Verdict.SUPERSEDED
    assert ended(member, leased(delete("a", 6), again)).verdict is Verdict.SUPERSEDED
    member.run(leased(upsert("a", "nine", 9), again), leased(upsert("b", "nine", 9), again))
    assert sink.texts() == {"a": ("nine",), "b": ("nine",)}


def test_what_milvus_says_is_not_taken_for_equal_content(member: Assembly, sink: MemorySink) -> None:
    """The same record after a rebalance is cut again, finds its rows as they should be, and embeds nothing."""
    event = upsert("a", "one\ntwo", 1)
    member.run(leased(event, ManualLease("first")))
    rows = dict(sink.rows)
    member.embedder.calls.clear()
    [outcome] = member.run(leased(event, ManualLease("second")))
    assert (outcome.verdict, outcome.embedded, outcome.reused) == (Verdict.WRITTEN, 0, 2)
    assert (member.embedder.calls, sink.rows) == ([], rows)


def test_milvus_is_asked_once_for_a_batch(member: Assembly, sink: MemorySink) -> None:
    """Of five events three are doubted: one question names those three."""
    ours, new = ManualLease("ours"), ManualLease("new")
    member.run(leased(upsert("known", "x", 1), ours), leased(upsert("old", "x", 2), ours))
    questions = asked(sink)
    batch = [
        leased(upsert("known", "y", 3), ours),
        leased(upsert("fresh", "y", 4), ours),
        leased(upsert("old", "y", 5), new),
        upsert("file", "y"),
        leased(delete("gone", 6), new),
    ]
    assert len(member.extracted(batch, [])) == len(batch)
    assert questions == [("fresh", "old", "gone")]


def test_an_outage_while_asking_holds_the_batch(member: Assembly, sink: MemorySink) -> None:
    """No document is blamed, and none is taken for unknown."""
    member.run(leased(upsert("a", "one", 5), ManualLease("first")))
    sink.outage = 4
    assert ended(member, leased(upsert("a", "old", 4), ManualLease("second"))).verdict is Verdict.SUPERSEDED
    assert sink.outage == 0


def test_a_file_is_not_asked_for(member: Assembly, sink: MemorySink) -> None:
    """A folder belongs to one member: nobody else writes its documents."""
    questions = asked(sink)
    member.run(upsert("a", "one"))
    assert questions == []


def test_what_an_operator_has_tried_again_is_looked_at_closely(member: Assembly, sink: MemorySink) -> None:
    """Whatever the ledger says of the document: rows that are missing, of another text, or there twice are mended."""
    lease = ManualLease("ours")
    first = leased(upsert("a", "one\ntwo\nthree\nfour", 1), lease)
    member.run(first)
    whole = dict(sink.rows)
    one, two, three, four = chunk_ids("a", ["one", "two", "three", "four"])
    del sink.rows[one]
    sink.rows[two] = replace(sink.rows[two], text="zwei")
    sink.copies[three] = 2
    assert ended(member, first).verdict is Verdict.UNCHANGED
    [outcome] = member.run(replace(first, again=True))
    assert (outcome.verdict, outcome.embedded, outcome.reused) == (Verdict.WRITTEN, 3, 1)
    assert {at: row.with_vectors({}) for at, row in sink.rows.items()} == {
        at: row.with_vectors({}) for at, row in whole.items()
    }
    assert sink.copies == {}
    assert sink.rows[four] is whole[four]
    [outcome] = member.run(replace(first, again=True))
    assert (outcome.verdict, outcome.embedded, outcome.reused) == (Verdict.WRITTEN, 0, 4)


# What Milvus says, in the ledger's terms


def held(*versions: Version, tombstone: Version | None = None, source: str = "cms") -> Held:
    """Return what is held of a document that has a row for each of these versions."""
    rows = {f"{at:032x}": DIGEST for at in range(len(versions))}
    return Held(rows, frozenset(versions), source if versions else "", tombstone)


HERE, THERE = "topic/0", "topic/1"


@pytest.mark.parametrize(
    ("found", "version"),
    [
        (held(Version(3, HERE), Version(7, HERE)), Version(7, HERE)),  # half written, or edited
        (held(Version(3, HERE), Version(9, THERE)), Version(3, HERE)),  # the event's own domain decides
        (held(Version(3, THERE), Version(9, "topic/2")), Version(9, "topic/2")),
        (held(Version(9, HERE), Version(2, EXPLICIT)), Version(2, EXPLICIT)),  # stronger than any offset
        (held(Version(5, HERE), tombstone=Version(4, HERE)), Version(5, HERE)),  # written again since
        (held(Version(5, HERE), tombstone=Version(9, THERE)), Version(5, HERE)),  # says nothing about these rows
        (held(Version(5, EXPLICIT), tombstone=Version(4, HERE)), Version(5, EXPLICIT)),
    ],
)
def test_rows_say_which_version_a_document_has(found: Held, version: Version) -> None:
    """Their rows are there, with their digests; nothing is known of the processing or the content."""
    event = upsert("a", "x", 6)
    assert entry_of(event, found) == Entry(KEY, "cms", version, "", "", present=found.rows)


@pytest.mark.parametrize(
    "found",
    [
        held(tombstone=Version(4, HERE)),
        held(tombstone=Version(4, EXPLICIT)),
        held(Version(3, HERE), Version(2, HERE), tombstone=Version(4, HERE)),
        held(Version(4, HERE), tombstone=Version(4, HERE)),
    ],
)
def test_a_tombstone_that_is_not_older_says_that_a_document_is_gone(found: Held) -> None:
    """Rows that are there yet are a delete's that did not finish: they are doubtful, and go with the next event."""
    assert found.tombstone is not None
    expected = Entry(KEY, "cms", found.tombstone, "", "", doubtful=frozenset(found.rows), deleted=True)
    assert entry_of(upsert("a", "x", 6), found) == expected


def test_what_a_delete_of_its_own_partition_passed_touches_nothing() -> None:
    """The rows are another domain's, and later: the event is held against the tombstone, and changes none."""
    found = held(Version(5, THERE), tombstone=Version(9, HERE))
    assert entry_of(upsert("a", "x", 6), found) == Entry(KEY, "cms", Version(9, HERE), "", "", deleted=True)
    assert entry_of(upsert("a", "x", 10), found) == Entry(KEY, "cms", Version(5, THERE), "", "", present=found.rows)


def test_rows_of_an_attempt_at_this_very_version_are_in_doubt() -> None:
    """They stand beside the old version's, whose first chunk is there: if the version fails now, they go."""
    old, new = Version(3, HERE), Version(6, HERE)
    rows = {f"{at:032x}": DIGEST for at in range(3)}
    made = dict(zip(rows, (old, old, new), strict=True))
    begun = frozenset(list(rows)[2:])
    half = Held(rows, frozenset({old, new}), "cms", made=made, firsts=frozenset({old}))
    present = {chunk_id: DIGEST for chunk_id in rows if chunk_id not in begun}
    entry = Entry(KEY, "cms", new, "", "", present=present, doubtful=begun, begun=begun)
    assert entry_of(upsert("a", "x", 6), half) == entry
    whole = replace(half, firsts=frozenset({new}))
    assert entry_of(upsert("a", "x", 6), whole) == replace(entry, present=rows, doubtful=frozenset(), begun=frozenset())
    assert entry_of(upsert("a", "x", 7), half) == entry_of(upsert("a", "x", 7), whole)


def test_rows_that_are_not_what_their_keys_say_are_in_doubt() -> None:
    """They are written again or deleted, and are no attempt's of this version, to be taken back if it fails."""
    version = Version(6, HERE)
    rows = {f"{at:032x}": DIGEST for at in range(3)}
    good, strange, twice = rows
    details = {
        good: Detail(0, "cms", DIGEST, genuine=True),
        strange: Detail(1, "cms", DIGEST, genuine=False),
        twice: Detail(2, "cms", DIGEST, genuine=True, copies=2),
    }
    found = replace(held(version), rows=rows, details=details)
    spoilt = frozenset({strange, twice})
    assert entry_of(upsert("a", "x", 6), found) == Entry(KEY, "cms", version, "", "", {good: DIGEST}, doubtful=spoilt)


def test_rows_with_keys_of_others_are_in_no_entry() -> None:
    """Somebody inserted them: the ledger has no room for them, and an audit deletes them."""
    ours, version = "a" * 32, Version(7, "cms")
    rows = dict.fromkeys((ours, "foo", "B" * 32), b"\0" * 16)
    found = entry_of(upsert("a", "one", 9), Held(rows, frozenset({version}), "cms", made=dict.fromkeys(rows, version)))
    assert found is not None
    assert (list(found.present), found.doubtful) == ([ours], frozenset())
    grave = entry_of(upsert("a", "one", 9), Held(rows, frozenset({version}), "cms", version))
    assert grave is not None
    assert (grave.deleted, grave.doubtful) == (True, frozenset({ours}))


def test_what_milvus_does_not_know_is_not_known() -> None:
    """No entry at all: there is nothing to hold the event against."""
    assert entry_of(upsert("a", "x", 6), None) is None


def test_a_delete_that_another_member_left_half_done_is_finished(member: Assembly, sink: MemorySink) -> None:
    """The tombstone is there and so are rows: the same record again takes them away."""
    member.run(leased(upsert("a", "one\ntwo", 1), ManualLease("theirs")))
    sink.tombstones["a"] = Version(3, "topic/0")
    assert ended(member, leased(upsert("a", "late", 2), ManualLease("ours"))).verdict is Verdict.SUPERSEDED
    [outcome] = member.run(leased(delete("a", 3), ManualLease("ours")))
    assert (outcome.verdict, sink.rows) == (Verdict.DELETED, {})


def test_a_document_of_another_source_is_refused_by_what_milvus_says(member: Assembly) -> None:
    """The rows name their source."""
    member.run(leased(upsert("a", "one", 1), ManualLease("theirs")))
    outcome = ended(member, leased(upsert("a", "two", 2, source="crm"), ManualLease("ours")))
    assert outcome.failure is not None
    assert "belongs to the source 'cms'" in outcome.failure.message


# Leases, faults, and text that is at hand


def test_an_event_whose_lease_has_ended_is_returned(member: Assembly, sink: MemorySink) -> None:
    """It is another member's by now: nothing is read or asked for it, and the rest of the batch goes on."""
    lost, kept = ManualLease("lost"), ManualLease("kept")
    lost.ended = True
    questions = asked(sink)
    outcomes: list[Outcome] = []
    batch = [leased(upsert("a", "x", 1), lost), leased(delete("b", 2), lost), leased(upsert("c", "x", 3), kept)]
    [passed] = member.extracted(batch, outcomes)
    assert passed.event is batch[2]
    assert [(outcome.event, outcome.verdict) for outcome in outcomes] == [
        (batch[0], Verdict.RETURNED),
        (batch[1], Verdict.RETURNED),
    ]
    assert questions == [("c",)]
    assert member.extraction.read == ["c"]


def test_an_event_with_a_fault_is_a_dead_letter_unread(member: Assembly, sink: MemorySink) -> None:
    """Its source knows already: neither its payload nor Milvus is asked, and nothing is known of its document."""
    questions = asked(sink)
    event = replace(leased(upsert("a", "x", 1), ManualLease()), fault=FAULT)
    outcome = ended(member, event)
    assert (outcome.verdict, outcome.failure, outcome.content) == (Verdict.DEAD_LETTERED, FAULT, None)
    assert (questions, member.extraction.read) == ([], [])


def test_a_fault_is_for_the_next_owner_to_judge(member: Assembly) -> None:
    """Where the lease has ended the event is returned, not dead-lettered: its record comes again elsewhere."""
    lease = ManualLease()
    lease.ended = True
    assert ended(member, replace(leased(upsert("a", "x", 1), lease), fault=FAULT)).verdict is Verdict.RETURNED


def test_a_text_that_is_at_hand_passes_the_extraction_by(stages: Assembly) -> None:
    """It goes on from the first stage as it is, with its digest; the second has no part in it."""
    event = at_hand(upsert("a", "", 1, metadata={}), "# as it is\n<b>")
    [found] = stages.recall.process([event])
    assert isinstance(found, Extracted)
    assert found.document is not None
    assert found.content is not None
    assert (found.document.text, found.document.title) == ("# as it is\n<b>", None)
    assert found.digest == found.content.digest() == Content(b"# as it is\n<b>", "a").digest()
    assert stages.run(event)[0].verdict is Verdict.WRITTEN
    [again] = stages.recall.process([at_hand(upsert("a", "", 2), "# as it is\n<b>")])
    assert isinstance(again, Outcome)
    assert (again.verdict, again.reused) == (Verdict.UNCHANGED, 2)
    assert stages.extraction.read == []


@pytest.mark.parametrize("content", [Content(b"<p>one</p>", "a", "text/html"), None])
def test_bytes_that_are_at_hand_are_extracted(stages: Assembly, content: Content | None) -> None:
    """Only a text needs no extraction: bytes that are in memory, and what has to be fetched, take the second stage."""
    event = replace(upsert("a", "", 1), payload=Bytes(b"<p>one</p>", "a", at_hand=content))
    [found] = stages.recall.process([event])
    assert isinstance(found, Recalled)
    assert extracted(stages, event).document is not None
    assert stages.extraction.read == ["a"]


def test_a_text_at_hand_that_cannot_be_had_is_its_documents_failure(stages: Assembly) -> None:
    """Reading fails in the first stage as it does in the second: the class of the error is the verdict."""
    broken = Broken(DocumentError("it is too large"), at_hand=Content(b"x", "a", text="x"))
    outcome = ended(stages, replace(upsert("a", "", 1), payload=broken))
    assert (outcome.verdict, outcome.failure and outcome.failure.error) == (Verdict.DEAD_LETTERED, "DocumentError")


# Versions of the producer's own


def refused(outcome: Outcome) -> bool:
    """Say whether an event was refused for want of a version."""
    assert outcome.verdict is Verdict.DEAD_LETTERED
    assert outcome.failure is not None
    return outcome.failure.stage is Stage.SOURCE and "version" in outcome.failure.message


def test_explicit_versions_decide_whatever_the_offsets(stages: Assembly) -> None:
    """A later record with a lower version is older; the same version again is unchanged."""
    stages.run(explicit(upsert("a", "five", 100), 5))
    assert ended(stages, explicit(upsert("a", "four", 101), 4)).verdict is Verdict.SUPERSEDED
    assert ended(stages, explicit(delete("a", 102), 4)).verdict is Verdict.SUPERSEDED
    assert ended(stages, explicit(upsert("a", "five", 103), 5)).verdict is Verdict.UNCHANGED
    stages.run(explicit(upsert("a", "six", 99, domain="topic/1"), 6))
    assert stages.sink.texts() == {"a": ("six",)}


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("late", [upsert("a", "x", 200), delete("a", 200), upsert("a", "x"), delete("a")])
def test_a_document_with_explicit_versions_accepts_no_event_without(
    stages: Assembly, late: Event, *, gone: bool
) -> None:
    """Nothing would say which is newer: a dead letter that says what to do, also for deletes and after a delete."""
    stages.run(explicit(upsert("a", "five", 100), 5))
    if gone:
        stages.run(explicit(delete("a", 101), 6))
    before = stages.sink.texts()
    outcome = ended(stages, late)
    assert refused(outcome)
    assert outcome.failure is not None
    assert late.position in outcome.failure.message
    assert stages.sink.texts() == before


@pytest.mark.parametrize("gone", [False, True])
def test_a_member_finds_explicit_versions_in_milvus(member: Assembly, *, gone: bool) -> None:
    """Rows that an edit left alone, or a tombstone, say so to whoever takes the partition over."""
    theirs, ours = ManualLease("theirs"), ManualLease("ours")
    member.run(leased(upsert("a", "one\ntwo\nthree", 1), theirs))
    member.run(leased(explicit(upsert("a", "one\ntwo\nfour", 2), 3), theirs))
    if gone:
        member.run(leased(explicit(delete("a", 3), 4), theirs))
    assert refused(ended(member, leased(upsert("a", "x", 200), ours)))
    assert ended(member, leased(explicit(upsert("a", "x", 201), 2), ours)).verdict is Verdict.SUPERSEDED
    assert extracted(member, leased(explicit(upsert("a", "x", 202), 5), ours)).version == Version(5, EXPLICIT)


def test_a_document_may_begin_to_have_explicit_versions(stages: Assembly, store: SqliteStore) -> None:
    """The first event that brings one wins over any offset, and from then on they count."""
    stages.run(upsert("a", "one", 100))
    stages.run(explicit(upsert("a", "two", 101), 1))
    assert store.entries([KEY])[KEY].version == Version(1, EXPLICIT)
    assert stages.sink.texts() == {"a": ("two",)}


def test_an_explicit_version_that_never_was_applied_binds_nobody(stages: Assembly) -> None:
    """The document's first version failed: an event without one is not held against it."""
    stages.sink.refuses = lambda row: row.text == "bad"
    [outcome] = stages.run(explicit(upsert("a", "bad", 1), 5))
    assert outcome.verdict is Verdict.DEAD_LETTERED
    assert extracted(stages, upsert("a", "good", 2)).version == Version(2, "topic/0")


# Across domains


def test_a_version_that_does_not_compare_is_counted(stages: Assembly, store: SqliteStore) -> None:
    """By source: of another partition, or another kind. Not for files, within a domain, or before the first version."""
    crossed: list[str] = []
    recall = Recall(
        store,
        stages.sink,
        fingerprint=FINGERPRINT,
        clock=stages.clock,
        shared=False,
        shared_ids=True,
        patience=stages.breakers.patience(COLLECTION, lambda: None),
        on_crossed=crossed.append,
    )
    stages.sink.refuses = lambda row: row.text == "bad"
    stages.run(upsert("a", "one", 5), upsert("b", "bad", 5))
    events = [
        upsert("a", "x", 6),
        upsert("a", "x", 4),
        upsert("a", "x", source="inbox"),
        upsert("b", "x", 1, domain="topic/1"),
        upsert("new", "x", 1, domain="topic/1"),
    ]
    for event in events:
        list(recall.process([event]))
    assert crossed == []
    for event in (upsert("a", "x", 1, domain="topic/1", source="crm"), explicit(upsert("a", "x", 7), 1)):
        [found] = recall.process([event])
        assert isinstance(found, Recalled)
    assert crossed == ["crm", "cms"]
