"""Events of a topic, on a broker of their own: the Kafka campaign's stream, and what the topic itself says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tests.campaigns.faults.oracle import Held
from tests.campaigns.kafka_ground import GROUP, SESSION_MS, SOURCE, TOPIC
from tests.campaigns.kafka_oracle import check_letters, committed, read_back
from tests.campaigns.kafka_stream import Stream
from tests.fixtures.brokers import Noida, Tansu, create_topic, produce
from tests.fixtures.daemon import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tests.campaigns.kafka_oracle import Expected
    from tests.fixtures.daemon import Workplace

RECORDS = "records"
"""The collection: the stream counts on a chunker that takes a text whole, so it has one of its own."""
PARTITIONS = 2


class Records:
    """A topic.

    Args:
        folder: For the broker.
        seed: Of the stream.
        broker: ``tansu``, where the group waits for a member that was killed; or ``noida``, where members are static,
            so that the next one goes on at once.
        documents: How many different ones it is about, at most.
    """

    def __init__(
        self, folder: Path, seed: int, broker: Literal["tansu", "noida"] = "tansu", documents: int = 60
    ) -> None:
        folder.mkdir(parents=True)
        self._static = broker == "noida"
        self.broker = Noida(folder) if self._static else Tansu(folder)
        self.broker.start()
        create_topic(self.broker.bootstrap, TOPIC, PARTITIONS)
        self._stream = Stream(seed, documents, PARTITIONS)
        self._ends = dict.fromkeys(range(PARTITIONS), 0)
        self._expected: Expected | None = None

    @property
    def number(self) -> int:
        """Events so far: records that were acknowledged."""
        return sum(self._ends.values())

    def configure(self, workplace: Workplace) -> None:
        """Have a daemon read the topic too, into a collection of its own."""
        workplace.settings["sources"][SOURCE] = {
            "type": "kafka",
            "bootstrap_servers": [self.broker.bootstrap],
            "topics": [TOPIC],
            "group_id": GROUP,
            "collection": RECORDS,
            "commit_seconds": 0.2,
            "consumer": {"session_timeout_ms": SESSION_MS},
            **({"group_instance_id": "one"} if self._static else {}),
        }
        workplace.settings["collections"][RECORDS] = {
            "chunker": {"type": "whole"},
            "vectors": {"dense": {"embedder": "hash"}},
        }

    def do(self, count: int) -> None:
        """Produce the stream's next events, and wait until all are acknowledged."""
        for partition, offset in produce(self.broker.bootstrap, TOPIC, list(self._stream.take(count))):
            self._ends[partition] = max(self._ends[partition], offset + 1)
        self._expected = None

    def folded(self) -> Expected:
        """Return what the topic says, read back."""
        if self._expected is None:
            self._expected = read_back(self.broker.bootstrap, TOPIC, self._ends)
        return self._expected

    def expected(self) -> dict[str, Held]:
        """Return what has to be in Milvus."""
        return {name: Held(held.text, held.metadata) for name, held in self.folded().documents.items()}

    def check_letters(self, letters: Iterable[Mapping[str, Any]]) -> None:
        """Check that the dead letters are the topic's bad records."""
        check_letters(self.folded(), letters)

    def check_committed(self, seconds: float = 0.0) -> None:
        """Check that the group has committed all, within so many seconds."""
        wait_for(lambda: self._committed() == self._ends, f"the group has committed {self._ends}", seconds)

    def _committed(self) -> dict[int, int]:
        return committed(self.broker.bootstrap, TOPIC, GROUP, self._ends)

    def close(self) -> None:
        """End the broker."""
        self.broker.kill()
