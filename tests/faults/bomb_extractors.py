"""An extractor that does to its worker whatever the document says. It is found through PYTHONPATH."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from ingestd.model import Content, Document

if TYPE_CHECKING:
    from collections.abc import Callable

KIND = "application/x-bomb"


class Panic(BaseException):
    """What libraries in other languages raise when they give up: no Exception."""


def bomb(action: str, argument: str = "") -> Content:
    """Return a document that makes the extractor do something, once per try."""
    return Content(f"{action} {argument}".encode(), "bomb", KIND)


class Config(BaseModel):
    """The bomb's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: ClassVar[tuple[str, ...]] = (KIND,)
    revision: ClassVar[int] = 1

    note: str | None = None
    """A file that gets a byte for every document that is begun."""
    builds: bool = True

    def build(self) -> Bomb:
        """Return the extractor, or fail where the settings say so."""
        if not self.builds:
            raise RuntimeError("the bomb does not build")
        return Bomb(self.note)


class Bomb:
    """Does what the document says."""

    def __init__(self, note: str | None) -> None:
        self._note = note

    def extract(self, content: Content) -> Document:
        """Do it."""
        if self._note is not None:
            with Path(self._note).open("ab") as note:
                note.write(b".")
        action, _, argument = content.data.decode().partition(" ")
        return Document(ACTIONS[action](argument) or "survived")


def _segfault(_: str) -> None:
    ctypes.string_at(0)


def _loop(_: str) -> None:
    while True:
        pass


def _loop_in_c(_: str) -> None:
    """Hold the interpreter's lock: no other thread of the worker runs any more."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def _allocate(_: str) -> None:
    hoard = []
    while True:
        hoard.append(bytearray(1_000_000))


def _die_once(marker: str) -> None:
    if not Path(marker).exists():
        Path(marker).touch()
        os.abort()


def _sleep(marker: str) -> None:
    if marker:
        Path(marker).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(3600)


def _spin(marker: str) -> None:
    Path(marker).write_text(str(os.getpid()), encoding="utf-8")
    _loop_in_c("")


def _raise(message: str) -> None:
    raise LookupError(message)


def _panic(message: str) -> None:
    raise Panic(message)


ACTIONS: dict[str, Callable[[str], str | None]] = {
    "abort": lambda _: os.abort(),
    "allocate": _allocate,
    "die-once": _die_once,
    "dirty": lambda _: "a\0\r\nb\ud800",
    "exit": lambda _: os._exit(3),
    "limits": lambda _: f"{resource.getrlimit(resource.RLIMIT_CORE)[1]}",
    "loop": _loop,
    "loop-in-c": _loop_in_c,
    "modules": lambda _: " ".join(sorted(sys.modules)),
    "panic": _panic,
    "pid": lambda _: str(os.getpid()),
    "raise": _raise,
    "segfault": _segfault,
    "sleep": _sleep,
    "spin": _spin,
    "text": lambda length: "x" * int(length),
}
