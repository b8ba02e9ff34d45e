"""How fast a provider is asked: what it says that it takes, what it was seen to take, what the configuration allows.

Owns one embedder's turns. Three things bound it, the strictest counts: the configured requests and tokens a minute,
spread evenly; what the provider's own headers say is left; and a rate that is learned from refusals (429). The learned
one falls a little with each refusal, to no more than what was let through of late, and creeps back: the sawtooth of
congestion control (Chiu and Jain, 1989) with small steps, so that refusals are rare and little is left. A refused
request waits for as long as it was told, goes first, and goes alone: it is not refused twice because of its siblings.
Before anything is known one request is in flight, and with each good answer one more may be (slow start, RFC 5681,
section 3.1): of a first burst of sixteen, a limit of three would refuse thirteen, and some of them again.

A fixed number of tries with a back-off each, as the SDKs have it, was turned down: every request finds the limit out
for itself, and those that lose are given up.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHARE = 0.97
"""Of a configured rate: the provider's clock and the network's delays are not ours."""
FALL = 0.95
"""What is left of the observed rate after a refusal."""
DOUBT = 1.25
"""A learned rate that is greater than the observed one by more than this is not believed."""
CREEP = 0.002
"""The share of the rate that is won back a second while it is near the last refusal's."""
STRIDE = 0.05
"""The same above it: the limit has moved."""
NEAR = 1.03
"""Up to this multiple of the last refusal's rate counts as near it."""
SLOWEST = 1 / 60
"""Requests a second: slower than that nothing is learned."""
WINDOW = 10.0
"""Seconds over which the observed rate is taken, at the most: it is that of the time since there was nothing to ask."""
IDLE = 2.0
"""Seconds without an answer after which that time begins anew."""
FIRST_REST = 1.25
"""Seconds that nothing goes after a refusal that does not say for how long; each further one in a row doubles it."""
SHORT_REST = 2.0
"""The same of a single refusal at a rate that is known, where that is shorter: the time of so many requests."""
YIELD = 0.05
"""Seconds between two looks whether those that were refused have gone, or one in flight was answered."""
LONGEST_REST = 60.0

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_KINDS = ("requests", "tokens")


class Pace:
    """The turns of one embedder's requests. Safe to call from several threads.

    Args:
        clock: Seconds that only go forward.
        requests_per_minute: The most requests; None: no bound that we know of.
        tokens_per_minute: The same of tokens.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self._clock = clock
        self._per_request = 60 / (SHARE * requests_per_minute) if requests_per_minute else 0.0
        self._per_token = 60 / (SHARE * tokens_per_minute) if tokens_per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0
        """When the next request may go, by the configured and the learned rates."""
        self._rest_until = 0.0
        """Until when nothing goes: the provider refused."""
        self._again = 0
        """Refused requests that wait for their next turn: fresh ones let them go first."""
        self._sent: deque[float] = deque()
        """When the requests of late went that were not refused, since there was nothing to ask."""
        self._busy_since = 0.0
        self._rate: float | None = None
        """Requests a second, learned; None: never refused."""
        self._ceiling = 0.0
        """The rate at the last refusal."""
        self._learned_at = 0.0
        self._fell_at = 0.0
        self._before: float | None = None
        """The learned rate before the last refusal that came by itself."""
        self._refusals = 0
        """In a row."""
        self._most = 1
        """How many requests may be in flight."""
        self._flying = dict.fromkeys(_KINDS, 0)
        """Requests and tokens in flight."""
        self._left: dict[str, float] = {}
        """Of requests and tokens, as the provider said and less what went since; absent: it does not say."""
        self._renewed: dict[str, float] = {}
        """When the provider fills them up again."""

    def wait(self, tokens: int, *, again: bool = False) -> float:
        """Return the seconds until a request may ask again for its turn; 0: it goes now, and is counted.

        Args:
            tokens: How many tokens it has, about.
            again: It was refused before: it goes ahead of the others.
        """
        with self._lock:
            now = self._clock()
            at = max(self._rest_until, self._next)
            if self._again and not again:
                at = max(at, now + max(YIELD, 1 / self._rate if self._rate else 0.0))
            if self._flying["requests"] >= self._most:
                at = max(at, now + YIELD)
            at = max(at, self._replenished(now, tokens))
            if at > now:
                return at - now
            self._go(now, tokens)
            self._again -= again
            return 0.0

    def answered(self, headers: Mapping[str, str], tokens: int) -> None:
        """Take note of a good answer, and of what it says about what is left.

        Args:
            headers: Of the answer.
            tokens: How many the request had, about. It has not ``ended`` yet.
        """
        with self._lock:
            now = self._clock()
            self._refusals = 0
            self._most += 1
            for kind, mine in zip(_KINDS, (1, tokens), strict=True):
                left, renewed = _said(headers, kind)
                if left is not None and renewed is not None:
                    # What else is in flight may not be counted yet. Whatever it says, in whatever unit: we ask again
                    # within a minute, and are told more.
                    self._left[kind] = left - max(0, self._flying[kind] - mine)
                    self._renewed[kind] = now + min(renewed, LONGEST_REST)

    def ended(self, tokens: int) -> None:
        """Take note that a request that had its turn is in flight no more, however it ended."""
        with self._lock:
            for kind, amount in zip(_KINDS, (1, tokens), strict=True):
                self._flying[kind] -= amount

    def refused(self, wait: float | None) -> float:
        """Take note of a refusal: the request will ask for its turn ``again``, or is given up.

        Args:
            wait: The seconds that the provider wants us to wait; None, or 0: it does not say.

        Returns:
            The seconds for which nothing goes.
        """
        with self._lock:
            now = self._clock()
            self._again += 1
            if self._sent:
                self._sent.pop()
            if self._rest_until <= now:
                self._refusals += 1
                self._fell_at, self._before = now, self._learned(now)
            if self._refusals == 1:  # the same request again: nothing is left for a while, whatever the rate
                self._fall()
            rest = min(LONGEST_REST, FIRST_REST * 2 ** (self._refusals - 1))
            if wait:  # believed the first time: one that says a second, and refuses for a minute, is not
                rest = wait if self._refusals <= 1 else max(wait, rest)
            elif self._rate and self._refusals <= 1:
                rest = max(rest, 1 / self._rate)
                if self._again == 1 and self._before is not None:
                    rest = min(rest, SHORT_REST / self._rate)
            self._rest_until = max(self._rest_until, now + rest)
            self._next = max(self._next, self._rest_until)
            return self._rest_until - now

    def give_up(self) -> None:
        """Take note that a refused request will not ask again."""
        with self._lock:
            self._again -= 1

    @property
    def rate(self) -> float | None:
        """Requests a second, as far as it was learned."""
        with self._lock:
            return self._rate

    def _replenished(self, now: float, tokens: int) -> float:
        """Return when the provider has enough left, as far as it says."""
        at = now
        for kind, amount in zip(_KINDS, (1, tokens), strict=True):
            renewed = self._renewed.get(kind, 0.0)
            if now >= renewed:
                self._left.pop(kind, None)
            elif self._left.get(kind, amount) < amount:
                at = max(at, renewed)
        return at

    def _go(self, now: float, tokens: int) -> None:
        for kind, amount in zip(_KINDS, (1, tokens), strict=True):
            self._flying[kind] += amount
            if kind in self._left:
                self._left[kind] -= amount
        rate = self._learned(now)
        gap = max(self._per_request, tokens * self._per_token, 1 / rate if rate else 0.0)
        self._next = max(self._next, now) + gap
        if not self._sent or now - self._sent[-1] > max(IDLE, 2 * gap):
            self._sent.clear()
            self._busy_since = now
        self._sent.append(now)
        while self._sent[0] < now - WINDOW:
            self._sent.popleft()

    def _fall(self) -> None:
        """Learn from the first refusal, and again from those of what went beside it: so many less got through."""
        seen = len(self._sent) / min(WINDOW, max(1.0, self._fell_at - self._busy_since))
        before = self._before
        if not seen and before is None:
            return  # one that was refused by itself, after nothing for a while: that tells no rate
        # What went is less than what is taken, by the rests: but a rate that was guessed from a burst can be far off.
        self._ceiling = seen if before is None else min(before, DOUBT * seen) if seen else before / 2
        self._rate = self._ceiling = max(SLOWEST, self._ceiling)
        self._rate *= FALL
        self._learned_at = self._fell_at

    def _learned(self, now: float) -> float | None:
        """Return the learned rate, grown by the time since it was last asked for."""
        if self._rate is None:
            return None
        seconds, self._learned_at = now - self._learned_at, now
        growth = CREEP if self._rate < NEAR * self._ceiling else STRIDE
        # Of a pause nothing is learned; but what lies between two requests at this rate is none.
        self._rate *= 1 + growth * min(seconds, max(1.0, 2 / self._rate))
        return self._rate


def until_renewed(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until what is used up comes back, as the headers of a refusal say; None: they do not."""
    said = (_said(headers, kind) for kind in _KINDS)
    waits = [renewed for left, renewed in said if renewed is not None and left is not None and left <= 0]
    return max(waits, default=None)


def _said(headers: Mapping[str, str], kind: str) -> tuple[float | None, float | None]:
    """Return how much is left of requests or tokens, and the seconds until there is more; None: not said.

    OpenAI's form, which vLLM, Voyage and others share: ``x-ratelimit-remaining-requests: 59``,
    ``x-ratelimit-reset-requests: 1m30.5s``. Some leave the kind out where requests are all that they count.
    """
    for suffix in (f"-{kind}", *([""] if kind == "requests" else [])):
        left = _number(headers.get(f"x-ratelimit-remaining{suffix}", ""))
        if left is not None:
            return left, seconds_in(headers.get(f"x-ratelimit-reset{suffix}", ""))
    return None, None


def _number(text: str) -> float | None:
    text = text.strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 16 else None  # noqa: PLR2004 - no count is that long


def seconds_in(text: str) -> float | None:
    """Return a span of time: ``6m0s``, ``120ms``, ``1.5``. A point in time is no span, and is not read."""
    text = text.strip()
    if re.fullmatch(r"\d{1,6}(\.\d{1,9})?", text):
        return min(float(text), 3600.0) if float(text) < 100_000 else None  # noqa: PLR2004 - seconds since 1970 are more
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return min(sum(float(number) * _UNITS[unit] for number, unit in parts), 3600.0)
