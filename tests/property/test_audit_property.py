"""The comparison finds nothing in what the stages wrote, whatever came, and exactly what was changed behind them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import COLLECTION, Assembly, ManualLease, MemorySink, delete, open_store, upsert

from ingestd.audit.compare import Kind, corrected, faults
from ingestd.model import EXPLICIT, DocumentKey, Verdict, Version

if TYPE_CHECKING:
    from ingestd.audit.compare import Fault
    from ingestd.model import Event
    from ingestd.store.sqlite import SqliteStore

KEY = DocumentKey(COLLECTION, "a")

texts = st.sampled_from(
    [
        ["one", "two", "three"],
        ["eins", "two", "three"],
        ["one", "two"],
        ["two", "one", "three"],
        ["one", "one", "two"],
        [],
    ]
)
"""Few, so that most versions leave rows of others alone."""
steps = st.tuples(
    texts | st.none(), st.integers(0, 1), st.sampled_from(["topic/0", "topic/1", EXPLICIT]), st.booleans()
)
"""Lines, or a delete; a number for the metadata; where the version is from; whether the writing fails."""


BASES = {"topic/0": 2_000, "topic/1": 1_000, EXPLICIT: 0}
"""Numbers do not compare across domains: what comes later from another one may have a smaller one."""


def events(history: list[tuple[list[str] | None, int, str, bool]]) -> list[tuple[Event, bool]]:
    """Return the events of a history, each later than all of its domain before it, and whether it fails."""
    found = []
    for turn, (lines, n, domain, fails) in enumerate(history, start=1):
        number = BASES[domain] + turn
        event = delete("a") if lines is None else upsert("a", "\n".join(lines), metadata={"n": n})
        found.append((replace(event, version=Version(number, domain), position=f"{domain}@{number}"), fails))
    return found


def judged(store: SqliteStore, sink: MemorySink, *, alone: bool, ledger: bool = True) -> list[Fault]:
    """Look at the document."""
    entry = store.entries([KEY]).get(KEY) if ledger else None
    return faults(entry, sink.held(["a"], closely=True).get("a"), alone=alone)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=6))
def test_what_the_stages_wrote_has_no_fault(history: list[tuple[list[str] | None, int, str, bool]]) -> None:
    """Edits, deletes, versions that fail, and come in any of three domains: by the ledger, and by the rows alone."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder)) as store:
        sink = MemorySink()
        stages = Assembly(store, sink)
        for event, fails in events(history):
            if fails:
                stages.embedder.outage = 0
                stages.embedder.bad = {"one", "eins", "two", "three"}
            stages.run(event)
            stages.embedder.bad = set()
            assert judged(store, sink, alone=True) == []
            assert judged(store, sink, alone=False, ledger=False) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(steps, st.booleans()), max_size=6))
def test_what_two_members_wrote_has_no_fault_for_either(
    history: list[tuple[tuple[list[str] | None, int, str, bool], bool]],
) -> None:
    """Each has a ledger of its own, which is old as soon as the other has written."""
    with tempfile.TemporaryDirectory() as folder:
        sink = MemorySink(shared=True)
        with open_store(Path(folder) / "one") as one, open_store(Path(folder) / "two") as two:
            members = [(store, Assembly(store, sink, shared=True)) for store in (one, two)]
            came = events([step for step, _first in history])
            for number, ((event, fails), (_step, first)) in enumerate(zip(came, history, strict=True)):
                stages = members[first][1]
                stages.embedder.bad = {"one", "two"} if fails else set()
                stages.run(replace(event, lease=ManualLease(f"tenure {number}")))
                for store, _stages in members:
                    assert judged(store, sink, alone=False) == []


CHANGES = {
    "delete": Kind.MISSING,
    "text": Kind.STALE,
    "metadata": Kind.STALE,
    "place": Kind.STALE,
    "twice": Kind.DUPLICATE,
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["one", "two", "three", "four", "five"]), min_size=1, max_size=6),
    st.dictionaries(st.integers(0, 5), st.sampled_from(sorted(CHANGES)), max_size=4),
    st.integers(0, 2),
)
def test_each_change_is_found_and_mended(lines: list[str], changes: dict[int, str], foreign: int) -> None:
    """Exactly what was changed; put right and brought again, all rows are what they were, and few were embedded."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder)) as store:
        sink = MemorySink()
        stages = Assembly(store, sink)
        event = upsert("a", "\n".join(lines), 3, metadata={"n": 1})
        stages.run(event)
        whole = {at: row.with_vectors({}) for at, row in sink.rows.items()}
        ids = sorted(whole, key=lambda at: whole[at].chunk_index)
        expected = set()
        for place, change in changes.items():
            if place >= len(ids):
                continue
            at = ids[place]
            expected.add((CHANGES[change], at))
            row = sink.rows[at]
            if change == "delete":
                del sink.rows[at]
            elif change == "twice":
                sink.copies[at] = 2
            else:
                wrong = {"text": {"text": "x"}, "metadata": {"metadata": {}}, "place": {"chunk_index": 99}}[change]
                sink.rows[at] = replace(row, **wrong)  # type: ignore[arg-type]  # one of its fields
        for number in range(foreign):
            at = f"{number:032x}"
            sink.rows[at] = replace(next(iter(whole.values())), id=at, chunk_index=50 + number, vectors={"dense": 0})  # type: ignore[dict-item]
            expected.add((Kind.STALE, at))
        found = judged(store, sink, alone=True)
        assert {(fault.kind, fault.chunk_id) for fault in found} == expected
        assert len(found) == len(expected)
        entry = store.entries([KEY])[KEY]
        store.mend([corrected(entry, sink.held(["a"], closely=True).get("a"), found)], [])
        (outcome,) = stages.run(replace(event, again=True))
        wrong_rows = sum(at in whole for _kind, at in expected)
        assert (outcome.verdict, outcome.embedded) == (Verdict.WRITTEN if expected else Verdict.UNCHANGED, wrong_rows)
        assert {at: row.with_vectors({}) for at, row in sink.rows.items()} == whole
        assert judged(store, sink, alone=True) == []
