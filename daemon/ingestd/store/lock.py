"""The lock that keeps a second instance away from a state directory.

A ``flock`` on a file of its own: the kernel lets go of it however its holder dies, so there is no stale lock to clear
by hand. A file with a process id alone was turned down for that: ids are used again. Locking the database itself was
too: SQLite takes and drops locks on it as it likes, and commands read it while the daemon runs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

LOCK = "lock"
_POLL = 0.05
"""Seconds between two looks at a lock that is held."""


def in_use(state_dir: Path) -> bool:
    """Return whether a process holds the lock of a state directory. Changes nothing."""
    try:
        StateLock(state_dir, 0.0).release()
    except ConfigError:
        return True
    return False


class StateLock:
    """The lock on a state directory, held from construction to ``release``.

    Args:
        state_dir: An existing directory.
        wait: Seconds to wait for a predecessor that is on its way out.

    Raises:
        ConfigError: Another process holds it, or the file cannot be written.
    """

    def __init__(self, state_dir: Path, wait: float) -> None:
        self._path = state_dir / LOCK
        try:
            # Never unlinked: two processes could then each hold a lock on a file of the same name.
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._acquire(wait)
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise ConfigError(unusable(state_dir, error)) from error

    def release(self) -> None:
        """Let go. Calling it twice is the same as calling it once."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _acquire(self, wait: float) -> None:
        give_up = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise ConfigError(self._refusal()) from None
                time.sleep(_POLL)
            else:
                return

    def _refusal(self) -> str:
        # The holder writes its id just after it has locked: in between there is none to be read.
        holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
        who = f"process {holder}" if holder else "another process"
        return (
            f"state_dir: {self._path.parent} is in use by {who}. Stop that one first, or give this one "
            "a state_dir of its own"
        )


def unusable(state_dir: Path, error: OSError) -> str:
    """Return the fault and the cure of a state directory that cannot be used."""
    cures = {
        errno.ENOSPC: "free space on that disk",
        errno.EDQUOT: "raise the quota of the user that the daemon runs as",
        errno.EROFS: "mount it writable, or choose a state_dir on another disk",
        errno.EACCES: "let the user that the daemon runs as write there",
        errno.EPERM: "let the user that the daemon runs as write there",
        errno.ENOTDIR: "choose a state_dir that is a directory",
        errno.EEXIST: "choose a state_dir that is a directory",
    }
    cure = cures.get(error.errno or 0, "see to that disk, or choose another state_dir")
    return f"state_dir: {state_dir} cannot be used ({error.strerror or error}): {cure}"
