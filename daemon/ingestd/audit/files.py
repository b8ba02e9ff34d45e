"""What a source that can be looked at again says to the ledger: what is there and was not written, or is gone.

A file with the signature that was settled needs no look; any other one is read, for a new time stamp alone is no new
content. What failed with the very content that is there now is no difference: it is among the dead letters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.audit.compare import Fault, Kind
from ingestd.errors import DocumentError
from ingestd.model import Verdict

if TYPE_CHECKING:
    from ingestd.model import Entry, Seen
    from ingestd.ports import Survey

FAILED = frozenset({Verdict.DEAD_LETTERED, Verdict.RETRYING})
"""Verdicts of a content that could not be written, and that the source leaves alone."""


def fault_of(
    survey: Survey, document: str, entry: Entry | None, seen: Seen | None, *, source: str, failed: bool
) -> Fault | None:
    """Return what is wrong with a document as a whole, or None.

    Args:
        survey: The source as it is now.
        document: The document.
        entry: The ledger's.
        seen: What the source saw when the document was last settled.
        source: The source's name.
        failed: Whether the document has a dead letter.

    Raises:
        UnavailableError: It cannot be said.
    """
    signature = survey.signature(document)
    applied = entry if entry is not None and not entry.deleted else None
    if applied is not None and applied.source != source:
        return None
    same = seen is not None and seen.signature == signature
    if signature is None:
        left = survey.leaves(None if seen is None else seen.verdict)
        fault = None if applied is None or left else _gone(applied)
    elif (same and seen is not None and seen.verdict in FAILED) or (seen is None and applied is None and failed):
        fault = None  # without a seen it cannot be told of which content the dead letter is
    elif applied is None:
        fault = _fault(Kind.MISSING, "the file is there, and nothing of it was written")
    elif same or not applied.content:
        fault = None  # a rebuilt ledger does not know the content, and its source sends every document again
    else:
        fault = _changed(survey, document, applied)
    return fault


def _gone(applied: Entry) -> Fault:
    count = len(applied.present)
    rows = f"{count} chunk{'s' * (count != 1)}"
    return _fault(Kind.ORPHAN, f"the file is gone, and version {applied.version.number} with {rows} was not deleted")


def _changed(survey: Survey, document: str, applied: Entry) -> Fault | None:
    try:
        digest = survey.digest(document)
    except DocumentError as error:
        return _fault(Kind.STALE, f"the file has changed since version {applied.version.number}: {error}")
    if digest is None or digest == applied.content:
        return None  # in the midst of a change; or touched, and no more
    return _fault(Kind.STALE, f"the file has changed since version {applied.version.number} was written")


def _fault(kind: Kind, detail: str) -> Fault:
    return Fault(kind, "", detail, of_file=True)
