"""What rows say of their documents, whatever their order and their number."""

from __future__ import annotations

import sqlite3
import tracemalloc
from typing import TYPE_CHECKING, cast

import pytest
from tests.fakes import COLLECTION

from ingestd.engine._rows import gathered
from ingestd.errors import Stopped, UnavailableError
from ingestd.model import EXPLICIT, UNKNOWN_DIGEST, StoredRow, Version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.ports import Sink

FIRST = Version(1, "topic/0")


class Stored:
    """A collection of which nothing but the rows is asked."""

    collection = COLLECTION

    def __init__(self, rows: Iterator[StoredRow]) -> None:
        self._rows = rows

    def stored(self) -> Iterator[StoredRow]:
        """Yield them."""
        return self._rows


def row(document: str, chunk: int, version: Version = FIRST, source: str = "cms") -> StoredRow:
    """Return a row."""
    return StoredRow(f"{chunk:032x}", document, version, source)


def of(rows: Iterator[StoredRow]) -> Sink:
    """Return a collection with rows."""
    return cast("Sink", Stored(rows))


def test_rows_of_a_document_are_brought_together() -> None:
    """Wherever they stand; its version is the latest, and a producer's own before any other."""
    rows = [
        row("b", 1, Version(7, "topic/0"), "old"),
        row("a", 2, Version(3, "topic/0")),
        row("b", 3, Version(2, EXPLICIT), "new"),
        row("a", 4, Version(9, "topic/0"), "later"),
        row("b", 5, Version(1, EXPLICIT)),
    ]
    beats: list[int] = []
    with gathered(of(iter(rows)), lambda: beats.append(1)) as found:
        first, second = found.entries()
    assert (first.key.document_id, first.version, first.source) == ("a", Version(9, "topic/0"), "later")
    assert (second.key.document_id, second.version, second.source) == ("b", Version(2, EXPLICIT), "new")
    assert first.present == dict.fromkeys((f"{2:032x}", f"{4:032x}"), UNKNOWN_DIGEST)
    assert len(second.present) == 3
    assert beats


def test_a_row_of_somebody_else_is_left_out() -> None:
    """Its key could not be in an entry."""
    foreign = StoredRow("not ours", "a", Version(1, "topic/0"), "cms")
    with gathered(of(iter([foreign, row("b", 1)])), lambda: None) as found:
        assert [entry.key.document_id for entry in found.entries()] == ["b"]


def test_many_rows_take_little_memory() -> None:
    """Of 200,000 in any order no more than a page and a document are held at once."""
    rows = (row(f"document {number % 1_999}", number) for number in range(200_000))
    tracemalloc.start()
    try:
        with gathered(of(rows), lambda: None) as found:
            assert sum(len(entry.present) for entry in found.entries()) == 200_000
        _size, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3_000_000


def test_a_stop_amid_a_long_statement_is_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite answers that it was interrupted, which is no lack of room."""
    monkeypatch.setattr("ingestd.engine._rows._STEPS", 10)
    stopped = False

    def beat() -> None:
        if stopped:
            raise Stopped

    rows = (row(f"document {number}", number) for number in range(5_000))
    with gathered(of(rows), beat) as found:
        stopped = True
        with pytest.raises(Stopped):
            list(found._sorted())


def test_no_room_for_temporary_files_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what to free, and tried again."""

    def connect(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr("ingestd.engine._rows.sqlite3.connect", connect)
    with pytest.raises(UnavailableError, match="SQLITE_TMPDIR"), gathered(of(iter([])), lambda: None):
        pass
