"""Logs, as a person and as a machine read them: from processes of their own, on a real pipe and a real terminal."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from kafka.errors import Cancelled

from ingestd.errors import ConfigError
from ingestd.ops import log

if TYPE_CHECKING:
    from collections.abc import Mapping

LINES = """
import logging, warnings
import structlog
from ingestd.ops import log

early = structlog.get_logger("ingestd.early")
log.configure("info", {json})
structlog.contextvars.bind_contextvars(document_id="inbox/a.txt", source="inbox", attempt=2)
early.info("ours", stage="embed", tokens=512, text="the whole novel", options={{"api_key": "k-1", "host": "h"}})
early.debug("too fine to be shown")
logging.getLogger("pymilvus.client").info("progress of a library")
logging.getLogger("pymilvus.client").warning("retry %s of %d", "b\\x1b[2J", 3)
warnings.warn("deprecated", stacklevel=1)
try:
    novel = "local variable of a frame"
    raise ValueError("bad row\\x1b[2J\\x9b\\u202e")
except ValueError:
    early.exception("failed", uri="http://user:hunter2@host:19530/x")
"""


def piped(code: str) -> tuple[str, str]:
    """Run code in a fresh interpreter; return what it wrote to standard output and standard error."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, done.stderr


def on_a_terminal(code: str) -> str:
    """Run code with a pseudo-terminal as standard error; return what a person would see."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # Linux says EIO when the last writer of a terminal is gone
            pass
        finally:
            os.close(ours)
        assert process.wait(timeout=60) == 0
    return seen.decode()


@pytest.fixture(scope="module")
def records() -> list[Mapping[str, Any]]:
    """The lines that the example writes to a pipe."""
    out, err = piped(LINES.format(json=None))
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_a_pipe_gets_json_lines_on_standard_error_alone(records: list[Mapping[str, Any]]) -> None:
    """Each record is one JSON object with time, level, logger and message; what is below the level is not there."""
    assert [record["event"] for record in records][:2] == ["ours", "retry b\x1b[2J of 3"]
    assert len(records) == 4
    for record in records:
        assert {"timestamp", "level", "logger"} <= record.keys()
        assert record["timestamp"].endswith("Z")


def test_the_context_is_on_every_line(records: list[Mapping[str, Any]]) -> None:
    """What is bound in context variables is on our lines and on a library's alike."""
    for record in records:
        assert (record["document_id"], record["source"], record["attempt"]) == ("inbox/a.txt", "inbox", 2)


def test_libraries_and_warnings_take_the_same_way(records: list[Mapping[str, Any]]) -> None:
    """A library's warning and Python's own warnings are records like ours."""
    assert ("warning", "pymilvus.client") == (records[1]["level"], records[1]["logger"])
    assert records[2]["logger"] == "py.warnings"
    assert "deprecated" in records[2]["event"]


def test_text_and_secrets_do_not_get_out(records: list[Mapping[str, Any]]) -> None:
    """Values under telling names are withheld at any depth, counts stay, passwords in addresses are masked."""
    ours, failed = records[0], records[3]
    assert ours["text"] == log.WITHHELD
    assert ours["options"] == {"api_key": log.WITHHELD, "host": "h"}
    assert ours["tokens"] == 512
    assert failed["uri"] == "http://user:***@host:19530/x"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_no_local_variables(as_json: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Frames hold documents and tokens: a traceback has file, line and code only, in both formats."""
    _, err = piped(LINES.format(json=as_json))
    assert "ValueError: bad row" in err
    assert "Traceback (most recent call last)" in err
    assert "local variable of a frame" not in err
    assert not any(steering in err for steering in ("\x1b[2J", "\x9b", "\u202e"))


def test_a_terminal_gets_readable_lines() -> None:
    """On a terminal the lines are for people, and what a name holds cannot move its cursor."""
    seen = on_a_terminal(LINES.format(json=None))
    assert not seen.startswith("{")
    assert "ours" in seen
    assert "inbox/a.txt" in seen
    assert "\\x1b[2J" in seen
    assert "\x1b[2J" not in seen
    assert "the whole novel" not in seen
    assert "hunter2" not in seen


def test_the_format_can_be_chosen() -> None:
    """``json`` wins over what standard error is."""
    assert on_a_terminal(LINES.format(json=True)).startswith("{")
    assert not piped(LINES.format(json=False))[1].startswith("{")


def test_a_library_with_handlers_of_its_own_is_adopted() -> None:
    """What pymilvus sets up while it is imported does not last: ``adopt`` sends its lines through ours all the same."""
    code = (
        "import logging\nfrom ingestd.ops import log\nlog.configure('info', True)\n"
        "import pymilvus\nlog.adopt()\nlogging.getLogger('pymilvus.milvus_client').warning('late')\n"
    )
    lines = piped(code)[1].splitlines()
    assert ["late"] == [json.loads(line)["event"] for line in lines]


KAFKA = """
import logging
from ingestd.ops import log

log.configure({level!r}, True)
for _ in range(3):
    for topic in ("documents", "documents"):
        logging.getLogger("kafka.cluster").error("Topic %s not found in cluster metadata", topic)
    logging.getLogger("kafka.cluster").warning("Topic %s not found in cluster metadata", topic)
    logging.getLogger("kafka.net.selector").error("stalled")
    logging.getLogger("ingestd.own").error("ours")
"""


def test_kafka_does_not_repeat_itself() -> None:
    """Each message of the client's is shown once, as often as it is tried; ours are all shown."""
    lines = [json.loads(line) for line in piped(KAFKA.format(level="info"))[1].splitlines()]
    kafka = [(line["logger"], line["level"]) for line in lines if line["logger"].startswith("kafka")]
    assert kafka == [("kafka.cluster", "error"), ("kafka.cluster", "warning"), ("kafka.net.selector", "error")]
    assert [line["event"] for line in lines if line["logger"] == "ingestd.own"] == ["ours"] * 3


def test_a_command_that_shows_errors_only_shows_none_of_kafka() -> None:
    """``check`` has a line of its own for what the client would say nine times before it."""
    lines = [json.loads(line) for line in piped(KAFKA.format(level="error"))[1].splitlines()]
    assert [line["event"] for line in lines] == ["ours"] * 3


def test_kafka_says_it_again_after_a_while() -> None:
    """What goes on for longer is said once a minute, whatever is in the message; the memory is bounded."""
    now = [0.0]
    repeats = log.Repeats(lambda: now[0])

    def shown(template: str, *arguments: object) -> bool:
        return repeats.filter(logging.LogRecord("kafka.cluster", logging.ERROR, "", 0, template, arguments, None))

    assert [shown("away for %s s", 1), shown("away for %s s", 2), shown("another")] == [True, False, True]
    now[0] = log.REPEAT_SECONDS
    assert [shown("away for %s s", 61), shown("away for %s s", 62)] == [True, False]
    assert all(shown(f"made of {number}") for number in range(2000))
    assert shown("away for %s s", 63)  # forgotten: only so many are remembered
    assert not shown("Metadata refresh: failed %s", Cancelled())  # it was closed: by us


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("sasl_plain_password", "p", log.WITHHELD),
        ("Authorization", "Bearer x", log.WITHHELD),
        ("milvus_token", "t", log.WITHHELD),
        ("query", "who", log.WITHHELD),
        ("tokenizer", "wordpiece", "wordpiece"),
        ("max_tokens", 256, 256),
        ("rows", [{"text": "x", "n": 1}], [{"text": log.WITHHELD, "n": 1}]),
        ("event_itself", b"bytes of a document", "<bytes>"),
        ("error", ValueError("amqp://a:b@c"), "amqp://a:***@c"),
    ],
)
def test_what_is_withheld(name: str, value: object, shown: object) -> None:
    """Names decide, numbers stay, and objects that could print a document are named by their class."""
    assert log.withhold(None, "info", {name: value}) == {name: shown}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve £5\t日本", "naïve £5\t日本"),
        ("a\x1b[2J\r\nb", "a\\x1b[2J\\r\\nb"),
        ("\x7f\x9b\x85", "\\x7f\\x9b\\x85"),
        ("txt.\u202eexe\u2066", "txt.\\u202eexe\\u2066"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_printable(text: str, shown: str) -> None:
    """Letters of all languages stay; what steers a terminal or cannot be printed is an escape, also the second time."""
    assert shown == log.printable(text) == log.printable(log.printable(text))


def test_an_unknown_level_is_refused() -> None:
    """The message names the key and the levels that there are."""
    with pytest.raises(ConfigError, match=r"log\.level: 'loud'.*debug, info, warning, error"):
        log.configure("loud")
