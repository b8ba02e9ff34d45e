"""A model that takes longer for a batch than a member of a group may be away between two polls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.faults.kafka_place import SESSION_MS, Place, metric

if TYPE_CHECKING:
    from tests.fixtures.brokers import Tansu
    from tests.fixtures.daemon import Workplace

pytestmark = [pytest.mark.lite, pytest.mark.kafka]

BATCH_SECONDS = 30.0


@pytest.mark.long
def test_a_slow_batch_does_not_cost_the_partitions(workplace: Workplace, tansu: Tansu) -> None:
    """Thirty seconds a batch, six between two polls: one rebalance, the first; nothing is done twice."""
    consumer = {"session_timeout_ms": SESSION_MS, "max_poll_interval_ms": SESSION_MS}
    place = Place(workplace, tansu.bootstrap, 2, consumer=consumer)
    workplace.configure("embedders.hash.delay_seconds_per_text", BATCH_SECONDS / 2)
    documents = place.produce(2)  # one batch
    with workplace.daemon() as daemon:
        daemon.until(lambda: daemon.totals.get("in_flight") == len(documents), "the batch has begun")
        totals = daemon.until_settled(2, 2 * BATCH_SECONDS)
        assert totals["written"] == 2
        place.until_committed()
        assert metric(daemon, "ingestd_kafka_rebalances_total") == 1
        assert metric(daemon, "ingestd_kafka_refused_commits_total") == 0
        assert daemon.totals["accepted"] == 2
        assert daemon.get("/readyz")[0] == 200
        assert documents == workplace.documents()
