"""A record is written to its own topic again: for whoever holds its partition.

It is how a letter is tried again that lies with a member which does not hold the partition: that member cannot know
what the one that does is writing at the same moment. The record says which version it is, as one does that is written
again from the letters' topic (``letter_topic``), and comes in order, under the lease of whoever reads it. A connection
of its own for each record was chosen over one that is kept: an operator tries again what is few, and seldom.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from ingestd.errors import ConfigError, DocumentError, UnavailableError
from ingestd.sources._kafka.connection import writer
from ingestd.sources._kafka.errors import raise_if_refused, told
from ingestd.sources._kafka.letters import replay_headers

if TYPE_CHECKING:
    from ingestd.model import Record, Version
    from ingestd.sources.kafka import Config

ANSWER_MS = 5_000
"""For a broker's answer."""


def write_again(name: str, config: Config, record: Record, version: Version) -> None:
    """Write a record to its own topic again; returns when that is acknowledged. Doing it twice is harmless.

    Args:
        name: The source's name.
        config: Its settings.
        record: The record.
        version: What it was when it came first.

    Raises:
        DocumentError: Its topic does not take it, or not from us: consumers have no right to write as a rule, and a
            letter that waits for one is no reason to end.
        UnavailableError: No broker answers.
    """
    try:
        with closing(writer(f"{name}-again", config, ANSWER_MS)) as producer:
            producer.send(
                record.topic,
                key=record.key,
                value=record.value,
                headers=replay_headers(record.headers, version),
                partition=record.partition,
            ).get(2 * ANSWER_MS / 1000)
    except (MessageSizeTooLargeError, RecordListTooLargeError, ValueError, AssertionError) as error:
        raise DocumentError(
            f"{record.position}: its topic does not take it again ({told(error)}), and another member holds its "
            "partition: have the topic take it (max.message.bytes), or produce a smaller version of the document"
        ) from error
    except (KafkaError, OSError) as error:
        try:
            raise_if_refused(name, error)
        except ConfigError as refused:
            raise DocumentError(
                f"{record.position}: another member holds its partition, and our user may not write to its topic: "
                f"allow that, or replay on the member that holds the partition ({refused})"
            ) from error
        raise UnavailableError(f"kafka:{name}", f"{record.position} cannot be written again: {told(error)}") from error
