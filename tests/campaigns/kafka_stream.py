"""The events of the Kafka campaign: a seeded stream of creates, edits, deletes, tombstones, and records that are bad.

All records of a document go to one partition, whether they have a key or only an id in their value. A bad record says
so in a header, which the daemon does not read: so the topic itself holds what is to be expected of it, and whoever
reads it needs no list beside it. Bad records are about documents of their own, but for a few that are about one of the
stream's: those must leave it as it is.
"""

from __future__ import annotations

import base64
import json
import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.brokers import Record

POISON = "campaign-poison"
"""The header of a bad record; its value says what is bad."""
SHARE_OF_POISON = 0.01
HOT = 0.05
"""The share of documents that get half of the events: edits that follow one another at once."""
_WORDS = (  # noqa: SIM905 - words to read
    "harbour lantern orchard granite whistle meadow copper saddle thunder ribbon willow engine marble candle "
    "falcon puzzle velvet anchor bucket canyon drizzle ember feather glacier hammer island jungle kettle"
).split()


class _Bad(NamedTuple):
    """A bad record: what is bad about it, its key (None: none), and its value."""

    kind: str
    key: bytes | None
    value: bytes | None


@dataclass(slots=True)
class _Document:
    """What the stream last said of a document."""

    there: bool = False
    text: str = ""
    number: int = 0


class Stream:
    """Events for a topic.

    Args:
        seed: The same seed gives the same events.
        documents: How many different documents they are about, at most.
        partitions: Of the topic.
    """

    def __init__(self, seed: int, documents: int, partitions: int) -> None:
        self._draw = random.Random(seed)
        self._partitions = partitions
        self._documents = {f"doc-{number:06d}-é": _Document() for number in range(documents)}
        self._ids = list(self._documents)
        self._hot = self._ids[: max(1, int(documents * HOT))]
        self._number = 0

    def take(self, count: int) -> Iterator[Record]:
        """Yield the next events."""
        for _ in range(count):
            self._number += 1
            yield self._bad() if self._draw.random() < SHARE_OF_POISON else self._good()

    def _good(self) -> Record:
        draw = self._draw
        name = draw.choice(self._hot if draw.random() < 0.5 else self._ids)
        document = self._documents[name]
        change = draw.random()
        if document.there and change < 0.08:
            document.there = False
            return self._record(name, None, key=name.encode())
        if document.there and change < 0.16:
            document.there = False
            return self._said(name, {"op": "delete"})
        if document.there and change < 0.2:
            return self._said(name, self._upsert(document))  # once more what is there
        if not document.there or change < 0.85:
            document.text = self._sentences()
        document.there, document.number = True, self._number  # of the rest only the metadata changes
        return self._said(name, self._upsert(document))

    def _said(self, name: str, value: dict[str, object]) -> Record:
        """Return a record whose id is in its value, its key, or both."""
        place = self._draw.random()
        said = value if place < 0.1 else {"id": name, **value}
        return self._record(name, json.dumps(said).encode(), key=None if 0.1 <= place < 0.2 else name.encode())

    def _record(self, name: str, value: bytes | None, *, key: bytes | None, poison: str = "") -> Record:
        partition = zlib.crc32(name.encode("utf-8", "surrogateescape")) % self._partitions
        return (key, value, [(POISON, poison.encode())] if poison else [], partition)

    def _upsert(self, document: _Document) -> dict[str, object]:
        value: dict[str, object] = {"metadata": {"n": document.number, "tags": ["a", "ü"]}}
        if document.number % 50 == 0:  # read by the workers that extract
            encoded = base64.b64encode(document.text.encode()).decode()
            return {**value, "content": encoded, "content_type": "text/plain; charset=utf-8"}
        if document.number % 3 == 0:
            value["op"] = "upsert"
        return {**value, "text": document.text}

    def _sentences(self) -> str:
        draw = self._draw
        parts = [" ".join(draw.choices(_WORDS, k=draw.randint(4, 12))).capitalize() for _ in range(draw.randint(1, 2))]
        return ". ".join(parts) + f". Edit {self._number}."

    def _bad(self) -> Record:
        name = f"bad-{self._number}"
        victim = self._draw.choice(self._hot)
        bad = self._draw.choice([*_own(name), *_of(victim)])
        home = victim if bad.kind.startswith("of-") else name
        return self._record(home, bad.value, key=bad.key, poison=bad.kind)


def _own(name: str) -> list[_Bad]:
    """Return what is bad in records of a document of their own."""
    key = name.encode()

    def said(kind: str, value: object, key: bytes | None = key) -> _Bad:
        return _Bad(kind, key, json.dumps(value).encode())

    return [
        _Bad("no-json", key, b'{"id": '),
        _Bad("no-utf8", key, b'{"text": "\xff\xfe"}'),
        _Bad("empty", key, b""),
        _Bad("not-a-number", key, b'{"text": "a", "metadata": {"n": NaN}}'),
        _Bad("key-twice", key, b'{"text": "a", "text": "b"}'),
        _Bad("half-a-character", key, rb'{"text": "\ud800"}'),
        _Bad("tombstone-of-nothing", b"", None),
        _Bad("tombstone-of-no-text", b"\xff\xfe" + key, None),
        said("no-object", [name]),
        said("id-is-a-number", {"id": 7, "text": "a"}),
        said("text-is-a-number", {"text": 7}),
        said("metadata-is-a-list", {"text": "a", "metadata": [1]}),
        said("no-id", {"text": "a"}, None),
        said("long-id", {"id": name + "x" * 5000, "text": "a"}, None),
        said("unknown-op", {"op": "explode", "text": "a"}),
        said("unknown-key", {"text": "a", "colour": "red"}),
        said("no-base64", {"content": "***"}),
        said("two-ids", {"id": f"{name}-too", "text": "a"}),
        said("two-bodies", {"text": "a", "content": "YQ=="}),
        said("no-body", {"op": "upsert"}),
        said("delete-with-text", {"op": "delete", "text": "a"}),
        said("version-is-a-text", {"text": "a", "version": "1"}),
        said("json-that-is-none", {"content": "ew==", "content_type": "application/json"}),
        said("no-extractor", {"content": "iVBORw0KGgo=", "content_type": "image/png"}),
        said("too-long-for-one-chunk", {"text": "word " * 600}),
    ]


def _of(victim: str) -> list[_Bad]:
    """Return what is bad in records of a document that has good ones too."""
    key = victim.encode()
    return [
        _Bad("of-another-no-json", key, b"{"),
        _Bad("of-another-unknown-op", key, json.dumps({"id": victim, "op": "explode"}).encode()),
        _Bad("of-another-too-long", key, json.dumps({"text": "word " * 600}).encode()),
    ]
