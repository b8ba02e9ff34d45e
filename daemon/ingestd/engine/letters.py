"""Dead letters on their way to a topic: on a thread of their own, so that settle waits for no broker.

A letter comes to settle once more when the topic has acknowledged it: only then does its position move. Until then it
holds its lane and its part of the budget, so that a topic that takes nothing stops the pipeline, and drops nothing.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from ingestd.engine.channel import Channel
from ingestd.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.engine.breaker import Breakers
    from ingestd.engine.pulse import Pulse
    from ingestd.model import Outcome
    from ingestd.ports import LetterTopic

BATCH = 200
LINGER = 0.02
SLOWEST = 120.0
"""Seconds that a topic may take: its time-outs, connecting included."""


class Publisher:
    """Writes one source's dead letters to its topic.

    Args:
        source: The source's name.
        topic: The topic.
        collection: The pipeline that waits while it takes nothing.
        breakers: Hold the batch meanwhile.
        settle: Takes the letters that are acknowledged.
        pulse: Takes heartbeats.
        fail: Called with the exception that ended the thread.
    """

    def __init__(
        self,
        source: str,
        topic: LetterTopic,
        *,
        collection: str,
        breakers: Breakers,
        settle: Callable[[Outcome], None],
        pulse: Pulse,
        fail: Callable[[str, BaseException], None],
    ) -> None:
        self._name = f"letters/{source}"
        self._topic = topic
        self._collection = collection
        self._breakers = breakers
        self._settle = settle
        self._pulse = pulse
        self._fail = fail
        # Bounded by the lanes' budget: a letter that waits holds its lane.
        self._channel: Channel[Outcome] = Channel(self._name, None)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, letter: Outcome) -> None:
        """Take a dead letter. Never blocks."""
        self._channel.put(letter)

    def close(self, timeout: float) -> None:
        """Write what was put, and end."""
        self._channel.close()
        self._thread.join(timeout)
        self._topic.close()

    def _run(self) -> None:
        try:
            self._loop()
        except Stopped:
            pass  # what was held has moved no position
        except BaseException as error:  # noqa: BLE001 - whatever ended the thread ends the process
            self._fail(self._name, error)
        finally:
            self._pulse.end(self._name)

    def _loop(self) -> None:
        while True:
            self._pulse.beat(self._name)
            batch = self._channel.take(BATCH, LINGER, 1.0)
            if batch is None:
                return
            if batch:
                self._publish(batch)

    def _publish(self, batch: list[Outcome]) -> None:
        self._breakers.hold(
            lambda: self._topic.publish(batch),
            beat=lambda: self._pulse.beat(self._name),
            calling=lambda: self._pulse.busy(self._name, "the dead letters' topic", SLOWEST),
            scope=self._collection,
        )
        for letter in batch:
            self._settle(replace(letter, published=True))
