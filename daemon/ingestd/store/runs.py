"""How the last run ended, and whether what it left in Milvus has to be held against the ledger.

A run that never wrote its end was killed, or its machine was. One that did may still have ended before a doubt that
it had inherited was settled, and a machine that was restarted may have lost what Milvus had not yet on disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Unclean:
    """Why the ledger's ids have to be verified before they are reused."""

    crashed: bool
    """The last run did not write its end."""
    rebooted: bool
    """The machine was started again, and what it may have taken was not verified since."""
    unverified: bool
    """The last run ended before it had verified what it had to."""


@dataclass(frozen=True, slots=True)
class _Run:
    boot: str | None
    pid: int
    started_at: float
    ended: bool
    doubt: bool
    rebooted: bool = False
    """The doubt is that of a restarted machine: as long as it lasts, whatever number of runs begin meanwhile."""


def boot_id() -> str | None:
    """Return what tells this start of the machine from any other, or None where the kernel does not say."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:  # not Linux, or /proc is hidden: every run then counts as on another boot
        return None


def begin(connection: sqlite3.Connection, *, boot: str | None, pid: int, now: float) -> Unclean | None:
    """Note that a run begins; return what is in doubt from the one before, if anything is."""
    before = last(connection)
    unclean = None
    if before is not None:
        rebooted = boot is None or before.boot != boot or before.rebooted
        unclean = Unclean(crashed=not before.ended, rebooted=rebooted, unverified=before.ended and before.doubt)
    doubt = unclean is not None and (unclean.crashed or unclean.rebooted or unclean.unverified)
    rebooted = unclean is not None and unclean.rebooted
    _write(connection, _Run(boot=boot, pid=pid, started_at=now, ended=False, doubt=doubt, rebooted=rebooted))
    return unclean if doubt else None


def verified(connection: sqlite3.Connection) -> None:
    """Note that nothing is in doubt any more."""
    _amend(connection, doubt=False, rebooted=False)


def end(connection: sqlite3.Connection) -> None:
    """Note that the run has ended as it should."""
    _amend(connection, ended=True)


def _amend(connection: sqlite3.Connection, **changes: bool) -> None:
    before = last(connection)
    if before is not None:
        _write(connection, _Run(**{**asdict(before), **changes}))


def last(connection: sqlite3.Connection) -> _Run | None:
    """Return the run that began last, if any did."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'run'").fetchone()
    return None if row is None else _Run(**json.loads(row[0]))


def _write(connection: sqlite3.Connection, run: _Run) -> None:
    connection.execute(
        "INSERT INTO meta (key, value) VALUES ('run', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (json.dumps(asdict(run)),),
    )
