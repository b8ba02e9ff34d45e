"""What the topics of dead letters do not take, and which letters stand, on real brokers."""

from __future__ import annotations

import random
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import confluent_kafka
import pytest
from click.testing import CliRunner
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition
from tests.fixtures.daemon import toml
from tests.integration.kafka.conftest import COLLECTION, SOURCE, records, settings, value, written

from ingestd import operations
from ingestd.cli.main import main
from ingestd.errors import ConfigError, UnavailableError
from ingestd.model import Verdict
from ingestd.sources._kafka.letter_topic import LetterTopic
from ingestd.sources._kafka.topics import create

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.kafka.conftest import Engine, Rig

    from ingestd.model import DeadLetter, Event

pytestmark = pytest.mark.kafka

LEAST = 1024 * 1024
"""Bytes of a record that noida-db takes."""


def noise(count: int) -> bytes:
    """Return bytes that nothing makes smaller, and that are no JSON."""
    return b"\xff" + random.Random(count).randbytes(count - 1)


def dead(_event: Event) -> Verdict | None:
    """Have every event fail for good."""
    return Verdict.DEAD_LETTERED


@pytest.fixture
def letters(on_noida: Rig) -> str:
    """A topic for letters beside the rig's own."""
    on_noida.make()
    name = f"{on_noida.topic}.letters"
    on_noida.make(topic=name)
    return name


@pytest.fixture
def topic(on_noida: Rig, letters: str) -> Iterator[LetterTopic]:
    """The letters' topic of the rig's source."""
    found = LetterTopic(SOURCE, on_noida.config(dead_letter_topic=letters), "f")
    yield found
    found.close()


def _grown(letter: DeadLetter) -> DeadLetter:
    """Return a letter whose record its own topic does not take: as where its largest size was made less meanwhile."""
    record = letter.record
    assert record is not None
    return replace(letter, record=replace(record, value=noise(2 * LEAST)))


def test_a_topic_that_is_not_there_is_found_out_before_the_first_letter(on_noida: Rig) -> None:
    """The probe makes none; once the topic is there it passes."""
    name = f"{on_noida.topic}.missing"
    topic = LetterTopic(SOURCE, on_noida.config(dead_letter_topic=name), "f")
    try:
        for _ in range(2):
            with pytest.raises(UnavailableError, match=f"there is no topic {name}"):
                topic.probe()
        on_noida.make(topic=name)
        topic.probe()
    finally:
        topic.close()


def test_brokers_that_never_shake_hands_hold_nobody(on_noida: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer without brokers behind it takes connections: the client itself would wait for ever."""
    monkeypatch.setattr("ingestd.sources._kafka.connection.BOOTSTRAP_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        servers = [f"127.0.0.1:{mute.getsockname()[1]}"]
        config = on_noida.config(dead_letter_topic="t", bootstrap_servers=servers, tls={})
        topic = LetterTopic(SOURCE, config, "f")
        with pytest.raises(UnavailableError, match="no answer"):
            topic.probe()
        with pytest.raises(UnavailableError, match="no answer"):
            list(topic.letters())
        with pytest.raises(UnavailableError, match="no answer"):
            create(SOURCE, config, ("t",))


def test_a_replay_that_its_topic_refuses_writes_nothing(on_noida: Rig, topic: LetterTopic) -> None:
    """The document stays, its letter stands, and it is said what to do; the letters before and after it are done.

    Without its value the record would be a tombstone, and delete the document.
    """
    on_noida.produce(*records(3))
    on_noida.once(dead_letter_topic=topic.topic, state="kept")
    on_noida.produce(*records(3, title="newer"))
    on_noida.once(script=dead, dead_letter_topic=topic.topic, state="kept")
    first, large, last = topic.letters()
    with pytest.raises(ConfigError, match="its letter stays") as refused:
        topic.replay([first, _grown(large), last])
    (fault,) = refused.value.faults
    assert fault.startswith(f"{large.position}: the record is too large for its topic")
    assert "max.message.bytes" in fault
    assert [large.position] == [letter.position for letter in topic.letters()]
    engine = on_noida.once(dead_letter_topic=topic.topic, state="kept")
    assert {"d0": [Verdict.WRITTEN], "d1": [], "d2": [Verdict.WRITTEN]} == {
        name: engine.verdicts(name) for name in ("d0", "d1", "d2")
    }


@pytest.mark.parametrize(
    ("record", "left_out"),
    [
        ((b"k", b"no JSON", [("large", noise(LEAST - 500))], 0), b"value,headers"),
        ((noise(LEAST - 500), b"no JSON", [("own", b"1")], 0), b"value,headers,key"),
        ((None, noise(LEAST - 500), [], 0), b"value"),
    ],
    ids=["headers", "key", "value without a key"],
)
def test_a_letter_that_is_too_large_without_its_value_is_kept(
    on_noida: Rig, topic: LetterTopic, record: Any, left_out: bytes
) -> None:
    """What else is in the way is left out too, and said; the collection goes on, and a replay says what to do."""
    on_noida.produce(record)
    with on_noida.running(dead_letter_topic=topic.topic) as engine:
        engine.until_settled(1)
        on_noida.produce(*records(3, partition=0))
        engine.until_settled(4)
        on_noida.until_committed(4)
        assert (1, 3) == (engine.totals()["dead_lettered"], engine.totals()["written"])
    (letter,) = topic.letters()
    assert (f"{on_noida.topic}/0@0", None, None) == (letter.position, letter.record, letter.data)
    (lying,) = _raw(on_noida, topic.topic, 1)
    assert left_out == dict(lying.headers() or [])["ingestd.left-out"]
    with pytest.raises(ConfigError, match="produce it again"):
        topic.replay([letter])
    assert [letter] == [replace(found, id=letter.id) for found in topic.letters()]


def test_a_record_that_has_neither_key_nor_value_is_a_letter_too(on_noida: Rig, topic: LetterTopic) -> None:
    """Brokers take such, and our client produces none: it is kept with an empty value, and shown as it was."""
    producer = confluent_kafka.Producer({"bootstrap.servers": on_noida.bootstrap})
    producer.produce(on_noida.topic, value=None, key=None, partition=0)
    assert 0 == producer.flush(10)
    with on_noida.running(dead_letter_topic=topic.topic) as engine:
        engine.until_settled(1)
        on_noida.until_committed(1)
    (letter,) = topic.letters()
    assert letter.record is not None
    assert (None, None, None) == (letter.record.key, letter.record.value, letter.data)
    with pytest.raises(ConfigError, match="nothing to try again"):
        topic.replay([letter])


def test_what_came_compressed_fits_again(on_noida: Rig, topic: LetterTopic) -> None:
    """Three megabytes that were less on the wire: kept whole, and replayed."""
    large = value("large", title="words " * 500_000)
    assert len(large) > 2 * LEAST
    on_noida.produce((b"large", large, [], 0), compression_type="gzip", max_request_size=1 << 30)
    on_noida.once(script=dead, dead_letter_topic=topic.topic)
    (letter,) = topic.letters()
    assert large == letter.data
    assert 1 == topic.replay([letter])
    assert [] == list(topic.letters())
    (event,) = on_noida.once(dead_letter_topic=topic.topic).events
    assert (Verdict.WRITTEN, large) == (written(event), (event.record or pytest.fail("no record")).value)


def test_what_was_replayed_does_not_stand_on_several_partitions(on_noida: Rig) -> None:
    """Letters and their marks have different keys, so they lie on different ones. One that fails again stands again."""
    on_noida.make()
    letters = f"{on_noida.topic}.letters"
    on_noida.make(4, topic=letters)
    topic = LetterTopic(SOURCE, on_noida.config(dead_letter_topic=letters), "f")
    on_noida.produce(*records(30, partition=0))
    on_noida.once(script=dead, dead_letter_topic=letters)
    found = list(topic.letters())
    assert 30 == len(found)
    assert 20 == topic.replay(found[:20])
    assert {letter.position for letter in found[20:]} == {letter.position for letter in topic.letters()}
    assert 10 == topic.replay(topic.letters())
    assert [] == list(topic.letters())
    assert [] == list(topic.letters(values=False))
    topic.close()

    on_noida.group += "-without-commits"
    on_noida.once(script=dead, dead_letter_topic=letters, start="earliest")
    again = list(topic.letters(values=False))
    # Those that came first, and those that the replay wrote.
    assert {f"{on_noida.topic}/0@{offset}" for offset in range(60)} == {letter.position for letter in again}
    assert again == sorted(again, key=lambda letter: letter.last_failed_at)
    assert {None} == {letter.data for letter in again}
    assert {letter.position for letter in again} == {letter.position for letter in topic.letters()}


def test_the_commands_replay_what_can_be_and_name_what_cannot(on_noida: Rig, topic: LetterTopic) -> None:
    """A letter that is not whole ends the command with a set-up's code, and holds no other letter back.

    Neither one on the topic, nor one in the state.
    """
    on_noida.produce(*records(1))
    with on_noida.running(script=dead, state="kept") as engine:
        engine.until_settled(1)
        on_noida.until_committed(1)
    on_noida.produce((b"k", noise(LEAST - 500), [], 0), *records(2, start=1))
    on_noida.once(script=dead, dead_letter_topic=topic.topic, state="kept")
    configuration = _configuration(on_noida, on_noida.folder / "kept", topic.topic)
    command = ["dead-letters", "replay", "--all", "--config", str(configuration)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert 78 == done.exit_code, done.output
    assert f"{on_noida.topic}/0@1: its record was too large" in done.stderr
    assert [f"{on_noida.topic}/0@1"] == [letter.position for letter in topic.letters()]
    engine = on_noida.once(dead_letter_topic=topic.topic, state="kept")
    assert {name: [Verdict.WRITTEN] for name in ("d0", "d1", "d2")} == {
        name: engine.verdicts(name) for name in ("d0", "d1", "d2")
    }


def test_what_is_gone_from_its_topic_goes_to_the_state(on_noida: Rig, topic: LetterTopic) -> None:
    """There is no record that the letters' topic could keep: the state says what was, and the process goes on."""
    on_noida.produce((b"d", value("d", title="x" * 5000), [], 0))
    with on_noida.running(script=dead, state="kept", keep_bytes=1000) as engine:
        engine.until_settled(1)
        on_noida.until_committed(1)
    _delete_before(on_noida, 1)
    with on_noida.running(state="kept", keep_bytes=1000, dead_letter_topic=topic.topic) as engine:
        (letter,) = engine.store.dead_letters()
        _replayed(engine, letter.id)
        engine.until(lambda: engine.verdicts("d"), "it was tried again")
        assert [Verdict.DEAD_LETTERED] == engine.verdicts("d")
        (letter,) = engine.store.dead_letters()
        assert "the topic does not have it any more" in letter.failure.message
    assert [] == list(topic.letters())


def _replayed(engine: Engine, number: int) -> None:
    """Replay a letter of the state, as the control socket does."""
    for source, count in operations.replay(engine.store, {(SOURCE, COLLECTION)}, [number]).by_source.items():
        engine.tally.requeue(source, count)


def _delete_before(rig: Rig, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=rig.bootstrap)
    try:
        admin.delete_records({TopicPartition(rig.topic, 0): offset}, timeout_ms=10_000)
    finally:
        admin.close()


def _raw(rig: Rig, topic: str, count: int) -> list[confluent_kafka.Message]:
    """Return the first records of a topic's first partition, as another client reads them."""
    consumer = confluent_kafka.Consumer({"bootstrap.servers": rig.bootstrap, "group.id": "raw"})
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
        found = consumer.consume(count, 10)
    finally:
        consumer.close()
    assert count == len(found)
    return list(found)


def _configuration(rig: Rig, state: Path, letters: str) -> Path:
    """Write a configuration with the rig's source, and return its file."""
    file = rig.folder / "ingestd.toml"
    source = {"type": "kafka", **settings(rig.bootstrap, rig.topic, rig.group, dead_letter_topic=letters)}
    file.write_text(
        toml(
            {
                "state_dir": str(state),
                "milvus": {"uri": str(rig.folder / "milvus")},
                "embedders": {"hash": {"type": "hashing"}},
                "collections": {COLLECTION: {"chunker": {"type": "whole"}, "vectors": {"dense": {"embedder": "hash"}}}},
                "sources": {SOURCE: source},
            }
        )
    )
    return file
