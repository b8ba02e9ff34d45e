"""Members of a group: what they commit, what moves between them, and what keeps a partition."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from tests.fixtures.brokers import Tansu, free_port
from tests.fixtures.daemon import wait_for
from tests.integration.kafka.conftest import SESSION_MS, Rig, kept, offsets, records, written
from tests.integration.kafka.late import late

from ingestd.sources._kafka import connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.kafka

SYNC_GROUP = 14


def test_a_rebalance_that_outlasts_its_polls_is_seen_through(tmp_path: Path) -> None:
    """A topic that appears is read also where the group answers late: the client forgets by itself why it joined.

    What the leader makes of the group takes longer to be answered than the longest poll during a rebalance.
    """
    port = free_port()
    with late(port) as proxy:
        broker = Tansu(tmp_path / "tansu", port=port, advertised=proxy.address).start()
        try:
            rig = Rig(proxy.address, tmp_path)
            rig.make(topic=f"{rig.topic}.a")
            with rig.running(topic_pattern=f"{rig.topic}[.]", consumer={"metadata_max_age_ms": 300}) as engine:
                engine.until_holds(1)
                proxy.seconds[SYNC_GROUP] = 1.5
                rig.make(topic=f"{rig.topic}.b")
                engine.until_holds(2)
        finally:
            broker.kill()


def test_a_topic_that_is_made_while_it_is_waited_for_is_read(on_tansu: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that joined when there was nothing to have gets its part. Tansu gives it the same nothing again."""
    monkeypatch.setattr("ingestd.sources._kafka.member.APPEARED_SECONDS", 2.0)
    with on_tansu.running(consumer={"metadata_max_age_ms": 300}) as engine:
        engine.until(lambda: engine.source._member.view.missing == (on_tansu.topic,), "it is said to be missing")
        engine.until(lambda: engine.source._member.view.rebalances, "it has joined, and got nothing")
        on_tansu.make(2)
        engine.until_holds(2)
        on_tansu.produce(*records(4))
        engine.until_settled(4)


def test_work_in_flight_stays_where_its_partition_stays(on_tansu: Rig) -> None:
    """A second member joins: of the partition that stays nothing is lost or done twice, of the other one all moves.

    What was done when the group was given out anew is committed then, as the broker says; the watermark of the
    partition that stays goes on from what was done, and passes what was in flight only when that is done.
    """
    on_tansu.make(2)
    on_tansu.produce(*records(6, partition=0), *records(6, partition=1, start=10))
    # Nothing is committed but at a rebalance.
    slow: dict[str, Any] = {"commit_seconds": 60.0}
    with on_tansu.running(script=kept, drain=1.0, **slow) as first:
        first.until_came(12)
        done = [event for event in first.kept if event.record is not None and event.record.offset in {0, 1, 3}]
        first.end(done)
        first.until_settled(6)
        with on_tansu.running(script=kept, **slow) as second:
            second.until_came(1)
            (moved,), (stayed,) = second.until_holds(1), first.until_holds(1)
            assert {0, 1} == {moved[1], stayed[1]}
            assert 2 == on_tansu.committed(moved[1]) == on_tansu.committed(stayed[1])
            # What moved begins at its watermark, and with it the record behind it that was done.
            second.until_came(4)
            assert {moved[1]: [2, 3, 4, 5]} == offsets(second)
            on_tansu.produce(*records(1, partition=stayed[1], start=20))
            first.until_came(13)
            view = first.source._member.view.partitions[0]
            assert 2 == view.watermark
            first.end(first.kept)
            second.end(second.kept)
            first.until(lambda: 7 == first.source._member.view.partitions[0].watermark, "all is done")
            assert 13 == len(first.events)
            assert {moved[1]: [0, 1, 2, 3, 4, 5], stayed[1]: [0, 1, 2, 3, 4, 5, 6]} == offsets(first)
            totals = first.totals()
            assert (10, 10) == (totals["accepted"], totals["written"])


def test_a_pipeline_that_takes_nothing_keeps_its_partitions(on_tansu: Rig) -> None:
    """While nothing is taken for longer than ``max_poll_interval_ms`` polling goes on; then every record comes once.

    The budget is five events, and each partition has more than a fetch brings: one that stayed paused would starve.
    """
    on_tansu.make(4)
    for partition in range(4):
        on_tansu.produce(*records(150, partition=partition, start=150 * partition))
    consumer = {"max_poll_interval_ms": SESSION_MS, "max_poll_records": 40}
    with on_tansu.running(script=kept, most=5, consumer=consumer) as engine:
        engine.until_came(5)
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() > begun + 2.0 * SESSION_MS / 1000, "longer than the interval")
        assert 4 == len(engine.held())
        assert all(check.ok for check in engine.source.checks())
        assert (1, 5) == (engine.source._member.view.rebalances, len(engine.events))
        engine.script = written
        engine.end(engine.kept)
        engine.until_settled(600)
        assert {partition: list(range(150)) for partition in range(4)} == offsets(engine)
        assert 600 == engine.totals()["accepted"]


def test_what_the_client_puts_aside_comes_when_it_is_given_back(on_tansu: Rig) -> None:
    """Two partitions are put aside in the middle of what was fetched, and a third is read to its end.

    By itself the client gives neither back, however long it is asked: nothing comes that would take the third's place.
    """
    on_tansu.make(3)
    for partition in range(3):
        on_tansu.produce(*records(12, partition=partition, start=12 * partition))
    options = {"group_id": None, "auto_offset_reset": "earliest", "max_poll_records": 5}
    consumer = KafkaConsumer(bootstrap_servers=on_tansu.bootstrap, **options)
    found: Counter[int] = Counter()

    def poll() -> int:
        for partition, some in consumer.poll(timeout_ms=100).items():
            found[partition.partition] += len(some)
        return sum(found.values())

    def until(condition: Callable[[], bool]) -> None:
        wait_for(lambda: poll() >= 0 and condition(), "records come")

    def given_back() -> int:
        connection.give_back(consumer)
        return poll()

    try:
        consumer.assign([TopicPartition(on_tansu.topic, partition) for partition in range(3)])
        until(lambda: len(found) > 0)
        for count in (2, 3):
            consumer.pause(*(TopicPartition(on_tansu.topic, partition) for partition in found))
            until(lambda count=count: len(found) == count)  # type: ignore[misc]  # bound now
        (last,) = {0, 1, 2} - {partition.partition for partition in consumer.paused()}
        until(lambda: found[last] == 12)
        consumer.resume(*consumer.paused())
        before = sum(found.values())
        assert before < 36
        assert {poll() for _ in range(10)} == {before}
        wait_for(lambda: given_back() == 36, "all is given back")
        assert found == {0: 12, 1: 12, 2: 12}
    finally:
        consumer.close()


def test_a_surplus_member_that_runs_once_ends(on_tansu: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for as long as the partitions could be a dead member's, and takes nothing of a live one's."""
    on_tansu.make(1)
    with on_tansu.running(script=kept) as first:
        on_tansu.produce(*records(2))
        first.until_came(2)
        options = connection.options
        # Members' ids begin so, and the assignor gives what there is to the first in their order.
        monkeypatch.setattr(connection, "options", lambda *given: {**options(*given), "client_id": "the-last-one"})
        begun = time.monotonic()
        with on_tansu.running(script=written, once=True) as second:
            second.join(60.0)
            assert all(check.ok for check in second.source.checks())
        assert time.monotonic() - begun > SESSION_MS / 1000
        assert [] == second.events
        first.until_holds(1)
        first.end(first.kept)
        on_tansu.until_committed(2)
