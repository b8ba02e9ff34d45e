"""What a document's text is, and whether it changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, Assembly, Broken, Bytes, MemorySink, open_store, upsert

from ingestd.errors import DocumentError, FatalError, Stopped, Superseded, TransientError, UnavailableError
from ingestd.model import Content, Document, DocumentKey, Extracted, Recalled, Verdict, Version
from ingestd.ports import always

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ingestd.model import Event, Outcome
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
        stages.extracted([upsert("a", "bytes", 1)], [])


def test_memory_that_ran_out_is_worth_another_try(stages: Assembly) -> None:
    """It may be another document's doing; the retry policy bounds it if it is not."""
    stages.extraction.errors["a"] = MemoryError()
    assert ended(stages, upsert("a", "bytes", 1)).verdict is Verdict.RETRYING


def test_an_extraction_that_is_away_is_held(stages: Assembly) -> None:
    """A worker that cannot be started now is no document's fault: the event waits, and gets through."""
    tries: list[str] = []
    extract = stages.extraction.extract

    def flaky(content: Content, *, hurried: bool = False, waiting: Callable[[], None] = always) -> Document:
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


def test_a_difficult_document_is_read_where_nobody_waits_for_it(stages: Assembly) -> None:
    """A thread in a hurry hands the event on as it came, and reads the next; without hurry it is read."""
    stages.extraction.difficult = {"a"}
    events = [upsert("a", "text", 1), upsert("b", "text", 1)]
    outcomes: list[Outcome] = []
    known = [item for item in stages.recall.process(events) if isinstance(item, Recalled)]
    first, second = stages.extract.process(known)
    assert first is known[0]
    assert isinstance(second, Extracted)
    assert stages.extraction.read == ["b"]
    assert {item.event.key.document_id for item in stages.extracted(events, outcomes)} == {"a", "b"}
    assert outcomes == []


class Fetched:
    """What a server has (``model.Payload``).

    Args:
        failures: How often it cannot be read before it can.
        down: Whether the server answers no probe meanwhile.
    """

    at_hand = None

    def __init__(self, failures: int, *, down: bool) -> None:
        self.failures = failures
        self.down = down
        self.reads = self.probes = 0

    def read(self) -> Content:
        """Return the bytes, in time."""
        self.reads += 1
        if self.reads <= self.failures:
            raise UnavailableError("uri:files:80", "answers 502")
        return Content(b"bytes", "a.txt")

    def probe(self) -> None:
        """Answer, if it is up."""
        self.probes += 1
        if self.down and self.reads <= self.failures:
            raise UnavailableError("uri:files:80", "no answer")


def test_a_server_that_is_away_is_waited_for(stages: Assembly) -> None:
    """An outage of whatever length spends no document's retries."""
    payload = Fetched(20, down=True)
    assert extracted(stages, replace(upsert("a", "", 1), payload=payload)).document is not None
    assert payload.reads == 21


def test_a_document_that_its_server_alone_fails_on_is_tried_again_later(stages: Assembly) -> None:
    """The server answers a probe, and this address never: that is found out, and holds nobody up."""
    payload = Fetched(1000, down=False)
    outcome = ended(stages, replace(upsert("a", "", 1), payload=payload))
    assert outcome.verdict is Verdict.RETRYING
    assert outcome.failure is not None
    assert "answers 502" in outcome.failure.message
    assert payload.reads == 3


def test_what_a_server_has_is_fetched_where_nobody_waits(stages: Assembly) -> None:
    """A server that lets one wait holds up none of the documents that are here."""
    payload = Fetched(0, down=False)
    [recalled] = stages.recall.process([replace(upsert("a", "", 1), payload=payload)])
    assert isinstance(recalled, Recalled)
    assert [recalled] == list(stages.extract.process([recalled]))
    assert payload.reads == 0
    [result] = stages.extract_long.process([recalled])
    assert isinstance(result, Extracted)
