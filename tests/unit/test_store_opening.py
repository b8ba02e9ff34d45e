"""How the state is opened, locked, set aside, looked at, and how the last run's end is told."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import sqlite3
import stat
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ingestd.errors import ConfigError, FatalError
from ingestd.model import (
    Content,
    DocumentKey,
    Entry,
    Event,
    Failure,
    Fingerprints,
    Op,
    Outcome,
    Record,
    Stage,
    Verdict,
    Version,
)
from ingestd.store import runs
from ingestd.store.lock import StateLock
from ingestd.store.migrations import APPLICATION_ID, MIGRATIONS
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = DocumentKey("articles", "a")
ENTRY = Entry(KEY, "inbox", Version(1, "inbox"), "f", "c", {"0" * 32: b"d" * 16})


def opened(state: Path, wait: float = 0.0) -> SqliteStore:
    """Open the state at the real time."""
    return SqliteStore.open(state, clock=time, wait=wait)


def filled(state: Path) -> None:
    """Leave a state with one entry behind."""
    with opened(state) as store:
        store.begin()
        store.write_ahead([ENTRY])


def rot(path: Path, data: bytes) -> None:
    """Change a file as a disk does that errs: nothing else tells of it."""
    kept = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def unseal(state: Path) -> None:
    """Take a closed file's digest away: what a test changes in it by hand is not to be found out by that."""
    (state / "ingestd.db.seal").unlink()


def test_a_new_state_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Dead letters hold documents: neither the directory nor a file in it is readable for others."""
    state = tmp_path / "deep" / "state"
    with opened(state) as store:
        store.write_ahead([ENTRY])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [state, *state.iterdir()]}
    assert modes == {
        "state": 0o700,
        "ingestd.db": 0o600,
        "ingestd.db-wal": 0o600,
        "ingestd.db-shm": 0o600,
        "ingestd.db.commits": 0o600,
        "lock": 0o600,
    }
    assert sorted(path.name for path in state.iterdir()) == ["ingestd.db", "ingestd.db.seal", "lock"]


def test_what_an_interrupted_first_start_left_is_no_obstacle(tmp_path: Path) -> None:
    """A file that was never finished is made again, and does not count as a damaged state."""
    (tmp_path / "ingestd.db.new").write_bytes(b"half")
    (tmp_path / "ingestd.db.new-journal").write_bytes(b"half")
    with opened(tmp_path) as store:
        assert not store.rebuilt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ingestd.db", "ingestd.db.seal", "lock"]


def overwrite_start(path: Path) -> None:
    """Make it something that is no database."""
    path.write_bytes(b"this is no database at all, however long it is" * 100)


def overwrite_middle(path: Path) -> None:
    """Damage all pages but the first, whose header is sound then."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def cut(path: Path) -> None:
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Lose everything but the name."""
    os.truncate(path, 0)


def lose_database_only(path: Path) -> None:
    """Leave a write-ahead log without its database."""
    path.rename(path.with_name("ingestd.db-wal"))


@pytest.mark.parametrize("damage", [overwrite_start, overwrite_middle, cut, empty, lose_database_only])
def test_a_damaged_state_is_set_aside(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the damage: the file is kept under another name, a new one takes its place, and it is said aloud."""
    filled(tmp_path)
    damage(tmp_path / "ingestd.db")
    with caplog.at_level(logging.ERROR), opened(tmp_path) as store:
        assert store.set_aside is not None
        assert re.fullmatch(r"ingestd\.db\.corrupt-\d{8}T\d{6}Z", store.set_aside.name)
        assert store.rebuilt
        assert store.entries([KEY]) == {}
        store.write_ahead([ENTRY])
    assert "set aside" in caplog.text
    kept = [path.name for path in tmp_path.iterdir() if ".corrupt-" in path.name]
    assert kept
    assert all(name.startswith(store.set_aside.name) for name in kept)
    with opened(tmp_path) as store:
        assert (store.rebuilt, store.entries([KEY])) == (False, {KEY: ENTRY})


def test_a_second_damage_in_the_same_second_overwrites_nothing(tmp_path: Path) -> None:
    """Each damaged file keeps a name of its own."""

    class Still:
        def time(self) -> float:
            return 0.0

        def monotonic(self) -> float:
            return 0.0

    for content in (b"first", b"second"):
        (tmp_path / "ingestd.db").write_bytes(content)
        SqliteStore.open(tmp_path, clock=Still(), wait=0.0).close(clean=True)
    assert (tmp_path / "ingestd.db.corrupt-19700101T000000Z").read_bytes() == b"first"
    assert (tmp_path / "ingestd.db.corrupt-19700101T000000Z-2").read_bytes() == b"second"


def test_a_sound_state_with_an_unread_log_is_not_set_aside(tmp_path: Path) -> None:
    """What a killed process left in its write-ahead log is found at the next start."""
    store = opened(tmp_path / "live")
    store.write_ahead([ENTRY])
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("ingestd.db", "ingestd.db-wal"):
        (copy / name).write_bytes((tmp_path / "live" / name).read_bytes())
    store.close(clean=True)
    with opened(copy) as after:
        assert (after.rebuilt, after.entries([KEY])) == (False, {KEY: ENTRY})


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A program that is too old for the state changes nothing in it and says what to install."""
    filled(tmp_path)
    unseal(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ingestd.db")) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = (tmp_path / "ingestd.db").read_bytes()
    with pytest.raises(ConfigError, match="newer version of ingestd"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match="newer version of ingestd"):
        SqliteStore.read_only(tmp_path, clock=time)
    assert (tmp_path / "ingestd.db").read_bytes() == before


def test_an_older_schema_is_not_looked_at(tmp_path: Path) -> None:
    """A command of a newer version says that the daemon has to take the state to its schema first."""
    filled(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ingestd.db")) as connection:
        connection.execute("PRAGMA user_version = 0")
    with pytest.raises(ConfigError, match="older version"):
        SqliteStore.read_only(tmp_path, clock=time)


def as_of(state: Path, version: int) -> None:
    """Put a state back to what an earlier version of the program would have made of it."""
    now, then = state / "ingestd.db", state / "then.db"
    with closing(sqlite3.connect(then)) as connection:
        for statement in (statement for step in MIGRATIONS[:version] for statement in step):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("ATTACH ? AS now", (str(now),))
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT NULL").fetchall()
        for (table,) in tables:
            if table not in {"holdings", "sqlite_sequence", "confirmations"}:
                columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
                connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM now.{table}")
        connection.commit()
    then.replace(now)
    unseal(state)


def test_a_state_of_the_first_schema_is_counted_at_its_opening(tmp_path: Path) -> None:
    """What was stored before anything kept count is counted once, and from then on as it changes."""
    other = replace(ENTRY, key=DocumentKey("notes", "b"), present={f"{at:032x}": b"d" * 16 for at in range(3)})
    gone = Entry(DocumentKey("articles", "gone"), "inbox", Version(1, "inbox"), "f", "", {}, deleted=True)
    event = Event(DocumentKey("articles", "c"), Op.UPSERT, "cms", "t/0@1", None, signature="s")
    failure = Failure(Stage.EMBED, "TransientError", "429")
    outcomes = [
        Outcome(event, Verdict.RETRYING, failure=failure, wait=1.0),
        Outcome(event, Verdict.DEAD_LETTERED, failure=failure),
        Outcome(replace(event, source="seen"), Verdict.UNCHANGED),
    ]
    with opened(tmp_path) as store:
        store.write_ahead([ENTRY, other, gone])
        for outcome in outcomes[1:] + outcomes[:1]:
            store.settle([outcome], {"articles": Fingerprints("p", "q")})
        before = (store.counts(), store.sources(), store.rows("notes"), store.waiting([("cms", "articles")]))
    assert before[2:] == (3, 1)
    as_of(tmp_path, 1)
    with opened(tmp_path) as store:
        after = (store.counts(), store.sources(), store.rows("notes"), store.waiting([("cms", "articles")]))
        assert after == before
        store.write_ahead([replace(other, source="cms", present={})])
        assert (store.rows("notes"), store.counts()["cms"].documents) == (0, 1)


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_a_state_of_before_records_goes_on(tmp_path: Path, version: int) -> None:
    """Of any earlier schema: what was written, parked or dead-lettered knew no lease and no record, and says so."""
    event = Event(DocumentKey("articles", "c"), Op.UPSERT, "inbox", "/n\udcff", None)
    failure = Failure(Stage.EMBED, "TransientError", "429")
    fingerprints = {"articles": Fingerprints("p", "q")}
    with opened(tmp_path) as store:
        store.write_ahead([ENTRY])
        store.settle([Outcome(event, Verdict.RETRYING, failure=failure, wait=0.0)], fingerprints)
        store.settle([Outcome(event, Verdict.DEAD_LETTERED, content=Content(b"x", "n"), failure=failure)], fingerprints)
        store.settle([Outcome(event, Verdict.RETRYING, failure=failure, wait=0.0)], fingerprints)
        before = (store.entries([KEY]), store.parked(), list(store.dead_letters()), store.counts())
    as_of(tmp_path, version)
    record = Record("t", 0, 7, 0, b"k", b"v")
    with opened(tmp_path) as store:
        assert (store.entries([KEY]), store.parked(), list(store.dead_letters()), store.counts()) == before
        assert store.withdraw("inbox", None) == []
        store.write_ahead([replace(ENTRY, tenure="lease")])
        assert store.entries([KEY])[KEY].tenure == "lease"
        late = replace(event, source="cms", position=record.position, record=record)
        store.settle([Outcome(late, Verdict.RETRYING, failure=failure, wait=0.0)], fingerprints)
        store.settle([Outcome(replace(late, position="t/0@8"), Verdict.DEAD_LETTERED, failure=failure)], fingerprints)
        assert [store.whole(parked).record for parked in store.due(time.time() + 1, 9)] == [None, record]
        assert [letter.record for letter in store.dead_letters()] == [None, record]
    with closing(sqlite3.connect(tmp_path / "ingestd.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_byte_that_differs_in_a_closed_file_is_damage(tmp_path: Path) -> None:
    """Wherever it is, also within a value, which SQLite's own check does not see; and the same file is sound."""
    filled(tmp_path / "state")
    sound = (tmp_path / "state" / "ingestd.db").read_bytes()
    places = [*range(0, 120, 7), *random.Random(1).sample(range(len(sound)), 30), sound.index(b"inbox")]
    for place in places:
        state = tmp_path / str(place)
        shutil.copytree(tmp_path / "state", state)
        damaged = bytearray(sound)
        damaged[place] ^= 1
        rot(state / "ingestd.db", bytes(damaged))
        with opened(state) as store:
            assert store.rebuilt, f"nobody saw the byte {place}"
            assert store.entries([KEY]) == {}
        with opened(state) as store:
            assert not store.rebuilt, "the new file is sound"
    with opened(tmp_path / "state") as store:
        assert not store.rebuilt
        assert store.entries([KEY]) == {KEY: ENTRY}


@pytest.mark.parametrize("tells", [True, False])
def test_a_closed_file_that_lost_its_last_bytes_is_damage(tmp_path: Path, *, tells: bool) -> None:
    """SQLite reads zeros in their place; whether or not the file's time says that it was changed."""
    filled(tmp_path)
    database = tmp_path / "ingestd.db"
    if tells:
        os.truncate(database, database.stat().st_size - 25)
    else:
        rot(database, database.read_bytes()[:-4096])
    with opened(tmp_path) as store:
        assert store.rebuilt


def test_a_file_that_somebody_wrote_to_is_looked_at_and_kept(tmp_path: Path) -> None:
    """By hand, or as a backup that was put back: the digest says nothing of it, and a sound file is no damage."""
    filled(tmp_path / "state")
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    with closing(sqlite3.connect(tmp_path / "state" / "ingestd.db")) as connection:
        connection.execute("INSERT INTO meta VALUES ('note', 'by hand')")
        connection.commit()
    with opened(tmp_path / "state") as store:
        assert not store.rebuilt
        store.write_ahead([replace(ENTRY, content="other")])
    shutil.copyfile(tmp_path / "backup" / "ingestd.db", tmp_path / "state" / "ingestd.db")
    with opened(tmp_path / "state") as store:
        assert not store.rebuilt
        assert store.entries([KEY]) == {KEY: ENTRY}
    (tmp_path / "state" / "ingestd.db.seal").write_bytes(b"\0" * 64)  # a power cut before it was on disk
    with opened(tmp_path / "state") as store:
        assert not store.rebuilt


def killed(tmp_path: Path, changes: int) -> Path:
    """Return the state of a run that was killed after so many changes, each of them acknowledged."""
    with opened(tmp_path / "running") as store:
        store.begin()
        for number in range(changes):
            store.write_ahead([replace(ENTRY, content=str(number))])
        shutil.copytree(tmp_path / "running", tmp_path / "killed")
    return tmp_path / "killed"


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_a_log_that_lost_its_end_is_damage(tmp_path: Path, kept: float) -> None:
    """To SQLite it is a shorter log, and what was acknowledged is gone without a word."""
    state = killed(tmp_path, 20)
    log = state / "ingestd.db-wal"
    os.truncate(log, int(log.stat().st_size * kept))
    with opened(state) as store:
        assert store.rebuilt
    with opened(state) as store:
        assert not store.rebuilt
    (kind,) = tmp_path.glob("killed/ingestd.db.corrupt-*.commits")
    assert kind.exists()


def test_a_log_with_a_frame_that_differs_is_damage(tmp_path: Path) -> None:
    """SQLite believes what is before it, and nothing after."""
    state = killed(tmp_path, 20)
    log = state / "ingestd.db-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    rot(log, bytes(data))
    with opened(state) as store:
        assert store.rebuilt


@pytest.mark.parametrize("killed_again", [False, True])
def test_a_backup_that_is_put_back_after_a_kill_is_kept(tmp_path: Path, *, killed_again: bool) -> None:
    """It has fewer transactions than the one that was killed had, and is of another session: nothing of it is lost."""
    filled(tmp_path / "running")
    shutil.copytree(tmp_path / "running", tmp_path / "backup")
    state = killed(tmp_path, 20)
    for suffix in ("-wal", "-shm"):
        (state / f"ingestd.db{suffix}").unlink()
    shutil.copyfile(tmp_path / "backup" / "ingestd.db", state / "ingestd.db")
    if killed_again:  # once more, before anything is written
        with opened(state) as store:
            assert not store.rebuilt
            shutil.copytree(state, tmp_path / "again")
        state = tmp_path / "again"
    with opened(state) as store:
        assert not store.rebuilt
        assert store.entries([KEY]) == {KEY: ENTRY}


def test_a_page_that_a_checkpoint_wrote_in_part_is_in_the_log(tmp_path: Path) -> None:
    """A disk that was full for a moment, and a kill: SQLite takes the page from its log."""
    state = killed(tmp_path, 20)
    with (state / "ingestd.db").open("ab") as database:
        database.write(b"\0" * 100)
    with opened(state) as store:
        assert not store.rebuilt
        assert store.entries([KEY])[KEY].content == "19"


@pytest.mark.parametrize("mark", [b"", b"nonsense", b"0" * 20 + b" 0123456789abcdef 00000000\n", None])
def test_a_log_that_is_ahead_of_its_mark_is_sound(tmp_path: Path, mark: bytes | None) -> None:
    """The mark is not synced: after a power cut it may be an older one, or none, or none that can be read."""
    state = killed(tmp_path, 20)
    if mark is None:
        (state / "ingestd.db.commits").unlink()
    else:
        (state / "ingestd.db.commits").write_bytes(mark)
    with opened(state) as store:
        assert not store.rebuilt
        assert store.entries([KEY])[KEY].content == "19"
        store.write_ahead([ENTRY])
    shutil.copytree(tmp_path / "killed", tmp_path / "again")
    with opened(tmp_path / "again") as store:
        assert not store.rebuilt


def test_a_disk_that_takes_no_mark_stops_nothing(tmp_path: Path) -> None:
    """A change that is in the log is acknowledged; it is only less guarded."""
    with opened(tmp_path) as store:
        (tmp_path / "ingestd.db.commits").mkdir()
        store.write_ahead([ENTRY])
        assert store.entries([KEY]) == {KEY: ENTRY}
    (tmp_path / "ingestd.db.commits").rmdir()
    with opened(tmp_path) as store:
        assert not store.rebuilt


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE meta SET value = '{\"boot\": ' WHERE key = 'run'",
        "UPDATE meta SET value = '{\"boots\": 1}' WHERE key = 'run'",
        "UPDATE seens SET verdict = 'wriften'",
        "UPDATE seens SET fingerprint = CAST(x'ff' AS TEXT)",
        "UPDATE entries SET present = x'00'",
        "UPDATE parked SET op = 'upserd'",
        "UPDATE dead_letters SET metadata = '{'",
        "UPDATE dead_letters SET record = x'00'",
    ],
)
def test_what_cannot_be_read_after_a_kill_is_damage(tmp_path: Path, damage: str) -> None:
    """A file that was not closed has no digest: what each run would end at is found when it is opened."""
    event = Event(DocumentKey("articles", "c"), Op.UPSERT, "inbox", "/n", None, signature="s")
    failure = Failure(Stage.EMBED, "TransientError", "429")
    with opened(tmp_path) as store:
        store.begin()
        fingerprints = {"articles": Fingerprints("p", "q")}
        store.settle([Outcome(event, Verdict.WRITTEN, ENTRY)], fingerprints)
        store.settle([Outcome(event, Verdict.DEAD_LETTERED, content=Content(b"x", "n"), failure=failure)], fingerprints)
        late = replace(event, position="/late")
        store.settle([Outcome(late, Verdict.RETRYING, failure=failure, wait=0.0)], fingerprints)
    unseal(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ingestd.db")) as connection:
        assert connection.execute(damage).rowcount
        connection.commit()
    with opened(tmp_path) as store:
        assert store.rebuilt
        assert store.begin() is None


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    """A sound database that is not ours is neither set aside nor written to."""
    with closing(sqlite3.connect(tmp_path / "ingestd.db")) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(ConfigError, match="another program"):
        opened(tmp_path)
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path) -> None:
    """A state_dir that is no directory is a fault of the configuration, with its cure."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigError, match=r"state_dir: .*directory"):
        opened(tmp_path / "state")


def test_a_directory_where_the_database_should_be_is_refused(tmp_path: Path) -> None:
    """What cannot be opened for another reason than damage is left where it is."""
    (tmp_path / "ingestd.db").mkdir()
    (tmp_path / "ingestd.db" / "something").touch()
    with pytest.raises(ConfigError, match="state_dir: "):
        opened(tmp_path)
    assert (tmp_path / "ingestd.db" / "something").exists()


# The lock


def test_a_second_instance_is_refused_by_the_first_ones_number(tmp_path: Path) -> None:
    """The second to open a state is told which process has it, and the first goes on unharmed."""
    with opened(tmp_path) as first:
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            opened(tmp_path)
        first.write_ahead([ENTRY])
    with opened(tmp_path) as store:
        assert store.entries([KEY]) == {KEY: ENTRY}


def test_a_successor_waits_for_its_predecessor(tmp_path: Path) -> None:
    """Opening waits for a lock that is let go within the time it was given."""
    first = opened(tmp_path)
    started = threading.Event()

    def succeed() -> None:
        started.set()
        opened(tmp_path, wait=30.0).close(clean=True)

    successor = threading.Thread(target=succeed)
    successor.start()
    assert started.wait(10)
    first.close(clean=True)
    successor.join(20)
    assert not successor.is_alive()


def test_a_failed_opening_lets_go_of_the_lock(tmp_path: Path) -> None:
    """After a refusal the state can be opened once its cause is gone, by the same process."""
    with closing(sqlite3.connect(tmp_path / "ingestd.db")) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(ConfigError):
        opened(tmp_path)
    (tmp_path / "ingestd.db").unlink()
    opened(tmp_path).close(clean=True)


def test_a_holder_that_has_not_said_its_number_yet(tmp_path: Path) -> None:
    """Between the lock and its note the refusal names no process, and still refuses."""
    lock = StateLock(tmp_path, 0.0)
    (tmp_path / "lock").write_text("")
    with pytest.raises(ConfigError, match="in use by another process"):
        StateLock(tmp_path, 0.0)
    lock.release()
    lock.release()
    StateLock(tmp_path, 0.0).release()


# Looking without changing


def test_looking_while_a_daemon_runs(tmp_path: Path) -> None:
    """A command sees what the daemon has stored, takes no lock, and cannot change anything."""
    with opened(tmp_path) as daemon, SqliteStore.read_only(tmp_path, clock=time) as command:
        daemon.write_ahead([ENTRY])
        assert command.entries([KEY]) == {KEY: ENTRY}
        for change in (
            lambda: command.write_ahead([ENTRY]),
            lambda: command.discard([1]),
            command.begin,
            command.probe,
        ):
            with pytest.raises(FatalError, match="looked at"):
                change()
        assert command.failing is None


def test_looking_where_no_daemon_runs(tmp_path: Path) -> None:
    """A command reads the state that a daemon left, and the directory is as it was afterwards."""
    filled(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with SqliteStore.read_only(tmp_path, clock=time) as command:
        assert command.entries([KEY]) == {KEY: ENTRY}
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_looking_at_nothing(tmp_path: Path) -> None:
    """Where there is no state, or a damaged one, a command says so and makes none."""
    with pytest.raises(ConfigError, match="no state in"):
        SqliteStore.read_only(tmp_path, clock=time)
    assert list(tmp_path.iterdir()) == []
    overwrite_start(tmp_path / "ingestd.db")
    with pytest.raises(ConfigError, match="damaged"):
        SqliteStore.read_only(tmp_path, clock=time)


def test_a_slow_reader_does_not_make_the_log_grow(tmp_path: Path) -> None:
    """Whoever stops in the middle of a stream holds no snapshot: the write-ahead log is emptied behind them."""
    with opened(tmp_path) as store:
        entries = [replace(ENTRY, key=DocumentKey("articles", str(at))) for at in range(1_500)]
        store.write_ahead(entries)
        streams = [store.collection_entries("articles"), store.documents("inbox")]
        for stream in streams:
            next(stream)
        for turn in range(15):  # 1.9 MB each, and each another: pages that stay the same are not written
            present = {f"{at:032x}": bytes([turn]) * 16 for at in range(60_000)}
            store.write_ahead([replace(ENTRY, present=present)])
        assert (tmp_path / "ingestd.db-wal").stat().st_size < 12_000_000
        assert [len(list(stream)) for stream in streams] == [1_500, 1_500]  # one was read, one was added


# How the last run ended


def test_the_end_of_a_run_is_remembered(tmp_path: Path) -> None:
    """A first run doubts nothing, one after a clean end neither, and one after an unclean end does until verified."""
    with opened(tmp_path) as store:
        assert store.begin() is None
    with opened(tmp_path) as store:
        assert store.begin() is None
        store.close(clean=False)
    crashed = runs.Unclean(crashed=True, rebooted=False, unverified=False)
    with opened(tmp_path) as store:
        assert store.begin() == crashed
    with opened(tmp_path) as store:
        assert store.begin() == runs.Unclean(crashed=False, rebooted=False, unverified=True)
        store.verified()
    with opened(tmp_path) as store:
        assert store.begin() is None


def test_a_command_in_between_hides_no_unclean_end(tmp_path: Path) -> None:
    """A command that borrows the state after a crash leaves the doubt for the next run of the daemon."""
    store = opened(tmp_path)
    store.begin()
    store.close(clean=False)
    with opened(tmp_path) as command:
        command.discard([1])
    with opened(tmp_path) as store:
        assert store.begin() is not None


def test_an_error_on_the_way_out_is_no_clean_end(tmp_path: Path) -> None:
    """A run that ends in an exception counts as one that ended uncleanly."""

    def run() -> None:
        with opened(tmp_path) as store:
            store.begin()
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run()
    with opened(tmp_path) as store:
        assert store.begin() is not None


@pytest.mark.parametrize(
    ("boots", "doubts"), [(("a", "a"), False), (("a", "b"), True), (("a", None), True), ((None, None), True)]
)
def test_another_boot_is_in_doubt(boots: tuple[str | None, str | None], doubts: bool) -> None:  # noqa: FBT001 - a table's column
    """A clean end before the machine was started again, or where that is not known, is still doubted."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        runs.begin(connection, boot=boots[0], pid=1, now=0.0)
        runs.end(connection)
        unclean = runs.begin(connection, boot=boots[1], pid=2, now=1.0)
    assert (unclean is not None and unclean.rebooted) == doubts


def test_another_boot_is_in_doubt_until_that_is_verified() -> None:
    """However many starts end before: each of them is on the same boot as the one that was left."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        runs.begin(connection, boot="a", pid=1, now=0.0)
        for clean in (False, True, False):
            unclean = runs.begin(connection, boot="b", pid=2, now=1.0)
            assert unclean is not None
            assert unclean.rebooted
            if clean:
                runs.end(connection)
        runs.verified(connection)
        assert runs.begin(connection, boot="b", pid=3, now=2.0) == runs.Unclean(
            crashed=True, rebooted=False, unverified=False
        )


def test_this_boot_has_a_name() -> None:
    """The kernel tells one start of the machine from another."""
    assert runs.boot_id() == runs.boot_id() is not None
