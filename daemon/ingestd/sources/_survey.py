"""A look at a folder by somebody who does not run it: what is there now, and what it says (``ports.Survey``).

Owns nothing and changes nothing: ``audit`` holds what it finds against what was written. The rules of what counts as a
document's file are the running source's own (``Tree``, ``Scan``, ``FilePayload``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.errors import Superseded, TransientError, UnavailableError
from ingestd.model import Verdict
from ingestd.sources._ids import path_of
from ingestd.sources._payload import FilePayload
from ingestd.sources._scan import Scan
from ingestd.sources._tree import RootGoneError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.sources._moves import Shelves
    from ingestd.sources._tree import Found, Tree


class FolderSurvey:
    """The look. Not for several threads.

    Args:
        name: The source's name.
        tree: The folder.
        max_bytes: The most bytes that a document may have.
        shelves: Where files go when they are at an end.
    """

    def __init__(self, name: str, tree: Tree, max_bytes: int, shelves: Shelves) -> None:
        self._name = name
        self._tree = tree
        self._max_bytes = max_bytes
        self._shelves = shelves

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (document, signature) of every file that counts; then raise, if some could not be looked at."""
        scan = Scan(self._tree)
        try:
            for path, signature in scan:
                yield f"{self._name}/{path}", signature
        except RootGoneError as error:
            raise self._unknown(str(error)) from error
        if scan.unreadable:
            path, why = min(scan.unreadable.items())
            raise self._unknown(f"{len(scan.unreadable)} directories cannot be read, {path} among them: {why}")

    def owns(self, document: str) -> bool:
        """Return whether a file below the folder can have that id."""
        return path_of(self._name, document) is not None

    def signature(self, document: str) -> str | None:
        """Return what the document's file looks like; None: it is not there."""
        found = self._found(document)
        return None if found is None else found[1].signature

    def leaves(self, verdict: Verdict | None) -> bool:
        """Return whether a document that was last settled so is meant to stay when its file is gone: it was moved."""
        failed = self._shelves.failed is not None and verdict is Verdict.DEAD_LETTERED
        return failed or self._shelves.done is not None

    def digest(self, document: str) -> str | None:
        """Return a hash of what the document says now; None: it is changing, or gone."""
        found = self._found(document)
        if found is None:
            return None
        path, file = found
        try:
            return FilePayload(self._tree, path, document, file.shape, self._max_bytes).read().digest()
        except Superseded:
            return None
        except TransientError as error:
            raise self._unknown(str(error)) from error

    def _found(self, document: str) -> tuple[bytes, Found] | None:
        path = path_of(self._name, document)
        if path is None:
            return None
        try:
            found = self._tree.look(path)
        except (OSError, RootGoneError) as error:
            raise self._unknown(f"{document} cannot be looked at: {error}") from error
        return None if found is None else (path, found)

    def _unknown(self, why: str) -> UnavailableError:
        return UnavailableError(f"source:{self._name}", f"sources.{self._name}: {why}")
