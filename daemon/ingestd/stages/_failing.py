"""How stages fail: an error becomes an outcome, and a bad item in a batch is found by halving."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, TypeVar

from ingestd.errors import DeadlyError, DocumentError, Superseded, Suspect, TransientError
from ingestd.model import Content, Event, Failure, Outcome, Stage, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
R = TypeVar("R")


def failed(event: Event, stage: Stage, error: Exception, content: Content | None = None) -> Outcome:
    """Return the outcome of an event that an error ended.

    An exception that is none of ours is a bad document with its traceback: callers that do not read untrusted bytes
    let such exceptions through instead of asking here. Memory that ran out may be another document's doing: it is
    tried again, and no more often than anything else.
    """
    if isinstance(error, Superseded):
        return Outcome(event, Verdict.SUPERSEDED)
    if isinstance(error, TransientError):
        return Outcome(event, Verdict.RETRYING, content=content, failure=_failure(stage, error), wait=error.wait)
    if isinstance(error, MemoryError):
        return Outcome(event, Verdict.RETRYING, failure=_failure(stage, error))
    return Outcome(event, Verdict.DEAD_LETTERED, content=content, failure=_failure(stage, error))


def _failure(stage: Stage, error: Exception) -> Failure:
    foreseen = isinstance(error, DocumentError | TransientError)
    trace = getattr(error, "traceback", None) if foreseen else "".join(traceback.format_exception(error))
    return Failure(stage, type(error).__name__, str(error) or repr(error), trace)


def isolate(
    items: Sequence[T], call: Callable[[Sequence[T]], R]
) -> Iterator[tuple[Sequence[T], R | DocumentError | TransientError]]:
    """Make a call for many items at once, and find the bad ones when it fails: by halving, deadly ones one by one.

    Args:
        items: At least one.
        call: Raises DocumentError (one of the items is bad; DeadlyError: and finding out is dear), TransientError, or
            Suspect (they look like an outage).

    Yields:
        Runs of items with what the call returned for them, or a single item with its error. In order.
    """
    try:
        result = call(items)
    except (DocumentError, TransientError, Suspect) as error:
        if len(items) == 1:
            if isinstance(error, Suspect):
                told = TransientError(f"fails again and again where others pass: {error}")
                told.__cause__ = error
                yield items, told
            else:
                yield items, error
            return
        # A model that is loaded again, or waited for, at each halving would stop everything for that many times.
        step = 1 if isinstance(error, DeadlyError) else (len(items) + 1) // 2
        for start in range(0, len(items), step):
            yield from isolate(items[start : start + step], call)
    else:
        yield items, result
