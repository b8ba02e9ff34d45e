"""A topic that keeps a source's dead letters: written by members, read and tried again by commands.

Trying a letter again writes its record to the topic that it came from, to the same partition, with a header that says
which version it was: so whoever holds the partition does it, in order, under its lease, and never over anything
newer. (A replay by the process that was asked was turned down: it does not hold the partition, and nothing would keep
it from writing at the same moment as the one that does.) A marker on the letters' topic says that it was done.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import structlog
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from kafka.structs import TopicPartition

from ingestd.errors import ConfigError, UnavailableError
from ingestd.sources._kafka.connection import BOOTSTRAP_SECONDS, base_options, creating_none
from ingestd.sources._kafka.errors import raise_if_refused, told
from ingestd.sources._kafka.events import record_of
from ingestd.sources._kafka.letters import REPLAYED, Said, headers_of, letter_of, replay_headers, without_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ingestd.model import DeadLetter, Outcome, Record, Version
    from ingestd.sources.kafka import Config

ANSWER_MS = 10_000
"""For a broker's answer."""
LARGEST = 64 * 1024 * 1024
"""The largest record that is tried: what is too large is for the broker to say."""
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

log = structlog.get_logger(__name__)


class LetterTopic:
    """The topic (``ports.LetterTopic``).

    Args:
        source: The source's name.
        config: Its settings.
        fingerprint: Of the configuration that is in force.
        clock: Seconds since 1970.
    """

    def __init__(self, source: str, config: Config, fingerprint: str, clock: Callable[[], float] = time.time) -> None:
        if config.dead_letter_topic is None:
            raise ConfigError(f"sources.{source}.dead_letter_topic: none is configured")
        self.topic = config.dead_letter_topic
        self._source = source
        self._config = config
        self._fingerprint = fingerprint
        self._clock = clock
        self._producer: KafkaProducer | None = None

    def publish(self, letters: Sequence[Outcome]) -> None:
        """Write dead letters; returns when all are acknowledged."""
        said = Said(self._config.group_id, self._fingerprint, self._clock())
        sent = []
        for letter in letters:
            record = letter.event.record
            if record is None:
                raise ValueError(f"{letter.event.position} is no record of a topic")
            sent.append((record, headers_of(letter, said)))
        self._send_all([(self.topic, None, record, headers) for record, headers in sent])

    def replay(self, letters: Sequence[DeadLetter]) -> None:
        """Write the records of letters to their topics again, and note that.

        Raises:
            UnavailableError: Not all were acknowledged; those that were are done, and doing them again is harmless.
            ConfigError: One of the letters has no record any more.
        """
        again = []
        for letter in letters:
            if letter.record is None or letter.version is None:
                raise ConfigError(
                    f"{letter.position}: its value was too large for the letters' topic; read it from its own topic "
                    "with any Kafka tool, and produce it again"
                )
            again.append((letter.record, letter.version))
        self._send_all([_again(record, version) for record, version in again])
        for record, _version in again:
            position = record.position.encode()
            self._send(self.topic, None, position, None, [(REPLAYED, position)])
        self._flush()

    def letters(self) -> Iterator[DeadLetter]:
        """Yield the letters that are on the topic, one for each position, the oldest first; those replayed left out.

        Raises:
            UnavailableError: The topic cannot be read.
        """
        standing: dict[str, DeadLetter] = {}
        for number, record in enumerate(self._records()):
            marks = [value.decode("utf-8", "replace") for name, value in record.headers if name == REPLAYED and value]
            for position in marks:
                standing.pop(position, None)
            letter = letter_of(record, number)
            if letter is not None and letter.source == self._source:
                standing[letter.position] = letter
        yield from sorted(standing.values(), key=lambda letter: letter.last_failed_at)

    def close(self) -> None:
        """Let go of the connection."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=1)

    def _send_all(self, records: Sequence[tuple[str, int | None, Record, list[tuple[str, bytes]]]]) -> None:
        futures = []
        for topic, partition, record, headers in records:
            futures.append(self._send(topic, partition, record.key, record.value, headers))
        self._flush()
        for (topic, partition, record, headers), future in zip(records, futures, strict=True):
            error = future if isinstance(future, Exception) else future.exception
            if isinstance(error, _TOO_LARGE):
                log.warning("a dead letter is kept without its value: the broker does not take it", at=record.position)
                future = self._send(topic, partition, record.key, None, without_value(headers))  # noqa: PLW2901 - the same
                self._flush()
                error = future if isinstance(future, Exception) else future.exception
            if error is not None:
                raise self._away(error) from error

    def _send(self, topic: str, partition: int | None, key: Any, value: Any, headers: Any) -> Any:  # noqa: ANN401 - no types
        """Hand a record to the producer; return its future, or why it is too large for the client itself."""
        try:
            return self._open().send(topic, value=value, key=key, headers=headers, partition=partition)
        except _TOO_LARGE as error:
            return error
        except (KafkaError, OSError) as error:
            raise self._away(error) from error

    def _flush(self) -> None:
        try:
            self._open().flush(timeout=2 * ANSWER_MS / 1000)
        except (KafkaError, OSError) as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> UnavailableError:
        self.close()  # another one begins with the brokers as they are then
        raise_if_refused(self._source, error)
        return UnavailableError(
            f"dead letters:{self._source}",
            f"the topic {self.topic} does not take dead letters: {told(error)}; is it there, and may we write to it?",
        )

    def _open(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = creating_none(
                KafkaProducer(
                    client_id=f"ingestd-{self._source}-letters",
                    bootstrap_timeout_ms=int(BOOTSTRAP_SECONDS * 1000),
                    acks="all",
                    # An idempotent producer is done for after one record that is too large: every later send fails.
                    enable_idempotence=False,
                    max_in_flight_requests_per_connection=1,
                    max_request_size=LARGEST,
                    max_block_ms=ANSWER_MS,
                    request_timeout_ms=ANSWER_MS,
                    delivery_timeout_ms=2 * ANSWER_MS,
                    **base_options(self._config),
                )
            )
        return self._producer

    def _records(self) -> Iterator[Record]:
        try:
            consumer = creating_none(
                KafkaConsumer(
                    client_id=f"ingestd-{self._source}-letters",
                    group_id=None,
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    bootstrap_timeout_ms=int(BOOTSTRAP_SECONDS * 1000),
                    **base_options(self._config),
                )
            )
            with closing(consumer):
                yield from _read_all(consumer, self.topic)
        except (KafkaError, OSError) as error:
            raise_if_refused(self._source, error)
            raise UnavailableError(
                f"kafka:{self._source}", f"the topic {self.topic} cannot be read: {told(error)}"
            ) from error


def _again(record: Record, version: Version) -> tuple[str, int | None, Record, list[tuple[str, bytes]]]:
    return record.topic, record.partition, record, replay_headers(record.headers, version)


def _read_all(consumer: KafkaConsumer, topic: str) -> Iterator[Record]:
    """Yield all that is on a topic now. A broker may say less of its end than a fetch does."""
    if topic not in consumer.topics():
        return
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    ends = consumer.end_offsets(partitions, timeout_ms=ANSWER_MS)
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    left, quiet = set(partitions), 0
    while left and quiet < 2:  # noqa: PLR2004 - two fetches without anything: what is left are markers
        found = consumer.poll(timeout_ms=ANSWER_MS / 4)
        quiet = 0 if found else quiet + 1
        for records in found.values():
            yield from map(record_of, records)
        for partition in list(left):
            position = consumer.position(partition, timeout_ms=ANSWER_MS)
            highwater = consumer.highwater(partition)
            if position is not None and highwater is not None and position >= max(highwater, ends.get(partition, 0)):
                left.discard(partition)
