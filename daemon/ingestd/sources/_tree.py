"""What is in a folder: one file looked at, or all of them listed, never outside the root.

Owns the rules of what counts as a document's file (globs, sidecars, symlinks, kinds of files) and the signature by
which a file is known again. Directories are opened one by one below the root's descriptor, so that a directory that is
swapped for a symlink leads nowhere. ``os.walk`` was turned down (it hides errors, and what cannot be listed must not
count as deleted), and so was ``Path.resolve`` before opening, which is right only until the next rename.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.sources._globs import Globs

SIDECAR = b".meta.json"
OWN = b".ingestd-"
"""How names begin that the daemon itself gives to files, for a moment: they are never documents."""
NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Errors that mean that a file is not there, or not in a way that counts (behind a symlink). The last one is what a
file's sidecar answers where the file's own name is nearly as long as names may be."""

# O_PATH gives a descriptor that has read nothing and touched nothing: no FIFO blocks, no device wakes up.
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_PATH | os.O_CLOEXEC

Identity: TypeAlias = tuple[int, int]
"""Device and inode: tells a directory from another one while both exist, and never longer (inodes are reused)."""


class RootGoneError(Exception):
    """The root is missing, is no directory, or cannot be listed: nothing is known about any file."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file and its sidecar, at one look."""

    size: int
    """In bytes, of the file."""
    signature: str
    """Size, mtime, ctime and inode of both: equal signatures mean that nothing has changed."""
    shape: tuple[int, ...]
    """Size and mtime of both: what has to stay the same until a file counts as settled."""
    newest: float
    """The latest of all the time stamps, in seconds since 1970."""

    @staticmethod
    def of(file: os.stat_result, sidecar: os.stat_result | None) -> Found:
        """Return what two stats say."""
        both = (file,) if sidecar is None else (file, sidecar)
        return Found(
            file.st_size,
            signature(file, sidecar),
            tuple(number for one in both for number in (one.st_size, one.st_mtime_ns)),
            max(max(one.st_mtime_ns, one.st_ctime_ns) for one in both) / 1e9,
        )


def signature(file: os.stat_result, sidecar: os.stat_result | None) -> str:
    """Return the signature of a file and its sidecar."""
    if sidecar is None:
        return stamp(file)
    return f"{stamp(file)}+{stamp(sidecar)}"


def stamp(of: os.stat_result) -> str:
    """Return one file's part of a signature."""
    return f"{of.st_size:x}.{of.st_mtime_ns:x}.{of.st_ctime_ns:x}.{of.st_ino:x}"


@dataclass(frozen=True, slots=True)
class Tree:
    """A watched folder. Safe to use from several threads."""

    root: bytes
    """An absolute path. The root itself may be a symlink."""
    globs: Globs
    recursive: bool = True
    follow: bool = False
    """Whether symlinks count, as long as they lead to something below the root."""

    def identity(self) -> Identity:
        """Return which directory the root is now.

        Raises:
            RootGoneError: It is none.
        """
        try:
            status = os.stat(self.root)  # noqa: PTH116 - bytes are no Path
        except OSError as error:
            raise RootGoneError(f"{os.fsdecode(self.root)}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise RootGoneError(f"{os.fsdecode(self.root)} is no directory")
        return status.st_dev, status.st_ino

    def covers(self, path: bytes) -> bool:
        """Return whether the globs let a path be a document."""
        above, _, name = path.rpartition(b"/")
        if name.endswith(SIDECAR) or name.startswith(OWN) or not self.enters(above):
            return False
        return self.globs.takes(decoded(path), decoded(name))

    def enters(self, directory: bytes) -> bool:
        """Return whether what is in a directory below the root can be documents; the root itself is an empty path."""
        if not directory:
            return True
        if not self.recursive:
            return False
        entered = ""
        for part in decoded(directory).split("/"):
            entered += part
            if not self.globs.enters(entered, part):
                return False
            entered += "/"
        return True

    def look(self, path: bytes) -> Found | None:
        """Look at one file.

        Args:
            path: Below the root.

        Returns:
            None: it is not there, or it is no regular file, or not one that counts.

        Raises:
            RootGoneError: The root is not there.
            OSError: It cannot be said whether the file is there.
        """
        if not self.covers(path):
            return None
        try:
            with self.parent(path) as (root, directory):
                name = path.rpartition(b"/")[2]
                file = self._stat(root, directory, name)
                return None if file is None else Found.of(file, self._stat(root, directory, name + SIDECAR))
        except OSError as error:
            if error.errno in NOT_THERE:
                return None
            raise

    @contextmanager
    def parent(self, path: bytes) -> Iterator[tuple[int, int]]:
        """Open the root and the directory of a file below it, for as long as the context lasts.

        Raises:
            RootGoneError: The root is not there.
            OSError: The directory cannot be opened; ``NOT_THERE`` has the numbers that mean that it does not exist.
        """
        try:
            root = os.open(self.root, _DIRECTORY)
        except OSError as error:
            raise RootGoneError(f"{os.fsdecode(self.root)}: {error.strerror}") from error
        opened = [root]
        try:
            above = path.rpartition(b"/")[0]
            if above and self.follow:
                opened.append(os.open(above, _DIRECTORY, dir_fd=root))
                _require_inside(root, opened[-1], above)
            elif above:
                for part in above.split(b"/"):
                    opened.append(os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
            yield root, opened[-1]
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def open(self, root: int, directory: int, name: bytes) -> int:
        """Return an ``O_PATH`` descriptor of a file: which file it is stays fixed from here on.

        Raises:
            OSError: With a number in ``NOT_THERE``: there is no such file, or a symlink leads out of the root.
        """
        if not self.follow:
            return os.open(name, _FILE | os.O_NOFOLLOW, dir_fd=directory)
        descriptor = os.open(name, _FILE, dir_fd=directory)
        try:
            _require_inside(root, descriptor, name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _stat(self, root: int, directory: int, name: bytes) -> os.stat_result | None:
        """Return the stat of a regular file, or None."""
        try:
            if self.follow:
                descriptor = self.open(root, directory, name)
                try:
                    status = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
            else:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in NOT_THERE:
                return None
            raise
        return status if stat.S_ISREG(status.st_mode) else None


def decoded(path: bytes) -> str:
    """Return a path as the text that globs are held against, the same whatever the process's locale is."""
    return path.decode("utf-8", "surrogateescape")


def inside(root: int, descriptor: int) -> bool:
    """Return whether an open file lies below (or is) an open directory. Both are fixed, so nothing can race with it."""
    above = os.readlink(b"/proc/self/fd/%d" % root)  # noqa: PTH115 - bytes are no Path
    path = os.readlink(b"/proc/self/fd/%d" % descriptor)  # noqa: PTH115 - bytes are no Path
    return path == above or path.startswith(above.rstrip(b"/") + b"/")


def _require_inside(root: int, descriptor: int, name: bytes) -> None:
    if not inside(root, descriptor):
        raise OSError(errno.ELOOP, "a symlink leads out of the folder", name)
