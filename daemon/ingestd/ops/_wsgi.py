"""One small web server, for health and for the control socket: waitress on a socket that the caller has bound.

Owns the loop's thread, the bounded worker threads, and their end. waitress parses HTTP, limits sizes, numbers of
connections and idle times, and serves TCP and unix sockets alike; http.server does none of that and starts a thread
for each connection, and an asynchronous server would bring an event loop into a daemon of threads.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from waitress import wasyncore
from waitress.server import create_server

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping
    from http import HTTPStatus
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_CONNECTIONS = 128
"""Beyond these a connection waits to be accepted: at most until the oldest silent one is dropped."""
_IDLE_SECONDS = 5
"""A client that has begun no request, or not finished one, and is silent for so long is dropped."""
_CLEANUP_SECONDS = 1
_POLL_SECONDS = 1.0

_log = structlog.get_logger("ingestd.http")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whole: nothing here is large enough to be streamed."""

    status: HTTPStatus
    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def send(self, environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request: a HEAD request gets the same headers and no body."""
        headers = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **self.headers,
        }
        start_response(f"{self.status.value} {self.status.phrase}", list(headers.items()))
        return [] if environment["REQUEST_METHOD"] == "HEAD" else [self.body]


def json_response(status: HTTPStatus, value: object, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON, on one line with its end, as people read it with curl."""
    return Response(status, json.dumps(value).encode() + b"\n", "application/json", headers or {})


class Server:
    """Serves a WSGI application on a bound socket from ``start`` to ``close``.

    Args:
        name: What its threads are called.
        application: Must answer every request; called from several threads.
        bound: A bound stream socket; this object owns it from here on.
        threads: How many requests are worked on at once; others wait.
        body_limit: The most bytes of a request's body; a longer one gets 413.
    """

    def __init__(
        self, name: str, application: WSGIApplication, bound: socket.socket, *, threads: int, body_limit: int
    ) -> None:
        self._map: dict[int, Any] = {}
        self._server = create_server(
            application,
            map=self._map,
            sockets=[bound],
            threads=threads,
            ident="ingestd",
            connection_limit=_CONNECTIONS,
            channel_timeout=_IDLE_SECONDS,
            cleanup_interval=_CLEANUP_SECONDS,
            max_request_body_size=body_limit,
            max_request_header_size=16 * 1024,
            asyncore_use_poll=True,  # select() fails at the first descriptor above 1023
            log_socket_errors=False,  # a client that hangs up is not news
            clear_untrusted_proxy_headers=True,
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the server still serves."""
        return self._thread.is_alive() and not self._closing.is_set()

    def start(self) -> None:
        """Serve, on a thread of its own."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Let requests that are worked on finish, within the timeout, and stop serving. Safe to call again."""
        if self._closing.is_set():
            return
        deadline = time.monotonic() + timeout
        # The loop goes on meanwhile: it sends what the last requests answer.
        self._server.task_dispatcher.shutdown(timeout=timeout)
        self._closing.set()
        if self._thread.ident is not None:
            self._server.pull_trigger()
            self._thread.join(max(0.0, deadline - time.monotonic()) + _POLL_SECONDS)
        if self._server.task_dispatcher.threads or self._thread.is_alive():
            # A request that hangs still holds the loop's pipe; closing it would let that request write into whatever
            # gets its number next. The process is about to end, and takes it along.
            _log.warning("a request did not end in time", server=self._thread.name, timeout=timeout)
            return
        wasyncore.close_all(self._map)

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._turn()
            last = time.monotonic() + _POLL_SECONDS
            while self._pending() and time.monotonic() < last:
                self._turn()
        except Exception:  # noqa: BLE001 - logged, and seen by whoever watches ``alive``
            _log.exception("the server's loop ended", server=self._thread.name)

    def _turn(self) -> None:
        wasyncore.loop(timeout=_POLL_SECONDS, use_poll=True, map=self._map, count=1)

    def _pending(self) -> bool:
        return any(channel.total_outbufs_len for channel in self._server.active_channels.values())
