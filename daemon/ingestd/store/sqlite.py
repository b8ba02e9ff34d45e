"""The state of the daemon: ledger, seens, retry queue and dead letters (``ports.Store``) on one SQLite file.

Owns the lock, the writer and the readers of a state directory, and puts the SQL of the modules beside it behind the
port. Everything that changes the state is durable when it returns. Iterators read a page at a time, so that they hold
no snapshot: what changes meanwhile may or may not be in them.

A queue library beside a key-value store was turned down: moving an event between ledger, retry queue and dead
letters has to be one transaction.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ingestd.errors import FatalError
from ingestd.store import dead_letters, holdings, ledger, retries, runs, seens, settlement
from ingestd.store.connections import Readers, keep_temporary_files, verdict_at_start
from ingestd.store.lock import StateLock
from ingestd.store.opening import DATABASE, check_readable, make_directory, prepare
from ingestd.store.proof import seal
from ingestd.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from ingestd.model import DeadLetter, DocumentKey, Entry, Fingerprints, Outcome, Parked, Seen, Settled
    from ingestd.ports import Clock
    from ingestd.store.holdings import Counts

T = TypeVar("T")

_log = logging.getLogger(__name__)

_PAGE = 1_000
_LETTERS = 500
_ASKED = 500
"""Documents of one statement."""
_ORIGINALS = 16
"""Dead letters of a page with their originals: each may be as large as ``keep_bytes``."""


class SqliteStore:
    """The state in a directory. Made by ``open`` or ``read_only``; safe to call from any thread.

    Every method raises UnavailableError while the disk does not answer, and FatalError when the state is damaged,
    replaced behind the daemon's back, or closed.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        limits: dead_letters.Limits,
        lock: StateLock | None = None,
        writer: Writer | None = None,
        set_aside: Path | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._limits = limits
        self._lock = lock
        self._writer = writer
        self._readers = Readers(path)
        self._begun = False
        self.set_aside = set_aside
        """Where a damaged file was put at the opening; None: there was none."""

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        clock: Clock,
        dead_letter_bytes: int = 1 << 30,
        keep_bytes: int = 1 << 20,
        max_dead_letters: int = 100_000,
        wait: float = 5.0,
    ) -> SqliteStore:
        """Lock the state directory and open the state in it, making both where they are not there.

        Args:
            state_dir: On a local disk.
            clock: Wall-clock times of what is stored are its.
            dead_letter_bytes: The most bytes of originals that dead letters keep in all.
            keep_bytes: The largest original that is kept; of a larger one the letter holds a reference.
            max_dead_letters: Beyond it ``settle`` refuses.
            wait: Seconds to wait for a predecessor that is on its way out.

        Raises:
            ConfigError: Another process uses it, the disk cannot be used, or the schema is newer than this program.
        """
        make_directory(state_dir)
        path = state_dir / DATABASE
        lock = StateLock(state_dir, wait)
        try:
            set_aside = prepare(path, clock.time())
            try:
                keep_temporary_files(state_dir)
                writer = Writer(path)
            except sqlite3.Error as error:
                raise verdict_at_start(error, path) from error
        except BaseException:
            lock.release()
            raise
        if set_aside is not None:
            _log.error("the state was damaged and is set aside as %s: it is rebuilt", set_aside)
        limits = dead_letters.Limits(max_dead_letters, dead_letter_bytes, keep_bytes)
        return cls(path, clock=clock, limits=limits, lock=lock, writer=writer, set_aside=set_aside)

    @classmethod
    def read_only(cls, state_dir: Path, *, clock: Clock) -> SqliteStore:
        """Open the state to look at it, also while a daemon uses it. Methods that change it raise FatalError.

        Raises:
            ConfigError: There is no state yet, it has another schema, or it cannot be read.
        """
        path = state_dir / DATABASE
        check_readable(path)
        return cls(path, clock=clock, limits=dead_letters.Limits(0, 0, 0))

    @property
    def rebuilt(self) -> bool:
        """Whether the opening found a damaged file: what was in it has to come from Milvus and the sources."""
        return self.set_aside is not None

    @property
    def failing(self) -> str | None:
        """Why the last change could not be made durable; None when it could. ``probe`` brings it up to date."""
        return self._writer.failing if self._writer is not None else None

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; the run counts as ended well if nothing was raised."""
        self.close(clean=error is None)

    def begin(self) -> runs.Unclean | None:
        """Note that a run of the daemon begins. Commands that only borrow the state leave this out.

        Returns:
            What is in doubt: how the last run ended, if it did not end well; None when the ledger can be trusted.
        """
        begin = partial(runs.begin, boot=runs.boot_id(), pid=os.getpid(), now=self._clock.time())
        unclean = self._write(begin)
        self._begun = True
        return unclean

    def verified(self) -> None:
        """Note that what ``begin`` put in doubt was held against Milvus; until then the next run inherits it."""
        self._write(runs.verified)

    def close(self, *, clean: bool) -> None:
        """Wait for what is submitted, note how the run ended, and let go of everything. Only the first call counts.

        Args:
            clean: The run ended as it should; counts only where one had begun.

        Raises:
            UnavailableError: The note could not be written: the next start will take this for an unclean end.
        """
        begun, self._begun = self._begun, False
        try:
            if begun and clean:
                self._write(runs.end)
        finally:
            # Readers first: the last connection to close is then the writer's, which empties the log.
            self._readers.close()
            if self._writer is not None:
                self._writer.stop()
                if clean:  # or else the next start looks at all of it
                    seal(self._path)
            if self._lock is not None:
                self._lock.release()

    def probe(self) -> None:
        """Write something small: returns if the state takes it, and ``failing`` is then None.

        Raises:
            UnavailableError: It does not, and ``failing`` says why.
            FatalError: It never will again: it is damaged, was replaced, or is closed.
        """
        query = (
            "INSERT INTO meta (key, value) VALUES ('probe', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )
        now = self._clock.time()
        self._write(lambda connection: connection.execute(query, (str(now),)).rowcount)

    # Ledger

    def entries(self, keys: Sequence[DocumentKey]) -> Mapping[DocumentKey, Entry]:
        """Return what is known of these documents; those that are not known are left out."""
        with self._readers.lease() as connection:
            return ledger.get(connection, keys)

    def write_ahead(self, entries: Sequence[Entry]) -> None:
        """Make these entries durable before Milvus is touched. Returns when they are on disk."""
        if entries:
            self._write(partial(ledger.put, entries=entries), weight=len(entries))

    def binding(self, collection: str) -> str | None:
        """Return the random id of the Milvus collection that the entries are about, if any."""
        with self._readers.lease() as connection:
            return ledger.binding(connection, collection)

    def bind(self, collection: str, identity: str, entries: Iterable[Entry]) -> None:
        """Void the collection's entries and seens, and start again from these, in one transaction.

        ``entries`` is read on the writer's thread: it may wait for Milvus, and everything else that is to be written
        waits with it, but it must not write to the store itself. What it raises leaves all as it was.
        """
        self._write(partial(ledger.bind, collection=collection, identity=identity, entries=entries))

    def doubt(self, collection: str) -> None:
        """Note that nothing but the keys of a collection's entries is believed; what was seen of it is void."""
        self._write(partial(ledger.doubt, collection=collection))

    def doubted(self, collection: str) -> bool:
        """Return whether ``doubt`` was called, and ``undoubted`` was not since."""
        with self._readers.lease() as connection:
            return ledger.is_doubted(connection, collection)

    def undoubted(self, collection: str) -> None:
        """Note that the entries say it themselves."""
        self._write(partial(ledger.undoubted, collection=collection))

    def collection_entries(self, collection: str) -> Iterator[Entry]:
        """Yield all entries of a collection, tombstones too."""
        after, more = 0, True
        while more:
            with self._readers.lease() as connection:
                entries, after = ledger.page(connection, collection, after, _PAGE)
            yield from entries
            more = len(entries) == _PAGE

    def rows(self, collection: str) -> int:
        """Return the number of present rows that the ledger knows in a collection. Cheap."""
        with self._readers.lease() as connection:
            return holdings.rows(connection, collection)

    def sources(self) -> Sequence[tuple[str, str, int]]:
        """Return (source, collection, documents that are not deleted) for all of which anything is known.

        Also where that is a tombstone, a seen, a parked event or a dead letter alone.
        """
        with self._readers.lease() as connection:
            return holdings.sources(connection)

    # Seens

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """Yield what was seen of every document of the source.

        Args:
            source: The source.
            collection: Only what was settled in this one: a source that was pointed at another collection has seens
                of both.
        """
        after, more = ("", ""), True
        while more:
            with self._readers.lease() as connection:
                seen, after = seens.page(connection, source, collection, after, _PAGE)
            yield from seen
            more = len(seen) == _PAGE

    def seen_of(self, source: str, collection: str, documents: Sequence[str]) -> Mapping[str, Seen]:
        """Return what a source saw of these documents when they were settled in a collection."""
        found: dict[str, Seen] = {}
        for run in _runs(documents):
            with self._readers.lease() as connection:
                found |= seens.some(connection, source, collection, run)
        return found

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """Yield the ids of the source's documents that the ledger holds, and whether each has no doubtful rows.

        Args:
            source: The source.
            collection: Only those in it; None: in any.
        """
        with self._readers.lease() as connection:
            names = ledger.collections(connection, source) if collection is None else [collection]
        for name in names:
            after, more = 0, True
            while more:
                with self._readers.lease() as connection:
                    documents, after = ledger.documents(connection, source, name, after, _PAGE)
                yield from documents
                more = len(documents) == _PAGE

    def confirm(self, source: str, documents: Collection[str]) -> None:
        """Note that an operator confirmed the deletes of these documents, and of no others."""
        self._write(partial(seens.confirm, source=source, documents=documents), weight=len(documents))

    def confirmed(self, source: str) -> frozenset[str]:
        """Return, once, the documents whose deletes an operator confirmed while no daemon ran."""
        with self._readers.lease() as connection:  # nearly always not: no write for that
            noted = seens.is_confirmed(connection, source)
        return self._write(partial(seens.take_confirmation, source=source)) if noted else frozenset()

    # Settling, retries, dead letters

    def settle(self, outcomes: Sequence[Outcome], fingerprints: Mapping[str, Fingerprints]) -> Settled:
        """Make outcomes durable in one transaction: ledger entries, seens, parked events, dead letters.

        An event is taken out of the retry queue by its own next outcome (told by source, position, attempt and
        ``first_failed_at``, or by its version), and by one that is not older and ends as written, deleted or
        unchanged. Such a one also removes its document's older dead letters of the same source. A dead letter takes
        the place of one of the same document, source, position and signature, and keeps its id.

        Args:
            outcomes: Of any collections and sources, in the order in which they ended.
            fingerprints: By collection.

        Returns:
            What else it ended.

        Raises:
            UnavailableError: Nothing was stored: the disk is full or gone, or no more dead letters are allowed.
        """
        apply = partial(
            settlement.settle, outcomes=outcomes, fingerprints=fingerprints, limits=self._limits, now=self._clock.time()
        )
        return self._write(apply, weight=len(outcomes))

    def due(self, now: float, limit: int, owned: Collection[tuple[str, str]] | None = None) -> Sequence[Parked]:
        """Return parked events that are due, soonest first, without tracebacks and records, and without taking them.

        Args:
            now: Seconds since 1970.
            limit: The most to return.
            owned: Only those of these (source, collection); None: all.
        """
        with self._readers.lease() as connection:
            return retries.due(connection, now, limit, owned)

    def waiting(self, owned: Collection[tuple[str, str]]) -> int:
        """Return the number of parked events, due or not, of these (source, collection). Cheap."""
        with self._readers.lease() as connection:
            return holdings.parked(connection, owned)

    def next_due(self) -> float | None:
        """Return when the next parked event is due, or None if nothing is parked."""
        with self._readers.lease() as connection:
            return retries.next_due(connection)

    def parked(self, *, limit: int | None = None) -> Sequence[Parked]:
        """Return parked events, soonest first."""
        with self._readers.lease() as connection:
            return retries.soonest(connection, float("inf"), limit)

    def parked_of(self, collection: str, documents: Sequence[str]) -> frozenset[str]:
        """Return those of these documents that have events in the retry queue."""
        found: set[str] = set()
        for run in _runs(documents):
            with self._readers.lease() as connection:
                found |= retries.documents(connection, collection, run)
        return frozenset(found)

    def letters_of(self, collection: str, documents: Sequence[str]) -> frozenset[str]:
        """Return those of these documents that have dead letters here."""
        found: set[str] = set()
        for run in _runs(documents):
            with self._readers.lease() as connection:
                found |= dead_letters.documents(connection, collection, run)
        return frozenset(found)

    def mend(self, entries: Sequence[Entry], parked: Sequence[Parked]) -> Mapping[str, int]:
        """Put entries right, and have their documents' events brought back, in one transaction.

        Returns:
            How many events wait beyond those that did, by source.
        """

        def mend(connection: sqlite3.Connection) -> Mapping[str, int]:
            ledger.put(connection, entries)
            return retries.park(connection, parked)

        return self._write(mend, weight=len(entries) + len(parked)) if entries or parked else {}

    def hasten(self, now: float, source: str | None = None, positions: Collection[str] | None = None) -> int:
        """Make parked events due now; return how many there are.

        Args:
            now: Seconds since 1970.
            source: Only those of this source; None: all.
            positions: Only those of these positions of the source; None: all.
        """
        return self._write(partial(retries.hasten, now=now, source=source, positions=positions))

    def postpone(self, parked: Sequence[Parked], due_at: float) -> int:
        """Let parked events wait until then, with the tries that they have; return how many of them are there."""
        return self._write(partial(retries.postpone, events=parked, due_at=due_at))

    def whole(self, parked: Parked) -> Parked:
        """Return a parked event with the copy of its record, if one is kept."""
        with self._readers.lease() as connection:
            return retries.whole(connection, parked)

    def rename(self, parked: Parked, key: DocumentKey) -> None:
        """Have a parked event wait under another document, in place of what waits there from the same position."""
        self._write(partial(retries.rename, parked=parked, key=key))

    def withdraw(self, source: str, tenures: Collection[str] | None) -> Sequence[Parked]:
        """Remove a source's events that were parked under these leases; return them, without failures and records.

        Args:
            source: The source.
            tenures: The leases' ids; None: all that were parked under any.
        """
        return self._write(partial(retries.withdraw, source=source, tenures=tenures))

    def dead_letters(self, ids: Sequence[int] | None = None, *, data: bool = True) -> Iterator[DeadLetter]:
        """Yield dead letters, oldest first.

        Args:
            ids: Only these; None: all.
            data: Read the originals too.
        """
        size = _ORIGINALS if data else _LETTERS
        if ids is not None:
            wanted = sorted(set(ids))
            for at in range(0, len(wanted), size):
                with self._readers.lease() as connection:
                    letters = dead_letters.some(connection, wanted[at : at + size], data=data)
                yield from letters
            return
        after, more = 0, True
        while more:
            with self._readers.lease() as connection:
                letters = dead_letters.page(connection, after, size, data=data)
            yield from letters
            more = len(letters) == size
            after = letters[-1].id if letters else after

    def letter(self, source: str, document_id: str, collection: str) -> DeadLetter | None:
        """Return a document's last dead letter, without its original; None: there is none."""
        with self._readers.lease() as connection:
            return dead_letters.last(connection, source, document_id, collection)

    def discard(self, ids: Sequence[int]) -> int:
        """Remove dead letters; return how many were there."""
        return self._write(partial(dead_letters.discard, ids=list(ids)), weight=len(ids))

    def requeue(self, ids: Sequence[int]) -> Mapping[str, int]:
        """Move dead letters to the retry queue, due now, in one transaction.

        An event waits once: of two letters of the same document, source and position the later one is parked, and a
        letter takes the place of what waits there already.

        Returns:
            How many events wait beyond those that did, by source; a source for which that is none may be left out.
        """
        wanted = sorted(set(ids))

        def move(connection: sqlite3.Connection) -> Mapping[str, int]:
            added: Counter[str] = Counter()
            for at in range(0, len(wanted), _LETTERS):
                part = wanted[at : at + _LETTERS]
                letters = dead_letters.some(connection, part, data=True)
                added.update(retries.requeue(connection, letters, self._clock.time()))
                for letter in letters:
                    seens.wait(connection, letter.source, letter.key.document_id, letter.key.collection)
                dead_letters.discard(connection, part)
            return added

        return self._write(move, weight=len(wanted))

    def forget(self, source: str, collection: str) -> None:
        """Remove all that is known of a source: entries, seens, parked events and dead letters."""

        def forget(connection: sqlite3.Connection) -> None:
            for table in (ledger, seens, retries, dead_letters):
                table.forget(connection, source, collection)

        self._write(forget)

    def counts(self) -> Mapping[str, Counts]:
        """Return what the state holds of each source that it knows anything of but seens. Cheap."""
        with self._readers.lease() as connection:
            return holdings.counts(connection)

    def file_bytes(self) -> int:
        """Return the size of the state on disk, with its write-ahead log."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def _write(self, apply: Callable[[sqlite3.Connection], T], *, weight: int = 1) -> T:
        if self._writer is None:
            raise FatalError(f"the state in {self._path} was opened to be looked at, not to be changed")
        return self._writer.submit(apply, weight=weight).result()


def _runs(documents: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut documents into what one statement takes."""
    wanted = list(dict.fromkeys(documents))
    return (wanted[at : at + _ASKED] for at in range(0, len(wanted), _ASKED))
