"""A shelf: a folder beside the watched one that files are moved to when they are at an end, ``done`` or ``failed``.

A file keeps the path that it had below the watched folder, and its sidecar goes with it. A name that is taken gets a
number (``report.1.txt``), for nothing is ever overwritten; the next one is found in a few looks, and a name's files are
found without a listing. A file that failed has its reason beside it, in ``NAME.reason.json``, which is there before it
is, and says when it failed.

Directories are opened one by one and never through a symlink. Naming by the time was turned down: finding a name's
files would take a listing of all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

from ingestd.errors import DocumentError
from ingestd.sources._transfer import NAME_BYTES, ChangedError, Place, move, transfer, write_all
from ingestd.sources._tree import NOT_THERE, OWN, SIDECAR, decoded, signature, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ingestd.model import Json
    from ingestd.sources._tree import Tree

REASON = b".reason.json"
_LONGEST = NAME_BYTES - len(REASON)
"""Of a name with a number, so that what belongs to it has room too."""
_LONGEST_EXTENSION = 32
_LOOKED_AT = 64
"""Numbers of a name that are looked at one by one."""
_REASON_BYTES = 65_536
"""Of a reason that is read back: ours are smaller."""
_SIDECAR_BYTES = 1 << 20
"""Of a sidecar that is compared with another one."""
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Shelf:
    """One of the two folders of a source. Safe to use from several threads.

    Args:
        root: An absolute path. The folder is made when it is needed.
        tree: The watched folder.
        source: The source's name.
    """

    def __init__(self, root: bytes, tree: Tree, source: str) -> None:
        self.root = root
        self._tree = tree
        # Of this source alone: two of them may have one shelf.
        self._temporary = OWN + b"moving-" + hashlib.sha256(source.encode()).hexdigest()[:16].encode()

    def fault(self, *, make: bool) -> str | None:
        """Return why nothing can be put here, or None.

        Args:
            make: Make the folder if it is not there. Otherwise it is said whether it could be.
        """
        if leads_back(os.path.realpath(self.root), self._tree, os.path.realpath(self._tree.root)):
            return f"{self._named} is within the watched folder, or around it: files would come back"
        if make:
            try:
                os.makedirs(self.root, exist_ok=True)  # noqa: PTH103 - bytes are no Path
            except OSError as error:
                return f"{self._named} cannot be made: {error.strerror}"
        there = self.root
        while not os.path.lexists(there) and there != b"/":
            there = os.path.dirname(there)  # noqa: PTH120 - bytes are no Path
        if not os.path.isdir(there):  # noqa: PTH112 - bytes are no Path
            return f"{os.fsdecode(there)} is no folder"
        return None if os.access(there, os.W_OK | os.X_OK) else f"{os.fsdecode(there)} is not writable"

    def put(
        self,
        path: bytes,
        seen: str,
        reason: Mapping[str, Json] | None = None,
        alive: Callable[[], object] = lambda: None,
    ) -> str:
        """Move a file here, with its sidecar.

        Where the file has gone already and its sidecar is left (the daemon was killed in between), that is moved.

        Args:
            path: Below the watched folder.
            seen: The signature with which it ended: what is moved has to have it.
            reason: What to say of a file that failed; None: nothing.
            alive: Called now and then while a large file is copied.

        Returns:
            Where it is now.

        Raises:
            ChangedError: It is not there with that signature.
            RootGoneError: The watched folder is not there.
            OSError: It cannot be moved; it stays.
        """
        above, _, name = path.rpartition(b"/")
        with self._tree.parent(path) as (_root, origin):
            file, sidecar = _stat(origin, name), _stat(origin, name + SIDECAR)
            left = file is None and sidecar is not None and seen.endswith("+" + stamp(sidecar))
            if not left and (file is None or signature(file, sidecar) != seen):
                raise ChangedError(f"{decoded(path)} has changed")
            with self._directory(above) as directory:
                put = name
                if file is not None:
                    put = self._put_file(Place(origin, name), file, directory, reason, alive)
                if sidecar is not None:
                    self._put_sidecar(Place(origin, name), put, sidecar, directory, alive, left=left)
        return os.fsdecode(b"/".join(filter(None, (self.root, above, put))))

    def put_back(self, path: bytes, document: str, most: int) -> bool:
        """Move the file of this path that came last back to the watched folder, with its sidecar.

        Args:
            path: Below the watched folder.
            document: Its id: what says why it failed is removed.
            most: The most bytes that it may have.

        Returns:
            Whether there was one, and the watched folder had none.

        Raises:
            DocumentError: It has more bytes; it stays.
            OSError: It cannot be moved; it stays.
            RootGoneError: The watched folder is not there.
        """
        above, _, name = path.rpartition(b"/")
        try:
            with self._directory(above, make=False) as directory:
                put = _latest_of_document(directory, name, document, thoroughly=True)
                file = None if put is None else _stat(directory, put)
                if put is None or file is None:
                    return False
                if file.st_size > most:
                    raise DocumentError(
                        f"{document} is {file.st_size} bytes, and is left in {self._named}; the most is {most}; "
                        "raise [limits] max_bytes"
                    )
                with _opened_below(self._tree, above) as folder:
                    self._put_back(Place(directory, put), file, Place(folder, name))
                self._drop_reason(directory, put, document)
        except (ChangedError, FileExistsError):
            return False
        except OSError as error:
            if error.errno in NOT_THERE:
                return False
            raise
        return True

    def holds(self, path: bytes, document: str) -> bool:
        """Return whether a file of this path is here, with the reason why this document failed.

        Raises:
            OSError: It cannot be said.
        """
        above, _, name = path.rpartition(b"/")
        try:
            with self._directory(above, make=False) as directory:
                put = _latest_of_document(directory, name, document, thoroughly=False)
                return put is not None and _reason_of(directory, put) == document
        except OSError as error:
            if error.errno in NOT_THERE:
                return False
            raise

    @property
    def _named(self) -> str:
        return os.fsdecode(self.root)

    @contextmanager
    def _directory(self, above: bytes, *, make: bool = True) -> Iterator[int]:
        """Open the directory for files of a path, for as long as the context lasts."""
        if make:
            os.makedirs(self.root, exist_ok=True)  # noqa: PTH103 - bytes are no Path
        opened = [os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        try:
            for part in above.split(b"/") if above else ():
                opened.append(_entered(opened[-1], part, make=make))
            yield opened[-1]
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _put_file(
        self,
        origin: Place,
        file: os.stat_result,
        directory: int,
        reason: Mapping[str, Json] | None,
        alive: Callable[[], object],
    ) -> bytes:
        """Move a file to the first name that is free; return the name."""

        def is_taken(number: int) -> bool:
            put = numbered(origin.name, number)
            if _is_there(directory, put) or _is_there(directory, put + SIDECAR):
                return True
            return reason is not None and _is_anothers(directory, _reason_name(put), str(reason["document_id"]))

        number = _last_of(is_taken, 0) + 1 if is_taken(0) else 0
        while True:
            put = numbered(origin.name, number)
            try:
                if reason is not None:
                    self._put_reason(directory, put, reason)
                transfer(origin, Place(directory, put), file, self._temporary, alive)
            except BaseException as error:
                if reason is not None:
                    self._drop_reason(directory, put, str(reason["document_id"]))
                if not isinstance(error, FileExistsError):
                    raise
                number += 1  # taken since
            else:
                return put

    def _put_sidecar(
        self,
        origin: Place,
        put: bytes,
        sidecar: os.stat_result,
        directory: int,
        alive: Callable[[], object],
        *,
        left: bool,
    ) -> None:
        """Move a sidecar to its file; one that was left behind to the file that came last."""
        if left:
            numbers = _numbers(directory, put)
            left_by = [numbered(put, number) for number in numbers]
            put = max(left_by, key=lambda one: _moved(directory, one), default=put)
        number = 0
        while True:
            target = Place(directory, numbered(put, number) + SIDECAR)
            try:
                transfer(Place(origin.directory, origin.name + SIDECAR), target, sidecar, self._temporary, alive)
            except FileExistsError:
                number += 1
            else:
                return

    def _put_back(self, origin: Place, file: os.stat_result, target: Place) -> None:
        here, there = Place(origin.directory, origin.name + SIDECAR), Place(target.directory, target.name + SIDECAR)
        sidecar = _stat(here.directory, here.name)
        # One that is there already was put back, or copied, before a kill; or it is somebody's for this file.
        described = _is_there(there.directory, there.name)
        if _is_there(target.directory, target.name) or (described and sidecar is not None and not _equal(here, there)):
            raise FileExistsError
        moves = sidecar is not None and not described
        if sidecar is not None and moves:  # first, so that the file is not seen without it
            transfer(here, there, sidecar, self._temporary)
        try:
            transfer(origin, target, file, self._temporary)
        except BaseException:
            back = _stat(there.directory, there.name) if moves else None
            if back is not None:
                transfer(there, here, back, self._temporary)
            raise
        if sidecar is not None and not moves:
            with suppress(FileNotFoundError):
                os.unlink(here.name, dir_fd=here.directory)

    def _put_reason(self, directory: int, put: bytes, reason: Mapping[str, Json]) -> None:
        """Write why a file failed, in place of what this source has written of the same document.

        Raises:
            FileExistsError: The name is taken.
        """
        written, target = Place(directory, self._temporary + b"-reason"), Place(directory, _reason_name(put))
        with suppress(FileNotFoundError):
            os.unlink(written.name, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(written.name, flags, 0o666, dir_fd=directory)
            try:
                write_all(descriptor, json.dumps(reason, indent=2).encode("ascii") + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            document = str(reason["document_id"])
            if _is_there(directory, target.name) and not _is_anothers(directory, target.name, document):
                os.rename(written.name, target.name, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                move(written, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(written.name, dir_fd=directory)

    def _drop_reason(self, directory: int, put: bytes, document: str) -> None:
        name = _reason_name(put)
        with suppress(FileNotFoundError):
            if not _is_anothers(directory, name, document):
                os.unlink(name, dir_fd=directory)


def leads_back(shelf: bytes, tree: Tree, root: bytes) -> bool:
    """Return whether files that are moved to a folder would be documents of the watched one again.

    Args:
        shelf: The folder's path, without symlinks.
        tree: The watched folder.
        root: Its path, likewise.
    """
    if root == shelf or root.startswith(shelf.rstrip(b"/") + b"/"):
        return True
    within = root.rstrip(b"/") + b"/"
    return shelf.startswith(within) and tree.enters(shelf[len(within) :])


_LONGEST_NUMBER = 10
"""Digits; a shelf with more files of one name is none."""


def numbered(name: bytes, number: int) -> bytes:
    """Return a file's name with a number before its extension; 0: the name itself."""
    if number == 0:
        return name
    stem, dot, extension = name.rpartition(b".")
    if not stem or len(extension) > _LONGEST_EXTENSION:
        stem, dot, extension = name, b"", b""
    end = b".%d" % number + dot + extension
    return stem[: _LONGEST - len(end)] + end


def _reason_name(put: bytes) -> bytes:
    if len(put) <= _LONGEST:
        return put + REASON
    digest = hashlib.sha256(put).hexdigest()[:16].encode()
    return put[: _LONGEST - 17] + b"-" + digest + REASON


def _entered(directory: int, name: bytes, *, make: bool) -> int:
    """Open a directory in another one, and make it if need be; one that is a file's has a number."""
    number = 0
    while True:
        part = numbered(name, number)
        if make:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=directory)
                os.fsync(directory)
        try:
            return os.open(part, _DIRECTORY, dir_fd=directory)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
        number += 1


@contextmanager
def _opened_below(tree: Tree, above: bytes) -> Iterator[int]:
    """Open a directory of the watched folder, and make it if need be."""
    tree.identity()
    opened = [os.open(tree.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for part in above.split(b"/") if above else ():
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=opened[-1])
            opened.append(os.open(part, _DIRECTORY, dir_fd=opened[-1]))
        yield opened[-1]
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _last_of(is_taken: Callable[[int], bool], low: int) -> int:
    """Return the last number that is taken, from one on that is, where there are no gaps: in a few looks."""
    step = 1
    while is_taken(low + step):
        low, step = low + step, 2 * step
    while step > 1:
        step //= 2
        if is_taken(low + step):
            low += step
    return low


def _numbers(directory: int, name: bytes) -> list[int]:
    """Return the numbers that files of a name have, in order, as far as ``_LOOKED_AT``.

    There may be gaps: a shelf that is cleaned by age loses its first numbers, and they are given again.
    """
    return [number for number in range(_LOOKED_AT) if _stat(directory, numbered(name, number)) is not None]


def _all_numbers(directory: int, name: bytes) -> list[int]:
    """Return the same, however large they are, by a look at all names: it takes its time, and is for what is rare."""
    found = (_number_of(name, os.fsencode(put)) for put in os.listdir(directory))
    return sorted(number for number in found if number is not None)


def _latest_of_document(directory: int, name: bytes, document: str, *, thoroughly: bool) -> bytes | None:
    """Return the name of the file that was put here last and whose reason names a document.

    Where there is none, the last without a reason, which somebody took away; None: there is none either. Another
    source's file may have come later, where two have one shelf. When a file failed is what its reason says; the file's
    own times are asked where it says nothing, for whoever gives a shelf other rights, or copies it, changes those.

    Args:
        directory: The shelf's.
        name: The file's, without a number.
        document: The document.
        thoroughly: Whether all names are looked at where there are more than a few of this one, or none.
    """
    numbers = _numbers(directory, name)
    if thoroughly and (not numbers or numbers[-1] == _LOOKED_AT - 1):
        numbers = _all_numbers(directory, name)
    if numbers == [0] and _reason_of(directory, name) == document:
        return name
    found = []
    for number in numbers:
        put = numbered(name, number)
        file = _stat(directory, put)
        if file is not None:
            said = _said(directory, _reason_name(put))
            owner = None if said is None else str(said.get("document_id", ""))
            failed = _seconds(str((said or {}).get("last_failed_at", "")))
            found.append((file.st_ctime if failed is None else failed, file.st_ctime, number, owner))
    without = None
    for _, _, number, owner in sorted(found, key=lambda one: one[:3], reverse=True):
        if owner == document:
            return numbered(name, number)
        without = numbered(name, number) if owner is None and without is None else without
    return without


def _seconds(time: str) -> float | None:
    """Return a time of a reason in seconds since 1970; None: it is none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, OverflowError):
        return None


def _number_of(name: bytes, put: bytes) -> int | None:
    """Return with which number ``numbered`` makes one name of another; None: with none."""
    if put == name:
        return 0
    said = [part for part in put.split(b".")[-2:] if part.isdigit()]  # an extension may be a number too
    return next((int(part) for part in said if len(part) < _LONGEST_NUMBER and numbered(name, int(part)) == put), None)


def _is_there(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
            return False
        raise
    return True


def _stat(directory: int, name: bytes) -> os.stat_result | None:
    """Return the stat of a regular file; None: there is none."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _equal(one: Place, other: Place) -> bool:
    """Return whether two small files say the same."""
    said = []
    for place in (one, other):
        try:
            descriptor = os.open(place.name, _FILE, dir_fd=place.directory)
        except OSError:
            return False
        with os.fdopen(descriptor, "rb") as file:
            said.append(file.read(_SIDECAR_BYTES + 1))
    return said[0] == said[1] and len(said[0]) <= _SIDECAR_BYTES


def _is_anothers(directory: int, name: bytes, document: str) -> bool:
    """Return whether a name is taken by something that is not the reason of this document."""
    return _owner(directory, name) not in {None, document}


def _reason_of(directory: int, put: bytes) -> str | None:
    """Return which document's reason is beside a file; empty: what is there is none; None: nothing is."""
    return _owner(directory, _reason_name(put))


def _owner(directory: int, name: bytes) -> str | None:
    said = _said(directory, name)
    return None if said is None else str(said.get("document_id", ""))


def _said(directory: int, name: bytes) -> Mapping[str, Json] | None:
    """Return what a reason says; nothing, if it is none; None: there is nothing of that name."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError:
        return {}
    try:
        said = json.loads(os.read(descriptor, _REASON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(descriptor)
    return said if isinstance(said, dict) else {}


def _moved(directory: int, name: bytes) -> float:
    """Return when a file was put here."""
    file = _stat(directory, name)
    return 0.0 if file is None else file.st_ctime
