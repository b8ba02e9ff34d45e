"""The places of the extraction workers: one worker each, started when needed, timed, and replaced when it is lost.

Owns what becomes of one document in one worker: how long it may take, how a death is told, and when it is tried again.
Which documents go where is decided in ``_isolated``.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import cast

from ingestd.children import Child, ChildDied
from ingestd.errors import Difficult, DocumentError, Stopped, TransientError, UnavailableError
from ingestd.extractors._worker import OUT_OF_MEMORY, Answer, Refusal, Request, Setup
from ingestd.model import Content, Document

TRIES = 2
START_SECONDS = 60.0
"""Time for a worker to start; it takes about 0.2 s on a machine that is not busy."""
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
        self, name: str, setup: Setup, *, wall_seconds: float, recycle: int, pace: Pace, spares: Spares | None
    ) -> None:
        self._name = name
        self._pace = pace
        self._spares = spares
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
                how = self._cause(child, seconds)
                # Not by us, and nothing that a document does: memory is short outside, or somebody ended it.
                killed = child.returncode == -signal.SIGKILL and seconds < self._wall_seconds
                self._after_death(child)
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
            if self._spares is not None:
                self._spares.make()
            child.close(timeout=0)  # it holds nothing that is worth waiting for

    def _worker(self) -> Child:
        """Return the worker, started if need be."""
        if self._child is not None and not self._child.alive:
            self.discard()  # it died between documents: no document's fault
        with self._lock:
            if self._stopped:
                raise Stopped
            if self._child is not None:
                return self._child
            self._child = None if self._spares is None else self._spares.take()
            if self._child is not None:
                return self._child
            child = self._child = _child(self._name)
        self._greet(child)
        return child

    def _greet(self, child: Child) -> None:
        try:
            _greet(child, self._setup)
        except BaseException as error:
            self.discard()
            if self._stopped and isinstance(error, UnavailableError):
                raise Stopped from error
            raise

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


class Spares:
    """Workers that are started and do nothing, for slots that have none. Safe to call from any thread.

    Args:
        setup: What they are told.
        most: How many there are at most: none before the first is asked for.
    """

    def __init__(self, setup: Setup, most: int) -> None:
        self._setup = setup
        self._most = most
        self._lock = threading.Lock()
        self._up: list[Child] = []
        self._starting: Child | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Return how many are up."""
        return len(self._up)

    def make(self) -> None:
        """Have workers started, until there are enough."""
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            if self._closed or busy or len(self._up) >= self._most:
                return
            self._thread = threading.Thread(target=self._make, name="extract-spare", daemon=True)
            self._thread.start()

    def take(self) -> Child | None:
        """Return a worker that is up and well, if there is one; another one is made in its place."""
        with self._lock:
            child = self._up.pop() if self._up else None
        if child is None:
            return None
        self.make()
        if not child.alive:
            child.close(timeout=0)
            return None
        return child

    def close(self) -> None:
        """End the workers, and make none any more."""
        with self._lock:
            self._closed = True
            thread, children = self._thread, list(self._up)
            if self._starting is not None:
                self._starting.kill()
        if thread is not None:
            thread.join(CLOSE_SECONDS)
        for child in children:
            child.close(timeout=0)

    def _make(self) -> None:
        while True:
            with self._lock:
                if self._closed or len(self._up) >= self._most:
                    return
            try:
                with self._lock:
                    child = self._starting = _child("extract-spare")
            except UnavailableError:
                return  # Nobody waits for it: whoever needs a worker starts one, and finds out what is wrong.
            try:
                _greet(child, self._setup)
            except UnavailableError:
                child.close(timeout=0)
                return
            finally:
                with self._lock:
                    self._starting = None
            if not self._keep(child):
                child.close(timeout=0)

    def _keep(self, child: Child) -> bool:
        with self._lock:
            if not self._closed:
                self._up.append(child)
            return not self._closed


def _child(name: str) -> Child:
    """Start a worker.

    Raises:
        UnavailableError: There is no process to be had.
    """
    try:
        # One thread is enough; more would only take address space.
        return Child("ingestd.extractors._worker:serve", name=name, env={"OPENBLAS_NUM_THREADS": "1"})
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
