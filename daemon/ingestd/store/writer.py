"""The one thread that changes the state, with group commit.

Callers hand in changes, functions over a connection; the thread runs all that are waiting in one transaction and
answers each when the commit is on disk. While one commit waits for the disk the next group gathers, so the cost of a
sync is shared without a timer. Each change runs in a savepoint: one that is refused takes nothing else with it.

A connection for each writing thread was turned down: SQLite lets one write at a time anyway, each would pay for its
own sync, and all would have to cope with a busy database.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from ingestd.errors import FatalError, IngestError, Stopped
from ingestd.store.connections import connect_writer, is_damage, is_outage, verdict
from ingestd.store.proof import Mark

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

_GROUP_WEIGHT = 2_000
"""Records that one transaction takes before it leaves the rest to the next one."""
_WAITING = 256
"""Changes that wait before whoever brings another one waits too."""


@dataclass(frozen=True, slots=True)
class _Change(Generic[T]):
    apply: Callable[[sqlite3.Connection], T]
    weight: int
    future: Future[T] = field(default_factory=Future)

    def run(self, connection: sqlite3.Connection) -> Callable[[], None]:
        """Apply it in a savepoint, and return what tells the caller once the group is on disk."""
        connection.execute("SAVEPOINT change")
        try:
            result = self.apply(connection)
        except (Exception, Stopped) as error:
            if isinstance(error, sqlite3.Error) and (is_outage(error) or is_damage(error)):
                raise
            connection.execute("ROLLBACK TO change")
            connection.execute("RELEASE change")
            refusal = error
            return lambda: self.future.set_exception(refusal)
        connection.execute("RELEASE change")
        return lambda: self.future.set_result(result)


class Writer:
    """Runs changes, in the order in which they are handed in, until ``stop``.

    Args:
        path: The database; it exists and has the current schema.

    Raises:
        sqlite3.Error: It cannot be opened.
        ConfigError: The file system cannot hold a write-ahead log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = connect_writer(path)
        self._identity = _identity(path)
        self._mark = Mark(path)
        self._waiting: deque[_Change[object]] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._epitaph = f"the state in {path} is closed"
        self._failing: str | None = None
        self._thread = threading.Thread(target=self._run, name="state-writer", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> str | None:
        """Why the last transaction failed; None when it did not. Only the next one clears it."""
        return self._failing

    def submit(self, apply: Callable[[sqlite3.Connection], T], *, weight: int = 1) -> Future[T]:
        """Hand in a change, and return the future of its result: done when it is on disk.

        Waits while too many changes are waiting. The future fails with what ``apply`` raised, which then changed
        nothing, with UnavailableError when the disk does not take it, or with FatalError.

        Args:
            apply: Called once, on the writer's thread, in a transaction.
            weight: Roughly how many records it touches.

        Raises:
            FatalError: The writer has ended, or is asked to wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise FatalError("a change to the state cannot wait for another one: this is a fault of the program")
        change = _Change(apply, weight)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._waiting) < _WAITING)
            if self._ended:
                raise FatalError(self._epitaph)
            self._waiting.append(change)  # type: ignore[arg-type]  # a queue of changes of any result
            self._changed.notify_all()
        return change.future

    def stop(self) -> None:
        """Run what is waiting, and end. Calling it twice is the same as calling it once."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        group: list[_Change[object]] = []
        try:
            while group := self._gather():
                self._commit(group)
        except BaseException as error:
            self._abandon(group, f"the writer of the state ended: {error!r}")
            raise
        finally:
            self._disconnect()
            self._mark.close()

    def _gather(self) -> list[_Change[object]]:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._waiting)
            group: list[_Change[object]] = []
            weight = 0
            while self._waiting and weight < _GROUP_WEIGHT:
                group.append(self._waiting.popleft())
                weight += group[-1].weight
            self._changed.notify_all()
            return group

    def _commit(self, group: list[_Change[object]]) -> None:
        try:
            answers = self._transact(group)
        except (sqlite3.Error, IngestError, OSError) as error:
            # After a failed write or sync nothing that the connection remembers is to be trusted; a new one reads
            # the log from the disk again.
            self._disconnect()
            self._failing = str(error)
            if isinstance(self._verdict(error), FatalError):
                self._abandon(group, str(self._verdict(error)))
                return
            for change in group:
                change.future.set_exception(self._verdict(error))  # one each: a raised exception keeps a traceback
        else:
            self._failing = None
            for answer in answers:
                answer()

    def _transact(self, group: list[_Change[object]]) -> list[Callable[[], None]]:
        if _identity(self._path) != self._identity:
            raise FatalError(f"the state in {self._path} was replaced while it was in use: do not touch a running one")
        if self._connection is None:
            self._connection = connect_writer(self._path)
        self._connection.execute("BEGIN IMMEDIATE")
        answers = [change.run(self._connection) for change in group]
        self._mark.begin(self._connection)
        self._connection.execute("COMMIT")
        self._mark.set(self._connection)
        return answers

    def _verdict(self, error: Exception) -> IngestError:
        if isinstance(error, sqlite3.Error):
            return verdict(error, self._path)
        if isinstance(error, OSError):
            return FatalError(f"the state in {self._path} is gone ({error.strerror}): do not touch a running one")
        return FatalError(str(error))

    def _abandon(self, group: list[_Change[object]], epitaph: str) -> None:
        with self._changed:
            self._ended, self._epitaph = True, epitaph
            left = [*group, *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for change in left:
            if not change.future.done():
                change.future.set_exception(FatalError(epitaph))

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Closing rolls back, and writes the log into the database where it can; what cannot be written stays in
            # the log, and is found there.
            with suppress(sqlite3.Error):
                connection.close()


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
