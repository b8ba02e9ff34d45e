"""Which files are at an end and wait to be moved to ``done`` or ``failed``, and which cannot be.

Owns what follows from the two shelves: what absence means where files are moved away, when a move is tried again, and
what is said of it. A file waits here only after its outcome is durable, so a move that a crash prevented is made up for
by the next start's scan, which finds the file as it was settled.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ingestd.errors import UnavailableError
from ingestd.model import Check, Verdict
from ingestd.sources._agenda import Agenda
from ingestd.sources._ids import escape, path_of
from ingestd.sources._transfer import ASIDE, ChangedError, take_back
from ingestd.sources._tree import RootGoneError, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ingestd.model import Json
    from ingestd.ports import SourceScope
    from ingestd.sources._scan import Scan
    from ingestd.sources._shelf import Shelf
    from ingestd.sources._tree import Tree
    from ingestd.sources._view import File, View

MOVED = 64
"""The most files that are moved in one turn."""
FIRST_SECONDS = 5.0
MOST_SECONDS = 300.0
"""Between two tries to move a file: it doubles from one to the other."""
_SHELFS_FAULT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN})
"""Errors that say nothing of the file: others would fail with them too."""
_DONE = frozenset({Verdict.WRITTEN, Verdict.UNCHANGED})
_SHOWN = 3

log = structlog.get_logger(__name__)


class Shelves(NamedTuple):
    """Where files go when they are at an end; None: those stay where they are."""

    done: Shelf | None = None
    failed: Shelf | None = None


class Moves:
    """The files of one source that wait. For the source's own thread, but for ``check`` and what is public.

    Args:
        name: The source's.
        collection: Where its documents go.
        tree: The watched folder.
        scope: What a source may know of the rest.
        shelves: Where files go.
    """

    def __init__(self, name: str, collection: str, tree: Tree, scope: SourceScope, shelves: Shelves) -> None:
        self._name = name
        self._collection = collection
        self._tree = tree
        self._scope = scope
        self._clock = scope.clock
        self.shelves = shelves
        self._agenda = Agenda()
        self._waiting: set[str] = set()
        self._tries: dict[str, int] = {}
        """Of those that could not be moved."""
        self._why: dict[str, str] = {}
        self._cool: dict[Shelf, tuple[float, str]] = {}
        """Shelves that take nothing, until when, and why."""
        self._broken: set[str] = set()
        # Snapshots for other threads.
        self.stuck: dict[str, str] = {}
        """Documents whose files cannot be moved, and why."""
        self.broken: frozenset[str] = frozenset()
        """Documents that are not whole in Milvus, and whose files are not there to be read again."""
        self.faults: dict[str, str] = {}
        """What is wrong with the shelves themselves."""

    def __contains__(self, document: str) -> bool:
        """Return whether a document's file waits."""
        return document in self._waiting

    @property
    def busy(self) -> bool:
        """Whether files wait that were not tried yet."""
        return len(self._waiting) > len(self._tries)

    @property
    def on(self) -> bool:
        """Whether files are moved at all."""
        return self.shelves != Shelves()

    def keeps(self, document: str, file: File) -> bool:
        """Return whether a document stays as it is when its file is not there.

        Raises:
            OSError: It cannot be said: what became of it is not known, and the shelf cannot be looked at.
            UnavailableError: Nor does the state say.
        """
        done, failed = self.shelves
        if done is not None or failed is None:
            return done is not None
        if file.unseen and not file.failed:
            # With the state, or with another collection's, it is forgotten that the last version failed. A letter may
            # be left, and the shelf has the file with the reason.
            path, letter = path_of(self._name, document), self._scope.seen.letter
            left = letter(self._name, document, self._collection) is not None
            file.failed = left or (path is not None and failed.holds(path, document))
        return file.failed

    def put(self, document: str, file: File) -> None:
        """Have a document's file moved, if it is one that goes away, ended as it has."""
        if document not in self._waiting and self._shelf(file) is not None:
            self._waiting.add(document)
            self._agenda.put(document, self._clock.monotonic())

    def settled(self, document: str, file: File | None) -> None:
        """Take note that an event of a document has ended; None: there is nothing to know of it any more."""
        if file is not None:
            self.put(document, file)
        if file is None or file.whole:
            self._broken.discard(document)

    def miss(self, document: str, view: View) -> None:
        """Take note that the file of a document is not there, which stays as it is."""
        if not view.files[document].whole:
            self._broken.add(document)
        if self.shelves.done is not None:
            view.forget(document)

    def scanned(self, scan: Scan, view: View, *, first: bool) -> None:
        """See whether anything can be moved now, and what a process left behind that was killed amid a move.

        Args:
            scan: What was found.
            view: What is known.
            first: Whether it is the first scan of the process.
        """
        if first:
            for own in scan.own:
                self._take_back(own)
        if not self.on:
            return
        self._look()
        for path, sidecar in scan.alone.items():
            document = f"{self._name}/{path}"
            file = view.files.get(document)
            if file is not None and file.signature is not None:
                with suppress(OSError):
                    if file.signature.endswith("+" + stamp(sidecar.stat(follow_symlinks=False))):
                        self.put(document, file)

    def turn(self, view: View, alive: Callable[[], object]) -> Iterator[str]:
        """Move files that are due: a bounded number.

        Args:
            view: What is known.
            alive: Called for each, and now and then while a large one is copied.

        Yields:
            Documents to look at: their files are not what was settled.
        """
        for document in self._agenda.due(self._clock.monotonic(), MOVED):
            file = view.files.get(document)
            if document not in self._waiting:
                continue
            if file is None or document in view.flights:
                self._drop(document)
                continue
            alive()
            try:
                moved = self._move(document, file, alive)
            except ChangedError:
                self._drop(document)
                yield document
                continue
            if moved and self.shelves.done is not None:
                view.forget(document)
            elif moved:  # it failed, and what is there of it stays
                file.signature = None
        self._publish()

    def next(self) -> float | None:
        """Return when the next one is due, or None."""
        return self._agenda.next()

    def check(self) -> Check:
        """Say whether files are moved as they should be. Safe to call from any thread."""
        stuck, broken, faults = self.stuck, self.broken, self.faults
        said, cures = [*faults.values()], []
        if faults or stuck:
            cures.append("make room, or let the daemon's user write there and in the watched folder: it is tried again")
        if stuck:
            shown = _some([f"{document} ({why})" for document, why in stuck.items()])
            said.append(f"{len(stuck)} files that are at an end cannot be moved, and stay: {shown}")
        if broken:
            lost = f"{len(broken)} documents are not whole in Milvus, and their files are not in the folder"
            said.append(f"{lost}: {_some(sorted(broken))}")
            cures.append("put those files back into the folder")
        return Check(f"{self._name}:moves", not said, "; ".join(said), "; ".join(cures))

    def _shelf(self, file: File) -> Shelf | None:
        if file.signature is None:
            return None
        if file.verdict in _DONE:
            return self.shelves.done
        return self.shelves.failed if file.verdict is Verdict.DEAD_LETTERED else None

    def _move(self, document: str, file: File, alive: Callable[[], object]) -> bool:
        """Move a document's file; return whether it is away. If not it is tried again later.

        Raises:
            ChangedError: The file is not what was settled.
        """
        shelf, path = self._shelf(file), path_of(self._name, document)
        if shelf is None or path is None or file.signature is None:
            raise ChangedError(document)
        until, why = self._cool.get(shelf, (0.0, ""))
        if self._clock.monotonic() < until:
            self._put_off(document, why)
            return False
        if escape(shelf.root) in self.faults and (fault := shelf.fault(make=True)) is not None:
            self._put_off(document, fault)  # what lies there would be documents again, and again
            return False
        try:
            reason = self._reason(document, path) if shelf is self.shelves.failed else None
            where = shelf.put(path, file.signature, reason, alive)
        except (UnavailableError, RootGoneError) as error:
            self._put_off(document, str(error))
            return False
        except OSError as error:
            self._fail(document, path, file, shelf, error)
            return False
        self._drop(document)
        log.debug("moved", source=self._name, document_id=document, to=where)
        return True

    def _drop(self, document: str) -> None:
        self._waiting.discard(document)
        self._tries.pop(document, None)
        self._why.pop(document, None)

    def _take_back(self, own: bytes) -> None:
        """Give a file its name back that a process was taking away when it was killed: it is looked at once more.

        Args:
            own: Its path below the watched folder.
        """
        if not own.rpartition(b"/")[2].startswith(ASIDE):
            return
        try:
            with self._tree.parent(own) as (_root, directory):
                if not take_back(directory, own.rpartition(b"/")[2]):
                    log.warning("a newer file has the name of one that was moved away", path=escape(own))
        except (OSError, RootGoneError) as error:
            log.warning("a file that was half moved away cannot be put back", path=escape(own), error=str(error))

    def _look(self) -> None:
        found = {}
        for shelf in self.shelves:
            if shelf is not None and (fault := shelf.fault(make=True)) is not None:
                found[escape(shelf.root)] = fault
                self._cool[shelf] = self._clock.monotonic() + FIRST_SECONDS, fault
        self.faults = found

    def _publish(self) -> None:
        """Let other threads know."""
        if self._why != self.stuck:
            if self._why and not self.stuck:
                log.warning("files that are at an end cannot be moved, and stay", source=self._name, **self._first())
            if self.stuck and not self._why:
                log.info("files that are at an end can be moved again", source=self._name)
            self.stuck = dict(self._why)
        if self._broken != self.broken:
            self.broken = frozenset(self._broken)

    def _fail(self, document: str, path: bytes, file: File, shelf: Shelf, error: OSError) -> None:
        try:
            found = self._tree.look(path)
        except (OSError, RootGoneError) as other:
            self._put_off(document, str(other))
            return
        left = found is None and "+" in (file.signature or "")  # perhaps the sidecar alone: the next try finds out
        if not left and (found is None or found.signature != file.signature):
            raise ChangedError(document)
        why = error.strerror or str(error)
        if error.errno in _SHELFS_FAULT:
            self._cool[shelf] = self._clock.monotonic() + FIRST_SECONDS, why
        self._put_off(document, why)

    def _put_off(self, document: str, why: str) -> None:
        tries = self._tries.get(document, 0)
        self._tries[document] = tries + 1
        self._why[document] = why
        self._agenda.put(document, self._clock.monotonic() + min(MOST_SECONDS, FIRST_SECONDS * 2 ** min(tries, 16)))

    def _reason(self, document: str, path: bytes) -> Mapping[str, Json]:
        """Return what is written beside a file that failed."""
        letter = self._scope.seen.letter(self._name, document, self._collection)
        folder = escape(self._tree.root)
        place = f"{folder}/{escape(path)}"
        cure = f"mend the file and put it back as {place}: it is tried again"
        said: dict[str, Json] = {
            "document_id": document,
            "source": self._name,
            "collection": self._collection,
            "path": place,
        }
        if letter is None:
            return said | {"message": "it failed, and its dead letter was discarded", "cure": cure}
        return said | {
            "stage": letter.failure.stage.value,
            "error": letter.failure.error,
            "message": letter.failure.message,
            "attempts": letter.attempts,
            "first_failed_at": _time(letter.first_failed_at),
            "last_failed_at": _time(letter.last_failed_at),
            "dead_letter": letter.id,
            "configuration": letter.fingerprint,
            "cure": f"{cure}. With another configuration: ingestd dead-letters replay {letter.id}",
        }

    def _first(self) -> dict[str, str]:
        document, why = next(iter(self._why.items()))
        return {"document_id": document, "reason": why}


def _some(items: Sequence[str]) -> str:
    rest = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{', '.join(items[:_SHOWN])}{rest}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
