"""Where a group begins, which topics it reads, and what it reads of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer
from tests.fixtures.daemon import wait_for
from tests.integration.kafka.conftest import offsets, records, value

from ingestd.model import Op, Verdict

if TYPE_CHECKING:
    from tests.integration.kafka.conftest import Rig

pytestmark = pytest.mark.kafka


def _now() -> datetime:
    """Return a time that is later than all records so far, and earlier than all later ones."""
    then = time.time()
    wait_for(lambda: time.time() > then + 0.01, "the clock goes on")
    now = datetime.now(UTC)
    wait_for(lambda: time.time() > now.timestamp() + 0.01, "the clock goes on")
    return now


def _topics(rig: Rig) -> set[str]:
    consumer = KafkaConsumer(bootstrap_servers=rig.bootstrap)
    try:
        return set(consumer.topics())
    finally:
        consumer.close()


def test_a_new_group_begins_at_the_earliest_record(on_noida: Rig) -> None:
    """Without ``start`` all that a topic has is read, and committed."""
    on_noida.make(2)
    on_noida.produce(*records(10))
    engine = on_noida.once()
    assert sorted(f"d{n}" for n in range(10)) == sorted(engine.documents())
    assert 10 == (on_noida.committed(0) or 0) + (on_noida.committed(1) or 0)


def test_latest_begins_at_the_end_and_loses_nothing_from_then_on(on_noida: Rig) -> None:
    """The end is committed before any record has come, so what comes while the member is away is read."""
    on_noida.make()
    on_noida.produce(*records(3))
    with on_noida.running(start="latest") as engine:
        on_noida.until_committed(3)
    assert [] == engine.events
    on_noida.produce(*records(2, start=3))
    assert ["d3", "d4"] == on_noida.once(start="latest").documents()


def test_a_time_begins_at_the_first_record_that_is_not_older(on_noida: Rig) -> None:
    """Of each partition by itself; where all records are older, at the end, and that is committed."""
    on_noida.make(2)
    on_noida.produce(*records(3, partition=0), *records(1, partition=1, start=10))
    then = _now()
    on_noida.produce(*records(2, partition=0, start=3))
    assert ["d3", "d4"] == on_noida.once(start=then.isoformat()).documents()
    assert (5, 1) == (on_noida.committed(0), on_noida.committed(1))


def test_offsets_begin_where_they_say(on_noida: Rig) -> None:
    """A partition that is not named begins at its earliest record."""
    on_noida.make(2)
    on_noida.produce(*records(5, partition=0), *records(2, partition=1, start=10))
    engine = on_noida.once(start={f"{on_noida.topic}/0": 3})
    assert {0: [3, 4], 1: [0, 1]} == offsets(engine)


def test_a_committed_offset_wins_over_start(on_noida: Rig) -> None:
    """A group that has been somewhere goes on from there, whatever ``start`` says by now."""
    on_noida.make()
    on_noida.produce(*records(4))
    on_noida.once()
    on_noida.produce(*records(2, start=4))
    assert ["d4", "d5"] == on_noida.once(start={f"{on_noida.topic}/0": 1}).documents()
    on_noida.produce(*records(1, start=6))
    assert ["d6"] == on_noida.once(start="latest").documents()


def test_topics_by_pattern_are_read_when_they_appear(on_noida: Rig) -> None:
    """A topic whose name matches is read as soon as the client looks at the topics again; others never are."""
    first, second, other = (f"{on_noida.topic}.{name}" for name in ("a", "b", "other"))
    on_noida.make(topic=first)
    on_noida.produce(*records(1), topic=first)
    pattern = f"{on_noida.topic}[.][ab]$"
    with on_noida.running(topic_pattern=pattern, consumer={"metadata_max_age_ms": 300}) as engine:
        engine.until_settled(1)
        on_noida.make(topic=other)
        on_noida.make(topic=second)
        on_noida.produce(*records(1, start=7), topic=other)
        on_noida.produce(*records(2, start=1), topic=second)
        engine.until_settled(3)
        assert {(first, 0), (second, 0)} == engine.held()
    assert ["d0", "d1", "d2"] == engine.documents()


def test_a_topic_that_is_missing_is_waited_for(on_noida: Rig) -> None:
    """The probe names it and the letters' topic; a member waits, creates none, and reads it once it is there."""
    letters = f"{on_noida.topic}.letters"
    wanted: dict[str, Any] = {"dead_letter_topic": letters, "consumer": {"metadata_max_age_ms": 300}}
    with on_noida.running(**wanted) as engine:
        checks = {check.name: check for check in engine.source.probe()}
        for topic in (on_noida.topic, letters):
            assert (False, "there is no such topic") == (
                checks[f"s:topic:{topic}"].ok,
                checks[f"s:topic:{topic}"].detail,
            )
        assert not {on_noida.topic, letters} & _topics(on_noida)
        on_noida.make()
        on_noida.produce(*records(2))
        engine.until_settled(2)
        assert all(check.ok for check in engine.source.probe() if letters not in check.name)


def test_topics_that_are_missing_are_created_where_that_is_asked_for(on_noida: Rig) -> None:
    """Those that are read and the letters' topic, with the partitions asked for; ``probe`` alone creates none."""
    letters = f"{on_noida.topic}.letters"
    wanted: dict[str, Any] = {
        "dead_letter_topic": letters,
        "missing_topics": "create",
        "new_topics": {"partitions": 3, "replication_factor": 1},
        "consumer": {"metadata_max_age_ms": 300},
    }
    with on_noida.running(script=lambda _event: Verdict.DEAD_LETTERED, **wanted) as engine:
        engine.until_holds(3)
        on_noida.produce(*records(2))
        engine.until_settled(2)
        assert 2 == engine.totals()["dead_lettered"]
        topic = engine.source.letter_topic()
        assert topic is not None
        assert {"d0", "d1"} == {letter.key.document_id for letter in topic.letters()}
    assert {on_noida.topic, letters} <= _topics(on_noida)


def test_once_reads_all_records_whatever_their_codec(on_tansu: Rig) -> None:
    """Gzip, Snappy, LZ4 and zstd; headers and tombstones too.

    All of it, though Tansu says that a partition ends after the first record of its last batch.
    """
    on_tansu.make()
    codecs = ("gzip", "snappy", "lz4", "zstd")
    for number, codec in enumerate(codecs):
        positions = on_tansu.produce(*records(30, start=30 * number), compression_type=codec, linger_ms=200)
        assert (30 * number, 30 * number + 29) == (positions[0].offset, positions[-1].offset)
    headers = [("h", b"1"), ("h", b"2")]
    on_tansu.produce((b"gone", None, headers, 0))
    engine = on_tansu.once(consumer={"max_poll_records": 7, "fetch_max_bytes": 1})
    assert {0: list(range(121))} == offsets(engine)
    assert [f"d{n}" for n in range(120)] == engine.documents()[:-1]
    first, last = engine.events[0].record, engine.events[-1].record
    assert first is not None
    assert last is not None
    assert value("d0") == first.value
    assert (Op.DELETE, tuple(headers), None) == (engine.events[-1].op, last.headers, last.value)
    assert 121 == on_tansu.committed()
