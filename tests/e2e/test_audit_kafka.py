"""``ingestd audit`` where documents come from topics: alone on a Milvus Lite, and with other members on a server."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.test_audit import audit, differences, text
from tests.faults.kafka_place import Place, record
from tests.fixtures.daemon import COLLECTION, workplace_in
from tests.fixtures.tampering import tampering

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.brokers import Record, Tansu
    from tests.fixtures.daemon import Workplace
    from tests.fixtures.milvus import Server

pytestmark = pytest.mark.kafka


def keyed(document: str, value: dict[str, Any] | None) -> Record:
    """Return a record whose key is its document's id; without a value it deletes the document."""
    return document.encode(), None if value is None else json.dumps(value).encode(), (), 0


@pytest.mark.lite
def test_records_are_read_again_from_their_topic(workplace: Workplace, tansu: Tansu) -> None:
    """Missing, changed and foreign rows are mended without a daemon; what no record brings again is left and named."""
    place = Place(workplace, tansu.bootstrap, 2)
    place.produce(4)
    place.produce_records([record("own", text="A text.", version=7), record("gone", text="Another text.")])
    place.produce_records([(b"gone", None, (), 0)])
    totals = workplace.once()
    assert (totals["written"], totals["deleted"]) == (6, 1)
    with tampering(workplace) as milvus:
        whole, rows = milvus.said(), milvus.rows()
        late = {**rows["d2"][0], "id": "f" * 32, "document_id": "gone"}
        milvus.delete(rows["d0"][0], rows["own"][0])
        milvus.change(rows["d1"][0], text="Something else.")
        milvus.insert(late)
        milvus.insert(late, id="e" * 32, document_id="nobody")
    expected = {
        ("missing", "d0", rows["d0"][0]["id"]),
        ("missing", "own", rows["own"][0]["id"]),
        ("stale", "d1", rows["d1"][0]["id"]),
        ("orphan", "gone", late["id"]),
        ("orphan", "nobody", "e" * 32),
    }
    left = audit(workplace, "--repair", code=4)
    assert differences(left) == expected
    assert left["collections"][0]["repaired"] == 4
    (one,) = [one for one in left["differences"] if not one["detail"].endswith("; mended")]
    assert one["document_id"] == "own"
    assert "not mended: version 7 is its producer's own and does not say which record it was" in one["detail"]

    place.produce_records([record("own", text="A text.", version=8)])
    assert workplace.once()["written"] == 1
    assert differences(audit(workplace)) == set()
    with tampering(workplace) as milvus:
        assert milvus.said() == whole


@pytest.fixture
def served(workplace: Workplace, milvus_server: Server) -> Workplace:
    """A workplace on the real server: one dense vector is all that it takes."""
    collection = f"audit_{uuid.uuid4().hex[:8]}"
    workplace.configure("milvus.uri", milvus_server.uri)
    configured = {"chunker": {"type": "stable", "max_tokens": 250}, "vectors": {"dense": {"embedder": "hash"}}}
    workplace.settings["collections"] = {collection: configured}
    for source in workplace.settings["sources"].values():
        source["collection"] = collection
    return workplace


def collection_of(workplace: Workplace) -> str:
    """Return the name of its collection."""
    (name,) = workplace.settings["collections"]
    return str(name)


@pytest.mark.milvus
def test_a_key_that_is_there_twice_is_found_and_mended(served: Workplace, milvus_server: Server) -> None:
    """A server keeps both rows and answers with one of them: each is found by counting, and written anew."""
    for number in range(3):
        served.write(f"{number}.txt", text(f"d{number}"))
    assert served.once()["written"] == 3
    with tampering(served, milvus_server.uri, collection_of(served)) as milvus:
        whole, rows = milvus.said(), milvus.rows()
        milvus.insert(rows["inbox/0.txt"][1])
        milvus.insert(rows["inbox/1.txt"][0], text="The same key.")
        milvus.delete(rows["inbox/2.txt"][2])
    expected = {
        ("duplicate", "inbox/0.txt", rows["inbox/0.txt"][1]["id"]),
        ("duplicate", "inbox/1.txt", rows["inbox/1.txt"][0]["id"]),
        ("missing", "inbox/2.txt", rows["inbox/2.txt"][2]["id"]),
    }
    repaired = audit(served, "--repair")
    assert differences(repaired) == expected
    assert repaired["collections"][0]["repaired"] == 3
    found = audit(served)
    assert (differences(found), found["collections"][0]["rows"]) == (set(), len(whole))
    with tampering(served, milvus_server.uri, collection_of(served)) as milvus:
        assert milvus.said() == whole


@pytest.mark.long
@pytest.mark.milvus
@pytest.mark.timeout(600)
def test_what_slips_through_a_lease_is_found_and_mended(
    served: Workplace, milvus_server: Server, tansu: Tansu, tmp_path: Path
) -> None:
    """Writes of a member that was stopped, and land late: by the member that holds the partition, and from another
    one that knows nothing but what is in Milvus.
    """  # noqa: D205 - one sentence
    collection = collection_of(served)
    place = Place(served, tansu.bootstrap, collection=collection)
    served.configure(f"collections.{collection}.chunker", {"type": "stable", "max_tokens": 250})
    del served.settings["collections"][COLLECTION]
    documents = [f"d{number}" for number in range(4)]
    old = {document: {"text": text(f"old {document}"), "metadata": {"n": 1}} for document in documents}
    place.produce_records([keyed(document, value) for document, value in old.items()])
    with served.daemon() as daemon, workplace_in(tmp_path / "other") as other:
        daemon.until_settled(4)
        with tampering(served, milvus_server.uri, collection) as milvus:
            late = milvus.rows()
        place.produce_records(
            [
                keyed("d0", {"text": text("new d0"), "metadata": {"n": 2}}),
                keyed("d1", {**old["d1"], "metadata": {"n": 2}}),
                keyed("d2", None),
            ]
        )
        daemon.until_settled(7)
        with tampering(served, milvus_server.uri, collection) as milvus:
            whole, rows = milvus.said(), milvus.rows()
            for row in (late["d0"][1], late["d2"][0], late["d2"][1]):
                milvus.insert(row)
            milvus.change(rows["d1"][1], metadata={"n": 1})
            milvus.delete(rows["d3"][-1])
        expected = {
            ("stale", "d0", late["d0"][1]["id"]),
            ("stale", "d1", rows["d1"][1]["id"]),
            ("orphan", "d2", late["d2"][0]["id"]),
            ("orphan", "d2", late["d2"][1]["id"]),
            ("missing", "d3", rows["d3"][-1]["id"]),
        }
        assert differences(audit(served, "--repair")) == expected
        with tampering(served, milvus_server.uri, collection) as milvus:
            assert milvus.said() == whole
            rows = milvus.rows()
            milvus.insert(late["d0"][1])
            milvus.change(rows["d1"][1], text="Something else.")
            milvus.insert(late["d2"][0])
            milvus.delete(rows["d3"][1])
        other.settings = served.settings
        expected = {
            ("stale", "d0", late["d0"][1]["id"]),
            ("stale", "d1", rows["d1"][1]["id"]),
            ("orphan", "d2", late["d2"][0]["id"]),
            ("missing", "d3", None),
        }
        assert differences(audit(other, "--repair")) == expected
        with tampering(served, milvus_server.uri, collection) as milvus:
            assert milvus.said() == whole
        assert differences(audit(served)) == set()
        assert daemon.runs
