"""Records that made the versions which documents have, read again from their topics: for rows that are to be mended.

A version says its record's place: its domain is the partition's (``topology``), its number the offset. One that a
producer gave itself says none, and neither does one of a partition that was another one than it is now. Keeping a copy
of every document's record was turned down: the topic has it, for as long as its owner wants.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from ingestd.errors import UnavailableError
from ingestd.model import Again
from ingestd.sources._kafka.connection import reader
from ingestd.sources._kafka.errors import raise_if_refused, told
from ingestd.sources._kafka.topics import fetched
from ingestd.sources._kafka.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kafka import KafkaConsumer

    from ingestd.model import Version
    from ingestd.sources.kafka import Config


def recovered(name: str, config: Config, versions: Mapping[str, Version]) -> Iterator[Again]:
    """Yield the records, in the order of their places; those that are not there any more are left out.

    Args:
        name: The source's name.
        config: Its settings.
        versions: By document.

    Raises:
        ConfigError: The brokers refuse us.
        UnavailableError: No broker answers.
    """
    try:
        with closing(reader(f"{name}-again", config)) as consumer:
            partitions = _partitions(consumer, config)
            places = [
                (partition, version.number, document)
                for document, version in versions.items()
                if (partition := partitions.get(version.domain)) is not None and version.number >= 0
            ]
            for partition, offset, document in sorted(places):
                record = fetched(consumer, partition, offset)
                if record is not None:
                    yield Again(document, record.position, record)
    except (KafkaError, OSError) as error:
        raise_if_refused(name, error)
        raise UnavailableError(f"kafka:{name}", f"records cannot be read again: {told(error)}") from error


def _partitions(consumer: KafkaConsumer, config: Config) -> dict[str, TopicPartition]:
    """Return the partitions that are read, by the domain of their versions."""
    topology = Topology(consumer)
    topics = sorted(topic for topic in consumer.topics() if config.reads(topic))
    partitions = [
        TopicPartition(topic, number)
        for topic in topics
        for number in sorted(consumer.partitions_for_topic(topic) or ())
    ]
    return {topology.domain(partition): partition for partition in partitions}
