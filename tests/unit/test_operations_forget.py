"""What ``ingestd forget`` deletes of a source that is configured no more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, Assembly, MemorySink, open_store, upsert

from ingestd.errors import ConfigError
from ingestd.operations import forget

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """Return the real state, empty."""
    with open_store(tmp_path / "state") as opened:
        yield opened


def test_rows_of_a_source_that_the_state_does_not_know_are_found(store: SqliteStore) -> None:
    """An audit names them, as orphans of another daemon or of nobody: by the rows' own word, in every collection."""
    sinks = {name: MemorySink(name) for name in (COLLECTION, "notes")}
    Assembly(store, sinks[COLLECTION]).run(upsert("a", "one\ntwo", 1), upsert("b", "three", 2, source="old"))
    row = next(iter(sinks[COLLECTION].rows.values()))
    for sink in sinks.values():
        sink.rows["f" * 32] = replace(row, id="f" * 32, document_id="theirs", source="theirs")
    found = forget(store, sinks, {("cms", COLLECTION)}, "theirs")
    assert found == {"source": "theirs", "documents": 2, "rows": 2}
    assert ({row.source for row in sinks[COLLECTION].rows.values()}, sinks["notes"].rows) == ({"cms", "old"}, {})
    with pytest.raises(ConfigError, match="nothing is known of a source 'theirs'; known: cms, old"):
        forget(store, sinks, {("cms", COLLECTION)}, "theirs")


def test_a_source_that_is_configured_is_not_forgotten(store: SqliteStore) -> None:
    """Its documents would come back."""
    sinks = {COLLECTION: MemorySink()}
    Assembly(store, sinks[COLLECTION]).run(upsert("a", "one", 1))
    with pytest.raises(ConfigError, match="take it out of the configuration first"):
        forget(store, sinks, {("cms", COLLECTION)}, "cms")
    assert len(sinks[COLLECTION].rows) == 1
