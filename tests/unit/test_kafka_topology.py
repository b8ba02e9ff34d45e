"""What the topics are that are held, and what a member does when they change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from kafka.structs import TopicPartition

from ingestd.sources._kafka.rebalance import Seat
from ingestd.sources._kafka.topology import Change, Topology
from ingestd.sources.kafka import Config

if TYPE_CHECKING:
    from ingestd.sources._kafka.tenure import Tenure

A, B, OTHER = TopicPartition("t", 0), TopicPartition("t", 1), TopicPartition("u", 0)
FIRST, SECOND = UUID(int=1), UUID(int=2)


class Client:
    """As much of kafka-python's consumer as is asked here: what it knows of the cluster, and where it was sought."""

    def __init__(self) -> None:
        self.config = {"session_timeout_ms": 10_000, "heartbeat_interval_ms": 3_000}
        self.cluster_id: str | None = "cluster"
        self.ids: dict[str, UUID] = {"t": FIRST}
        self.counts = {"t": 2, "u": 1}
        self.sought: list[tuple[TopicPartition, int]] = []
        self._cluster = self
        self._coordinator = SimpleNamespace(
            heartbeat=SimpleNamespace(sent_heartbeat=None, received_heartbeat=None),
            _process_join_group_response=None,
            _on_join_complete_async=None,
        )

    def topic_id(self, topic: str) -> UUID | None:
        """Return an id."""
        return self.ids.get(topic)

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return the partitions' numbers."""
        return set(range(self.counts[topic])) if topic in self.counts else None

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Remember."""
        self.sought.append((partition, offset))


class Bench:
    """A seat that holds some partitions, of each of which a record was taken that is not done."""

    def __init__(self) -> None:
        self.client: Any = Client()
        config = Config(bootstrap_servers=("x:1",), topics=("t", "u"), group_id="g", collection="c")
        self.seat = Seat("s", self.client, config, lambda _holdings: None)

    def hold(self, *partitions: TopicPartition) -> list[Tenure]:
        """Hold these partitions."""
        self.seat.holdings.assigned(partitions, 1, all_at_once=True)
        for partition in partitions:
            self.of(partition).tracker.take(100, 0.0)
        return [self.of(partition) for partition in partitions]

    def of(self, partition: TopicPartition) -> Tenure:
        """Return the tenure that a partition has now."""
        tenure = self.seat.holdings.of(partition)
        assert tenure is not None
        return tenure

    def look(self) -> list[TopicPartition]:
        """Have the topics looked at; return whose tenures ended by it."""
        before = list(self.seat.holdings.tenures())
        self.seat.look_at_topics()
        return sorted(tenure.partition for tenure in before if tenure.ended)


@pytest.fixture
def bench() -> Bench:
    """Return a seat that holds nothing."""
    return Bench()


def test_a_partition_compares_within_its_cluster_and_topic_id(bench: Bench) -> None:
    """By the topic's name where the brokers give no ids."""
    bench.hold(A, OTHER)
    assert (bench.of(A).domain, bench.of(OTHER).domain) == (f"kafka:cluster/{FIRST}/0", "kafka:cluster/u/0")
    assert bench.look() == []


def test_where_partitions_are_added_those_that_are_held_begin_anew(bench: Bench) -> None:
    """Documents go to other partitions: under new tenures, from the watermarks; other topics go on."""
    a, _b, _other = bench.hold(A, B, OTHER)
    bench.client.counts["t"] = 3
    assert sorted(bench.look()) == [A, B]
    assert sorted(bench.client.sought) == [(A, 100), (B, 100)]
    assert (bench.of(A).id == a.id, bench.of(A).domain == a.domain) == (False, True)
    assert bench.look() == [], "once"


def test_a_topic_made_anew_begins_at_its_first_record(bench: Bench) -> None:
    """Another id under its name: another domain, whatever else has changed."""
    bench.hold(A, OTHER)
    bench.client.ids["t"], bench.client.counts["t"] = SECOND, 5
    assert bench.look() == [A]
    assert (bench.of(A).domain, bench.client.sought) == (f"kafka:cluster/{SECOND}/0", [(A, 0)])


def test_an_id_that_is_known_later_begins_the_partition_anew(bench: Bench) -> None:
    """The metadata lacked it: what was read so far is of another domain, and comes again from the watermark."""
    del bench.client.ids["t"]
    bench.hold(A)
    assert bench.of(A).domain == "kafka:cluster/t/0"
    bench.client.ids["t"] = FIRST
    assert bench.look() == [A]
    assert (bench.of(A).domain, bench.client.sought) == (f"kafka:cluster/{FIRST}/0", [(A, 100)])


def test_what_the_brokers_do_not_say_for_a_moment_still_stands(bench: Bench) -> None:
    """Metadata without a topic, as while it has no leader, takes back nothing: no tenure ends."""
    bench.hold(A)
    bench.client.ids, bench.client.counts, bench.client.cluster_id = {}, {}, None
    assert bench.look() == []
    bench.client.ids, bench.client.counts, bench.client.cluster_id = {"t": FIRST}, {"t": 2}, "cluster"
    assert bench.look() == []
    bench.seat.holdings.again(A)
    assert bench.of(A).domain == f"kafka:cluster/{FIRST}/0"


def test_offsets_that_fall_are_of_another_domain_where_there_are_no_ids(bench: Bench) -> None:
    """Nothing else says that the topic was made anew: old numbers must not count against its records."""
    _a, other = bench.hold(A, OTHER)
    first = bench.seat.fallen(OTHER)
    second = bench.seat.fallen(OTHER)
    assert len({other.domain, first.domain, second.domain}) == 3
    assert bench.look() == [], "it stays what it is"
    bench.seat.holdings.again(OTHER)
    assert bench.of(OTHER).domain == second.domain
    assert bench.seat.fallen(A).domain == f"kafka:cluster/{FIRST}/0", "an id says it better"


def test_a_topic_that_was_not_held_may_be_another_one(bench: Bench) -> None:
    """What was known of it is forgotten: held again, it is looked at for the first time."""
    bench.hold(A, OTHER)
    bench.seat.holdings.assigned([OTHER], 2, all_at_once=True)
    bench.look()
    bench.client.ids["t"] = SECOND
    bench.seat.holdings.assigned([A, OTHER], 3, all_at_once=True)
    assert bench.look() == []
    assert bench.of(A).domain == f"kafka:cluster/{SECOND}/0"


def test_what_begins_before_our_commits_has_fallen_where_there_are_no_ids(bench: Bench) -> None:
    """The topic was away, and another tenure begins: only what was committed says that it is another one."""
    bench.seat.commits._answered({A: SimpleNamespace(offset=5), OTHER: SimpleNamespace(offset=5)}, None)
    bench.seat.holdings.assigned([A, OTHER], 1, all_at_once=True)
    a, other = bench.of(A), bench.of(OTHER)
    assert [bench.seat.falls(other, 5), bench.seat.falls(other, 4), bench.seat.falls(a, 4)] == [False, True, False]
    assert not bench.seat.falls(bench.seat.fallen(OTHER), 3), "once"
    other = bench.of(OTHER)
    other.tracker.take(3, 0.0)
    assert not bench.seat.falls(other, 4)


def test_a_look_says_what_changed() -> None:
    """The first one nothing."""
    client: Any = Client()
    topology = Topology(client)
    found = [topology.look("t")]
    client.counts["t"] = 3
    found.append(topology.look("t"))
    client.ids["t"] = SECOND
    found.append(topology.look("t"))
    assert found == [None, Change.REPARTITIONED, Change.ANOTHER]
