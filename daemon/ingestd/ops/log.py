"""Logs: JSON lines for machines, readable lines on a terminal, always on standard error.

Owns the process's logging set-up: structlog's, and the standard library's through the same formatter, so that a
library's warning looks like our own line. What is bound in context variables (``document_id``, ``source``,
``attempt``) is on every line of that context. Text of documents and secrets never get out: values under telling
names are withheld whoever logs them, passwords in addresses are masked, objects are named by their class alone, and
tracebacks show no local variables.

Writing to a file was turned down: rotation, retention and shipping belong to systemd's journal or the container.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections import OrderedDict
from pathlib import PurePath
from typing import TYPE_CHECKING

import structlog

from ingestd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

LOUD_LIBRARIES = (
    "asyncio",
    "charset_normalizer",
    "filelock",
    "grpc",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "kafka",
    "milvus_lite",
    "py.warnings",
    "pymilvus",
    "sentence_transformers",
    "tokenizers",
    "transformers",
    "urllib3",
    "waitress",
    "watchdog",
)
"""Their progress is not news; their warnings are."""
CRYING_LIBRARIES = ("kafka.net.selector",)
"""Their warnings are no news either: that an event loop took long for a step, whenever the machine is busy."""
REPEATING_LIBRARIES = ("kafka",)
"""They say the same with every try, ten times a second where a topic is not there: once in a while is enough. A
command that shows errors only has its own line for what they would say, and shows nothing of theirs."""
CANCELLED = "Cancelled"
"""The class of errors by which kafka-python says, as an error, that a client was closed amid a request."""
REPEAT_SECONDS = 60.0
"""How long a message of theirs is not said again."""
_MOST_TEMPLATES = 1000
"""Of messages that are remembered: the client also makes messages of what it was given."""

WITHHELD = "[withheld]"
_DOCUMENT_TEXT = frozenset(
    {"body", "chunk", "content", "data", "document", "payload", "query", "text", "texts", "title"}
)
_SECRET = re.compile(
    r"api_?key|authorization|cookie|credential|passphrase|passw|private_?key|secret|(^|_)tokens?(_|$)", re.IGNORECASE
)
_PASSWORD_IN_ADDRESS = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MULTILINE = frozenset({"exception", "stack"})


def configure(level: str = "info", json: bool | None = None) -> None:  # noqa: FBT001 - three-valued, and named at the call
    """Set up logging for the process. Calling it again replaces the set-up.

    Args:
        level: The least level that is shown: ``debug``, ``info``, ``warning`` or ``error``.
        json: JSON lines or readable ones; None asks whether standard error is a terminal.

    Raises:
        ConfigError: There is no such level.
    """
    threshold = LEVELS.get(level.lower())
    if threshold is None:
        raise ConfigError(f"log.level: {level!r} is no level; choose one of {', '.join(LEVELS)}")
    as_json = not sys.stderr.isatty() if json is None else json

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(as_json=as_json))
    handler.addFilter(Repeats())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(threshold)
    logging.captureWarnings(capture=True)
    for name in LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    for name in CRYING_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    if threshold >= logging.ERROR:
        for name in (*REPEATING_LIBRARIES, *CRYING_LIBRARIES):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    adopt()

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # a logger of a module is often made before this is called
    )


def adopt() -> None:
    """Send the loggers of libraries that brought handlers of their own through ours.

    pymilvus sets up handlers while it is imported, whatever the program has set up before: call this again once
    everything is imported.
    """
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.handlers:
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
            logger.propagate = True


class Repeats(logging.Filter):
    """Leaves out what a library has just said: the same template, level and logger within ``REPEAT_SECONDS``.

    And what it says of its own being closed.

    It is the template that counts, and not the message: a broker's answers differ in their times and numbers. Filters
    of a handler are called by several threads at once.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: OrderedDict[tuple[str, int, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown."""
        if record.name.partition(".")[0] not in REPEATING_LIBRARIES:
            return True
        if isinstance(record.args, tuple) and any(type(said).__name__ == CANCELLED for said in record.args):
            return False
        key, now = (record.name, record.levelno, str(record.msg)), self._clock()
        with self._lock:
            said = self._said.get(key)
            if said is not None and now - said < REPEAT_SECONDS:
                return False
            self._said[key] = now
            self._said.move_to_end(key)
            if len(self._said) > _MOST_TEMPLATES:
                self._said.popitem(last=False)
        return True


def withhold(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take out what may be a document's text or a secret, by the names of the values, at any depth.

    A number under such a name is a count (``tokens=512``) and stays.
    """
    return {key: _shown(key, value) for key, value in event.items()}


def _shown(key: object, value: object) -> object:
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(key, str) and (key.lower() in _DOCUMENT_TEXT or _SECRET.search(key)):
        return WITHHELD
    match value:
        case str():
            shown: object = _PASSWORD_IN_ADDRESS.sub(r"\1***@", value)
        case dict():
            shown = {str(name): _shown(name, inner) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            shown = [_shown(None, inner) for inner in value]
        case PurePath() | BaseException():
            shown = _shown(key, str(value))
        case _:  # what flows (events, rows, bytes) would print the whole document
            shown = f"<{type(value).__name__}>"
    return shown


def printable(text: str) -> str:
    """Return a line in which what would move a terminal's cursor, turn its text round or not be printed is escaped.

    Whatever comes from outside (a file's name, a document's text, a library's message) may hold anything: control
    characters, line ends, overrides of the direction of writing, and lone surrogates become escapes as Python writes
    them. Tabs stay. Doing it twice changes nothing.
    """
    return _CONTROL.sub(_escape, text)


def one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make every text of a record printable; of a traceback each line."""
    return {
        key: value
        if not isinstance(value, str)
        else "\n".join(map(printable, value.split("\n")))
        if key in _MULTILINE
        else printable(value)
        for key, value in event.items()
    }


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def _common() -> list[Processor]:
    """Return what every line goes through, wherever it comes from."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _formatter(*, as_json: bool) -> logging.Formatter:
    # Exceptions become plain text before anything else sees them: structlog's other ways, rich above all, print the
    # local variables of every frame, and those are documents and tokens.
    final: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        withhold,
    ]
    if as_json:
        final.append(structlog.processors.JSONRenderer(sort_keys=True))
    else:
        final.append(one_line)
        final.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_common(), processors=final)
