"""Files and lines to records on a topic: what ``ingestd produce`` does, for backfills and for trying things out.

A record's value is a document's event as the Kafka source reads it by default, and its key is the document's id, so
that all versions of a document are in one partition, in order. Producing is batched and waits for acknowledgements some
way behind. kafka-python's idempotent producer was turned down: one record that a broker refuses poisons it, and every
later one fails (here an order is kept by one request at a time, and a repeated record is an unchanged document).
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
)

from ingestd.errors import ConfigError, DocumentError, IngestError, UnavailableError
from ingestd.model import Content
from ingestd.sources._ids import escape
from ingestd.sources._kafka.connection import creating_none
from ingestd.sources._kafka.preflight import preflight
from ingestd.sources._kafka.refusals import refused
from ingestd.sources._tree import SIDECAR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

CONNECT_SECONDS = 10.0
DELIVERY_SECONDS = 60.0
"""How long a record may go without an acknowledgement."""
WINDOW_RECORDS = 20_000
WINDOW_BYTES = 64 * 1024 * 1024
"""What may be under way without an acknowledgement: kafka-python sets no bound of its own."""
PLAIN, BINARY = "text/plain", "application/octet-stream"
_SIDECAR = SIDECAR.decode()
_UNKNOWN_TOPIC = 3
_TUNING: dict[str, Any] = {
    "acks": "all",
    "enable_idempotence": False,
    "max_in_flight_requests_per_connection": 1,
    "linger_ms": 20,
    "batch_size": 256 * 1024,
    # The brokers have the say on sizes; ours would only be another number to raise.
    "max_request_size": 1 << 30,
    "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
    "max_block_ms": int(CONNECT_SECONDS * 1000),
    "delivery_timeout_ms": int(DELIVERY_SECONDS * 1000),
    "request_timeout_ms": int(DELIVERY_SECONDS * 1000) // 2,
}


class Outgoing(NamedTuple):
    """A record to be produced."""

    key: bytes
    value: bytes | None
    """None: a tombstone."""
    origin: str
    """Where it comes from, for messages: a file, or a file and a line."""
    deletes: str | None = None
    """The document that was named to be deleted."""


class LineError(DocumentError):
    """A line of JSON Lines is no event: those before it were handed in, and nothing after it was."""

    def __init__(self, message: str, name: str, number: int) -> None:
        super().__init__(message)
        self.name = name
        self.number = number


@dataclass(frozen=True, slots=True)
class Documents:
    """How files become documents.

    Args:
        kind: Returns the media type of a file's content.
        prefix: Put before ids.
        content_type: In place of what ``kind`` says.
    """

    kind: Callable[[Content], str]
    prefix: str = ""
    content_type: str | None = None

    def under(self, path: Path) -> Iterator[Outgoing]:
        """Yield a file, or the files below a directory in the order of their names, hidden ones left out.

        Raises:
            DocumentError: One cannot be read, or its sidecar is no JSON object.
        """
        if not path.is_dir():
            yield self._document(path, escape(os.fsencode(path.name)))
            return
        for folder, directories, names in os.walk(path, onerror=_unreadable):
            directories[:] = sorted(name for name in directories if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                # Links are left out, as the folder source leaves them out; a sidecar goes with its document.
                if (
                    not name.startswith(".")
                    and not name.endswith(_SIDECAR)
                    and file.is_file()
                    and not file.is_symlink()
                ):
                    yield self._document(file, escape(os.fsencode(file.relative_to(path).as_posix())))

    def _document(self, path: Path, name: str) -> Outgoing:
        try:
            data = path.read_bytes()
        except OSError as error:
            _unreadable(error)
        said = _sidecar(path)
        title, told = (said.pop(key, None) for key in ("title", "content_type"))
        kind = self.content_type or told or self.kind(Content(data, name))
        event: dict[str, Any] = {"id": self.prefix + name}
        text = None if kind == BINARY else _text(data)
        event |= {"content": base64.b64encode(data).decode()} if text is None else {"text": text}
        event |= {} if text is not None and kind == PLAIN else {"content_type": kind}
        event |= ({"title": title} if title is not None else {}) | ({"metadata": said} if said else {})
        return Outgoing(event["id"].encode(), _json(event), str(path))


def lines(file: BinaryIO, name: str) -> Iterator[Outgoing]:
    """Yield the events of JSON Lines, as they stand there. Empty lines are passed over.

    Raises:
        LineError: A line is no JSON object with an id; names it.
    """
    for number, line in enumerate(file, 1):
        value = line.strip().removeprefix(b"\xef\xbb\xbf")
        if value:
            origin = f"{name}, line {number}"
            try:
                key = _id(value, origin).encode()
            except DocumentError as error:
                raise LineError(str(error), name, number) from error
            yield Outgoing(key, value, origin)


def deletes(ids: Iterable[str], *, tombstones: bool = False) -> Iterator[Outgoing]:
    """Yield the deletes of documents.

    Args:
        ids: The documents.
        tombstones: Whether they have no value: each format reads those. Otherwise they have one, so that sources whose
            ids are in values alone read them too.
    """
    for document_id in ids:
        value = None if tombstones else _json({"id": document_id, "op": "delete"})
        yield Outgoing(document_id.encode(), value, f"--delete {document_id}", document_id)


def ensure_topic(
    servers: Sequence[str], options: Mapping[str, Any], topic: str, *, create: bool, partitions: int = 1
) -> int:
    """See that a topic is there, and return how many partitions it has; 0: the broker has not heard yet.

    Args:
        servers: HOST:PORT of some brokers.
        options: Of ``client_options``.
        topic: Its name.
        create: Whether to make it where it is not.
        partitions: Of a topic that is made.

    Raises:
        ConfigError: The brokers refuse us.
        UnavailableError: They do not answer.
        IngestError: It is not there, or cannot be made.
    """
    preflight(servers, options, CONNECT_SECONDS)
    timeout = int(CONNECT_SECONDS * 1000)
    try:
        admin = KafkaAdminClient(bootstrap_servers=list(servers), bootstrap_timeout_ms=timeout, **options)
        try:
            if create and _create(admin, topic, partitions, timeout):
                return partitions
            (found,) = admin.describe_topics([topic])
            # One that somebody else has just made is there, though this broker may not have heard of it.
            if found["error_code"] == _UNKNOWN_TOPIC and not create:
                raise IngestError(f"there is no topic {topic}; --create makes it")
            return len(found["partitions"])
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        _raise(error, f"the topic {topic}")


def _create(admin: KafkaAdminClient, topic: str, partitions: int, timeout: int) -> bool:
    """Make a topic, and return whether it was not there."""
    wanted = {topic: {"num_partitions": partitions, "replication_factor": -1}}
    try:
        admin.create_topics(wanted, timeout_ms=timeout, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        return False
    return True


@dataclass(slots=True)
class Produced:
    """What the brokers have acknowledged."""

    partitions: Counter[int] = field(default_factory=Counter)
    deletes: list[str] = field(default_factory=list)
    """The documents that were named to be deleted."""

    @property
    def total(self) -> int:
        """Records."""
        return self.partitions.total()


class Producer:
    """Puts records on a topic.

    Args:
        servers: HOST:PORT of some brokers.
        options: Of ``client_options``.
        topic: The topic, which is there.
    """

    def __init__(self, servers: Sequence[str], options: Mapping[str, Any], topic: str) -> None:
        self.produced = Produced()
        self._topic = topic
        self._under_way: deque[tuple[Any, Outgoing]] = deque()
        self._bytes = 0
        try:
            client = KafkaProducer(bootstrap_servers=list(servers), **{**_TUNING, **options})
            self._client = creating_none(client)  # a name that is misspelt is no topic
        except (KafkaError, OSError) as error:
            _raise(error, f"the brokers {', '.join(servers)}")

    def send(self, record: Outgoing) -> None:
        """Hand a record in, and wait for old ones where much is under way.

        Raises:
            ConfigError: The brokers refuse us.
            UnavailableError: They do not answer in time.
            DocumentError: They refuse a record, this or an older one.
        """
        try:
            future = self._client.send(self._topic, record.value, record.key)
        except (KafkaError, ValueError) as error:
            _raise(error, record.origin)
        self._under_way.append((future, record))
        self._bytes += len(record.value or b"")
        while len(self._under_way) > WINDOW_RECORDS or self._bytes > WINDOW_BYTES:
            self._settle()

    def finish(self) -> None:
        """Wait until all is acknowledged. Raises as ``send``; calling it again goes on with what is left."""
        self._client.flush()
        while self._under_way:
            self._settle()

    def close(self) -> None:
        """Let go of the brokers; what is not acknowledged is given up."""
        self._client.close(timeout=1)

    def _settle(self) -> None:
        future, record = self._under_way.popleft()
        size = len(record.value or b"")
        self._bytes -= size
        try:
            self.produced.partitions[future.get(DELIVERY_SECONDS + 10).partition] += 1
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise DocumentError(
                f"{record.origin}: the brokers take no record of {size} bytes; raise the topic's "
                "max.message.bytes, or send a uri"
            ) from error
        except (KafkaError, ValueError) as error:
            _raise(error, record.origin)
        if record.deletes is not None:
            self.produced.deletes.append(record.deletes)


def _raise(error: Exception, what: str) -> NoReturn:
    reason = refused(error)
    if reason is not None:
        raise ConfigError(f"{what}: {reason}") from error
    raise UnavailableError("kafka", f"{what}: {error}") from error


def _unreadable(error: OSError) -> NoReturn:
    raise DocumentError(f"{error.filename} cannot be read: {error.strerror}") from error


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _sidecar(path: Path) -> dict[str, Any]:
    """Return what ``NAME.meta.json`` says of a file, nothing where there is none."""
    file = path.with_name(path.name + _SIDECAR)
    try:
        said = json.loads(file.read_bytes(), parse_constant=_no_number)
    except FileNotFoundError:
        return {}
    except OSError as error:
        _unreadable(error)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{file} is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise DocumentError(f"{file} holds no JSON object")
    return said


def _id(value: bytes, origin: str) -> str:
    try:
        event = json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{origin}: is no JSON: {error}") from error
    found = event.get("id") if isinstance(event, dict) else None
    if not isinstance(found, str) or not found:
        raise DocumentError(f'{origin}: has no "id", the document\'s, which is a string')
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(f'{origin}: its "id" has half a character (a lone surrogate)') from error
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON's")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
