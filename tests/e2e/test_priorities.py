"""What somebody has just changed is found soon, whatever is being worked off."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.corpus import copy_articles, fold
from tests.fixtures.noting_embedder import noted

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.daemon import Workplace

pytestmark = pytest.mark.lite

WINDOW = 32
DELAY = 0.03
"""Seconds a text: a full batch takes one."""


@pytest.mark.parametrize("many", [True, False], ids=["many documents", "a large document"])
def test_a_backfill_delays_a_live_document_by_a_batch_at_most(workplace: Workplace, *, many: bool) -> None:
    """What comes while the folder's first scan is worked off is embedded next, before all that the scan found."""
    notes = workplace.root / "notes"
    workplace.know_the_tests_plug_ins()
    workplace.configure("embedders.hash.type", "tests.fixtures.noting_embedder")
    workplace.configure("embedders.hash.notes", str(notes))
    workplace.configure("embedders.hash.delay_seconds_per_text", DELAY)
    workplace.configure("embedding.window", WINDOW)
    if many:
        copy_articles(workplace.inbox, every=6)
    else:
        _large(workplace.inbox / "large.txt")
    live = "Somebody has just written this, and looks for it."
    with workplace.daemon() as daemon:
        daemon.until(lambda: len(noted(notes)) >= 3, "the third batch is at the model")
        draft = workplace.root / "draft.txt"
        draft.write_text(live)
        dropped = time.monotonic()
        draft.rename(workplace.inbox / "live.txt")
        daemon.until(lambda: any(row.document_id.endswith("/live.txt") for row in workplace.rows()), "it is there")
        waits = daemon.status()["totals"]["in_flight"]
        batches = noted(notes)
        at = next(number for number, batch in enumerate(batches) if live in batch.texts)
        # One was at the model, and another may have been begun before the file was read.
        assert sum(batch.at > dropped for batch in batches[:at]) <= 1
        assert batches[at].texts == [live]
        assert waits > 0, "vacuous: there was nothing to go before"
    workplace.configure("embedders.hash.delay_seconds_per_text", 0)
    workplace.once()
    assert fold(workplace.inbox, workplace.config_file) == workplace.rows()


def _large(path: Path) -> None:
    paragraphs = (f"Paragraph {number} says this and that. " + "It goes on and on. " * 50 for number in range(1_000))
    path.write_text("\n\n".join(paragraphs))
