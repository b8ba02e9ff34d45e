"""Where a group begins that has committed nothing yet: at the earliest record, the latest, a time, or given offsets.

What is found is committed at once: a member that is started again before its first record has come goes on from
there, and loses nothing that came meanwhile.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from kafka.structs import OffsetAndMetadata

if TYPE_CHECKING:
    from kafka import KafkaConsumer
    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.start import Start

SECONDS = 10.0
"""For each question to a broker."""


def place(consumer: KafkaConsumer, partition: TopicPartition, start: Start) -> int | None:
    """Seek to where a partition begins, and commit that, where the group has committed nothing.

    Args:
        consumer: It has the partition.
        partition: The partition.
        start: Where to begin.

    Returns:
        The offset; None: the group goes on where it was.

    Raises:
        KafkaError: A broker does not answer, or refuses.
    """
    if consumer.committed(partition, timeout_ms=SECONDS * 1000) is not None:
        return None
    offset = _found(consumer, partition, start)
    consumer.seek(partition, offset)
    committed = {partition: OffsetAndMetadata(offset, "", -1)}
    consumer.commit(committed, timeout_ms=SECONDS * 1000)
    return offset


def _found(consumer: KafkaConsumer, partition: TopicPartition, start: Start) -> int:
    if isinstance(start, datetime):
        found = consumer.offsets_for_times({partition: int(start.timestamp() * 1000)}, timeout_ms=SECONDS * 1000)
        answer: Any = found.get(partition)
        if answer is not None:
            return int(answer.offset)
        start = "latest"  # every record is older
    if isinstance(start, dict):
        named = start.get(f"{partition.topic}/{partition.partition}")
        if named is not None:
            return named
        start = "earliest"
    ends = consumer.end_offsets if start == "latest" else consumer.beginning_offsets
    return int(ends([partition], timeout_ms=SECONDS * 1000)[partition])
