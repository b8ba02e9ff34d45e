"""What a Milvus error means: whose fault it is, and so what becomes of the batch.

Milvus reports through four channels: a status code in the answer (``MilvusException``), a raw gRPC error, an
exception of the client's own encoding, and, for refused credentials, a connection error that looks like an outage
until one reads its cause. This module owns the one table over all of them. The codes were gathered on Milvus 2.3.5,
Milvus Lite 3.2 and from the error list of Milvus 2.4 to 2.6.

Treating every error as an outage was turned down: a bad row would hold its pipeline for ever. Treating unknown ones
as the document's fault was too: an outage would turn documents into dead letters. What is not in the table counts as
an outage, and the caller's probe finds out whether it is one.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ingestd.errors import ConfigError, DocumentError, FatalError, IngestError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPENDENCY = "milvus"
"""The name of the breaker that stands for Milvus."""
SLOWER_WAIT = 10.0
"""Seconds to leave a server alone that has run out of memory, disk or quota."""

_CONNECT_FAILED = 2
_NOT_READY = 1
_CATCH_ALL = 65535
_DENIED = frozenset({3, 7, 9, 11, 53})
_LIMITED = frozenset({4, 8})
"""Too many requests at once, or in a time."""
_DOWN = frozenset({2, 4, 8, 12, 103, 106, 110, 202, 505, 507, 1002, 1003, 1807, 2200})
_NO_COLLECTION = 100
_SET_UP = frozenset({100, 105, 200, 700, 800, 1400, 1401})
_INPUT = frozenset({6, 1100, 1101, 1102})
_NOT_LOADED = 101
_STALE_SCHEMA = 109
_LEGACY_DENIED = 53
_REFUSED_STATUS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"})
_CLIENT_INPUT = frozenset({"DataNotMatchException", "ParamError", "DataTypeNotMatchException"})
# What old servers say with code 65535 when it is they who are in trouble, and not the row.
_OUTAGE_WORDS = (
    "not ready",
    "unavailable",
    "timeout",
    "deadline",
    "connection",
    "no available",
    "not healthy",
    "etcd",
    "no space left",
)


class Request(Enum):
    """What was asked: the same code means something else for a write than for a set-up."""

    WRITE = "write"
    """Rows were sent: what the server finds wrong with the input is the document's fault."""
    KEYS = "keys"
    """Only keys and names were sent, nothing that a document could get wrong and hardly anything that a configuration
    could: a delete, a question by key, a count, a load. What the server finds wrong with it is the server's trouble."""
    READ = "read"
    """Something was searched for: wrong input is a wrong configuration."""
    SETUP = "setup"
    """A collection was described, created or indexed: wrong input is a wrong configuration."""


class Mend(Enum):
    """What can be done about an error before the request is sent once more."""

    LOAD = "load"
    """The collection is not loaded."""
    REFRESH = "refresh"
    """The client's idea of the schema is out of date."""


class TooLargeError(DocumentError):
    """The request is over the server's message size: split it. A single row that is too large is a bad document."""


class _Seen(NamedTuple):
    """What an exception chain says, in one place."""

    code: int
    status: str
    """The name of the gRPC status, or an empty string."""
    text: str
    kinds: frozenset[str]
    retriable: bool


def verdict(error: BaseException, *, doing: str, request: Request = Request.WRITE) -> IngestError:
    """Return the error that the daemon should act on.

    Args:
        error: What pymilvus or gRPC raised. An IngestError is returned as it is.
        doing: What was being done, for the message: ``writing 12 rows to articles``.
        request: What kind of request it was.
    """
    if isinstance(error, IngestError):
        return error
    seen = _look(error)
    message = f"{doing}: {seen.text}"
    return _by_status(seen, message, request) if seen.status else _by_code(seen, message, request)


def remedy(error: BaseException) -> Mend | None:
    """Return what would mend the error, if anything would."""
    seen = _look(error)
    if seen.status:
        return None
    if seen.code == _NOT_LOADED:
        return Mend.LOAD
    if seen.code == _STALE_SCHEMA or "SchemaMismatchRetryableException" in seen.kinds:
        return Mend.REFRESH
    return None


def _by_status(seen: _Seen, message: str, request: Request) -> IngestError:
    if seen.status in _REFUSED_STATUS:
        return ConfigError(f"milvus: {message} ({_cure(seen.status)})")
    # Of anything but a write it is the answer that is too large, and no row that could be split off.
    too_large = seen.status == "RESOURCE_EXHAUSTED" and "larger than max" in seen.text
    if too_large and request is Request.WRITE:
        return TooLargeError(message)
    # A limit, of a proxy before the server or of a service: what it refuses is asked again at its pace.
    limited = seen.status == "RESOURCE_EXHAUSTED" and not too_large
    return UnavailableError(DEPENDENCY, f"{message} [{seen.status}]", refused=limited)


def _by_code(seen: _Seen, message: str, request: Request) -> IngestError:
    message = f"{message} [code {seen.code}]"
    if seen.code in _DENIED:
        text = f"{message}, out of memory, disk or quota"
        return UnavailableError(DEPENDENCY, text, wait=SLOWER_WAIT, refused=True)
    if seen.code in _LIMITED:
        return UnavailableError(DEPENDENCY, message, refused=True)
    if seen.code == _NO_COLLECTION and request in {Request.WRITE, Request.KEYS}:
        # It was there when the daemon started: what the ledger says of it is void, and the next start makes it anew.
        return FatalError(f"milvus: {message}: the collection was dropped")
    if seen.code in _SET_UP:
        return ConfigError(f"milvus: {message}")
    if not seen.retriable and seen.code not in _DOWN and _is_input(seen, request):
        return DocumentError(message) if request is Request.WRITE else ConfigError(f"milvus: {message}")
    return UnavailableError(DEPENDENCY, message)


def _is_input(seen: _Seen, request: Request) -> bool:
    if request is Request.KEYS:
        # Refused by the client before it was sent: no waiting would change that.
        return bool(seen.kinds & _CLIENT_INPUT)
    if seen.kinds & _CLIENT_INPUT or seen.code in _INPUT:
        return True
    if any(word in seen.text.lower() for word in _OUTAGE_WORDS):
        return False
    # Lite answers every exception of its own with code 1, a full disk too: only for a set-up is it a verdict.
    return seen.code == _CATCH_ALL or (seen.code == _NOT_READY and request is Request.SETUP)


def _look(error: BaseException) -> _Seen:
    code = 0
    status = ""
    texts: list[str] = []
    kinds = set()
    retriable = False
    for fault in _chain(error):
        kinds.add(type(fault).__name__)
        found = getattr(fault, "code", None)
        found = found() if callable(found) else found
        if isinstance(found, int) and not code:  # MilvusException, and its ErrorCode enumeration
            code = int(found)
            if code in {0, _NOT_READY} and getattr(fault, "compatible_code", 0) == _LEGACY_DENIED:
                code = _LEGACY_DENIED
        elif not status:  # a grpc.StatusCode has a name; pymilvus also raises errors with a text for a code
            status = str(getattr(found, "name", ""))
        retriable = retriable or bool(getattr(fault, "retriable", False))
        texts.append(_text(fault))
    if status == "UNIMPLEMENTED" and any("http2 header with status" in text for text in texts):
        # A proxy made the status up: the 404 of an ingress without a backend reads UNIMPLEMENTED.
        status = ""
        code = _CONNECT_FAILED
    if isinstance(error, OSError) and not code:
        code = _CONNECT_FAILED
    return _Seen(code, status, ": ".join(dict.fromkeys(text for text in texts if text)), frozenset(kinds), retriable)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what caused it. pymilvus raises errors from themselves, so the chain may be a ring."""
    met: set[int] = set()
    fault: BaseException | None = error
    while fault is not None and id(fault) not in met:
        met.add(id(fault))
        yield fault
        fault = fault.__cause__ if fault.__cause__ is not None and id(fault.__cause__) not in met else fault.__context__


def _text(fault: BaseException) -> str:
    details = getattr(fault, "details", None)
    if callable(details):
        return str(details() or "")
    return str(getattr(fault, "message", None) or fault)


def _cure(status: str) -> str:
    if status == "UNIMPLEMENTED":
        return "the server does not know this request: check the address and the server's version"
    return "check milvus.token, or milvus.user and milvus.password, and the user's privileges"
