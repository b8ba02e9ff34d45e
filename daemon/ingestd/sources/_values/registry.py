"""The schema registry: asked in the background, remembered for ever.

``schema`` is called on the thread that owns the consumer and never waits: a schema that is not known yet is put to a
thread of the registry's own, and the caller asks again. One fetch is under way at a time, and after one that failed
none is begun before its back-off has passed, whoever asks. What an id means never changes, so an answer stays; that
there is no such id is believed for a minute, since a schema can be registered a moment after its first record is read.

confluent-kafka's client was turned down: it waits, and brings librdkafka.
"""

from __future__ import annotations

import base64
import random
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import structlog
import urllib3
from urllib3.exceptions import HTTPError

from ingestd.answers import PackedError, TooLargeError, body, bound_heads, retry_after
from ingestd.errors import ConfigError, IngestError, UnavailableError
from ingestd.model import Check
from ingestd.sources._values.decoded import RefusedError, shown
from ingestd.sources._values.strict_json import parsed

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from ingestd.model import Json
    from ingestd.ports import Clock
    from ingestd.sources._values.config import SchemaRegistry

log = structlog.get_logger(__name__)

MISSING_SECONDS = 60.0
"""For how long it is believed that there is no such id."""
MISSING_IDS = 10_000
"""Ids of that kind that are remembered: records can name four thousand million of them."""
FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 30.0
ANSWER_BYTES = 16 * 1024 * 1024
REFERENCES = 256
"""The most schemas that one schema may lead to."""

_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 401, 403, 404
_NO_SCHEMA = frozenset({40403})
_NO_REFERENCE = frozenset({40401, 40402, 40403})
"""The registry's own codes. Any other 404 is a wrong address, and says nothing about a schema."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema as the registry has it."""

    id: int
    type: str
    """``AVRO``, ``JSON`` or ``PROTOBUF``."""
    text: str
    references: tuple[tuple[str, str], ...]
    """Name and text of all that it refers to, directly or not; what is referred to comes first."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """How the last fetch failed."""

    refused: bool
    """The credentials."""
    message: str
    attempts: int
    again_at: float


class _AbsentError(Exception):
    """The registry says that there is no such thing."""


class Registry:
    """A registry, at one or more addresses.

    Args:
        config: Where it is, and how to get in.
        source: The name of the configured source, for messages and the breaker.
        clock: Says when a fetch may be tried again.

    Raises:
        ConfigError: ``ca_file`` is of no use.
    """

    def __init__(self, config: SchemaRegistry, source: str, clock: Clock) -> None:
        self._config = config
        self._dependency = f"registry:{source}"
        self._path = f"sources.{source}.schema_registry"
        self._clock = clock
        self._headers = _headers(config)
        self._pool = _pool(config, self._path)
        self._first = 0
        """Which address is asked first: the one that answered last."""
        self._changed = threading.Condition()
        self._known: dict[int, Schema] = {}
        self._missing: dict[int, tuple[float, str]] = {}
        self._failure: _Failure | None = None
        self._wanted: deque[int] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def schema(self, schema_id: int) -> Schema:
        """Return a schema. Never waits.

        Raises:
            RefusedError: There is none of this id, or what it refers to is not there.
            UnavailableError: It is being fetched, or cannot be: ask again.
            ConfigError: The registry refuses the credentials.
        """
        found = self._known.get(schema_id)
        if found is not None:
            return found
        with self._changed:
            now = self._clock.monotonic()
            until, why = self._missing.get(schema_id, (now, ""))
            if until > now:
                raise RefusedError(why)
            failure = self._failure
            if failure is None or now >= failure.again_at:
                self._ask(schema_id)
            raise self._error(failure, schema_id)

    def check(self) -> Check:
        """Ask the registry something small, and say whether it answers. Waits for it."""
        cure = f"see to the registry, or to {self._path}"
        try:
            try:
                answer = self._get("/schemas/types")
            except UnavailableError:  # registries before 5.5 have no such page
                answer = self._get("/subjects")
        except IngestError as error:
            return Check(self._dependency, ok=False, detail=str(error), cure=cure)
        if not isinstance(answer, list):
            return Check(self._dependency, ok=False, detail="what answers is no schema registry", cure=cure)
        return Check(self._dependency, ok=True, detail=", ".join(self._config.urls))

    def close(self) -> None:
        """End the thread; a fetch that is under way ends within its time-outs, unheard."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._config.timeout_seconds)
        self._pool.clear()

    def _ask(self, schema_id: int) -> None:
        if self._closed or schema_id in self._wanted:
            return
        self._wanted.append(schema_id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._dependency, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _error(self, failure: _Failure | None, schema_id: int) -> IngestError:
        if failure is None:
            return UnavailableError(self._dependency, f"schema {schema_id} is being fetched")
        if failure.refused:
            return ConfigError(f"{self._path}: {failure.message}")
        wait = max(0.0, failure.again_at - self._clock.monotonic())
        return UnavailableError(self._dependency, f"schema {schema_id} cannot be fetched: {failure.message}", wait=wait)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                schema_id = self._wanted[0]  # stays there while it is fetched, so that nobody asks again
            self._settle(schema_id)

    def _settle(self, schema_id: int) -> None:
        """Fetch a schema and note what came of it, whatever that is: a caller waits for it."""
        found: Schema | None = None
        absent: str | None = None
        error: Exception | None = None
        try:
            found = self._fetch(schema_id)
        except _AbsentError as gone:
            absent = str(gone)
        except Exception as failed:  # noqa: BLE001 - an answer that nobody foresaw may not end the thread unheard
            error = failed
        with self._changed:
            self._wanted.popleft()
            if error is not None:
                self._wanted.clear()  # who still wants one asks again, after the back-off
                self._failure = self._failed(error, self._failure)
            else:
                self._failure = None
                self._missing.pop(schema_id, None)
            if found is not None:
                self._known[schema_id] = found
            elif absent is not None:
                while len(self._missing) >= MISSING_IDS:
                    del self._missing[next(iter(self._missing))]
                self._missing[schema_id] = (self._clock.monotonic() + MISSING_SECONDS, absent)
            failure = self._failure
        if failure is not None:
            log.warning(
                "a schema could not be fetched",
                registry=self._dependency,
                schema=schema_id,
                error=failure.message,
                attempts=failure.attempts,
            )

    def _failed(self, error: Exception, last: _Failure | None) -> _Failure:
        attempts = 1 if last is None else last.attempts + 1
        wait = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(attempts - 1, 10))
        wait *= random.uniform(0.75, 1)  # noqa: S311 - members that lost their registry together come back apart
        if isinstance(error, UnavailableError) and error.wait is not None:
            wait = max(wait, error.wait)
        message = str(error) if isinstance(error, IngestError) else f"{type(error).__name__}: {error}"
        refused = isinstance(error, ConfigError)
        return _Failure(refused, message, attempts, self._clock.monotonic() + wait)

    def _fetch(self, schema_id: int) -> Schema:
        try:
            answer = self._schema_in(self._get(f"/schemas/ids/{schema_id}", _NO_SCHEMA))
        except _AbsentError:
            raise _AbsentError(
                f"the registry has no schema {schema_id}; register it, or point schema_registry.urls at the registry "
                "that its producer uses"
            ) from None
        references: dict[str, str] = {}
        self._follow(answer, references, frozenset(), schema_id)
        return Schema(schema_id, answer.get("schemaType") or "AVRO", answer["schema"], tuple(references.items()))

    def _follow(self, answer: dict[str, Any], found: dict[str, str], above: frozenset[str], schema_id: int) -> None:
        """Add what a schema refers to, what that refers to before it."""
        for reference in answer.get("references") or ():
            if not isinstance(reference, dict):
                raise self._odd("a reference that is no object")
            name, subject, version = (reference.get(key) for key in ("name", "subject", "version"))
            if not isinstance(name, str) or not isinstance(subject, str) or not isinstance(version, int):
                raise self._odd("a reference without name, subject and version")
            if name in found or name in above:
                continue
            if len(found) + len(above) >= REFERENCES:
                raise _AbsentError(f"schema {schema_id} leads to more than {REFERENCES} others; flatten it")
            # A reference holds on to a version that was deleted meanwhile.
            path = f"/subjects/{quote(subject, safe='')}/versions/{version}?deleted=true"
            try:
                inner = self._schema_in(self._get(path, _NO_REFERENCE))
            except _AbsentError:
                raise _AbsentError(
                    f"schema {schema_id} refers to {shown(name)}, version {version} of {shown(subject)}, which is not "
                    "in the registry; register it again"
                ) from None
            self._follow(inner, found, above | {name}, schema_id)
            found[name] = inner["schema"]

    def _schema_in(self, answer: Json) -> dict[str, Any]:
        if not isinstance(answer, dict) or not isinstance(answer.get("schema"), str):
            raise self._odd("an answer without a schema")
        if not isinstance(answer.get("references"), list | None):
            raise self._odd("references that are no list")
        return answer

    def _get(self, path: str, absent: frozenset[int] = frozenset()) -> Json:
        """Ask the addresses one after the other, and return the first answer.

        Args:
            path: What to ask.
            absent: The codes which say that there is no such thing.

        Raises:
            _AbsentError: There is no such thing.
            ConfigError: The credentials are refused.
            UnavailableError: None of them answers as a registry does.
        """
        urls = self._config.urls
        errors = []
        for turn in range(len(urls)):
            at = (self._first + turn) % len(urls)
            try:
                answer = self._get_from(urls[at].rstrip("/"), path, absent)
            except UnavailableError as error:
                errors.append(error)
                continue
            self._first = at
            return answer
        waits = [error.wait for error in errors if error.wait is not None]
        raise UnavailableError(
            self._dependency, "; ".join(map(str, errors)), wait=min(waits) if len(waits) == len(errors) else None
        )

    def _get_from(self, url: str, path: str, absent: frozenset[int]) -> Json:
        deadline = time.monotonic() + 2 * self._config.timeout_seconds
        try:
            response = self._pool.request(
                "GET", url + path, headers=self._headers, redirect=False, preload_content=False
            )
            try:
                data = body(response, ANSWER_BYTES, deadline)
            except BaseException:
                response.close()
                raise
            response.release_conn()
        except (HTTPError, OSError) as error:
            raise UnavailableError(self._dependency, f"{url}: {error}") from error
        except (TooLargeError, PackedError) as error:
            raise self._odd("an answer that is too large, or compressed unasked") from error
        return self._judged(url, response, data, absent)

    def _judged(self, url: str, response: BaseHTTPResponse, data: bytes, absent: frozenset[int]) -> Json:
        status = response.status
        if status in {_UNAUTHORIZED, _FORBIDDEN}:
            raise ConfigError(f"{url} refuses the credentials ({status}); see to username and password")
        try:
            answer = parsed(data, "its answer")
        except RefusedError as error:
            if status == _OK:
                raise self._odd(f"no JSON ({url})") from error
            answer = None
        if status == _OK:
            return answer
        code = answer.get("error_code") if isinstance(answer, dict) else None
        if status == _NOT_FOUND and code in absent:
            raise _AbsentError(f"{url} answers {code}")
        raise UnavailableError(self._dependency, f"{url} answers {status}", wait=retry_after(response))

    def _odd(self, what: str) -> UnavailableError:
        return UnavailableError(self._dependency, f"what answers is no schema registry: {what}")


def _headers(config: SchemaRegistry) -> dict[str, str]:
    headers = {
        "Accept": "application/vnd.schemaregistry.v1+json, application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "ingestd",
    }
    if config.username is not None and config.password is not None:
        # In UTF-8: urllib3's own make_headers takes Latin-1 alone.
        said = f"{config.username}:{config.password.get_secret_value()}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(said).decode()
    return headers


def _pool(config: SchemaRegistry, path: str) -> urllib3.PoolManager:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{path}.ca_file: {config.ca_file} cannot be used: {error}") from error
    timeout = urllib3.Timeout(connect=config.timeout_seconds, read=config.timeout_seconds)
    pool = urllib3.PoolManager(num_pools=4, maxsize=2, retries=False, timeout=timeout, ssl_context=context)
    bound_heads(pool, config.timeout_seconds)
    return pool
