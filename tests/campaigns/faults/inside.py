"""Runs inside the daemon: sends it SIGKILL at the n-th passage of a named point.

``arm`` is called by ``sitecustomize`` (``Ground.patch``) before anything of the daemon runs. It wraps functions by
name, and fails where one is gone, so that a renaming cannot leave a point unvisited without a word. Before the kill a
marker is written that says which point it was: nothing else may count as a kill at that point.

What is killed is the process and nothing else: what it asked Milvus for is done or not, as it happens.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ingestd.errors import FatalError
from ingestd.extractors._isolated import IsolatedExtraction
from ingestd.milvus.client import Connection
from ingestd.model import Verdict
from ingestd.sinks import milvus
from ingestd.sources._kafka.commits import Commits
from ingestd.sources._payload import FilePayload
from ingestd.stages.chunk import Chunk
from ingestd.stages.embed import Embed
from ingestd.store import dead_letters, ledger, settlement, writer
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable


class Kill:
    """A kill that is to happen.

    Args:
        point: Its name.
        passage: Which passage of the point it is, from 1.
        delay: Seconds that a request is under way when it happens, at the point that is about that.
        marker: The file that says that it happened.
    """

    def __init__(self, point: str, passage: int, delay: float, marker: str) -> None:
        self.delay = delay
        self._point = point
        self._left = passage
        self._marker = marker
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        """Count a passage; return whether it is the one."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def now(self) -> None:
        """Write the marker, and die."""
        with open(self._marker, "w", encoding="utf-8") as marker:  # noqa: PTH123 - as little as possible comes between
            marker.write(self._point)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        raise FatalError("a process went on after SIGKILL")

    def here(self) -> None:
        """Pass the point."""
        if self.is_due():
            self.now()


class Call(NamedTuple):
    """A call of a wrapped function."""

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    answer: Any = None


def arm(point: str, passage: int, delay: float, marker: str) -> None:
    """Have this process die at the n-th passage of a point.

    Args:
        point: Of ``POINTS``.
        passage: Which passage, from 1.
        delay: As for ``Kill``.
        marker: The same.
    """
    POINTS[point](Kill(point, passage, delay, marker))


def _before(owner: Any, name: str, kill: Kill, counts: Callable[[Call], bool] = lambda call: True) -> None:
    original = vars(owner)[name]

    @functools.wraps(original)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        if counts(Call(args, keywords)):
            kill.here()
        return original(*args, **keywords)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, kill: Kill, counts: Callable[[Call], bool] = lambda call: True) -> None:
    original = vars(owner)[name]

    @functools.wraps(original)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        answer = original(*args, **keywords)
        if counts(Call(args, keywords, answer)):
            kill.here()
        return answer

    setattr(owner, name, wrapped)


def _something(call: Call) -> bool:
    """Return whether a method's first argument is about anything: a probe is about a key that nobody has."""
    return bool(call.args[1]) and list(call.args[1]) != [milvus._NOBODY]


def _applies(function: Any) -> Callable[[Call], bool]:
    """Return whether a change of the state's writer is of one kind: it is a partial of that function."""
    return lambda call: call.args[0].apply.func is function if hasattr(call.args[0].apply, "func") else False


def _is_upsert(call: Call) -> bool:
    return bool(call.args[1] == "upsert")


def _upsert_sent(kill: Kill) -> None:
    """The request is on its way, or being carried out, or its answer is coming."""
    original = Connection._attempt

    def wrapped(self: Any, operation: str, *args: Any) -> Any:
        if operation == "upsert" and kill.is_due():
            threading.Thread(target=original, args=(self, operation, *args), daemon=True).start()
            time.sleep(kill.delay)
            kill.now()
        return original(self, operation, *args)

    Connection._attempt = wrapped  # type: ignore[method-assign,assignment]


def _upsert_between(kill: Kill) -> None:
    """The first of several requests of one call was answered, the second is not sent."""
    upsert, send = milvus.MilvusSink.upsert, milvus.MilvusSink._send
    sent = threading.local()

    def upserting(self: Any, *args: Any, **keywords: Any) -> Any:
        sent.requests = 0
        try:
            return upsert(self, *args, **keywords)
        finally:
            del sent.requests

    def sending(self: Any, *args: Any, **keywords: Any) -> Any:
        if hasattr(sent, "requests"):
            sent.requests += 1
            if sent.requests == 2:
                kill.here()
        return send(self, *args, **keywords)

    milvus.MilvusSink.upsert, milvus.MilvusSink._send = upserting, sending  # type: ignore[method-assign]


def _is_letter(call: Call) -> bool:
    return call.args[1].verdict is Verdict.DEAD_LETTERED


_Sink = milvus.MilvusSink
POINTS: dict[str, Callable[[Kill], None]] = {
    "read": lambda kill: _after(FilePayload, "read", kill),
    "extracted": lambda kill: _after(IsolatedExtraction, "extract", kill),
    "chunked": lambda kill: _after(Chunk, "_chunk", kill),
    "embedded": lambda kill: _after(Embed, "_vectors", kill),
    "ahead-before-commit": lambda kill: _after(writer._Change, "run", kill, _applies(ledger.put)),
    "ahead-after-commit": lambda kill: _after(SqliteStore, "write_ahead", kill, _something),
    "upsert-before": lambda kill: _before(_Sink, "upsert", kill, _something),
    "upsert-sent": _upsert_sent,
    "upsert-applied": lambda kill: _after(Connection, "_attempt", kill, _is_upsert),
    "upsert-between": _upsert_between,
    "upsert-after": lambda kill: _after(_Sink, "upsert", kill, _something),
    "delete-before": lambda kill: _before(_Sink, "delete", kill, _something),
    "delete-after": lambda kill: _after(_Sink, "delete", kill, _something),
    "settle-before-commit": lambda kill: _after(writer._Change, "run", kill, _applies(settlement.settle)),
    "settle-after-commit": lambda kill: _after(SqliteStore, "settle", kill),
    "offset-before-commit": lambda kill: _after(Commits, "_watermarks", kill, lambda call: bool(call.answer)),
    "letter-written": lambda kill: _after(dead_letters.Settlement, "settle", kill, _is_letter),
}
"""What each point's kill wraps."""
