"""``MemorySink`` keeps the contract that Milvus keeps: the same tests, over the fake.

Left out are those that look past the sink at a server (stored columns, requests by bytes, a released collection) or at
the schema's limits, which the fake does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.contract.test_sink import (
    base,
    some,
    test_a_close_look,
    test_a_delete_is_remembered,
    test_a_key_twice_is_refused,
    test_an_upsert_again_changes_nothing,
    test_delete_takes_away_what_is_named,
    test_existing_takes_more_ids_than_one_request,
    test_existing_tells_what_is_there,
    test_held_of_a_version_that_was_left_half_written,
    test_held_tells_what_is_there_of_documents,
    test_probe_answers,
    test_rewrite_of_nothing_that_is_there,
    test_search_finds_the_nearest_first,
    test_sparse_search_and_the_query_that_meets_nothing,
    test_stored_yields_every_row_once,
)
from tests.fakes import MemorySink
from tests.fixtures.milvus import sample

from ingestd.errors import DocumentError, UnavailableError
from ingestd.model import Tombstone, Version

if TYPE_CHECKING:
    from ingestd.model import Row

__all__ = [
    "base",
    "some",
    "test_a_close_look",
    "test_a_delete_is_remembered",
    "test_a_key_twice_is_refused",
    "test_an_upsert_again_changes_nothing",
    "test_delete_takes_away_what_is_named",
    "test_existing_takes_more_ids_than_one_request",
    "test_existing_tells_what_is_there",
    "test_held_of_a_version_that_was_left_half_written",
    "test_held_tells_what_is_there_of_documents",
    "test_probe_answers",
    "test_rewrite_of_nothing_that_is_there",
    "test_search_finds_the_nearest_first",
    "test_sparse_search_and_the_query_that_meets_nothing",
    "test_stored_yields_every_row_once",
]


@dataclass(frozen=True, slots=True)
class Target:
    """What the contract needs to know of a server."""

    sparse: bool = True
    nullable: bool = True

    def row(self, number: int, **changes: object) -> Row:
        """Return a row, as for the real ones."""
        return sample(number, **changes)  # type: ignore[arg-type]  # no row has its own dimension


@pytest.fixture(scope="module")
def target() -> Target:
    """Return the fake's own."""
    return Target()


@pytest.fixture(scope="module")
def sink() -> MemorySink:
    """Return the fake, shared by the tests as a real collection is."""
    return MemorySink("contract", shared=True)


def test_rewrite_leaves_the_vectors(sink: MemorySink, target: Target, some: list[Row], base: int) -> None:
    """What the contract asks of Milvus column by column, asked of the fake row by row."""
    changed = [target.row(base + n, chunk_index=n + 7, metadata={"new": n}, vectors={}) for n in range(3)]
    absent = target.row(base + 5000, vectors={})
    assert sink.rewrite([*changed, absent]) == {absent.id}
    for before, row in zip(some, changed, strict=False):
        found = sink.rows[row.id]
        assert (found.chunk_index, found.metadata) == (row.chunk_index, row.metadata)
        assert found.vectors == before.vectors
    assert absent.id not in sink.rows


def test_one_member_alone_buries_nothing() -> None:
    """As with Milvus: where nobody shares the collection, no delete is noted and none is read."""
    sink = MemorySink()
    sink.bury([Tombstone("gone", Version(1, "topic/0"))])
    assert (sink.tombstones, sink.history) == ({}, [])
    sink.tombstones["gone"] = Version(1, "topic/0")
    assert sink.held(["gone"]) == {}


def test_a_refused_request_writes_nothing(target: Target) -> None:
    """As on a server: one bad row, and none of the request is there; the history tells of no operation."""
    sink = MemorySink()
    sink.refuses = lambda row: row.id == target.row(2).id
    with pytest.raises(DocumentError):
        sink.upsert([target.row(n) for n in range(4)])
    assert (sink.rows, sink.history) == ({}, [])


def test_an_outage_is_over_after_so_many_calls(target: Target) -> None:
    """Probes count; afterwards all is as before."""
    sink = MemorySink()
    sink.outage = 2
    with pytest.raises(UnavailableError):
        sink.upsert([target.row(1)])
    with pytest.raises(UnavailableError):
        sink.probe()
    sink.upsert([target.row(1)])
    assert len(sink.rows) == 1
