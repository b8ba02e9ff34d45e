"""The daemon's own state: its disk full, failing and read-only, its file damaged, and ledgers that are not true.

Most places of a damaged file are checked in this process, against the rows that Milvus holds: whatever the next start
makes of the file, each row has to be known as its document's afterwards, and each row that is relied on has to be
there. Then no edit can leave a row behind, and none is embedded twice. Some of the places are shown to whole daemons.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.campaigns.faults.ground import RECOVERY, Figures, Ground, Report, Scene, Wish, ground
from tests.fixtures.daemon import COLLECTION, wait_for
from tests.fixtures.lite_server import LiteServer

from ingestd.engine.reconcile import reconcile
from ingestd.milvus.client import import_pymilvus
from ingestd.milvus.lite import Lite
from ingestd.milvus.schema import PROPERTY_ID
from ingestd.model import Entry, StoredRow, Version
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

PLACES = 200
DATABASE = "ingestd.db"
CLOCK: Any = time
"""Has the two functions that a clock has."""

WITHOUT = {
    # A ledger is believed, however the last run ended and however many rows there are.
    "verification": """\
from ingestd import flow
from ingestd.engine.reconcile import Reconciled, reconcile as true

def reconcile(ledger, sink, identity, **rest):
    return Reconciled() if ledger.binding(sink.collection) == identity else true(ledger, sink, identity, **rest)
flow.reconcile
flow.reconcile = reconcile
""",
}
TEETH = {"verification": "ledgers"}


# Damage


@dataclass(frozen=True, slots=True)
class _Base:
    """A state that a run left, and what it says."""

    name: str
    folder: Path
    said: Any = field(repr=False)

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.folder / DATABASE, self.folder / f"{DATABASE}-wal") if path.exists()]


class _Rows:
    """What Milvus holds, as far as bringing the ledger together with it asks (``ports.Sink``)."""

    collection = COLLECTION

    def __init__(self, rows: Sequence[StoredRow]) -> None:
        self._rows = sorted(rows, key=lambda row: row.id)
        self.ids = frozenset(row.id for row in rows)

    def count(self) -> int:
        return len(self._rows)

    def existing(self, ids: Sequence[str]) -> frozenset[str]:
        return self.ids & frozenset(ids)

    def stored(self) -> Iterator[StoredRow]:
        return iter(self._rows)


def damaged(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Bytes flipped, and the file and its log cut, at 200 places: as before, or set aside and rebuilt, never wrong."""
    with ground(wish, folder, draw) as place:
        bases, rows, identity = _bases(place)
        said = logging.getLogger("ingestd.store.sqlite")
        place.stack.callback(said.setLevel, said.level)
        said.setLevel(logging.CRITICAL)  # it says a hundred times what is wanted
        places = wish.count(PLACES, least=24)
        seen = {"as before": 0, "rebuilt": 0}
        shown: dict[str, _Damage] = {}
        for number in range(places):
            damage = _Damage.drawn(bases[number % len(bases)], draw)
            target = folder / "damaged"
            damage.make(target)
            how = _next_start(target, damage, rows, identity)
            seen[how] += 1
            shown.setdefault(f"{how}, {damage.base.name}", damage)
            place.faults += 1
            shutil.rmtree(target)
        report("damaged", places=places, **seen)
        kinds = list(shown.items())[: wish.count(4)]
        pristine = place.workplace.root / "pristine"
        shutil.copytree(place.workplace.milvus, pristine)
        for what, damage in kinds:
            shutil.rmtree(place.workplace.milvus)
            shutil.copytree(pristine, place.workplace.milvus)
            shutil.rmtree(place.workplace.state)
            damage.make(place.workplace.state)
            place.start()
            took = place.until_whole(time.monotonic(), 2 * RECOVERY)
            embedded = place.daemon.totals["chunks_embedded"]
            report("a daemon", what=what, damage=str(damage), embedded=embedded, seconds=round(took, 1))
            assert embedded == 0, f"{damage}: {embedded} chunks were embedded again that Milvus has"
            if (what, damage) == kinds[-1]:
                place.documents.again(8)
                place.work(6)
                place.until_whole(time.monotonic())
            place.stop()
        note = ", ".join(f"{count} {how}" for how, count in seen.items())
        return place.finish(faults=places, events=80, note=f"{note}; {len(kinds)} shown to daemons")


@dataclass(frozen=True, slots=True)
class _Damage:
    base: _Base
    file: str
    at: int
    bits: int
    """What is flipped of the byte; 0: the file is cut there."""

    @staticmethod
    def drawn(base: _Base, draw: random.Random) -> _Damage:
        file = draw.choice(base.files)
        at = draw.randrange(file.stat().st_size)
        return _Damage(base, file.name, at, draw.randint(1, 255) if draw.random() < 0.7 else 0)

    def make(self, target: Path) -> None:
        """Copy the state, and damage the copy."""
        shutil.copytree(self.base.folder, target)
        path = target / self.file
        data = bytearray(path.read_bytes())
        if self.bits:
            data[self.at] ^= self.bits
        else:
            del data[self.at :]
        kept = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # a disk that errs does not say so


def _bases(place: Ground) -> tuple[list[_Base], _Rows, str]:
    """Have a run that ends, and one that is killed, over the same documents; return what each left."""
    workplace, root = place.workplace, place.workplace.root
    place.work(60)
    place.start()
    place.until_whole(time.monotonic(), 60)
    place.work(20)
    place.until_whole(time.monotonic())
    place.recoveries.clear()
    uri = json.loads((workplace.state / "milvus.json").read_text())["uri"]
    rows, identity = _read(uri)
    place.kill()
    workplace.until_gone()
    _copy(workplace.state, root / "killed")
    with SqliteStore.open(workplace.state, clock=CLOCK, wait=20.0) as store:
        store.begin()
        said = _content(store)
    _copy(workplace.state, root / "closed")
    bases = [_Base(name, root / name, said) for name in ("closed", "killed")]
    assert [len(base.files) for base in bases] == [1, 2], "a log, of the one that was killed alone"
    return bases, rows, identity


def _copy(state: Path, target: Path) -> None:
    """Copy a state, without what a daemon has there beside it."""
    shutil.copytree(state, target, ignore=lambda _, names: [name for name in names if not name.startswith(DATABASE)])


def _read(uri: str) -> tuple[_Rows, str]:
    import_pymilvus()
    from pymilvus import MilvusClient  # noqa: PLC0415 - it may be imported only after its noise is turned off

    client = MilvusClient(uri=uri, timeout=60)
    try:
        fields = ["id", "document_id", "version", "domain", "source"]
        found = client.query(COLLECTION, 'id >= ""', fields, limit=10_000, consistency_level="Strong", timeout=60)
        properties = client.describe_collection(COLLECTION, timeout=60)["properties"]
    finally:
        client.close()
    rows = [
        StoredRow(row["id"], row["document_id"], Version(row["version"], row["domain"]), row["source"]) for row in found
    ]
    return _Rows(rows), str(properties[PROPERTY_ID])


def _content(store: SqliteStore) -> Any:
    """Return all that a state says, but for how its last run ended."""
    return (
        sorted(store.collection_entries(COLLECTION), key=lambda entry: entry.key.document_id),
        sorted(store.seen("inbox"), key=lambda seen: seen.document_id),
        [*store.parked()],
        [*store.dead_letters()],
        store.binding(COLLECTION),
        store.rows(COLLECTION),
    )


def _next_start(target: Path, damage: _Damage, rows: _Rows, identity: str) -> str:
    """Do what a start does with a state; return what became of it.

    Raises:
        AssertionError: It may lead to wrong rows.
    """
    with SqliteStore.open(target, clock=CLOCK, wait=20.0) as store:
        unclean = store.begin()
        set_aside = store.rebuilt
        before = None if set_aside else _content(store)
        sink: Any = rows
        found = reconcile(store, sink, identity, unclean=unclean is not None)
        entries: Mapping[str, Entry] = {entry.key.document_id: entry for entry in store.collection_entries(COLLECTION)}
        for row in rows.stored():
            own = entries.get(row.document_id)
            known = own is not None and (row.id in own.present or row.id in own.doubtful)
            assert known, f"{damage}: nobody knows the row {row.id} of {row.document_id}"
        relied = {key for entry in entries.values() for key in entry.present}
        assert relied <= rows.ids, f"{damage}: {len(relied - rows.ids)} rows are relied on that are not there"
        if not set_aside and not found.rebuilt:
            assert before == damage.base.said, f"{damage}: it says something else, and nobody noticed"
            return "as before"
    with SqliteStore.open(target, clock=CLOCK, wait=20.0) as again:
        assert not again.rebuilt, f"{damage}: set aside once more"
    return "rebuilt"


# Ledgers that are not true


def ledgers(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The collection dropped, older or removed under its ledger; an older ledger, and one of another machine."""
    with ground(wish, folder, draw) as place, ground(wish, folder / "other", draw) as other:
        for where in (place, other):
            where.work(40)
            where.start()
            where.until_whole(time.monotonic(), 60)
            where.recoveries.clear()
            where.stop()
        workplace = place.workplace
        older = {kept: workplace.root / f"older-{kept.name}" for kept in (workplace.state, workplace.milvus)}
        for kept, copy in older.items():
            shutil.copytree(kept, copy)
        _life(place, 30)

        def put_back(kept: Path, source: Path) -> None:
            shutil.rmtree(kept)
            shutil.copytree(source, kept)

        steps: dict[str, Callable[[], object]] = {
            "an older ledger": lambda: put_back(workplace.state, older[workplace.state]),
            "an older collection": lambda: put_back(workplace.milvus, older[workplace.milvus]),
            "a collection that was dropped": lambda: _drop(place),
            "no collection at all": lambda: shutil.rmtree(workplace.milvus),
            "another machine's ledger": lambda: put_back(workplace.state, other.workplace.state),
        }
        for what, step in steps.items():
            # Of a document whose file is bad now nothing but the collection has the version that was good.
            for document in sorted(place.documents.dead):
                place.documents.edit(document.removeprefix("inbox/"))
            step()
            since = time.monotonic()
            place.start()
            # Whose ledger is older does not know all documents that Milvus has, and nobody else does.
            mended = place.audit() if what == "an older ledger" else 0
            took = place.until_whole(since, 2 * RECOVERY)
            # What is not known to the ledger shows when its document changes next.
            place.documents.again(8)
            place.work(10)
            place.until_whole(time.monotonic())
            place.faults += 1
            rebuilt = len(place.daemon.said("ledger rebuilt from Milvus"))
            report("a ledger", what=what, rebuilt=rebuilt, mended=mended, seconds=round(took, 1))
            place.stop()
        # What came with another ledger is about documents that are none of this folder's, or are gone.
        foreign = [letter for letter in place.letters() if letter["document_id"] not in place.documents.dead]
        if foreign:
            answer = workplace.ask("dead-letters", "discard", *(str(letter["id"]) for letter in foreign))
            assert answer.code == 0, answer.err
        return place.finish(faults=len(steps), events=100, note=f"{len(foreign)} dead letters of other ledgers")


def _life(place: Ground, events: int) -> None:
    """Have a run do some events: of the documents that are there, too."""
    place.work(events)
    place.start()
    place.until_whole(time.monotonic(), 60)
    place.documents.again(8)
    place.until_whole(time.monotonic())
    place.stop()


def _drop(place: Ground) -> None:
    import_pymilvus()
    from pymilvus import MilvusClient  # noqa: PLC0415 - it may be imported only after its noise is turned off

    lite = Lite(place.workplace.milvus, place.workplace.root / "dropper.json")
    try:
        client = MilvusClient(uri=lite.start(), timeout=60)
        client.drop_collection(COLLECTION, timeout=60)
        client.close()
    finally:
        lite.close()


# A disk that is full, fails, or takes no writes


def disk(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The state's disk full, failing to sync, and read-only, under a running daemon: it waits, says so, and goes on."""
    server = LiteServer(folder / "server")
    server.start()
    try:
        with ground(wish, folder, draw, uri=server.uri) as place:
            for _ in range(wish.count(1)):
                _on_a_small_disk(place, folder, report)
            return place.finish(faults=3, events=75)
    finally:
        server.kill()


def _on_a_small_disk(place: Ground, folder: Path, report: Report) -> None:
    """Run the daemon in a mount namespace where its state has a disk of its own; fill that, and have it fail."""
    workplace = place.workplace
    state = workplace.state
    state.mkdir(exist_ok=True)
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", _HOLD, str(state)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    place.stack.callback(holder.kill)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mounted\n", "mounting a small disk needs the right to"
    workplace.prefix = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", f"--wdns={workplace.root}")
    workplace.state = Path(f"/proc/{holder.pid}/root{state}")
    place.work(30)
    daemon = place.start()
    place.until_whole(time.monotonic(), 60)
    place.recoveries.clear()
    for way, failing in (("full", _full), ("failing", _failing("EIO")), ("read-only", _failing("EROFS"))):
        with failing(place, state):
            place.work(10)
            daemon.until(lambda: daemon.get("/readyz")[0] == 503, f"{way}: /readyz says it", 60)
            assert not (daemon.check("state") or {"ok": True})["ok"], daemon.get("/readyz")
            place.work(5)
        took = place.until_whole(time.monotonic())
        daemon.until_ready()
        assert not daemon.said("will be tried again")
        place.faults += 1
        report("disk", way=way, recovery_seconds=round(took, 1))
    place.stop()
    _copy(workplace.state, folder / "kept")
    holder.kill()
    holder.wait()
    workplace.prefix, workplace.state = (), state
    shutil.copytree(folder / "kept", state, dirs_exist_ok=True)


@contextmanager
def _full(place: Ground, state: Path) -> Iterator[None]:
    """Fill the disk while the body runs."""
    fill = f"cat /dev/zero > {state}/ballast"
    subprocess.run([*place.workplace.prefix, "sh", "-c", fill], check=False, stderr=subprocess.DEVNULL)
    yield
    (place.workplace.state / "ballast").unlink()


def _failing(error: str) -> Callable[[Ground, Path], AbstractContextManager[None]]:
    """Return what has writes and opening for writing of the state's files fail while its body runs."""

    @contextmanager
    def failing(place: Ground, state: Path) -> Iterator[None]:
        calls = "pwrite64,fdatasync,ftruncate,openat"
        files = [option for side in ("", "-wal", "-journal") for option in ("-P", f"{state}/{DATABASE}{side}")]
        command = ["strace", "-f", "-qq", "-o", "/dev/null", *files, "-e", f"trace={calls}"]
        inject = ["-e", f"inject={calls}:error={error}", "-p", str(place.daemon.pid)]
        tracer = subprocess.Popen([*place.workplace.prefix, *command, *inject])
        try:
            status = Path(f"/proc/{place.daemon.pid}/status")
            wait_for(lambda: "TracerPid:\t0\n" not in status.read_text(), "it is traced")
            yield
        finally:
            tracer.terminate()
            tracer.wait()

    return failing


_HOLD = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", sys.argv[1]], check=True)
print("mounted", flush=True)
sys.stdin.read()
"""


SCENES: dict[str, Scene] = {"damaged": damaged, "ledgers": ledgers, "disk": disk}
