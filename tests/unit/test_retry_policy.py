"""Whether and when an event is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestd.engine.retry import RetryPolicy

POLICY = RetryPolicy(attempts=8, first=15.0, most=1800.0)


@given(attempt=st.integers(1, 10_000), wait=st.none() | st.floats(0, 1e6))
def test_there_is_an_end_and_a_bound(attempt: int, wait: float | None) -> None:
    """No event is tried more than ``attempts`` times, and no delay of ours exceeds ``most``."""
    delay = POLICY.next(attempt, wait)
    assert (delay is None) == (attempt >= 8)
    if delay is not None and wait is None:
        assert 0 <= delay <= min(1800.0, 15.0 * 2 ** (attempt - 1))


def test_what_the_other_side_asks_for_wins() -> None:
    """Also nothing at all: an event whose ledger was wrong is tried again at once."""
    assert POLICY.next(1, 0.0) == 0.0
    assert POLICY.next(7, 9999.0) == 9999.0


def test_one_attempt_means_no_retries() -> None:
    """The bound holds at its least value."""
    assert RetryPolicy(attempts=1).next(1, 0.0) is None


def test_delays_are_spread() -> None:
    """Full jitter: delays of the same attempt lie all over what they may be."""
    delays = [POLICY.next(4, None) or 0.0 for _ in range(300)]
    assert min(delays) < 30.0
    assert max(delays) > 90.0
