"""Letters that are tried again beside other members, and partitions that are added, on a real broker."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from kafka.admin import KafkaAdminClient
from tests.integration.kafka.conftest import records, value, written

from ingestd.errors import Superseded
from ingestd.model import Verdict

if TYPE_CHECKING:
    from tests.integration.kafka.conftest import Engine, Rig

    from ingestd.model import Event

pytestmark = pytest.mark.kafka


def refused(_event: Event) -> Verdict | None:
    """Have every event become a dead letter."""
    return Verdict.DEAD_LETTERED


def read(event: Event) -> Verdict | None:
    """End every event as reading it does: well, or superseded."""
    try:
        assert event.payload is not None
        event.payload.read()
    except Superseded:
        return Verdict.SUPERSEDED
    return Verdict.WRITTEN


def try_again(engine: Engine) -> None:
    """Have all letters of a state tried again, as a command does in a daemon whose collection others write too."""
    engine.source._shared = True
    ids = [letter.id for letter in engine.store.dead_letters()]
    for source, count in engine.store.requeue(ids).items():
        engine.tally.requeue(source, count)


def add_partition(rig: Rig, count: int) -> None:
    """Raise the number of a topic's partitions."""
    with closing(KafkaAdminClient(bootstrap_servers=rig.bootstrap)) as admin:
        admin.create_partitions({rig.topic: count})


def test_a_letter_of_a_partition_that_is_held_is_tried_under_its_tenure(on_noida: Rig) -> None:
    """So a rebalance waits for it, and what it writes is relied on no longer than the tenure lasts."""
    on_noida.make()
    on_noida.produce(*records(2))
    with on_noida.running(script=refused) as engine:
        engine.until(lambda: engine.totals()["dead_lettered"] == 2, "two letters")
        engine.script = written
        try_again(engine)
        engine.until(lambda: engine.totals()["written"] == 2, "both are written")
        first, again = engine.events[0], engine.events[2]
        assert first.lease is not None
        assert again.lease is not None
        assert (again.lease.id, again.lease.lent, again.again) == (first.lease.id, True, True)
        assert [event.version for event in engine.events[:2]] == sorted(
            event.version for event in engine.events[2:4] if event.version is not None
        )


def test_a_letter_of_another_members_partition_goes_the_way_of_its_topic(on_noida: Rig) -> None:
    """Whoever holds the partition does it, as the version that it was; the member with the letter writes nothing."""
    on_noida.make(2)
    on_noida.produce(*records(1, partition=0), *records(1, partition=1, start=1))
    with on_noida.running(script=refused, state="a") as first:
        first.until(lambda: first.totals()["dead_lettered"] == 2, "two letters")
        for partition in range(2):
            on_noida.until_committed(1, partition)
    with on_noida.running(state="b") as other:
        other.until_holds(2)
        with on_noida.running(state="a", script=read) as member:
            [(_topic, mine)] = member.until_holds(1)
            other.until_holds(1)
            try_again(member)
            other.until_settled(1)
            member.until_settled(2)
            [there] = other.events
            assert [Verdict.WRITTEN] == member.verdicts(f"d{mine}")
            assert [Verdict.SUPERSEDED] == member.verdicts(f"d{1 - mine}")
            assert there.record is not None
            assert (1 - mine, 1) == (there.record.partition, there.record.offset)
            assert there.version in [event.version for event in first.events]
            assert (True, False) == (there.again, there.lease is None or there.lease.lent)
            assert (1, 1) == (member.totals()["written"], member.totals()["superseded"])
            on_noida.until_committed(2, 1 - mine)


def test_partitions_that_are_added_begin_the_others_anew(on_noida: Rig) -> None:
    """Their documents go to others from now on: another tenure, nothing read twice that was done, nothing left out."""
    on_noida.make()
    on_noida.produce(*records(4, partition=0))
    with on_noida.running(consumer={"metadata_max_age_ms": 500}) as engine:
        engine.until_settled(4)
        on_noida.until_committed(4)
        before = engine.events[0].lease
        assert before is not None
        add_partition(on_noida, 2)
        engine.until_holds(2)
        engine.until(lambda: before.ended, "the tenure of the first partition has ended")
        on_noida.produce(*records(2, partition=0, start=10), *records(2, partition=1, start=20))
        engine.until_settled(8)
        assert ["d10", "d11", "d20", "d21"] == sorted(engine.documents()[4:])


def test_latest_leaves_out_nothing_of_a_partition_that_is_added(on_noida: Rig) -> None:
    """What is written to it before a member notices it is no old record: the group was there before the partition."""
    on_noida.make()
    on_noida.produce(*records(3, partition=0))
    with on_noida.running(start="latest", consumer={"metadata_max_age_ms": 500}) as engine:
        engine.until_holds(1)
        on_noida.until_committed(3)
        add_partition(on_noida, 2)
        on_noida.produce(*[(None, value(f"n{number}"), [], 1) for number in range(5)])
        engine.until_settled(5)
        assert [f"n{number}" for number in range(5)] == engine.documents()


def test_a_topic_that_is_made_anew_without_an_id_is_another_one(on_noida: Rig) -> None:
    """The brokers give no ids: that offsets fall below what is committed says it, and the old ones do not count."""
    on_noida.make()
    on_noida.produce(*records(5))
    with on_noida.running(consumer={"metadata_max_age_ms": 300}) as engine:
        engine.until_settled(5)
        on_noida.until_committed(5)
        with closing(KafkaAdminClient(bootstrap_servers=on_noida.bootstrap)) as admin:
            admin.delete_topics([on_noida.topic], timeout_ms=10_000)
        on_noida.make()
        on_noida.produce(*records(3, title="anew"))
        engine.until_settled(8)
        assert [Verdict.WRITTEN] * 3 == [outcome.verdict for outcome in engine.outcomes[5:]]
        assert 2 == len({event.version.domain for event in engine.events if event.version is not None})
