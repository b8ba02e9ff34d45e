"""A record that is to be written to its own topic again, and what the brokers say to that."""

from __future__ import annotations

from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError

from ingestd.errors import DocumentError, UnavailableError
from ingestd.model import Record, Version
from ingestd.sources._kafka import rewriting
from ingestd.sources.kafka import Config


class Producer:
    """Answers every record with one error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def send(self, *_arguments: object, **_options: object) -> Producer:
        """Take a record."""
        return self

    def get(self, _seconds: float) -> None:
        """Answer."""
        raise self._error

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        # Most consumers may not write: a letter that is tried again must not end the member, start after start.
        (TopicAuthorizationFailedError("documents"), DocumentError, "may not write to its topic"),
        (KafkaTimeoutError(), UnavailableError, "cannot be written again"),
    ],
)
def test_what_the_brokers_answer(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception], said: str
) -> None:
    """A right that is missing is this record's trouble; a broker that is away is everybody's."""
    monkeypatch.setattr(rewriting, "writer", lambda *_: Producer(error))
    settings: dict[str, Any] = {"bootstrap_servers": ["x:1"], "topics": ["documents"], "group_id": "g"}
    config = Config(**settings, collection="articles")
    with pytest.raises(expected, match=said):
        rewriting.write_again("cms", config, Record("documents", 0, 5, 0, b"k", b"{}"), Version(5, ""))
