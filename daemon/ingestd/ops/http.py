"""The health server: probes for a supervisor, metrics for Prometheus, and a page for a person.

Owns the listening socket and the routes. What is well is not decided here: whoever put the daemon together says so
through ``Health``. The server only reads, so that it can be reached without a password; what changes something goes
over the control socket.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import structlog
from prometheus_client.exposition import choose_encoder

from ingestd.errors import ConfigError
from ingestd.ops._page import render
from ingestd.ops._wsgi import Response, Server, json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import CollectorRegistry

    from ingestd.model import Check, Json, Totals

_THREADS = 4
_BODY_LIMIT = 4096
_PROBES = frozenset({"/livez", "/readyz", "/startupz"})

_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}

_log = structlog.get_logger("ingestd.http")


class Health(Protocol):
    """What the server asks. Called from several threads; must not wait for Milvus, a model or a lock held long."""

    def live(self) -> Sequence[Check]:
        """Say whether the daemon's own threads go round. Never asks Milvus: a restart would not bring it back."""
        ...

    def ready(self) -> Sequence[Check]:
        """Say whether documents get through now: models, sources, state, Milvus, breakers, held deletes."""
        ...

    def started(self) -> Sequence[Check]:
        """Say whether the start is over: models loaded, schema compared."""
        ...

    def totals(self) -> Totals:
        """Return what became of the events of this run."""
        ...

    def overview(self) -> Mapping[str, Json]:
        """Return what else there is to say, in the order in which a person wants to read it.

        A list of objects becomes a table with a column for each key (``sources``, ``collections``), anything else a
        line (``version``, ``uptime_seconds``, ``dead_letters``). A key that ends in ``_seconds`` is a duration.
        """
        ...


class HealthServer:
    """Serves ``/livez``, ``/readyz``, ``/startupz``, ``/metrics`` and ``/`` from ``start`` to ``close``.

    The socket is bound at once, so that a port that is taken is known before anything else is started.

    Args:
        listen: ``host:port``; an IPv6 address in brackets; port 0 lets the kernel choose.
        health: What to ask.
        registry: What ``/metrics`` shows.

    Raises:
        ConfigError: The address cannot be listened on, and why.
    """

    def __init__(self, listen: str, health: Health, registry: CollectorRegistry) -> None:
        self._health = health
        self._registry = registry
        bound = bind(listen)
        host, port = bound.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._routes: Mapping[str, Callable[[WSGIEnvironment], Response]] = {
            "/": self._page,
            "/livez": lambda _: _probe(health.live()),
            "/readyz": lambda _: _probe(health.ready()),
            "/startupz": lambda _: _probe(health.started()),
            "/metrics": self._metrics,
        }
        self._server = Server("health", self._application, bound, threads=_THREADS, body_limit=_BODY_LIMIT)

    @property
    def alive(self) -> bool:
        """Whether the server still serves."""
        return self._server.alive

    def start(self) -> None:
        """Serve, on threads of its own."""
        self._server.start()

    def close(self) -> None:
        """Stop serving. Safe to call again."""
        self._server.close()

    def _application(self, environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._answer(environment).send(environment, start_response)

    def _answer(self, environment: WSGIEnvironment) -> Response:
        path, method = environment["PATH_INFO"], environment["REQUEST_METHOD"]
        route = self._routes.get(path)
        if route is None:
            return _plain(HTTPStatus.NOT_FOUND, f"there is {', '.join(self._routes)}")
        if method not in {"GET", "HEAD"}:
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "this server only reads", {"Allow": "GET, HEAD"})
        try:
            return route(environment)
        except Exception:  # noqa: BLE001 - logged and answered: a check that breaks is neither healthy nor silent
            _log.exception("a health request failed", path=path)
            status = HTTPStatus.SERVICE_UNAVAILABLE if path in _PROBES else HTTPStatus.INTERNAL_SERVER_ERROR
            return _plain(status, "asking the daemon failed; its log says why")

    def _metrics(self, environment: WSGIEnvironment) -> Response:
        encode, content_type = choose_encoder(environment.get("HTTP_ACCEPT", ""))
        return Response(HTTPStatus.OK, encode(self._registry), content_type)

    def _page(self, _environment: WSGIEnvironment) -> Response:
        health = self._health
        checks = dict.fromkeys([*health.live(), *health.started(), *health.ready()])  # one line for each, in order
        page = render(list(checks), health.totals(), health.overview())
        # A document id may hold what is no UTF-8; it is shown as an escape.
        body = page.encode("utf-8", "backslashreplace")
        return Response(HTTPStatus.OK, body, "text/html; charset=utf-8", _PAGE_HEADERS)


def _probe(checks: Sequence[Check]) -> Response:
    ok = all(check.ok for check in checks)
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return json_response(status, {"ok": ok, "checks": [asdict(check) for check in checks]})


def _plain(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Response:
    body = f"{status.value} {status.phrase}: {text}\n".encode()
    return Response(status, body, "text/plain; charset=utf-8", headers or {})


def bind(listen: str) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ConfigError: It cannot be listened on, and why.
    """
    host, port = _parse(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
        both = host == "::" and socket.has_dualstack_ipv6()  # "[::]" means every address, of both kinds
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except socket.gaierror as error:
        raise ConfigError(f"http.listen: {host!r} is no address of this machine: {error.strerror}") from error
    except OSError as error:
        raise ConfigError(f"http.listen: {_why(listen, port, error)}") from error


def _parse(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not colon or not bare or not port.isdecimal() or int(port) > 65535 or (":" in bare) != bracketed:  # noqa: PLR2004 - the largest port
        raise ConfigError(
            f"http.listen: {listen!r} is not HOST:PORT; for example 127.0.0.1:8321, or [::1]:8321 for IPv6"
        )
    return bare, int(port)


def _why(listen: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"something listens on {listen} already; if that is another ingestd, stop it, or give this one another "
            "port (INGESTD_HTTP__LISTEN=127.0.0.1:0 takes a free one)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{listen} is no address of this machine; 127.0.0.1 serves this machine, 0.0.0.0 everybody"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; choose one from 1024 up"
    return f"{listen} cannot be listened on: {error.strerror}"
