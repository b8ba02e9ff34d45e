"""The child's side of extraction: a process that reads untrusted bytes, one document at a time, under limits.

The limits are the kernel's, so that they hold inside C code and while the interpreter's lock is held: address space
above what the idle worker takes, processor time per document, no core files. What hits one of them ends the process
and never returns a wrong text. ``SIGXCPU`` keeps its default, which kills: a handler in Python would run only when
the C code that took too long is done.
"""

from __future__ import annotations

import json
import math
import os
import resource
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast, runtime_checkable

from ingestd.errors import DocumentError
from ingestd.extractors._encoding import tidy

if TYPE_CHECKING:
    from typing import ClassVar

    from ingestd.children import Pipe
    from ingestd.model import Content, Document
    from ingestd.ports import Extractor

OUT_OF_MEMORY = 70
"""Exit status of a worker that was refused more memory."""

_MESSAGE_LENGTH = 2_000
_TRACEBACK_LENGTH = 20_000


@runtime_checkable
class ExtractorConfig(Protocol):
    """What an extractor's ``Config`` has (see ``ports.Extractor``)."""

    kinds: ClassVar[tuple[str, ...]]
    revision: ClassVar[int]

    def build(self) -> Extractor:
        """Return the extractor."""
        ...


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker."""

    configs: tuple[ExtractorConfig, ...]
    memory_bytes: int
    """What a document may take beyond the idle worker."""
    cpu_seconds: float
    """Processor time for one document."""
    max_text: int
    """Characters of a document's text."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The answer to Setup."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a Setup, or to a document, that did not work out."""

    message: str
    traceback: str | None = None
    """Only for errors that nobody foresaw."""


Request: TypeAlias = "tuple[int, Content]"
"""Which of the extractors, and what it is to read."""
Answer: TypeAlias = "Document | Refusal"


def serve(pipe: Pipe) -> None:
    """Answer a Setup, and then every Request, until the pipe ends."""
    try:
        setup = cast("Setup", pipe.recv())
        extractors = [config.build() for config in setup.configs]
        _confine(setup.memory_bytes)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - whatever a plug-in raises: the daemon is told, and decides
        pipe.send(_unforeseen(error))
        return
    pipe.send(Ready())
    try:
        while True:
            number, content = cast("Request", pipe.recv())
            pipe.send(_answer(extractors[number], content, setup))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # there may be too little left even for an orderly end


def _confine(memory_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - one read, no need for pathlib
        in_use = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + memory_bytes, in_use + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow(seconds: float | None) -> None:
    """Let the process use this much more processor time, rounded up to whole seconds; None: as much as it likes."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = hard
    if seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _answer(extractor: Extractor, content: Content, setup: Setup) -> Answer:
    _allow(setup.cpu_seconds)
    try:
        return _checked(extractor.extract(content), setup.max_text)
    except MemoryError:
        raise
    except DocumentError as error:
        return Refusal(_short(str(error)))
    except BaseException as error:  # noqa: BLE001 - some libraries' panics are no Exception; all are this document's
        return _unforeseen(error)
    finally:
        _allow(None)  # the answer is not to be cut off half sent


def _checked(document: Document, max_text: int) -> Document:
    """Return the document with clean text and plain JSON as metadata, whatever its extractor made of it."""
    if len(document.text) > max_text:
        raise DocumentError(f"its text has {len(document.text):,} characters, more than max_text = {max_text:,}")
    title = tidy(document.title).strip() if document.title is not None else None
    metadata = document.metadata
    if metadata:
        plain = tidy(json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False))
        metadata = json.loads(plain, strict=False)  # a NEL that is a line feed now stands unescaped
    return replace(document, text=tidy(document.text), title=title or None, metadata=metadata)


def _unforeseen(error: BaseException) -> Refusal:
    trace = "".join(traceback.format_exception(error))
    return Refusal(_short(f"{type(error).__name__}: {error}"), trace[-_TRACEBACK_LENGTH:])


def _short(message: str) -> str:
    return tidy(message if len(message) <= _MESSAGE_LENGTH else message[:_MESSAGE_LENGTH] + " …")
