"""Where dead letters that go to a topic are going, before there are any."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, cast

from tests.fakes import COLLECTION, ManualClock

from ingestd.engine.breaker import Breakers
from ingestd.engine.letters import Publisher
from ingestd.engine.pulse import Pulse
from ingestd.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from ingestd.model import Outcome
    from ingestd.ports import LetterTopic


class Topic:
    """A topic that is not there at first."""

    def __init__(self) -> None:
        self.there = False
        self.hangs: threading.Event | None = None
        self.probes = 0

    def probe(self) -> None:
        """Say whether it is there."""
        self.probes += 1
        if self.hangs is not None:
            self.hangs.wait(30)
        if not self.there:
            raise UnavailableError("dead letters:cms", "the topic t is not there")

    def publish(self, letters: Sequence[Outcome]) -> None:
        """Nothing is written in these tests."""
        raise AssertionError(letters)

    def close(self) -> None:
        """Nothing is open."""


def publisher(topic: Topic) -> Publisher:
    """Return one that runs."""
    made = Publisher(
        "cms",
        cast("LetterTopic", topic),
        collection=COLLECTION,
        breakers=Breakers(),
        settle=lambda _outcome: None,
        pulse=Pulse(ManualClock()),
        fail=lambda _name, _error: None,
    )
    made.start()
    return made


def until(condition: object) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_topic_that_is_not_there_is_told_before_the_first_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asked again until it is; then no more."""
    monkeypatch.setattr("ingestd.engine.letters.PROBE_SECONDS", 0.01)
    topic = Topic()
    letters = publisher(topic)
    assert letters.check().name == "cms:letters"
    until(lambda: not letters.check().ok)
    assert "the topic t is not there" in letters.check().detail
    assert "create it" in letters.check().cure
    topic.there = True
    until(lambda: letters.check().ok)
    probes = topic.probes
    time.sleep(1.2)
    assert topic.probes == probes
    letters.close(10)


def test_an_end_does_not_wait_for_a_probe() -> None:
    """Brokers that do not answer take their time."""
    topic = Topic()
    topic.hangs = threading.Event()
    letters = publisher(topic)
    until(lambda: topic.probes)
    began = time.monotonic()
    letters.close(20)
    assert time.monotonic() - began < 10
    topic.hangs.set()
