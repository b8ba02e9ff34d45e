"""What an audit remembers, past the pages in which it is gone through."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from ingestd.audit.compare import Fault, Kind
from ingestd.audit.scratch import Difference, Scratch, Weighed

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ["", "a", "\x00", "é", "😀", "\uffff", *(f"d{number:04}" for number in range(1_200))]


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    """An empty one."""
    with closing(Scratch()) as made:
        yield made


def test_documents_come_once_each_with_all_their_rows(scratch: Scratch) -> None:
    """Whoever names them, and in how many pages: in the order of their ids, the empty one too."""
    scratch.add(dict.fromkeys(NAMES, 2))
    scratch.add({"a": 3, "new": 0})
    found = list(scratch.documents())
    assert found == sorted(found, key=lambda document: document.id.encode())
    assert set(found) == {Weighed(name, 5 if name == "a" else 2) for name in NAMES} | {Weighed("new", 0)}
    scratch.begin()
    assert list(scratch.documents()) == []


def test_suspects_can_be_changed_while_they_are_gone_through(scratch: Scratch) -> None:
    """Every one is seen once, with the mark that it had."""
    scratch.suspect({name: name.encode() for name in NAMES})
    seen: list[tuple[str, bytes]] = []
    for page in scratch.suspects():
        seen += page.items()
        scratch.clear(list(page)[::2])
        scratch.suspect(dict.fromkeys(list(page)[1::2], b"another"))
    assert dict(seen) == {name: name.encode() for name in NAMES}
    assert len(seen) == len(NAMES)
    left = [mark for page in scratch.suspects() for mark in page.values()]
    assert set(left) == {b"another"}
    assert len(left) == scratch.suspected() == len(NAMES) // 2


def test_differences_are_counted_and_listed(scratch: Scratch) -> None:
    """By collection and kind, as many as are wanted; the same one again is none."""
    missing, file = Fault(Kind.MISSING, "c1", "gone"), Fault(Kind.STALE, "", "edited", of_file=True)
    for name in NAMES:
        scratch.found("articles", name, [missing, file] if name == "a" else [missing])
    scratch.found("articles", "a", [missing, Fault(Kind.MISSING, "c2", "gone")])
    scratch.found("notes", "a", [missing])
    counts = dict.fromkeys(Kind, 0) | {Kind.MISSING: len(NAMES) + 1, Kind.STALE: 1}
    assert scratch.counts("articles") == counts
    assert [one.document_id for one in scratch.differences("articles", Kind.MISSING, 2)] == ["", "\x00"]
    assert list(scratch.differences("articles", Kind.MISSING, 0)) == []
    assert list(scratch.differences("articles", Kind.STALE)) == [Difference("articles", "a", file, None)]
    assert len(list(scratch.differences("articles", Kind.MISSING))) == len(NAMES) + 1
    faulty = list(scratch.faulty("articles"))
    assert dict(faulty) == {name: name == "a" for name in NAMES}
    assert len(faulty) == len(NAMES)


def test_what_became_of_a_repair_is_noted(scratch: Scratch) -> None:
    """By document: mended, left with the reason, or not tried."""
    for name in ("a", "b", "c"):
        scratch.found("articles", name, [Fault(Kind.MISSING, "c1", "gone"), Fault(Kind.STALE, "c2", "changed")])
    scratch.outcome("articles", {"a": "", "b": "its record is gone"})
    assert (scratch.mended("articles"), scratch.mended("notes"), scratch.left()) == (2, 0, 4)
    outcomes = {one.document_id: one.outcome for one in scratch.differences("articles", Kind.STALE)}
    assert outcomes == {"a": "", "b": "its record is gone", "c": None}
