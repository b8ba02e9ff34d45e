"""What a member is to its group and to its operator: static members, its figures, a topic that is made anew."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import crc32c
import pytest
from kafka.admin import KafkaAdminClient
from kafka.record import util
from tests.fixtures.daemon import wait_for
from tests.integration.kafka.conftest import Engine, Rig, kept, records, value

from ingestd.errors import ConfigError
from ingestd.model import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.brokers import Tansu

pytestmark = pytest.mark.kafka

LAG, AGE = "ingestd_kafka_lag_records", "ingestd_kafka_watermark_age_seconds"


def test_a_static_member_comes_back_to_its_partitions(on_noida: Rig) -> None:
    """Away for less than the session time-out, it causes no rebalance: neither its own partitions move, nor others'."""
    on_noida.make(2)
    with on_noida.running(group_instance_id="b") as other:
        other.until_holds(2)
        with on_noida.running(group_instance_id="a") as first:
            held = first.until_holds(1)
            other.until_holds(1)
        rebalances = other.source._member.view.rebalances
        on_noida.produce(*records(1, partition=next(iter(held))[1]))
        with on_noida.running(group_instance_id="a") as again:
            assert held == again.until_holds(1)
            again.until_settled(1)
            assert 1 == len(other.held())
            assert rebalances == other.source._member.view.rebalances


def test_two_members_with_one_id_are_one_too_many(on_noida: Rig) -> None:
    """The one whose id was taken over ends as for a wrong configuration, and says which key it is about."""
    on_noida.make()
    first = Engine(on_noida.config(group_instance_id="same"), on_noida.folder / "first").start()
    try:
        first.until_holds(1)
        with on_noida.running(group_instance_id="same") as second:
            fault = wait_for(lambda: first.fault, "the first one ends")
            assert isinstance(fault, ConfigError)
            assert "sources.s.group_instance_id: another member of the group has taken this id over" in str(fault)
            second.until_holds(1)
            on_noida.produce(*records(1))
            second.until_settled(1)
    finally:
        first.close()


def test_lag_and_age_of_the_watermark_are_the_brokers_numbers(on_noida: Rig) -> None:
    """Lag: the partition's end less what is committed. Age: of the first record not done. Gone with the partition."""
    on_noida.make()
    on_noida.produce(*records(10))
    partition = (on_noida.topic, 0)
    with on_noida.running(script=kept) as engine:
        engine.until_came(10)
        engine.until(lambda: engine.gauge(LAG, partition) == 10, "nothing is done")
        engine.end([event for event in engine.kept if event.key.document_id != "d4"])
        on_noida.until_committed(4)
        engine.until(lambda: engine.gauge(LAG, partition) == 6, "the first is not done")
        before = engine.gauge(AGE, partition)
        assert before is not None
        engine.until(lambda: (engine.gauge(AGE, partition) or 0) > before + 0.2, "it grows older")
        engine.end(engine.kept)
        on_noida.until_committed(10)
        engine.until(lambda: (engine.gauge(LAG, partition), engine.gauge(AGE, partition)) == (0, 0), "all is done")
        assert 1 == engine.metrics.registry.get_sample_value("ingestd_kafka_partitions", {"source": "s"})
    assert (None, None) == (engine.gauge(LAG, partition), engine.gauge(AGE, partition))


def test_a_topic_that_is_made_anew_is_another_one(on_tansu: Rig) -> None:
    """Its offsets begin again, in a domain of their own: all of it is read and written, whatever was written before.

    Also where it has more records by then than the old one had: the client goes on at the offset that it was at.
    """
    on_tansu.make()
    on_tansu.produce(*records(3))
    with on_tansu.running(consumer={"metadata_max_age_ms": 300}) as engine:
        engine.until_settled(3)
        on_tansu.until_committed(3)
        admin = KafkaAdminClient(bootstrap_servers=on_tansu.bootstrap)
        admin.delete_topics([on_tansu.topic], timeout_ms=10_000)
        admin.close()
        on_tansu.make()
        names = ("d2", "d1", "d0", "d3", "d4")
        on_tansu.produce(*[(name.encode(), value(name, title="anew"), [], 0) for name in names])
        engine.until(lambda: set(names) <= set(engine.documents()[3:]), "all of it is read, also what was read before")
        engine.until(lambda: all(engine.verdicts(name)[-1:] == [Verdict.WRITTEN] for name in names), "all is written")
        on_tansu.until_committed(5)
    versions = {event.key.document_id: event.version for event in engine.events}
    assert {"d2": 0, "d1": 1, "d0": 2, "d3": 3, "d4": 4} == {
        name: version.number for name, version in versions.items() if version is not None
    }
    old = engine.events[0].version
    assert old is not None
    assert old.domain not in {version.domain for version in versions.values() if version is not None}
    assert Verdict.SUPERSEDED not in [outcome.verdict for outcome in engine.outcomes]


def test_a_broker_that_hangs_holds_up_no_end(own_tansu: Tansu, tmp_path: Path) -> None:
    """A source ends within seconds though its broker takes requests and answers none."""
    rig = Rig(own_tansu.bootstrap, tmp_path)
    rig.make()
    rig.produce(*records(3))
    with rig.running(script=kept) as engine:
        engine.until_came(3)
        engine.end(engine.kept)
        own_tansu.send(signal.SIGSTOP)
        begun = time.monotonic()
        engine.close()
        took = time.monotonic() - begun
        own_tansu.send(signal.SIGCONT)
    assert took < 8


def test_checksums_are_computed_by_the_c_library() -> None:
    """In Python they cost ten times as much as all else, with the interpreter held."""
    assert crc32c.crc32c is util._crc32c
