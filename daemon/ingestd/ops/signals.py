"""Signals: what ends the daemon, and what has it begin again with a new configuration.

SIGTERM, SIGINT and SIGHUP are blocked in every thread, from before the first library is imported (``hold``), and one
thread of ours takes them one by one (sigwait(3)). What is blocked stays pending over execve(2), so a signal that comes
while the process replaces its own image (``image``) is taken by the next one. Handlers on the main thread were turned
down: gRPC's and OpenBLAS's threads are given signals too, and what a handler had just been told would die with the old
image; an ignored signal would be lost, and stay ignored in the next image; and while the interpreter ends it puts the
default actions back, which kill. A second signal also ends a process whose main thread is stuck.

A start that is asked to stop, and is stuck in a call that nothing ends, is given up after ``STUCK_SECONDS``: nothing
of it has to be finished, its children end with their pipes, and no position has moved.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import structlog

from ingestd.errors import Stopped
from ingestd.ops.start import Late, Start

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

OURS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
WAKE = signal.SIGURG
"""Sent to the signals' own thread, to have it look up: by default it does nothing, so a stray one harms nobody."""
ONE_SIGNAL = 1.0
"""Seconds within which equal signals count as one: a terminal and ``make`` both pass on a Ctrl-C."""
STUCK_SECONDS = 15.0
"""For a start to unwind, once it is to be left: closing a Milvus Lite may take ten."""
_FAILURE = 1

log = structlog.get_logger(__name__)


def hold() -> None:
    """Keep the signals pending, for this thread and all that it will start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, OURS)


def release() -> None:
    """Let the signals do what they do to any program: for commands that are no daemon, and for child processes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)


class Signals:
    """Takes the signals, from construction to ``end``. Made by the main thread.

    While the daemon starts, the first signal has ``start`` left with Stopped; from ``hand_over`` on it asks for a
    drain. A second one, later than ``ONE_SIGNAL``, ends the process at once.

    Args:
        reloads: Whether SIGHUP asks for a new configuration. Where not, and where the terminal is gone that the
            process was started in, it stops like SIGTERM. One that is ignored, as nohup wants it, is left alone.
        timeout: Seconds for the start, after which it is left with Late; None: no bound.
        give_up: Called with what a start was left with that does not end; returns the process's exit code.
    """

    def __init__(
        self,
        *,
        reloads: bool,
        timeout: float | None = None,
        give_up: Callable[[Stopped], int] = lambda _why: _FAILURE,
    ) -> None:
        self.start = Start()
        self._reloads = reloads
        self._give_up = give_up
        self._late = None if timeout is None else time.monotonic() + timeout
        """When the start takes too long."""
        self._stuck: float | None = None
        """When it is given up."""
        self._terminal = _has_terminal()
        self._first: float | None = None
        self._leaving = False
        self._over = False
        self._drain: Callable[[], None] | None = None
        self._reload: Callable[[], None] | None = None
        self._missed = False
        self._passed: deque[int] = deque()
        self._lock = threading.Lock()
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        ours = OURS - {signal.SIGHUP} if ignored else OURS
        hold()
        if not ignored and signal.SIGHUP in signal.sigpending():
            signal.sigtimedwait({signal.SIGHUP}, 0)  # the configuration is not read yet: it will be the newest
        signal.signal(WAKE, lambda _number, _frame: None)  # what is ignored is not waited for everywhere
        self._waited = {*ours, WAKE}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, {WAKE})  # for the new thread, which waits for it as for the others
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {WAKE})
        for number in ours:
            # Whatever started us in this process may have threads already: those are not held.
            signal.signal(number, self._handled)

    @property
    def stopping(self) -> bool:
        """Whether the process is to end for good."""
        return self._first is not None

    def on_hangup(self, reload: Callable[[], None]) -> None:
        """Say who is to be told of a SIGHUP, on the signals' own thread; of one that has come already, now."""
        with self._lock:
            self._reload, missed = reload, self._missed
        if missed:
            reload()

    def hand_over(self, drain: Callable[[], None]) -> None:
        """Have the daemon drained from now on: its start is over. Raises what that is left with, if it is.

        Args:
            drain: Called from any thread; must not block.
        """
        self._drain = drain
        self.start.end()
        self._late = None
        if self._leaving:
            drain()

    def leave(self) -> None:
        """Have the daemon taken down: drained, or, while it starts, unwound."""
        self._leaving = True
        if not self.start.leave(Stopped("the start")) and self._drain is not None:
            self._drain()

    def end(self) -> None:
        """Take no signal any more: what comes from now on stays pending, for the next image if there is one."""
        self._over = True
        if self._thread.is_alive():
            signal.pthread_kill(self._thread.ident or 0, WAKE)
            self._thread.join()
        for number in self._passed:  # passed on, and too late: pending for this thread, which holds it, and goes on
            signal.pthread_kill(threading.get_ident(), number)

    def _listen(self) -> None:
        try:
            while not self._over:
                number = self._next()
                if number is None:
                    self._look_at_the_time()
                elif number != WAKE:
                    self._take(number)
                while self._passed:
                    self._take(self._passed.popleft())
        except BaseException:
            log.exception("no signal is heard any more, and the process ends")
            os._exit(_FAILURE)

    def _next(self) -> int | None:
        """Wait for the next signal, and return it; None: it is time to look at the start."""
        times = [time for time in (self._late, self._stuck) if time is not None]
        if not times:
            return signal.sigwait(self._waited)
        found = signal.sigtimedwait(self._waited, max(0.0, min(times) - time.monotonic()))
        return None if found is None else found.si_signo

    def _look_at_the_time(self) -> None:
        now, late = time.monotonic(), self._late  # which the main thread takes back when it is up
        if late is not None and now >= late:
            self._late = None
            self.start.leave(Late())
            self._expect_the_end()
        why = self.start.why
        if why is not None and self._stuck is not None and now >= self._stuck:
            log.error("the start does not end by itself, and the process does", seconds=STUCK_SECONDS)
            os._exit(self._give_up(why))

    def _expect_the_end(self) -> None:
        """Give a start that is being left its time to unwind."""
        if self.start.why is not None and self._stuck is None:
            self._stuck = time.monotonic() + STUCK_SECONDS

    def _take(self, number: int) -> None:
        if number == signal.SIGHUP and self._reloads and not (self._terminal and not _has_terminal()):
            self._hang_up()
        else:
            self._stop()

    def _hang_up(self) -> None:
        with self._lock:
            reload = self._reload
            self._missed = reload is None
        if reload is not None:
            reload()

    def _stop(self) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self.leave()
            self._expect_the_end()
        elif now - self._first > ONE_SIGNAL:
            # Not sys.exit: nothing may delay it. Children end with their pipes, and no position has moved.
            os._exit(_FAILURE)

    def _handled(self, number: int, _frame: FrameType | None) -> None:
        """Pass on what a thread was given that is not held: this may be amid anything that the main thread does."""
        if not self._over:
            self._passed.append(number)
            signal.pthread_kill(self._thread.ident or 0, WAKE)


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal, which whoever sits there can hang up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
