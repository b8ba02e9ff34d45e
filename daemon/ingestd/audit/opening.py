"""Opens what an audit needs: the state to be read, Milvus as it is served now, and no model.

A collection is read by the columns that the configuration declares; which vectors it has does not matter here, so that
an audit takes no part of the machine that the models need.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ingestd.audit.looking import Feeds, Looker
from ingestd.errors import ConfigError, FatalError
from ingestd.milvus import catalog
from ingestd.milvus.schema import COLUMNS, PROPERTY_ID, TOMBSTONES, Column, Wanted
from ingestd.parts import SystemClock, feeds, is_shared, milvus, relies_on_ledger
from ingestd.sinks.milvus import MilvusSink
from ingestd.store.opening import DATABASE
from ingestd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ingestd.audit.looking import Past
    from ingestd.config import Settings
    from ingestd.milvus.client import Connection
    from ingestd.milvus.schema import Found
    from ingestd.model import DocumentKey, Entry, Held, Seen, StoredRow
    from ingestd.ports import Source, Survey


class NoPast:
    """The state of a member that has none, or that has not run yet (``looking.Past``)."""

    def entries(self, keys: Sequence[DocumentKey]) -> Mapping[DocumentKey, Entry]:
        """Return nothing."""
        del keys
        return {}

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """Yield nothing."""
        del source, collection
        return iter(())

    def seen_of(self, source: str, collection: str, documents: Sequence[str]) -> Mapping[str, Seen]:
        """Return nothing."""
        del source, collection, documents
        return {}

    def parked_of(self, collection: str, documents: Sequence[str]) -> frozenset[str]:
        """Return nothing."""
        del collection, documents
        return frozenset()

    def letters_of(self, collection: str, documents: Sequence[str]) -> frozenset[str]:
        """Return nothing."""
        del collection, documents
        return frozenset()


class NoCollection:
    """A collection that is not there (``looking.Rows``).

    Args:
        collection: Its name.
    """

    def __init__(self, collection: str) -> None:
        self.collection = collection

    def stored(self) -> Iterator[StoredRow]:
        """Yield nothing."""
        return iter(())

    def held(self, documents: Sequence[str], *, closely: bool = False) -> Mapping[str, Held]:
        """Return nothing."""
        del documents, closely
        return {}


def feeds_of(settings: Settings, collection: str) -> Feeds:
    """Return who writes a collection."""
    sources = frozenset(name for name, fed in feeds(settings) if fed == collection)
    own = frozenset(name for name in sources if not getattr(settings.sources[name].config, "shared", False))
    return Feeds(sources, own, is_shared(settings, collection))


@contextmanager
def lookers(settings: Settings, collections: Sequence[str], sources: Mapping[str, Source]) -> Iterator[list[Looker]]:
    """Open collections to be looked at: beside a running daemon, or while none runs.

    Args:
        settings: The configuration.
        collections: Which.
        sources: All that are configured, none of them running.

    Raises:
        ConfigError: There is no such collection in the configuration, or it has other columns.
        FatalError: The state is about another collection than is there now.
        UnavailableError: Milvus does not answer.
    """
    with _past(settings) as store, _connection(settings) as connection:
        yield [_looker(settings, name, store, connection, sources) for name in collections]


def _looker(
    settings: Settings,
    collection: str,
    store: SqliteStore | None,
    connection: Connection | None,
    sources: Mapping[str, Source],
) -> Looker:
    who = feeds_of(settings, collection)
    surveys: dict[str, Survey] = {}
    for name in sorted(who.sources):
        survey = sources[name].survey()
        if survey is not None:
            surveys[name] = survey
    target = _readable(settings, collection)
    found = None if connection is None else catalog.find(connection, collection)
    past = _bound(settings, collection, store, found)
    if connection is None or found is None:
        return Looker(NoCollection(collection), past, who, surveys)
    _compare(target, found)
    shared = who.shared and catalog.find(connection, TOMBSTONES) is not None
    return Looker(MilvusSink(connection, target, shared=shared), past, who, surveys)


def _readable(settings: Settings, collection: str) -> Wanted:
    """Return a collection's columns, as far as rows are read."""
    declared = (
        Column(name, field.type.value, nullable=field.nullable, max_length=field.max_length)
        for name, field in settings.collections[collection].fields.items()
    )
    return Wanted(collection, columns=(*COLUMNS, *declared), indexes=(), spaces={})


def _compare(target: Wanted, found: Found) -> None:
    """Raise ConfigError where a collection lacks what is to be read, or is not of our making."""
    missing = [column.name for column in target.columns if column.name not in {there.name for there in found.columns}]
    if PROPERTY_ID not in found.properties or missing:
        lacks = f"it has no {', '.join(missing)}" if missing else "ingestd did not make it"
        raise ConfigError(
            f"collections.{target.collection}: the collection cannot be audited, {lacks}; see ingestd schema plan"
        )


def _bound(settings: Settings, collection: str, store: SqliteStore | None, found: Found | None) -> Past:
    """Return the state, where it is about the very collection that is there.

    Raises:
        FatalError: It is about another one, or knows of none.
    """
    bound = None if store is None else store.binding(collection)
    identity = None if found is None else found.properties.get(PROPERTY_ID)
    if store is not None and (found is None or bound == identity):
        return store
    if found is not None and relies_on_ledger(settings, collection) and not settings.stateless:
        raise FatalError(
            f"the state in {settings.state_dir} is not about the collection {collection} as it is now: one of the two "
            "was lost, or made anew. The next ingestd run brings them together; audit again after that"
        )
    return NoPast()


@contextmanager
def _past(settings: Settings) -> Iterator[SqliteStore | None]:
    """Open the state to be read; None: there is none."""
    if settings.stateless or not (settings.state_dir / DATABASE).exists():
        yield None
        return
    store = SqliteStore.read_only(settings.state_dir, clock=SystemClock())
    try:
        yield store
    finally:
        store.close(clean=False)


@contextmanager
def _connection(settings: Settings) -> Iterator[Connection | None]:
    """Open Milvus; None: there is no folder for a Milvus Lite yet, and none is made for a look."""
    path = settings.milvus.path
    if path is not None and not path.exists():
        yield None
        return
    with milvus(settings) as connection:
        yield connection
