"""The fault campaign's kills in short: a daemon that is killed at each named point of an event's way loses nothing.

``make faults`` is the long form; ``tests/campaigns/faults/oracle.py`` says what is compared.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.faults.__main__ import report, scenes, teeth, without
from tests.campaigns.faults.ground import Wish, at_points
from tests.campaigns.faults.inside import POINTS
from tests.campaigns.faults.kills import GROUPS, kill_at
from tests.campaigns.faults.oracle import Held, Stored, compare, covered

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 6.0
"""Tests run beside others: what takes half a minute on a machine of its own may take longer here."""
SAID = {"n": 7}


def _row(place: int, text: str, document: str = "a", n: int = 7) -> Stored:
    return Stored(f"{document}{place}{text}", document, place, text, "inbox", {"n": n})


@pytest.mark.kafka
@pytest.mark.lite
@pytest.mark.parametrize("some", [5, pytest.param(len(POINTS), marks=pytest.mark.long)])
def test_a_daemon_may_be_killed_at_every_point(tmp_path: Path, some: int) -> None:
    """SIGKILL once at each of some points, in any order, with events in between: the fold of all, and nothing else."""
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")  # shown when the test fails
    draw = random.Random(seed)
    points = at_points(list(POINTS), 1, draw)[:some]
    figures = kill_at(points, Wish(seed=seed, patience=PATIENCE), tmp_path / "server", draw, report, chain=6)
    assert figures.faults == some


def test_every_point_is_in_a_scene() -> None:
    """The campaign leaves none out."""
    assert sorted(POINTS) == sorted(point for points in GROUPS.values() for point in points)


def test_what_can_be_taken_out_has_a_scene_that_is_to_notice() -> None:
    """Of all areas: one may name a mechanism, and another a second scene for it."""
    assert {name for name, _ in teeth()} == without().keys()
    assert {scene for _, scene in teeth()} <= scenes().keys()


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([_row(0, "One two."), _row(1, "Three.")], None),
        ([_row(1, "Three. "), _row(0, " One\ntwo.")], None),
        ([], "missing"),
        ([_row(0, "One two.")], "missing"),
        ([_row(1, "Three.")], "missing"),
        ([_row(0, "One two."), _row(1, "Thre.")], "stale"),
        ([_row(0, "One two."), _row(1, "Three.", n=6)], "stale"),
        ([_row(0, "One two."), _row(1, "Three."), _row(2, "Four.")], "stale"),
        ([_row(0, "One two."), _row(1, "Three."), _row(1, "Four.")], "duplicate"),
        ([_row(0, "One two."), _row(1, "Three."), _row(0, "Else.", document="b")], "orphan"),
    ],
)
def test_the_oracle_tells_what_differs(rows: list[Stored], kind: str | None) -> None:
    """Rows that are missing, old, twice or nobody's are told apart; white space and the order of reading are not."""
    held: dict[str, list[Stored]] = {}
    for row in rows:
        held.setdefault(row.document_id, []).append(row)
    found = compare({"a": Held("One two. Three.\n", SAID)}, held)
    assert [name for name in ("missing", "stale", "orphan", "duplicate") if getattr(found, name)] == (
        [] if kind is None else [kind]
    )


def test_a_text_is_covered_by_rows_of_several_versions() -> None:
    """While a document is replaced its rows may be of two versions, as long as one of them is whole."""
    rows = [_row(0, "One two."), _row(0, "One more."), _row(1, "Three.")]
    assert covered(rows, "One two. Three.")
    assert covered(rows, "One more. Three.")
    assert not covered(rows, "One two. Three. Four.")
    assert not covered([], "One.")
