"""Collections on real servers: made, found as they were made, compared, and refused where they differ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.fixtures.milvus import articles, connected, sample

from ingestd.errors import ConfigError, FatalError, UnavailableError
from ingestd.milvus.client import Config, Connection
from ingestd.milvus.lite import Lite
from ingestd.milvus.schema import Index
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.milvus import Server, Target


def test_a_collection_is_made_once_and_recognised(target: Target) -> None:
    """Absent: planned, then made with its indexes and a random id. There: left alone, with the same id."""
    sink = MilvusSink(target.connection, target.wanted("made_once"))
    assert [line.subject for line in sink.plan()] == ["collection made_once"]
    with pytest.raises(ConfigError, match="collection made_once: is absent"):
        sink.prepare(create=False)
    identity = sink.prepare()
    assert len(identity) == 32
    assert sink.plan() == ()
    assert sink.prepare(create=False) == identity
    # What differs from here on is refused, and named; none of it touches the collection.
    other_space = MilvusSink(target.connection, target.wanted("made_once", space="space-b"))
    with pytest.raises(ConfigError, match=r"vector space of dense in made_once: is space-a, should be space-b"):
        other_space.prepare()
    wider = MilvusSink(target.connection, target.wanted("made_once", dimension=16))
    with pytest.raises(ConfigError, match=r"field dense of made_once: is dense FLOAT_VECTOR\(8\), should be .*\(16\)"):
        wider.prepare()
    wish = target.wanted("made_once")
    finer = replace(
        wish, indexes=(Index("dense", "HNSW", "COSINE", (("M", "32"),)), *wish.indexes[1:]), left_open=frozenset()
    )
    with pytest.raises(ConfigError, match=r"index on dense of made_once: is (FLAT|HNSW) COSINE.*should be .* M=32"):
        MilvusSink(target.connection, finer).prepare()
    assert sink.prepare(create=False) == identity


def test_an_absent_index_is_made(target: Target) -> None:
    """A start that ended between collection and indexes goes on from there."""
    sink = MilvusSink(target.connection, target.wanted("half_made"))
    identity = sink.prepare()
    call = target.connection.call
    call("release_collection", "half_made", doing="releasing")
    call("drop_index", "half_made", doing="dropping", index_name="dense")
    lines = sink.plan()  # Lite drops them all
    assert lines[0].subject == "index on dense of half_made"
    assert all(line.fixable for line in lines)
    assert sink.prepare() == identity
    assert sink.plan() == ()


def test_a_strangers_collection_is_refused(target: Target) -> None:
    """The same columns, made by something else: not adopted."""
    from pymilvus import DataType, MilvusClient  # noqa: PLC0415 - imported by the fixture's connection

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=32)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=8)
    target.connection.call("create_collection", "stranger", doing="creating", schema=schema)
    with pytest.raises(ConfigError, match=r"collection stranger: .*ingestd did not make it"):
        MilvusSink(target.connection, target.wanted("stranger")).prepare()


@pytest.mark.milvus
def test_a_collection_that_an_old_server_cannot_hold(server_target: Target) -> None:
    """Sparse vectors and nullable fields are refused before anything is made, by name and with the cure."""
    sink = MilvusSink(server_target.connection, articles("too_new"))
    with pytest.raises(ConfigError) as caught:
        sink.prepare()
    assert "collections.too_new.vectors.sparse: this server (v2.3.5-lite) has no sparse vectors" in str(caught.value)
    assert "collections.too_new.fields.lang: " in str(caught.value)
    assert not server_target.connection.call("has_collection", "too_new", doing="asking")


def test_a_collection_that_is_gone_ends_the_process(target: Target) -> None:
    """Somebody dropped it: no outage, no document's fault, and no configuration's. The next start makes it anew."""
    sink = MilvusSink(target.connection, target.wanted("never_made"))
    with pytest.raises(FatalError, match="writing 1 rows to never_made"):
        sink.upsert([target.row(1)])
    with pytest.raises(FatalError, match="was dropped"):
        sink.probe()
    assert sink.identity() is None


@pytest.mark.milvus
def test_a_wrong_login_is_a_configuration(guarded_milvus_server: Server) -> None:
    """Milvus reports a refused login as a failed connection; it is told apart from an outage."""
    uri = guarded_milvus_server.uri
    for options in ({}, {"token": "root:wrong"}, {"user": "root", "password": "wrong"}):
        connection = connected({"uri": uri, **options})
        with pytest.raises(ConfigError, match=r"milvus.token"):
            connection.capabilities()
        connection.close()
    connection = connected({"uri": uri, "user": "root", "password": "Milvus"})
    assert connection.capabilities().name.startswith("v2.3.5")
    connection.close()


def test_a_closed_connection_is_unavailable(target: Target) -> None:
    """A call after the end is no crash."""
    connection = connected({"uri": "http://127.0.0.1:1", "connect_timeout_seconds": 2})
    with pytest.raises(UnavailableError, match="connecting to"):
        connection.capabilities()
    connection.close()
    with pytest.raises(UnavailableError, match="closed"):
        connection.capabilities()


@pytest.mark.lite
def test_what_is_left_is_found_after_a_large_delete(tmp_path: Path) -> None:
    """A document of a thousand equal chunks comes and goes on Milvus Lite: every other row still answers."""
    lite = Lite(tmp_path / "milvus", tmp_path / "milvus.json")
    lite.start()
    connection = Connection(Config(uri=str(tmp_path / "milvus")), uri_of=lite.ensure)
    sink = MilvusSink(connection, articles("after_a_delete"))
    sink.prepare()
    few, alike = [sample(number) for number in range(8)], sample(8).vectors
    many = [sample(number, vectors=alike) for number in range(100, 1100)]
    sink.upsert([*many, *few])
    lite.restart()  # the rows are in an index from here on
    sink.prepare()
    sink.delete([row.id for row in many])
    query = np.asarray([few[0].vectors["dense"]], dtype=np.float32)
    assert {hit.id for hit in sink.search("dense", query, 8)[0]} == {row.id for row in few}
    connection.close()
    lite.close()
