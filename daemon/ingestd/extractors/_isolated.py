"""All extractors of a daemon, in child processes that may crash, hang or run out of memory instead of the daemon.

A few slots each hold one worker, which is started when it is first needed, reads one document at a time, and is
replaced after a number of documents (libraries leak) or when it dies. Memory and processor time are limited by the
kernel (``_worker``), the wall clock from here. A document whose worker dies is tried once more on a fresh one, since
the worker may have been hurt by an earlier document; the second death is the document's. Too much processor time is
not tried again: it does not depend on what else the machine does.

``concurrent.futures.ProcessPoolExecutor`` was turned down: one crash breaks the whole pool, and every document in it
is reported as failed. Threads were turned down because nothing can end one.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ingestd.children import Child, ChildDied
from ingestd.errors import ConfigError, DocumentError, Stopped, UnavailableError
from ingestd.extractors._kind import kind_of, readable_as
from ingestd.extractors._media_type import with_media_type
from ingestd.extractors._worker import OUT_OF_MEMORY, Answer, ExtractorConfig, Refusal, Setup
from ingestd.model import Content, Document, canonical_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

SHARED_REVISION = 1
"""Raised when ``_encoding`` or ``_kind`` would give the same bytes another text: part of the fingerprint."""
TRIES = 2
START_SECONDS = 60.0
"""Time for a worker to start; it takes about 0.2 s on a machine that is not busy."""
CLOSE_SECONDS = 10.0


class ExtractorFailed(DocumentError):  # noqa: N818 - the name is what people read in a dead letter
    """An extractor failed over a document in a way that it does not know.

    Args:
        message: The original error's class and message.
        traceback: The worker's traceback, as text.
    """

    def __init__(self, message: str, *, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


class IsolatedExtraction:
    """A pool of extraction workers. Safe to call from several threads: each call gets a worker of its own.

    Args:
        configs: The extractors' types and configurations.
        workers: How many processes there are at most.
        memory_bytes: What a document may take beyond the idle worker, in address space.
        cpu_seconds: Processor time for one document; the kernel counts in whole seconds, so it is rounded up.
        wall_seconds: Time for one document; beyond it the worker is ended. Longer than ``cpu_seconds``.
        max_bytes: Of a document.
        max_text: Characters of a document's text.
        recycle: Documents after which a worker is replaced.

    Raises:
        ConfigError: No workers, two extractors for the same kind, or a configuration that is not an extractor's.
    """

    def __init__(
        self,
        configs: Sequence[tuple[str, BaseModel]],
        *,
        workers: int,
        memory_bytes: int,
        cpu_seconds: float,
        wall_seconds: float,
        max_bytes: int,
        max_text: int,
        recycle: int = 200,
    ) -> None:
        if workers < 1:
            raise ConfigError(f"extraction needs at least one worker, not {workers}")
        extractors = [(name, _extractor_config(name, config)) for name, config in configs]
        self.fingerprint = _fingerprint(configs)
        self._numbers = _by_kind(extractors)
        self._max_bytes = max_bytes
        setup = Setup(tuple(config for _, config in extractors), memory_bytes, cpu_seconds, max_text)
        self._slots = tuple(_Slot(f"extract-{n}", setup, wall_seconds, recycle) for n in range(1, workers + 1))
        self._idle = list(self._slots)
        self._changed = threading.Condition()
        self._closed = False

    def extract(self, content: Content) -> Document:
        """Decide the kind, and return the text: tidied, and encodable as UTF-8.

        Raises:
            DocumentError: No extractor for the kind, bad bytes, a limit was reached (size, time, memory), or the
                document killed its worker twice. ExtractorFailed, with a traceback, where an extractor failed over
                it unexpectedly.
            UnavailableError: No worker can be started.
            Stopped: The pool was closed before or during the call.
        """
        size = len(content.data)
        if size > self._max_bytes:
            raise DocumentError(f"it has {size:,} bytes, more than max_bytes = {self._max_bytes:,}")
        kind, number = self._choose(content)
        # The child gets plain data: a source may keep its metadata in a mapping that cannot be pickled.
        sent = replace(
            content, content_type=with_media_type(content.content_type, kind), metadata=dict(content.metadata)
        )
        slot = self._take()
        try:
            return slot.extract(number, sent)
        finally:
            self._give_back(slot)

    def close(self) -> None:
        """End all workers, also those that are reading a document: those calls raise Stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for slot in self._slots:
            slot.stop()
        with self._changed:
            self._changed.wait_for(lambda: len(self._idle) == len(self._slots), CLOSE_SECONDS)
            idle = list(self._idle)
        for slot in idle:
            slot.discard()

    def _choose(self, content: Content) -> tuple[str, int]:
        kind = kind_of(content)
        for readable in readable_as(kind):
            if readable in self._numbers:
                return readable, self._numbers[readable]
        raise DocumentError(f"no extractor for {kind}; configured are those for {', '.join(sorted(self._numbers))}")

    def _take(self) -> _Slot:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle)
            if self._closed:
                raise Stopped
            return self._idle.pop()  # the last one used: others need not be started before they are needed

    def _give_back(self, slot: _Slot) -> None:
        with self._changed:
            self._idle.append(slot)
            self._changed.notify_all()


class _Slot:
    """A place for one worker. One thread at a time reads documents here; ``stop`` may come from any thread."""

    def __init__(self, name: str, setup: Setup, wall_seconds: float, recycle: int) -> None:
        self._name = name
        self._setup = setup
        self._wall_seconds = wall_seconds
        self._recycle = recycle
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._served = 0
        self._stopped = False

    def extract(self, number: int, content: Content) -> Document:
        """Have the worker read a document with one of its extractors; once more on a fresh worker if it dies."""
        how = ""
        for _ in range(TRIES):
            child = self._worker()
            began = time.monotonic()
            try:
                answer = cast("Answer", child.request((number, content), self._wall_seconds))
            except ChildDied:
                how = self._cause(child, time.monotonic() - began)
                self._after_death(child)
                continue
            except BaseException:  # the answer was not read to its end: nothing else may be read after it
                self.discard()
                raise
            self._served += 1
            if self._served >= self._recycle:
                self.discard()
            return _document(answer)
        raise DocumentError(f"the document killed the extraction worker twice: {how}")

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
        with self._lock:
            if self._stopped:
                raise Stopped
            if self._child is not None:
                return self._child
            try:
                # One thread is enough; more would only take address space.
                child = Child("ingestd.extractors._worker:serve", name=self._name, env={"OPENBLAS_NUM_THREADS": "1"})
            except OSError as error:
                raise UnavailableError("extraction", f"no extraction worker can be started: {error}") from error
            self._child = child
        self._greet(child)
        return child

    def _greet(self, child: Child) -> None:
        try:
            answer = child.request(self._setup, START_SECONDS)
        except ChildDied as error:
            self._after_death(child)
            raise UnavailableError("extraction", f"the extraction worker does not start: {error}") from error
        except BaseException:
            self.discard()
            raise
        if isinstance(answer, Refusal):
            self.discard()
            raise UnavailableError("extraction", f"the extraction worker does not start: {answer.message}")

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


def _document(answer: Answer) -> Document:
    if isinstance(answer, Document):
        return answer
    if answer.traceback is not None:
        raise ExtractorFailed(answer.message, traceback=answer.traceback)
    raise DocumentError(answer.message)


def _extractor_config(name: str, config: BaseModel) -> ExtractorConfig:
    if not isinstance(config, ExtractorConfig):
        raise ConfigError(f"extractors.{name}: its Config has no kinds, revision and build()")
    return config


def _by_kind(extractors: Sequence[tuple[str, ExtractorConfig]]) -> dict[str, int]:
    """Return which extractor reads which kind."""
    numbers: dict[str, int] = {}
    faults = []
    for number, (name, config) in enumerate(extractors):
        for kind in config.kinds:
            if kind in numbers:
                other = extractors[numbers[kind]][0]
                faults.append(
                    f"extractors.{name}: {kind} is read by the extractor {other!r} already; remove one of them"
                )
            numbers[kind] = number
    if faults:
        raise ConfigError(*faults)
    return numbers


def _fingerprint(configs: Sequence[tuple[str, BaseModel]]) -> str:
    said = [
        [name, _extractor_config(name, config).revision, config.model_dump(mode="json")] for name, config in configs
    ]
    said.sort(key=canonical_json)
    return hashlib.sha256(canonical_json([SHARED_REVISION, said])).hexdigest()
