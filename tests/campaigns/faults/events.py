"""Events of a folder: numbered creates, edits, deletes, renames and poison, each carried out, and folded as it is.

A document's text is some paragraphs, each with the number of the event that wrote it, so that an edit changes a few
chunks of many and leaves the others where they are. Metadata comes in a sidecar, and has the number of the last event.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from typing import TYPE_CHECKING

from tests.campaigns.faults.oracle import Held, covered

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.campaigns.faults.oracle import Stored

SIDECAR = ".meta.json"
BAD = (b"half a text\0\0\0", b"\x89PNG\r\n\x1a\n" + bytes(20), b"%PDF-1.7\nand no more")
"""Bytes that are no text, whatever the name says."""
_WORDS = (  # noqa: SIM905 - words to read
    "harbour lantern orchard granite whistle meadow copper saddle thunder ribbon willow engine marble candle "
    "falcon puzzle velvet anchor bucket canyon drizzle ember feather glacier hammer island jungle kettle"
).split()
_SHARES = {"create": 0.2, "edit": 0.4, "describe": 0.1, "delete": 0.12, "rename": 0.08, "poison": 0.1}
RECENT = 8
_FEW = 6
"""Documents below which none is deleted."""


class Documents:
    """The documents of a folder, and what became of them.

    Args:
        folder: Watched by the daemon.
        draw: Says what happens next.
        source: The name of the source that watches it.
        paragraphs: The fewest and the most paragraphs of a text; one is some forty words.
    """

    def __init__(
        self, folder: Path, draw: random.Random, source: str = "inbox", paragraphs: tuple[int, int] = (1, 8)
    ) -> None:
        self._folder = folder
        self._draw = draw
        self._source = source
        self._paragraphs = paragraphs
        self._texts: dict[str, list[str]] = {}
        """By name: the paragraphs of each file that is good."""
        self._bad: set[str] = set()
        """The names of files that are poison now."""
        self._unseen: set[str] = set()
        """Names of which the daemon may not have seen the last event: a folder only shows what is there now."""
        self._made = 0
        self.number = 0
        """Events so far."""
        self.kinds: Counter[str] = Counter()
        self.expected: dict[str, Held] = {}
        """By document: the last good event's text and metadata."""
        self._recent: deque[str] = deque(maxlen=RECENT)
        """The names that the last events were about."""
        self._versions: dict[str, list[str]] = {}
        """By document that is to be there all the time: the texts that it had since ``seen``, and the one before."""

    @property
    def dead(self) -> set[str]:
        """The documents whose last event is poison: each has to have a dead letter, and no other may."""
        return {self._id(name) for name in self._bad}

    def do(self, count: int) -> None:
        """Carry out so many events, of any kind."""
        for _ in range(count):
            kind = self._draw.choices(list(_SHARES), list(_SHARES.values()))[0]
            if kind not in {"create", "poison"} and len(self._texts) <= _FEW:
                kind = "create"
            steps: dict[str, Callable[[], object]] = {
                "create": self.create,
                "edit": self.edit,
                "describe": self.describe,
                "delete": self.delete,
                "rename": self.rename,
                "poison": self.poison,
            }
            steps[kind]()

    def again(self, count: int) -> None:
        """Change or delete so many of the documents that were changed last: who died over them knows old versions."""
        names = sorted(self._texts.keys() & set(self._recent))
        for name in self._draw.sample(names, min(count, len(names))):
            if self._draw.random() < 0.3 and len(self._texts) > _FEW:
                self.delete(name)
            else:
                self.edit(name)

    def seen(self) -> None:
        """Note that all events so far have come to their ends: what is poisoned from here on leaves what is there."""
        self._unseen.clear()
        self._versions = {document: [held.text] for document, held in self.expected.items()}

    def uncovered(self, rows: Mapping[str, Sequence[Stored]]) -> list[str]:
        """Return the documents that are missing in part, though since ``seen`` they were at most replaced.

        Whatever stands in the middle of being written: some version is whole, rows of others may be beside it.
        """
        return [
            document
            for document, texts in self._versions.items()
            if not any(covered(rows.get(document, ()), text) for text in texts)
        ]

    def create(self, name: str | None = None) -> str:
        """Write a new document; return its name."""
        if name is None:
            self._made += 1
            name = f"{self._draw.choice('abc')}/d{self._made}.txt"
        self._begin("create", name)
        self._texts[name] = [self._paragraph() for _ in range(self._draw.randint(*self._paragraphs))]
        self._write(name)
        return name

    def edit(self, name: str | None = None) -> None:
        """Change, add or take away a paragraph; of a poisoned document, all: it is good again."""
        name = name or self._any()
        self._begin("edit", name)
        text, draw = self._texts[name], self._draw
        change = draw.random()
        if change < 0.5 or len(text) < 2:
            text[draw.randrange(len(text))] = self._paragraph()
        elif change < 0.75:
            text.insert(draw.randint(0, len(text)), self._paragraph())
        else:
            del text[draw.randrange(len(text))]
        self._write(name)

    def replace(self) -> None:
        """Change all of a document that was whole at the last ``seen``: it must not be missing meanwhile."""
        there = sorted(name for name in self._texts.keys() - self._bad if self._id(name) in self._versions)
        if not there:
            self.create()
            return
        name = self._draw.choice(there)
        self._begin("edit", name)
        self._texts[name] = [self._paragraph() for _ in range(self._draw.randint(*self._paragraphs))]
        self._write(name)

    def describe(self, name: str | None = None) -> None:
        """Change the metadata alone."""
        name = name or self._any()
        self._begin("describe", name)
        self._write(name, text=name in self._bad)

    def delete(self, name: str | None = None) -> None:
        """Delete a document."""
        name = name or self._any()
        self._begin("delete", name)
        self._remove(name)

    def rename(self, name: str | None = None) -> str:
        """Give a document another name: it is deleted, and another one is there. Return the new name."""
        name = name or self._any(good=True)
        self._made += 1
        other = f"r{self._made}.txt"
        self._begin("rename", name)
        self._unseen.add(other)
        # The sidecar first: a document whose text arrives before what it says of it is written twice, and no worse.
        (self._folder / (name + SIDECAR)).rename(self._folder / (other + SIDECAR))
        (self._folder / name).rename(self._folder / other)
        self._texts[other] = self._texts.pop(name)
        self.expected[self._id(other)] = self.expected.pop(self._id(name))
        self._versions.pop(self._id(name), None)
        return other

    def poison(self, name: str | None = None) -> None:
        """Make a document bad: a new one, or one whose last version is in Milvus and has to stay there."""
        quiet = sorted(self._texts.keys() - self._unseen - self._bad)
        if name is None and quiet and self._draw.random() < 0.5:
            name = self._draw.choice(quiet)
        if name is None:
            self._made += 1
            name = f"bad{self._made}.txt"
        self._begin("poison", name)
        if name in self._texts and self._draw.random() < 0.5:
            self._put(name + SIDECAR, b'{"n": %d, ' % self.number)
        else:
            self._put(name, self._draw.choice(BAD) + b" %d" % self.number)
        self._texts.setdefault(name, [self._paragraph()])  # what an edit makes of it
        self._bad.add(name)

    def _begin(self, kind: str, name: str) -> None:
        self.number += 1
        self.kinds[kind] += 1
        self._unseen.add(name)
        self._recent.append(name)

    def _any(self, *, good: bool = False) -> str:
        return self._draw.choice(sorted(self._texts.keys() - self._bad if good else self._texts))

    def _write(self, name: str, *, text: bool = True) -> None:
        said = {"n": self.number, "words": self._draw.choices(_WORDS, k=2)}
        self._put(name + SIDECAR, json.dumps(said).encode())
        if text:
            self._put(name, self._text(name).encode())
        self._bad.discard(name)
        self.expected[self._id(name)] = Held(self._text(name), said)
        if self._id(name) in self._versions:
            self._versions[self._id(name)].append(self._text(name))

    def _remove(self, name: str) -> None:
        (self._folder / name).unlink()
        (self._folder / (name + SIDECAR)).unlink(missing_ok=True)
        self._texts.pop(name, None)
        self._bad.discard(name)
        self.expected.pop(self._id(name), None)
        self._versions.pop(self._id(name), None)

    def _put(self, name: str, data: bytes) -> None:
        """Write a file beside its place, and move it there: on a busy machine one may stand half written for long."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(data)
        beside.replace(path)

    def _text(self, name: str) -> str:
        return "\n\n".join(self._texts[name]) + "\n"

    def _paragraph(self) -> str:
        draw = self._draw
        sentences = [" ".join(draw.choices(_WORDS, k=draw.randint(6, 14))).capitalize() for _ in range(4)]
        return f"Event {self.number}. " + ". ".join(sentences) + "."

    def _id(self, name: str) -> str:
        return f"{self._source}/{name}"
