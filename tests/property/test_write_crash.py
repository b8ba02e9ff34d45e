"""Wherever the process is killed while it writes, a run to the end leaves what the last versions say, and only that."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes import COLLECTION, Assembly, Killed, MemorySink, delete, open_store, upsert

from ingestd.model import DocumentKey, Verdict, chunk_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestd.model import Event
    from ingestd.store.sqlite import SqliteStore

DOCUMENTS = ("a", "b", "c")
ENDED = {Verdict.WRITTEN, Verdict.DELETED, Verdict.UNCHANGED, Verdict.SUPERSEDED, Verdict.DEAD_LETTERED}


@dataclass(frozen=True, slots=True)
class Change:
    """One version of a document; a line "bad" is refused by the server."""

    document: str
    lines: tuple[str, ...] | None
    """None: the document is deleted."""
    tag: int

    def event(self, number: int, *, versioned: bool) -> Event:
        """Return it as a record, or as a file's change."""
        version = number if versioned else None
        if self.lines is None:
            return delete(self.document, version)
        return upsert(self.document, "\n".join(self.lines), version, metadata={"tag": self.tag})


words = st.sampled_from(["one", "two", "three", "four", "five"])
texts = st.lists(words, max_size=6).map(tuple)
changes = st.builds(
    Change,
    st.sampled_from(DOCUMENTS),
    st.none() | texts | st.tuples(texts, texts).map(lambda parts: (*parts[0], "bad", *parts[1])),
    st.integers(0, 1),
)
last_ones = st.tuples(*(st.builds(Change, st.just(name), st.none() | texts, st.integers(0, 1)) for name in DOCUMENTS))


class Life:
    """Counts down what a life of the process does, and ends it."""

    def __init__(self) -> None:
        self.left: int | None = None
        """None: it lives on."""

    def step(self, *_: object) -> None:
        """Do one thing, or die."""
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1

    def mortal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call before and after which the process may die."""

        def stepping(*arguments: Any, **named: Any) -> Any:
            self.step()
            result = call(*arguments, **named)
            self.step()
            return result

        return stepping


def batches(events: Sequence[Event]) -> list[list[Event]]:
    """Return the events in runs in which no document comes twice, as lanes give them out."""
    runs: list[list[Event]] = [[]]
    for event in events:
        if any(event.key == other.key for other in runs[-1]):
            runs.append([])
        runs[-1].append(event)
    return runs


def live(store: SqliteStore, sink: MemorySink, runs: Sequence[list[Event]], done: int, *, window: int) -> int:
    """Work off what is left, from a position; return the position at which it was killed, or the end."""
    stages = Assembly(store, sink, window=window)
    for position in range(done, len(runs)):
        try:
            outcomes = stages.run(*runs[position], windows_at_a_time=2)
        except Killed:
            return position
        assert len(outcomes) == len(runs[position])
        assert {outcome.verdict for outcome in outcomes} <= ENDED
    return len(runs)


def assert_equal_to_the_last(store: SqliteStore, sink: MemorySink, last: Sequence[Change]) -> None:
    """Assert that sink and ledger are what the last version of each document says."""
    rows: dict[str, tuple[str, str, int, object]] = {}
    for change in last:
        lines = change.lines or ()
        for at, (key, line) in enumerate(zip(chunk_ids(change.document, lines), lines, strict=True)):
            rows[key] = (change.document, line, at, change.tag)
    found = {key: (row.document_id, row.text, row.chunk_index, row.metadata["tag"]) for key, row in sink.rows.items()}
    assert rows == found
    entries = store.entries([DocumentKey(COLLECTION, change.document) for change in last])
    assert {key: row.digest() for key, row in sink.rows.items()} == {
        key: digest for entry in entries.values() for key, digest in entry.present.items()
    }
    for change in last:
        entry = entries[DocumentKey(COLLECTION, change.document)]
        assert (entry.doubtful, entry.deleted) == (frozenset(), change.lines is None)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    some=st.lists(changes, max_size=6),
    last=last_ones,
    deaths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), max_size=4),
    window=st.integers(1, 4),
    versioned=st.booleans(),
)
def test_after_any_deaths_the_last_versions_stand(
    some: list[Change], last: tuple[Change, ...], deaths: list[tuple[int, int]], window: int, *, versioned: bool
) -> None:
    """No missing, stale, orphan or duplicate row, and a ledger that says what is there.

    The process is killed between any two rows of a request and around any transaction. Each next life begins a little
    before the position that it reached, so that events come again; in the end all records come again, out of order.
    """
    log = [change.event(number, versioned=versioned) for number, change in enumerate([*some, *last])]
    runs = batches(log)
    life, sink = Life(), MemorySink()
    sink.before = life.step
    sink.refuses = lambda row: row.text == "bad"
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder)) as store:
        store.write_ahead = life.mortal(store.write_ahead)  # type: ignore[method-assign]
        store.settle = life.mortal(store.settle)  # type: ignore[method-assign]
        position = 0
        for steps, back in deaths:
            life.left = steps
            position = live(store, sink, runs, position, window=window)
            position = max(0, position - back)
        life.left = None
        assert live(store, sink, runs, position, window=window) == len(runs)
        assert_equal_to_the_last(store, sink, last)
        if versioned:  # all of it comes again, the newest first
            live(store, sink, batches(log[::-1]), 0, window=window)
            assert_equal_to_the_last(store, sink, last)
