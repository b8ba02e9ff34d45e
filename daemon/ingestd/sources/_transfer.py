"""Moves one file to another directory: whole or not at all, over nothing, and only if it is the file that was meant.

Within a file system that is one ``renameat2`` that refuses a name that is taken; where that is not known (NFS), a hard
link and an unlink. Across file systems the file is copied to a temporary name, made durable, and given its name, and
only then is the original taken away. Each way ends with a look at what was really moved: between a look at a name and a
rename of it another file can have taken the name, which nobody has read yet. It goes back.

``os.rename`` was turned down because it overwrites, ``shutil.move`` because it does that and copies in place.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ingestd.sources._tree import OWN

if TYPE_CHECKING:
    from collections.abc import Callable

ASIDE = OWN + b"aside-"
"""How a file's name begins while it is being taken away; eight digits, a dash and its own name follow."""
NAME_BYTES = 255
"""The longest name of a file, in bytes, on the usual file systems."""
_TOKEN = 8
_PART = 1024 * 1024
_NO_REPLACE = 1
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What ``renameat2`` answers where the kernel, or the file system, does not know the flag."""

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


class ChangedError(Exception):
    """The file is not there, or is not what it was: nothing was moved."""


class Place(NamedTuple):
    """A name in an open directory."""

    directory: int
    """A descriptor; of the target one that can be synced (no ``O_PATH``)."""
    name: bytes


def transfer(
    origin: Place, target: Place, seen: os.stat_result, temporary: bytes, alive: Callable[[], object] = lambda: None
) -> None:
    """Move a file.

    Args:
        origin: Where it is.
        target: Where it is to be.
        seen: What it looked like: what is moved has the same inode, size and mtime.
        temporary: A name in the target's directory for a copy that is not whole yet. What has it is overwritten.
        alive: Called now and then while a large file is copied; what it raises goes through, and nothing was moved.

    Raises:
        FileExistsError: The target's name is taken.
        ChangedError: Another file has the name by now, or this one was changed.
        OSError: It cannot be moved.
    """
    try:
        move(origin, target)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise ChangedError(f"{os.fsdecode(origin.name)} is gone") from error
        if error.errno != errno.EXDEV:
            raise
        _copy(origin, target, seen, temporary, alive)
        return
    if not _is_same(target, seen):
        # Where an even newer one has the name by now, this one is overtaken, and stays where it is.
        with suppress(FileExistsError):
            move(target, origin)
        raise ChangedError(f"{os.fsdecode(origin.name)} was replaced")


def move(origin: Place, target: Place) -> None:
    """Give what has a name another one, unless that is taken.

    Raises:
        FileExistsError: It is.
        OSError: It cannot be done; ``EXDEV``: the other directory is on another file system.
    """
    if _renameat2 is not None:
        if _renameat2(origin.directory, origin.name, target.directory, target.name, _NO_REPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNKNOWN:
            raise OSError(number, os.strerror(number), os.fsdecode(origin.name))
    _link(origin, target)


def take_back(directory: int, aside: bytes) -> bool:
    """Give a file its name back that a killed process was taking away; return whether it has it.

    Raises:
        OSError: It cannot be done.
    """
    try:
        move(Place(directory, aside), Place(directory, aside[len(ASIDE) + _TOKEN + 1 :]))
    except FileExistsError:
        return False
    return True


def _link(origin: Place, target: Place) -> None:
    if not os.access(b".", os.W_OK | os.X_OK, dir_fd=origin.directory):
        # Before the link, which changes the file's ctime, so that it would look like another one.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(origin.name))
    os.link(
        origin.name,
        target.name,
        src_dir_fd=origin.directory,
        dst_dir_fd=target.directory,
        follow_symlinks=False,
    )
    with suppress(OSError):
        os.fsync(target.directory)
    try:
        _unlink(origin, os.stat(target.name, dir_fd=target.directory, follow_symlinks=False))
    except ChangedError:
        pass  # what was meant has its new name, and what has the old one now is another file
    except OSError:
        with suppress(OSError):  # or else it would be there under both
            os.unlink(target.name, dir_fd=target.directory)
        raise


def _unlink(origin: Place, linked: os.stat_result) -> None:
    """Remove one of two names of a file, unless another file has that by now: it is looked at under a name of its own.

    Raises:
        ChangedError: It has; it keeps the name.
    """
    aside = _aside(origin)
    if aside is None:
        if not _are_one(origin, linked):
            raise ChangedError(f"{os.fsdecode(origin.name)} was replaced")
        os.unlink(origin.name, dir_fd=origin.directory)
        return
    # A rename over nothing: nobody else can know the name.
    os.rename(origin.name, aside.name, src_dir_fd=origin.directory, dst_dir_fd=aside.directory)
    if not _are_one(aside, linked):
        with suppress(FileExistsError):  # an even newer one: the next start finds this one
            os.link(aside.name, origin.name, src_dir_fd=aside.directory, dst_dir_fd=origin.directory)
            os.unlink(aside.name, dir_fd=aside.directory)
        raise ChangedError(f"{os.fsdecode(origin.name)} was replaced")
    os.unlink(aside.name, dir_fd=aside.directory)


def _copy(origin: Place, target: Place, seen: os.stat_result, temporary: bytes, alive: Callable[[], object]) -> None:
    if not os.access(b".", os.W_OK | os.X_OK, dir_fd=origin.directory):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(origin.name))
    copied = Place(target.directory, temporary)
    with suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=target.directory)
    try:
        _write_copy(origin, copied, seen, alive)
        move(copied, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=target.directory)
    try:
        os.fsync(target.directory)
        _take_away(origin, seen)
    except BaseException:
        if _is_there(origin):  # or else the copy may be all that there is: NFS answers ENOENT for what it has just done
            with suppress(OSError):
                os.unlink(target.name, dir_fd=target.directory)
        raise


def _write_copy(origin: Place, copied: Place, seen: os.stat_result, alive: Callable[[], object]) -> None:
    source = _open(origin, seen)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        written = os.open(copied.name, flags, 0o600, dir_fd=copied.directory)
        try:
            while part := os.read(source, _PART):
                alive()
                write_all(written, part)
            with suppress(PermissionError):
                os.fchown(written, seen.st_uid, seen.st_gid)
            os.fchmod(written, stat.S_IMODE(seen.st_mode) & 0o777)
            os.utime(written, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            os.fsync(written)
        finally:
            os.close(written)
        if not _are_equal(os.fstat(source), seen):
            raise ChangedError(f"{os.fsdecode(origin.name)} was changed")
    finally:
        os.close(source)


def _open(origin: Place, seen: os.stat_result) -> int:
    """Return a descriptor that reads the file, and no other: nothing else is ever opened."""
    try:
        fixed = os.open(origin.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=origin.directory)
    except FileNotFoundError as error:
        raise ChangedError(f"{os.fsdecode(origin.name)} is gone") from error
    try:
        if not _are_equal(os.fstat(fixed), seen):
            raise ChangedError(f"{os.fsdecode(origin.name)} was replaced")
        return os.open(b"/proc/self/fd/%d" % fixed, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(fixed)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the bytes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _take_away(origin: Place, seen: os.stat_result) -> None:
    """Remove a file by its name, unless another one has that by now: it is looked at under a name that nobody uses."""
    aside = _aside(origin)
    if aside is None:
        if not _is_same(origin, seen):
            raise ChangedError(f"{os.fsdecode(origin.name)} was replaced")
        os.unlink(origin.name, dir_fd=origin.directory)
        return
    try:
        move(origin, aside)
    except FileNotFoundError as error:
        raise ChangedError(f"{os.fsdecode(origin.name)} is gone") from error
    if _is_same(aside, seen):
        with suppress(FileNotFoundError):
            os.unlink(aside.name, dir_fd=aside.directory)
        return
    with suppress(FileExistsError):  # an even newer one: the next start finds this one
        move(aside, origin)
    raise ChangedError(f"{os.fsdecode(origin.name)} was replaced")


def _aside(origin: Place) -> Place | None:
    """Return a name beside a file's that nobody uses; None: it would be too long."""
    name = ASIDE + secrets.token_hex(_TOKEN // 2).encode() + b"-" + origin.name
    return None if len(name) > NAME_BYTES else Place(origin.directory, name)


def _is_there(place: Place) -> bool:
    try:
        os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _are_one(place: Place, other: os.stat_result) -> bool:
    """Return whether a name is one of a file's."""
    found = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    return (found.st_dev, found.st_ino) == (other.st_dev, other.st_ino)


def _is_same(place: Place, seen: os.stat_result) -> bool:
    try:
        return _are_equal(os.stat(place.name, dir_fd=place.directory, follow_symlinks=False), seen)
    except FileNotFoundError:
        return False


def _are_equal(one: os.stat_result, other: os.stat_result) -> bool:
    # Not the ctime: a rename changes it.
    return (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_mode) == (
        other.st_dev,
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
        other.st_mode,
    )
