"""Extract: an event to its document's text, or straight to its outcome when there is nothing to do.

Three things are decided here, in this order, since each makes the next needless: whether the event is older than what
is applied (superseded), whether its content and its processing are those that are applied (unchanged), and what its
text is. Payloads are read here, not at the source, so that memory holds only what the pipeline has room for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ingestd.errors import DocumentError, IngestError, Superseded, TransientError
from ingestd.model import Entry, Event, Extracted, Op, Outcome, Stage, Verdict, Version
from ingestd.stages._failing import failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingestd.model import Content, Document
    from ingestd.ports import Clock, Extraction, Ledger, Patience


class Extract:
    """The first stage. Several threads may run it: lanes keep a document's events in order.

    Args:
        ledger: What is applied.
        extraction: The extractors.
        fingerprint: Of the collection's processing.
        clock: Gives versions to events that bring none.
        shared_ids: Whether two sources may write the same document.
        patience: Holds on to an event while the state, or the extraction itself, is away.
    """

    def __init__(
        self,
        ledger: Ledger,
        extraction: Extraction,
        *,
        fingerprint: str,
        clock: Clock,
        shared_ids: bool,
        patience: Patience,
    ) -> None:
        self._ledger = ledger
        self._extraction = extraction
        self._fingerprint = fingerprint
        self._clock = clock
        self._shared_ids = shared_ids
        self._patience = patience

    def process(self, batch: Sequence[Event]) -> Iterator[Extracted | Outcome]:
        """Yield an Extracted or an Outcome for each event."""
        keys = [event.key for event in batch]
        entries = self._patience.hold(lambda: self._ledger.entries(keys), None)
        for event in batch:
            yield self._extract(event, entries.get(event.key))

    def _extract(self, event: Event, entry: Entry | None) -> Extracted | Outcome:
        ended = self._admit(event, entry)
        if ended is not None:
            return ended
        version = event.version or self._next_version(event, entry)
        if event.op is Op.DELETE:
            return Extracted(event, version, entry, content=None, digest="", document=None)
        content = None
        try:
            content = _read(event)
            digest = content.digest()
            if entry is not None and self._is_applied(entry, event, digest):
                # What the version says about the order counts, though nothing else changed.
                later = replace(entry, version=version) if event.version is not None else None
                return Outcome(event, Verdict.UNCHANGED, entry=later, content=content, reused=len(entry.present))
            document = self._text(content)
        except (DocumentError, TransientError, Superseded) as error:
            return failed(event, Stage.EXTRACT, error, content)
        except IngestError:
            raise  # not about the document
        except Exception as error:  # noqa: BLE001 - untrusted bytes: an error nobody foresaw is the document's
            return failed(event, Stage.EXTRACT, error, content)
        return Extracted(event, version, entry, content, digest, document)

    def _text(self, content: Content) -> Document:
        return self._patience.hold(lambda: self._extraction.extract(content), None)

    def _admit(self, event: Event, entry: Entry | None) -> Outcome | None:
        """Return the outcome of an event that must not, or need not, be processed."""
        if entry is None:
            return None
        if not self._shared_ids and not entry.deleted and entry.source != event.source:
            clash = DocumentError(
                f"{event.key.document_id} belongs to the source {entry.source!r} of the collection "
                f"{event.key.collection!r}; give the sources distinct ids, or set shared_ids = true on the collection"
            )
            return failed(event, Stage.SOURCE, clash, None)
        if event.version is None or event.version.domain != entry.version.domain:
            return None
        if event.version.number < entry.version.number:
            return Outcome(event, Verdict.SUPERSEDED)
        if event.version.number == entry.version.number and not entry.doubtful and self._is_current(entry):
            return Outcome(event, Verdict.UNCHANGED, reused=len(entry.present))
        return None

    def _is_current(self, entry: Entry) -> bool:
        return entry.deleted or entry.fingerprint == self._fingerprint

    def _is_applied(self, entry: Entry, event: Event, digest: str) -> bool:
        return (
            not entry.deleted
            and not entry.doubtful
            and entry.content == digest
            and entry.fingerprint == self._fingerprint
            and entry.source == event.source
        )

    def _next_version(self, event: Event, entry: Entry | None) -> Version:
        """Return a version that is later than the last one, for a source that can only be looked at."""
        last = entry.version.number if entry is not None else 0
        return Version(max(last + 1, int(self._clock.time() * 1_000_000)), event.source)


def _read(event: Event) -> Content:
    if event.payload is None:
        raise DocumentError(f"{event.position} is an upsert without content")
    return event.payload.read()
