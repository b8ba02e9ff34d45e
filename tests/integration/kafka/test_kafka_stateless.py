"""Whole daemons without a state directory: members whose disk is nobody's."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemon import COLLECTION, read_rows, wait_for
from tests.integration.kafka.conftest import Rig, records, settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.daemon import Workplace
    from tests.fixtures.lite_server import LiteServer

pytestmark = [pytest.mark.kafka, pytest.mark.lite]

CONFIG, DEAD_LETTERS = 78, 3


def _configure(workplace: Workplace, rig: Rig, uri: str) -> Path:
    """Set up members without a disk; return where temporary files go."""
    temporary = workplace.root / "tmp"
    temporary.mkdir()
    workplace.environment["TMPDIR"] = str(temporary)
    letters = f"{rig.topic}.letters"
    rig.make(topic=letters)
    source = settings(
        rig.bootstrap, rig.topic, rig.group, group_instance_id="same", dead_letter_topic=letters, collection=COLLECTION
    )
    workplace.configure("state_dir", "")
    workplace.configure("milvus.uri", uri)
    workplace.configure("sources", {"cms": {"type": "kafka", **source}})
    return temporary


def _left(temporary: Path) -> list[str]:
    return sorted(path.name for path in temporary.iterdir())


def test_a_member_without_a_disk_leaves_nothing_behind(
    on_noida: Rig, workplace: Workplace, lite_server: LiteServer
) -> None:
    """It works, its letters are on their topic, and commands that need a state say so. A killed one's next start
    cleans up; of two with one ``group_instance_id`` the first one ends with exit code 78, and says why.
    """  # noqa: D205 - three sentences
    on_noida.make()
    lite_server.start()
    temporary = _configure(workplace, on_noida, lite_server.uri)
    on_noida.produce(*records(3), (b"bad", b"no JSON", [], None))
    once = workplace.ask("run", "--once", "--json")
    assert DEAD_LETTERS == once.code, once.err
    assert (4, 3, 1) == tuple(once.totals[name] for name in ("accepted", "written", "dead_lettered"))
    assert {"d0", "d1", "d2"} == {row.document_id for row in read_rows(lite_server.uri)}
    assert [] == _left(temporary)

    listed = workplace.ask("dead-letters", "list", "--json")
    assert ["bad"] == [row["document_id"] for row in listed.json]
    refused = workplace.ask("status")
    assert CONFIG == refused.code
    assert "state_dir: this configuration has none" in refused.err

    with workplace.daemon() as first:
        first.until_ready()
        with workplace.daemon() as second:
            assert CONFIG == first.wait()
            assert "sources.cms.group_instance_id: another member of the group has taken this id over" in first.log
            second.until_ready()
            second.kill()
    (left,) = _left(temporary)
    old = time.time() - 3600
    os.utime(temporary / left, (old, old))
    on_noida.produce(*records(1, start=3))
    again = workplace.ask("run", "--once", "--json")
    assert (0, 1, 1) == (again.code, again.totals["accepted"], again.totals["written"]), again.err
    wait_for(lambda: not _left(temporary), "nothing is left", 5)
