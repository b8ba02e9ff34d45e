"""``ingestd produce`` as a person runs it, onto real brokers, read back by a client of our own."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from tests.fixtures.brokers import MOCK_OPTIONS, create_topic
from tests.fixtures.daemon import Answer, wait_for
from tests.tools import run_kafka

from ingestd.config import load
from ingestd.errors import ConfigError, DocumentError
from ingestd.model import Op, Record
from ingestd.parts import SystemClock
from ingestd.sources._kafka.producing import Outgoing, Producer
from ingestd.sources._values.config import decoder
from ingestd.sources._values.decoded import ValueLimits

if TYPE_CHECKING:
    from tests.fixtures.brokers import Mock, Noida, Tansu

    from ingestd.sources._values.decoded import Decoder

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
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
    return _ingestd("produce", *arguments, cwd=cwd, stdin=stdin)


def _ingestd(*arguments: object, cwd: Path, stdin: str | None = None) -> Answer:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INGESTD_")}
    command = [sys.executable, "-m", "ingestd", *map(str, arguments)]
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
    assert "… | tail -n +3 | ingestd produce … -" in answer.err
    assert ["a"] == list(_events(tansu.bootstrap, there, 1))


def test_what_is_said_after_a_bad_line_goes_on_with_it(tansu: Tansu, there: str, tmp_path: Path) -> None:
    """The command that is told sends the rest, once the line is mended, and nothing twice."""
    file = tmp_path / "some events.jsonl"
    file.write_text('{"id": "a"}\n{"id": \n{"id": "c"}\n')
    options = ("--bootstrap", tansu.bootstrap, "--topic", there)
    answer = _produce(*options, file.name, "--delete", "a", cwd=tmp_path)
    assert 1 == answer.code
    told = answer.err.splitlines()[1]
    assert told.startswith(
        "the lines before line 2 were sent; this line, those after it, later FILEs and --delete were"
    )
    file.write_text(file.read_text().replace('{"id": \n', '{"id": "b"}\n'))
    (tail,) = [word.removesuffix(" |") for word in told.split("then: ")[1].split(" ingestd produce … -") if word]
    rest = subprocess.run(["bash", "-c", tail], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert 0 == _produce(*options, "-", cwd=tmp_path, stdin=rest).code
    assert {"a", "b", "c"} == _events(tansu.bootstrap, there, 3).keys()


def test_the_ids_of_deletes_are_told(tansu: Tansu, there: str, tmp_path: Path) -> None:
    """Ten of them, and how many more there are; --json has them all."""
    ids = [f"document-{number:02}" for number in range(12)]
    arguments = ("--bootstrap", tansu.bootstrap, "--topic", there, *(word for one in ids for word in ("--delete", one)))
    assert ids == _produce(*arguments, "--json", cwd=tmp_path).json["deletes"]
    told = _produce(*arguments, cwd=tmp_path).out.splitlines()[1]
    assert f"among them deletes of {', '.join(ids[:10])} and 2 more" == told


def _of_format(bootstrap: str, folder: Path, settings: str) -> tuple[str, ...]:
    """Write a configuration with a source of a format; return the options that use it."""
    (folder / "config.toml").write_text(
        f'{CONFIG}[sources.cms]\ntype = "kafka"\nbootstrap_servers = ["{bootstrap}"]\ntopics = ["t"]\n'
        f'group_id = "g"\ncollection = "articles"\n{settings}\n'
    )
    return ("--config", "config.toml")


FIELDS = 'format = { type = "json", fields = { id = "$.nr", text = "$.body" } }'
FORMATS = [
    FIELDS,
    'format = { type = "raw" }',
    'format = { type = "cloudevents" }',
    'format = { type = "debezium", key_format = "text", fields = { text = "$.body" } }',
    'format = { type = "avro" }\nschema_registry = { urls = ["http://127.0.0.1:1"] }',
]


@pytest.mark.parametrize("settings", FORMATS)
def test_a_source_of_another_format_gets_null_values_and_no_documents(
    tansu: Tansu, there: str, tmp_path: Path, settings: str
) -> None:
    """A delete is one that the source reads; what it would not read is refused before anything is sent."""
    options = (*_of_format(tansu.bootstrap, tmp_path, settings), "--topic", there)
    (tmp_path / "a.txt").write_text("a")
    for given in (("a.txt", "--delete", "x"), ("-",)):
        answer = _produce(*options, *given, cwd=tmp_path, stdin='{"id": "x", "text": "x"}')
        assert 78 == answer.code, answer.err
        assert answer.err.startswith(
            "sources.cms.format: the source reads another shape than ingestd produce writes; send documents with"
        )
    answer = _produce(*options, "--delete", "Grüße/7", cwd=tmp_path)
    assert 0 == answer.code, answer.err
    (record,) = _records(tansu.bootstrap, there, 1)
    assert ("Grüße/7".encode(), None) == (record.key, record.value)
    decode = _decoder(tmp_path / "config.toml").decode
    found = decode(Record(there, 0, 0, -1, record.key, record.value))
    assert (Op.DELETE, "Grüße/7") == (found.op, found.document_id)


def _decoder(file: Path) -> Decoder:
    """Return what the configured source reads records with."""
    config: Any = load(file).sources["cms"].config
    registry = config.schema_registry and config.schema_registry.build("cms", SystemClock())
    limits = ValueLimits(max_value_bytes=1000, max_bytes=1000)
    return decoder(config.format, id_from=config.id_from, source="cms", limits=limits, registry=registry)


def test_a_default_source_with_words_of_its_own_for_deletes_gets_null_values(
    tansu: Tansu, there: str, tmp_path: Path
) -> None:
    """Its documents are ours, and "delete" is no word that it knows."""
    options = _of_format(tansu.bootstrap, tmp_path, 'format = { type = "json", op_values = { delete = ["gone"] } }')
    (tmp_path / "a.txt").write_text("a")
    answer = _produce(*options, "--topic", there, "a.txt", "--delete", "x", cwd=tmp_path)
    assert 0 == answer.code, answer.err
    assert {b"a.txt": b'{"id": "a.txt", "text": "a"}', b"x": None} == {
        record.key: record.value for record in _records(tansu.bootstrap, there, 2)
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (f'{FIELDS}\nid_from = "value"', "sources.cms.id_from: a delete for this format is a null value with the id"),
        (
            'format = { type = "debezium", fields = { text = "$.body" } }',
            "sources.cms.format.key_format: keys are json here",
        ),
    ],
)
def test_a_delete_that_the_source_would_not_read_is_refused(tmp_path: Path, settings: str, said: str) -> None:
    """With the reason, before any broker is asked."""
    options = _of_format("127.0.0.1:1", tmp_path, settings)
    answer = _produce(*options, "--topic", "t", "--delete", "x", cwd=tmp_path)
    assert 78 == answer.code
    assert answer.err.startswith(said)


@pytest.mark.parametrize(
    "on_topic", [pytest.param(False, id="state"), pytest.param(True, id="topic", marks=pytest.mark.long)]
)
def test_what_failed_is_shown_as_it_came(tansu: Tansu, there: str, tmp_path: Path, *, on_topic: bool) -> None:
    """Text as text, escaped and cut, other bytes not; null is a tombstone; times and versions as people write them.

    Letters on a topic are not discarded: it is said how many stay, also to members without a state, and that nobody
    knows while the brokers are away.
    """
    settings = 'id_from = "value"\nconsumer = { session_timeout_ms = 6000 }\n'
    settings += f'dead_letter_topic = "{there}.letters"\n' if on_topic else ""
    options = _of_format(tansu.bootstrap, tmp_path, f'{settings}[milvus]\nuri = "milvus"')
    file = tmp_path / "config.toml"
    file.write_text(
        'state_dir = "state"\n[http]\nlisten = "127.0.0.1:0"\n' + file.read_text().replace('"t"', f'"{there}"')
    )
    if on_topic:
        create_topic(tansu.bootstrap, f"{there}.letters", 1)
    values = [None, "Grüße\n\x1b[2J".encode(), b"x" * 3000, b"\xff\xfe"]
    producer = KafkaProducer(bootstrap_servers=tansu.bootstrap)
    for value in values:
        producer.send(there, value, b"key", partition=1, timestamp_ms=1_700_000_000_000)
    producer.flush()
    producer.close()
    done = _ingestd("run", "--once", "--timeout", "50", *options, cwd=tmp_path)
    assert 3 == done.code, done.err

    shown = []
    for row in _ingestd("dead-letters", "list", "--json", *options, cwd=tmp_path).json:
        lines = _ingestd("dead-letters", "show", row["id"], *options, cwd=tmp_path).out.splitlines()
        said = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
        number = int(row["position"].rpartition("@")[2])
        assert "2023-11-14 22:13:20+00:00" == said["timestamp"]
        assert said["version"].startswith(f"{number} of kafka:")
        shown.append((number, said["original"]))
    assert [
        (0, "null (a tombstone)"),
        (1, r"Grüße\n\x1b[2J"),
        (2, f"{'x' * 2000}… (the first 2000 of 3000 characters; --json has all of them in base64)"),
        (3, "2 bytes that are no UTF-8; --json shows them in base64"),
    ] == sorted(shown)
    stay = ["4 letters on topics stay until the topic's retention removes them"]
    discard = ("dead-letters", "discard", *options)
    assert ["0 discarded"] == _ingestd(*discard, "--stage", "write", cwd=tmp_path).out.splitlines()
    told = _ingestd(*discard, "--all", cwd=tmp_path).out.splitlines()
    assert (["0 discarded", *stay] if on_topic else ["4 discarded"]) == told
    if on_topic:
        stateless = file.read_text().replace('"state"', '""').replace('"milvus"', '"http://127.0.0.1:1"')
        file.write_text(stateless)
        assert {"discarded": 0, "on_topics": 4} == _ingestd(*discard, "--all", "--json", cwd=tmp_path).json
        file.write_text(stateless.replace(tansu.bootstrap, "127.0.0.1:1"))
        away = _ingestd(*discard, "--all", cwd=tmp_path)
        assert 0 == away.code, away.err
        assert "how many cannot be said: " in away.out.splitlines()[1]


def test_the_quick_start_s_export_line_makes_the_readme_s_command_work(
    tansu: Tansu, there: str, tmp_path: Path
) -> None:
    """Where the broker is not at the usual port; at the usual one there is no such line."""
    (line,) = [line for line in run_kafka.told(tansu.bootstrap).splitlines() if "export" in line]
    (tmp_path / "my-notes.md").write_text("my notes")
    (command,) = [line for line in (ROOT / "README.md").read_text().splitlines() if "my-notes.md --config" in line]
    program, *arguments = command.replace("--topic documents", f"--topic {there}").split()
    assert ".venv/bin/ingestd" == program
    arguments[-1] = str(ROOT / arguments[-1])
    script = f"{line}\nexec {shlex.join([sys.executable, '-m', 'ingestd', *arguments])}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INGESTD_")}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=60, check=False
    )
    assert 0 == done.returncode, done.stderr
    assert ["my-notes.md"] == list(_events(tansu.bootstrap, there, 1))
    assert "export" not in run_kafka.told(f"127.0.0.1:{run_kafka.USUAL_PORT}")


def test_a_broken_sidecar_is_named(tansu: Tansu, there: str, tmp_path: Path) -> None:
    """A document without its metadata would be another document."""
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt.meta.json").write_text("[]")
    answer = _produce("--bootstrap", tansu.bootstrap, "--topic", there, "a.txt", cwd=tmp_path)
    assert 1 == answer.code
    assert "a.txt.meta.json holds no JSON object" in answer.err


def test_a_topic_is_made_only_when_asked_for(tansu: Tansu, topic: str, tmp_path: Path) -> None:
    """--create makes one with its partitions, and leaves one that is there as it is, which is said."""
    (tmp_path / "events.jsonl").write_text("".join(f'{{"id": "{number}"}}\n' for number in range(50)))
    options = ("--bootstrap", tansu.bootstrap, "--topic", topic, "--json", "events.jsonl")
    answer = _produce(*options, cwd=tmp_path)
    assert 1 == answer.code
    assert f"there is no topic {topic}; --create makes it" in answer.err
    for partitions in ("3", "5"):
        answer = _produce(*options, "--create", "--partitions", partitions, cwd=tmp_path)
        assert {"0", "1", "2"} == answer.json["partitions"].keys(), answer.err
        kept = f"the topic {topic} is there already, with 3 partitions: it keeps them\n"
        assert answer.err == (kept if partitions == "5" else "")
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
    source = 'type = "kafka"\nbootstrap_servers = ["127.0.0.1:1"]\ntopics = ["t"]\n'
    tables = [f'[sources.{name}]\n{source}group_id = "{name}"\ncollection = "articles"\n' for name in "ab"]
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
