"""A real folder, the real watch, and an engine that settles events when a test wants it."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ingestd.errors import DocumentError, Stopped, Superseded
from ingestd.model import DeadLetter, Event, Failure, Op, Outcome, Seen, Stage, Verdict
from ingestd.sources.folder import Config, FolderSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ingestd import ports
    from ingestd.model import Content

DEADLINE = 20.0
FAILED = Failure(Stage.EXTRACT, "DocumentError", "no text in it")


class Clock:
    """The machine's."""

    def time(self) -> float:
        """See ``ports.Clock``."""
        return time.time()

    def monotonic(self) -> float:
        """See ``ports.Clock``."""
        return time.monotonic()


@dataclass
class Store:
    """What outlives a source: what was written, what was seen."""

    rows: dict[str, Content] = field(default_factory=dict)
    stats: dict[str, Seen] = field(default_factory=dict)
    letters: dict[str, DeadLetter] = field(default_factory=dict)
    doubtful: set[str] = field(default_factory=set)
    confirmed_documents: frozenset[str] = frozenset()

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """See ``ports.SeenStore``."""
        return iter(list(self.stats.values()))

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """See ``ports.SeenStore``."""
        return iter([(document, document not in self.doubtful) for document in self.rows])

    def waiting(self, owned: Collection[tuple[str, str]]) -> int:
        """See ``ports.SeenStore``."""
        return 0

    def letter(self, source: str, document_id: str, collection: str) -> DeadLetter | None:
        """See ``ports.SeenStore``."""
        return self.letters.get(document_id)

    def confirmed(self, source: str) -> frozenset[str]:
        """See ``ports.SeenStore``."""
        confirmed, self.confirmed_documents = self.confirmed_documents, frozenset()
        return confirmed


@dataclass
class Scope:
    """What a source is given."""

    seen: ports.SeenStore
    clock: ports.Clock = field(default_factory=Clock)
    max_bytes: int = 1 << 20
    shared: bool = False
    configuration: str = "one"

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the same fingerprint for every verdict."""
        return self.configuration


class Engine:
    """Takes events and settles them at once, by reading them, unless they are withheld."""

    def __init__(self, store: Store, scope: Scope) -> None:
        self.store = store
        self.scope = scope
        self.source: FolderSource
        self.events: list[Event] = []
        self.outcomes: list[Outcome] = []
        self.skipped: dict[Verdict, int] = {}
        self.withheld: list[Event] = []
        self.withhold = False
        self.verdict: Verdict | None = None
        self.stop = threading.Event()
        self.on_wait: Callable[[], None] = lambda: None
        self.has_room: Callable[[Event], bool] = lambda _event: True
        """Whether the pipeline takes an event now."""

    def submit(self, event: Event) -> None:
        """See ``ports.Intake``."""
        if self.stop.is_set():
            raise Stopped
        self.events.append(event)
        if self.withhold:
            self.withheld.append(event)
        else:
            self.settle(event)

    def offer(self, events: Sequence[Event]) -> int:
        """See ``ports.Intake``."""
        if self.stop.is_set():
            raise Stopped
        for number, event in enumerate(events):
            if not self.has_room(event):
                return number
            self.submit(event)
        return len(events)

    def withdraw(self, tenures: Collection[str] | None = None) -> None:
        """Fail: a folder's events are under no lease."""
        raise NotImplementedError

    def hasten(self, positions: Collection[str]) -> None:
        """Fail: a folder's events go in no order of positions."""
        raise NotImplementedError

    def drained(self, seconds: float) -> bool:
        """Fail: a folder has nothing left to do once it is stopped."""
        raise NotImplementedError

    def skip(self, verdict: Verdict, count: int = 1) -> None:
        """See ``ports.Intake``."""
        self.skipped[verdict] = self.skipped.get(verdict, 0) + count

    def wait(self, seconds: float) -> None:
        """See ``ports.Intake``."""
        self.on_wait()
        if self.stop.wait(seconds):
            raise Stopped

    def settle(self, event: Event, verdict: Verdict | None = None) -> None:
        """End an event: with a verdict, or as reading it ends."""
        outcome = self._outcome(event, verdict or self.verdict)
        self.outcomes.append(outcome)
        self.source.settled([outcome])

    def release(self) -> None:
        """Settle what was withheld, and withhold no more."""
        self.withhold = False
        while self.withheld:
            self.settle(self.withheld.pop(0))

    def ops(self, document: str) -> list[Op]:
        """Return what was asked for a document, in order."""
        return [event.op for event in self.events if event.key.document_id == document]

    def verdicts(self, document: str) -> list[Verdict]:
        """Return how a document's events ended, in order."""
        return [one.verdict for one in self.outcomes if one.event.key.document_id == document]

    def _outcome(self, event: Event, verdict: Verdict | None) -> Outcome:
        document = event.key.document_id
        if verdict is None and event.op is Op.DELETE:
            self.store.rows.pop(document, None)
            self.store.stats.pop(document, None)
            return Outcome(event, Verdict.DELETED)
        if verdict is None:
            assert event.payload is not None
            try:
                self.store.rows[document] = event.payload.read()
                verdict = Verdict.WRITTEN
            except Superseded:
                return Outcome(event, Verdict.SUPERSEDED)
            except DocumentError:
                verdict = Verdict.DEAD_LETTERED
        if verdict is Verdict.DEAD_LETTERED:
            number = len(self.store.letters) + 1
            where = (number, event.key, event.op, event.source, event.position)
            self.store.letters[document] = DeadLetter(*where, FAILED, 1, 0.0, 60.0, None, self.scope.configuration)
        if verdict in {Verdict.WRITTEN, Verdict.UNCHANGED, Verdict.DEAD_LETTERED} and event.signature is not None:
            seen = Seen(event.source, document, event.signature, verdict, self.scope.fingerprint(verdict))
            self.store.stats[document] = seen
        return Outcome(event, verdict)


class Rig:
    """A folder, and sources over it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir()
        self.store = Store()
        self.scope = Scope(self.store)
        self.engine = Engine(self.store, self.scope)

    def source(self, **settings: Any) -> FolderSource:
        """Return a new source and a new engine over what the store holds."""
        quick = {"settle_seconds": 0.15, "path": self.root, "collection": "c"}
        source = Config.model_validate(quick | settings).build("s", self.scope)
        self.engine = Engine(self.store, self.scope)
        self.engine.source = source
        return source

    def once(self, **settings: Any) -> FolderSource:
        """Run a source once, to its end."""
        source = self.source(**settings)
        source.run(self.engine, once=True)
        return source

    @contextmanager
    def running(self, *, nobody: bool = False, **settings: Any) -> Iterator[FolderSource]:
        """Run a source on a thread of its own: ``nobody``, as a user who may read only what all may."""
        source, engine = self.source(**settings), self.engine
        ended: list[BaseException] = []

        def run() -> None:
            if nobody and os.geteuid() == 0:
                ctypes.CDLL(None).setfsuid(65534)  # of this thread alone; it drops the right to read everything
            try:
                source.run(engine, once=False)
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again below, on the test's thread
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            self.until(lambda: bool(ended) or source.status().scans > 0 or not source.checks()[0].ok)
            yield source
        finally:
            engine.stop.set()
            thread.join()
        if ended:
            raise ended[0]

    def hold_up(self) -> Callable[[], None]:
        """Keep the source's thread from going on, as a full pipeline would; return what lets it."""
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go_on.wait()

        def resume() -> None:
            self.engine.on_wait = lambda: None
            go_on.set()

        self.engine.on_wait = hold
        held.wait()
        return resume

    def write(self, name: str, data: str = "text", *, age: float = 0.0) -> Path:
        """Write a file; ``age`` makes its mtime old, but never its ctime."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data)
        if age:
            os.utime(path, (time.time() - age,) * 2)
        return path

    def texts(self) -> dict[str, str]:
        """Return what is written, by the path below the root."""
        return {document.removeprefix("s/"): row.data.decode() for document, row in dict(self.store.rows).items()}

    def tree(self) -> dict[str, str]:
        """Return what is in the folder, by an independent walk."""
        return {str(path.relative_to(self.root)): path.read_text() for path in self.root.rglob("*") if path.is_file()}

    def until(self, condition: Callable[[], object], seconds: float = DEADLINE) -> float:
        """Wait for a condition; return the seconds that it took."""
        begun = time.monotonic()
        pause = threading.Event()
        while not condition():
            waited = time.monotonic() - begun
            assert waited < seconds, f"not so within {seconds} s"
            pause.wait(0.01)
        return time.monotonic() - begun


@pytest.fixture
def rig() -> Iterator[Rig]:
    """An empty folder, where anybody may look: pytest's own temporary directories are closed to other users."""
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        yield Rig(Path(above) / "inbox")
