"""The fault campaign's scenes about files, documents and events in short: one turn of the most telling ones.

``make campaign-faults`` plays all of them, and longer; ``tests/campaigns/faults/oracle.py`` says what is compared.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.faults.__main__ import report
from tests.campaigns.faults.disorder import versions
from tests.campaigns.faults.documents import provider
from tests.campaigns.faults.files import overflow, traps
from tests.campaigns.faults.ground import Wish

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaigns.faults.ground import Scene

pytestmark = [pytest.mark.lite]
ONCE = 0.01
"""Of what a scene does by itself: each of its faults once."""


def _play(scene: Scene, folder: Path) -> None:
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")  # shown when the test fails
    scene(Wish(ONCE, seed), folder / "scene", random.Random(seed), report)


def test_what_inotify_loses_is_found(tmp_path: Path) -> None:
    """Its queue runs over and the next scan is an hour away: everything that was lost is in Milvus within seconds."""
    _play(overflow, tmp_path)


def test_traps_in_the_folder_catch_nothing(tmp_path: Path) -> None:
    """Symlinks out, FIFOs, swapped directories and withdrawn rights: nothing from outside, nothing lost, none waits."""
    _play(traps, tmp_path)


@pytest.mark.long
def test_a_text_that_looks_like_an_outage_is_found_out(tmp_path: Path) -> None:
    """Its provider answers 500, or not at all, whenever it is in a batch: it is a dead letter, and others go on."""
    _play(provider, tmp_path)


@pytest.mark.kafka
def test_events_in_any_order_end_as_their_versions_say(tmp_path: Path) -> None:
    """A third twice, a third moved, deletes before creates, and all once more at the end: the latest is there."""
    _play(versions, tmp_path)
