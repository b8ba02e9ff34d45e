"""A broker that answers some requests late: a proxy before it, which holds those back."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Late:
    """Passes bytes on between clients and a broker that advertises ``address``.

    Args:
        target: The broker's port; it may start later.
    """

    def __init__(self, target: int) -> None:
        self.seconds: dict[int, float] = {}
        """How long requests are held back, by their kind: Kafka's API keys."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._spawn(self._accept)

    def stop(self) -> None:
        """Close all connections, and end."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in self._open:
            one.close()

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]  # ours
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # stopped
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, broker]
                self._spawn(self._pump, client, broker, True)
                self._spawn(self._pump, broker, client, False)

    def _pump(self, source: socket.socket, target: socket.socket, requests: bool) -> None:  # noqa: FBT001 - ours
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if requests:  # one at a time: its length, its kind
                    self._ended.wait(self.seconds.get(int.from_bytes(data[4:6]), 0.0))
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def late(target: int) -> Iterator[Late]:
    """Run the proxy."""
    made = Late(target)
    try:
        yield made
    finally:
        made.stop()
