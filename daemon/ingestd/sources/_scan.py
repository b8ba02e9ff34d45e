"""One pass over all files of a folder: the truth that hints only anticipate.

Lists with ``scandir``, one directory at a time, without recursion (a tree may be deeper than the interpreter's stack),
and goes on where a directory vanishes under its feet. A directory that cannot be read is remembered: what is below it
is unknown, which is something else than gone.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingestd.sources._alive import telling
from ingestd.sources._ids import escape
from ingestd.sources._tree import NOT_THERE, OWN, SIDECAR, Identity, RootGoneError, decoded, inside, signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestd.sources._tree import Tree


@dataclass(slots=True)
class _Listed:
    """What one directory holds, by kind."""

    directories: list[bytes] = field(default_factory=list)
    files: dict[bytes, os.DirEntry[bytes]] = field(default_factory=dict)
    links: list[bytes] = field(default_factory=list)


class Scan:
    """Iterates over (escaped path below the root, signature) of every file that counts.

    With symlinks followed, a directory that can be reached in several ways is listed once: by its own path where that
    is covered, or else through the first link in the order of names. So loops end, and a file's id does not depend on
    the order in which the file system lists names.

    Args:
        tree: The folder.
        alive: Called at every directory, and now and then within one, so that a file system that hangs can be told
            from a large one.
    """

    def __init__(self, tree: Tree, alive: Callable[[], object] = lambda: None) -> None:
        self._tree = tree
        self._alive = alive
        self._visited: set[Identity] = set()
        self.unreadable: dict[str, str] = {}
        """Escaped path of each directory that could not be read, and why."""
        self.alone: dict[str, os.DirEntry[bytes]] = {}
        """The sidecar of each file that has one and is not there, by that one's escaped path."""
        self.own: list[bytes] = []
        """Paths of the files that have names of the daemon's own."""
        self.directories = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the files.

        Raises:
            RootGoneError: The root is not there or cannot be listed, or became another directory meanwhile: what was
                yielded so far says nothing about what is absent.
        """
        identity = self._tree.identity()
        self._visited.add(identity)
        directories, links = [b""], list[bytes]()
        while directories or links:
            if directories:
                path = directories.pop()
            else:
                links.sort(reverse=True)
                path = links.pop()
                if not self._enters_link(path):
                    continue
            self._alive()
            self.directories += 1
            listed = self._list(path)
            yield from self._files(path, listed)
            below = path + b"/" if path else b""
            if self._tree.recursive:
                directories += [below + name for name in listed.directories if self._enters(below + name)]
                links += [below + name for name in listed.links if self._covers_directory(below + name)]
        if self._tree.identity() != identity:
            raise RootGoneError(f"{os.fsdecode(self._tree.root)} was replaced by another directory during a scan")

    def within_unreadable(self, path: str) -> bool:
        """Return whether a file (by its escaped path) lies below a directory that could not be read."""
        while path and self.unreadable:
            path = path.rpartition("/")[0]
            if path in self.unreadable:
                return True
        return False

    def _list(self, path: bytes) -> _Listed:
        listed = _Listed()
        try:
            with os.scandir(self._tree.root + b"/" + path) as entries:
                for entry in telling(entries, self._alive):
                    self._sort(path, entry, listed)
        except OSError as error:
            if not path:
                raise RootGoneError(f"{os.fsdecode(self._tree.root)}: {error.strerror}") from error
            self._note_unreadable(path, error)
        return listed

    def _sort(self, path: bytes, entry: os.DirEntry[bytes], listed: _Listed) -> None:
        try:
            if entry.is_dir(follow_symlinks=False):
                listed.directories.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                listed.files[entry.name] = entry
            elif self._tree.follow and entry.is_symlink():
                if entry.is_dir():
                    listed.links.append(entry.name)
                else:
                    listed.files[entry.name] = entry
        except OSError as error:
            self._note_unreadable(path, error)

    def _files(self, path: bytes, listed: _Listed) -> Iterator[tuple[str, str]]:
        takes, files = self._tree.globs.takes, listed.files
        prefix = escape(path) + "/" if path else ""
        text = decoded(path) + "/" if path else ""
        for name, entry in telling(files.items(), self._alive):
            shown = decoded(name)
            if name.startswith(OWN):
                self.own.append(path + b"/" + name if path else name)
                continue
            if name.endswith(SIDECAR):
                if name != SIDECAR and name.removesuffix(SIDECAR) not in files:
                    self.alone[prefix + escape(name.removesuffix(SIDECAR))] = entry
                continue
            if not takes(text + shown, shown):
                continue
            try:
                seen = self._signature(path, entry, files.get(name + SIDECAR))
            except OSError as error:
                self._note_unreadable(path, error)
                continue
            if seen is not None:
                yield prefix + escape(name), seen

    def _signature(self, path: bytes, entry: os.DirEntry[bytes], sidecar: os.DirEntry[bytes] | None) -> str | None:
        if self._tree.follow and (entry.is_symlink() or (sidecar is not None and sidecar.is_symlink())):
            found = self._tree.look(path + b"/" + entry.name if path else entry.name)
            return None if found is None else found.signature
        about_sidecar = None
        if sidecar is not None:
            with suppress(FileNotFoundError):
                about_sidecar = sidecar.stat(follow_symlinks=False)
        return signature(entry.stat(follow_symlinks=False), about_sidecar)

    def _note_unreadable(self, path: bytes, error: OSError) -> None:
        if error.errno not in NOT_THERE:
            self.unreadable[escape(path)] = error.strerror or str(error)

    def _covers_directory(self, path: bytes) -> bool:
        return self._tree.globs.enters(decoded(path), decoded(path.rpartition(b"/")[2]))

    def _enters(self, path: bytes) -> bool:
        """Return whether to list a directory that is no symlink."""
        if not self._covers_directory(path):
            return False
        if self._tree.follow:
            try:
                status = os.lstat(self._tree.root + b"/" + path)
            except OSError as error:
                self._note_unreadable(path, error)
                return False
            identity = status.st_dev, status.st_ino
            if identity in self._visited:  # by way of a link, or bound to a second place
                return False
            self._visited.add(identity)
        return True

    def _enters_link(self, path: bytes) -> bool:
        """Return whether to list the directory that a symlink leads to: below the root, and not listed yet."""
        try:
            with self._tree.parent(path) as (root, directory):
                descriptor = self._tree.open(root, directory, path.rpartition(b"/")[2])
                try:
                    status = os.fstat(descriptor)
                    identity = status.st_dev, status.st_ino
                    enters = inside(root, descriptor) and identity not in self._visited
                finally:
                    os.close(descriptor)
        except OSError as error:
            self._note_unreadable(path, error)
            return False
        if enters:
            self._visited.add(identity)
        return enters
