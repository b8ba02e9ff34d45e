"""The parts that the daemon and the commands share: the state, Milvus, the models, and a collection's wanted shape.

``flow`` joins them to a daemon; ``search``, ``check`` and the other commands open the few that they need.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ingestd.devices.pool import Pool
from ingestd.embedders._tokenizer import WhitespaceTokenizer
from ingestd.errors import ConfigError, UnavailableError
from ingestd.extractors._isolated import IsolatedExtraction
from ingestd.milvus.client import Connection, import_pymilvus
from ingestd.milvus.lite import Lite, running
from ingestd.milvus.schema import VectorSpec, Wanted, full_text, wanted
from ingestd.model import Fingerprints, Role, VectorKind, canonical_json
from ingestd.store import vectors
from ingestd.store.lock import in_use
from ingestd.store.sqlite import SqliteStore
from ingestd.store.vectors import VectorCache

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ingestd.config import Settings
    from ingestd.metrics import EmbeddingMetrics
    from ingestd.model import ModelInfo, Seen, Vectors
    from ingestd.ports import Clock, DevicePool, Embedder, Extraction, Tokenizer
    from ingestd.store.spending import Spending

ADDRESS_FILE = "milvus.json"
"""In the state directory: where the daemon's Milvus Lite is, for searches from other processes."""
_PRIVATE = "ingestd-member-"
_LEFT_SECONDS = 60.0
WINDOW = 512
"""Chunks that go through a model of this machine at a time: many batches, so that their texts are sorted by length."""
LINGER, API_LINGER = 0.005, 0.05
"""Seconds that an incomplete window waits for more: for a model of this machine, and for one behind an API."""
TURN = 1.0
"""Seconds at a model on this machine: about as long as a batch may delay what somebody has just changed."""
LOOK_SECONDS = 60.0
"""Between two looks whether a new day has begun: a clock may be put right meanwhile."""
_KEY = re.compile(r"[a-z_]+: ")
"""How a fault that names a key begins."""


class SystemClock:
    """The machine's clock (``ports.Clock``)."""

    def time(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds of a clock that only runs forward."""
        return time.monotonic()


class NoPast:
    """The past of a source that has none, or whose state cannot be read (``ports.SeenStore``)."""

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """Yield nothing."""
        del source, collection
        return iter(())

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """Yield nothing."""
        del source, collection
        return iter(())

    def waiting(self, owned: Collection[tuple[str, str]]) -> int:
        """Return that nothing waits."""
        del owned
        return 0

    def letter(self, source: str, document_id: str, collection: str) -> None:
        """Return nothing."""
        del source, document_id, collection

    def confirmed(self, source: str) -> frozenset[str]:
        """Return that nobody confirmed anything."""
        del source
        return frozenset()


@contextmanager
def private_state() -> Iterator[Path]:
    """Make a state directory for one run, for a member that has no disk of its own; what killed ones left is removed.

    The retry queue's copies and the ledger are caches there: records come from their topics again, and Milvus is asked.
    """
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PRIVATE}*"):
        # One that was made just now may not be locked yet.
        if time.time() - left.stat().st_mtime > _LEFT_SECONDS and not in_use(left):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PRIVATE, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def open_store(settings: Settings, clock: Clock) -> SqliteStore:
    """Lock the state directory and open the state in it."""
    return SqliteStore.open(
        settings.state_dir,
        clock=clock,
        dead_letter_bytes=settings.dead_letters.total_bytes,
        keep_bytes=settings.dead_letters.keep_bytes,
        max_dead_letters=settings.dead_letters.most,
    )


def feeds(settings: Settings) -> set[tuple[str, str]]:
    """Return which configured source feeds which collection."""
    return {(name, plugin.config.collection) for name, plugin in settings.sources.items()}  # type: ignore[attr-defined]


def is_shared(settings: Settings, collection: str) -> bool:
    """Return whether other processes may write a collection too: members of a group, on one server.

    A Milvus Lite is one daemon's own.
    """
    several = [plugin.config for plugin in settings.sources.values() if getattr(plugin.config, "shared", False)]
    feeds_it = any(config.collection == collection for config in several)  # type: ignore[attr-defined]
    return settings.milvus.path is None and feeds_it


def relies_on_ledger(settings: Settings, collection: str) -> bool:
    """Return whether any source of a collection takes the ledger's word for what an earlier run wrote."""
    configs = [plugin.config for plugin in settings.sources.values()]
    mine = [config for config in configs if config.collection == collection]  # type: ignore[attr-defined]
    return not is_shared(settings, collection) or any(not getattr(config, "shared", False) for config in mine)


def strangers(settings: Settings, store: SqliteStore) -> list[tuple[str, str, int]]:
    """Return (source, collection, documents) of documents that no configured source feeds any more."""
    configured = feeds(settings)
    return [known for known in store.sources() if known[2] and known[:2] not in configured]


@contextmanager
def own_milvus(
    settings: Settings,
    observe: Callable[[str, float], None] | None = None,
    on_leave: Callable[[Callable[[], None]], None] = lambda _close: None,
) -> Iterator[Connection]:
    """Open Milvus as the daemon does: a Lite of its own, which others can search through, or a server.

    Args:
        settings: The configuration.
        observe: Is told how long each operation took, in seconds.
        on_leave: Is told what ends the waits in here from another thread.
    """
    with ExitStack() as stack:
        path = settings.milvus.path
        uri_of = None
        if path is not None:
            lite = Lite(path, settings.state_dir / ADDRESS_FILE)
            stack.callback(lite.close)
            on_leave(lite.close)
            _start(lite)
            uri_of = lite.ensure
        connection = Connection(settings.milvus, uri_of=uri_of, observe=observe)
        stack.callback(connection.close)
        on_leave(connection.close)
        yield connection


def _start(lite: Lite) -> str:
    """Start a Milvus Lite, and import the client meanwhile: each takes most of a second. Return the address."""
    importing = threading.Thread(target=import_pymilvus, name="import", daemon=True)
    importing.start()
    address = lite.start()
    importing.join()
    return address


@contextmanager
def milvus(settings: Settings, address_file: Path | None = None) -> Iterator[Connection]:
    """Open Milvus as a command does: a running daemon's Lite, one of our own for a while, or a server.

    Args:
        settings: The configuration.
        address_file: Says where a running daemon's Lite is; None: the one in the state directory.
    """
    with ExitStack() as stack:
        path = settings.milvus.path
        uri_of: Callable[[], str] | None = None
        if path is not None:
            address = running(address_file or settings.state_dir / ADDRESS_FILE)
            if address is None:
                # Its address is nobody else's business: it ends with this command.
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ingestd-"))
                lite = Lite(path, Path(folder) / ADDRESS_FILE)
                stack.callback(lite.close)
                address = _start(lite)
            found = address

            def uri_of() -> str:
                return found

        connection = Connection(settings.milvus, uri_of=uri_of)
        stack.callback(connection.close)
        yield connection


@contextmanager
def device_pool(settings: Settings, *, spread: bool = False) -> Iterator[Pool]:
    """Make the pool of device workers; each starts when a model is first asked for something.

    Args:
        settings: The settings.
        spread: Whether models are on all of their devices, as ingestion has them; a question needs one.
    """
    embedding = settings.embedding
    pool = Pool(load_timeout=embedding.load_timeout_seconds, embed_timeout=embedding.timeout_seconds, spread=spread)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def vector_cache(settings: Settings) -> Iterator[VectorCache | None]:
    """Open the cache of vectors that is configured, or remove what is there of one that is not any more."""
    path = settings.state_dir / vectors.FILE
    if settings.stateless:
        yield None
        return
    if not settings.embedding.cache_bytes:
        with suppress(OSError):  # it takes some disk, and does no harm
            vectors.remove(path)
        yield None
        return
    cache = VectorCache.open(path, settings.embedding.cache_bytes)
    try:
        yield cache
    finally:
        cache.close()


class MeasuredEmbedder:
    """An embedder whose calls are counted, and paid for within a day's limit (``ports.Embedder``).

    One that is paid for says so by ``tokens_used``, what it used since it was made. The limit is looked at before a
    call, so a day may cost one window more. Queries pass: a search is no intake.

    Args:
        embedder: The embedder.
        metrics: Takes what is counted.
        spending: What was paid today; None: nothing is kept.
        price: For a million tokens.
        most: The most that a day may cost; None: no limit.
    """

    def __init__(
        self,
        embedder: Embedder,
        metrics: EmbeddingMetrics,
        spending: Spending | None = None,
        price: float | None = None,
        most: float | None = None,
    ) -> None:
        self.name = embedder.name
        self._embedder = embedder
        self._metrics = metrics
        self._spending = spending
        self._price = price
        self._most = most
        self._counts = threading.Lock()
        self._tokens = self._cut = 0
        """Counted so far."""
        if spending is not None and price is not None:
            # Asked for when it is read: a new day begins without a call.
            metrics.cost_today.labels(embedder=self.name).set_function(lambda: spending.today(embedder.name))

    @property
    def is_remote(self) -> bool:
        """Whether a provider does the work, and may be paid for it."""
        return hasattr(self._embedder, "tokens_used")

    def info(self) -> ModelInfo:
        """Return what the model is."""
        return self._embedder.info()

    def embed(self, texts: Sequence[str], role: Role, kinds: AbstractSet[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind."""
        if role is Role.DOCUMENT:
            self._within_limit()
        began = time.monotonic()
        try:
            vectors = self._embedder.embed(texts, role, kinds)
        finally:
            self._account()  # also of a call that failed: what it got until then was paid for
        self._metrics.batch_seconds.labels(embedder=self.name).observe(time.monotonic() - began)
        self._metrics.batch_texts.labels(embedder=self.name).observe(len(texts))
        self._metrics.texts.labels(embedder=self.name).inc(len(texts))
        return vectors

    def close(self) -> None:
        """Let go of the model."""
        self._embedder.close()

    def _within_limit(self) -> None:
        """Refuse to spend more than a day may cost.

        Raises:
            UnavailableError: It was spent.
        """
        if self._spending is None or self._most is None:
            return
        spent = self._spending.today(self.name)
        if spent >= self._most:
            said = (
                f"{self.name} has cost {spent:.4g} today, and embedders.{self.name}.max_cost_per_day is "
                f"{self._most:g}: intake goes on at midnight (UTC), or with a higher limit (SIGHUP)"
            )
            wait = min(self._spending.until_tomorrow(), LOOK_SECONDS)
            raise UnavailableError(f"budget:{self.name}", said, wait=wait, refused=True)

    def _account(self) -> None:
        """Count what the embedder used since it was last looked at."""
        with self._counts:
            used, cut = getattr(self._embedder, "tokens_used", 0), getattr(self._embedder, "texts_cut", 0)
            tokens, self._tokens = used - self._tokens, used
            more, self._cut = cut - self._cut, cut
        if more:
            self._metrics.texts_cut.labels(embedder=self.name).inc(more)
        if not tokens:
            return
        self._metrics.tokens.labels(embedder=self.name).inc(tokens)
        if self._price is not None:
            cost = tokens / 1_000_000 * self._price
            self._metrics.cost.labels(embedder=self.name).inc(cost)
            if self._spending is not None:
                self._spending.add(self.name, cost)


def measured(settings: Settings, embedder: Embedder, metrics: EmbeddingMetrics, spending: Spending) -> MeasuredEmbedder:
    """Return an embedder whose calls are counted, by the price and the limit that are configured for it."""
    config = settings.embedders[embedder.name].config
    price, most = getattr(config, "price_per_million_tokens", None), getattr(config, "max_cost_per_day", None)
    return MeasuredEmbedder(embedder, metrics, spending, price, most)


@contextmanager
def keyed(name: str) -> Iterator[None]:
    """Have the faults that an embedder finds in its own settings begin with their keys' paths."""
    try:
        yield
    except ConfigError as error:
        path = f"embedders.{name}"
        faults = (
            fault if fault.startswith(path) else f"{path}{'.' if _KEY.match(fault) else ': '}{fault}"
            for fault in error.faults
        )
        raise ConfigError(*faults) from error


def build_embedder(settings: Settings, name: str, pool: DevicePool) -> Embedder:
    """Make an embedder.

    Raises:
        ConfigError: Its model is not there, or cannot be used.
    """
    with keyed(name):
        embedder: Embedder = settings.embedders[name].build(name, pool)
        return embedder


def build_embedders(settings: Settings, pool: Pool) -> dict[str, Embedder]:
    """Make the embedders that a collection uses."""
    return {name: build_embedder(settings, name, pool) for name in settings.used_embedders()}


@contextmanager
def models(settings: Settings) -> Iterator[dict[str, Embedder]]:
    """Make the embedders that a collection uses, on workers of their own."""
    with device_pool(settings) as pool, ExitStack() as stack:
        embedders = build_embedders(settings, pool)
        for embedder in embedders.values():
            stack.callback(embedder.close)
        yield embedders


def extraction_of(settings: Settings) -> IsolatedExtraction:
    """Return the extraction that the configuration asks for; its workers start when they are needed.

    Raises:
        ConfigError: Its extractors do not go together.
    """
    return IsolatedExtraction(
        [(plugin.module, plugin.config) for plugin in settings.extractors.values()],
        workers=settings.extraction.workers,
        memory_bytes=settings.extraction.memory_bytes,
        cpu_seconds=settings.extraction.cpu_seconds,
        wall_seconds=settings.extraction.wall_seconds,
        max_bytes=settings.limits.max_bytes,
        max_text=settings.limits.max_text,
    )


def kind_of(settings: Settings, collection: str, field: str, info: ModelInfo) -> VectorKind:
    """Return which of a model's kinds of vectors a field holds.

    Raises:
        ConfigError: The model has not that kind, or has several and the field does not say.
    """
    wish = settings.collections[collection].vectors[field].output
    kinds = sorted(info.kinds)
    if wish is None and len(kinds) > 1:
        wish = next((kind for kind in kinds if kind.value == field), None)
    found = wish or kinds[0]
    if found not in info.kinds or (wish is None and len(kinds) > 1):
        raise ConfigError(
            f"collections.{collection}.vectors.{field}.output: the embedder has {' and '.join(kinds)} vectors; name one"
        )
    return found


def schema_of(settings: Settings, collection: str, infos: Mapping[str, ModelInfo]) -> Wanted:
    """Return the collection as the configuration and the models want it."""
    configured = settings.collections[collection]
    specs = {}
    for name, vector in configured.vectors.items():
        if vector.embedder is None:
            specs[name] = full_text(vector)
            continue
        info = infos[vector.embedder]
        kind = kind_of(settings, collection, name, info)
        specs[name] = VectorSpec(vector, kind, info.dimension if kind is VectorKind.DENSE else None, info.space)
    return wanted(collection, specs, configured.fields)


def window_of(settings: Settings, collection: str) -> int:
    """Return the most chunks of a collection that go through its models at a time."""
    if settings.embedding.window is not None:
        return settings.embedding.window
    configs = [settings.embedders[name].config for name in settings.collections[collection].embedders()]
    wishes: list[int] = [getattr(config, "window", 0) for config in configs]
    # A model on this machine beside one behind an API: its worker may not be silent for as long as that takes.
    return max([WINDOW, *wishes]) if wishes and all(wishes) else WINDOW


def turn_of(settings: Settings, collection: str) -> float | None:
    """Return the seconds that chunks of a collection should be at a model before what is more urgent gets its turn.

    None: as long as it takes. An API answers several requests at once, and wants them full.
    """
    configs = (settings.embedders[name].config for name in settings.collections[collection].embedders())
    return None if any(hasattr(config, "window") for config in configs) else TURN


def linger_of(settings: Settings, collection: str) -> float:
    """Return the seconds that an incomplete window of a collection waits for more chunks.

    While a model is at work the next window fills by itself. So a model on this machine is given what there is: to wait
    would do no more than delay a document that comes alone. Requests to an API are counted, and worth filling.
    """
    if settings.embedding.linger_seconds is not None:
        return settings.embedding.linger_seconds
    configs = (settings.embedders[name].config for name in settings.collections[collection].embedders())
    return max((API_LINGER if hasattr(config, "window") else LINGER for config in configs), default=LINGER)


def tokenizer_of(settings: Settings, collection: str) -> Tokenizer:
    """Return the tokenizer that counts a collection's chunks: of its embedders, the one that has the least room."""
    configured = settings.collections[collection]
    names = configured.embedders() if configured.tokenizer is None else (configured.tokenizer,)
    if not names:
        return WhitespaceTokenizer()  # full text alone: words are counted, and nothing bounds them
    tokenizers: list[Tokenizer] = []
    for name in sorted(names):
        with keyed(name):
            tokenizers.append(settings.embedders[name].config.tokenizer())  # type: ignore[attr-defined]
    return min(tokenizers, key=lambda tokenizer: tokenizer.limit or float("inf"))


def fingerprints_of(settings: Settings, collection: str, tokenizer: Tokenizer, extraction: Extraction) -> Fingerprints:
    """Return what a collection's rows, and its dead letters, rest on."""
    configured, limits = settings.collections[collection], settings.limits
    hasher = hashlib.sha256(settings.chunkers[collection].identity())
    hasher.update(
        canonical_json([tokenizer.digest, tokenizer.limit, extraction.fingerprint, sorted(configured.fields)])
    )
    processing = hasher.hexdigest()
    for name in sorted(configured.embedders()):
        hasher.update(settings.embedders[name].identity())
    bounds = [limits.max_bytes, limits.max_text, limits.max_chunks, settings.extraction.model_dump(mode="json")]
    hasher.update(canonical_json([bounds, configured.model_dump(mode="json")]))
    return Fingerprints(processing, hasher.hexdigest())
