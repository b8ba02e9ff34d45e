"""The exception tree: the class of an error is the verdict on it.

::

    IngestError
    ├─ ConfigError        wrong set-up             refuse to start, exit 78
    ├─ DocumentError      this document is bad     dead letter, no retry
    ├─ TransientError     worth trying again       retry queue, after .wait
    ├─ UnavailableError   a dependency is down     its breaker opens, the batch is held and tried again
    └─ FatalError         our own state is unknown exit 1, nothing moved

An exception that is none of these counts as a DocumentError where untrusted bytes are read (extraction,
chunking) and as a FatalError anywhere else. The alternative, an error code on one class, was turned down:
``except UnavailableError`` reads as what it does, and a type checker follows it.
"""

from __future__ import annotations


class IngestError(Exception):
    """The root of all errors that the daemon raises on purpose."""


class ConfigError(IngestError):
    """The set-up is wrong: nothing was started and nothing was changed.

    Args:
        faults: One line per fault, each with the path of the key that it is about and the cure.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DocumentError(IngestError):
    """This document is bad: it becomes a dead letter, and trying again would not help."""


class DeadlyError(DocumentError):
    """It ended, or hung, the process that worked on it: each further try of a batch with it costs another one."""


class TransientError(IngestError):
    """This document failed in a way that is worth another try.

    Args:
        message: What happened.
        wait: Seconds to wait before the next try, where the other side said so.
    """

    def __init__(self, message: str, *, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class UnavailableError(IngestError):
    """A dependency is down, slow or refusing: no document's fault, so no document's retries are spent.

    Args:
        dependency: The breaker's name: ``milvus``, ``device:cpu``, ``state``.
        message: What happened.
        wait: Seconds to wait before the next try, where the other side said so.
        refused: It said itself that it takes nothing now, so that what it was asked for is not to be suspected.
    """

    def __init__(self, dependency: str, message: str, *, wait: float | None = None, refused: bool = False) -> None:
        super().__init__(message)
        self.dependency = dependency
        self.wait = wait
        self.refused = refused


class FatalError(IngestError):
    """Our own state is unknown: the process ends with nothing moved, and the next start sorts it out."""


class Superseded(Exception):  # noqa: N818 - a verdict, not an error
    """A document is no longer what the event was about; a later event takes its place."""


class Stopped(BaseException):
    """The daemon is stopping: unwind and return."""


class Difficult(Exception):  # noqa: N818 - a verdict on a document
    """A document takes far longer to read than others, or its worker died: it is read where nobody waits for it."""


class Suspect(Exception):  # noqa: N818 - a verdict on a batch
    """A dependency answers a probe, and fails on this batch again and again: the batch only looks like an outage."""
