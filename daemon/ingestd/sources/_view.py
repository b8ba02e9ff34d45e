"""What a folder source knows of each of its documents, in memory, between two looks.

Owns the rules by which an outcome changes that knowledge. About 300 bytes a document beside its id: the signature, and
a few flags. Asking the store at each look instead was turned down: a rescan of 50,000 files would be 50,000 queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingestd.model import Op, Verdict
from ingestd.sources._alive import telling

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from ingestd.model import Outcome
    from ingestd.ports import SourceScope

_APPLIED = frozenset({Verdict.WRITTEN, Verdict.UNCHANGED})


@dataclass(slots=True)
class File:
    """One document. ``known`` ones are deleted when their file is gone; the others were only seen."""

    signature: str | None = None
    """With which the document needs nothing; None: it has to be sent when it is there."""
    verdict: Verdict | None = None
    """How the version with that signature ended."""
    mark: int = 0
    """The number of the last scan that found the file."""
    known: bool = False
    failed: bool = False
    """Whether its last version that ended became a dead letter, whatever that rested on."""
    unseen: bool = False
    """Whether the ledger has it, and how its last version ended is not known."""
    whole: bool = True
    """Whether its rows are as the ledger says."""
    parted: bool = False
    """Its delete was handed in, and has not taken effect yet."""


@dataclass(slots=True)
class Flight:
    """An event that was handed in and is not settled."""

    op: Op
    signature: str | None
    dirty: bool = False
    """The file changed meanwhile: look again when it is settled."""


@dataclass(frozen=True, slots=True)
class Trial:
    """That a document is tried again, by others than the source's own thread."""

    document: str
    signature: str
    """Of its file."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What matters of an outcome: a dead letter's bytes do not wait in the source's queue."""

    document: str
    op: Op
    verdict: Verdict
    sent: str | None
    """The event's signature."""
    signature: str | None
    """Of what was read, or else of the event."""
    first: bool
    """Whether it was the event's first try: the source's own."""

    @staticmethod
    def of(outcome: Outcome) -> Notice:
        """Return what matters of an outcome."""
        event, content = outcome.event, outcome.content
        read = None if content is None else content.signature
        return Notice(
            event.key.document_id,
            event.op,
            outcome.verdict,
            event.signature,
            read or event.signature,
            event.attempt == 1,
        )


class View:
    """All documents of a source. For the source's own thread."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.flights: dict[str, Flight] = {}
        self._repeats: dict[str, int] = {}

    @staticmethod
    def load(
        source: str,
        collection: str,
        scope: SourceScope,
        there: Container[str] | None = None,
        alive: Callable[[], object] = lambda: None,
    ) -> View:
        """Return what the store knows: every document that was seen, or that the ledger holds.

        Of a folder whose files go away these are more and more: there it is what is known of files that are there, and
        of documents that are not whole.

        A document is left alone only if the verdict on it still stands (same fingerprint), and if the ledger agrees: a
        written one has to be there, and none may have rows in doubt.

        Args:
            source: The source's name.
            collection: Where its documents go.
            scope: Where it is known.
            there: The documents whose files are there; None: all are wanted.
            alive: Called now and then.
        """
        view, known = View(), telling(scope.seen.documents(source, collection), alive)
        whole = {name: is_whole for name, is_whole in known if there is None or not is_whole or name in there}
        prints: dict[Verdict, str] = {}
        for seen in telling(scope.seen.seen(source, collection), alive):
            if there is not None and seen.document_id not in there and seen.document_id not in whole:
                continue
            is_whole = whole.get(seen.document_id, True)
            if seen.verdict in _APPLIED:
                stands = whole.get(seen.document_id, False)
            elif seen.verdict is Verdict.DEAD_LETTERED:
                stands = is_whole
            elif seen.verdict is Verdict.RETRYING:  # a dead letter that is tried again, whatever it rests on now
                file = view.files[seen.document_id] = File(known=True, failed=True, whole=is_whole)
                file.signature = seen.signature
                continue
            else:
                stands = False
                if seen.document_id not in whole:
                    continue
            if seen.verdict not in prints:
                prints[seen.verdict] = scope.fingerprint(seen.verdict)
            failed = seen.verdict is Verdict.DEAD_LETTERED
            file = view.files[seen.document_id] = File(known=True, failed=failed, whole=is_whole)
            if stands and seen.fingerprint == prints[seen.verdict]:
                file.signature, file.verdict = seen.signature, seen.verdict
        for document, is_whole in whole.items():
            view.files.setdefault(document, File(known=True, unseen=True, whole=is_whole))
        return view

    def known(self) -> int:
        """Return how many documents there are to lose."""
        return sum(file.known and not file.parted for file in self.files.values())

    def force(self, document: str) -> None:
        """Have a document sent again at the next look, whatever its signature is."""
        file = self.files.get(document)
        if file is not None:
            file.signature, file.parted = None, False

    def trying(self, trial: Trial) -> None:
        """Take note that a document is tried again, with the file as it is now."""
        file = self.files.setdefault(trial.document, File())
        if file.signature in {None, trial.signature}:
            file.signature, file.verdict = trial.signature, None

    def forget(self, document: str) -> None:
        """Drop a document of which there is nothing to know any more."""
        self.files.pop(document, None)
        self._repeats.pop(document, None)

    def note(self, notice: Notice) -> float | None:
        """Take note of an outcome.

        Returns:
            In how many seconds the document has to be looked at again, or None if it need not be.
        """
        flight = self.flights.get(notice.document)
        dirty = False
        if flight is not None and notice.first and (flight.op, flight.signature) == (notice.op, notice.sent):
            del self.flights[notice.document]
            dirty = flight.dirty
        if notice.verdict is Verdict.SUPERSEDED:
            self.force(notice.document)
            repeats = self._repeats[notice.document] = min(self._repeats.get(notice.document, -1) + 1, 16)
            return 0.05 * float(2**repeats)  # a file that never keeps still does not keep this thread busy
        self._repeats.pop(notice.document, None)
        if notice.op is Op.UPSERT:
            file = self.files.setdefault(notice.document, File())
            file.signature, file.verdict, file.known, file.parted = notice.signature, notice.verdict, True, False
            file.unseen = False
            if notice.verdict is not Verdict.RETRYING:
                file.failed = notice.verdict is Verdict.DEAD_LETTERED
                file.whole = file.whole or not file.failed
        elif notice.verdict in {Verdict.DELETED, Verdict.UNCHANGED}:
            self.forget(notice.document)
        return 0.0 if dirty else None
