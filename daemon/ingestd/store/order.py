"""Which of two events of one document is the later one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.model import Verdict, Version
from ingestd.store.text import from_column, to_column

if TYPE_CHECKING:
    from ingestd.model import Event
    from ingestd.store.text import Column

GOOD = frozenset({Verdict.WRITTEN, Verdict.DELETED, Verdict.UNCHANGED})
"""Verdicts after which what an older event of the document wanted is moot."""


def is_older(event: Event, version: Version | None, first_failed_at: float) -> bool:
    """Return whether an event is older than another one of its document, which failed before.

    Versions of one domain say so themselves. Otherwise it is the order of arrival: a document's lane is first in,
    first out, so an event that never failed came after all that did, and of two that failed, the first to fail.

    Args:
        event: The one that is settled now.
        version: The other's.
        first_failed_at: The other's, in seconds since 1970.
    """
    if event.version is not None and version is not None and event.version.domain == version.domain:
        return event.version.number < version.number
    return event.first_failed_at is not None and event.first_failed_at < first_failed_at


def version_columns(version: Version | None) -> tuple[Column | None, Column | None]:
    """Return a version's number and domain, to be bound."""
    return (None, None) if version is None else (str(version.number), to_column(version.domain))


def version_from(number: Column | None, domain: Column | None) -> Version | None:
    """Return the version that ``version_columns`` was given."""
    return None if number is None or domain is None else Version(int(number), from_column(domain))
