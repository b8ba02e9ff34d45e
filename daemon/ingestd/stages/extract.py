"""Extract: what has to be fetched and read, to its document's text.

Payloads are read here, not at the source, so that memory holds only what the pipeline has room for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.stages._reading import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingestd.model import Content, Document, Extracted, Outcome, Recalled
    from ingestd.ports import Extraction, Patience


class Extract:
    """The second stage. Several threads may run it: lanes keep a document's events in order.

    Args:
        extraction: The extractors.
        fingerprint: Of the collection's processing.
        patience: Holds on to an event while the extraction itself is away.
        shared: Whether other processes write the collection too.
    """

    def __init__(self, extraction: Extraction, *, fingerprint: str, patience: Patience, shared: bool = False) -> None:
        self._extraction = extraction
        self._fingerprint = fingerprint
        self._patience = patience
        self._shared = shared

    def process(self, batch: Sequence[Recalled]) -> Iterator[Extracted | Outcome]:
        """Yield an Extracted or an Outcome for each event."""
        for recalled in batch:
            yield read(recalled, self._fingerprint, self._text, shared=self._shared)

    def _text(self, content: Content) -> Document:
        return self._patience.hold(lambda: self._extraction.extract(content), None)
