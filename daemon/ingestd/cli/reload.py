"""SIGHUP: a new configuration is looked at beside the running daemon, and takes over only if it would start.

Owns the wish, and the child process that looks (``candidate``). It is a process of its own because that one begins
as the daemon would begin: with the files and the code that are there now, which after an upgrade are not those that
the daemon has loaded. It costs the daemon's threads nothing, it can be given a time limit, and what it imports, opens
or breaks goes with it. Changing a running daemon's parts one by one was turned down: what a restart does is known.

Wishes that come while one is looked at become one more look; those that come later are met by the next image, which
reads what is there then.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import structlog

from ingestd.children import ChildDied, spawn
from ingestd.operations import told
from ingestd.parts import ADDRESS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ingestd.children import Child
    from ingestd.config import Settings
    from ingestd.ops.image import Image
    from ingestd.ports import Embedder

LOOK_SECONDS = 120.0
"""Seconds that looking may take: brokers and Milvus servers that do not answer take their time-outs, one by one. Whose
turn has not come by then is not known, as of one that is away."""

log = structlog.get_logger(__name__)


class Verdict(NamedTuple):
    """What is known of a new configuration."""

    faults: Sequence[str]
    """Over which a start would be refused."""
    unknown: Sequence[str]
    """What only the start will tell, and what will not be well after it."""


class Listener(Protocol):
    """Who is told."""

    def reading_again(self) -> None:
        """Say that the configuration is being read again."""
        ...

    def refuse(self, faults: Sequence[str]) -> None:
        """Say that the old configuration goes on, and why."""
        ...


class Reload:
    """The wish for a new configuration. Safe to call from any thread.

    Args:
        config_file: As it was given at the start.
        settings: The configuration that runs.
        image: How the process is begun again.
        listener: Is told.
        leave: Called when the process is to be begun again.
    """

    def __init__(
        self, config_file: Path | None, settings: Settings, image: Image, listener: Listener, leave: Callable[[], None]
    ) -> None:
        self._config_file = config_file
        self._settings = settings
        self._image = image
        self._listener = listener
        self._leave = leave
        self._embedders: Mapping[str, Embedder] = {}
        self._lock = threading.Lock()
        self._asked = False
        self._accepted = False
        self._closed = False
        self._child: Child | None = None
        self._thread: threading.Thread | None = None

    @property
    def accepted(self) -> bool:
        """Whether the process is to be begun again, with a configuration that was found good."""
        return self._accepted

    def know(self, embedders: Mapping[str, Embedder]) -> None:
        """Take note of the models that are loaded: those of the same settings need no second look."""
        self._embedders = embedders

    def ask(self) -> None:
        """Wish for it. Returns at once."""
        with self._lock:
            if self._closed or self._accepted:
                return
            self._asked = True
            if self._thread is not None:
                return
            thread = self._thread = threading.Thread(target=self._look_on, name="reload", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no more threads
            self._thread = None
            self._listener.refuse([f"it could not be looked at: {error}"])

    def close(self) -> None:
        """Look no further."""
        with self._lock:
            self._closed = True
            child, thread = self._child, self._thread
        if child is not None:
            child.kill()
        if thread is not None:
            thread.join()

    def _look_on(self) -> None:
        while self._has_wish():
            self._listener.reading_again()
            try:
                verdict = self._look()
            except Exception as error:
                log.exception("the new configuration could not be looked at")
                verdict = Verdict((f"it could not be looked at: {type(error).__name__}: {error}",), ())
            self._judge(verdict)

    def _has_wish(self) -> bool:
        with self._lock:
            if self._asked and not self._closed and not self._accepted:
                self._asked = False
                return True
            self._thread = None
            return False

    def _judge(self, verdict: Verdict) -> None:
        with self._lock:
            if self._closed:
                return  # the daemon is ending: nobody waits for a verdict
            # What was changed meanwhile is looked at first.
            self._accepted = accepted = not verdict.faults and not self._asked
        if verdict.faults:
            self._listener.refuse(verdict.faults)
        elif accepted:
            for one in verdict.unknown:
                log.warning("not known of the new configuration before it starts", about=one)
            log.info("config accepted; draining, to begin again with it")
            self._leave()

    def _look(self) -> Verdict:
        faults = self._image.faults()
        if faults:
            return Verdict(faults, ())
        child = spawn("ingestd.cli.candidate:serve", name="new-configuration")
        with self._lock:
            self._child = child
            if self._closed:
                child.kill()
        try:
            return self._answer_of(child)
        finally:
            with self._lock:
                self._child = None
            child.close(timeout=0)

    def _answer_of(self, child: Child) -> Verdict:
        """Return what the child finds: all that it said, where the time is over before it is at its end."""
        until = time.monotonic() + LOOK_SECONDS
        faults: Sequence[str] = ()
        unknown: Sequence[str] = ()
        begun = over = False
        try:
            child.send(self._question())
            while not over:
                said = cast("Mapping[str, Any]", child.receive(max(0.0, until - time.monotonic())))
                faults, unknown = said["faults"], said["unknown"]
                begun, over = True, said.get("over", True)
        except ChildDied as error:
            if begun and time.monotonic() >= until:
                why = f"what Milvus and the sources say of it was not looked at to its end: {error}"
                return Verdict(faults, [*unknown, why])
            return Verdict([*faults, f"it could not be looked at: {error}; see its messages above"], unknown)
        return Verdict(faults, unknown)

    def _question(self) -> dict[str, object]:
        """Return what the child has to know, in plain values: it may run another version of this program."""
        settings = self._settings
        return {
            "config_file": None if self._config_file is None else str(self._config_file),
            "parts": True,
            "listen": settings.http.listen,
            "state_dir": None if settings.stateless else str(settings.state_dir.absolute()),
            "milvus_path": None if settings.milvus.path is None else str(settings.milvus.path.absolute()),
            "address_file": str(settings.state_dir.absolute() / ADDRESS_FILE),
            "models": {
                settings.embedders[name].identity().hex(): told(embedder.info())
                for name, embedder in self._embedders.items()
            },
        }
