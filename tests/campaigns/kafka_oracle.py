"""What must be true once a topic is worked off, found without any of the daemon's code.

The topic is read back with librdkafka, and folded: the last good record of each document says what it has to be. Then
everything that the daemon left is held against that: the rows in Milvus, the dead letters in the states of all members,
and the offsets that the group has committed.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import Consumer, TopicPartition
from tests.campaigns.kafka_stream import POISON
from tests.fixtures.daemon import COLLECTION

from ingestd.milvus.client import import_pymilvus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confluent_kafka import Message

SHOWN = 20
"""The most differences that are listed of each kind."""
_READ_SECONDS = 120.0


class Held(NamedTuple):
    """What a document is: its text, and its metadata."""

    text: str
    metadata: Mapping[str, Any]

    def __str__(self) -> str:
        """Return what tells it from others: the text's end and the metadata's number, each of an event."""
        return f"…{self.text[-20:]!r} n={self.metadata.get('n')}"


@dataclass(slots=True)
class Expected:
    """What a topic says."""

    records: int = 0
    documents: dict[str, Held] = field(default_factory=dict)
    """Those that are there at the end."""
    last: dict[str, str] = field(default_factory=dict)
    """The position of the last good record of each document, also of one that is gone."""
    poison: dict[str, str] = field(default_factory=dict)
    """The positions of bad records, and what is bad about each."""
    mended: set[str] = field(default_factory=set)
    """Those of them that a later good record of the same document may have mended."""
    ends: dict[int, int] = field(default_factory=dict)
    """By partition: the offset after the last record."""

    @property
    def lasting(self) -> set[str]:
        """The positions that have to be among the dead letters."""
        return self.poison.keys() - self.mended


def read_back(bootstrap: str, topic: str, ends: Mapping[int, int]) -> Expected:
    """Read a topic from its beginning, and fold it.

    Args:
        bootstrap: The brokers.
        topic: The topic.
        ends: By partition: the offset after the last record that was acknowledged.
    """
    expected = Expected(ends=dict.fromkeys(ends, 0))
    standing: dict[str, set[str]] = {}
    consumer = _consumer(bootstrap, "oracle")
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        until = time.monotonic() + _READ_SECONDS
        while any(expected.ends[partition] < end for partition, end in ends.items()):
            assert time.monotonic() < until, f"the topic cannot be read back: {expected.ends} of {ends}"
            for message in consumer.consume(1000, 1.0):
                assert message.error() is None, message.error()
                _fold(expected, standing, message)
    finally:
        consumer.close()
    assert expected.ends == ends, "the topic has more than was produced"
    return expected


def _fold(expected: Expected, standing: dict[str, set[str]], message: Message) -> None:
    """Apply a record to what came before it in its partition."""
    partition, offset, key, value = message.partition(), message.offset(), message.key(), message.value()
    assert partition is not None
    assert offset is not None
    assert offset == expected.ends[partition], f"a hole before {partition}@{offset}"
    position = f"{message.topic()}/{partition}@{offset}"
    expected.ends[partition] = offset + 1
    expected.records += 1
    said: dict[str, Any] = {}
    poison = dict(message.headers() or []).get(POISON)
    if poison is not None:
        assert isinstance(poison, bytes)
        expected.poison[position] = poison.decode()
        if key is not None:
            standing.setdefault(repr(key), set()).add(position)
        return
    if value is not None:
        said = json.loads(value)
    name = said.get("id") or bytes(key or b"").decode()
    expected.last[name] = position
    expected.mended |= standing.pop(repr(name.encode()), set())
    if value is None or said.get("op") == "delete":
        expected.documents.pop(name, None)
    else:
        text = said["text"] if "text" in said else base64.b64decode(said["content"]).decode()
        expected.documents[name] = Held(text, said["metadata"])


def stored(uri: str) -> dict[str, list[Held]]:
    """Return what Milvus holds of each document, row by row, read by a client of its own."""
    import_pymilvus()
    from pymilvus import MilvusClient  # noqa: PLC0415 - it may be imported only after its noise is turned off

    client = MilvusClient(uri=uri, timeout=60)
    found: dict[str, list[Held]] = {}
    try:
        client.load_collection(COLLECTION, timeout=60)
        # The iterator does not wait for what was just written; a Strong read does.
        count = client.query(COLLECTION, "", ["count(*)"], consistency_level="Strong", timeout=60)[0]["count(*)"]
        fields = ["id", "document_id", "text", "metadata"]
        iterator = client.query_iterator(COLLECTION, batch_size=1000, output_fields=fields, timeout=60)
        rows = 0
        while page := iterator.next():
            rows += len(page)
            for row in page:
                found.setdefault(row["document_id"], []).append(Held(row["text"], row["metadata"]))
        iterator.close()
    finally:
        client.close()
    assert rows == count, f"{rows} rows were read, and {count} counted"
    return found


def differences(expected: Expected, rows: Mapping[str, list[Held]]) -> list[str]:
    """Return what of the rows is not as the topic says: missing, orphan, duplicate, or stale."""
    found: list[str] = []

    def note(kind: str, name: str, detail: str) -> None:
        found.append(f"{kind}: {name} (last record {expected.last.get(name)}): {detail}")

    for name in expected.documents.keys() - rows.keys():
        note("missing", name, str(expected.documents[name]))
    for name, held in rows.items():
        wanted = expected.documents.get(name)
        if wanted is None:
            note("orphan", name, _told(held))
        elif len(held) > 1:
            note("duplicate", name, f"{_told(held)}, and it should be {wanted}")
        elif held[0] != wanted:
            note("stale", name, f"{held[0]}, and it should be {wanted}")
    return found


def check_rows(expected: Expected, rows: Mapping[str, list[Held]]) -> None:
    """Check that Milvus holds what the topic says: no document more or less, and each one once and up to date."""
    found = differences(expected, rows)
    kinds = Counter(one.partition(":")[0] for one in found)
    assert not found, f"{dict(kinds)} of {len(expected.documents)} documents:\n" + "\n".join(found[:SHOWN])


def check_letters(expected: Expected, letters: Iterable[Mapping[str, Any]]) -> int:
    """Check that the dead letters are the bad records; return how many different ones there are.

    Args:
        expected: What the topic says.
        letters: Of all members. One record may be a dead letter of several.
    """
    kept = {letter["position"]: letter for letter in letters}
    lost = expected.lasting - kept.keys()
    assert not lost, (
        f"bad records that are no dead letters: {[(at, expected.poison[at]) for at in sorted(lost)[:SHOWN]]}"
    )
    invented = kept.keys() - expected.poison.keys()
    assert not invented, f"dead letters that are no bad records: {[kept[at] for at in sorted(invented)[:SHOWN]]}"
    return len(kept)


def committed(bootstrap: str, topic: str, group: str, partitions: Iterable[int]) -> dict[int, int]:
    """Return the offsets that a group has committed, by partition; 0: none. Joins nothing."""
    consumer = _consumer(bootstrap, group)
    try:
        wanted = [TopicPartition(topic, partition) for partition in partitions]
        return {found.partition: max(0, found.offset) for found in consumer.committed(wanted, timeout=20)}
    finally:
        consumer.close()


def _told(held: Iterable[Held]) -> str:
    return " and ".join(map(str, held))


def _consumer(bootstrap: str, group: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
