"""Properties of drop boxes: whatever is dropped, whatever fails, and wherever the process dies, no file is lost."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import Killed
from tests.property.test_folder_property import Clock, Engine, Scope, Store, numbers

from ingestd.errors import Superseded
from ingestd.model import Op, Outcome, Seen, Verdict
from ingestd.sources import _transfer
from ingestd.sources._shelf import numbered
from ingestd.sources.folder import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from ingestd.model import Event
    from ingestd.sources.folder import FolderSource

names = st.sampled_from(["a", "b.txt", "x/a", "x", "x/y/c"])
drops = st.tuples(st.just("drop"), names, st.booleans(), st.booleans())
"""Name, whether it is bad, and whether it has a sidecar."""
takes = st.tuples(st.just("take"), names, st.just(False), st.just(False))
stamps = count(10**18)


class Judge(Engine):
    """An engine for which some contents fail for good."""

    def waiting(self, *_owned: object) -> int:
        """Return what waits for its next try, or has it: the state counts an event until it is settled."""
        return len(self.parked) + sum(event.attempt > 1 for event in self.pending)

    def _outcome(self, event: Event) -> Outcome:
        if event.op is Op.UPSERT:
            assert event.payload is not None
            try:
                content = event.payload.read()
            except Superseded:
                return Outcome(event, Verdict.SUPERSEDED)
            if content.data.startswith(b"bad"):
                assert content.signature is not None
                document = event.key.document_id
                self.store.stats[document] = Seen("s", document, content.signature, Verdict.DEAD_LETTERED, "same")
                return Outcome(event, Verdict.DEAD_LETTERED, content=content)
        return super()._outcome(event)


@dataclass
class Box:
    """A drop box on disk, and what has to be there."""

    root: Path
    store: Store = field(default_factory=Store)
    clock: Clock = field(default_factory=Clock)
    expected: dict[bytes, bytes | None] = field(default_factory=dict)
    """Contents that were dropped and not taken away or overwritten since, each with its sidecar's."""
    last: dict[str, bytes] = field(default_factory=dict)
    """The last good content of each name that the daemon can have read."""
    numbers: Iterator[int] = field(default_factory=count)

    def folder(self, name: str) -> Path:
        """Return one of its folders."""
        made = self.root / name
        made.mkdir(exist_ok=True)
        return made

    def act(self, what: str, name: str, bad: bool, described: bool) -> None:  # noqa: FBT001 - drawn
        """Drop a file, or take one away again, as people do."""
        path = self.folder("inbox") / name
        sidecar = path.with_name(f"{path.name}.meta.json")
        with suppress(OSError):  # a directory stands in the way
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                return
            for one in (path, sidecar):
                self._forget(one)
            if what == "take":
                return
            text = f"{'bad' if bad else 'good'} {next(self.numbers)}".encode()
            said = b'{"of": "%s"}' % text if described else None
            self.expected[text] = said
            if said is not None:
                self._write(sidecar, said)
            self._write(path, text)

    def _forget(self, path: Path) -> None:
        """Overwrite what is at a path: it has to be nowhere any more."""
        with suppress(OSError):
            found = path.read_bytes()
            path.unlink()
            self.expected.pop(found, None)
            for text, said in self.expected.items():
                if said == found:  # it was left behind, and its file is elsewhere
                    self.expected[text] = None

    def _write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        stamp = next(stamps)
        os.utime(path, ns=(stamp, stamp))

    def run(self, random: Random) -> FolderSource:
        """Run a source over it, once."""
        config = Config(
            path=self.folder("inbox"),
            collection="c",
            watch="poll",
            done=self.root / "done",
            failed=self.root / "failed",
        )
        engine = Judge(self.store, self.clock, numbers(random), lambda: True)
        engine.source = config.build("s", Scope(self.store, self.clock))
        with mock.patch.object(Store, "waiting", engine.waiting):
            engine.source.run(engine, once=True)
        return engine.source

    def check(self) -> None:
        """Check that all is where it belongs, and once."""
        inbox, done, failed = (self._files(name) for name in ("inbox", "done", "failed"))
        there = Counter([*inbox.values(), *done.values(), *failed.values()])
        assert {text: there[text] for text in self.expected} == dict.fromkeys(self.expected, 1)
        assert not any(text.startswith(b"bad") for text in done.values())
        assert not any(text.startswith(b"good") for text in failed.values())
        for folder in (done, failed):
            for path, text in folder.items():
                said = self.expected.get(text)
                sidecar = Path(f"{path}.meta.json")
                if said is not None:
                    assert sidecar.read_bytes() == said

    def _files(self, name: str) -> dict[Path, bytes]:
        paths = self.folder(name).rglob("*")
        suffixes = (".meta.json", ".reason.json")
        return {
            path: path.read_bytes()
            for path in paths
            if path.is_file() and not path.name.endswith(suffixes) and not path.name.startswith(".ingestd-moving-")
        }


@contextmanager
def dying(after: int) -> Iterator[list[int]]:
    """Have the process die at one of the steps that change a file system; nothing that is left of it changes any."""
    steps: list[int] = []

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*arguments: Any, **options: Any) -> Any:
            steps.append(1)
            if len(steps) > after:
                raise Killed
            return call(*arguments, **options)

        return tried

    with (
        mock.patch.object(_transfer, "_renameat2", mortal(_transfer._renameat2 or _transfer.move)),
        mock.patch("os.unlink", mortal(os.unlink)),
        mock.patch("os.rename", mortal(os.rename)),
        mock.patch("os.mkdir", mortal(os.mkdir)),
        mock.patch("ingestd.sources._shelf.write_all", mortal(_transfer.write_all)),
    ):
        yield steps


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.lists(st.one_of(drops, drops, takes), max_size=6), st.integers(0, 40)), max_size=5),
    random=st.randoms(use_true_random=False),
)
def test_no_file_is_lost_wherever_the_process_dies(
    rounds: list[tuple[list[tuple[str, str, bool, bool]], int]], random: Random
) -> None:
    """Each is in the folder, or where it belongs, once and with its sidecar; in the end the folder is empty."""
    with tempfile.TemporaryDirectory() as root:
        box = Box(Path(root))
        for actions, after in rounds:
            for action in actions:
                box.act(*action)
            with suppress(Killed), dying(after):
                box.run(random)
            inbox, done, failed = (box._files(name) for name in ("inbox", "done", "failed"))
            there = Counter([*inbox.values(), *done.values(), *failed.values()])
            assert {text: there[text] for text in box.expected} == dict.fromkeys(box.expected, 1)
        box.run(random)
        source = box.run(random)
        assert source._rounds.moves.check().ok
        box.check()
        assert box._files("inbox") == {}
        left = [path for path in box.folder("inbox").rglob("*") if path.is_file()]
        assert left == []


@given(st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_names_with_numbers(name: bytes) -> None:
    """They differ from number to number, are no longer than names may be, and leave room for what belongs to them."""
    made = [numbered(name, number) for number in range(12)]
    assert made[0] == name
    assert len(set(made)) == len(made)
    assert all(0 < len(one) <= 243 for one in made[1:])
    assert not any(one in {b".", b".."} for one in made[1:])
