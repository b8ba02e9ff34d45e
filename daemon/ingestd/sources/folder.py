"""A watched folder: every file below it is a document, and its deletion is the document's.

The rescan is the truth, and inotify only makes it faster: a scan says which files may have changed and which known
documents are not there, a hint says the same of one path, and both end in one look at one file, which alone decides.
So what inotify loses (and it loses much, see ``_watch``) is late, not lost. One event a document is in flight at a
time; what changes meanwhile is looked at when that is settled.

With ``done``, or ``failed``, files are moved away when they are at an end (``_moves``), and their absence says nothing.

One thread, ``run``'s, owns all state (``_rounds``). ``settled``, ``revive``, ``confirm`` and ``checks`` come from other
threads and leave a note or read a snapshot. A lock around the state was turned down: a scan of a slow network file
system would hold it for seconds, and settle with it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import TYPE_CHECKING, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ingestd.errors import ConfigError, DocumentError, UnavailableError
from ingestd.model import Again, Check, Event, Failure, Op, Parked, Stage
from ingestd.sources._globs import Globs
from ingestd.sources._guard import DeleteGuard
from ingestd.sources._ids import escape, path_of
from ingestd.sources._lookout import Lookout
from ingestd.sources._moves import Shelves
from ingestd.sources._rounds import CONFIRM, Rounds
from ingestd.sources._scan import Scan
from ingestd.sources._shelf import Shelf, leads_back
from ingestd.sources._survey import FolderSurvey
from ingestd.sources._tree import RootGoneError, Tree
from ingestd.sources._view import Notice, Trial

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ingestd.metrics import SourceMetrics
    from ingestd.model import DeadLetter, Outcome, Version
    from ingestd.ports import Intake, SourceScope
    from ingestd.sources._tree import Found

log = structlog.get_logger(__name__)

HINT = 0.005
"""Seconds between two turns when there are hints."""
TICK = 0.2
"""Seconds between two turns when nothing is going on."""
PROMPT = 0.02
"""Seconds between two turns of ``once``."""
HANGS = 20.0
"""Seconds after which a file system that does not answer counts as hanging."""
DUTY = 10
"""Scans that hints ask for wait this many times as long as the last scan took, so that a storm costs a tenth."""

_CURE_ROOT = "mount or create the folder, and let the daemon's user read it"
_CURE_LOOK = "mount the folder, or let the daemon's user read it, and it is tried again"
_CURE_DIRECTORIES = "let the daemon's user read and enter them, or exclude them"


class MassDelete(BaseModel):
    """When deletes are held until somebody confirms them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.2, gt=0, le=1, description="Hold deletes when more than this share of the documents is gone")
    documents: int = Field(50, ge=1, description="Act from this many known documents up")


class Config(BaseModel):
    """A folder whose files are documents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="The folder; a relative path is relative to the working directory")
    collection: str = Field(min_length=1, description="The collection that the documents go to")
    include: tuple[str, ...] = Field(("**/*",), min_length=1, description="Globs: what is a document")
    exclude: tuple[str, ...] = Field(
        (".*", "*.tmp", "*.part", "*~", "*.swp"),
        description="Globs: what is none; one without a slash also excludes directories with all below them",
    )
    recursive: bool = Field(True, description="Whether files in directories below the folder count")
    follow_symlinks: bool = Field(False, description="Whether symlinks to something below the folder count")
    rescan_seconds: float = Field(30, gt=0, le=86_400, description="Seconds between two scans of the whole folder")
    settle_seconds: float = Field(
        2,
        ge=0,
        le=3_600,
        description="Seconds for which size and mtime of a file that nobody was seen to close are still",
    )
    watch: Literal["auto", "inotify", "poll"] = Field(
        "auto", description="auto: inotify, but scans alone on network file systems; poll (or false): scans alone"
    )
    mass_delete: MassDelete = Field(MassDelete(), description="The mass-delete guard")
    done: Path | None = Field(
        None, description="A folder that written files are moved to: then no document is deleted for its file's absence"
    )
    failed: Path | None = Field(
        None, description="A folder that files are moved to that became dead letters, each with its reason beside it"
    )

    @field_validator("watch", mode="before")
    @classmethod
    def _no_watch(cls, value: object) -> object:
        return "poll" if value is False or value == "false" else value  # a variable knows only text

    @field_validator("include", "exclude")
    @classmethod
    def _readable(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        Globs(globs, globs)
        return globs

    @model_validator(mode="after")
    def _moves_out(self) -> Config:
        tree = self.tree()
        for key in ("done", "failed"):
            folder: Path | None = getattr(self, key)
            if folder is None:
                continue
            if self.follow_symlinks:
                raise ValueError(f"{key}: what symlinks lead to is not moved away; leave out this, or follow_symlinks")
            if leads_back(_absolute(folder), tree, tree.root):
                raise ValueError(
                    f"{key}: {folder} is within the watched folder, or around it, and its files would be documents "
                    'again; name another one, or exclude it, as exclude = ["done/"] does'
                )
        if self.done is not None and self.failed is not None and _absolute(self.done) == _absolute(self.failed):
            raise ValueError("done and failed are one folder; name two")
        return self

    def tree(self) -> Tree:
        """Return what is to be watched."""
        globs = Globs(self.include, self.exclude)
        return Tree(_absolute(self.path), globs, self.recursive, self.follow_symlinks)

    def clash(self, other: BaseModel) -> str | None:
        """Return why this source must not run beside another one.

        Files that it moves away are gone for another that reads them. Two that read files of different extensions go
        together, and so does one that excludes what the other reads; of other globs it cannot be told. In ``done``
        nothing says whose a file is, so it is one source's alone.
        """
        if not isinstance(other, Config):
            return None
        theirs = [os.path.realpath(_absolute(folder)) for folder in (other.done, other.failed) if folder is not None]
        if self.done is not None and os.path.realpath(_absolute(self.done)) in theirs:
            return f"both move files to {self.done}, where nothing says whose they are: give each a folder of its own"
        if (self.done is None and self.failed is None) or not self._meets(other):
            return None
        return (
            f"files of {self.path} are moved to done or failed when they are at an end, and the source of {other.path} "
            "takes them for deleted then: give one of them another folder, or other files (include, exclude)"
        )

    def _meets(self, other: Config) -> bool:
        """Return whether another source may read files that this one reads."""
        mine, theirs = _extensions(self.include), _extensions(other.include)
        apart = mine is not None and theirs is not None and not mine & theirs
        if apart or set(self.include) <= set(other.exclude) or set(other.include) <= set(self.exclude):
            return False
        one, another = self.tree(), other.tree()
        roots = os.path.realpath(one.root), os.path.realpath(another.root)
        return roots[0] == roots[1] or _holds(one, roots[0], roots[1]) or _holds(another, roots[1], roots[0])

    def build(self, name: str, scope: SourceScope) -> FolderSource:
        """Return the source. Nothing is read before ``run``."""
        return FolderSource(name, self, scope)


def _extensions(globs: Sequence[str]) -> set[str] | None:
    """Return the extensions that globs ask for; None: they ask for something else too."""
    found = [re.fullmatch(r"(?:\*\*/)?\*(\.[\w.-]+)", glob) for glob in globs]
    return None if None in found else {match[1] for match in found if match is not None}


def _holds(tree: Tree, root: bytes, folder: bytes) -> bool:
    """Return whether a folder lies in a watched one, where its files are documents; both without symlinks."""
    within = root.rstrip(b"/") + b"/"
    return folder.startswith(within) and tree.enters(folder[len(within) :])


def _absolute(path: Path) -> bytes:
    return os.path.normpath(os.fsencode(path.expanduser().absolute()))


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """Numbers for metrics."""

    scans: int
    overflows: int
    watcher_restarts: int
    last_scan_seconds: float
    last_scan_at: float | None
    """Seconds since 1970; None before the first scan."""
    files: int
    """Documents that are known, or were found."""
    held: int
    """Deletes that wait to be confirmed."""
    unreadable: int
    """Directories that could not be read."""
    unsettled: int
    """Files that are waited for because they have just changed."""
    in_flight: int
    unmoved: int
    """Files that are at an end and cannot be moved."""


class FolderSource:
    """The source. See the module for how it works, and ``ports.Source`` for what each method promises.

    Args:
        name: The source's name; its documents' ids begin with it.
        config: The settings.
        scope: What a source may know of the rest.
    """

    def __init__(self, name: str, config: Config, scope: SourceScope) -> None:
        self.name = name
        self.collection = config.collection
        self._config = config
        self._clock = scope.clock
        self._seen = scope.seen
        self._max_bytes = scope.max_bytes
        self._tree = config.tree()
        self._lookout = Lookout(name, self._tree, config.watch, config.rescan_seconds, scope.clock)
        window = max(60.0, 2 * config.rescan_seconds)
        guard = DeleteGuard(config.mass_delete.share, config.mass_delete.documents, window)
        done, failed = (
            None if path is None else Shelf(_absolute(path), self._tree, name) for path in (config.done, config.failed)
        )
        self._rounds = Rounds(
            name,
            config.collection,
            self._tree,
            scope,
            settle_seconds=config.settle_seconds,
            guard=guard,
            shelves=Shelves(done, failed),
        )
        self._scan_at = self._scan_not_before = 0.0
        self._hinted = self._look_asked = False
        self._exported = self.status()

    def run(self, intake: Intake, *, once: bool) -> None:
        """Hand in events until ``intake`` raises Stopped, or, with ``once``, until what is there now is settled."""
        self._rounds.load(intake)
        if once:
            self._run_once(intake)
            return
        try:
            while True:
                self._run_turn(intake)
        finally:
            self._lookout.stop()

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of outcomes, for the source's own thread."""
        self._rounds.notices.extend(Notice.of(outcome) for outcome in outcomes)

    def revive(self, parked: Parked | DeadLetter) -> Event | None:
        """Return the event of a record, made from the file as it is now.

        A file that was moved to ``failed`` is put back into the folder, and so is what was beside it.

        None: the file is gone, or is back (for a delete). The source then looks at it by itself, as if it had never
        been settled, so that nothing is lost by it.

        Raises:
            UnavailableError: The folder is gone, or the file system does not say whether the file is there.
        """
        document = parked.key.document_id
        path = path_of(self.name, document)
        attempt, since = (parked.attempt, parked.first_failed_at) if isinstance(parked, Parked) else (1, None)
        try:
            found = None if path is None else self._found(path, document, parked.op)
        except (OSError, RootGoneError) as error:
            raise UnavailableError(
                f"source:{self.name}",
                f"{document} cannot be looked at ({error}): {_CURE_LOOK}",
            ) from error
        except DocumentError as error:
            fault = Failure(Stage.SOURCE, "DocumentError", str(error))
            return replace(self._rounds.event(document, path, None, attempt, since), op=parked.op, fault=fault)
        if (parked.op is Op.DELETE) == (found is None):
            return self._rounds.event(document, path, found, attempt, since)
        self._rounds.asked.append(document)
        return None

    def _found(self, path: bytes, document: str, op: Op) -> Found | None:
        """Look at a file that is to be tried again, where it was moved to too.

        Raises:
            DocumentError: It is too large to be put back.
            RootGoneError: The folder is not there.
            OSError: It cannot be said whether it is there, or it cannot be put back.
        """
        found, moves = self._tree.look(path), self._rounds.moves
        if op is Op.DELETE or not moves.on:
            return found
        if found is None and moves.shelves.failed is not None:
            # Not by the source's own thread: if it cannot be done now, the retry queue keeps the event.
            moves.shelves.failed.put_back(path, document, self._max_bytes)
            found = self._tree.look(path)
        if found is not None:
            self._rounds.notices.append(Trial(document, found.signature))
        return found

    def absent(self) -> frozenset[str]:
        """Return the documents that are known and whose files are not there now."""
        self._rounds.load()
        try:
            return self._rounds.absent()
        except RootGoneError as error:
            raise ConfigError(f"sources.{self.name}.path: {error}; nothing can be said about deletes") from error

    def survey(self) -> FolderSurvey:
        """Return a look at the folder."""
        return FolderSurvey(self.name, self._tree, self._max_bytes, self._rounds.moves.shelves)

    def look(self) -> int:
        """Have the folder scanned at the next turn."""
        number = self._rounds.looks + 1  # before it is asked for: whichever scan begins now counts
        self._look_asked = True
        return number

    def behind(self, documents: Collection[str], look: int) -> frozenset[str]:
        """Return those of these documents whose files the source has not come to."""
        return frozenset(documents) if self._rounds.looked < look else self._rounds.unfinished(documents)

    def again(self, versions: Mapping[str, Version]) -> Iterator[Again]:
        """Yield the documents that files can be of: each is looked at when its turn comes.

        A file that was moved to ``done`` is put back into the folder, and goes there again.
        """
        for document in versions:
            path = path_of(self.name, document)
            if path is not None and self._is_to_be_had(path, document):
                yield Again(document, self._rounds.event(document, path, None).position, None)

    def _is_to_be_had(self, path: bytes, document: str) -> bool:
        """Return whether looking at a document's file will say what the document is."""
        done = self._rounds.moves.shelves.done
        if done is None:
            return True  # that it is gone says it, too
        try:
            return self._tree.look(path) is not None or done.put_back(path, document, self._max_bytes)
        except DocumentError:
            return False  # larger than a document may be by now
        except (OSError, RootGoneError) as error:
            raise UnavailableError(
                f"source:{self.name}", f"{document} cannot be put back into the folder ({error}): {_CURE_LOOK}"
            ) from error

    def confirm(self) -> int:
        """Let the deletes go on that are held at this moment. A root that is missing cannot be confirmed away."""
        held = self._rounds.held
        self._rounds.confirmed.append(held)
        return len(held)

    def letter_topic(self) -> None:
        """Return nothing: a file's dead letter is kept in the state."""

    def checks(self) -> Sequence[Check]:
        """Say how the source is."""
        checks = [self._check_root(), self._check_directories(), self._lookout.check(), self._check_deletes()]
        return [*checks, self._rounds.moves.check()] if self._rounds.moves.on else checks

    def probe(self) -> Sequence[Check]:
        """Say whether the source could start."""
        scan = Scan(self._tree)
        try:
            files = sum(1 for _ in scan)
        except RootGoneError as error:
            return (Check(f"{self.name}:root", ok=False, detail=str(error), cure=_CURE_ROOT),)
        return (
            Check(f"{self.name}:root", ok=True, detail=f"{files} files in {scan.directories} directories"),
            self._about_directories(scan.unreadable),
            self._lookout.probe(scan.directories),
            *self._probe_shelves(),
        )

    def export(self, metrics: SourceMetrics) -> None:
        """Bring the source's metrics up to date."""
        now, last, labels = self.status(), self._exported, {"source": self.name}
        metrics.files.labels(**labels).set(now.files)
        metrics.held_deletes.labels(**labels).set(now.held)
        metrics.unmoved_files.labels(**labels).set(now.unmoved)
        if now.last_scan_at is not None:
            metrics.scan_age_seconds.labels(**labels).set(max(0.0, self._clock.time() - now.last_scan_at))
        metrics.watcher_overflows.labels(**labels).inc(now.overflows - last.overflows)
        metrics.watcher_restarts.labels(**labels).inc(now.watcher_restarts - last.watcher_restarts)
        if now.scans > last.scans:
            metrics.scan_seconds.labels(**labels).observe(now.last_scan_seconds)
        self._exported = now

    def status(self) -> FolderStatus:
        """Return numbers for metrics. Safe to call from any thread."""
        rounds = self._rounds
        return FolderStatus(
            scans=rounds.scans,
            overflows=self._lookout.overflows,
            watcher_restarts=self._lookout.restarts,
            last_scan_seconds=rounds.last_scan_seconds,
            last_scan_at=rounds.last_scan_at,
            files=rounds.files,
            held=len(rounds.held),
            unreadable=len(rounds.unreadable),
            unsettled=rounds.unsettled,
            in_flight=rounds.in_flight,
            unmoved=len(rounds.moves.stuck),
        )

    def _run_turn(self, intake: Intake) -> None:
        # Watch first, then scan: what happens in between is hinted at.
        self._rounds.reading_since = self._clock.monotonic()
        unnoticed = self._lookout.tend()
        self._rounds.reading_since = None
        hinted = self._lookout.take()
        now = self._clock.monotonic()
        if hinted is not None and (hinted.rescan or (self._tree.follow and hinted.paths)):
            self._hinted = unnoticed = True
        if unnoticed:
            self._scan_at = min(self._scan_at, max(now, self._scan_not_before))
        if self._look_asked:
            self._look_asked, self._hinted, self._scan_at = False, True, now
        if now >= self._scan_at:
            self._rounds.scan(intake, hinted=self._hinted)
            ended = self._clock.monotonic()
            self._hinted, self._scan_at = False, ended + self._config.rescan_seconds
            self._scan_not_before = ended + max(1.0, DUTY * (ended - now))
        self._rounds.turn(intake, hinted)
        pause = self._pause(min(TICK, max(0.0, self._scan_at - self._clock.monotonic())))
        # Hints come one by one while a file is being written: nobody looks at it for each.
        intake.wait(min(pause, HINT))
        if pause > HINT:
            intake.wait(0.0 if self._lookout.wait(pause - HINT) else pause - HINT)

    def _run_once(self, intake: Intake) -> None:
        """Scan, settle, scan again: what is absent both times is deleted, what changed meanwhile is settled again."""
        if not self._rounds.scan(intake, hinted=False):
            return
        second_at = self._clock.monotonic() + CONFIRM
        self._work_off(intake)
        while self._rounds.missing and (left := second_at - self._clock.monotonic()) > 0:
            intake.wait(left)
        if self._rounds.scan(intake, hinted=False):
            self._work_off(intake)

    def _work_off(self, intake: Intake) -> None:
        while self._rounds.busy or (self._rounds.moves.on and self._is_tried_again()):
            self._rounds.turn(intake, None)
            intake.wait(self._pause(PROMPT))

    def _is_tried_again(self) -> bool:
        """Return whether files wait for their next try: when that is over they are moved."""
        try:
            return self._seen.waiting({(self.name, self.collection)}) > 0
        except UnavailableError:
            return True

    def _pause(self, most: float) -> float:
        due = self._rounds.next_due()
        return most if due is None else min(most, max(0.0, due - self._clock.monotonic()))

    def _check_root(self) -> Check:
        name, rounds = f"{self.name}:root", self._rounds
        since = rounds.reading_since
        silent = 0.0 if since is None else self._clock.monotonic() - since
        if silent > HANGS:
            detail = f"the file system has not answered for {silent:.0f} s"
            return Check(name, ok=False, detail=detail, cure="see to the server behind it, or to the disk")
        if rounds.root_fault is not None:
            detail = f"{rounds.root_fault}; its documents stay as they are"
            return Check(name, ok=False, detail=detail, cure=_CURE_ROOT)
        return Check(name, ok=True, detail=f"{rounds.files} files" if rounds.scans else "not scanned yet")

    def _probe_shelves(self) -> Iterator[Check]:
        for key, shelf in self._rounds.moves.shelves._asdict().items():
            if shelf is not None:
                fault = shelf.fault(make=False)
                cure = "" if fault is None else f"let the daemon's user write there, or set sources.{self.name}.{key}"
                detail = fault or f"files are moved to {escape(shelf.root)}"
                yield Check(f"{self.name}:{key}", fault is None, detail, cure)

    def _check_directories(self) -> Check:
        return self._about_directories(self._rounds.unreadable)

    def _about_directories(self, unreadable: Mapping[str, str]) -> Check:
        name = f"{self.name}:directories"
        if not unreadable:
            return Check(name, ok=True)
        shown = ", ".join(f"{path} ({why})" for path, why in sorted(unreadable.items())[:3])
        rest = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""  # noqa: PLR2004 - those shown above
        detail = f"cannot be read, and what is below stays as it is: {shown}{rest}"
        return Check(name, ok=False, detail=detail, cure=_CURE_DIRECTORIES)

    def _check_deletes(self) -> Check:
        name, held = f"{self.name}:deletes", len(self._rounds.held)
        if held:
            cure = f"bring the files back, or confirm: ingestd forget --source {self.name} --absent"
            return Check(name, ok=False, detail=f"{held} documents are gone at once, their deletes are held", cure=cure)
        if self._rounds.root_fault is not None:
            return Check(name, ok=False, detail="without the folder nothing can be said about deletes", cure=_CURE_ROOT)
        return Check(name, ok=True)
