"""``ingestd produce`` as a person runs it, onto real brokers, read back by a client of our own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from tests.fixtures.brokers import MOCK_OPTIONS, create_topic
from tests.fixtures.daemon import Answer, wait_for

from ingestd.errors import ConfigError, DocumentError
from ingestd.sources._kafka.producing import Outgoing, Producer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.brokers import Mock, Noida, Tansu

pytestmark = pytest.mark.kafka

PRODUCE, TOO_LARGE, NOT_ALLOWED = 0, 10, 29
TITLE = "Die Überschrift"
CONFIG = """
[collections.articles]
vectors.dense = { embedder = "small" }

[embedders.small]
type = "hashing"
"""


def _produce(*arguments: object, cwd: Path, stdin: str | None = None) -> Answer:
    """Run the command, without a configuration but for what is named."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INGESTD_")}
    command = [sys.executable, "-m", "ingestd", "produce", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=kept, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def topic() -> str:
    """A topic's name that no other test has."""
    return f"t-{uuid.uuid4()}"


@pytest.fixture
def there(tansu: Tansu, topic: str) -> str:
    """A topic of two partitions."""
    create_topic(tansu.bootstrap, topic, 2)
    return topic


def _records(bootstrap: str, topic: str, count: int, partitions: int = 2) -> list[Any]:
    """Return so many records of a topic, in their partitions' order, and see that there are no more at once."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest")
    found: list[Any] = []

    def poll() -> bool:
        found.extend(record for records in consumer.poll(timeout_ms=300).values() for record in records)
        return len(found) >= count

    try:
        consumer.assign([TopicPartition(topic, number) for number in range(partitions)])
        wait_for(poll, f"{count} records of {topic}", 30)
        poll()
    finally:
        consumer.close()
    assert count == len(found)
    return sorted(found, key=lambda record: (record.partition, record.offset))


def _events(bootstrap: str, topic: str, count: int) -> dict[str, dict[str, Any]]:
    """Return the events of a topic by their keys, which are their ids."""
    found = {record.key.decode(): json.loads(record.value) for record in _records(bootstrap, topic, count)}
    assert all(key == event["id"] for key, event in found.items())
    return found


def test_a_directory_s_files_are_events(tansu: Tansu, there: str, tmp_path: Path) -> None:
    """Ids are paths below it; text is text and the rest base64; sidecars count; hidden files and links do not."""
    folder = tmp_path / "documents"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "plain.txt").write_text("Grüße")
    (folder / "page.html").write_text("<html><body>Hello</body></html>")
    (folder / "deep" / "er" / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7 \xff")
    (folder / "paper.pdf.meta.json").write_text(json.dumps({"title": TITLE, "lang": "de", "year": 2024}))
    (folder / ".hidden" / "a.txt").write_text("hidden")
    (folder / ".b.txt").write_text("hidden")
    (folder / "link.txt").symlink_to(folder / "plain.txt")

    answer = _produce("--bootstrap", tansu.bootstrap, "--topic", there, "--json", folder, cwd=tmp_path)
    assert (0, "") == (answer.code, answer.err)
    assert (4, there, 4) == (answer.json["produced"], answer.json["topic"], sum(answer.json["partitions"].values()))
    latin, pdf = (base64.b64encode(data).decode() for data in ("Grüße".encode("latin-1"), b"%PDF-1.7 \xff"))
    assert {
        "plain.txt": {"id": "plain.txt", "text": "Grüße"},
        "page.html": {"id": "page.html", "text": "<html><body>Hello</body></html>", "content_type": "text/html"},
        "deep/er/latin.txt": {"id": "deep/er/latin.txt", "content": latin, "content_type": "text/plain"},
        "paper.pdf": {
            "id": "paper.pdf",
            "content": pdf,
            "content_type": "application/pdf",
            "title": TITLE,
            "metadata": {"lang": "de", "year": 2024},
        },
    } == _events(tansu.bootstrap, there, 4)


def test_a_file_s_id_is_its_name(tansu: Tansu, there: str, tmp_path: Path) -> None:
    """With the prefix before it, and the media type that is asked for; --format says what a file is, not its name."""
    (tmp_path / "notes.txt").write_text("a, b")
    (tmp_path / "log.jsonl").write_text('{"level": "info"}\n')
    files = ("--format", "files", "notes.txt", "log.jsonl")
    options = ("--bootstrap", tansu.bootstrap, "--topic", there, "--id-prefix", "cms/", "--content-type", "text/csv")
    answer = _produce(*options, *files, cwd=tmp_path)
    assert (0, f"produced 2 events to {there} ") == (answer.code, answer.out.partition("(")[0]), answer.err
    assert {
        "cms/notes.txt": {"id": "cms/notes.txt", "text": "a, b", "content_type": "text/csv"},
        "cms/log.jsonl": {"id": "cms/log.jsonl", "text": '{"level": "info"}\n', "content_type": "text/csv"},
    } == _events(tansu.bootstrap, there, 2)


def test_lines_go_out_as_they_stand_there(tansu: Tansu, there: str, tmp_path: Path) -> None:
    """From a file and from standard input, in order for each document, then the deletes that were asked for."""
    (tmp_path / "events.jsonl").write_text('{"id": "a",   "text": "old", "more": 1.50}\n\n{"id": "b", "text": "b"}\n')
    stdin = '{"id": "a", "text": "new"}'
    arguments = ("--bootstrap", tansu.bootstrap, "--topic", there, "events.jsonl", "-", "--delete", "b")
    answer = _produce(*arguments, cwd=tmp_path, stdin=stdin)
    assert (0, "") == (answer.code, answer.err)
    values: dict[bytes, list[bytes]] = {}
    for record in _records(tansu.bootstrap, there, 4):
        values.setdefault(record.key, []).append(record.value)
    assert {
        b"a": [b'{"id": "a",   "text": "old", "more": 1.50}', stdin.encode()],
        b"b": [b'{"id": "b", "text": "b"}', b'{"id": "b", "op": "delete"}'],
    } == values


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "is no JSON"),
        ('{"id": "x", "metadata": {"a": NaN}}', "NaN is no number of JSON's"),
        ('{"text": "x"}', 'has no "id"'),
        ('{"id": 7, "text": "x"}', 'has no "id"'),
        ('["id"]', 'has no "id"'),
        (r'{"id": "\ud800", "text": "x"}', "half a character"),
    ],
)
def test_a_bad_line_is_named(tansu: Tansu, there: str, tmp_path: Path, line: str, said: str) -> None:
    """What stands before it is produced and counted, nothing after it, and the exit code says that it failed."""
    good = '{"id": "a", "text": "x"}'
    lines = f"{good}\n\n{line}\n{good}"
    answer = _produce("--bootstrap", tansu.bootstrap, "--topic", there, "--json", "-", cwd=tmp_path, stdin=lines)
    assert 1 == answer.code
    assert 1 == answer.json["produced"]
    assert answer.err.startswith("stopped: standard input, line 3: ")
    assert said in answer.err
    assert ["a"] == list(_events(tansu.bootstrap, there, 1))


def test_a_broken_sidecar_is_named(tansu: Tansu, there: str, tmp_path: Path) -> None:
    """A document without its metadata would be another document."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt.meta.json").write_text("[]")
    answer = _produce("--bootstrap", tansu.bootstrap, "--topic", there, "a.txt", cwd=tmp_path)
    assert 1 == answer.code
    assert "a.txt.meta.json holds no JSON object" in answer.err


def test_a_topic_is_made_only_when_asked_for(tansu: Tansu, topic: str, tmp_path: Path) -> None:
    """--create makes one with its partitions, and leaves one that is there as it is."""
    (tmp_path / "events.jsonl").write_text("".join(f'{{"id": "{number}"}}\n' for number in range(50)))
    options = ("--bootstrap", tansu.bootstrap, "--topic", topic, "--json", "events.jsonl")
    answer = _produce(*options, cwd=tmp_path)
    assert 1 == answer.code
    assert f"there is no topic {topic}; --create makes it" in answer.err
    for partitions in ("3", "5"):
        answer = _produce(*options, "--create", "--partitions", partitions, cwd=tmp_path)
        assert {"0", "1", "2"} == answer.json["partitions"].keys(), answer.err
        assert 50 == answer.json["produced"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to produce"),
        (("there.txt", "--partitions", "2", "--bootstrap", "127.0.0.1:1"), "--partitions goes with --create"),
        (("there.txt", "--bootstrap", "127.0.0.1:1", "--source", "cms"), "either --source or --bootstrap"),
        (("missing.txt", "--bootstrap", "127.0.0.1:1"), "missing.txt"),
        (("there.txt", "--config", "config.toml"), "Kafka sources configured: a, b"),
        (("there.txt", "--config", "config.toml", "--source", "c"), "no Kafka source 'c'; configured: a, b"),
    ],
)
def test_wrong_usage_is_explained(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2 before any broker is asked."""
    (tmp_path / "there.txt").write_text("x")
    source = 'type = "kafka"\nbootstrap_servers = ["127.0.0.1:1"]\ntopics = ["t"]\ngroup_id = "g"\n'
    tables = [f'[sources.{name}]\n{source}collection = "articles"\n' for name in "ab"]
    (tmp_path / "config.toml").write_text("\n".join((CONFIG, *tables)))
    answer = _produce("--topic", "t", *arguments, cwd=tmp_path)
    assert 2 == answer.code, answer.err
    assert said in answer.err


def test_a_configured_source_names_the_brokers(noida: Noida, topic: str, tmp_path: Path) -> None:
    """Its address and its credentials are used; where it is the only one, it need not be named."""
    (tmp_path / "config.toml").write_text(
        f'{CONFIG}[sources.cms]\ntype = "kafka"\nbootstrap_servers = ["{noida.bootstrap}"]\ntopics = ["{topic}"]\n'
        'group_id = "g"\ncollection = "articles"\n'
        'sasl = { mechanism = "PLAIN", username = "reader", password = "right" }\n'
    )
    (tmp_path / "events.jsonl").write_text('{"id": "a", "text": "x"}\n')
    options = ("--topic", topic, "--config", "config.toml", "--create", "--partitions", "2", "events.jsonl")
    assert 0 == _produce(*options, cwd=tmp_path).code
    assert 0 == _produce(*options, "--source", "cms", cwd=tmp_path).code
    _records(noida.bootstrap, topic, 2)
    config = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").write_text(config.replace('"PLAIN"', '"SCRAM-SHA-256"'))
    answer = _produce(*options, cwd=tmp_path)
    assert 78 == answer.code
    assert "does not take this mechanism" in answer.err


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    """Not after minutes of a client's own tries."""
    (tmp_path / "a.txt").write_text("a")
    answer = _produce("--bootstrap", "127.0.0.1:1", "--topic", "t", "a.txt", cwd=tmp_path)
    assert 1 == answer.code
    assert "no broker can be used: 127.0.0.1:1: Connection refused" in answer.err


def test_a_backfill_is_there_in_full(noida: Noida, topic: str, tmp_path: Path) -> None:
    """Some ten thousand records, more than are let under way at once, are all on the topic, as the brokers count."""
    count = 25_000
    (tmp_path / "events.jsonl").write_text("".join(f'{{"id": "{n}", "text": "text {n}"}}\n' for n in range(count)))
    options = ("--bootstrap", noida.bootstrap, "--topic", topic, "--create", "--partitions", "4", "--json")
    answer = _produce(*options, "events.jsonl", cwd=tmp_path)
    assert count == answer.json["produced"], answer.err
    consumer = KafkaConsumer(bootstrap_servers=noida.bootstrap)
    try:
        ends = consumer.end_offsets([TopicPartition(topic, number) for number in range(4)])
    finally:
        consumer.close()
    assert {str(one.partition): end for one, end in ends.items()} == answer.json["partitions"]


def _mock_producer(mock: Mock) -> Producer:
    mock.create_topic("t", 1)
    return Producer([mock.bootstrap], MOCK_OPTIONS, "t")


def test_a_record_that_the_brokers_refuse_is_named(mock_cluster: Mock) -> None:
    """With its size and what to raise; what was acknowledged counts, and the next record is none the worse for it."""
    producer = _mock_producer(mock_cluster)
    try:
        producer.send(Outgoing(b"a", b"small", "a.txt"))
        producer.finish()
        mock_cluster.push_errors(PRODUCE, TOO_LARGE)
        producer.send(Outgoing(b"b", b"x" * 1000, "b.txt"))
        with pytest.raises(DocumentError, match=r"b\.txt: the brokers take no record of 1000 bytes"):
            producer.finish()
        producer.send(Outgoing(b"c", b"small", "c.txt"))
        producer.finish()
        assert 2 == producer.produced.total
    finally:
        producer.close()


def test_a_topic_that_we_may_not_write_is_a_refusal(mock_cluster: Mock) -> None:
    """No outage: waiting does not mend it."""
    producer = _mock_producer(mock_cluster)
    try:
        mock_cluster.push_errors(PRODUCE, NOT_ALLOWED)
        producer.send(Outgoing(b"a", b"x", "a.txt"))
        with pytest.raises(ConfigError, match=r"a\.txt: our user may not read or write the topic"):
            producer.finish()
    finally:
        producer.close()
