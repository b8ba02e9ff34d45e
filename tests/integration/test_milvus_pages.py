"""Reading a whole collection by pages, where a server keeps it in several segments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.sinks import milvus as sinks

if TYPE_CHECKING:
    import pytest
    from tests.fixtures.milvus import Target


def test_pages_cover_every_row_once_over_several_segments(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were written in turns, flushed in between, updated and deleted: each is read once, in order."""
    sink = sinks.MilvusSink(target.connection, target.wanted("pages"))
    sink.prepare()
    numbers = list(range(700))
    for turn in range(3):
        sink.upsert([target.row(n) for n in numbers[turn::3]])
        if turn < 2:
            target.connection.call("flush", "pages", doing="flushing")
    sink.upsert([target.row(n) for n in numbers[::7]])
    gone = {target.row(n).id for n in numbers[::5]}
    sink.delete(sorted(gone))
    monkeypatch.setattr(sinks, "_PAGE", 64)
    read = [row.id for row in sink.stored()]
    assert read == sorted({target.row(n).id for n in numbers} - gone)
    assert sink.count() == len(read)
