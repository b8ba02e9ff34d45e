"""An HTTP answer, read within bounds of size and time, and its Retry-After.

urllib3's timeouts are per read of the socket: a server that sends a byte now and then never runs into them. So the body
is read in pieces as they come (``read1``), against a deadline; and what comes before it, which is read in one go, is
ended from outside (``bound_heads``). The body is read as it is sent: who asks for ``identity`` and
gets it compressed is refused, for what unpacks without bound can be made.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urllib3 import BaseHTTPResponse, HTTPResponse, PoolManager

PIECE = 256 * 1024
LONGEST_WAIT = 3600.0
"""The most seconds that an answer may ask us to wait: we ask again by then, whatever it says."""


class TooLargeError(Exception):
    """A body is larger than it may be."""


class TooSlowError(HTTPError):
    """A body did not come within its time."""


class PackedError(Exception):
    """A body is compressed, though that was not asked for."""


def body(response: BaseHTTPResponse, most: int, deadline: float) -> bytes:
    """Return the body of an answer that was asked for with ``preload_content=False``.

    Args:
        response: The answer.
        most: The most bytes.
        deadline: Of ``time.monotonic``.

    Raises:
        TooLargeError: It is larger.
        PackedError: It is compressed.
        HTTPError: It did not come, or not in time.
    """
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in {"", "identity"}:
        raise PackedError
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most):  # noqa: PLR2004 - no file is that long
        raise TooLargeError
    parts, size = [], 0
    while part := response.read1(PIECE, decode_content=False):
        parts.append(part)
        size += len(part)
        if size > most:
            raise TooLargeError
        if time.monotonic() > deadline:
            raise TooSlowError("the answer takes too long")
    return b"".join(parts)


def bound_heads(pool: PoolManager, seconds: float) -> None:
    """Have the status line and the headers of each answer come within a time, however they are dripped.

    Args:
        pool: What asks; nothing was asked through it yet.
        seconds: For them. After it the connection is cut, and what waits for them raises an HTTPError.
    """

    class Plain(HTTPConnection):
        def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
            with _cut_after(self.sock, seconds):
                return super().getresponse()

    class Secure(HTTPSConnection):
        def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
            with _cut_after(self.sock, seconds):
                return super().getresponse()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


@contextmanager
def _cut_after(connected: socket.socket | None, seconds: float) -> Iterator[None]:
    """Cut a connection when the time is over; until then it is left alone.

    Raises:
        TimeoutError: It is. Headers that end with the connection are whole to http.client, and an answer without a
            length, and without a body, would be one.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        if connected is not None:
            with suppress(OSError):  # it is closed already
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # below TLS, which another thread is reading

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError("the head of the answer takes too long")


def retry_after(response: BaseHTTPResponse) -> float | None:
    """Return the seconds that an answer asks us to wait; None: it does not say."""
    said = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", said):  # a fraction is none of HTTP's, and some send it
        return min(float(said), LONGEST_WAIT)
    try:
        parts = parsedate_tz(said)
        seconds = None if parts is None else mktime_tz(parts) - time.time()
    except (ValueError, OverflowError, TypeError, IndexError):  # a date that is none
        return None
    return None if seconds is None else min(max(0.0, seconds), LONGEST_WAIT)
