"""What SIGTERM costs: nothing is embedded twice after a drain, and one batch after a drain that was given up."""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.corpus import copy_articles, fold
from tests.fixtures.noting_embedder import noted

if TYPE_CHECKING:
    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = pytest.mark.lite

WINDOW = 32
"""Chunks of a batch; no article here has so many."""
ARTICLES, NOTES = 186, "notes"


@pytest.fixture
def noting(workplace: Workplace) -> Workplace:
    """A workplace with articles, whose embedder notes what it is given."""
    workplace.know_the_tests_plug_ins()
    workplace.configure("embedders.hash.type", "tests.fixtures.noting_embedder")
    workplace.configure("embedders.hash.notes", str(workplace.root / NOTES))
    workplace.configure("embedding.window", WINDOW)
    assert len(copy_articles(workplace.inbox, every=12)) == ARTICLES
    return workplace


def _stopped(workplace: Workplace) -> tuple[Daemon, int]:
    """Stop a daemon amid its work; return it, and how many batches were begun before that."""
    with workplace.daemon() as daemon:
        daemon.until_said("ready")
        daemon.until(lambda: len(noted(workplace.root / NOTES)) >= 3, "the third batch is at the model")
        daemon.send(signal.SIGTERM)
        asked = time.monotonic()
        assert daemon.wait() == 0
    workplace.until_gone()
    return daemon, sum(batch.at <= asked for batch in noted(workplace.root / NOTES))


def _done_twice(workplace: Workplace) -> int:
    """Run to the end; return how many chunks were embedded more than once, in both runs together.

    Some articles are there twice. What is equal in a batch is embedded once, so a text may rightly be embedded less
    often than there are rows with it, and never more often.
    """
    workplace.configure("embedders.hash.delay_seconds_per_text", 0)
    workplace.once()
    rows = workplace.rows()
    assert fold(workplace.inbox, workplace.config_file) == rows
    embedded = Counter(text for batch in noted(workplace.root / NOTES) for text in batch.texts)
    assert embedded.keys() == {row.text for row in rows}
    return (embedded - Counter(row.text for row in rows)).total()


def test_after_a_drain_nothing_is_done_twice(noting: Workplace) -> None:
    """What was at the model is finished, and nothing else is begun, however much waits in the stages."""
    noting.configure("embedders.hash.delay_seconds_per_text", 0.05)
    noting.configure("shutdown.drain_seconds", 60)
    daemon, begun = _stopped(noting)
    # One that was taken before the signal may have been noted after it.
    assert len(noted(noting.root / NOTES)) <= begun + 1
    (drained,), (ended,) = daemon.said("drained"), daemon.said("ended")
    assert drained["left_for_the_next_start"] == ended["in_flight"] == ARTICLES - ended["written"] > ARTICLES / 2
    assert 0 == _done_twice(noting)


def test_after_a_drain_that_was_given_up_one_batch_is_done_twice(noting: Workplace) -> None:
    """The one that was at the model when the time was over: what had its vectors was written."""
    noting.configure("embedders.hash.delay_seconds_per_text", 0.2)
    noting.configure("shutdown.drain_seconds", 2)
    daemon, _begun = _stopped(noting)
    assert daemon.said("not drained in time: begun documents are begun again after the next start")
    assert 0 < _done_twice(noting) <= WINDOW
