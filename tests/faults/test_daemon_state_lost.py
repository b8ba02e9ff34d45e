"""The state is lost, or Milvus' data, or the state is damaged: each is rebuilt from the other, and nothing twice."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemon import COLLECTION

from ingestd.milvus.client import import_pymilvus
from ingestd.milvus.lite import running

import_pymilvus()

from pymilvus import MilvusClient  # noqa: E402 - after the import that keeps it quiet

if TYPE_CHECKING:
    from tests.fixtures.daemon import Workplace

pytestmark = pytest.mark.lite
FILES = 30


@pytest.fixture
def filled(workplace: Workplace) -> Workplace:
    """A workplace that was worked off."""
    for number in range(FILES):
        workplace.write(f"{number:02}.txt", f"Text {number}, which is to be found again.")
    assert workplace.once()["written"] == FILES
    return workplace


def test_a_lost_state_is_rebuilt_from_milvus(filled: Workplace) -> None:
    """Nothing is embedded again, and what was deleted or edited meanwhile is deleted and edited."""
    before = filled.rows()
    shutil.rmtree(filled.state)
    gone = {f"inbox/{number:02}.txt" for number in range(5)}
    for number in range(5):
        (filled.inbox / f"{number:02}.txt").unlink()
    totals = filled.once()
    assert totals["chunks_embedded"] == 0
    assert totals["chunks_reused"] == FILES - 5
    assert totals["deleted"] == 5
    assert [row for row in before if row.document_id not in gone] == filled.rows()
    settled = filled.once()
    assert (FILES - 5, 0) == (settled["unchanged"], settled["written"])


def test_a_lost_collection_is_written_again(filled: Workplace) -> None:
    """The ledger is bound to the collection that is gone: what it says of that one is not believed of a new one."""
    before = filled.rows()
    shutil.rmtree(filled.milvus)
    totals = filled.once()
    assert FILES == totals["written"] == totals["chunks_embedded"]
    assert before == filled.rows()


def test_a_collection_that_is_dropped_under_the_daemon_is_written_again(filled: Workplace) -> None:
    """It ends with what a supervisor starts again, whether idle or amid a write, and the next start writes all anew."""
    before = filled.rows()
    with filled.daemon() as daemon:
        daemon.until_ready()
        daemon.until_settled(FILES)
        address = running(filled.state / "milvus.json")
        assert address is not None
        client = MilvusClient(uri=address, timeout=20)
        client.drop_collection(COLLECTION, timeout=20)
        client.close()
        assert daemon.wait() == 1
        assert "was dropped" in daemon.log
    assert filled.once()["written"] == FILES
    assert before == filled.rows()


def test_a_damaged_state_is_set_aside_and_rebuilt(filled: Workplace) -> None:
    """It is said aloud and counted, the damaged file stays to be looked at, and nothing is embedded again."""
    before = filled.rows()
    database = filled.state / "ingestd.db"
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    database.write_bytes(data)
    with filled.daemon() as daemon:
        daemon.until_ready()
        totals = daemon.until_settled(FILES)
        assert (0, FILES) == (totals["chunks_embedded"], totals["chunks_reused"])
        assert daemon.said("ledger rebuilt from Milvus")
        assert 'ledger_rebuilds_total{collection="articles",reason="corrupt"} 1.0' in daemon.get("/metrics")[1]
        assert daemon.stop() == 0
    assert list(filled.state.glob("ingestd.db.corrupt-*"))
    assert before == filled.rows()
    assert filled.once()["unchanged"] == FILES
