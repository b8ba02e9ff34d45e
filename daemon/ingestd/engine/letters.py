"""Dead letters on their way to a topic: on a thread of their own, so that settle waits for no broker.

A letter comes to settle once more when the topic has acknowledged it: only then does its position move. Until then it
holds its lane and its part of the budget, so that a topic that takes nothing stops the pipeline, and drops nothing.
Whether the topic is there at all is asked at the start: the first dead letter may come months later, in the night.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from ingestd.engine.channel import Channel
from ingestd.errors import ConfigError, Stopped, UnavailableError
from ingestd.model import Check

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.engine.breaker import Breakers
    from ingestd.engine.pulse import Pulse
    from ingestd.model import Outcome
    from ingestd.ports import LetterTopic

PROBE_SECONDS = 5.0
"""Between two looks whether the topic is there by now."""
WELL_SECONDS = 300.0
"""Between two looks whether it is there still."""
BATCH = 200
LINGER = 0.02
SLOWEST = 120.0
"""Seconds that a topic may take: its time-outs, connecting included."""

log = structlog.get_logger(__name__)


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
        self._source = source
        self._topic = topic
        self._collection = collection
        self._breakers = breakers
        self._settle = settle
        self._pulse = pulse
        self._fail = fail
        # Bounded by the lanes' budget: a letter that waits holds its lane.
        self._channel: Channel[Outcome] = Channel(self._name, None)
        self._asked = False
        self._missing: str | None = None
        """Why the topic is not there, as far as it was asked."""
        self._look_at = 0.0
        """When it is asked again, by the monotonic clock."""
        self._probing = False
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, letter: Outcome) -> None:
        """Take a dead letter. Never blocks."""
        self._channel.put(letter)

    def check(self) -> Check:
        """Say whether dead letters have somewhere to go. Of one that takes no letter the breaker tells."""
        missing = self._missing
        if missing is None:
            detail = "the dead letters' topic is there" if self._asked else "the topic was not asked yet"
            return Check(f"{self._source}:letters", ok=True, detail=detail)
        cure = "create it, or set missing_topics = 'create': until then the first dead letter holds the source up"
        return Check(f"{self._source}:letters", ok=False, detail=missing, cure=cure)

    def close(self, timeout: float) -> None:
        """Write what was put, and end."""
        self._channel.close()
        # A probe of brokers that do not answer takes its time-out; nobody waits for what it says now.
        self._thread.join(timeout if len(self._channel) or not self._probing else min(timeout, 1.0))
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
            self._look()
            batch = self._channel.take(BATCH, LINGER, 1.0)
            if batch is None:
                return
            if batch:
                self._publish(batch)

    def _look(self) -> None:
        if time.monotonic() < self._look_at:
            return
        self._pulse.busy(self._name, "the dead letters' topic", SLOWEST)
        self._probing = True
        try:
            self._topic.probe()
        except (UnavailableError, ConfigError) as error:  # what is refused ends the daemon when there is a letter
            if self._missing is None:
                log.warning("dead letters have nowhere to go", source=self._source, error=str(error))
            self._missing, self._look_at = str(error), time.monotonic() + PROBE_SECONDS
        else:
            self._missing, self._look_at = None, time.monotonic() + WELL_SECONDS
        finally:
            self._probing, self._asked = False, True
        self._pulse.beat(self._name)

    def _publish(self, batch: list[Outcome]) -> None:
        self._breakers.hold(
            lambda: self._topic.publish(batch),
            beat=lambda: self._pulse.beat(self._name),
            calling=lambda: self._pulse.busy(self._name, "the dead letters' topic", SLOWEST),
            scope=self._collection,
        )
        self._missing, self._asked, self._look_at = None, True, time.monotonic() + WELL_SECONDS
        for letter in batch:
            self._settle(replace(letter, published=True))
