"""Talking to systemd, over a real datagram socket."""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import TYPE_CHECKING

import pytest

from ingestd.ops.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A listening supervisor and the address that it would put into the environment."""
    name = f"ingestd-test-{secrets.token_hex(8)}"
    address = f"@{name}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name if request.param == "abstract" else address)
        listener.settimeout(5)
        yield listener, address


def test_each_message_is_one_datagram_of_the_protocol(supervisor: tuple[socket.socket, str]) -> None:
    """Readiness, status, watchdog, stopping and more time arrive word for word, on both kinds of sockets."""
    listener, address = supervisor
    notifier = Notifier(address)
    notifier.extend(90)
    notifier.ready("watching 2 folders")
    notifier.watchdog()
    notifier.status("one\nSTOPPING=1")
    notifier.stopping("draining")
    expected = [
        b"EXTEND_TIMEOUT_USEC=90000000",
        b"READY=1\nSTATUS=watching 2 folders",
        b"WATCHDOG=1",
        b"STATUS=one STOPPING=1",  # a status cannot smuggle in another line
        b"STOPPING=1\nSTATUS=draining",
    ]
    assert expected == [listener.recv(4096) for _ in expected]


def test_a_reload_is_told_by_the_supervisors_clock(supervisor: tuple[socket.socket, str]) -> None:
    """With the time since which the answer counts; READY=1 ends it."""
    listener, address = supervisor
    before = time.monotonic_ns() // 1000
    Notifier(address).reloading("checking")
    first, second, third = listener.recv(4096).decode().splitlines()
    assert ("RELOADING=1", "STATUS=checking") == (first, third)
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_watchdog_that_is_awake_bears_the_next_images_start(supervisor: tuple[socket.socket, str]) -> None:
    """As long a silence as systemd is asked to wait, and its own again with READY=1; never a shorter one."""
    listener, address = supervisor
    notifier = Notifier(address, watchdog=60.0)
    notifier.extend(90, watched=True)
    notifier.extend(10, watched=True)
    notifier.extend(90)
    notifier.ready("watching")
    Notifier(address).extend(90, watched=True)
    expected = [
        b"EXTEND_TIMEOUT_USEC=90000000\nWATCHDOG_USEC=90000000",
        b"EXTEND_TIMEOUT_USEC=10000000\nWATCHDOG_USEC=60000000",
        b"EXTEND_TIMEOUT_USEC=90000000",
        b"READY=1\nSTATUS=watching\nWATCHDOG_USEC=60000000",
        b"EXTEND_TIMEOUT_USEC=90000000",
    ]
    assert expected == [listener.recv(4096) for _ in expected]


def test_the_environment_is_used_up() -> None:
    """The three variables are read and taken out, so that no child process can speak for the daemon."""
    environment = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "60000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = Notifier.from_environment(environment)
    assert environment == {"HOME": "/"}
    assert notifier.watchdog_interval() == pytest.approx(30)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
    ids=["absent", "for another process", "off", "not a number"],
)
def test_a_watchdog_that_is_not_meant_for_us_is_left_alone(environment: dict[str, str]) -> None:
    """Without a watchdog, or with somebody else's, there is no interval."""
    assert Notifier.from_environment(environment).watchdog_interval() is None


def test_without_a_pid_the_watchdog_is_ours() -> None:
    """sd_watchdog_enabled(3): a missing pid means any process."""
    assert Notifier.from_environment({"WATCHDOG_USEC": "2000000"}).watchdog_interval() == pytest.approx(1)


@pytest.mark.parametrize("address", [None, "vsock:2:1234", "/nonexistent/notify"])
def test_nobody_listening_hurts_nobody(address: str | None) -> None:
    """No supervisor, one of an unknown kind, and one that is gone: sending returns."""
    Notifier(address).ready("all is well")
