"""A file's bytes, read when the pipeline has room for them, and its sidecar's metadata.

What is read is exactly what was seen: a file whose size or mtime differs from the event's, or changes while it is read,
is on its way to another version, which gets an event of its own once it has come to rest. Memory-mapping was turned
down: a file that is truncated meanwhile takes the process down with SIGBUS.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ingestd.errors import DocumentError, Superseded, TransientError
from ingestd.model import Content
from ingestd.sources._ids import escape
from ingestd.sources._tree import NOT_THERE, SIDECAR, Found, RootGoneError

if TYPE_CHECKING:
    from ingestd.model import Json
    from ingestd.sources._tree import Tree

SIDECAR_BYTES = 1024 * 1024
"""The most bytes that a sidecar may have."""
SIDECAR_DEPTH = 32
"""The most levels of nesting: what is passed on between processes may not recurse without bound."""
_REFUSED = frozenset({errno.EACCES, errno.EPERM})
_SPECIAL = frozenset({errno.ENXIO, errno.ENODEV})


@dataclass(frozen=True, slots=True)
class FilePayload:
    """A reference to a file, as a scan or a look found it."""

    tree: Tree
    path: bytes
    """Below the root."""
    document_id: str
    shape: tuple[int, ...]
    """``Found.shape``: what the file and its sidecar must still look like."""
    max_bytes: int

    @property
    def at_hand(self) -> Content | None:
        """Return nothing: a file is read when there is room for it."""
        return None

    def read(self) -> Content:
        """Return the file's bytes and what its sidecar says.

        Raises:
            DocumentError: It may not be read, it is too large, or its sidecar is no JSON object.
            TransientError: The file system failed.
            Superseded: It is no longer what the event was about.
        """
        name = self.path.rpartition(b"/")[2]
        try:
            with self.tree.parent(self.path) as (root, directory):
                file = self._open(root, directory, name)
                try:
                    sidecar = self._open_sidecar(root, directory, name + SIDECAR)
                    try:
                        return self._read(name, file, sidecar)
                    finally:
                        if sidecar is not None:
                            os.close(sidecar)
                finally:
                    os.close(file)
        except RootGoneError as error:
            raise Superseded(f"{self.document_id}: {error}") from error
        except OSError as error:
            # What keeps the daemon out of a directory shows at the next look, which tells unreadable from gone.
            if error.errno in NOT_THERE | _REFUSED | _SPECIAL:
                raise Superseded(f"{self.document_id} cannot be reached any more: {error.strerror}") from error
            raise TransientError(f"{self.document_id} could not be read: {error.strerror}") from error

    def _open(self, root: int, directory: int, name: bytes) -> int:
        """Return a descriptor that reads, of a regular file only.

        The second step opens the very file that the first one fixed, by way of /proc, so that no FIFO and no device is
        ever opened, whatever is moved to its name in between.
        """
        fixed = self.tree.open(root, directory, name)
        try:
            if not stat.S_ISREG(os.fstat(fixed).st_mode):
                raise Superseded(f"{self.document_id} is no regular file any more")
            return os.open(b"/proc/self/fd/%d" % fixed, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            raise DocumentError(
                f"{self.document_id} may not be read ({escape(name)}: {error.strerror}): let the daemon's user read "
                "it, and it comes back by itself"
            ) from error
        finally:
            os.close(fixed)

    def _open_sidecar(self, root: int, directory: int, name: bytes) -> int | None:
        try:
            return self._open(root, directory, name)
        except Superseded:  # not a regular file: no sidecar
            return None
        except OSError as error:
            if error.errno in NOT_THERE:
                return None
            raise

    def _read(self, name: bytes, file: int, sidecar: int | None) -> Content:
        found = self._found(file, sidecar)
        if found.shape != self.shape:
            raise Superseded(f"{self.document_id} has changed since it was seen")
        if found.size > self.max_bytes:
            raise DocumentError(
                f"{self.document_id} is {found.size} bytes; the most is {self.max_bytes}; raise [limits] max_bytes"
            )
        said = _Said() if sidecar is None else self._sidecar(escape(name + SIDECAR), sidecar)
        # One byte more than there should be: a file that grows is seen to, without reading all that it grows to.
        data = _read_up_to(file, found.size + 1)
        if len(data) != found.size or self._found(file, sidecar) != found:
            raise Superseded(f"{self.document_id} changed while it was read")
        return Content(data, escape(name), said.content_type, said.title, said.metadata, found.signature)

    def _found(self, file: int, sidecar: int | None) -> Found:
        return Found.of(os.fstat(file), None if sidecar is None else os.fstat(sidecar))

    def _sidecar(self, name: str, descriptor: int) -> _Said:
        """Return what a sidecar says.

        Raises:
            DocumentError: What is wrong with it.
        """
        data = _read_up_to(descriptor, SIDECAR_BYTES + 1)
        if len(data) > SIDECAR_BYTES:
            raise DocumentError(
                f"{self.document_id}: its sidecar {name} is over {SIDECAR_BYTES} bytes; make it smaller"
            )
        try:
            said = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
            _refuse_depth(said)
            json.dumps(said, ensure_ascii=False).encode()  # a lone surrogate is valid JSON, and no text
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"{self.document_id}: its sidecar {name} cannot be used as JSON: {error}") from error
        if not isinstance(said, dict):
            raise DocumentError(f"{self.document_id}: its sidecar {name} holds no JSON object")
        for key in ("title", "content_type"):
            if not isinstance(said.get(key), str | None):
                raise DocumentError(f"{self.document_id}: {key!r} in its sidecar {name} is no string")
        return _Said(said.pop("title", None), said.pop("content_type", None), said)


@dataclass(frozen=True, slots=True)
class _Said:
    title: str | None = None
    content_type: str | None = None
    metadata: dict[str, Json] = field(default_factory=dict)


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _refuse_depth(value: Json) -> None:
    level = [value]
    for _ in range(SIDECAR_DEPTH + 1):
        containers = [inner for inner in level if isinstance(inner, dict | list)]
        if not containers:
            return
        level = [inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)]
    raise ValueError(f"it is nested more than {SIDECAR_DEPTH} levels deep")


def _read_up_to(descriptor: int, limit: int) -> bytes:
    parts, left = [], limit
    while left and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)  # nearly always one part, which is then returned as it is
