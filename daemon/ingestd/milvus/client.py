"""The one connection to Milvus: configuration, deadlines, reconnecting, mending, and verdicts on every error.

``MilvusClient`` is the only class of pymilvus that is used: the ORM classes leave in 3.1. A client's own ``timeout``
covers connecting alone, so every call here gets one of its own, and a server that is stopped never hangs a thread.
pymilvus's own retries are switched off, for rate limits and for broken connections: it would ask a server that is in
trouble every few seconds for as long as a call may take, and connect anew each time, while nothing here knows of an
outage. The daemon does its own retries, where the breaker sees them, and gRPC's channel connects again by itself.

Sharing pymilvus's connections by address was turned down (``dedicated=True``): Milvus Lite comes back on another port
after a restart, and a channel to the old one must not linger in a registry.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ingestd.errors import UnavailableError
from ingestd.milvus import lean
from ingestd.milvus.verdict import DEPENDENCY, Mend, Request, remedy, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pymilvus import MilvusClient

MIB = 1 << 20
LOAD_SECONDS = 600.0
"""How long a collection may take to load: a large one takes minutes. Each question about it has its own timeout."""
RECONNECT_MS = 5000
"""The most that a channel whose server is gone waits before it tries to connect again."""
_POLL_SECONDS = 0.2
_importing = threading.Lock()


class Tls(BaseModel):
    """TLS to the server. Without ``ca_file`` the system's certificates are trusted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca_file: Path | None = Field(default=None, description="Certificates to trust, PEM.")
    cert_file: Path | None = Field(default=None, description="The client's certificate, PEM; needs key_file, ca_file.")
    key_file: Path | None = Field(default=None, description="The client's private key, PEM.")
    server_name: str | None = Field(default=None, description="The name in the server's certificate, if not its host.")

    @model_validator(mode="after")
    def _complete(self) -> Tls:
        # pymilvus drops a client's certificate without a word unless all three are there.
        if (self.cert_file or self.key_file) and not (self.cert_file and self.key_file and self.ca_file):
            raise ValueError("a client's certificate needs cert_file, key_file and ca_file together")
        return self


class Config(BaseModel):
    """The section ``[milvus]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(
        default="var/milvus",
        description="A server, http(s)://host:port, or a path: the data folder of a Milvus Lite that the daemon runs.",
    )
    token: SecretStr | None = Field(default=None, description="A token or API key; or user and password.")
    user: str = Field(default="", description="User name, together with password.")
    password: SecretStr | None = Field(default=None, description="The user's password.")
    db_name: str = Field(default="", description="The database; empty: the default one.")
    tls: Tls | None = Field(default=None, description="TLS options, for an https address.")
    timeout_seconds: float = Field(default=30.0, gt=0, le=3600, description="For every request.")
    connect_timeout_seconds: float = Field(default=10.0, gt=0, le=600, description="For connecting.")
    batch_bytes: int = Field(
        default=8 * MIB,
        ge=MIB // 16,
        le=60 * MIB,
        description="The most bytes of one request; servers take 64 MiB.",
    )
    batch_rows: int = Field(default=1000, ge=1, le=16384, description="The most rows that one request carries.")
    consistency: Literal["Strong", "Bounded", "Eventually"] = Field(
        default="Bounded", description="Of searches. What the daemon asks for its own bookkeeping is always Strong."
    )

    tombstone_days: float = Field(
        default=30.0,
        gt=0,
        description="How long deletes are remembered for other members: longer than topics keep records.",
    )

    @field_validator("uri")
    @classmethod
    def _known_form(cls, uri: str) -> str:
        if "://" not in uri:
            if not uri:
                raise ValueError("neither a path nor an address")
            if re.fullmatch(r"[\w.-]+:\d+", uri):
                raise ValueError(
                    f"is that a server? then http://{uri} or https://{uri}; a folder of that name: ./{uri}"
                )
            return uri
        parts = urlsplit(uri)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("a server's address is http://host:port or https://host:port")
        if parts.username or parts.password:
            raise ValueError("keep the user and the password in keys of their own, addresses are shown in messages")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("an address ends after the port; name the database with db_name")
        return uri

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if bool(self.user) != (self.password is not None):
            raise ValueError("user and password belong together")
        if self.user and self.token is not None:
            raise ValueError("either token, or user and password")
        if self.tls is not None and not self.uri.startswith("https://"):
            raise ValueError("tls needs an https address")
        return self

    @property
    def path(self) -> Path | None:
        """The data folder of Milvus Lite, or None where ``uri`` is a server's address."""
        return None if "://" in self.uri else Path(self.uri)


class Capabilities(NamedTuple):
    """What the server at the other end can do, read off its version."""

    name: str
    """As the server says it."""
    lite: bool
    sparse: bool
    """Sparse vectors, and more than one vector field in a collection."""
    nullable: bool
    partial_update: bool
    full_text: bool
    """Whether it fills sparse fields from text itself (BM25)."""
    inverted: bool
    """Whether INVERTED indexes are worth creating. On Lite they exist and save nothing (measured)."""

    @classmethod
    def of(cls, version: str) -> Capabilities:
        """Read a version: ``v2.3.5-lite``, ``2.6.1``, ``milvus_lite-3.2.2``. One without numbers counts as new."""
        # The package of the real server 2.3.5 calls itself "v2.3.5-lite" and is none.
        lite = version.startswith("milvus_lite")
        found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
        number = tuple(int(part or 0) for part in found.groups()) if found else (99, 0, 0)
        return cls(
            name=version,
            lite=lite,
            sparse=lite or number >= (2, 4, 0),
            nullable=lite or number >= (2, 5, 0),
            partial_update=lite or number >= (2, 6, 2),
            full_text=lite or number >= (2, 5, 0),
            inverted=not lite and number >= (2, 4, 0),
        )


class Connection:
    """A connection that is made at the first call and made again when it breaks. Safe to call from several threads.

    Args:
        config: The section ``[milvus]``.
        uri_of: Where the server is now, asked before every call: Milvus Lite is started again, on another port, when
            it has died. Not given: ``config.uri``.
        observe: Is told how long each operation took, in seconds, failed ones too.
    """

    def __init__(
        self,
        config: Config,
        *,
        uri_of: Callable[[], str] | None = None,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        if uri_of is None and config.path is not None:
            raise ValueError("a path needs uri_of: the address of the Milvus Lite that serves it")
        self.config = config
        self._uri_of = uri_of if uri_of is not None else lambda: config.uri
        self._observe = observe
        self._lock = threading.Lock()
        self._client: MilvusClient | None = None
        self._uri = ""
        self._capabilities: Capabilities | None = None
        self._closed = False

    def call(
        self,
        operation: str,
        collection: str | None = None,
        *,
        doing: str,
        request: Request = Request.READ,
        **arguments: object,
    ) -> Any:  # noqa: ANN401 - each operation of MilvusClient answers in its own type
        """Call a method of MilvusClient, with a deadline, mended once where that can help.

        Args:
            operation: The method: ``upsert``, ``query``, ``describe_collection``, …
            collection: Its first argument, where it has one.
            doing: What this is about, for messages.
            request: What an error about the input means.
            arguments: The method's other arguments.

        Raises:
            IngestError: By ``verdict``.
        """
        try:
            return self._attempt(operation, collection, arguments)
        except Exception as error:
            mend = remedy(error)
            if mend is None or collection is None:
                raise verdict(error, doing=doing, request=request) from error
        if mend is Mend.LOAD:
            self.load(collection)
        else:
            self.forget_schemas()
        try:
            return self._attempt(operation, collection, arguments)
        except Exception as error:
            raise verdict(error, doing=doing, request=request) from error

    def load(self, collection: str) -> None:
        """Load a collection and wait until it is loaded.

        Raises:
            IngestError: By ``verdict``; UnavailableError after ``LOAD_SECONDS``.
        """
        doing = f"loading {collection}"
        try:
            # Not the client's own waiting: its deadline for each question would be that of the whole wait.
            # Lite loads before it answers, though, and after a restart it may have an index to build.
            long = {"timeout": LOAD_SECONDS} if self.config.path is not None else {}
            self._attempt("load_collection", collection, {"_async": True, **long})
            until = time.monotonic() + LOAD_SECONDS
            while not (loaded := self._loaded(collection)) and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)
        except Exception as error:
            # No SETUP: Lite answers a full disk, on which it cannot build an index, as it answers all else, with 1.
            raise verdict(error, doing=doing, request=Request.KEYS) from error
        if not loaded:
            raise UnavailableError(DEPENDENCY, f"{doing}: not loaded after {LOAD_SECONDS:g} s")

    def capabilities(self) -> Capabilities:
        """Return what the server can do; asked once for every connection."""
        known = self._capabilities
        if known is None:
            version = self.call("get_server_version", doing="asking for the version", request=Request.KEYS)
            known = self._capabilities = Capabilities.of(str(version))
        return known

    @staticmethod
    def forget_schemas() -> None:
        """Empty pymilvus's cache of schemas: the next request asks the server again."""
        from pymilvus.client.cache import GlobalCache  # noqa: PLC0415 - slow to import, and by now imported

        GlobalCache.schema.clear()

    def close(self) -> None:
        """Close the connection. A call that is under way on another thread ends with UnavailableError."""
        with self._lock:
            self._closed = True
            self._drop()

    def _loaded(self, collection: str) -> bool:
        from pymilvus.client.types import LoadState  # noqa: PLC0415 - slow to import, and by now imported

        state = self._attempt("get_load_state", collection, {})["state"]
        return bool(state == LoadState.Loaded)

    def _attempt(self, operation: str, collection: str | None, arguments: dict[str, object]) -> Any:  # noqa: ANN401
        client = self._connected()
        started = time.monotonic()
        try:
            method = getattr(client, operation)
            named = {"timeout": self.config.timeout_seconds, "retry_on_rate_limit": False, **arguments}
            return method(**named) if collection is None else method(collection, **named)
        finally:
            if self._observe is not None:
                self._observe(operation, time.monotonic() - started)

    def _connected(self) -> MilvusClient:
        uri = self._uri_of()
        with self._lock:
            if self._closed:
                raise UnavailableError(DEPENDENCY, "the connection to Milvus is closed")
            if self._client is None or uri != self._uri:
                self._drop()
                self._client = self._connect(uri)
                self._uri = uri
            return self._client

    def _connect(self, uri: str) -> MilvusClient:
        import_pymilvus()
        from pymilvus import MilvusClient  # noqa: PLC0415 - takes most of a second

        config = self.config
        started = time.monotonic()
        try:
            client = MilvusClient(
                uri=uri,
                token=config.token.get_secret_value() if config.token else "",
                user=config.user,
                password=config.password.get_secret_value() if config.password else "",
                db_name=config.db_name,
                timeout=config.connect_timeout_seconds,
                dedicated=True,
                **_channel(config),
            )
        except Exception as error:
            raise verdict(error, doing=f"connecting to {uri}", request=Request.READ) from error
        finally:
            if self._observe is not None:
                self._observe("connect", time.monotonic() - started)
        # Called before each of its retries; what it raises ends the call. It has no option for that.
        client._handler._on_rpc_error = _raise  # noqa: SLF001
        return client

    def _drop(self) -> None:
        client, self._client, self._capabilities = self._client, None, None
        if client is not None:
            client.close()


def import_pymilvus() -> None:
    """Import pymilvus without what it does on import: it reads ``.env`` files and installs log handlers.

    Its error log goes too: it prints a traceback for every failed call, and every one of them is raised as well.
    """
    with _importing:
        with _environment("PYTHON_DOTENV_DISABLED", "1"):
            lean.import_module("pymilvus")  # takes half a second, and only what needs it should pay
        for name in ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET if "." in name else logging.WARNING)
        for name in ("pymilvus.decorators", "pymilvus.client.connection_manager"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _raise(error: Exception) -> NoReturn:
    raise error


def _channel(config: Config) -> dict[str, object]:
    """Return what pymilvus passes on to its gRPC channel."""
    # By itself gRPC waits two minutes before it connects again, in the end: an outage would be that much longer.
    channel = {"grpc.initial_reconnect_backoff_ms": 1000, "grpc.max_reconnect_backoff_ms": RECONNECT_MS}
    if config.path is not None:
        # gRPC follows http_proxy even to the loopback address, and no proxy could reach our own child.
        channel["grpc.enable_http_proxy"] = 0
    options: dict[str, object] = {"grpc_options": channel}
    if config.tls is None:
        return options
    files = config.tls
    if files.cert_file and files.key_file and files.ca_file:
        options["client_pem_path"] = str(files.cert_file)
        options["client_key_path"] = str(files.key_file)
        options["ca_pem_path"] = str(files.ca_file)
    elif files.ca_file:
        options["server_pem_path"] = str(files.ca_file)
    if files.server_name:
        options["server_name"] = files.server_name
    return options
