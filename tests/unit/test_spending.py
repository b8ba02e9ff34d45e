"""What a provider was paid today, and that a daily limit holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
import structlog.testing
from prometheus_client import CollectorRegistry
from tests.fakes import ManualClock

from ingestd.errors import UnavailableError
from ingestd.metrics import EmbeddingMetrics
from ingestd.model import ModelInfo, Role, VectorKind
from ingestd.parts import LOOK_SECONDS, MeasuredEmbedder
from ingestd.store.spending import FILE, Spending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ingestd.model import Vectors

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


class Paid:
    """An embedder whose texts have a thousand tokens each."""

    name = "far"
    tokens_used = 0
    texts_cut = 0
    fails = False

    def info(self) -> ModelInfo:
        """Return what it is."""
        return ModelInfo(frozenset({VectorKind.DENSE}), 2, "space", "float32", "far")

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return ones."""
        self.tokens_used += 1000 * len(texts)
        if self.fails:
            raise UnavailableError("provider:far", "gone")
        return {VectorKind.DENSE: np.ones((len(texts), 2), np.float32)}

    def close(self) -> None:
        """Nothing."""


@pytest.fixture
def clock() -> ManualClock:
    """Noon, by UTC."""
    return ManualClock(NOON)


def measured(
    spending: Spending, registry: CollectorRegistry | None = None, most: float | None = 0.05
) -> MeasuredEmbedder:
    """Return an embedder at ten for a million tokens: a hundredth a text."""
    return MeasuredEmbedder(Paid(), EmbeddingMetrics(registry or CollectorRegistry()), spending, 10.0, most)


def embed(embedder: MeasuredEmbedder, count: int, role: Role = Role.DOCUMENT) -> None:
    """Embed so many texts."""
    embedder.embed(["a"] * count, role, {VectorKind.DENSE})


def test_a_day_costs_no_more_than_it_may(tmp_path: Path, clock: ManualClock) -> None:
    """What would cost more waits until midnight, by UTC; a search goes on."""
    embedder = measured(Spending(tmp_path, clock))
    embed(embedder, 4)
    embed(embedder, 1)
    with pytest.raises(UnavailableError, match=r"has cost 0\.05 today") as caught:
        embed(embedder, 1)
    assert caught.value.dependency == "budget:far"
    assert caught.value.refused
    assert caught.value.wait == LOOK_SECONDS
    embed(embedder, 1, Role.QUERY)
    clock.now += 12 * HOUR - 1
    with pytest.raises(UnavailableError) as caught:
        embed(embedder, 1)
    assert caught.value.wait == pytest.approx(1.0)
    clock.now += 1
    embed(embedder, 5)


def test_a_restart_does_not_forget_what_the_day_has_cost(tmp_path: Path, clock: ManualClock) -> None:
    """A daemon that crashes in a loop spends no more than one that runs."""
    embed(measured(Spending(tmp_path, clock)), 5)
    with pytest.raises(UnavailableError):
        embed(measured(Spending(tmp_path, clock)), 1)
    assert Spending(tmp_path, clock).today("far") == pytest.approx(0.05)


def test_what_a_call_got_before_it_failed_was_paid_for(tmp_path: Path, clock: ManualClock) -> None:
    """It counts, or an outage would be a way around the limit."""
    spending = Spending(tmp_path, clock)
    embedder = measured(spending)
    Paid.fails = True
    try:
        with pytest.raises(UnavailableError, match="gone"):
            embed(embedder, 3)
    finally:
        Paid.fails = False
    assert spending.today("far") == pytest.approx(0.03)


def test_cost_and_tokens_are_metrics(tmp_path: Path, clock: ManualClock) -> None:
    """What was paid since the start, and today."""
    embed(measured(Spending(tmp_path, clock)), 2)
    registry = CollectorRegistry()
    embed(measured(Spending(tmp_path, clock), registry), 1)
    labels = {"embedder": "far"}
    assert registry.get_sample_value("ingestd_embedded_tokens_total", labels) == 1000
    assert registry.get_sample_value("ingestd_embedding_cost_total", labels) == pytest.approx(0.01)
    assert registry.get_sample_value("ingestd_embedding_cost_today", labels) == pytest.approx(0.03)
    clock.now += 12 * HOUR
    assert registry.get_sample_value("ingestd_embedding_cost_today", labels) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"far": 3}', '{"far": {"day": "2026-03-01"}}', "\xff"])
def test_a_file_that_cannot_be_read_is_told_and_begins_anew(tmp_path: Path, clock: ManualClock, text: str) -> None:
    """The daemon runs: it says that it does not know."""
    (tmp_path / FILE).write_text(text, "latin-1")
    with structlog.testing.capture_logs() as logs:
        spending = Spending(tmp_path, clock)
    assert ["what a provider was paid today is not known"] == [line["event"] for line in logs]
    spending.add("far", 0.01)
    assert Spending(tmp_path, clock).today("far") == pytest.approx(0.01)


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, clock: ManualClock) -> None:
    """The limit holds for as long as the daemon runs."""
    spending = Spending(tmp_path / "gone", clock)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            spending.add("far", 0.02)
    assert len(logs) == 1
    assert spending.today("far") == pytest.approx(0.06)
