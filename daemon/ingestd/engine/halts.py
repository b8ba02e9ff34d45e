"""Halts: a streak of dead letters stops the source that they come from.

Hundreds of documents that fail one after the other are hardly hundreds of bad documents: a limit, a format or a right
is set wrong, and going on would only fill the dead letters. So the source is halted, which needs a person, and says
so; what is in flight still ends, retries and replays go on, and so do all other sources.

Owns the numbers of the events that each source handed in, in its order, for it is there that a streak counts. In the
order in which events end, bad ones come first: they fail early, while the good ones before them wait for the model, and
a few bad ones among a thousand look like a streak. What was not handed in by its source in this run counts on neither
side: a replay (of old letters many may fail again), what an earlier run had parked, a file that a scan finds as it was.
A share of a span of time was turned down as well: it would halt a quiet source for three bad files.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect, insort
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from ingestd.model import Check, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ingestd.model import Event, Outcome

LONGEST = 500
"""Characters that are kept of an error's message."""
REMEMBERED = 20_000
"""The least events of a source for which it is remembered when they were handed in: parked ones end much later."""
_CURE = (
    "probably the configuration is wrong and not the documents: ingestd dead-letters list --source {source} says "
    "which; mend it, restart the daemon, and replay those that do not come back by themselves (ingestd dead-letters "
    "replay --all --source {source}). Where the documents are bad after all: a restart goes on with the next ones, "
    "and dead_letters.halt_letters says how many are too many"
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HaltRule:
    """A source is halted when, of ``window`` events that it handed in one after the other, ``letters`` failed."""

    letters: int = 200
    """0: no source is ever halted."""
    share: float = 0.9
    """In (0, 1]."""

    @property
    def window(self) -> int:
        """The most events of which ``letters`` are at least ``share``."""
        return int(self.letters / self.share + 1e-9)  # 0.9 is a little more than nine tenths


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a source is halted."""

    letters: int
    events: int
    """Of so many that were handed in one after the other, the letters included."""
    stage: str
    error: str
    """The class of the error that most of them have."""
    times: int
    """How many those are."""
    message: str
    """Of the last of those."""

    def said(self) -> str:
        """Return it as a sentence."""
        most = f"{self.times} of them in {self.stage} with {self.error}: {self.message}"
        return f"halted: of {self.events} documents in a row {self.letters} became dead letters, {most}"


@dataclass(frozen=True, slots=True, order=True)
class _Letter:
    """What is kept of a dead letter."""

    number: int
    """Of its event, among those of its source."""
    kind: tuple[str, str, str] = field(compare=False)
    """Stage, class, and the message without what differs from document to document."""
    message: str = field(compare=False)


@dataclass(slots=True)
class _Events:
    """What is known of one source's events."""

    count: int = 0
    """How many were handed in."""
    numbers: dict[str, int] = field(default_factory=dict)
    """By position, of those that have not ended, in their order."""
    letters: list[_Letter] = field(default_factory=list)
    """In the order in which their events were handed in."""


class Halts:
    """Which sources are halted. Safe to call from any thread.

    Args:
        sources: Their names.
        rule: When one is halted.
        on_halt: Called with the name of a source that is halted now.
    """

    def __init__(
        self, sources: Collection[str], rule: HaltRule, on_halt: Callable[[str], None] = lambda _source: None
    ) -> None:
        self._rule = rule
        self._on_halt = on_halt
        self._remembered = max(REMEMBERED, 2 * rule.window)
        self._events = {name: _Events() for name in sources if rule.letters}
        self._halted: dict[str, Halt] = {}
        self._lock = threading.Lock()

    def halted(self, source: str) -> bool:
        """Return whether a source may hand in nothing more."""
        return source in self._halted

    def accepted(self, source: str, events: Sequence[Event]) -> None:
        """Take note of what a source hands in, in its order, before anything is done to it."""
        known = self._events.get(source)
        if known is None:
            return
        with self._lock:
            numbers = known.numbers
            for event in events:
                known.count += 1
                numbers.pop(event.position, None)  # so that the first ones stay the oldest
                numbers[event.position] = known.count
            # What was withdrawn, or superseded while it was parked, has no end that is told here.
            while numbers and known.count - next(iter(numbers.values())) >= self._remembered:
                del numbers[next(iter(numbers))]

    def note(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of outcomes that are durable."""
        halted = []
        with self._lock:
            for outcome in outcomes:
                source, known = outcome.event.source, self._events.get(outcome.event.source)
                if known is None or outcome.verdict is Verdict.RETRYING:
                    continue
                number = known.numbers.pop(outcome.event.position, None)
                if number is None or outcome.event.again or source in self._halted:
                    continue
                letter = _letter(number, outcome)
                if letter is not None and (halt := self._add(known, letter)) is not None:
                    self._halted[source] = halt
                    halted.append((source, halt))
        for source, halt in halted:
            self._tell(source, halt)

    def checks(self) -> list[Check]:
        """Return one check for each source."""
        return [self._check(source) for source in self._events]

    def _add(self, known: _Events, letter: _Letter) -> Halt | None:
        """Add a letter; return why its source is to be halted, if it is."""
        letters, least = known.letters, self._rule.letters
        insort(letters, letter)
        while known.count - letters[0].number >= self._remembered and len(letters) > 1:
            del letters[0]
        at = bisect(letters, letter) - 1
        for first in range(max(0, at - least + 1), min(at, len(letters) - least) + 1):
            streak = letters[first : first + least]
            events = streak[-1].number - streak[0].number + 1
            if events <= self._rule.window:
                return _halt(streak, events)
        return None

    def _tell(self, source: str, halt: Halt) -> None:
        log.error(
            "too many dead letters in a row, the source is halted",
            source=source,
            letters=halt.letters,
            of_documents=halt.events,
            stage=halt.stage,
            error=halt.error,
            times=halt.times,
            message=halt.message,
            cure=_CURE.format(source=source),
        )
        self._on_halt(source)

    def _check(self, source: str) -> Check:
        name, halt = f"{source}:intake", self._halted.get(source)
        if halt is None:
            return Check(name, ok=True, detail="open")
        return Check(name, ok=False, detail=halt.said(), cure=_CURE.format(source=source))


def _halt(streak: Sequence[_Letter], events: int) -> Halt:
    (kind, times), *_ = Counter(letter.kind for letter in streak).most_common(1)
    message = next(letter.message for letter in reversed(streak) if letter.kind == kind)
    return Halt(len(streak), events, kind[0], kind[1], times, message)


def _letter(number: int, outcome: Outcome) -> _Letter | None:
    if outcome.verdict is not Verdict.DEAD_LETTERED or outcome.failure is None:
        return None
    failure, document = outcome.failure, outcome.event.key.document_id
    message = failure.message[:LONGEST]
    names = sorted({outcome.event.position, document, document.rpartition("/")[2]}, key=len, reverse=True)
    same = re.sub(rf"(?<!\w)({'|'.join(map(re.escape, filter(None, names)))})(?!\w)", "…", message)
    return _Letter(number, (failure.stage.value, failure.error, re.sub(r"\d+", "#", same)), message)
