"""The writer thread's group commit, and the pool of readers."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import pytest

from ingestd.errors import ConfigError, FatalError, UnavailableError
from ingestd.store.connections import Readers, is_damage, is_outage, verdict, verdict_at_start
from ingestd.store.opening import DATABASE, prepare
from ingestd.store.text import clip, clip_start, from_column, to_column
from ingestd.store.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a fresh database."""
    prepare(tmp_path / DATABASE, 0.0)
    return tmp_path / DATABASE


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    """Return a writer on it."""
    writer = Writer(path)
    yield writer
    writer.stop()


def note(key: str) -> Callable[[sqlite3.Connection], str]:
    """Return a change that adds a key."""

    def change(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO meta VALUES (?, '')", (key,))
        return key

    return change


def keys(path: Path) -> list[str]:
    """Return the keys that another process would see."""
    readers = Readers(path)
    with readers.lease() as connection:
        query = "SELECT key FROM meta WHERE key NOT IN ('commits', 'session') ORDER BY key"  # the writer's own
        found = [key for (key,) in connection.execute(query).fetchall()]
    readers.close()
    return found


class Hold:
    """A change that keeps the writer busy until it is let go, so that others gather behind it."""

    def __init__(self, writer: Writer) -> None:
        self._entered = threading.Event()
        self._go = threading.Event()
        self.future = writer.submit(self)
        assert self._entered.wait(10)

    def __call__(self, _: sqlite3.Connection) -> None:
        """Wait on the writer's thread."""
        self._entered.set()
        assert self._go.wait(10)

    def release(self) -> None:
        """Let the writer go on."""
        self._go.set()


def test_what_waits_is_committed_together(writer: Writer, path: Path) -> None:
    """Changes that gather during a commit share the next one, in their order, and each gets its own answer."""
    hold = Hold(writer)
    commits: list[str] = []
    futures = [writer.submit(note(f"k{at}")) for at in range(5)]

    def trace(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(commits.append)

    writer.submit(trace)
    hold.release()
    assert [future.result(10) for future in futures] == ["k0", "k1", "k2", "k3", "k4"]
    writer.submit(lambda _: None).result(10)
    assert keys(path) == ["k0", "k1", "k2", "k3", "k4"]
    assert [statement.partition(" ")[0] for statement in commits[:4]] == ["RELEASE", "SELECT", "REPLACE", "COMMIT"]


def test_a_transaction_is_bounded(writer: Writer) -> None:
    """Heavy changes do not pile up in one transaction: those beyond its weight go into the next one."""
    hold = Hold(writer)
    statements: list[str] = []
    writer.submit(lambda connection: connection.set_trace_callback(statements.append))
    futures = [writer.submit(note(f"k{at}"), weight=1_000) for at in range(4)]
    hold.release()
    for future in futures:
        future.result(10)
    writer.submit(lambda connection: connection.set_trace_callback(None)).result(10)
    assert statements.count("COMMIT") == 2


def test_a_refused_change_takes_nothing_with_it(writer: Writer, path: Path) -> None:
    """In a group, the change that raises is undone and answered with its error; the others are stored."""

    def half(connection: sqlite3.Connection) -> None:
        note("half")(connection)
        raise LookupError("on purpose")

    hold = Hold(writer)
    futures: list[Future[str] | Future[None]] = [
        writer.submit(note("a")),
        writer.submit(half),
        writer.submit(note("a")),
    ]
    last = writer.submit(note("b"))
    hold.release()
    assert last.result(10) == "b"
    assert futures[0].result(10) == "a"
    with pytest.raises(LookupError, match="on purpose"):
        futures[1].result(10)
    with pytest.raises(sqlite3.IntegrityError):  # the key is there already
        futures[2].result(10)
    assert keys(path) == ["a", "b"]
    assert writer.failing is None


def full(_: sqlite3.Connection) -> None:
    """Fail as SQLite does on a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def test_an_outage_fails_the_group_and_passes(writer: Writer, path: Path) -> None:
    """When the disk gives out nothing of the group is stored, each waiter gets its own error, and later ones pass."""
    hold = Hold(writer)
    futures: list[Future[str] | Future[None]] = [
        writer.submit(note("a")),
        writer.submit(full),
        writer.submit(note("b")),
    ]
    hold.release()
    errors = []
    for future in futures:
        error = future.exception(10)
        assert isinstance(error, UnavailableError)
        assert error.dependency == "state"
        errors.append(error)
    assert len({id(error) for error in errors}) == 3
    assert keys(path) == []
    assert writer.failing == "database or disk is full"
    assert writer.submit(note("a")).result(10) == "a"
    assert writer.failing is None


def test_too_many_waiting_changes_hold_their_bringers(writer: Writer) -> None:
    """Memory is bounded: who brings a change beyond the limit waits until there is room."""
    hold = Hold(writer)
    brought = []

    def bring() -> None:
        for at in range(300):
            writer.submit(lambda _: None)
            brought.append(at)

    bringer = threading.Thread(target=bring)
    bringer.start()
    deadline = time.monotonic() + 10
    while len(brought) < 256 and time.monotonic() < deadline:
        bringer.join(0.01)
    bringer.join(0.1)  # it would go on here, did nothing hold it
    assert (len(brought), bringer.is_alive()) == (256, True)
    hold.release()
    bringer.join(10)
    assert len(brought) == 300


def test_stopping_runs_what_was_handed_in(path: Path) -> None:
    """What waits at the end is stored; what comes after it is refused aloud."""
    writer = Writer(path)
    hold = Hold(writer)
    futures = [writer.submit(note(f"k{at}")) for at in range(3)]
    hold.release()
    writer.stop()
    writer.stop()
    assert [future.result(0) for future in futures] == ["k0", "k1", "k2"]
    with pytest.raises(FatalError, match="closed"):
        writer.submit(note("late"))


def test_a_change_that_waits_for_another_is_refused(writer: Writer) -> None:
    """The writer's thread cannot wait for itself: that would be for ever."""
    future = writer.submit(lambda _: writer.submit(note("inner")))
    assert isinstance(future.exception(10), FatalError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_writer_is_not_silent(path: Path) -> None:
    """If the thread ends by a fault, everyone who waits or comes later is told."""
    writer = Writer(path)
    hold = Hold(writer)

    def fault(_: sqlite3.Connection) -> None:
        raise SystemExit("a fault")

    futures: list[Future[None]] = [writer.submit(fault), writer.submit(lambda _: None)]
    hold.release()
    for future in futures:
        assert isinstance(future.exception(10), FatalError)
    with pytest.raises(FatalError):
        writer.submit(note("late"))
    writer.stop()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_state_that_is_taken_away_is_noticed(writer: Writer, path: Path, replaced: bool) -> None:  # noqa: FBT001 - a table's column
    """Writing on into a file that was deleted, or replaced by a copy, would lose all of it at the end."""
    content = path.read_bytes()
    path.unlink()
    if replaced:
        path.write_bytes(content)
    for _ in range(2):  # and it stays so
        with pytest.raises(FatalError, match="replaced" if replaced else "gone"):
            writer.submit(note("a")).result(10)


# Readers


def test_readers_are_bounded_and_shared(path: Path) -> None:
    """However many threads read, no more connections are open than allowed, and a thread's end leaks none."""
    readers = Readers(path, limit=2)
    used: set[int] = set()
    together: list[int] = []
    inside = threading.Semaphore(0)
    lock = threading.Lock()
    active = 0

    def read() -> None:
        nonlocal active
        with readers.lease() as connection:
            with lock:
                active += 1
                used.add(id(connection))
                together.append(active)
            connection.execute("SELECT * FROM meta").fetchall()
            with lock:
                active -= 1
        inside.release()

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert max(together) <= 2
    assert len(used) <= 2
    readers.close()
    with pytest.raises(FatalError, match="closed"), readers.lease():
        pass


def test_a_reader_that_fails_is_not_used_again(path: Path) -> None:
    """A connection on which a read failed is closed, its slot is free, and the error is one of ours."""
    readers = Readers(path, limit=1)
    with pytest.raises(FatalError, match="fault of the program"), readers.lease() as connection:
        connection.execute("SELECT nonsense FROM nowhere")
    with pytest.raises(UnavailableError), readers.lease() as connection:
        full(connection)
    with pytest.raises(UnavailableError, match="readonly"), readers.lease() as connection:
        connection.execute("DELETE FROM meta")
    with readers.lease() as connection:
        assert connection.execute("SELECT COUNT(*) FROM meta").fetchone() == (0,)
        readers.close()  # it is lent now: it closes when it comes back
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


# Verdicts and texts


@pytest.mark.parametrize(
    ("code", "outage", "damage"),
    [
        (sqlite3.SQLITE_FULL, True, False),
        (sqlite3.SQLITE_IOERR_FSYNC, True, False),
        (sqlite3.SQLITE_READONLY_DBMOVED, True, False),
        (sqlite3.SQLITE_CANTOPEN, True, False),
        (sqlite3.SQLITE_CORRUPT_INDEX, False, True),
        (sqlite3.SQLITE_NOTADB, False, True),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, False, False),
    ],
)
def test_the_verdict_on_an_error_of_sqlite(path: Path, code: int, outage: bool, damage: bool) -> None:  # noqa: FBT001 - a table's columns
    """The disk's errors are outages while the daemon runs and the set-up's at its start; the rest is fatal."""
    error = sqlite3.DatabaseError("text")
    error.sqlite_errorcode = code
    assert (is_outage(error), is_damage(error)) == (outage, damage)
    assert isinstance(verdict(error, path), UnavailableError if outage else FatalError)
    assert isinstance(verdict_at_start(error, path), ConfigError)
    assert str(path) in str(verdict(error, path))


@pytest.mark.parametrize("text", ["", "plain", "naïve 文 🙂", "nul\x00inside", "lone \udcff \ud800 surrogates"])
def test_any_text_survives_a_column(path: Path, text: str) -> None:
    """What a column is given comes back equal, also what UTF-8 cannot say, and is found again by equality."""
    writer = Writer(path)
    writer.submit(lambda connection: connection.execute("INSERT INTO meta VALUES (?, '')", (to_column(text),)).rowcount)
    writer.stop()
    readers = Readers(path)
    with readers.lease() as connection:
        ((value,),) = connection.execute("SELECT key FROM meta WHERE key = ?", (to_column(text),)).fetchall()
    readers.close()
    assert from_column(value) == text


def test_clipping_keeps_the_end_that_matters() -> None:
    """A message keeps its start and a traceback its end, never longer than the limit; a short text is untouched."""
    assert clip("short", 5) == clip_start("short", 5) == "short"
    assert clip("m" * 50 + "end", 30) == "m" * 18 + " … (clipped)"
    assert clip_start("start" + "t" * 50, 30) == "(clipped) … " + "t" * 18
