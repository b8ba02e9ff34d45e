"""Search: what a person asks of a collection, by meaning, by weighted words, or by both.

Both is reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a chunk's score is the sum of
``1 / (60 + rank)`` over the lists that it is in. Scores of different vectors do not compare; ranks do. The fusion is
done here, so that it is the same on servers that have no hybrid search of their own.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ingestd.devices.check import check
from ingestd.errors import ConfigError, UnavailableError
from ingestd.model import ModelInfo, Role, SparseVectors, VectorKind
from ingestd.ops.control import SOCKET_NAME, NotRunning, call
from ingestd.parts import kind_of, milvus, models, schema_of
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ingestd.config import Settings
    from ingestd.model import Hit, Json, Vectors
    from ingestd.ports import Embedder

RANK_CONSTANT = 60
"""Of the fusion; the paper's own."""
DEPTH = 100
"""The least number of hits of each list that are fused."""
BUSY = 3.0
"""Seconds that a running daemon has to embed a query, before the model is loaded here."""


class Mode(StrEnum):
    """Which vectors answer."""

    DENSE = "dense"
    SPARSE = "sparse"
    HYBRID = "hybrid"


class QueryEmbedder(Protocol):
    """Turns queries into vectors."""

    def info(self) -> ModelInfo:
        """Return what the model is."""
        ...

    def embed(self, texts: Sequence[str], role: Role, kinds: frozenset[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text for each kind."""
        ...


class Searcher:
    """Searches one collection.

    Args:
        sink: The collection.
        fields: The vector fields with their kinds and what embeds their queries; None: Milvus takes the words.
    """

    def __init__(self, sink: MilvusSink, fields: Mapping[str, tuple[VectorKind, QueryEmbedder | None]]) -> None:
        self._sink = sink
        self._fields = fields

    def modes(self) -> list[Mode]:
        """Return what can be asked for, the default first."""
        kinds = {kind for kind, _embedder in self._fields.values()}
        single = [Mode(kind.value) for kind in VectorKind if kind in kinds]
        return [Mode.HYBRID, *single] if len(self._fields) > 1 else single

    def search(self, queries: Sequence[str], mode: Mode | None, limit: int) -> list[list[Hit]]:
        """Return the best chunks for each query, best first.

        Args:
            queries: What to look for; nothing is found for one that is blank.
            mode: Which vectors answer; None: hybrid where there are several.
            limit: The most hits of a query.

        Raises:
            ConfigError: The collection has no such vectors.
        """
        wish = mode or self.modes()[0]
        if wish not in self.modes():
            raise ConfigError(f"--mode {wish}: {self._sink.collection} has {', '.join(self.modes())}")
        names = [name for name, (kind, _embedder) in self._fields.items() if wish in {Mode.HYBRID, Mode(kind.value)}]
        # A model has a vector for an empty text too, and everything would be near to it.
        asked = [query for query in queries if query.strip()]
        found = iter(self._best(names, asked, limit) if asked else ())
        return [next(found) if query.strip() else [] for query in queries]

    def _best(self, names: Sequence[str], queries: Sequence[str], limit: int) -> list[list[Hit]]:
        depth = limit if len(names) == 1 else max(limit, DEPTH)
        lists = [self._ask(name, queries, depth) for name in names]
        if len(lists) == 1:
            return [list(hits) for hits in lists[0]]
        return [fuse(ranked)[:limit] for ranked in zip(*lists, strict=True)]

    def _ask(self, name: str, queries: Sequence[str], limit: int) -> Sequence[Sequence[Hit]]:
        kind, embedder = self._fields[name]
        if embedder is None:
            return self._sink.match(name, queries, limit)
        vectors = embedder.embed(queries, Role.QUERY, frozenset({kind}))[kind]
        dimension = embedder.info().dimension if kind is VectorKind.DENSE else None
        check(vectors, kind, len(queries), dimension, role=Role.QUERY)
        return self._sink.search(name, vectors, limit)


def fuse(lists: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Return the hits of several ranked lists as one, by reciprocal rank fusion.

    Equal scores keep the order of the lists, so that the same question has the same answer.
    """
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranked in lists:
        for rank, hit in enumerate(ranked, start=1):
            scores[hit.id] = scores.get(hit.id, 0.0) + 1.0 / (RANK_CONSTANT + rank)
            hits.setdefault(hit.id, hit)
    best = sorted(scores, key=scores.__getitem__, reverse=True)
    return [replace(hits[chunk_id], score=scores[chunk_id]) for chunk_id in best]


class DaemonEmbedder:
    """A model of the running daemon, asked over its control socket: it is loaded already.

    While the model is at work on documents, a query is not made to wait for it: the model is then loaded here.

    Args:
        socket: The control socket.
        name: The embedder's name.
        info: What the daemon says of it.
        otherwise: The same model, loaded here when it is first asked for something.
    """

    def __init__(self, socket: Path, name: str, info: ModelInfo, otherwise: QueryEmbedder) -> None:
        self._socket = socket
        self._name = name
        self._info = info
        self._otherwise = otherwise

    def info(self) -> ModelInfo:
        """Return what the model is."""
        return self._info

    def embed(self, texts: Sequence[str], role: Role, kinds: frozenset[VectorKind]) -> Mapping[VectorKind, Vectors]:
        """Return one vector a text."""
        (kind,) = kinds
        arguments: dict[str, Json] = {"embedder": self._name, "texts": list(texts), "kind": kind.value}
        try:
            answer = cast("dict[str, Any]", call(self._socket, "embed", arguments, BUSY))
        except (NotRunning, UnavailableError):
            return self._otherwise.embed(texts, role, kinds)
        if kind is VectorKind.DENSE:
            return {kind: np.asarray(answer["dense"], np.float32).reshape(len(texts), -1)}
        block = SparseVectors(
            np.asarray(answer["indptr"], np.int64),
            np.asarray(answer["indices"], np.uint32),
            np.asarray(answer["values"], np.float32),
        )
        return {kind: block}


def _of_daemon(settings: Settings, embedders: Mapping[str, Embedder]) -> dict[str, QueryEmbedder]:
    """Return the embedders, those that a running daemon has loaded through it."""
    socket = settings.state_dir / SOCKET_NAME
    try:
        known = cast("dict[str, dict[str, Any]]", call(socket, "models", {}, BUSY))
    except (NotRunning, UnavailableError, ConfigError):
        known = {}
    found: dict[str, QueryEmbedder] = dict(embedders)
    for name, said in known.items():
        if name in embedders:
            kinds = frozenset(VectorKind(kind) for kind in said.pop("kinds"))
            found[name] = DaemonEmbedder(socket, name, ModelInfo(kinds=kinds, **said), embedders[name])
    return found


@contextmanager
def searcher(settings: Settings, collection: str) -> Iterator[Searcher]:
    """Open a collection for searching, through a running daemon's Milvus or one of our own.

    Raises:
        ConfigError: There is no such collection, or it was written with other models than are configured now.
    """
    if collection not in settings.collections:
        known = ", ".join(sorted(settings.collections)) or "none"
        raise ConfigError(f"there is no collection {collection!r} in the configuration; there is {known}")
    with milvus(settings) as connection, models(settings) as local:
        embedders = _of_daemon(settings, local)
        configured = settings.collections[collection]
        infos = {name: embedders[name].info() for name in configured.embedders()}
        sink = MilvusSink(connection, schema_of(settings, collection, infos))
        sink.prepare(create=False)
        yield Searcher(
            sink,
            {
                field: (VectorKind.SPARSE, None)
                if vector.embedder is None
                else (kind_of(settings, collection, field, infos[vector.embedder]), embedders[vector.embedder])
                for field, vector in configured.vectors.items()
            },
        )
