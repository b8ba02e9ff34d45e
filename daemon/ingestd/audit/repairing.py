"""Has the daemon mend what an audit found, and looks whether it is.

A document counts as mended when a look finds nothing wrong with it any more, whoever did it. One that still differs
after it was mended twice is left, with the reason as far as there is one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ingestd.audit.looking import AT_REST, DOCUMENTS, PAUSE, Beside, look_at_rest
from ingestd.audit.mending import Done

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ingestd.audit.looking import Look, Looker
    from ingestd.audit.mending import Mended
    from ingestd.audit.scratch import Scratch

TRIES = 2
"""A row can have been another document's: what mends the one then takes it from the other."""
_FAILED = "it failed and is a dead letter: ingestd dead-letters list says why"
ELSEWHERE = 3 * AT_REST
"""Seconds that another member has for a record that it is to read again, before that is sent once more."""


class Mends(Beside, Protocol):
    """A daemon that mends."""

    def mend(self, collection: str, documents: Sequence[str], files: Collection[str]) -> Iterator[Mapping[str, Mended]]:
        """Have documents mended; yield what became of some at a time. See ``mending.Mender``."""
        ...

    def held(self) -> Mapping[str, str]:
        """Return which sources hold deletes back, and how to let them go."""
        ...


@dataclass(slots=True)
class _Case:
    """A document that is being mended."""

    file: bool
    """Whether its file differed."""
    due: bool = True
    """Whether the daemon is to be asked."""
    tries: int = 0
    sent_at: float = 0.0


class Repair:
    """The repair of one collection.

    Args:
        looker: Looks at its documents.
        scratch: Has what was found, and gets what became of it.
        daemon: Mends.
        wait: Waits so many seconds.
        clock: Runs forward.
    """

    def __init__(
        self,
        looker: Looker,
        scratch: Scratch,
        daemon: Mends,
        *,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._looker = looker
        self._collection = looker.collection
        self._scratch = scratch
        self._daemon = daemon
        self._wait = wait
        self._clock = clock
        self._cases = {document: _Case(of_file) for document, of_file in scratch.faulty(looker.collection)}

    def run(self, seconds: float) -> None:
        """Mend until all is mended or left, or the time is over."""
        until = self._clock() + seconds
        while self._cases:
            self._mend()
            self._look()
            if self._clock() >= until:
                break
            if self._cases:
                self._wait(PAUSE)
        late = f"it was not done within {seconds:g} s, and goes on while a daemon runs: audit again"
        self._end(dict.fromkeys(self._cases, late))

    def _mend(self) -> None:
        due = [document for document, case in self._cases.items() if case.due]
        files = {document for document in due if self._cases[document].file}
        for answers in self._daemon.mend(self._collection, due, files):
            for document, answer in answers.items():
                case = self._cases[document]
                case.due = answer.done is Done.BUSY
                if answer.done in {Done.DELETED, Done.SENT}:
                    case.tries, case.sent_at = case.tries + 1, self._clock()
            self._end({document: answer.why for document, answer in answers.items() if answer.done is Done.LEFT})

    def _look(self) -> None:
        mended = [document for document, case in self._cases.items() if not case.due]
        for start in range(0, len(mended), DOCUMENTS):
            looks, _busy = look_at_rest(self._looker, self._daemon, mended[start : start + DOCUMENTS])
            self._judge(looks)

    def _judge(self, looks: Mapping[str, Look]) -> None:
        """Take note of what is mended, and of what has to be mended again, or is not going to be."""
        failed = []
        patience = ELSEWHERE if self._looker.feeds.shared else 0.0
        for document, look in looks.items():
            case = self._cases[document]
            case.file = case.file or any(fault.of_file for fault in look.faults)
            case.due = bool(look.faults) and self._clock() >= case.sent_at + patience
            if case.due and case.tries >= TRIES:
                failed.append(document)
        sound = [document for document, look in looks.items() if not look.faults]
        # An edit that failed is no difference any more: it is known. It was not mended by that.
        bad = self._looker.letters([document for document in sound if self._cases[document].file])
        self._end({document: _FAILED if document in bad else "" for document in sound})
        if failed:
            letters, held = self._looker.letters(failed), self._daemon.held()
            self._end({document: self._why(document, letters, held) for document in failed})

    def _why(self, document: str, letters: Collection[str], held: Mapping[str, str]) -> str:
        if document in letters:
            return _FAILED
        source = self._looker.owner(document)
        if self._cases[document].file and source is not None and source in held:
            return held[source]
        return "it was mended, and differs again: audit again"

    def _end(self, outcomes: Mapping[str, str]) -> None:
        self._scratch.outcome(self._collection, outcomes)
        for document in outcomes:
            del self._cases[document]
