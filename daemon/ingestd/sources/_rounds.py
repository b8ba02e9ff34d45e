"""A folder source's rounds: scans, looks at single files, and what follows from them.

Owns all that the source knows (``View``), what it has yet to look at, and which deletions it is sure of. What the watch
hints at is live and goes first; what a scan finds is backfill, and goes as far as the pipeline has room. Only the
source's thread calls ``load``, ``scan`` and ``turn``; the deques take notes from other threads, and the attributes
without an underscore are snapshots that any thread may read.
"""

from __future__ import annotations

from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from ingestd.errors import UnavailableError
from ingestd.model import DocumentKey, Event, Op, Priority, Verdict
from ingestd.sources._agenda import Agenda, Settling
from ingestd.sources._ids import document_id, escape, path_of
from ingestd.sources._moves import Moves, Shelves
from ingestd.sources._payload import FilePayload
from ingestd.sources._scan import Scan
from ingestd.sources._tree import SIDECAR, RootGoneError
from ingestd.sources._view import File, Flight, Notice, Trial, View

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingestd.ports import Intake, SourceScope
    from ingestd.sources._guard import DeleteGuard
    from ingestd.sources._tree import Found, Tree
    from ingestd.sources._watch import Hinted

log = structlog.get_logger(__name__)

CONFIRM = 1.0
"""Seconds between the two looks that a deletion takes."""
STARTING_SCANS = 2
"""What was confirmed while no daemon ran counts for the first scans, and no later ones."""
CROWDED = 0.02
"""Seconds between two turns while the pipeline is full,"""
PATIENT = 100
"""for so many turns; then it is an outage, or a halt, and"""
TICK = 0.5
"""seconds between them."""
FIRST = float("-inf")
"""A time before all others."""
BATCH = 256
"""The most looks in one turn: hints and outcomes are taken in between."""


class Rounds:
    """The state of one source.

    Args:
        name: The source's.
        collection: Where its documents go.
        tree: The folder.
        scope: What a source may know of the rest.
        settle_seconds: For how long a file has to be still.
        guard: Decides whether deletes may go on.
        shelves: Where files go when they are at an end.
    """

    def __init__(
        self,
        name: str,
        collection: str,
        tree: Tree,
        scope: SourceScope,
        *,
        settle_seconds: float,
        guard: DeleteGuard,
        shelves: Shelves = Shelves(),  # noqa: B008 - frozen
    ) -> None:
        self._name = name
        self._collection = collection
        self._tree = tree
        self._scope = scope
        self._clock = scope.clock
        self._guard = guard
        self.moves = Moves(name, collection, tree, scope, shelves)
        self._view = View()
        self._agenda = Agenda()
        self._backlog = Agenda()
        """What scans found."""
        self._settling = Settling(settle_seconds)
        self._closed: set[str] = set()
        self._absent: dict[str, float] = {}
        self._gone: set[str] = set()
        self._leaving: deque[str] = deque()
        self._to_judge = False
        self._confirmed_before: frozenset[str] = frozenset()
        self._crowded = 0
        """Turns without room for something, one after the other."""
        # Notes from other threads.
        self.notices: deque[Notice | Trial] = deque()
        """In one order: an outcome that came after its trial undoes what that says."""
        self.asked: deque[str] = deque()
        self.confirmed: deque[frozenset[str]] = deque()
        # Snapshots for other threads.
        self.held: frozenset[str] = frozenset()
        self.unreadable: dict[str, str] = {}
        self.root_fault: str | None = None
        self.reading_since: float | None = None
        self.scans = 0
        self.looks = 0
        """Scans that were begun, whether or not the root could be listed."""
        self.looked = 0
        """The number, among those, of the last one that told what is there."""
        self.directories = 0
        self.last_scan_seconds = 0.0
        self.last_scan_at: float | None = None

    def load(self, intake: Intake | None = None) -> None:
        """Begin with what the store knows, and with what was confirmed.

        Args:
            intake: Kept informed that it goes on; None: nobody acts on it, and what was confirmed, which is told once,
                is left alone.
        """

        def alive() -> None:
            if intake is not None:
                self._answered(intake)

        there: set[str] | None = None
        if self.moves.shelves.done is not None:
            with suppress(RootGoneError):
                # Those whose files a process left behind that was killed amid a move have a sidecar there.
                scan = Scan(self._tree, alive)
                there = {f"{self._name}/{path}" for path, _signature in scan}
                there |= {f"{self._name}/{path}" for path in scan.alone}
        self._view = View.load(self._name, self._collection, self._scope, there, alive)
        self.reading_since = None
        if intake is not None:
            self._confirmed_before = self._scope.seen.confirmed(self._name)

    def absent(self) -> frozenset[str]:
        """Return the documents that are known and are not there now.

        Raises:
            RootGoneError: The root cannot be listed.
            OSError: A shelf cannot be looked at.
        """
        scan = Scan(self._tree)
        there = {f"{self._name}/{path}" for path, _signature in scan}
        return frozenset(
            document
            for document, file in self._view.files.items()
            if file.known
            and document not in there
            and not self.moves.keeps(document, file)
            and not scan.within_unreadable(document[len(self._name) + 1 :])
        )

    @property
    def files(self) -> int:
        """Documents that are known, or were found."""
        return len(self._view.files)

    @property
    def unsettled(self) -> int:
        """Files that are waited for because they have just changed."""
        return len(self._settling)

    @property
    def missing(self) -> bool:
        """Whether documents are gone whose deletion is not certain yet."""
        return bool(self._absent)

    @property
    def in_flight(self) -> int:
        """Events that were handed in and are not settled."""
        return len(self._view.flights)

    @property
    def busy(self) -> bool:
        """Whether anything is left to do, held deletes aside."""
        notes = self.notices or self.asked or self.confirmed
        looks = self._agenda or self._backlog
        return bool(notes or looks or self._leaving or self._to_judge or self._view.flights or self.moves.busy)

    def unfinished(self, documents: Iterable[str]) -> frozenset[str]:
        """Return those of these documents that need something yet, held deletes aside. Safe to call from any thread."""
        noted = {*self._leaving.copy(), *self.asked.copy(), *(notice.document for notice in self.notices.copy())}
        held, absent, flights = self.held, self._absent, self._view.flights
        return frozenset(
            document
            for document in documents
            if document in noted
            or document in flights
            or document in self._agenda
            or document in self._backlog
            or (document in absent and document not in held)
        )

    def next_due(self) -> float | None:
        """Return when a turn has something to do, as far as it is known now."""
        now = self._clock.monotonic()
        if self._crowded:
            return now + (CROWDED if self._crowded < PATIENT else TICK)
        if self._leaving or self._to_judge:
            return now
        dues = (self._agenda.next(), self._backlog.next(), self.moves.next())
        return min((at for at in dues if at is not None), default=None)

    def scan(self, intake: Intake, *, hinted: bool) -> bool:
        """List all files, and put down those that need a look.

        Args:
            intake: Told, by the first scan, which files need no event.
            hinted: Whether a hint led to this scan, so that what is absent gets its second look in a second.

        Returns:
            Whether the root could be listed. If not, nothing is known to be absent.
        """
        begun = self._clock.monotonic()
        self.looks += 1
        mark, scan = self.scans + 1, Scan(self._tree, lambda: self._answered(intake))
        same: Counter[Verdict] = Counter()
        try:
            for path, signature in scan:
                self._scanned(f"{self._name}/{path}", signature, mark, same, begun)
        except RootGoneError as error:
            if self.root_fault is None:
                log.warning(
                    "the folder cannot be listed, its documents stay as they are", source=self._name, error=str(error)
                )
            self.root_fault = str(error)
            return False
        finally:
            self.reading_since = None
        if mark > STARTING_SCANS:
            self._confirmed_before = frozenset()
        self.moves.scanned(scan, self._view, first=mark == 1)
        self._note_absent(scan, mark, hinted=hinted)
        if mark == 1:
            for verdict, count in same.items():
                intake.skip(verdict, count)
        if self.root_fault is not None:
            log.info("the folder can be listed again", source=self._name)
        if scan.unreadable.keys() - self.unreadable.keys():
            log.warning("directories cannot be read", source=self._name, directories=sorted(scan.unreadable)[:10])
        self.root_fault, self.unreadable, self.directories = None, scan.unreadable, scan.directories
        self.last_scan_seconds, self.last_scan_at = self._clock.monotonic() - begun, self._clock.time()
        self.scans, self.looked = mark, self.looks
        return True

    def turn(self, intake: Intake, hinted: Hinted | None) -> None:
        """Take notes and hints, look at what is due, and hand in what follows: a bounded amount of work.

        Raises:
            Stopped: The daemon is stopping.
        """
        now = self._clock.monotonic()
        self._take_notes(now)
        if hinted is not None:
            self._take_hints(hinted.paths.items(), now)
        crowded = not (self._work_off(intake, self._agenda, now) and self._work_off(intake, self._backlog, now))
        self._judge()
        for _ in range(min(BATCH, len(self._leaving))):
            document = self._leaving.popleft()
            if not self._part_with(intake, document):
                self._leaving.appendleft(document)
                crowded = True
                break
        self._crowded = self._crowded + 1 if crowded else 0
        for document in self.moves.turn(self._view, lambda: self._answered(intake)):
            self._agenda.put(document, now)
        self.reading_since = None

    def event(
        self,
        document: str,
        path: bytes | None,
        found: Found | None,
        attempt: int = 1,
        since: float | None = None,
        *,
        priority: Priority = Priority.LIVE,
    ) -> Event:
        """Return the event of a document: of its file as found, or of its deletion. Safe to call from any thread."""
        key = DocumentKey(self._collection, document)
        position = document if path is None else f"{escape(self._tree.root)}/{escape(path)}"
        if path is None or found is None:
            return Event(key, Op.DELETE, self._name, position, payload=None, attempt=attempt, first_failed_at=since)
        return Event(
            key,
            Op.UPSERT,
            self._name,
            position,
            payload=FilePayload(self._tree, path, document, found.shape, self._scope.max_bytes),
            size=found.size,
            signature=found.signature,
            attempt=attempt,
            first_failed_at=since,
            priority=priority,
        )

    # What a scan finds.

    def _answered(self, intake: Intake) -> None:
        """Take note that the file system answers, and let the engine know, at most once a second."""
        now = self._clock.monotonic()
        if self.reading_since is None or now - self.reading_since >= 1.0:
            self.reading_since = now
            intake.wait(0)

    def _scanned(self, document: str, signature: str, mark: int, same: Counter[Verdict], now: float) -> None:
        file = self._view.files.get(document)
        if file is None:
            file = self._view.files[document] = File()
        file.mark = mark
        flight = self._view.flights.get(document)
        if flight is not None:
            needs_look = flight.op is Op.DELETE or flight.signature != signature
        else:
            needs_look = file.signature != signature or file.parted
        if needs_look or document in self._absent:
            self._backlog.put(document, now)
        elif file.verdict is not None:
            self.moves.put(document, file)
            same[Verdict.DEAD_LETTERED if file.verdict is Verdict.DEAD_LETTERED else Verdict.UNCHANGED] += 1

    def _note_absent(self, scan: Scan, mark: int, *, hinted: bool) -> None:
        missing = [document for document, file in self._view.files.items() if file.mark != mark]
        for document in missing:
            if not scan.within_unreadable(document[len(self._name) + 1 :]):
                self._miss(document, hinted=hinted)

    # Notes and hints.

    def _take_notes(self, now: float) -> None:
        while self.notices:
            notice = self.notices.popleft()
            if isinstance(notice, Trial):
                self._view.trying(notice)
                continue
            wait = self._view.note(notice)
            if wait is not None:
                self._agenda.put(notice.document, now + wait)
            file = self._view.files.get(notice.document)
            if file is None:
                self._back(notice.document)  # deleted by an event that was parked: nothing is missing any more
            self.moves.settled(notice.document, file)
        while self.asked:
            document = self.asked.popleft()
            self._view.force(document)
            self._agenda.put(document, now)
        while self.confirmed:
            self._release(self._gone & self.confirmed.popleft())
            self._guard.confirmed()
            self._to_judge = True

    def _take_hints(self, paths: Iterable[tuple[bytes, bool]], now: float) -> None:
        for path, closed in paths:
            # Of a pair it is the file that counts: a sidecar that was closed says nothing about its file's writer.
            document = document_id(self._name, path.removesuffix(SIDECAR))
            if self._tree.follow and document not in self._view.files:
                continue  # whether a path is a document's own is for the scan to say: it may be one of several
            if not closed and document in self._settling and document in self._agenda:
                self._closed.discard(document)
                continue  # somebody goes on writing it, and it is looked at when it may have come to rest
            if not path.endswith(SIDECAR):
                (self._closed.add if closed else self._closed.discard)(document)
            self._agenda.put(document, now)

    # Looking at one file.

    def _work_off(self, intake: Intake, agenda: Agenda, now: float) -> bool:
        """Look at what is due; return whether the pipeline took all that came of it."""
        for document in agenda.due(now, BATCH):
            if not self._look(intake, document, agenda):
                agenda.put(document, FIRST)  # or else a large file would never get in beside small ones
                return False
        return True

    def _look(self, intake: Intake, document: str, agenda: Agenda) -> bool:
        """Look at a file; return False where there is no room for what comes of it."""
        path = path_of(self._name, document)
        self.reading_since = self._clock.monotonic()
        try:
            found = None if path is None else self._tree.look(path)
        except (OSError, RootGoneError) as error:  # neither there nor gone: the next scan says where the fault lies
            log.debug("a file could not be looked at", source=self._name, document_id=document, error=str(error))
            return True
        finally:
            self.reading_since = None
        if path is not None and found is not None:
            return self._consider(intake, document, path, found, agenda)
        self._miss(document, hinted=True)
        return True

    def _consider(self, intake: Intake, document: str, path: bytes, found: Found, agenda: Agenda) -> bool:
        file = self._view.files.get(document)
        if file is None:
            file = self._view.files[document] = File(mark=self.scans)
        self._back(document)
        flight = self._view.flights.get(document)
        if flight is not None:
            flight.dirty = flight.dirty or flight.op is Op.DELETE or flight.signature != found.signature
            return True
        if file.signature == found.signature and not file.parted:
            self._rest(document)
            return True
        now, closed = self._clock.monotonic(), document in self._closed
        at = self._settling.rests_at(document, found, closed=closed, wall=self._clock.time(), now=now)
        if at > now:
            agenda.put(document, at)
            return True
        priority = Priority.BACKFILL if agenda is self._backlog else Priority.LIVE
        if not self._hand_in(intake, self.event(document, path, found, priority=priority)):
            return False
        self._rest(document)
        return True

    def _hand_in(self, intake: Intake, event: Event) -> bool:
        """Hand in an event, if there is room. To wait for it would keep what comes meanwhile from being seen."""
        document = event.key.document_id
        self._view.flights[document] = Flight(event.op, event.signature)
        taken = False
        try:
            taken = bool(intake.offer([event]))
        finally:
            if not taken:
                del self._view.flights[document]
        return taken

    def _rest(self, document: str) -> None:
        self._settling.forget(document)
        self._closed.discard(document)

    # Deletions.

    def _miss(self, document: str, *, hinted: bool) -> None:
        """Take note that a document's file is not there."""
        self._rest(document)
        file, flight = self._view.files.get(document), self._view.flights.get(document)
        if flight is not None:
            flight.dirty = flight.dirty or flight.op is Op.UPSERT
            return
        if file is None or not file.known:
            self._view.forget(document)
            return
        if file.parted or document in self._gone or document in self.moves:
            return
        try:
            stays = self.moves.keeps(document, file)
        except (OSError, UnavailableError) as error:  # the next scan asks again
            log.warning("a delete waits, the shelf cannot be looked at", document_id=document, error=str(error))
            return
        if stays:
            self.moves.miss(document, self._view)
            return
        now = self._clock.monotonic()
        first = self._absent.setdefault(document, now)
        if now - first >= CONFIRM:
            self._gone.add(document)
            self._to_judge = True
        elif hinted:
            self._agenda.put(document, first + CONFIRM)

    def _back(self, document: str) -> None:
        """Take note that a document's file is there."""
        if self._absent.pop(document, None) is not None:
            self._gone.discard(document)
            self._to_judge = True

    def _judge(self) -> None:
        """Decide about the deletions that are certain."""
        if not self._to_judge:
            return
        self._to_judge = False
        held_before = self._guard.holding
        now = self._clock.monotonic()
        # What is missing and not certain yet counts too: of many that vanish together some are certain first.
        if self._guard.allows(len(self._absent), self._view.known() - len(self._leaving), now):
            self._guard.let_go(len(self._gone), now)
            self._release(self._gone)
        elif confirmed := self._gone & self._confirmed_before:
            self._release(confirmed)
            self._guard.confirmed()
            self._to_judge = bool(self._gone)
        elif not held_before:
            log.error(
                "many documents are gone at once, their deletes are held", source=self._name, held=len(self._gone)
            )
        self.held = frozenset(self._gone) if self._guard.holding else frozenset()

    def _release(self, documents: Iterable[str]) -> None:
        for document in list(documents):
            self._gone.discard(document)
            self._absent.pop(document, None)
            self._leaving.append(document)

    def _part_with(self, intake: Intake, document: str) -> bool:
        """Hand in a delete, unless the file has come back while it waited; return False where there is no room."""
        path = path_of(self._name, document)
        try:
            found = None if path is None else self._tree.look(path)
        except (OSError, RootGoneError) as error:
            log.warning("a delete waits, the file cannot be looked at", document_id=document, error=str(error))
            return True
        file = self._view.files.get(document)
        if path is not None and found is not None:
            return self._consider(intake, document, path, found, self._agenda)
        if file is None or file.parted or document in self._view.flights:
            return True
        file.parted = self._hand_in(intake, self.event(document, path, None))
        return file.parted
