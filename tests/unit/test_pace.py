"""How fast a provider is asked: against simulated limits, in simulated time."""

from __future__ import annotations

import heapq
import random
from collections import deque
from typing import TYPE_CHECKING

import pytest

from ingestd.embedders._pace import FIRST_REST, Pace

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 200.0


def window(limit: int, length: float) -> Callable[[float], bool]:
    """Return a limiter that lets so many through in each stretch of time."""
    stretch, count = -1, 0

    def passes(now: float) -> bool:
        nonlocal stretch, count
        if int(now // length) != stretch:
            stretch, count = int(now // length), 0
        count += 1
        return count <= limit

    return passes


def sliding(limit: int, length: float) -> Callable[[float], bool]:
    """Return a limiter that lets so many through in any stretch of time."""
    passed: deque[float] = deque()

    def passes(now: float) -> bool:
        while passed and passed[0] <= now - length:
            passed.popleft()
        if len(passed) == limit:
            return False
        passed.append(now)
        return True

    return passes


def bucket(rate: float, capacity: float) -> Callable[[float], bool]:
    """Return a limiter that holds tokens, and gets so many back a second."""
    left, at = capacity, 0.0

    def passes(now: float) -> bool:
        nonlocal left, at
        left, at = min(capacity, left + (now - at) * rate), now
        if left < 1:
            return False
        left -= 1
        return True

    return passes


class Run:
    """So many workers ask a limiter for as long as the time lasts."""

    def __init__(self, passes: Callable[[float], bool], *, wait: float | None, latency: float, workers: int) -> None:
        draw = random.Random(7)
        self.answered = self.refused = self.refused_again = 0
        now = 0.0
        pace = Pace(lambda: now)
        todo = [(0.0, worker, "turn", 0) for worker in range(workers)]
        while todo[0][0] < SECONDS:
            now, worker, step, refusals = heapq.heappop(todo)
            if step == "turn":
                seconds = pace.wait(100, again=refusals > 0)
                step = "turn" if seconds else "arrival"
                heapq.heappush(todo, (now + (seconds or latency * draw.uniform(0.4, 0.6)), worker, step, refusals))
            elif step == "arrival":
                step = "answer" if passes(now) else "refusal"
                heapq.heappush(todo, (now + latency * draw.uniform(0.4, 0.6), worker, step, refusals))
            elif step == "answer":
                self.answered += 1
                pace.answered({}, 100)
                pace.ended(100)
                heapq.heappush(todo, (now, worker, "turn", 0))
            else:
                self.refused += 1
                self.refused_again += refusals > 0
                pace.refused(wait)
                pace.ended(100)
                heapq.heappush(todo, (now, worker, "turn", refusals + 1))


@pytest.mark.parametrize(("latency", "workers"), [(0.02, 4), (0.1, 4), (0.02, 16), (0.1, 16)])
@pytest.mark.parametrize("wait", [None, 1.0], ids=["silent", "retry-after"])
@pytest.mark.parametrize(
    "limit", [lambda: window(3, 1), lambda: sliding(3, 1), lambda: bucket(3, 3)], ids=["window", "sliding", "bucket"]
)
def test_a_limit_that_nobody_told_is_used_and_kept(
    limit: Callable[[], Callable[[float], bool]], wait: float | None, latency: float, workers: int
) -> None:
    """Nine tenths of three requests a second go through, few are refused, and none of them a second time."""
    run = Run(limit(), wait=wait, latency=latency, workers=workers)
    assert run.answered >= 0.9 * 3 * SECONDS
    assert run.refused <= SECONDS / 8
    assert run.refused_again == 0


def known(clock: Callable[[], float], *rates: float | None) -> Pace:
    """Return the pace of a provider that has answered some requests."""
    pace = Pace(clock, *rates)
    for _ in range(8):
        pace.answered({}, 1)
    return pace


def test_the_first_requests_find_out_what_is_taken() -> None:
    """One goes at first, and with each good answer one more may be in flight: no burst into the unknown."""
    pace = Pace(lambda: 0.0)
    assert pace.wait(1) == 0
    assert pace.wait(1) > 0
    for flying in (2, 3, 4):
        pace.answered({}, 1)
        pace.ended(1)
        waits = [pace.wait(1) for _ in range(3)]
        assert (waits[:2], waits[2] > 0) == ([0, 0], True), flying


def test_a_bad_answer_lets_no_more_go() -> None:
    """A connection that is cut says nothing of what is taken."""
    pace = Pace(lambda: 0.0)
    pace.wait(1)
    pace.ended(1)
    assert pace.wait(1) == 0
    assert pace.wait(1) > 0


def test_a_single_refusal_at_a_known_rate_costs_the_time_of_two_requests() -> None:
    """A rest of a second and more is for who knows nothing: here it would be a tenth of all that is let through."""
    now = 0.0
    pace = known(lambda: now)
    for number in range(40):
        now = number / 4
        assert pace.wait(1) == 0
        pace.answered({}, 1)
        pace.ended(1)
    first = pace.refused(None)
    pace.ended(1)
    assert first >= FIRST_REST
    now += first
    assert pace.wait(1, again=True) == 0
    pace.answered({}, 1)
    rest = pace.refused(None)
    assert pace.rate
    assert rest < 1
    assert rest == pytest.approx(2 / pace.rate)
    assert pace.refused(None) >= FIRST_REST  # it is not alone


def test_a_refused_request_goes_before_fresh_ones_and_after_its_rest() -> None:
    """It waits for as long as it was told; what is fresh waits until it has gone."""
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.wait(1) == 0
    assert pace.refused(20.0) == 20.0
    pace.ended(1)
    assert pace.wait(1) >= 20.0
    assert pace.wait(1, again=True) == 20.0
    now = 20.0
    assert pace.wait(1) > 0
    assert pace.wait(1, again=True) == 0


def test_a_request_that_is_refused_by_itself_tells_no_rate() -> None:
    """Nothing went before it, so nothing is known of how much is let through: it waits for as long as it was told.

    From no request in ten seconds a rate of one a minute was learned, and kept long after the provider was well.
    """
    now = 0.0
    pace = Pace(lambda: now)
    for rest in (3.0, 3.0, 5.0):
        assert pace.wait(1, again=now > 0) == 0
        assert pace.refused(3.0) == rest
        pace.ended(1)
        assert pace.rate is None
        now += rest
    assert pace.wait(1, again=True) == 0
    pace.answered({}, 1)
    assert pace.wait(1) == 0


def test_a_slow_rate_is_left_in_minutes_once_more_is_taken() -> None:
    """A trickle was refused, so that the rate is as slow as the trickle; then there is much to do, and all is taken."""
    now = 0.0
    pace = known(lambda: now)
    for _ in range(4):
        now += 1.9
        assert pace.wait(1) == 0
        pace.ended(1)
    pace.refused(1.0)
    now += 1.0
    rate = pace.rate
    assert rate
    assert rate < 0.6
    taken, until, again = 0, now + 120.0, True
    while now < until:
        seconds = pace.wait(1, again=again)
        if seconds:
            now += seconds
            continue
        again, taken = False, taken + 1
        pace.answered({}, 1)
        pace.ended(1)
    faster = pace.rate
    assert faster
    assert faster > 10.0


def test_a_request_that_is_given_up_holds_nobody_back() -> None:
    """Fresh ones go once the rest is over."""
    now = 0.0
    pace = Pace(lambda: now)
    pace.wait(1)
    pace.refused(1.0)
    pace.ended(1)
    pace.give_up()
    now = 5.0
    assert pace.wait(1) == 0


def test_rests_grow_where_nothing_is_said() -> None:
    """More than a second, twice and four times as much: for a provider that refuses and refuses."""
    now = 0.0
    pace = Pace(lambda: now)
    rests: list[float] = []
    for _ in range(3):
        now += 1000.0
        assert pace.wait(1, again=bool(rests)) == 0
        rests.append(pace.refused(None))
        pace.ended(1)
    assert rests[0] >= FIRST_REST
    assert rests[1:] == [2 * FIRST_REST, 4 * FIRST_REST]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30.5s"}, 30.5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-tokens": "99", "x-ratelimit-reset-tokens": "6.5"}, 6.5),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "7"}, 7.0),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1m30s"}, 0.0),
        ({"x-ratelimit-remaining-tokens": "100", "x-ratelimit-reset-tokens": "6s"}, 0.0),
        (
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "60000"},
            60.0,
        ),  # milliseconds, by a server of its own mind
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1795000000"}, 0.0),  # a point in time, not a span
        ({"x-ratelimit-remaining": "many", "x-ratelimit-reset": "soon"}, 0.0),
    ],
)
def test_what_the_provider_says_is_left_is_kept_to(headers: dict[str, str], seconds: float) -> None:
    """Nothing goes before there is more, so that nothing is refused."""
    pace = Pace(lambda: 100.0)
    pace.answered(headers, 1)
    assert pace.wait(100) == pytest.approx(seconds)


def test_what_goes_is_taken_off_what_was_said_to_be_left() -> None:
    """Three are left: three go, however late the next answer comes."""
    now = 0.0
    pace = known(lambda: now)
    pace.answered({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "10s"}, 1)
    assert [pace.wait(1) for _ in range(4)] == [0, 0, 0, 10.0]
    now = 10.0
    assert pace.wait(1) == 0


def test_what_is_in_flight_may_not_be_counted_yet() -> None:
    """Three are under way, and the first answer says that three are left: one more goes."""
    pace = known(lambda: 0.0)
    assert [pace.wait(100) for _ in range(3)] == [0, 0, 0]
    said = {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "10s"}
    pace.answered(said, 100)
    pace.ended(100)
    assert [pace.wait(100) for _ in range(2)] == [0, 10.0]
    for _ in range(3):
        pace.ended(100)
    pace.answered(said, 100)
    assert [pace.wait(100) for _ in range(4)] == [0, 0, 0, 10.0]


@pytest.mark.parametrize(
    ("requests", "tokens", "seconds"), [(60.0, None, 1.0), (None, 6000.0, 1.0), (600.0, 6000.0, 1.0), (None, None, 0.0)]
)
def test_configured_rates_are_spread_evenly(requests: float | None, tokens: float | None, seconds: float) -> None:
    """The stricter of requests and tokens counts: here 100 tokens a request."""
    pace = known(lambda: 0.0, requests, tokens)
    assert pace.wait(100) == 0
    assert pace.wait(100) == pytest.approx(seconds, rel=0.05)
