"""The control socket: how a command reaches the running daemon, and how it finds out that none runs.

Both ends are here, so that they cannot drift apart: ``ControlServer`` in the daemon, ``call`` in the command. A
command is a POST of a JSON object to ``/NAME``; the answer is JSON, and an error keeps its class on the way.

Whoever may open the socket may do everything, so the file's mode is the access control: 0600, before anybody can
connect. A port with a token was turned down: the state directory has an owner already, and a token would need a place.
A lock file with a signal was, too: it carries no arguments and no answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import structlog

from ingestd.errors import (
    ConfigError,
    DocumentError,
    FatalError,
    IngestError,
    Stopped,
    TransientError,
    UnavailableError,
)
from ingestd.ops._wsgi import Response, Server, json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from wsgiref.types import StartResponse, WSGIEnvironment

    from ingestd.model import Json

SOCKET_NAME = "control.sock"
"""In the state directory."""

_THREADS = 4
_BODY_LIMIT = 1024 * 1024
_PATH_LIMIT = 107
"""Bytes of a unix socket's path: sun_path has 108, with its end (unix(7))."""

_STATUS: tuple[tuple[type[IngestError], HTTPStatus], ...] = (
    (ConfigError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DocumentError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (TransientError, HTTPStatus.SERVICE_UNAVAILABLE),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (FatalError, HTTPStatus.INTERNAL_SERVER_ERROR),
)

_log = structlog.get_logger("ingestd.control")


class NotRunning(Exception):  # noqa: N818 - a state, and each command has its own way on from it
    """No daemon listens on the control socket."""


class ControlServer:
    """Serves commands on a unix socket from ``start`` to ``close``.

    The caller holds the lock of the state directory: a socket file that is there is left over from a daemon that
    died, unless somebody answers on it.

    Args:
        path: The socket's file; its directory is there.
        commands: By name; each takes the arguments and returns the answer. Called from several threads. What it
            raises reaches the caller with its class. An error that must end the daemon has to do so itself.

    Raises:
        ConfigError: The socket cannot be made there, and why.
    """

    def __init__(self, path: Path, commands: Mapping[str, Callable[[Mapping[str, Json]], Json]]) -> None:
        self._path = path
        self._commands = commands
        _clear(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _reachable(path) as address:
                bound.bind(address)
            path.chmod(0o600)  # nobody can connect yet: that begins with listen(), below
            self._identity = _identity(path)
        except OSError as error:
            bound.close()
            raise ConfigError(
                f"state_dir: the control socket {path} cannot be made ({error.strerror}); "
                "the directory has to be writable, on a file system that has sockets"
            ) from error
        self._server = Server("control", self._application, bound, threads=_THREADS, body_limit=_BODY_LIMIT)

    @property
    def alive(self) -> bool:
        """Whether commands are still served."""
        return self._server.alive

    def start(self) -> None:
        """Serve, on threads of its own."""
        self._server.start()

    def close(self) -> None:
        """Stop serving and remove the socket's file. Safe to call again."""
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._identity:  # not the next daemon's
                self._path.unlink()

    def _application(self, environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._answer(environment).send(environment, start_response)

    def _answer(self, environment: WSGIEnvironment) -> Response:
        name = environment["PATH_INFO"].removeprefix("/")
        command = self._commands.get(name)
        if command is None:
            known = ", ".join(sorted(self._commands))
            return _refusal(HTTPStatus.NOT_FOUND, f"the running daemon has no command {name!r}; it has {known}")
        if environment["REQUEST_METHOD"] != "POST":
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "a command is a POST", {"Allow": "POST"})
        try:
            arguments = json.loads(environment["wsgi.input"].read() or b"{}")
        except ValueError as error:
            return _refusal(HTTPStatus.BAD_REQUEST, f"the arguments are no JSON: {error}")
        if not isinstance(arguments, dict):
            return _refusal(HTTPStatus.BAD_REQUEST, "the arguments are no JSON object")
        return _run(name, command, arguments)


def call(socket_path: Path, name: str, arguments: Mapping[str, Json], timeout: float) -> Json:
    """Have the running daemon carry out a command.

    Args:
        socket_path: The control socket of the daemon's state directory.
        name: The command.
        arguments: As the command wants them.
        timeout: Seconds that the daemon may be silent.

    Returns:
        What the command returned.

    Raises:
        NotRunning: No daemon listens there.
        ConfigError: The command says so, or this user may not talk to the daemon.
        UnavailableError: The command says so, or the daemon did not answer; whether it did anything is not known then.
        IngestError: As the command raised it: the same class with the same message.
    """
    connection = _Connection(socket_path, timeout)
    with contextlib.closing(connection):
        try:
            connection.request("POST", f"/{name}", json.dumps(dict(arguments)), {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise NotRunning(f"no daemon listens on {socket_path}") from error
        except PermissionError as error:
            raise ConfigError(
                f"state_dir: {socket_path} belongs to another user's daemon; run the command as that user"
            ) from error
        except TimeoutError as error:
            raise UnavailableError(
                "daemon", f"the running daemon did not answer {name!r} within {timeout:g} s; it may still carry it out"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                "daemon", f"the running daemon went away during {name!r} ({error or type(error).__name__})"
            ) from error
    return _outcome(name, status, body)


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of to a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with _reachable(self._path) as address:
            self.sock.connect(address)


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield an address of the socket that fits: a long one is shortened through a descriptor of its directory."""
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _clear(path: Path) -> None:
    """Remove the socket file of a daemon that died."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"state_dir: {path.parent} cannot be used ({error.strerror})") from error
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"state_dir: {path} is in the way of the control socket and is no socket; move it away")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe, _reachable(path) as address:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"state_dir: whose socket {path} is cannot be found out ({error.strerror})") from error
    raise ConfigError(f"state_dir: another daemon answers on {path}; stop it, or give this one a state_dir of its own")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _run(name: str, command: Callable[[Mapping[str, Json]], Json], arguments: Mapping[str, Json]) -> Response:
    try:
        return json_response(HTTPStatus.OK, command(arguments))
    except IngestError as error:
        _log.warning("a command failed", command=name, error=str(error))
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
        return json_response(status, {"error": _described(error)})
    except Stopped:
        message = "the daemon is stopping, and left this undone; ask again when it runs"
        return json_response(HTTPStatus.SERVICE_UNAVAILABLE, {"error": {"class": "IngestError", "message": message}})
    except Exception as error:  # noqa: BLE001 - logged and answered: a person waits at the other end
        _log.exception("a command broke", command=name)
        message = f"{type(error).__name__} in the running daemon; its log has the traceback"
        return json_response(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": {"class": "IngestError", "message": message}})


def _refusal(status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> Response:
    # The caller is another version of ourselves, or curl: a set-up that does not fit together.
    return json_response(status, {"error": {"class": "ConfigError", "message": message}}, headers)


def _described(error: IngestError) -> dict[str, Json]:
    kind = next((kind.__name__ for kind, _ in _STATUS if isinstance(error, kind)), "IngestError")
    described: dict[str, Json] = {"class": kind, "message": str(error)}
    match error:
        case ConfigError():
            described["faults"] = list(error.faults)
        case TransientError():
            described["wait"] = error.wait
        case UnavailableError():
            described |= {"wait": error.wait, "dependency": error.dependency}
    return described


def _outcome(name: str, status: int, body: bytes) -> Json:
    """Return a command's answer, or raise what it raised."""
    try:
        answer = cast("Json", json.loads(body))
    except ValueError as error:
        raise IngestError(f"the running daemon answered {name!r} with status {status} and no JSON") from error
    if status == HTTPStatus.OK:
        return answer
    described = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(described, dict):
        raise IngestError(f"the running daemon answered {name!r} with status {status}")
    raise _rebuilt(described)


def _rebuilt(described: Mapping[str, Json]) -> IngestError:
    message = str(described.get("message", ""))
    waited = described.get("wait")
    wait = float(waited) if isinstance(waited, int | float) else None
    match described.get("class"):
        case "ConfigError":
            faults = described.get("faults")
            return ConfigError(*(map(str, faults) if isinstance(faults, list) else (message,)))
        case "DocumentError":
            return DocumentError(message)
        case "TransientError":
            return TransientError(message, wait=wait)
        case "UnavailableError":
            return UnavailableError(str(described.get("dependency", "")), message, wait=wait)
        case "FatalError":
            return FatalError(message)
    return IngestError(message)
