"""What is asked of the brokers beside consuming: are topics there, make them, read one record again."""

from __future__ import annotations

import re
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import structlog
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError
from kafka.structs import TopicPartition

from ingestd.errors import UnavailableError
from ingestd.model import Check
from ingestd.sources._kafka.connection import connect, greet, plain_options, reader
from ingestd.sources._kafka.errors import raise_if_refused, told
from ingestd.sources._kafka.events import record_of
from ingestd.sources._kafka.security import risks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kafka import KafkaConsumer

    from ingestd.model import Record
    from ingestd.ports import Intake
    from ingestd.sources.kafka import Config

READ_SECONDS = 10.0
"""For a record that is read again."""
_LOOK_MS = 200.0
_RETRY_SECONDS = 2.0
_POSITION = re.compile(r"(?P<topic>.+)/(?P<partition>\d+)@(?P<offset>\d+)")

log = structlog.get_logger(__name__)


def probe(name: str, config: Config) -> Iterator[Check]:
    """Yield whether the brokers answer and the topics are there. Joins no group, and changes nothing.

    Raises:
        ConfigError: The brokers refuse us, as they would refuse the member.
    """
    servers = ", ".join(config.bootstrap_servers)
    several = len(config.bootstrap_servers) > 1
    try:
        consumer = connect(name, config)
    except UnavailableError as error:
        cure = f"see to the brokers at {servers}; or to bootstrap_servers"
        yield Check(f"{name}:broker", ok=False, detail=str(error), cure=cure)
        return
    with closing(consumer):
        yield Check(f"{name}:broker", ok=True, detail=f"one of {servers} answers" if several else f"{servers} answers")
        for risk in risks(config.tls, config.sasl):
            yield Check(f"{name}:security", ok=True, detail=risk)
        try:
            yield from _topics(name, config, consumer)
        except KafkaError as error:
            raise_if_refused(name, error)
            yield Check(f"{name}:topics", ok=False, detail=told(error), cure="see to the brokers, and to our rights")


def _topics(name: str, config: Config, consumer: KafkaConsumer) -> Iterator[Check]:
    there = consumer.topics()
    wanted = config.topics
    if config.topic_pattern is not None:
        pattern = re.compile(config.topic_pattern)
        wanted = tuple(sorted(topic for topic in there if pattern.match(topic)))
        if not wanted:
            detail = f"no topic matches {config.topic_pattern} yet; one that comes is read"
            yield Check(f"{name}:topics", ok=True, detail=detail)
    letters = () if config.dead_letter_topic is None else (config.dead_letter_topic,)
    for topic in (*wanted, *letters):
        partitions = consumer.partitions_for_topic(topic) if topic in there else set()
        if partitions:
            yield Check(f"{name}:topic:{topic}", ok=True, detail=f"{len(partitions)} partitions")
        elif config.missing_topics == "create":
            yield Check(f"{name}:topic:{topic}", ok=True, detail="is not there, and will be created")
        else:
            cure = "create it, or set missing_topics = 'create'; as it is, run starts, and waits for it"
            yield Check(f"{name}:topic:{topic}", ok=False, detail="there is no such topic", cure=cure)


def create_missing(name: str, config: Config, intake: Intake) -> None:
    """Create the topics that are not there, however long it takes to reach a broker.

    Raises:
        ConfigError: The brokers refuse it.
        Stopped: The daemon is stopping.
    """
    told_of = False
    while True:
        try:
            letters = () if config.dead_letter_topic is None else (config.dead_letter_topic,)
            create(name, config, (*config.topics, *letters))
        except UnavailableError as error:
            if not told_of:
                log.warning("topics cannot be looked at yet", source=name, error=str(error))
            told_of = True
            intake.wait(_RETRY_SECONDS)
        else:
            return


def create(name: str, config: Config, topics: tuple[str, ...]) -> None:
    """Create those of these topics that are not there.

    Raises:
        ConfigError: The brokers refuse it.
        UnavailableError: No broker answers.
    """
    greet(name, config)
    try:
        with closing(KafkaAdminClient(**plain_options(name, config))) as admin:
            missing = [topic for topic in topics if topic not in admin.list_topics()]
            new = config.new_topics
            for topic in missing:
                wish = NewTopic(name=topic, num_partitions=new.partitions, replication_factor=new.replication_factor)
                with suppress(TopicAlreadyExistsError):  # another member was first
                    admin.create_topics([wish])
                    log.info("topic created", topic=topic, partitions=new.partitions)
    except (KafkaError, OSError) as error:
        raise_if_refused(name, error)
        raise UnavailableError(f"kafka:{name}", f"topics cannot be created: {told(error)}") from error


def read_again(name: str, config: Config, position: str) -> Record | None:
    """Return the record at a position, or None if it is not there any more.

    Raises:
        UnavailableError: No broker answers.
    """
    found = _POSITION.fullmatch(position)
    if found is None:
        return None
    partition, offset = TopicPartition(found["topic"], int(found["partition"])), int(found["offset"])
    try:
        with closing(reader(f"{name}-again", config)) as consumer:
            if partition.partition not in consumer.partitions_for_topic(partition.topic):
                return None
            record = fetched(consumer, partition, offset)
    except (KafkaError, OSError) as error:
        raise UnavailableError(f"kafka:{name}", f"{position} cannot be read again: {told(error)}") from error
    return record


def fetched(consumer: KafkaConsumer, partition: TopicPartition, offset: int) -> Record | None:
    """Return the record at an offset. That there is none shows in where the client goes on; silence says nothing.

    Raises:
        KafkaError: No broker answers.
    """
    consumer.assign([partition])
    consumer.seek(partition, offset)
    until = time.monotonic() + READ_SECONDS
    while time.monotonic() < until:
        records = consumer.poll(timeout_ms=_LOOK_MS, max_records=1).get(partition, [])
        if records:
            return record_of(records[0]) if records[0].offset == offset else None
        highwater = consumer.highwater(partition)
        position = consumer.position(partition, timeout_ms=READ_SECONDS * 1000)
        if position != offset or (highwater is not None and offset >= highwater):
            return None
    raise KafkaTimeoutError("no answer")
