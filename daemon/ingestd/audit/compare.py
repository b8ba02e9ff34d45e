"""What is wrong with a document: its rows are held against the ledger's entry, or against one another.

The ledger says which rows a document has, with a digest of each; a row's key says its text. Where other members write
the collection too, the ledger of one of them is old as soon as another has written: then the rows have to agree among
themselves (places from 0 on, each once; one set of metadata; no row that is later than the first, which every version
writes anew) and with the tombstones.

Everything here is pure. Embedding the texts again, to compare vectors, was turned down: it costs what ingesting does,
and the same text in another batch gives other last digits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from ingestd.model import BEFORE_ALL, EXPLICIT, UNKNOWN_DIGEST, Version, is_chunk_id

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from ingestd.model import ChunkId, Detail, Digest, Entry, Held


_DOUBT = "a version that was begun and not finished, or could not be mended, left it in doubt"


class Kind(StrEnum):
    """What a difference is."""

    MISSING = "missing"
    """It should be there, and is not."""
    STALE = "stale"
    """It is not what the latest version of its document wrote."""
    ORPHAN = "orphan"
    """Its document is not there any more, or never was."""
    DUPLICATE = "duplicate"
    """It is there a second time."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong with a document."""

    kind: Kind
    chunk_id: ChunkId
    """Empty: the document as a whole."""
    detail: str
    """What is there, and what should be."""
    of_file: bool = False
    """Whether it is the document's file that differs, and not its rows."""


def faults(entry: Entry | None, held: Held | None, *, alone: bool) -> list[Fault]:
    """Return what is wrong with a document's rows, in a fixed order.

    Args:
        entry: What the ledger says; None: it does not know the document.
        held: What Milvus holds, looked at closely; None: nothing.
        alone: Whether the ledger is the truth: nobody else writes the document.
    """
    if alone or trusted(entry, held):
        found = _by_ledger(entry, held)
    else:
        found = _among_themselves(held) if held is not None else iter(())
    return sorted(found)


def trusted(entry: Entry | None, held: Held | None) -> bool:
    """Return whether an entry is the truth about a document that other members may have written since.

    It is where it compares with what Milvus has, and is no older. That nothing is there, no tombstone either, is no
    later word: a delete would have left one.
    """
    if entry is None or entry.version.number == BEFORE_ALL:
        return False
    if held is None:
        return True
    latest = latest_of(held)
    return latest is not None and latest.domain == entry.version.domain and latest.number <= entry.version.number


def latest_of(held: Held | None) -> Version | None:
    """Return the version that Milvus has of a document; None: nothing, or it does not say which.

    That is the first chunk's, which every version writes anew, unless a later attempt was left half done, or a
    tombstone of the same domain is later.
    """
    if held is None:
        return None
    firsts = held.firsts or held.versions
    explicit = {version for version in firsts if version.domain == EXPLICIT}
    domains = {version.domain for version in explicit or firsts}
    if len(domains) > 1:
        return None
    (domain,) = domains or {"" if held.tombstone is None else held.tombstone.domain}
    of_domain = [version for version in held.versions if version.domain == domain]
    if held.tombstone is not None and held.tombstone.domain == domain:
        of_domain.append(held.tombstone)
    return max(of_domain, default=None)


def corrected(entry: Entry, held: Held | None, found: list[Fault]) -> Entry:
    """Return a document's entry with nothing among the present rows that cannot be relied on.

    Rows that the entry does not know are in doubt: the next event of the document deletes them, or writes them.
    """
    wrong = {fault.chunk_id for fault in found}
    present = {at: digest for at, digest in entry.present.items() if at not in wrong}
    rows = frozenset(filter(is_chunk_id, held.rows)) if held is not None else frozenset[str]()
    doubtful = (entry.present.keys() | entry.doubtful | rows) - present.keys()
    return replace(entry, present=present, doubtful=frozenset(doubtful))


def strays(entry: Entry | None, held: Held | None) -> frozenset[ChunkId]:
    """Return the rows that a document should not have at all: none that its version wrote, or may have written."""
    if held is None:
        return frozenset()
    if entry is None or entry.deleted:
        return frozenset(held.rows)
    return frozenset(held.rows) - entry.present.keys() - entry.doubtful


def _by_ledger(entry: Entry | None, held: Held | None) -> Iterator[Fault]:
    details: Mapping[ChunkId, Detail] = held.details if held is not None else {}
    made: Mapping[ChunkId, Version] = held.made if held is not None else {}
    if entry is None or entry.deleted:
        why = "the ledger knows no such document"
        if entry is not None:
            begun = entry.version.number == BEFORE_ALL
            why = "its first version was not finished" if begun else f"{_said(entry.version)} deleted the document"
        for at, detail in details.items():
            yield Fault(Kind.ORPHAN, at, f"{_place(detail, made[at])}; {why}")
        return
    for at in entry.present.keys() - details.keys():
        yield Fault(Kind.MISSING, at, f"no such row; {_said(entry.version)} of the document has it")
    if held is not None:
        yield from _known_rows(entry, held)
        yield from _unknown_rows(entry, held)
    for at in entry.doubtful - details.keys():
        yield Fault(Kind.MISSING, at, f"no such row; {_DOUBT} whether the document has it")


def _known_rows(entry: Entry, held: Held) -> Iterator[Fault]:
    """Yield what is wrong with rows that the ledger knows."""
    there = entry.present.keys() & held.details.keys()
    common = {held.details[at].said for at in there if entry.present[at] == held.rows[at]}
    wrong = set[str]()
    for at in there:
        fault = _row(at, entry, held, common)
        if fault is not None:
            wrong.add(at)
            yield fault
    # A rebuilt ledger knows which rows were there, and not what they said.
    vague = {at for at, digest in entry.present.items() if digest == UNKNOWN_DIGEST} - wrong
    if vague:
        yield from (fault for fault in _agreement(held) if fault.chunk_id in vague)
        if there == entry.present.keys() and not entry.doubtful - held.details.keys():
            # All that it knows is there. What was lost before it was rebuilt left a gap; rows that it does not know
            # make none.
            yield from _gaps({held.details[at].place for at in there})


def _unknown_rows(entry: Entry, held: Held) -> Iterator[Fault]:
    """Yield the rows that the ledger does not have."""
    taken = {held.details[at].place for at in entry.present.keys() & held.details.keys()}
    for at in held.details.keys() - entry.present.keys():
        detail, made = held.details[at], held.made[at]
        there = _place(detail, made)
        if at in entry.doubtful:
            yield Fault(Kind.STALE, at, f"{there}; {_DOUBT} whether it is the document's")
        elif detail.place in taken and not _is_older(made, entry.version):
            yield Fault(Kind.DUPLICATE, at, f"{there}; the document has another row at that place")
        else:
            yield Fault(Kind.STALE, at, f"{there}; {_said(entry.version)} of the document does not have it")


def _row(at: ChunkId, entry: Entry, held: Held, common: Collection[Digest]) -> Fault | None:
    """Return what is wrong with a row that should be there.

    Args:
        at: The row.
        entry: The ledger's.
        held: What Milvus has.
        common: What the document's rows have in common, as those say that are as they should be.
    """
    detail, made = held.details[at], held.made[at]
    own = _own(at, detail, made)
    if own is not None:
        return own
    if made.domain == entry.version.domain and made.number > entry.version.number:
        return Fault(Kind.STALE, at, f"{_place(detail, made)}; the document is at {_said(entry.version)}")
    if entry.present[at] in {UNKNOWN_DIGEST, held.rows[at]}:
        return None
    what = "its metadata, fields or source" if detail.said not in common else "its place or version"
    if not common:
        what = "its metadata, fields, source, place or version"
    return Fault(Kind.STALE, at, f"{_place(detail, made)}; {what} is not what was written")


def _among_themselves(held: Held) -> Iterator[Fault]:
    """Yield what is wrong with rows that nobody's ledger speaks for."""
    latest, grave = latest_of(held), held.tombstone
    if grave is not None and held.rows and latest == grave:
        for at, detail in held.details.items():
            yield Fault(Kind.ORPHAN, at, f"{_place(detail, held.made[at])}; {_said(grave)} deleted the document")
        return
    own = {at: fault for at, detail in held.details.items() if (fault := _own(at, detail, held.made[at])) is not None}
    for at, detail in held.details.items():
        if grave is not None and held.made[at].domain == grave.domain and held.made[at].number <= grave.number:
            why = f"{_said(grave)} deleted the document, which was written again later"
            own[at] = Fault(Kind.ORPHAN, at, f"{_place(detail, held.made[at])}; {why}")
    yield from own.values()
    yield from (fault for fault in _agreement(held) if fault.chunk_id not in own)


def _agreement(held: Held) -> Iterator[Fault]:
    """Yield where the rows of a document do not agree: each row once."""
    places: dict[int, list[ChunkId]] = {}
    for at, detail in held.details.items():
        places.setdefault(detail.place, []).append(at)
    yield from _gaps(places)
    first = _best(held, places.get(0, ()))
    crowded = list(_crowded(held, places))
    yield from crowded
    if first is not None:
        wrong = {fault.chunk_id for fault in crowded}
        yield from _unlike(held, first, held.details.keys() - wrong)


def _gaps(places: Iterable[int]) -> Iterator[Fault]:
    """Yield where places are skipped, a fault a gap: whatever a row says of its place, there are no more than rows."""
    last = -1
    for place in sorted(places):
        if place > last + 1:
            which = f"chunk {last + 1} is" if place == last + 2 else f"chunks {last + 1} to {place - 1} are"
            yield Fault(Kind.MISSING, "", f"{which} not there, and chunk {place} is")
        last = max(last, place)


def _crowded(held: Held, places: Mapping[int, Sequence[ChunkId]]) -> Iterator[Fault]:
    """Yield the rows whose places belong to others."""
    for here in places.values():
        best = _best(held, here)
        for at in here:
            if best is not None and at != best:
                kind = Kind.STALE if _is_older(held.made[at], held.made[best]) else Kind.DUPLICATE
                yield Fault(kind, at, f"{_place(held.details[at], held.made[at])}; another row is at that place")


def _unlike(held: Held, first: ChunkId, rows: Iterable[ChunkId]) -> Iterator[Fault]:
    """Yield the rows that do not go with their document's first."""
    said, version = held.details[first].said, held.made[first]
    for at in rows:
        detail, made = held.details[at], held.made[at]
        if made.domain == version.domain and made.number > version.number:
            yield Fault(Kind.STALE, at, f"{_place(detail, made)}; the first chunk is of {_said(version)}")
        elif detail.said != said:
            there = f"{_place(detail, made)}; its metadata, fields or source are not those of the first chunk"
            yield Fault(Kind.STALE, at, f"{there}, of {_said(version)}")


def _best(held: Held, rows: Iterable[ChunkId]) -> ChunkId | None:
    """Return which of the rows at one place its document has: the latest whose text is its own."""
    return max(rows, key=lambda at: (held.details[at].genuine, _rank(held.made[at]), at), default=None)


def _own(at: ChunkId, detail: Detail, made: Version) -> Fault | None:
    """Return what is wrong with a row by itself."""
    if detail.copies > 1:
        return Fault(Kind.DUPLICATE, at, f"{_place(detail, made)}; its key is there {detail.copies} times")
    if not detail.genuine:
        return Fault(Kind.STALE, at, f"{_place(detail, made)}; its text is not the one that its key stands for")
    return None


def _rank(version: Version) -> tuple[bool, int]:
    """Return what orders versions: a producer's own are stronger than offsets."""
    return version.domain == EXPLICIT, version.number


def _is_older(version: Version, other: Version) -> bool:
    return version.domain == other.domain and version.number < other.number


def _place(detail: Detail, made: Version) -> str:
    """Return where a row stands, for people."""
    return f"chunk {detail.place}, written by {_said(made)} of {detail.source!r}"


def _said(version: Version) -> str:
    return f"version {version.number} ({version.domain})"
