"""The control socket: both ends, over a real unix socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ingestd.errors import (
    ConfigError,
    DocumentError,
    FatalError,
    IngestError,
    Stopped,
    TransientError,
    UnavailableError,
)
from ingestd.ops.control import SOCKET_NAME, ControlServer, NotRunning, _described, _rebuilt, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from ingestd.model import Json

    Commands = Mapping[str, Callable[[Mapping[str, Json]], Json]]


@contextlib.contextmanager
def serving(path: Path, commands: Commands) -> Iterator[ControlServer]:
    """Serve commands for the length of a with statement."""
    server = ControlServer(path, commands)
    server.start()
    try:
        yield server
    finally:
        server.close()


def echo(arguments: Mapping[str, Json]) -> Json:
    """Return what came in."""
    return dict(arguments)


def raw(path: Path, request: bytes) -> bytes:
    """Send bytes as they are; return all that comes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_command_gets_its_arguments_and_its_answer_comes_back(tmp_path: Path) -> None:
    """Any JSON goes there and back, also names that are no UTF-8."""
    arguments: dict[str, Json] = {"ids": [1, 2, None], "document_id": "in\udcffbox/ä.txt", "deep": {"x": [True, 1.5]}}
    path = tmp_path / SOCKET_NAME
    with serving(path, {"dead-letters/replay": echo}):
        assert arguments == call(path, "dead-letters/replay", arguments, 10)


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    """An answer far beyond the socket's buffers is not cut."""
    path = tmp_path / SOCKET_NAME
    with serving(path, {"list": lambda _: ["x" * 1000] * 20_000}):
        answer = call(path, "list", {}, 30)
    assert answer == ["x" * 1000] * 20_000


def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    """The file's mode is 0600, whatever the process's umask."""
    path = tmp_path / SOCKET_NAME
    before = os.umask(0)
    try:
        with serving(path, {}):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("milvus.uri: wrong; say http://…", "state_dir: missing"),
        DocumentError("inbox/a.pdf: not a PDF"),
        TransientError("try later", wait=2.5),
        UnavailableError("milvus", "it is away", wait=None),
        FatalError("state unknown"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_class_and_all_that_it_says(tmp_path: Path, error: IngestError) -> None:
    """What a command raises in the daemon is raised in the caller: class, message and attributes."""

    def fail(_arguments: Mapping[str, Json]) -> Json:
        raise error

    path = tmp_path / SOCKET_NAME
    with serving(path, {"x": fail}), capture_logs(), pytest.raises(type(error)) as raised:
        call(path, "x", {}, 10)
    assert vars(error) == vars(raised.value)
    assert str(error) == str(raised.value)


@given(st.text(), st.text(), st.none() | st.floats(0, 1e9))
def test_errors_survive_the_way(message: str, dependency: str, wait: float | None) -> None:
    """Describing an error and building it again changes nothing."""
    error = UnavailableError(dependency, message, wait=wait)
    rebuilt = _rebuilt(_described(error))
    assert isinstance(rebuilt, UnavailableError)
    assert (message, dependency, wait) == (str(rebuilt), rebuilt.dependency, rebuilt.wait)


def test_a_command_that_a_stop_ends_says_so(tmp_path: Path) -> None:
    """It is no fault that anybody has to look for."""

    def stopped(_arguments: Mapping[str, Json]) -> Json:
        raise Stopped("embedder")

    path = tmp_path / SOCKET_NAME
    with serving(path, {"x": stopped}), capture_logs() as logs:
        with pytest.raises(IngestError, match="is stopping"):
            call(path, "x", {}, 10)
        assert logs == []


def test_a_command_that_breaks_is_logged_and_says_where_to_look(tmp_path: Path) -> None:
    """An error that nobody foresaw leaves its traceback in the daemon's log, and the daemon goes on."""

    def broken(_arguments: Mapping[str, Json]) -> Json:
        raise ZeroDivisionError

    path = tmp_path / SOCKET_NAME
    with serving(path, {"x": broken, "echo": echo}):
        with capture_logs() as logs, pytest.raises(IngestError, match=r"ZeroDivisionError .* its log"):
            call(path, "x", {}, 10)
        assert [("a command broke", "x")] == [(line["event"], line["command"]) for line in logs]
        assert call(path, "echo", {}, 10) == {}


def test_an_unknown_command_names_the_known_ones(tmp_path: Path) -> None:
    """A command of another version of ourselves is refused with what there is."""
    path = tmp_path / SOCKET_NAME
    with serving(path, {"status": echo, "forget": echo}), pytest.raises(ConfigError, match="forget, status"):
        call(path, "explode", {}, 10)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /echo HTTP/1.0\r\n\r\n", b"405"),
        (b"POST /echo HTTP/1.0\r\nContent-Length: 3\r\n\r\n{{{", b"400"),
        (b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]", b"400"),
        (b"POST /echo HTTP/1.0\r\nContent-Length: 9999999\r\n\r\n", b"413"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_command_is_refused(tmp_path: Path, request_bytes: bytes, status: bytes) -> None:
    """Wrong methods, bodies that are no JSON object, too large ones and noise get a proper status."""
    path = tmp_path / SOCKET_NAME
    with serving(path, {"echo": echo}):
        assert raw(path, request_bytes).split()[1] == status


def test_without_a_daemon_the_caller_is_told_so(tmp_path: Path) -> None:
    """No file, no directory, and a file that nobody listens on: all mean that no daemon runs."""
    path = tmp_path / SOCKET_NAME
    with pytest.raises(NotRunning):
        call(tmp_path / "absent" / SOCKET_NAME, "status", {}, 10)
    with pytest.raises(NotRunning):
        call(path, "status", {}, 10)
    with socket.socket(socket.AF_UNIX) as forgotten:
        forgotten.bind(str(path))
    with pytest.raises(NotRunning):
        call(path, "status", {}, 10)


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    """A daemon that was killed leaves its socket file; the next one takes its place."""
    path = tmp_path / SOCKET_NAME
    code = (
        "import signal, sys\nfrom pathlib import Path\nfrom ingestd.ops.control import ControlServer\n"
        "ControlServer(Path(sys.argv[1]), {}).start()\nprint(flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        daemon.send_signal(signal.SIGKILL)
    assert path.is_socket()
    with serving(path, {"echo": echo}):
        assert call(path, "echo", {"a": 1}, 10) == {"a": 1}
    assert not path.exists()


def test_a_living_daemon_is_not_pushed_aside(tmp_path: Path) -> None:
    """A second daemon on the same socket is refused, and the first one goes on."""
    path = tmp_path / SOCKET_NAME
    with serving(path, {"echo": echo}):
        with pytest.raises(ConfigError, match="another daemon answers"):
            ControlServer(path, {})
        assert call(path, "echo", {}, 10) == {}


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """What is no socket is never removed: the message says to move it."""
    path = tmp_path / SOCKET_NAME
    path.write_text("precious")
    with pytest.raises(ConfigError, match="move it away"):
        ControlServer(path, {})
    assert path.read_text() == "precious"


def test_a_directory_that_is_missing_is_a_config_error(tmp_path: Path) -> None:
    """The message names the socket and what the directory has to be."""
    with pytest.raises(ConfigError, match=r"state_dir: the control socket .* cannot be made"):
        ControlServer(tmp_path / "absent" / SOCKET_NAME, {})


def test_a_path_beyond_the_kernels_limit_works(tmp_path: Path) -> None:
    """A state directory may lie deeper than the 107 bytes that a socket's address holds."""
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    path = directory / SOCKET_NAME
    with serving(path, {"echo": echo}):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert call(path, "echo", {"a": 1}, 10) == {"a": 1}
    assert not path.exists()
    with pytest.raises(NotRunning):
        call(path, "echo", {}, 10)


def test_a_silent_daemon_is_unavailable_after_the_timeout(tmp_path: Path) -> None:
    """The caller is not held for ever, and is told that the command may still be carried out."""
    path = tmp_path / SOCKET_NAME
    release = threading.Event()
    with serving(path, {"slow": lambda _: release.wait(30)}):
        with pytest.raises(UnavailableError, match="may still carry it out"):
            call(path, "slow", {}, 0.2)
        release.set()


def test_a_daemon_that_dies_meanwhile_is_unavailable(tmp_path: Path) -> None:
    """A connection that ends without an answer is told apart from a daemon that was never there."""
    path = tmp_path / SOCKET_NAME
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(path))
        dying.listen()

        def die() -> None:
            connection, _ = dying.accept()
            connection.recv(65536)
            connection.close()

        death = threading.Thread(target=die)
        death.start()
        with pytest.raises(UnavailableError, match="went away"):
            call(path, "status", {}, 10)
        death.join(10)
