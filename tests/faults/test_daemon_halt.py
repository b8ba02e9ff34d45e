"""A streak of dead letters: the source that they come from is halted, says so, and nobody else is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.faults.kafka_place import metric
from tests.fixtures.daemon import COLLECTION

if TYPE_CHECKING:
    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = pytest.mark.lite

LETTERS = 200
"""The default."""
BAD = 300
IN_FLIGHT = 20
NO_TEXT = b"half a text\0\0\0"


@pytest.fixture
def two(workplace: Workplace) -> Workplace:
    """A workplace with two folders, the inbox with nothing but bad files and another one with good ones."""
    workplace.configure("limits.in_flight_events", IN_FLIGHT)
    other = workplace.root / "other"
    other.mkdir()
    workplace.configure("sources.other", {"type": "folder", "path": "other", "collection": COLLECTION})
    for number in range(BAD):
        workplace.write(f"bad-{number:03}.txt", NO_TEXT + b"%d" % number)
    for number in range(30):
        (other / f"{number:02}.txt").write_text(f"A good text, number {number}.")
    return workplace


def _others(workplace: Workplace) -> int:
    return sum(document.startswith("other/") for document in workplace.documents())


def _halted(daemon: Daemon) -> dict[str, object] | None:
    check = daemon.check("inbox:intake")
    return check if check is not None and not check["ok"] else None


def test_a_source_is_halted_and_the_other_one_goes_on(two: Workplace) -> None:
    """Not ready, with the reason and the cure, a metric and one line of the log; in flight documents still end."""
    with two.daemon() as daemon:
        daemon.until_said("ready")
        check = daemon.until(lambda: _halted(daemon), "the inbox is halted")
        assert "in extract with DocumentError" in str(check["detail"])
        assert "ingestd dead-letters list --source inbox" in str(check["cure"])
        assert daemon.get("/readyz")[0] == 503
        assert daemon.get("/livez")[0] == 200
        daemon.until(lambda: not daemon.totals["in_flight"], "what was in flight has ended")
        dead = daemon.totals["dead_lettered"]
        assert LETTERS <= dead <= LETTERS + IN_FLIGHT
        daemon.until(lambda: _others(two) == 30, "the other folder's files are written")

        two.write("good.txt", "A good text that the inbox may not hand in.")
        (two.root / "other" / "later.txt").write_text("A good text that comes later.")
        daemon.until(lambda: _others(two) == 31, "the other folder goes on")
        assert daemon.totals["dead_lettered"] == dead
        assert (metric(daemon, "ingestd_source_halted", "inbox"), metric(daemon, "ingestd_source_halted")) == (1, 1)
        [line] = daemon.said("too many dead letters in a row, the source is halted")
        assert (line["source"], line["letters"], line["error"]) == ("inbox", LETTERS, "DocumentError")
        assert daemon.status()["ready"] is False
        assert daemon.stop() == 0
    assert {document for document in two.documents() if document.startswith("inbox/")} == set()

    # What is dead already and has not changed is no streak of the next run.
    with two.daemon() as daemon:
        daemon.until_settled(BAD + 1 + 31)
        daemon.until_ready()
        assert daemon.totals["dead_lettered"] == BAD
        assert metric(daemon, "ingestd_source_halted") == 0
        assert not daemon.said("too many dead letters in a row, the source is halted")
        # A replay of all of them is no streak either, though all fail again.
        assert two.ask("dead-letters", "replay", "--all", "--json").json == {"replayed": BAD, "left": []}
        daemon.until_settled(BAD + 1 + 31 + BAD)
        assert daemon.totals["dead_lettered"] == 2 * BAD
        assert daemon.get("/readyz")[0] == 200


def test_once_says_so_and_fails(two: Workplace) -> None:
    """It ends, though the inbox has more; the other folder is worked off."""
    answer = two.ask("run", "--once", "--json", timeout=240)
    assert answer.code == 1, answer.err[-4000:]
    assert LETTERS <= answer.totals["dead_lettered"] <= LETTERS + IN_FLIGHT
    assert answer.totals["written"] == 30
    undone = next(json.loads(line) for line in answer.err.splitlines() if '"left undone"' in line)
    assert undone["check"] == "inbox:intake"
    assert "halted" in undone["detail"]


def test_poison_among_good_documents_halts_nothing(workplace: Workplace) -> None:
    """Five in a hundred fail, five times as many as would be a streak: all others are written, and exit 3 is all."""
    workplace.configure("dead_letters.halt_letters", 4)
    for number in range(400):
        bad = number % 20 == 7
        workplace.write(f"{number:03}.txt", NO_TEXT if bad else f"A good text, number {number}.")
    totals = workplace.once(code=3)
    assert (totals["written"], totals["dead_lettered"]) == (380, 20)
