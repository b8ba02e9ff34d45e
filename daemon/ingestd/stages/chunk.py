"""Chunk: a document's text to rows, held against what is in Milvus already.

After this stage it is known what has to be embedded (new rows), what only another field changed of (rewritten), what
stays (kept) and what goes (stale). A row's key depends on its text alone, so an edit changes few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.errors import DocumentError, IngestError
from ingestd.model import Chunked, Row, Stage, chunk_ids
from ingestd.model import digests as digests_of
from ingestd.ports import always
from ingestd.stages._failing import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ingestd.model import ChunkId, Digest, Document, Extracted, Json, Outcome
    from ingestd.ports import Chunker


class Chunk:
    """The second stage.

    Args:
        chunker: Cuts the text.
        fields: The names of the collection's declared fields.
        validate: Raises DocumentError for a row that the collection would refuse.
        max_chunks: The most chunks that a document may have.
        kept: Returns a declared field's value as the collection keeps it: a row that is read back has the same digest.
    """

    def __init__(
        self,
        chunker: Chunker,
        *,
        fields: Collection[str],
        validate: Callable[[Row], None],
        max_chunks: int,
        kept: Callable[[str, Json], Json] = lambda _name, value: value,
    ) -> None:
        self._chunker = chunker
        self._exceeds: Callable[[str, int], bool] = getattr(chunker, "exceeds", lambda _text, _chunks: False)
        self._fields = sorted(fields)
        self._validate = validate
        self._max_chunks = max_chunks
        self._kept = kept

    def process(self, batch: Sequence[Extracted], flush: Callable[[], None] = always) -> Iterator[Chunked | Outcome]:
        """Yield a Chunked or an Outcome for each document."""
        del flush  # nothing here takes long behind a result
        for extracted in batch:
            try:
                yield self._chunk(extracted)
            except DocumentError as error:
                yield failed(extracted.event, Stage.CHUNK, error, extracted.content)
            except IngestError:
                raise
            except Exception as error:  # noqa: BLE001 - a text that a chunker chokes on is that document's fault
                yield failed(extracted.event, Stage.CHUNK, error, extracted.content)

    def _chunk(self, extracted: Extracted) -> Chunked:
        entry = extracted.entry
        present: Mapping[ChunkId, Digest] = entry.present if entry is not None else {}
        doubtful = entry.doubtful if entry is not None else frozenset()
        rows = self._rows(extracted, extracted.document) if extracted.document is not None else []
        digests = dict(zip([row.id for row in rows], digests_of(rows), strict=True))
        if not present:  # nearly every new document
            stale = tuple(sorted(doubtful - digests.keys()))
            return Chunked(extracted, new=tuple(rows), kept={}, rewritten=(), stale=stale, digests=digests)
        return Chunked(
            extracted,
            new=tuple(row for row in rows if row.id not in present),
            kept={row.id: digests[row.id] for row in rows if present.get(row.id) == digests[row.id]},
            rewritten=tuple(row for row in rows if row.id in present and present[row.id] != digests[row.id]),
            stale=tuple(sorted((present.keys() | doubtful) - digests.keys())),
            digests=digests,
        )

    def _rows(self, extracted: Extracted, document: Document) -> list[Row]:
        event, text = extracted.event, document.text
        if self._exceeds(text, self._max_chunks):
            raise DocumentError(
                f"{event.position} has more than {self._max_chunks:,} chunks, which is the most (limits.max_chunks)"
            )
        spans = self._chunker.split(text)
        if len(spans) > self._max_chunks:
            raise DocumentError(
                f"{event.position} has {len(spans):,} chunks; the most is {self._max_chunks:,} (limits.max_chunks)"
            )
        texts = [text[span.start : span.end] for span in spans]
        fields, metadata = self._split_metadata(extracted, document)
        rows = []
        for index, (chunk_id, piece) in enumerate(zip(chunk_ids(event.key.document_id, texts), texts, strict=True)):
            row = Row(
                id=chunk_id,
                document_id=event.key.document_id,
                version=extracted.version.number,
                domain=extracted.version.domain,
                chunk_index=index,
                text=piece,
                source=event.source,
                fields=fields,
                metadata=metadata,
            )
            self._validate(row)
            rows.append(row)
        return rows

    def _split_metadata(self, extracted: Extracted, document: Document) -> tuple[dict[str, Json], dict[str, Json]]:
        """Return the declared fields, and the rest. What the source says stands over what the document says."""
        content = extracted.content
        said: dict[str, Json] = dict(document.metadata)
        title = document.title
        if content is not None:
            said |= content.metadata
            title = content.title or title
        if title:
            said["title"] = title
        fields = {name: self._kept(name, said.pop(name, None)) for name in self._fields}
        return fields, said
