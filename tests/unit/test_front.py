"""What the outside is told while the daemon starts."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from ingestd import config
from ingestd.cli.front import STILL, Front
from ingestd.engine.health import Health
from ingestd.engine.pulse import Pulse
from ingestd.metrics import Metrics
from ingestd.ops.image import Reloads
from ingestd.parts import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = """
state_dir = "state"
[embedders.hash]
type = "hashing"
[collections.articles.chunker]
type = "whole"
[collections.articles.vectors.dense]
embedder = "hash"
"""


def test_a_long_step_of_the_start_asks_for_time_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holding millions of rows against the ledger takes longer than systemd grants a step, as an outage does."""
    file = tmp_path / "ingestd.toml"
    file.write_text(CONFIGURATION)
    now = 1000.0
    monkeypatch.setattr("ingestd.cli.front.time.monotonic", lambda: now)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, ExitStack() as stack:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        clock, metrics = SystemClock(), Metrics("1")
        daemon = Front(config.load(file), stack, Reloads(0, 0), once=False)
        daemon.step("comparing the collection articles", Health(Pulse(clock), clock, "1"), metrics)
        first = systemd.recv(1000)
        assert first.startswith(b"EXTEND_TIMEOUT_USEC=")
        assert systemd.recv(1000) == b"STATUS=comparing the collection articles"
        daemon.still()
        with pytest.raises(BlockingIOError):
            systemd.recv(1000)
        for _ in range(2):
            now += STILL
            daemon.still()
            daemon.still()
            assert systemd.recv(1000) == first
            with pytest.raises(BlockingIOError):
                systemd.recv(1000)


def test_a_step_is_granted_as_long_as_a_model_may_take_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systemd would end a start whose models take longer to load than its grant, over and over."""
    file = tmp_path / "ingestd.toml"
    file.write_text(CONFIGURATION + "[embedding]\nload_timeout_seconds = 7200\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, ExitStack() as stack:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        clock = SystemClock()
        daemon = Front(config.load(file), stack, Reloads(0, 0), once=False)
        daemon.step("loading the models", Health(Pulse(clock), clock, "1"), Metrics("1"))
        name, _, microseconds = systemd.recv(1000).partition(b"=")
        assert name == b"EXTEND_TIMEOUT_USEC"
        assert int(microseconds) > 7200 * 1_000_000
