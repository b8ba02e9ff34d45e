"""Dead letters of records: on a topic of their own, and in the state."""

from __future__ import annotations

import base64
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition
from tests.fixtures.daemon import toml
from tests.integration.kafka.conftest import COLLECTION, SOURCE, records, settings, value, written

from ingestd import operations
from ingestd.cli.main import main
from ingestd.model import Outcome, Verdict
from ingestd.sources._kafka import letter_topic

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.kafka.conftest import Engine, Rig

    from ingestd.model import Event

pytestmark = pytest.mark.kafka

CONNECT = "__connect.errors."


def dead(_event: Event) -> Verdict | None:
    """Have every event fail for good."""
    return Verdict.DEAD_LETTERED


def _letters(rig: Rig) -> str:
    """Create a topic for letters, and return its name."""
    name = f"{rig.topic}.letters"
    rig.make(topic=name)
    return name


def _raw(rig: Rig, topic: str, count: int) -> list[Any]:
    """Return the first records of a topic as any client gets them."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=rig.bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=10_000
    )
    try:
        return [next(consumer) for _ in range(count)]
    finally:
        consumer.close()


def _standing(engine: Engine) -> list[str]:
    """Return the positions of the letters that a reader finds."""
    topic = engine.source.letter_topic()
    assert topic is not None
    return [letter.position for letter in topic.letters()]


class _Commands:
    """``ingestd dead-letters`` on a configuration with the rig's source.

    Args:
        rig: The topic and the group.
        state: The state directory.
        more: Settings of the source.
    """

    def __init__(self, rig: Rig, state: Path, **more: Any) -> None:
        self._file = rig.folder / "ingestd.toml"
        source = {"type": "kafka", **settings(rig.bootstrap, rig.topic, rig.group, **more)}
        collection = {"chunker": {"type": "whole"}, "vectors": {"dense": {"embedder": "hash"}}}
        self._file.write_text(
            toml(
                {
                    "state_dir": str(state),
                    "milvus": {"uri": str(rig.folder / "milvus")},
                    "embedders": {"hash": {"type": "hashing"}},
                    "collections": {COLLECTION: collection},
                    "sources": {SOURCE: source},
                }
            )
        )

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        """Run a command, and return the object that it prints."""
        command = ["dead-letters", *arguments, "--json", "--config", str(self._file)]
        done = CliRunner().invoke(main, command, catch_exceptions=False)
        assert code == done.exit_code, done.output
        return json.loads(done.stdout.splitlines()[-1])


def test_a_letter_has_the_headers_that_connects_tools_know(on_noida: Rig) -> None:
    """Its own first, then Kafka Connect's by their names, then ours; key and value are the record's bytes."""
    on_noida.make()
    letters = _letters(on_noida)
    own = [("h", b"\xff"), ("h", b"2"), (f"{CONNECT}topic", b"of an earlier life")]
    on_noida.produce((b"k\xff", b"no JSON", own, 0), (b"gone", None, [], 0))
    with on_noida.running(script=dead, dead_letter_topic=letters) as engine:
        engine.until_settled(2)
        on_noida.until_committed(2)
        assert [] == list(engine.store.dead_letters())
    refused, deleted = _raw(on_noida, letters, 2)
    assert (b"k\xff", b"no JSON") == (refused.key, refused.value)
    assert own[:2] == refused.headers[:2]
    found = {name: data.decode() for name, data in refused.headers[2:]}
    assert len(found) == len(refused.headers) - 2
    said = engine.events[0].fault
    assert said is not None
    assert {
        f"{CONNECT}topic": on_noida.topic,
        f"{CONNECT}partition": "0",
        f"{CONNECT}offset": "0",
        f"{CONNECT}connector.name": "s",
        f"{CONNECT}stage": "source",
        f"{CONNECT}class.name": "ingestd",
        f"{CONNECT}exception.class.name": said.error,
        f"{CONNECT}exception.message": said.message,
        f"{CONNECT}exception.stacktrace": "",
    } == {name: text for name, text in found.items() if name.startswith(CONNECT)}
    version = engine.events[0].version
    assert version is not None
    assert {
        "ingestd.source": "s",
        "ingestd.collection": COLLECTION,
        "ingestd.document-id": engine.events[0].key.document_id,
        "ingestd.op": "upsert",
        "ingestd.version": json.dumps([0, version.domain]),
        "ingestd.attempts": "1",
        "ingestd.group": on_noida.group,
        "ingestd.fingerprint": "f",
        "ingestd.value": "kept",
    }.items() <= found.items()
    assert found["ingestd.first-failed-at"] == found["ingestd.last-failed-at"]
    tombstone = dict(deleted.headers)
    assert (b"gone", b"delete", b"null") == (deleted.key, tombstone["ingestd.op"], tombstone["ingestd.value"])
    assert not deleted.value


def test_a_letter_that_is_too_large_loses_its_value_and_nothing_else(on_noida: Rig) -> None:
    """The broker takes a megabyte: the letter is kept without its value, and those after it arrive whole."""
    on_noida.make()
    letters = _letters(on_noida)
    # The record itself fits; with the letter's headers it does not. Nothing makes noise smaller.
    on_noida.produce((b"large", random.Random(1).randbytes(1_048_300), [], 0))
    with on_noida.running(script=dead, dead_letter_topic=letters) as engine:
        engine.until_settled(1)
        on_noida.produce(*records(2))
        engine.until_settled(3)
        on_noida.until_committed(3)
        topic = engine.source.letter_topic()
        assert topic is not None
        large, first, second = topic.letters()
        assert (engine.events[0].record or pytest.fail("no record")).position == large.position
        assert (None, None) == (large.data, large.record)
        assert [value("d0"), value("d1")] == [first.data, second.data]
    assert 3 == engine.totals()["dead_lettered"]


def test_a_topic_that_is_away_holds_the_pipeline(on_noida: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped or committed, it is said why, and it goes on by itself once the topic is there."""
    monkeypatch.setattr(letter_topic, "ANSWER_MS", 1000)
    on_noida.make()
    on_noida.produce(*records(3))
    letters = f"{on_noida.topic}.letters"
    with on_noida.running(script=dead, dead_letter_topic=letters) as engine:
        held = engine.until(
            lambda: [check for check in engine.breakers.checks() if not check.ok], "the letters' topic is away"
        )
        assert [f"dead letters:{SOURCE}"] == [check.name for check in held]
        assert letters in held[0].detail
        assert not engine.breakers.passes(COLLECTION)
        assert (3, 3) == (engine.totals()["accepted"], engine.totals()["in_flight"])
        assert on_noida.committed() in {None, 0}
        on_noida.make(topic=letters)
        engine.until_settled(3)
        on_noida.until_committed(3)
        engine.until(lambda: all(check.ok for check in engine.breakers.checks()), "all is well again")
        assert 3 == engine.totals()["dead_lettered"]
    assert [f"{on_noida.topic}/0@{offset}" for offset in range(3)] == _standing(engine)


def test_a_letter_that_was_written_twice_is_listed_once(on_noida: Rig) -> None:
    """As after a crash between the topic's acknowledgement and the commit: the record comes again, and fails again."""
    on_noida.make()
    letters = _letters(on_noida)
    on_noida.produce(*records(2))
    on_noida.once(script=dead, dead_letter_topic=letters)
    on_noida.group += "-without-commits"
    engine = on_noida.once(script=dead, dead_letter_topic=letters)
    assert 4 == len(_raw(on_noida, letters, 4))
    assert [f"{on_noida.topic}/0@0", f"{on_noida.topic}/0@1"] == _standing(engine)


def test_a_replay_is_never_over_a_newer_version(on_noida: Rig) -> None:
    """What the commands list, show and replay; twice is as good as once, and a newer version stays.

    Two documents are refused, since id and key differ. The configuration is mended, and of one of them a newer version
    is written before both are replayed.
    """
    on_noida.make()
    letters = _letters(on_noida)
    keyed = [("h", b"1")]
    on_noida.produce((b"a", value("x"), keyed, 0), (b"b", value("y"), keyed, 0))
    refused = on_noida.once(dead_letter_topic=letters, state="kept")
    assert 2 == refused.totals()["dead_lettered"]

    mended: dict[str, Any] = {"dead_letter_topic": letters, "id_from": "key"}
    command = _Commands(on_noida, on_noida.folder / "kept", **mended)
    first, second = (f"{on_noida.topic}/0@{offset}" for offset in (0, 1))
    assert [(first, SOURCE, "source"), (second, SOURCE, "source")] == [
        (row["id"], row["source"], row["stage"]) for row in command("list")
    ]
    shown = command("show", first)
    assert (b"a", value("x")) == tuple(base64.b64decode(shown[name]) for name in ("key", "content"))
    assert [["h", base64.b64encode(b"1").decode()]] == shown["headers"]

    on_noida.produce((b"a", value("x", title="newer"), [], 0))
    assert ["a"] == on_noida.once(state="kept", **mended).documents()
    assert {"would_replay": [first, second]} == command("replay", "--all", "--dry-run")
    assert {"replayed": 2, "left": []} == command("replay", "--all")
    assert [] == command("list")
    engine = on_noida.once(state="kept", **mended)
    assert {"a": [Verdict.SUPERSEDED], "b": [Verdict.WRITTEN]} == {name: engine.verdicts(name) for name in "ab"}
    again = [event for event in engine.events if event.key.document_id == "b"]
    assert [1] == [event.version.number for event in again if event.version is not None]
    assert keyed == [pair for pair in (again[0].record or pytest.fail("no record")).headers if pair[0] == "h"]

    topic = engine.source.letter_topic()
    assert topic is not None
    failure = refused.outcomes[1].failure
    topic.publish([Outcome(again[0], Verdict.DEAD_LETTERED, failure=failure)])
    topic.close()
    assert {"replayed": 1, "left": []} == command("replay", "--source", SOURCE)
    assert [Verdict.UNCHANGED] == on_noida.once(state="kept", **mended).verdicts("b")


def _replayed(engine: Engine, *ids: int) -> None:
    """Replay letters of the state, as the control socket does."""
    found = operations.replay(engine.store, {(SOURCE, COLLECTION)}, ids)
    assert ids == found.taken
    for source, count in found.by_source.items():
        engine.tally.requeue(source, count)


def test_letters_in_the_state_are_whole_and_can_be_replayed(on_noida: Rig) -> None:
    """Shown with key and headers; replayed though the partition has gone on; a large one is read from its topic again.

    Where the topic has it no more it is a dead letter again, which says so.
    """
    on_noida.make()
    headers = [("h", b"1")]
    large = value("large", title="x" * 5000)
    on_noida.produce((b"small", value("small"), headers, 0), (b"large", large, headers, 0), *records(2, partition=0))
    bad = {"small", "large"}
    with on_noida.running(
        script=lambda event: Verdict.DEAD_LETTERED if event.key.document_id in bad else Verdict.WRITTEN,
        state="kept",
        keep_bytes=1000,
    ) as engine:
        engine.until_settled(4)
        on_noida.until_committed(4)
        command = _Commands(on_noida, on_noida.folder / "kept")
        ids = {row["document_id"]: row["id"] for row in command("list")}
        shown = command("show", str(ids["small"]))
        assert (b"small", value("small")) == tuple(base64.b64decode(shown[name]) for name in ("key", "content"))
        assert [["h", base64.b64encode(b"1").decode()]] == shown["headers"]
        assert command("show", str(ids["large"]))["content"] is None

        engine.script = written
        _replayed(engine, *ids.values())
        engine.until_settled(4)
        engine.until(lambda: engine.verdicts("large")[1:] and engine.verdicts("small")[1:], "both were tried again")
        assert {name: [Verdict.DEAD_LETTERED, Verdict.WRITTEN] for name in bad} == {
            name: engine.verdicts(name) for name in bad
        }
        again = engine.events[-1]
        assert again.record is not None
        assert [(b"large", large, tuple(headers))] == [
            (event.record.key, event.record.value, event.record.headers)
            for event in engine.events[4:]
            if event.record is not None and event.key.document_id == "large"
        ]

        engine.script = dead
        on_noida.produce((b"gone", value("gone", title="x" * 5000), [], 0))
        engine.until(lambda: engine.verdicts("gone"), "it is a dead letter")
        (letter,) = engine.store.dead_letters()
        _delete_before(on_noida, 5)
        engine.script = written
        _replayed(engine, letter.id)
        engine.until(lambda: engine.verdicts("gone")[1:], "it was tried again")
        assert [Verdict.DEAD_LETTERED] * 2 == engine.verdicts("gone")
        (letter,) = engine.store.dead_letters()
        assert "the topic does not have it any more" in letter.failure.message
        assert "as the test said" in letter.failure.message


def _delete_before(rig: Rig, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=rig.bootstrap)
    try:
        admin.delete_records({TopicPartition(rig.topic, 0): offset}, timeout_ms=10_000)
    finally:
        admin.close()
