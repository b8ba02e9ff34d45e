"""What is decided before a document is processed: its order, whether it changed, and what its text is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, NOW, Assembly, Broken, Bytes, MemorySink, delete, open_store, upsert

from ingestd.errors import DocumentError, FatalError, Stopped, Superseded, TransientError, UnavailableError
from ingestd.model import Content, Document, DocumentKey, Extracted, Outcome, Verdict, Version, chunk_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.model import Event
    from ingestd.store.sqlite import SqliteStore

KEY = DocumentKey(COLLECTION, "a")


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


def extracted(stages: Assembly, event: Event) -> Extracted:
    """Return what goes on to the next stage."""
    [result] = stages.extract.process([event])
    assert isinstance(result, Extracted)
    return result


def ended(stages: Assembly, event: Event) -> Outcome:
    """Return the outcome of an event that goes no further."""
    [result] = stages.extract.process([event])
    assert isinstance(result, Outcome)
    return result


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


def test_equal_content_is_unchanged_and_moves_the_version(stages: Assembly, store: SqliteStore) -> None:
    """What the record says about the order counts, though nothing else changed: the version before it is older now."""
    stages.run(upsert("a", "same", 5))
    [outcome] = stages.run(upsert("a", "same", 7))
    assert (outcome.verdict, outcome.reused) == (Verdict.UNCHANGED, 1)
    assert store.entries([KEY])[KEY].version == Version(7, "topic/0")
    assert ended(stages, upsert("a", "other", 6)).verdict is Verdict.SUPERSEDED


def test_equal_bytes_under_other_metadata_are_a_change(stages: Assembly) -> None:
    """Content is the bytes and all that was said about them."""
    stages.run(upsert("a", "same", 5, metadata={"lang": "en"}))
    assert extracted(stages, upsert("a", "same", 6, metadata={"lang": "de"})).digest


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


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (DocumentError("unreadable"), Verdict.DEAD_LETTERED),
        (TransientError("busy", wait=7.0), Verdict.RETRYING),
        (Superseded("it is gone"), Verdict.SUPERSEDED),
        (ZeroDivisionError("nobody foresaw it"), Verdict.DEAD_LETTERED),
    ],
)
def test_a_payload_that_cannot_be_read_is_its_documents_failure(
    stages: Assembly, error: Exception, verdict: Verdict
) -> None:
    """The class of the error is the verdict, and what the other side asked for is kept."""
    outcome = ended(stages, replace(upsert("a", "", 1), payload=Broken(error)))
    assert outcome.verdict is verdict
    assert outcome.wait == getattr(error, "wait", None)


def test_a_failed_extraction_keeps_the_original(stages: Assembly) -> None:
    """A dead letter holds the bytes that were read, and of an error that nobody foresaw its traceback."""
    stages.extraction.errors = {"a": RecursionError("too deep"), "b": DocumentError("no text")}
    unforeseen, foreseen = ended(stages, upsert("a", "bytes", 1)), ended(stages, upsert("b", "bytes", 2))
    for outcome in (unforeseen, foreseen):
        assert outcome.content is not None
        assert (outcome.verdict, outcome.content.data) == (Verdict.DEAD_LETTERED, b"bytes")
    assert unforeseen.failure is not None
    assert foreseen.failure is not None
    assert "too deep" in (unforeseen.failure.traceback or "")
    assert foreseen.failure.traceback is None


def test_an_upsert_without_content_is_a_bad_document(stages: Assembly) -> None:
    """A source that forgot the payload does not delete a document."""
    assert ended(stages, replace(upsert("a", "", 1), payload=None)).verdict is Verdict.DEAD_LETTERED


@pytest.mark.parametrize("error", [Stopped("stopping"), FatalError("no idea")])
def test_what_is_not_about_the_document_ends_the_stage(stages: Assembly, error: BaseException) -> None:
    """Stopping, or a state that is unknown: no document is blamed."""
    stages.extraction.errors["a"] = error
    with pytest.raises(type(error)):
        list(stages.extract.process([upsert("a", "bytes", 1)]))


def test_memory_that_ran_out_is_worth_another_try(stages: Assembly) -> None:
    """It may be another document's doing; the retry policy bounds it if it is not."""
    stages.extraction.errors["a"] = MemoryError()
    assert ended(stages, upsert("a", "bytes", 1)).verdict is Verdict.RETRYING


def test_an_extraction_that_is_away_is_held(stages: Assembly) -> None:
    """A worker that cannot be started now is no document's fault: the event waits, and gets through."""
    tries: list[str] = []
    extract = stages.extraction.extract

    def flaky(content: Content) -> Document:
        tries.append(content.name)
        if len(tries) < 3:
            raise UnavailableError("extraction", "no process could be started")
        return extract(content)

    stages.extraction.extract = flaky  # type: ignore[method-assign]
    assert extracted(stages, upsert("a", "bytes", 1)).document is not None
    assert len(tries) == 3


def test_the_text_is_read_when_it_is_its_turn(stages: Assembly) -> None:
    """What goes on holds the document, the content, and the ledger's entry as it is now."""
    stages.run(upsert("a", "one", 1))
    event = replace(upsert("a", "two", 2), payload=Bytes(b"two", "a.txt"))
    found = extracted(stages, event)
    assert found.document is not None
    assert found.content is not None
    assert found.entry is not None
    assert (found.document.text, found.content.name, found.entry.version.number) == ("two", "a.txt", 1)
    assert found.digest == found.content.digest()
