"""A daemon with its model on two devices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.faults.worker_models import WAIT
from tests.fixtures.daemon import COLLECTION

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = pytest.mark.lite
PARAGRAPHS = [f"Paragraph {number} of a long document. " + f"It says {number} again. " * 60 for number in range(12)]


def busy(daemon: Daemon) -> float:
    """Return for how many seconds the models' stage worked."""
    where = rf'collection="{COLLECTION}",stage="embed",state="busy"'
    found = re.search(rf"ingestd_stage_seconds_total{{{where}}} (\S+)", str(daemon.get("/metrics")[1]))
    return 0.0 if found is None else float(found[1])


def test_batches_are_in_both_at_once(workplace: Workplace, tmp_path: Path) -> None:
    """Two texts that wait for one another are embedded, in two processes; a document of many batches is whole."""
    log = tmp_path / "model.log"
    workplace.know_the_tests_plug_ins()
    model = {"type": "tests.fixtures.worker_embedder", "log": str(log), "device": ["cpu", "cpu"]}
    workplace.settings["embedders"] = {"two": model}
    workplace.settings["collections"][COLLECTION]["vectors"] = {"dense": {"embedder": "two"}}
    workplace.configure("embedding.window", 1)
    for name in ("one.txt", "other.txt"):
        workplace.write(name, f"{WAIT}2")
    workplace.write("long.txt", "\n\n".join(PARAGRAPHS))
    with workplace.daemon() as daemon:
        assert daemon.until_settled(3)["written"] == 3
        status = daemon.status()
        assert [row["stage"] for row in status["stages"]][-2:] == ["embed", "write"]
        limit = status["collections"][0]["limit"]
        assert limit is None or re.fullmatch(r"\w+: busy for \d+% of the last \d+ s, \d+ wait for it", limit)
        assert daemon.until(lambda: busy(daemon), "the metrics say that it worked") > 0
        assert f'ingestd_stage_threads{{collection="{COLLECTION}",stage="embed"}} 2.0' in str(daemon.get("/metrics")[1])
        daemon.until_ready()
    waited = re.findall(r"waits on cpu in (\d+)", log.read_text())
    assert (len(waited), len(set(waited))) == (2, 2)
    long = sorted(
        (row for row in workplace.rows() if row.document_id == "inbox/long.txt"), key=lambda row: row.chunk_index
    )
    assert [row.chunk_index for row in long] == list(range(len(long)))
    assert "".join("".join(row.text for row in long).split()) == "".join("".join(PARAGRAPHS).split())
    assert len(long) >= len(PARAGRAPHS)
