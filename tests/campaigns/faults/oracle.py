"""What Milvus has to hold, and what it holds: the fold of all events that were issued, and all rows, compared.

Nothing here knows how the daemon chunks, names or orders anything. A document's rows are put together by their
``chunk_index``, without overlap, and have to give the text of its last good event again, but for white space; each row
has to have that event's metadata. So a row that is left of an older version, is there twice, or is not there, shows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ingestd.milvus.client import import_pymilvus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pymilvus import MilvusClient

SHOWN = 20
"""The most differences that are listed of each kind."""
SECONDS = 60.0
"""For an answer of Milvus."""
TRIES = 10
"""Readings of a collection that is being written."""


class Held(NamedTuple):
    """What a document is: its text, and its metadata."""

    text: str
    metadata: Mapping[str, Any]


class Stored(NamedTuple):
    """A row as Milvus holds it."""

    id: str
    document_id: str
    chunk_index: int
    text: str
    source: str
    metadata: Mapping[str, Any]


@dataclass(slots=True)
class Differences:
    """What of the rows is not as the events say, one line each."""

    missing: list[str] = field(default_factory=list)
    """Documents, or chunks of them, that should be there."""
    stale: list[str] = field(default_factory=list)
    """Texts or metadata of another version."""
    orphan: list[str] = field(default_factory=list)
    """Documents that should not be there."""
    duplicate: list[str] = field(default_factory=list)
    """Chunks that are there more than once."""

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.missing or self.stale or self.orphan or self.duplicate)

    def __str__(self) -> str:
        """Return the counts, and the first of each kind."""
        kinds = {"missing": self.missing, "stale": self.stale, "orphan": self.orphan, "duplicate": self.duplicate}
        lines = [", ".join(f"{len(found)} {kind}" for kind, found in kinds.items())]
        lines += [f"{kind}: {one}" for kind, found in kinds.items() for one in sorted(found)[:SHOWN]]
        return "\n".join(lines)


class UnequalError(AssertionError):
    """Milvus does not hold what the events say, though it had all the time that it may take."""

    def __init__(self, message: str, found: Differences) -> None:
        super().__init__(f"{message}: {found}")
        self.found = found


def stored(uri: str, collections: Iterable[str]) -> dict[str, list[Stored]]:
    """Return all rows of some collections by document, read with a client of our own.

    Args:
        uri: Where Milvus listens.
        collections: Their names; one that is not there has no rows.

    Raises:
        AssertionError: However often it is read, there are more or fewer rows than Milvus counts, or keys twice.
    """
    import_pymilvus()
    from pymilvus import MilvusClient, MilvusException  # noqa: PLC0415 - it may be imported only after its noise is turned off

    found: dict[str, list[Stored]] = {}
    try:
        client = MilvusClient(uri=uri, timeout=SECONDS)
    except MilvusException:
        # A connection that idled is kept by pymilvus, and Lite has ended it: it pings too often. The next one is new.
        client = MilvusClient(uri=uri, timeout=SECONDS)
    try:
        for collection in collections:
            if client.has_collection(collection, timeout=SECONDS):
                client.load_collection(collection, timeout=SECONDS)
                for row in _rows(client, collection):
                    found.setdefault(row.document_id, []).append(row)
    finally:
        client.close()
    return found


def _rows(client: MilvusClient, collection: str) -> list[Stored]:
    fields = ["id", "document_id", "chunk_index", "text", "source", "metadata"]
    seen = []
    for _ in range(TRIES):
        # The iterator does not wait for what was just written; a Strong read does.
        count = client.query(collection, "", ["count(*)"], consistency_level="Strong", timeout=SECONDS)[0]["count(*)"]
        iterator = client.query_iterator(collection, batch_size=1000, output_fields=fields, timeout=SECONDS)
        rows: list[Stored] = []
        while page := iterator.next():
            rows += [Stored(*(row[name] for name in fields)) for row in page]
        iterator.close()
        keys = {row.id for row in rows}
        if count == len(rows) == len(keys):
            return rows
        # Something was written in between; rows that are there twice stay.
        seen.append(f"{count} counted, {len(rows)} read, {len(keys)} keys")
    raise AssertionError(f"{collection}: {'; '.join(seen)}")


def compare(expected: Mapping[str, Held], rows: Mapping[str, Sequence[Stored]]) -> Differences:
    """Return what of the rows is not as it should be.

    Args:
        expected: The documents that should be there.
        rows: What is there, by document.
    """
    found = Differences()
    for document in expected.keys() - rows.keys():
        found.missing.append(f"{document}: no row at all; it should be {_told(expected[document].text)}")
    for document, held in rows.items():
        wanted = expected.get(document)
        if wanted is None:
            found.orphan.append(f"{document}: {len(held)} rows, {_told(held[0].text)}")
            continue
        _compare_one(found, document, wanted, sorted(held, key=lambda row: row.chunk_index))
    return found


def covered(rows: Sequence[Stored], text: str) -> bool:
    """Return whether all of a text, but for white space, is in some rows; others may be among them."""
    whole = _bare(text)
    seen = bytearray(len(whole))
    for part in {_bare(row.text) for row in rows}:
        at = whole.find(part)
        while at >= 0:
            seen[at : at + len(part)] = b"\1" * len(part)
            at = whole.find(part, at + 1)
    return all(seen)


def _compare_one(found: Differences, document: str, wanted: Held, held: Sequence[Stored]) -> None:
    places = Counter(row.chunk_index for row in held)
    twice = sorted(place for place, count in places.items() if count > 1)
    if twice:
        found.duplicate.append(f"{document}: chunks {twice} are there more than once")
    gaps = sorted(set(range(max(places) + 1)) - places.keys())
    if gaps:
        found.missing.append(f"{document}: the chunks {gaps} of {max(places) + 1}")
    old = [row for row in held if dict(row.metadata) != dict(wanted.metadata)]
    if old:
        found.stale.append(f"{document}: {len(old)} rows have {old[0].metadata}, and not {wanted.metadata}")
    text = "".join(row.text for row in held)
    if not twice and not gaps and _bare(text) != _bare(wanted.text):
        kind = found.missing if _bare(wanted.text).startswith(_bare(text)) else found.stale
        kind.append(f"{document}: {_told(text)}, and it should be {_told(wanted.text)}")


def _bare(text: str) -> str:
    return "".join(text.split())


def _told(text: str) -> str:
    return f"{len(text)} characters, {text[:30]!r} … {text[-30:]!r}"
