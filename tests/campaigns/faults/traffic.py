"""Events that go on while a scene does its worst beside them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.campaigns.faults.ground import Ground

PACE = 0.25
"""Seconds between two events."""


@contextmanager
def flowing(place: Ground, pace: float = PACE) -> Iterator[threading.Lock]:
    """Have events carried out at a steady pace while the body runs.

    Yields:
        A lock that is held while an event is carried out: whoever adds to what is expected holds it too.
    """
    lock, over = threading.Lock(), threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            while not over.wait(pace):
                with lock:
                    place.work(1)
        except BaseException as error:  # noqa: BLE001 - raised where it is joined
            failed.append(error)

    thread = threading.Thread(target=run, name="traffic")
    thread.start()
    try:
        yield lock
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]
