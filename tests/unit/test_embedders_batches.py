"""How texts are put into batches."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ingestd.embedders._batches import halves, plan

LENGTHS = st.lists(st.integers(min_value=0, max_value=600), max_size=200)


@given(LENGTHS, st.integers(min_value=1, max_value=5_000))
def test_every_text_is_in_one_batch(lengths: list[int], budget: int) -> None:
    """No text is lost or embedded twice, and no batch is empty."""
    batches = plan(lengths, budget)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, st.integers(min_value=1, max_value=5_000))
def test_a_batch_stays_within_the_budget(lengths: list[int], budget: int) -> None:
    """The padded tokens of a batch are within the budget, but for a single text that is too long by itself."""
    for batch in plan(lengths, budget):
        padded = max(lengths[place] for place in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(min_value=1, max_value=5_000))
def test_batches_are_full(lengths: list[int], budget: int) -> None:
    """The next text would not have fitted into the batch before it: no batch is started without need."""
    batches = plan(lengths, budget)
    for batch, after in itertools.pairwise(batches):
        longest = max(1, *(lengths[place] for place in batch))  # an empty text counts as one token
        assert longest * (len(batch) + 1) > budget
        assert min(lengths[place] for place in batch) >= max(lengths[place] for place in after)


@given(st.lists(st.integers(), min_size=2, max_size=50))
def test_halves_are_all(batch: list[int]) -> None:
    """Two parts, neither empty, in order."""
    first, second = halves(batch)
    assert [*first, *second] == batch
    assert first
    assert second
