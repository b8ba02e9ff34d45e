"""Short forms of the fault campaign's scenes about Milvus and the state: what a whole run shows, on a few faults."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.faults import milvus, state
from tests.campaigns.faults.ground import Wish

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.lite, pytest.mark.timeout(600)]
WISH = Wish(times=0.12, patience=3.0)
"""Few, and with time for a machine that is busy otherwise."""


def _quietly(step: str, **said: object) -> None:
    """Take what a step says."""


@pytest.mark.parametrize("kinds", [["quota on upserts", "internal"]])
def test_a_server_that_refuses_is_an_outage(tmp_path: Path, kinds: list[str]) -> None:
    """Not ready, asked once a second, no retry spent, back by itself: also where reads and deletes go on passing."""
    figures = milvus.refusals(WISH, tmp_path, random.Random(1), _quietly, kinds)
    assert figures.faults == len(kinds)


def test_a_damaged_state_is_as_before_or_rebuilt(tmp_path: Path) -> None:
    """Bytes flipped and files cut at two dozen places, and one of them shown to a daemon: no row is lost to it."""
    assert state.damaged(WISH, tmp_path, random.Random(2), _quietly).faults == 24
