"""Milvus is away: intake pauses, the probe says so, nothing is lost or blamed, and all goes on when it is back."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.corpus import copy_articles, fold

from ingestd.milvus.lite import running

if TYPE_CHECKING:
    from tests.fixtures.daemon import Daemon, Workplace
    from tests.fixtures.lite_server import LiteServer

pytestmark = pytest.mark.lite


@pytest.fixture
def served(workplace: Workplace, lite_server: LiteServer) -> Workplace:
    """A workplace whose Milvus is a server by address."""
    workplace.configure("milvus.uri", lite_server.uri)
    workplace.configure("milvus.timeout_seconds", 2)
    workplace.configure("milvus.connect_timeout_seconds", 2)
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.005)
    return workplace


def _until_away(daemon: Daemon) -> None:
    daemon.until(lambda: not (daemon.check("milvus") or {"ok": True})["ok"], "/readyz says that Milvus is away", 60)
    assert daemon.get("/readyz")[0] == 503
    assert daemon.get("/livez")[0] == 200


def _until_written(daemon: Daemon, count: int) -> None:
    daemon.until(lambda: daemon.totals.get("written", 0) > count, f"more than {count} files are written")


def _nothing_is_lost(workplace: Workplace, daemon: Daemon, files: int, uri: str | None = None) -> None:
    daemon.until_ready()
    totals = daemon.until_settled(files)
    assert (files, 0, 0) == tuple(totals[name] for name in ("written", "dead_lettered", "retrying"))
    assert fold(workplace.inbox, workplace.config_file) == workplace.rows(uri)


@pytest.mark.parametrize("way", ["stopped", "killed"])
def test_an_outage_amid_the_work_costs_nothing(served: Workplace, lite_server: LiteServer, way: str) -> None:
    """A server that hangs, and one that is killed and comes back on its data: every file is written in the end."""
    files = len(copy_articles(served.inbox, every=12))
    lite_server.start()
    with served.daemon() as daemon:
        _until_written(daemon, 10)
        if way == "stopped":
            lite_server.pause()
        else:
            lite_server.kill()
        _until_away(daemon)
        served.write("meanwhile.txt", "A file that came during the outage.")
        assert daemon.totals["dead_lettered"] == 0
        if way == "stopped":
            lite_server.go_on()
        else:
            lite_server.start()
        _nothing_is_lost(served, daemon, files + 1, lite_server.uri)
        assert daemon.stop() == 0


def test_an_outage_while_idle_is_noticed_and_intake_waits(served: Workplace, lite_server: LiteServer) -> None:
    """Without a document to write, too; what is dropped in then is not accepted before Milvus is back."""
    served.write("one.txt", "One text.")
    lite_server.start()
    with served.daemon() as daemon:
        daemon.until_ready()
        daemon.until_settled(1)
        lite_server.kill()
        _until_away(daemon)
        for number in range(20):
            served.write(f"more-{number}.txt", f"Text {number} of the outage.")
        looks = daemon.get("/livez")[0]
        assert looks == 200
        assert daemon.totals["accepted"] == 1
        lite_server.start()
        _nothing_is_lost(served, daemon, 21, lite_server.uri)


def test_a_daemon_that_starts_before_milvus_waits_for_it(served: Workplace, lite_server: LiteServer) -> None:
    """At the start, too: not ready and saying why, while alive; ready once Milvus answers. A stop need not wait."""
    served.write("one.txt", "One text.")
    with served.daemon() as daemon:
        daemon.until_said("comparing the collection articles")
        daemon.until_said("dependency down, intake paused")
        code, answer = daemon.get("/readyz")
        assert code == 503
        assert "comparing the collection articles" in json.dumps(answer)
        assert daemon.get("/livez")[0] == 200
        asked = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - asked < 10
    with served.daemon() as daemon:
        daemon.until_said("dependency down, intake paused")
        lite_server.start()
        _nothing_is_lost(served, daemon, 1, lite_server.uri)


def test_once_gives_up_at_its_timeout(served: Workplace) -> None:
    """``run --once --timeout`` exits 1 within the timeout while Milvus is away, and says what is away."""
    served.write("one.txt", "One text.")
    began = time.monotonic()
    answer = served.ask("run", "--once", "--timeout", "5", "--json")
    assert answer.code == 1
    assert time.monotonic() - began < 20
    assert answer.totals["accepted"] == 0
    assert "not started within the timeout" in answer.err
    assert "dependency down" in answer.err
    served.until_gone(2)


def test_once_gives_up_amid_the_work(served: Workplace, lite_server: LiteServer) -> None:
    """Milvus goes away during ``run --once``: exit 1 at the timeout, with totals that say what is not done."""
    files = len(copy_articles(served.inbox, every=12))
    served.configure("shutdown.drain_seconds", 1)
    lite_server.start()
    with served.daemon("--once", "--json", "--timeout", "6") as daemon:
        _until_written(daemon, 10)
        lite_server.kill()
        assert daemon.wait() == 1
        totals = json.loads(daemon.out.splitlines()[-1])["totals"]
        assert totals["in_flight"] > 0
        assert totals["written"] + totals["in_flight"] == totals["accepted"] <= files
    lite_server.start()
    done = served.once()
    assert done["written"] + done["unchanged"] == files
    assert fold(served.inbox, served.config_file) == served.rows(lite_server.uri)


def test_the_daemons_own_lite_is_replaced_when_it_dies(workplace: Workplace) -> None:
    """SIGKILL of the child in the middle of the work, twice: it is started again, and every file is written."""
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.005)
    files = len(copy_articles(workplace.inbox, every=12))
    with workplace.daemon() as daemon:
        for share in (0.2, 0.6):
            _until_written(daemon, int(share * files))
            known = json.loads((workplace.state / "milvus.json").read_text())
            os.kill(known["pid"], signal.SIGKILL)
        # All may have been written before the last kill: then a probe brings it back, and until then nobody does.
        daemon.until(lambda: running(workplace.state / "milvus.json"), "its Milvus is back")
        _nothing_is_lost(workplace, daemon, files)
        assert daemon.stop() == 0
