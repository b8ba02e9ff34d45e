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
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError
from kafka.structs import TopicPartition

from ingestd.errors import ConfigError, UnavailableError
from ingestd.sources._kafka.connection import reader, writer
from ingestd.sources._kafka.errors import raise_if_refused, told
from ingestd.sources._kafka.events import record_of
from ingestd.sources._kafka.letters import Said, Written, forms, letter_of, mark, marked, replay_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kafka import KafkaConsumer, KafkaProducer

    from ingestd.model import DeadLetter, Outcome, Record
    from ingestd.sources.kafka import Config

    _Sent = tuple[str, int | None, Written]
    """A topic, a partition (None: by the key), and what is written there."""

ANSWER_MS = 10_000
"""For a broker's answer."""
BATCH_RECORDS = 500
BATCH_BYTES = 16 * 1024 * 1024
"""What is under way at once of a replay."""
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

    def probe(self) -> None:
        """Return if the topic is there, as a new client finds it.

        Raises:
            UnavailableError: It is not, or no broker answers.
            ConfigError: The brokers refuse us.
        """
        try:
            with closing(reader(f"{self._source}-letters", self._config)) as consumer:
                there = self.topic in consumer.topics()
        except (KafkaError, OSError) as error:
            raise_if_refused(self._source, error)
            message = f"whether the topic {self.topic} is there cannot be told: {told(error)}"
            raise UnavailableError(_dependency(self._source), message) from error
        if not there:
            raise UnavailableError(_dependency(self._source), f"there is no topic {self.topic}")

    def publish(self, letters: Sequence[Outcome]) -> None:
        """Write dead letters; returns when all are acknowledged, each in the first form that the topic takes."""
        said = Said(self._config.group_id, self._fingerprint, self._clock())
        all_forms = [(letter.event.position, forms(letter, said)) for letter in letters]
        unsent = [(position, smaller, next(smaller)) for position, smaller in all_forms]
        while unsent:
            errors = self._send([(self.topic, None, written) for _position, _smaller, written in unsent])
            sent, unsent = unsent, []
            for (position, smaller, _written), error in zip(sent, errors, strict=True):
                if error is None:
                    continue
                written = next(smaller, None)
                if not isinstance(error, _TOO_LARGE) or written is None:
                    raise self._away(self.topic, error) from error
                without = ", ".join(written.left_out)
                log.warning(
                    "a dead letter is too large for its topic: it is kept in part", at=position, without=without
                )
                unsent.append((position, smaller, written))

    def replay(self, letters: Iterable[DeadLetter]) -> int:
        """Write the records of letters to their topics again, and mark those that are there; return how many are.

        Nothing of a record is ever left out: one without its value would delete its document.

        Raises:
            UnavailableError: Not all were acknowledged; those that were are done, and doing them again is harmless.
            ConfigError: Some cannot be written, and why; all others are done.
        """
        done = 0
        faults: list[str] = []
        for batch in _batches(letters):
            again, unfit = _split(batch)
            faults.extend(unfit)
            results = list(zip(again, self._send([one for _letter, one in again]), strict=True))
            there = [letter for (letter, _one), error in results if error is None]
            self._mark(there)
            done += len(there)
            for (letter, (topic, _partition, _written)), error in results:
                if isinstance(error, (*_TOO_LARGE, ValueError)):
                    faults.append(_refused(letter, error))
                elif error is not None:
                    raise self._away(topic, error) from error
        if faults:
            raise ConfigError(*faults)
        return done

    def letters(self, *, values: bool = True) -> Iterator[DeadLetter]:
        """Yield the letters that are on the topic, one for each position; those tried again left out.

        It is read twice for values: only the first reading shows which letters stand, and the values of the others
        may be more than fits into memory.

        Args:
            values: Whether their records are wanted too. Then they come as they lie on the topic, otherwise the oldest
                first.

        Raises:
            UnavailableError: The topic cannot be read.
        """
        try:
            with closing(reader(f"{self._source}-letters", self._config)) as consumer:
                ends = _ends(consumer, self.topic)
                standing = self._standing(_read(consumer, ends))
                if values:
                    wanted = {place: number for number, (place, _letter) in enumerate(standing.values())}
                    standing.clear()
                    for record in _read(consumer, ends) if wanted else ():
                        number = wanted.get((record.partition, record.offset))
                        letter = None if number is None else letter_of(record, number, values=True)
                        if letter is not None:
                            yield letter
        except (KafkaError, OSError) as error:
            raise_if_refused(self._source, error)
            raise UnavailableError(
                f"kafka:{self._source}", f"the topic {self.topic} cannot be read: {told(error)}"
            ) from error
        yield from sorted((letter for _place, letter in standing.values()), key=lambda letter: letter.last_failed_at)

    def close(self) -> None:
        """Let go of the connection."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=1)

    def _standing(self, records: Iterable[Record]) -> dict[str, tuple[tuple[int, int], DeadLetter]]:
        """Return by position where the last letter lies, and the letter without its value."""
        marks: dict[str, float] = {}
        found: dict[str, tuple[tuple[int, int], DeadLetter]] = {}
        for number, record in enumerate(records):
            done = marked(record)
            if done is not None:
                position, at = done
                marks[position] = max(at, marks.get(position, at))
                continue
            letter = letter_of(record, number, values=False)
            if letter is None or letter.source != self._source:
                continue
            other = found.get(letter.position)
            if other is None or letter.last_failed_at >= other[1].last_failed_at:
                found[letter.position] = (record.partition, record.offset), letter
        return {
            position: one
            for position, one in found.items()
            if position not in marks or one[1].last_failed_at > marks[position]
        }

    def _mark(self, letters: Sequence[DeadLetter]) -> None:
        for error in self._send([(self.topic, None, mark(letter)) for letter in letters]):
            if error is not None:
                raise self._away(self.topic, error) from error

    def _send(self, records: Sequence[_Sent]) -> list[Exception | None]:
        """Write records; return for each why it is not there, once that is known of all of them.

        Raises:
            UnavailableError: No broker answers.
            ConfigError: They refuse us.
        """
        if not records:
            return []
        sent: list[Any] = []
        for topic, partition, one in records:
            try:
                sent.append(
                    self._open().send(topic, value=one.value, key=one.key, headers=one.headers, partition=partition)
                )
            except (*_TOO_LARGE, ValueError) as error:  # the client's own word on this record
                sent.append(error)
            except (KafkaError, OSError) as error:
                raise self._away(topic, error) from error
        try:
            self._open().flush(timeout=2 * ANSWER_MS / 1000)
        except (KafkaError, OSError) as error:
            raise self._away(self.topic, error) from error
        return [one if isinstance(one, Exception) else one.exception for one in sent]

    def _away(self, topic: str, error: Exception) -> UnavailableError:
        self.close()  # another one begins with the brokers as they are then
        raise_if_refused(self._source, error)
        return UnavailableError(
            _dependency(self._source),
            f"the topic {topic} takes no records: {told(error)}; is it there, and may we write to it?",
        )

    def _open(self) -> KafkaProducer:
        if self._producer is None:
            try:
                self._producer = writer(f"{self._source}-letters", self._config, ANSWER_MS)
            except UnavailableError as error:
                raise UnavailableError(_dependency(self._source), str(error)) from error
        return self._producer


def _dependency(source: str) -> str:
    return f"dead letters:{source}"


def _batches(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    batch: list[DeadLetter] = []
    size = 0
    for letter in letters:
        batch.append(letter)
        size += 0 if letter.record is None else letter.record.size
        if size >= BATCH_BYTES or len(batch) >= BATCH_RECORDS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _split(letters: Iterable[DeadLetter]) -> tuple[list[tuple[DeadLetter, _Sent]], list[str]]:
    """Return letters with what is written to their own topics, and why there is nothing to write for the others."""
    again: list[tuple[DeadLetter, _Sent]] = []
    unfit: list[str] = []
    for letter in letters:
        try:
            again.append((letter, _again(letter)))
        except ConfigError as error:
            unfit.extend(error.faults)
    return again, unfit


def _again(letter: DeadLetter) -> _Sent:
    """Return what is written to a letter's own topic, and where.

    Raises:
        ConfigError: There is nothing to write.
    """
    record, version = letter.record, letter.version
    if record is None or version is None:
        raise ConfigError(
            f"{letter.position}: its record was too large for the letters' topic, which has only a part of it; read it "
            "from its own topic with any Kafka tool, and produce it again"
        )
    if record.key is None and record.value is None:
        raise ConfigError(f"{letter.position}: it has neither key nor value, so there is nothing to try again")
    written = Written(record.key, record.value, replay_headers(record.headers, version))
    return record.topic, record.partition, written


def _refused(letter: DeadLetter, error: Exception) -> str:
    why = "is too large for its topic" if isinstance(error, _TOO_LARGE) else f"is not taken by its topic ({error})"
    return (
        f"{letter.position}: the record {why}, so it was not tried again, and its letter stays; have the topic take it "
        "(max.message.bytes, partitions) and replay it again, or produce a smaller version of the document"
    )


def _ends(consumer: KafkaConsumer, topic: str) -> Mapping[TopicPartition, int]:
    """Return where a topic's partitions end now; none: there is no such topic."""
    if topic not in consumer.topics():
        return {}
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    return _said(consumer, partitions)


def _said(consumer: KafkaConsumer, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
    try:
        found = consumer.end_offsets(partitions, timeout_ms=ANSWER_MS)
    except KeyError as error:  # of one of them nothing was said
        raise KafkaTimeoutError("no answer") from error
    return {partition: found[partition] for partition in partitions}


def _read(consumer: KafkaConsumer, ends: Mapping[TopicPartition, int]) -> Iterator[Record]:
    """Yield all that is on a topic now. A broker may say less of its end than a fetch does.

    Raises:
        KafkaError: No broker answers.
    """
    if not ends:
        return
    consumer.assign(list(ends))
    consumer.seek_to_beginning(*ends)
    left, quiet = set(ends), 0
    while left:
        if quiet == 2:  # noqa: PLR2004 - two fetches without anything: what is left are markers, if a broker is there
            _said(consumer, list(left))
            return
        found = consumer.poll(timeout_ms=ANSWER_MS / 4)
        quiet = 0 if found else quiet + 1
        for records in found.values():
            yield from map(record_of, records)
        for partition in list(left):
            position = consumer.position(partition, timeout_ms=ANSWER_MS)
            highwater = consumer.highwater(partition)
            if position is not None and highwater is not None and position >= max(highwater, ends[partition]):
                left.discard(partition)
