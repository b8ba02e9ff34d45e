"""Embed: new rows to vectors, in full batches across documents.

Many documents' rows are flattened into one run for the models, and regrouped behind it: a window of a document's rows
goes on as soon as it has its vectors, so a document of a million rows does not hold a million vectors. Texts that are
equal are embedded once, and those that a cache knows not at all. Every vector is checked before it goes on. A row that
a model cannot embed is found by halving, and fails its document alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ingestd.devices.check import check
from ingestd.model import Abandoned, Embedded, Outcome, Role, Stage, Verdict
from ingestd.ports import always
from ingestd.stages._failing import failed, isolate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ingestd.model import Chunked, DenseVector, Row, SparseVector, VectorKind, Vectors
    from ingestd.ports import Embedder, Patience, VectorCache

PROBE = ("Is anybody there?",)
LEAST = 64
"""Rows that go through a model at a time however slow it is: of fewer, less alike in length, more would be padding."""


@dataclass(frozen=True, slots=True)
class VectorField:
    """A vector field of the collection, and what fills it."""

    name: str
    kind: VectorKind
    embedder: Embedder
    dimension: int | None
    """None for sparse vectors."""
    space: str = ""
    """What a text's vector depends on beside the text."""


@dataclass(slots=True)
class _Progress:
    """A document on its way through the models."""

    chunked: Chunked
    done: list[Row] = field(default_factory=list)
    """Have their vectors, and have not gone on."""
    sent: int = 0
    """The number of rows that went on."""
    outcome: Outcome | None = None
    """Set when it failed."""


class _Piece(NamedTuple):
    document: _Progress
    row: Row


_Made: TypeAlias = "dict[tuple[str, int], Mapping[str, DenseVector | SparseVector]]"
"""By embedder and row (the object): the vectors by field."""


class Embed:
    """The third stage.

    Args:
        fields: The collection's vector fields.
        window: The most rows that go through the models at a time.
        seconds: How long they should take there at most: what is more urgent goes first in between. None: it does not
            matter.
        patience: Holds on to a batch while a model is away.
        cache: Has vectors that were made before; None: all are made.
        on_remembered: Called with an embedder's name and the number of texts that the cache had all vectors of.
    """

    def __init__(
        self,
        fields: Sequence[VectorField],
        *,
        window: int,
        seconds: float | None = None,
        patience: Patience,
        cache: VectorCache | None = None,
        on_remembered: Callable[[str, int], None] = lambda _embedder, _texts: None,
    ) -> None:
        self._fields = fields
        self._window = window
        self._seconds = seconds
        self._size = window if seconds is None else min(LEAST, window)
        """Rows that go through the models at a time."""
        self._costs: dict[str, float] = {}
        """By embedder: the seconds that it took for a text."""
        self._patience = patience
        self._cache = cache
        self._on_remembered = on_remembered
        self._by_embedder: dict[str, list[VectorField]] = {}
        for vector_field in fields:
            self._by_embedder.setdefault(vector_field.embedder.name, []).append(vector_field)

    def process(
        self, batch: Sequence[Chunked], flush: Callable[[], None] = always
    ) -> Iterator[Embedded | Abandoned | Outcome]:
        """Yield, for each document, its windows, or an outcome if a row cannot be embedded."""
        documents = []
        for chunked in batch:
            if chunked.event.lease is not None and chunked.event.lease.ended:
                yield Outcome(chunked.event, Verdict.RETURNED)  # vectors that nobody may write
            else:
                documents.append(_Progress(chunked))
        for document in documents:
            if not document.chunked.new:
                yield Embedded(document.chunked, (), first=True, last=True)
        pieces = [_Piece(document, row) for document in documents for row in document.chunked.new]
        done = 0
        while done < len(pieces):
            begun, size = done, self._size
            done = min(begun + size, len(pieces))
            run = [piece for piece in pieces[begun:done] if piece.document.outcome is None]
            if run:
                flush()
                yield from self._embed(run)

    def _embed(self, run: Sequence[_Piece]) -> Iterator[Embedded | Abandoned | Outcome]:
        made: _Made = {}
        for pieces, result in isolate(run, lambda some: self._vectors(some, made)):
            if isinstance(result, Exception):
                document = pieces[0].document
                event, content = document.chunked.event, document.chunked.extracted.content
                document.outcome = document.outcome or failed(event, Stage.EMBED, result, content)
                continue
            for (document, row), vectors in zip(pieces, result, strict=True):
                document.done.append(row.with_vectors(vectors))
        for document in {id(piece.document): piece.document for piece in run}.values():
            yield self._window_of(document)

    def wants(self) -> int:
        """Return how many rows should go through the models at a time."""
        return self._size

    def _pace(self, embedder: str, texts: int, seconds: float) -> None:
        """Take note of how long a model took: what is remembered, or waited for, says nothing of it."""
        if self._seconds is None:
            return
        self._costs[embedder] = seconds / texts
        fit = int(self._seconds / max(sum(self._costs.values()), 1e-6))
        # Texts differ in length: it grows slowly, and shrinks at once.
        self._size = min(self._window, max(LEAST, min(fit, 2 * self._size)))

    @staticmethod
    def _window_of(document: _Progress) -> Embedded | Abandoned | Outcome:
        if document.outcome is not None:
            return Abandoned(document.chunked, document.outcome) if document.sent else document.outcome
        rows, first = tuple(document.done), document.sent == 0
        document.done.clear()
        document.sent += len(rows)
        return Embedded(document.chunked, rows, first=first, last=document.sent == len(document.chunked.new))

    def _vectors(self, pieces: Sequence[_Piece], made: _Made) -> list[dict[str, DenseVector | SparseVector]]:
        """Return each row's vectors by field, checked.

        Args:
            pieces: The rows.
            made: What one embedder made of rows that another fails on: they come again in halves, and it is not asked
                again, for it may be paid.

        Raises:
            DocumentError: One of the rows cannot be embedded.
            Suspect: The rows look like an outage.
        """
        for name, fields in self._by_embedder.items():
            missing = [piece.row for piece in pieces if (name, id(piece.row)) not in made]
            if missing:
                by_text = self._of_texts(fields, dict.fromkeys(row.text for row in missing))
                made.update(((name, id(row)), by_text[row.text]) for row in missing)
        return [
            {
                vector_field: vector
                for name in self._by_embedder
                for vector_field, vector in made[name, id(piece.row)].items()
            }
            for piece in pieces
        ]

    def _of_texts(
        self, fields: Sequence[VectorField], texts: Collection[str]
    ) -> Mapping[str, Mapping[str, DenseVector | SparseVector]]:
        """Return the vectors of each text, by field: those that are remembered, and the rest from the model."""
        found = self._remembered(fields, texts)
        missing = [text for text in texts if text not in found]
        if not missing:
            return found
        blocks = self._ask(fields, missing)
        if self._cache is not None:
            for vector_field in fields:
                block = blocks[vector_field.name]
                self._cache.put(
                    vector_field.space, vector_field.kind, {text: block[at] for at, text in enumerate(missing)}
                )
        return found | {text: {name: block[at] for name, block in blocks.items()} for at, text in enumerate(missing)}

    def _remembered(
        self, fields: Sequence[VectorField], texts: Collection[str]
    ) -> dict[str, Mapping[str, DenseVector | SparseVector]]:
        """Return what the cache has, of the texts that it has all vectors of: one pass of the model makes them all."""
        if self._cache is None:
            return {}
        known = {
            vector_field.name: self._cache.get(vector_field.space, vector_field.kind, list(texts))
            for vector_field in fields
        }
        found: dict[str, Mapping[str, DenseVector | SparseVector]] = {
            text: {name: vectors[text] for name, vectors in known.items()}
            for text in texts
            if all(text in vectors for vectors in known.values())
        }
        if found:
            self._on_remembered(fields[0].embedder.name, len(found))
        return found

    def _ask(self, fields: Sequence[VectorField], texts: Sequence[str]) -> Mapping[str, Vectors]:
        embedder = fields[0].embedder
        kinds = frozenset(vector_field.kind for vector_field in fields)

        def embed() -> Mapping[VectorKind, Vectors]:
            began = time.monotonic()
            vectors = embedder.embed(texts, Role.DOCUMENT, kinds)
            self._pace(embedder.name, len(texts), time.monotonic() - began)
            return vectors

        answer = self._patience.hold(
            embed,
            lambda: embedder.embed(PROBE, Role.DOCUMENT, kinds),
        )
        for vector_field in fields:
            check(answer[vector_field.kind], vector_field.kind, len(texts), vector_field.dimension)
        return {vector_field.name: answer[vector_field.kind] for vector_field in fields}
