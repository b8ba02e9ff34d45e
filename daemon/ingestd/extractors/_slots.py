"""The places of the extraction workers: one worker each, started when needed, timed, and replaced when it is lost.

Owns what becomes of one document in one worker: how long it may take, how a death is told, and when it is tried again.
Which documents go where is decided in ``_isolated``.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, cast

from ingestd.children import Child, ChildDied
from ingestd.errors import Difficult, DocumentError, Stopped, TransientError, UnavailableError
from ingestd.extractors._worker import OUT_OF_MEMORY, Answer, Refusal, Request, Setup
from ingestd.model import Content, Document

if TYPE_CHECKING:
    from ingestd.nursery import Nursery

TRIES = 2
START_SECONDS = 60.0
"""Time for a worker to build its extractors; it takes milliseconds on a machine that is not busy."""
CLOSE_SECONDS = 10.0
SHORT_SECONDS = 1.0
"""What is read within it is not difficult, however quick others are: a machine may be busy for as long."""
LONG = 10
"""How many times longer than others a difficult document takes."""
REMEMBERED = 100
"""Documents over which that is known."""


class ExtractorFailed(DocumentError):  # noqa: N818 - the name is what people read in a dead letter
    """An extractor failed over a document in a way that it does not know.

    Args:
        message: The original error's class and message.
        traceback: The worker's traceback, as text.
    """

    def __init__(self, message: str, *, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


class Pace:
    """How long documents take to read. Safe to call from any thread."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0
        self._lock = threading.Lock()

    def note(self, seconds: float) -> None:
        """Take note of a document that was read."""
        with self._lock:
            self._count = min(self._count + 1, REMEMBERED)
            self._mean += (seconds - self._mean) / self._count

    @property
    def long(self) -> float:
        """The seconds beyond which a document is difficult. Where all take long, none is."""
        return max(SHORT_SECONDS, LONG * self._mean)


class Slot:
    """A place for one worker. One thread at a time reads documents here; ``stop`` may come from any thread."""

    def __init__(
        self, name: str, setup: Setup, *, nursery: Nursery, wall_seconds: float, recycle: int, pace: Pace
    ) -> None:
        self._name = name
        self._nursery = nursery
        self._pace = pace
        self._setup = setup
        self._wall_seconds = wall_seconds
        self._recycle = recycle
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._served = 0
        self._stopped = False

    def extract(self, number: int, content: Content) -> Document:
        """Have the worker read a document with one of its extractors; once more on a fresh worker if it dies.

        Raises:
            DocumentError: It ended both, or took too long.
            TransientError: Somebody else ended them.
        """
        how, killed = "", False
        for _ in range(TRIES):
            child = self._worker()
            began = time.monotonic()
            try:
                answer = self._ask(child, (number, content), self._wall_seconds)
            except ChildDied:
                seconds = time.monotonic() - began
                self._after_death(child)  # from here on it is known how it ended
                how = self._cause(child, seconds)
                # Not by us, and nothing that a document does: memory is short outside, or somebody ended it.
                killed = child.returncode == -signal.SIGKILL and seconds < self._wall_seconds
                continue
            return _document(answer)
        if killed:
            raise TransientError(f"the extraction worker was killed from outside, twice ({how}): is memory short?")
        raise DocumentError(f"the document killed the extraction worker twice: {how}")

    def extract_in_a_hurry(self, number: int, content: Content) -> Document:
        """Have the worker read a document, once, and for no longer than documents take.

        Raises:
            Difficult: It took longer, or the worker died.
        """
        child = self._worker()
        try:
            answer = self._ask(child, (number, content), min(self._pace.long, self._wall_seconds))
        except ChildDied as error:
            self._after_death(child)
            raise Difficult(str(error)) from error
        return _document(answer)

    def _ask(self, child: Child, request: Request, seconds: float) -> Answer:
        """Return the worker's answer, and take note of how long it took.

        Raises:
            ChildDied: It did not answer in time, or it died.
        """
        began = time.monotonic()
        try:
            answer = cast("Answer", child.request(request, seconds))
        except ChildDied:
            raise
        except BaseException:  # the answer was not read to its end: nothing else may be read after it
            self.discard()
            raise
        self._pace.note(time.monotonic() - began)
        self._served += 1
        if self._served >= self._recycle:
            self.discard()
        return answer

    def stop(self) -> None:
        """End the worker at once, and start no other."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()

    def discard(self) -> None:
        """End the worker and close its pipes; only for the thread that reads documents here, or when none does."""
        with self._lock:
            child, self._child = self._child, None
            self._served = 0
        if child is not None:
            child.close(timeout=0)  # it holds nothing that is worth waiting for

    def _worker(self) -> Child:
        """Return the worker, started if need be."""
        if self._child is not None and not self._child.alive:
            self.discard()  # it died between documents: no document's fault
        if self._child is not None:
            return self._child
        try:
            child = _child(self._nursery, self._name)  # whoever stops us closes the nursery, and so ends the wait
            self._keep(child)
            _greet(child, self._setup)
        except BaseException as error:
            self.discard()
            if self._stopped and isinstance(error, UnavailableError):
                raise Stopped from error
            raise
        return child

    def _keep(self, child: Child) -> None:
        with self._lock:
            self._child = child
            if self._stopped:
                child.kill()  # whoever asked finds it dead

    def _after_death(self, child: Child) -> None:
        """Clear the place after a worker's end.

        Raises:
            Stopped: The worker was ended by ``stop``.
            DocumentError: It died of processor time.
        """
        self.discard()
        if self._stopped:
            raise Stopped
        if child.returncode == -signal.SIGXCPU:
            raise DocumentError(f"it took more than {self._setup.cpu_seconds:g} s of processor time to read")

    def _cause(self, child: Child, seconds: float) -> str:
        code = child.returncode
        if code == OUT_OF_MEMORY:
            return f"out of memory (more than {self._setup.memory_bytes / 2**20:.0f} MiB)"
        if seconds >= self._wall_seconds:
            return f"no answer within {self._wall_seconds:g} s"
        if code is not None and code < 0:
            return f"signal {-code} ({signal.strsignal(-code)})"
        return f"exit status {code}"


def _child(nursery: Nursery, name: str) -> Child:
    """Start a worker.

    Raises:
        UnavailableError: There is no process to be had, or what it needs cannot be imported.
    """
    try:
        return nursery.child(name)
    except ChildDied as error:
        raise UnavailableError("extraction", f"the extraction worker does not start: {error}") from error
    except OSError as error:
        raise UnavailableError("extraction", f"no extraction worker can be started: {error}") from error


def _greet(child: Child, setup: Setup) -> None:
    """Tell a worker what it is to do, and wait until it is up.

    Raises:
        UnavailableError: It does not start.
    """
    try:
        answer = child.request(setup, START_SECONDS)
    except ChildDied as error:
        raise UnavailableError("extraction", f"the extraction worker does not start: {error}") from error
    if isinstance(answer, Refusal):
        raise UnavailableError("extraction", f"the extraction worker does not start: {answer.message}")


def _document(answer: Answer) -> Document:
    if isinstance(answer, Document):
        return answer
    if answer.traceback is not None:
        raise ExtractorFailed(answer.message, traceback=answer.traceback)
    raise DocumentError(answer.message)
