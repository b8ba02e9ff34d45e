"""Extract: what has to be fetched and read, to its document's text.

Payloads are read here, not at the source, so that memory holds only what the pipeline has room for. Most documents are
read in milliseconds, and a few take as long as they are let, or end their worker: threads that are in a hurry hand
those on to others, so that nobody waits behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.errors import Difficult, Suspect, TransientError
from ingestd.ports import always
from ingestd.stages._reading import read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ingestd.model import Content, Document, Extracted, Outcome, Payload, Recalled
    from ingestd.ports import Extraction, Patience


class Extract:
    """The second stage. Several threads may run it: lanes keep a document's events in order.

    Args:
        extraction: The extractors.
        fingerprint: Of the collection's processing.
        patience: Holds on to an event while the extraction itself is away.
        waiting: Called every so often until the extraction begins with a document, so that waiting is no silence.
        shared: Whether other processes write the collection too.
        hurried: Whether documents that take long are handed on.
    """

    def __init__(
        self,
        extraction: Extraction,
        *,
        fingerprint: str,
        patience: Patience,
        waiting: Callable[[], None] = always,
        shared: bool = False,
        hurried: bool = False,
    ) -> None:
        self._extraction = extraction
        self._fingerprint = fingerprint
        self._patience = patience
        self._waiting = waiting
        self._shared = shared
        self._hurried = hurried

    def process(
        self, batch: Sequence[Recalled], flush: Callable[[], None] = always
    ) -> Iterator[Recalled | Extracted | Outcome]:
        """Yield an Extracted or an Outcome for each event; in a hurry, what is to be read elsewhere as it came."""
        del flush  # nothing here takes long behind a result
        for recalled in batch:
            try:
                result = read(recalled, self._fingerprint, self._text, shared=self._shared, fetch=self._fetched)
            except Difficult:
                yield recalled
            else:
                yield result

    def _fetched(self, payload: Payload) -> Content:
        """Read a payload; while the server that has it is away, hold on to it.

        Raises:
            Difficult: A server has it, and others wait here.
            TransientError: It fails where its server answers a probe.
        """
        probe: Callable[[], object] | None = getattr(payload, "probe", None)
        if probe is None:
            return payload.read()
        if self._hurried:
            raise Difficult
        try:
            return self._patience.hold(payload.read, probe)
        except Suspect as error:
            wait = getattr(error.__cause__, "wait", None)
            raise TransientError(str(error), wait=wait) from error

    def _text(self, content: Content) -> Document:
        return self._patience.hold(
            lambda: self._extraction.extract(content, hurried=self._hurried, waiting=self._waiting), None
        )
