"""A daemon on a Kafka topic, for the tests of its faults."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from kafka import KafkaConsumer
from kafka.structs import TopicPartition
from tests.fixtures.brokers import create_topic, produce
from tests.fixtures.daemon import COLLECTION, PATIENCE, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fixtures.brokers import Record
    from tests.fixtures.daemon import Daemon, Workplace

SOURCE = "cms"
SESSION_MS = 6000
"""The least that brokers take by default."""
NOTICED = 30.0
"""Seconds within which a fault shows (promise 10)."""


class Place:
    """A workplace whose only source is a topic of its own.

    Args:
        workplace: Its inbox is not watched.
        bootstrap: The broker's; the topic is made there, unless it is not there yet.
        partitions: Of the topic; 0: it is made later.
        source: More keys of the source.
    """

    def __init__(self, workplace: Workplace, bootstrap: str, partitions: int = 1, **source: Any) -> None:
        self.workplace = workplace
        self.topic = self.group = f"t-{uuid.uuid4().hex[:8]}"
        self._bootstrap = bootstrap
        self.count = 0
        self.partitions = partitions
        workplace.settings["sources"] = {
            SOURCE: {
                "type": "kafka",
                "bootstrap_servers": [bootstrap],
                "topics": [self.topic],
                "group_id": self.group,
                "collection": COLLECTION,
                "commit_seconds": 0.2,
                # A join that the broker never answers is given up after 20 s, and not after five minutes.
                "consumer": {
                    "session_timeout_ms": SESSION_MS,
                    "max_poll_interval_ms": 15_000,
                    "request_timeout_ms": 10_000,
                },
                **source,
            }
        }
        workplace.configure(f"collections.{COLLECTION}.chunker", {"type": "whole"})
        if partitions:
            create_topic(bootstrap, self.topic, partitions)

    def produce(self, count: int, **more: object) -> set[str]:
        """Produce so many documents, in turn to each partition; return their ids."""
        numbers = range(self.count, self.count + count)
        self.produce_records([record(f"d{number}", number % self.partitions, **more) for number in numbers])
        return {f"d{number}" for number in numbers}

    def produce_records(self, records: Sequence[Record], **options: Any) -> None:
        """Produce these records; ``options`` are the client's."""
        produce(self._bootstrap, self.topic, records, **options)
        self.count += len(records)

    def committed(self) -> int:
        """Return the sum of what the group has committed."""
        consumer = KafkaConsumer(bootstrap_servers=self._bootstrap, group_id=self.group, enable_auto_commit=False)
        try:
            found = [
                consumer.committed(TopicPartition(self.topic, number), timeout_ms=10_000)
                for number in range(self.partitions)
            ]
        finally:
            consumer.close()
        return sum(offset or 0 for offset in found)

    def until_committed(self, seconds: float = PATIENCE) -> None:
        """Wait until the group has committed all that was produced."""
        wait_for(lambda: self.committed() == self.count, "all is committed", seconds)


def record(document: str, partition: int = 0, **more: object) -> Record:
    """Return a good record."""
    value = {"id": document, "text": f"The text of {document}.", **more}
    return None, json.dumps(value).encode(), (), partition


def says(daemon: Daemon, name: str = f"{SOURCE}:broker") -> str | None:
    """Return what a check finds wrong; None: nothing."""
    check = daemon.check(name)
    return None if check is None or check["ok"] else str(check["detail"])


def metric(daemon: Daemon, name: str, label: str = "") -> float:
    """Return the sum of a metric over its labels, or over those lines that have this one."""
    lines = [line for line in daemon.get("/metrics")[1].splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines if label in line)
