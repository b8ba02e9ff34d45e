"""From what is known of a document to its text: read, held against what is applied, and extracted.

Shared by two stages, since what a source has in memory already is read where it is recalled, and what has to be
fetched is read by the extracting threads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ingestd.errors import Difficult, DocumentError, IngestError, Superseded, TransientError
from ingestd.model import Extracted, Outcome, Stage, Verdict
from ingestd.stages._failing import failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.model import Content, Document, Entry, Event, Payload, Recalled


def read(
    recalled: Recalled,
    fingerprint: str,
    text_of: Callable[[Content], Document],
    *,
    shared: bool,
    fetch: Callable[[Payload], Content] = lambda payload: payload.read(),
) -> Extracted | Outcome:
    """Read an event's document.

    Args:
        recalled: The event, and what is known of its document.
        fingerprint: Of the collection's processing.
        text_of: Extracts the text.
        shared: Whether other processes write the collection too: the latest version has to be in Milvus then, also
            where nothing else changed, for the next owner knows no other.
        fetch: Reads a payload.

    Returns:
        The text, or an outcome when the content is what is applied, or cannot be read.

    Raises:
        Difficult: It has to be read elsewhere.
    """
    event, entry, content = recalled.event, recalled.entry, None
    try:
        content = _content(event, fetch)
        digest = content.digest()
        told = not shared or event.lease is None or (entry is not None and entry.version == recalled.version)
        if entry is not None and told and _is_applied(entry, event, digest, fingerprint):
            # What the version says about the order counts, though nothing else changed.
            later = None
            if event.version is not None:
                later = replace(entry, version=recalled.version, tenure=tenure_of(event))
            return Outcome(event, Verdict.UNCHANGED, entry=later, content=content, reused=len(entry.present))
        document = text_of(content)
    except (DocumentError, TransientError, Superseded) as error:
        return failed(event, Stage.EXTRACT, error, content)
    except (IngestError, Difficult):
        raise  # no verdict on the document
    except Exception as error:  # noqa: BLE001 - untrusted bytes: an error nobody foresaw is the document's
        return failed(event, Stage.EXTRACT, error, content)
    return Extracted(event, recalled.version, entry, content, digest, document)


def tenure_of(event: Event) -> str:
    """Return what an entry says that this event writes: under which lease."""
    return "" if event.lease is None else event.lease.id


def _content(event: Event, fetch: Callable[[Payload], Content]) -> Content:
    if event.payload is None:
        raise DocumentError(f"{event.position} is an upsert without content")
    return fetch(event.payload)


def _is_applied(entry: Entry, event: Event, digest: str, fingerprint: str) -> bool:
    return (
        not entry.deleted
        and not entry.doubtful
        and entry.content == digest
        and entry.fingerprint == fingerprint
        and entry.source == event.source
    )
