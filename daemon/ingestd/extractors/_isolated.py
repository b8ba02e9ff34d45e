"""All extractors of a daemon, in child processes that may crash, hang or run out of memory instead of the daemon.

A few slots each hold one worker, which is started when it is first needed, reads one document at a time, and is
replaced after a number of documents (libraries leak) or when it dies. Memory and processor time are limited by the
kernel (``_worker``), the wall clock from here. A document whose worker dies is tried once more on a fresh one, since
the worker may have been hurt by an earlier document; the second death is the document's. Too much processor time is
not tried again: it does not depend on what else the machine does.

There are two lots of slots. A call in a hurry gets one of the first, and gives up on a document that takes far longer
than documents took so far (``Pace``), or whose worker died; that one is then read without hurry in a slot of the second
lot, under the full limits. So documents that hang until their time-out wait for one another, and others for none of
them; and a worker that is lost is replaced in milliseconds (``nursery``), so that its loss is felt by nobody else.
Letting a document go on where it was, and starting another worker in its place, was turned down: the number of
processes would be as large as the number of such documents.

``concurrent.futures.ProcessPoolExecutor`` was turned down: one crash breaks the whole pool, and every document in it
is reported as failed. Threads were turned down because nothing can end one.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from ingestd.errors import ConfigError, DocumentError, Stopped
from ingestd.extractors._kind import kind_of, readable_as
from ingestd.extractors._media_type import with_media_type
from ingestd.extractors._slots import CLOSE_SECONDS, Pace, Slot
from ingestd.extractors._worker import ExtractorConfig, Setup
from ingestd.model import Content, Document, canonical_json
from ingestd.nursery import Nursery
from ingestd.ports import always

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydantic import BaseModel

SHARED_REVISION = 1
"""Raised when ``_encoding`` or ``_kind`` would give the same bytes another text: part of the fingerprint."""


WAIT_SECONDS = 1.0
"""Between two signs that a document waits for a worker."""


class IsolatedExtraction:
    """A pool of extraction workers. Safe to call from several threads: each call gets a worker of its own.

    Args:
        configs: The extractors' types and configurations.
        workers: How many processes there are at most for calls in a hurry, and as many again for the others.
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
        pace = Pace()
        # One thread is enough for the libraries; more would only take address space, and survive no fork.
        self._nursery = nursery = Nursery(
            "ingestd.extractors._worker:serve",
            sorted({type(config).__module__ for _, config in extractors}),
            name="extract-nursery",
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

        def slots(name: str) -> list[Slot]:
            return [
                Slot(
                    f"{name}-{number}",
                    setup,
                    nursery=nursery,
                    wall_seconds=wall_seconds,
                    recycle=recycle,
                    pace=pace,
                )
                for number in range(1, workers + 1)
            ]

        self._idle = {True: slots("extract"), False: slots("extract-long")}
        """By whether the call is in a hurry."""
        self._slots = tuple(slot for lot in self._idle.values() for slot in lot)
        self._changed = threading.Condition()
        self._closed = False

    def extract(self, content: Content, *, hurried: bool = False, waiting: Callable[[], None] = always) -> Document:
        """Decide the kind, and return the text: tidied, and encodable as UTF-8.

        Args:
            content: What to read.
            hurried: Whether others wait: a document that is difficult is given back.
            waiting: Called every so often until a worker begins with it: all collections share the workers.

        Raises:
            Difficult: It takes long, or its worker died. Only where ``hurried``.
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
        slot = self._take(waiting, hurried=hurried)
        try:
            return slot.extract_in_a_hurry(number, sent) if hurried else slot.extract(number, sent)
        finally:
            self._give_back(slot, hurried=hurried)

    def close(self) -> None:
        """End all workers, also those that are reading a document: those calls raise Stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for slot in self._slots:
            slot.stop()
        self._nursery.close()
        with self._changed:
            self._changed.wait_for(lambda: sum(map(len, self._idle.values())) == len(self._slots), CLOSE_SECONDS)
            idle = [slot for lot in self._idle.values() for slot in lot]
        for slot in idle:
            slot.discard()

    def _choose(self, content: Content) -> tuple[str, int]:
        kind = kind_of(content)
        for readable in readable_as(kind):
            if readable in self._numbers:
                return readable, self._numbers[readable]
        raise DocumentError(f"no extractor for {kind}; configured are those for {', '.join(sorted(self._numbers))}")

    def _take(self, waiting: Callable[[], None], *, hurried: bool) -> Slot:
        idle = self._idle[hurried]
        while True:
            waiting()
            with self._changed:
                if not self._changed.wait_for(lambda: self._closed or idle, WAIT_SECONDS):
                    continue
                if self._closed:
                    raise Stopped
                return idle.pop()  # the last one used: others need not be started before they are needed

    def _give_back(self, slot: Slot, *, hurried: bool) -> None:
        with self._changed:
            self._idle[hurried].append(slot)
            self._changed.notify_all()


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
