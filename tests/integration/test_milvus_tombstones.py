"""The collection in which the members of a group tell one another of deletes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import pytest

from ingestd.errors import ConfigError
from ingestd.milvus import tombstones as module
from ingestd.milvus.client import Connection
from ingestd.milvus.schema import TOMBSTONES, name_faults
from ingestd.milvus.tombstones import Tombstones
from ingestd.model import Held, Tombstone, Version
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.milvus import Target

GONE = Version(3, "topic/0")


@pytest.fixture
def members(target: Target) -> Iterator[list[Connection]]:
    """The connections of four members, to a database that has nothing in it yet."""
    target.connection.call("create_database", "members", doing="creating a database")
    known = target.connection
    config = known.config.model_copy(update={"db_name": "members"})
    connections = [Connection(config, uri_of=known._uri_of) for _ in range(4)]
    yield connections
    for collection in connections[0].call("list_collections", doing="listing"):
        connections[0].call("drop_collection", collection, doing="dropping")
    for connection in connections:
        connection.close()
    known.call("drop_database", "members", doing="dropping")


def test_members_that_start_together_find_it_made(target: Target, members: list[Connection]) -> None:
    """Whoever is first makes it; for all it is ready, and what one notes the others read."""
    sinks = [MilvusSink(connection, target.wanted("shared"), shared=True) for connection in members]
    assert [line.subject for line in sinks[0].plan()] == ["collection shared", f"collection {TOMBSTONES}"]
    MilvusSink(members[0], target.wanted("shared")).prepare()
    with pytest.raises(ConfigError, match=f"collection {TOMBSTONES}: is absent"):
        sinks[0].prepare(create=False)
    barrier = Barrier(len(sinks))

    def start(sink: MilvusSink) -> str:
        barrier.wait()
        return sink.prepare()

    with ThreadPoolExecutor(len(sinks)) as pool:
        identities = set(pool.map(start, sinks))
    assert len(identities) == 1
    assert sinks[1].plan() == ()
    assert {sinks[2].prepare(create=False)} == identities
    sinks[0].bury([Tombstone("gone", GONE)])
    for sink in sinks:
        assert sink.held(["gone"]) == {"gone": Held({}, frozenset(), "", GONE)}


def test_one_member_alone_neither_makes_nor_reads_it(target: Target, members: list[Connection]) -> None:
    """Where nobody shares the collection nothing is noted, and no second question is asked."""
    alone = MilvusSink(members[0], target.wanted("alone"))
    alone.prepare()
    alone.bury([Tombstone("gone", GONE)])
    assert alone.sweep(2**62) == 0
    assert members[1].call("list_collections", doing="listing") == ["alone"]
    shared = MilvusSink(members[0], target.wanted("alone"), shared=True)
    shared.prepare()
    shared.bury([Tombstone("gone", GONE)])
    assert alone.held(["gone"]) == {}


def test_a_stranger_of_that_name_is_refused(target: Target, members: list[Connection]) -> None:
    """A collection that ingestd did not make is left alone."""
    members[0].call("create_collection", TOMBSTONES, doing="creating", dimension=4)
    sink = MilvusSink(members[0], target.wanted("beside"), shared=True)
    with pytest.raises(ConfigError, match=f"collection {TOMBSTONES}: is a stranger's"):
        sink.prepare()


def test_collections_do_not_mix(target: Target) -> None:
    """The same document of another collection is another one, wherever the names are cut."""
    first, second = (Tombstones(target.connection, name) for name in ("mixed", "mixed_a"))
    first.prepare(create=True)
    first.write([Tombstone("_ab", GONE), Tombstone("c", Version(1, "d"))])
    second.write([Tombstone("b", Version(2, "d")), Tombstone("c", Version(9, "e"))])
    assert first.of(["_ab", "b", "c"]) == {"_ab": GONE, "c": Version(1, "d")}
    assert second.of(["_ab", "b", "c"]) == {"b": Version(2, "d"), "c": Version(9, "e")}


def test_old_ones_are_swept(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of the last delete, of this collection alone, however many questions it takes."""
    monkeypatch.setattr(module, "_SWEPT", 4)
    now = [1000.0]
    swept = Tombstones(target.connection, "swept", now=lambda: now[0])
    other = Tombstones(target.connection, "not_swept", now=lambda: now[0])
    swept.prepare(create=True)
    names = [f"{n}.txt" for n in range(11)]
    swept.write([Tombstone(name, GONE) for name in names])
    other.write([Tombstone(name, GONE) for name in names])
    now[0] = 1000.001
    swept.write([Tombstone(name, GONE) for name in names[:2]])
    assert swept.sweep(1_000_000) == 0
    assert swept.sweep(1_000_001) == 9
    assert swept.of(names) == dict.fromkeys(names[:2], GONE)
    assert other.of(names) == dict.fromkeys(names, GONE)
    assert MilvusSink(target.connection, target.wanted("swept"), shared=True).sweep(2_000_000) == 2
    assert swept.of(names) == {}


def test_the_name_is_taken() -> None:
    """A collection of documents cannot be called that."""
    assert [*name_faults("collections.x", TOMBSTONES, {}, {})] == [
        "collections.x: the name is taken, members of a consumer group note deletes in that collection"
    ]
    assert [*name_faults("collections.x", "x", {}, {})] == []
