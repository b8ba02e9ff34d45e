"""Documents that a record only points to: read on an extraction thread, and only from below what is allowed.

Whoever may write to the topic chooses the address, and the daemon stands where they do not: an address is a way to read
its files and its neighbours. So nothing is allowed unless ``uris`` says so, and what is unusual is refused rather than
put right: two programs that put an address right differently are how such a check is got round.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

import urllib3
from urllib3.exceptions import HTTPError

from ingestd.answers import PackedError, TooLargeError, body, bound_heads, retry_after
from ingestd.errors import DocumentError, TransientError, UnavailableError
from ingestd.model import Content
from ingestd.sources._values.decoded import RefusedError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from urllib3 import BaseHTTPResponse

    from ingestd.model import Metadata
    from ingestd.sources._values.said import Said

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
TOTAL_SECONDS = 120.0
"""For a whole document: a server that sends a byte now and then would keep an extraction thread for ever."""
LONGEST_FETCH = CONNECT_SECONDS + TOTAL_SECONDS + READ_SECONDS
"""Seconds that a fetch, or a probe, takes at most: a host with several addresses is tried at each within the first."""

_ADDRESS = re.compile(
    r"(?P<scheme>https?|file)://(?P<host>[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?",
    re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443, "file": 0}
_GONE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG}
)
_OK, _MOVED, _CLIENT, _SERVER, _NO_SUCH_METHOD = 200, 300, 400, 500, 501
_AWAY = frozenset({502, 503, 504})
"""Statuses of a server, or of what stands before one, that is not there now; 500 is any fault of a page."""
_PASSING = frozenset({408, 425, 429})
"""Statuses of the 400s that say nothing about the document."""


class Address(NamedTuple):
    """An address in its parts, with nothing in it that could be read in two ways."""

    scheme: str
    host: str
    port: int
    path: str
    query: str

    @property
    def url(self) -> str:
        """The address to ask."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}{self.query}"

    def below(self, prefix: Address) -> bool:
        """Return whether this is the prefix or something below it."""
        if self[:3] != prefix[:3]:
            return False
        return self.path == prefix.path or self.path.startswith(prefix.path.removesuffix("/") + "/")


def address(text: str) -> Address:
    """Return an address in its parts.

    Raises:
        ValueError: What is wrong with it.
    """
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("it has characters that an address has not; percent-encode them")
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError("only http, https and file are read, without user and fragment: https://host/path")
    scheme, host, path = match["scheme"].lower(), match["host"].lower(), match["path"] or "/"
    if (scheme == "file") != (host == ""):
        raise ValueError("a file has no host (file:///path), and everything else has one")
    if scheme == "file" and (match["port"] or match["query"]):
        raise ValueError("a file has neither port nor query")
    port = int(match["port"] or _PORTS[scheme])
    if port > 65535:  # noqa: PLR2004 - what a port is
        raise ValueError("it has no such port")
    _refuse_odd(path)
    return Address(scheme, host, port, path, match["query"] or "")


def _refuse_odd(path: str) -> None:
    """Refuse a path that somebody could take to lead upwards, however often they decode it."""
    decoded, again = path, unquote(path, errors="replace")
    while again != decoded:
        if again.count("/") != path.count("/"):
            raise ValueError("its path has an encoded slash")
        decoded, again = again, unquote(again, errors="replace")
    if "\\" in decoded or any(ord(character) < 32 or ord(character) == 127 for character in decoded):  # noqa: PLR2004 - controls
        raise ValueError("its path has an encoded backslash or control character")
    if any(part.partition(";")[0] in {".", ".."} for part in decoded.split("/")):
        raise ValueError("its path has '.' or '..' in it")


class Uris:
    """What may be read from where.

    Args:
        allowed: Prefixes.
        max_bytes: The most bytes of a document.
    """

    def __init__(self, allowed: Sequence[str], max_bytes: int) -> None:
        self._allowed = tuple(map(address, allowed))
        self._max_bytes = max_bytes
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._pool = urllib3.PoolManager(num_pools=8, maxsize=8, retries=False, timeout=timeout)
        bound_heads(self._pool, TOTAL_SECONDS)
        self._good: dict[str, str] = {}
        """By server, an address that was answered well: what it is probed with."""

    def close(self) -> None:
        """Let go of idle connections."""
        self._pool.clear()

    def payload(self, document_id: str, said: Said) -> FilePayload | HttpPayload:
        """Return the payload behind an address.

        Raises:
            RefusedError: The address is none, or is not allowed.
        """
        text = said.uri or ""
        try:
            found = address(text)
        except ValueError as error:
            raise RefusedError(f"its uri {shown(text)} is refused: {error}") from None
        prefix = next((prefix for prefix in self._allowed if found.below(prefix)), None)
        if prefix is None:
            raise RefusedError(
                f"its uri {shown(text)} is below nothing that may be read; name what may in the format's `uris`"
            )
        about = _About(document_id, said.content_type, said.title, said.metadata or {}, self._max_bytes)
        if found.scheme == "file":
            return FilePayload(about, unquote_to_bytes(found.path), unquote_to_bytes(prefix.path))
        return HttpPayload(about, found, self._pool, self._good)


@dataclass(frozen=True, slots=True)
class _About:
    document_id: str
    content_type: str | None
    title: str | None
    metadata: Metadata
    max_bytes: int

    def content(self, data: bytes, path: str, content_type: str | None) -> Content:
        name = path.rpartition("/")[2] or self.document_id
        return Content(data, name, self.content_type or content_type, self.title, self.metadata)

    def too_large(self, size: str) -> DocumentError:
        return DocumentError(
            f"{self.document_id} is {size} bytes; the most is {self.max_bytes}; raise [limits] max_bytes"
        )


@dataclass(frozen=True, slots=True)
class FilePayload:
    """A file."""

    about: _About
    path: bytes
    prefix: bytes
    """What it has to be in, once all symlinks are followed."""

    @property
    def at_hand(self) -> None:
        """Nothing: it is read when there is room for it."""

    def read(self) -> Content:
        """Return the file (see ``ports.Payload``)."""
        try:
            return self._read()
        except OSError as error:
            message = f"{self.about.document_id}: the file of its uri cannot be read: {error.strerror}"
            if error.errno in _GONE:
                raise DocumentError(f"{message}; let the daemon's user read it, and replay") from error
            raise TransientError(message) from error

    def _read(self) -> Content:
        # What is opened for reading is the very file that was looked at: no FIFO and no device is ever opened, and a
        # symlink that is turned meanwhile turns nothing.
        fixed = os.open(self.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._refuse(fixed)
            file = os.open(b"/proc/self/fd/%d" % fixed, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(fixed)
        with os.fdopen(file, "rb") as reader:
            before = os.fstat(file)
            if before.st_size > self.about.max_bytes:
                raise self.about.too_large(str(before.st_size))
            data = reader.read(self.about.max_bytes + 1)
            after = os.fstat(file)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
            raise TransientError(f"{self.about.document_id}: the file of its uri changed while it was read")
        return self.about.content(data, os.fsdecode(self.path), None)

    def _refuse(self, fixed: int) -> None:
        if not stat.S_ISREG(os.fstat(fixed).st_mode):
            raise DocumentError(f"{self.about.document_id}: its uri names no regular file (symlinks are none)")
        where = os.readlink(b"/proc/self/fd/%d" % fixed)  # noqa: PTH115 - Path knows no bytes
        root = os.path.realpath(self.prefix)
        if where != root and not where.startswith(root.rstrip(b"/") + b"/"):
            raise DocumentError(f"{self.about.document_id}: the file of its uri lies outside of what `uris` allows")


@dataclass(frozen=True, slots=True)
class HttpPayload:
    """What a server answers. While it is down no document is to blame: it is one dependency, whoever points to it."""

    about: _About
    address: Address
    pool: urllib3.PoolManager
    good: dict[str, str]

    @property
    def at_hand(self) -> None:
        """Nothing: it is read when there is room for it."""

    def read(self) -> Content:
        """Return the answer's body (see ``ports.Payload``)."""
        who = f"{self.about.document_id}: {shown(self.address.url)}"
        deadline = time.monotonic() + TOTAL_SECONDS
        try:
            response = self.pool.request(
                "GET", self.address.url, headers=_HEADERS, redirect=False, preload_content=False
            )
            try:
                self._refuse_status(response, who)
                data = body(response, self.about.max_bytes, deadline)
            except BaseException:
                response.close()  # with its connection: what is left of the body is not waited for
                raise
            response.release_conn()
        except TooLargeError:
            raise self.about.too_large(f"more than {self.about.max_bytes}") from None
        except PackedError:
            raise DocumentError(f"{who} is compressed, though that was not asked for; serve it as it is") from None
        except (HTTPError, OSError) as error:
            raise UnavailableError(self._server, f"{who} cannot be read: {error}") from error
        self.good[self._server] = self.address.url
        path = unquote(self.address.path, errors="replace")
        return self.about.content(data, path, response.headers.get("Content-Type"))

    def probe(self) -> None:
        """Ask the server for what it answered well last, or for its root, without a body.

        Raises:
            UnavailableError: It does not answer, or refuses.
        """
        url = self.good.get(self._server, f"{self.address.scheme}://{self.address.host}:{self.address.port}/")
        try:
            response = self.pool.request("HEAD", url, headers=_HEADERS, redirect=False)
        except (HTTPError, OSError) as error:
            raise UnavailableError(self._server, f"{self.address.host} does not answer: {error}") from error
        # A root that nobody made may well answer 500: it tells less than an address that was read.
        known = self._server in self.good
        if _is_outage(response.status) if known else response.status in _AWAY | _PASSING:
            raise UnavailableError(self._server, f"{self.address.host} answers {response.status}")

    @property
    def _server(self) -> str:
        return f"uri:{self.address.host}:{self.address.port}"

    def _refuse_status(self, response: BaseHTTPResponse, who: str) -> None:
        status = response.status
        if status == _OK:
            return
        if _is_outage(status):
            # Not taken for the server's own refusal, whatever it asks us to wait: one address may answer so for ever
            # while all others are well. The probe tells.
            raise UnavailableError(self._server, f"{who} answers {status}", wait=retry_after(response))
        if _MOVED <= status < _CLIENT:
            why = "redirects are not followed: send the address that it leads to"
            raise DocumentError(f"{who} answers {status}; {why}")
        raise DocumentError(f"{who} answers {status}; make it readable, and replay")


_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "ingestd"}


def _is_outage(status: int) -> bool:
    """Return whether a status says nothing about the document. 501: the server lacks the method, and is there."""
    return (status >= _SERVER and status != _NO_SUCH_METHOD) or status in _PASSING
