"""Many files vanish at once: their deletes are held until somebody says that it is meant."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fixtures.daemon import Workplace

pytestmark = pytest.mark.lite
FILES = 60


@pytest.fixture
def halved(workplace: Workplace) -> Workplace:
    """A workplace that lost half of its 60 files while no daemon ran."""
    workplace.configure("sources.inbox.rescan_seconds", 1)
    for number in range(FILES):
        workplace.write(f"{number:02}.txt", f"Text {number}.")
    assert workplace.once()["written"] == FILES
    for number in range(FILES // 2):
        (workplace.inbox / f"{number:02}.txt").unlink()
    return workplace


def _held(check: dict[str, object] | None) -> bool:
    return check is not None and not check["ok"] and "30 documents" in str(check["detail"])


def test_once_holds_the_deletes_until_they_are_confirmed(halved: Workplace) -> None:
    """Exit 1 and the cure, with all rows in place; confirmed without a daemon, the next run deletes them."""
    answer = halved.ask("run", "--once", "--json")
    assert answer.code == 1
    assert (0, 30) == (answer.totals["deleted"], answer.totals["unchanged"])
    undone = next(json.loads(line) for line in answer.err.splitlines() if '"left undone"' in line)
    assert undone["check"] == "inbox:deletes"
    assert "ingestd forget --source inbox --absent" in undone["cure"]
    assert len(halved.documents()) == FILES

    confirmed = halved.ask("forget", "--source", "inbox", "--absent")
    assert (0, "30 deletes go on\n") == (confirmed.code, confirmed.out)
    assert halved.once()["deleted"] == 30
    assert len(halved.documents()) == 30


def test_a_running_daemon_is_not_ready_until_the_deletes_are_confirmed(halved: Workplace) -> None:
    """It says why and how to go on, other files go on meanwhile, and a confirmation lets these deletes go."""
    with halved.daemon() as daemon:
        daemon.until(lambda: _held(daemon.check("inbox:deletes")), "the deletes are held")
        assert daemon.get("/readyz")[0] == 503
        halved.write("new.txt", "A new text.")
        daemon.until(lambda: daemon.totals["written"] == 1, "the new file is written")
        assert daemon.totals["deleted"] == 0
        assert halved.ask("status").code == 1
        confirmed = halved.ask("forget", "--source", "inbox", "--absent", "--json")
        assert {"source": "inbox", "confirmed": 30} == confirmed.json
        daemon.until(lambda: daemon.totals["deleted"] == 30, "the deletes go on")
        daemon.until_ready()
    assert len(halved.documents()) == 31


def test_files_that_come_back_end_the_hold(halved: Workplace) -> None:
    """An unmounted disk is no delete: once it is back, the daemon is ready, and nothing was embedded again."""
    with halved.daemon() as daemon:
        daemon.until(lambda: _held(daemon.check("inbox:deletes")), "the deletes are held")
        for number in range(FILES // 2):
            halved.write(f"{number:02}.txt", f"Text {number}.")
        daemon.until_ready()
        daemon.until(lambda: not daemon.totals["in_flight"], "all is settled")
        assert (0, 0) == (daemon.totals["deleted"], daemon.totals["chunks_embedded"])


def test_a_vanished_folder_deletes_nothing(halved: Workplace) -> None:
    """Without its root nothing can be said: not ready, exit 1, and a confirmation is refused with the reason."""
    shutil.rmtree(halved.inbox)
    answer = halved.ask("run", "--once")
    assert answer.code == 1
    assert "inbox:root" in answer.err
    refused = halved.ask("forget", "--source", "inbox", "--absent")
    assert refused.code == 78
    assert "nothing can be said about deletes" in refused.err
    assert halved.ask("run", "--once").code == 1
    assert len(halved.documents()) == FILES
