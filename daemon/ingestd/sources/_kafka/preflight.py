"""One connection to one broker before a client is made, to learn why a client would not come to be.

kafka-python swallows the cause: whatever a broker refuses, a client says that it could not bootstrap in time, and on a
TLS handshake that nobody answers it waits for ever (its bootstrap time-out does not bound that). So the first steps are
made here with a socket of our own, where TLS errors keep their class and everything has a time-out, and only SASL is
left to a connection of kafka-python's. Reading the causes out of its log lines was turned down.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from ingestd.errors import ConfigError, UnavailableError
from ingestd.sources._kafka.refusals import NO_TLS, refused, tls_refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_PORT = 9092
_CORRELATION = 0x696E6765
_API_VERSIONS = struct.pack(">hhih", 18, 0, _CORRELATION, 7) + b"ingestd"
"""Kafka's request of that name, in its version 0, with a client's id of 7 bytes."""
_MOST = 1 << 20
"""Bytes: no answer about versions is longer, and what says that it is, is no Kafka broker."""
_TLS_WANTED = "the broker speaks TLS on this port: add a section tls, or use its port without TLS"
_TLS_RECORDS = frozenset({0x15, 0x16})
"""How an alert and a handshake begin."""


class _Away(Exception):  # noqa: N818 - a verdict on one server
    """This server does not answer: the next one may."""


class _Server(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def preflight(
    bootstrap_servers: Sequence[str],
    options: Mapping[str, Any],
    timeout: float,
    *,
    dependency: str = "kafka",
) -> None:
    """Connect to the first server that answers, as a client would, and return if it takes us.

    Args:
        bootstrap_servers: HOST:PORT each.
        options: A client's options, those of ``client_options`` among them.
        timeout: Seconds for each server.
        dependency: For UnavailableError.

    Raises:
        ConfigError: It refuses us, or speaks something else; says why.
        UnavailableError: None answers; says why, server by server.
    """
    away = []
    for one in bootstrap_servers:
        server = _server(one)
        until = time.monotonic() + timeout
        try:
            _greet(server, options, until)
            _sign_in(server, options, until)
        except _Away as error:
            away.append(f"{server}: {error}")
        else:
            return
    raise UnavailableError(dependency, f"no broker can be used: {'; '.join(away)}")


def _server(text: str) -> _Server:
    address = text.rpartition("://")[2]
    host, separator, port = address.rpartition(":")
    if not separator or host.endswith(":") or (":" in host and not host.startswith("[")):
        return _Server(address.strip("[]"), DEFAULT_PORT)  # no port, or an IPv6 address alone
    if not port.isdigit():
        raise ConfigError(f"bootstrap_servers: {text!r} is no HOST:PORT")
    return _Server(host.strip("[]"), int(port))


def _greet(server: _Server, options: Mapping[str, Any], until: float) -> None:
    """Ask for the versions, which brokers answer before anything else."""
    tls = options.get("security_protocol", "PLAINTEXT") in {"SSL", "SASL_SSL"}
    with _connected(server, until) as plain:
        try:
            if not tls:
                answer = _ask(plain)
            else:
                context: ssl.SSLContext = options["ssl_context"]
                with context.wrap_socket(plain, server_hostname=server.host) as secured:
                    answer = _ask(secured)
        except OSError as error:
            _explain(server, error, until, tls=tls)
            raise _Away(_told(error)) from error
    if answer[:1] and answer[0] in _TLS_RECORDS and not tls:
        raise ConfigError(f"{server}: {_TLS_WANTED}")
    if len(answer) < 8 or int.from_bytes(answer[:4]) > _MOST or int.from_bytes(answer[4:8]) != _CORRELATION:  # noqa: PLR2004 - length and correlation id
        raise ConfigError(f"{server}: what answers there is no Kafka broker")


def _ask(connection: socket.socket) -> bytes:
    """Send the question, and return the first eight bytes of the answer, or fewer if it ends before."""
    connection.sendall(len(_API_VERSIONS).to_bytes(4) + _API_VERSIONS)
    answer = b""
    while len(answer) < 8:  # noqa: PLR2004 - length and correlation id
        part = connection.recv(8 - len(answer))
        if not part:
            if answer:
                return answer
            raise ConnectionResetError("it closed the connection at the first request")
        answer += part
    return answer


def _explain(server: _Server, error: OSError, until: float, *, tls: bool) -> None:
    """Raise what the error means, where that is more than that nobody answers.

    Raises:
        ConfigError: TLS is refused, or one side speaks it and the other does not.
    """
    if isinstance(error, ssl.SSLError):
        reason = tls_refusal(error)
        if reason is not None:
            raise ConfigError(f"{server}: {reason}") from error
    # The time may have gone by waiting for a handshake; a second look at something that listens is quick.
    until = max(until, time.monotonic() + 1)
    if tls and _speaks_plain(server, until):
        raise ConfigError(f"{server}: {NO_TLS}") from error
    if not tls and _speaks_tls(server, until):
        raise ConfigError(
            f"{server} speaks TLS on this port: add a section tls, or use its port without TLS"
        ) from error
    if tls and isinstance(error, ssl.SSLError | ConnectionResetError) and _speaks_tls(server, until):
        # Some end the connection without an alert; with TLS 1.3 that comes after our side of the handshake.
        raise ConfigError(
            f"{server} ends the TLS connection: it may ask for a client's certificate (tls.cert_file, tls.key_file), "
            "or not accept ours"
        ) from error


def _speaks_plain(server: _Server, until: float) -> bool:
    try:
        with _connected(server, until) as plain:
            return int.from_bytes(_ask(plain)[4:8]) == _CORRELATION
    except (OSError, _Away):
        return False


def _speaks_tls(server: _Server, until: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said over it
    try:
        with _connected(server, until) as plain, context.wrap_socket(plain, server_hostname=server.host):
            return True
    except (OSError, _Away):
        return False


def _connected(server: _Server, until: float) -> socket.socket:
    left = max(0.1, until - time.monotonic())
    try:
        connection = socket.create_connection(server, left)
    except OSError as error:
        raise _Away(_told(error)) from error
    connection.settimeout(max(0.1, until - time.monotonic()))
    return connection


def _sign_in(server: _Server, options: Mapping[str, Any], until: float) -> None:
    """Let kafka-python make a connection as its clients do, and ask for the brokers."""
    net = NetworkSelector()
    chosen = {**options, "bootstrap_servers": [str(server)], "metrics": None, "client_id": "ingestd-preflight"}
    manager = KafkaConnectionManager(net, **chosen)
    milliseconds = max(100.0, (until - time.monotonic()) * 1000)

    async def attempt() -> None:
        node = manager.cluster.bootstrap_brokers()[0].node_id
        connection = manager.get_connection(node, timeout_ms=milliseconds, pop_on_close=False)
        await manager.wait_for(connection.init_future, milliseconds)
        await manager.wait_for(manager.call_soon(manager.cluster.refresh_metadata, node), milliseconds)

    try:
        net.run(attempt)
    except UnavailableError as error:
        raise _Away(str(error)) from error
    except Exception as error:
        _judge(server, options, error)
        raise _Away(_told(error)) from error
    finally:
        manager.close()
        net.close()


def _judge(server: _Server, options: Mapping[str, Any], error: Exception) -> None:
    reason = refused(error)
    if reason is not None:
        raise ConfigError(f"{server}: {reason}") from error
    mechanism = options.get("sasl_mechanism")
    if mechanism is not None and not isinstance(error, KafkaError | OSError):
        # What the mechanisms raise themselves: a broker that cannot prove that it knows the password, no ticket, no
        # credentials of AWS. They have no class of their own.
        what = "no credentials of AWS are found" if isinstance(error, AttributeError) else error
        raise ConfigError(f"{server}: {mechanism} failed: {what}; see the section sasl") from error
    if mechanism is None and not isinstance(error, KafkaTimeoutError):
        raise _Away(f"{_told(error)}; it may want SASL: see the section sasl") from error


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    with contextlib.suppress(AttributeError):
        if error.strerror:  # type: ignore[attr-defined]  # an OSError's
            return str(error.strerror)  # type: ignore[attr-defined]
    return str(error) or type(error).__name__
