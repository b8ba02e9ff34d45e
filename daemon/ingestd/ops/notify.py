"""Talking to systemd: readiness, status, the watchdog, and more time to start.

The protocol is one datagram of ``KEY=value`` lines to the socket that ``$NOTIFY_SOCKET`` names (sd_notify(3)); an
address that starts with ``@`` lies in the abstract namespace. Nothing here decides whether the daemon is well:
``watchdog`` is called by whoever watches the heartbeats, and only while all of them are fresh.

The libraries for this were turned down: they are two functions long, and one of them is called ``systemd``.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_SEND_TIMEOUT = 5.0
"""Seconds. systemd reads at once; a queue that stays full must not hold the caller for ever."""

_log = structlog.get_logger("ingestd.notify")


class Notifier:
    """The supervisor, or nobody: without an address every message is dropped in silence.

    A message that cannot be delivered is logged and not raised: the supervisor acts on its absence.

    Args:
        address: A path, or ``@`` and a name; None when nobody asked to be told.
        watchdog: Seconds after which the supervisor counts silence as death; None when it does not watch.
    """

    def __init__(self, address: str | None, *, watchdog: float | None = None) -> None:
        if address is not None and not address.startswith(("/", "@")):
            _log.warning("the supervisor's address is of a kind that is not known, it is not told", address=address)
            address = None
        self._address = address
        self._watchdog = watchdog

    @staticmethod
    def from_environment(environment: MutableMapping[str, str]) -> Notifier:
        """Return the supervisor that the environment names, and take it out, so that no child talks to it."""
        address = environment.pop("NOTIFY_SOCKET", None)
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        # The variables reach everything that the service starts; the pid says whom they are meant for.
        meant = not pid or pid == str(os.getpid())
        watched = meant and microseconds.isdecimal() and int(microseconds) > 0
        return Notifier(address or None, watchdog=int(microseconds) / 1e6 if watched else None)

    def watchdog_interval(self) -> float | None:
        """Return the seconds between signs of life: half of what the supervisor allows. None: it does not watch."""
        return None if self._watchdog is None else self._watchdog / 2

    def ready(self, status: str) -> None:
        """Say that the start, or what was begun by ``reloading``, is over."""
        self._send("READY=1", f"STATUS={_line(status)}", *_silence(self._watchdog))

    def reloading(self, status: str) -> None:
        """Say that the configuration is being read again; ``ready`` ends it, in this image or in the next."""
        # By the clock that the supervisor reads: an answer to an older wish is none to its last one.
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", f"STATUS={_line(status)}")

    def status(self, status: str) -> None:
        """Say in one line what the daemon is doing: ``systemctl status`` shows it."""
        self._send(f"STATUS={_line(status)}")

    def watchdog(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        """Say that the daemon is draining."""
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def extend(self, seconds: float, *, watched: bool = False) -> None:
        """Ask for at least this much more time to start, to stop or to reload, from now on.

        Args:
            seconds: How much.
            watched: Whether the watchdog is awake already, as it is in an image that takes the place of another: it is
                to bear so long a silence too, until ``ready``.
        """
        lines = [f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"]
        if watched and self._watchdog is not None:
            lines += _silence(max(seconds, self._watchdog))
        self._send(*lines)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        # An address in the abstract namespace begins with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_TIMEOUT)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            _log.warning("the supervisor could not be told", error=str(error), lines=list(lines))


def _silence(seconds: float | None) -> list[str]:
    """Return what sets the watchdog: nothing where there is none."""
    return [] if seconds is None else [f"WATCHDOG_USEC={int(seconds * 1e6)}"]


def _line(text: str) -> str:
    return " ".join(text.split())
