"""The folder source's rules, each alone: globs, the guard, settling, the agenda, ids, mounts."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from ingestd.model import DeadLetter, Op, Seen, Verdict
from ingestd.sources._agenda import GRACE, Agenda, Settling
from ingestd.sources._globs import Globs
from ingestd.sources._guard import DeleteGuard
from ingestd.sources._ids import document_id, path_of
from ingestd.sources._mounts import file_system, is_network
from ingestd.sources._tree import Found
from ingestd.sources._view import Flight, Notice, View
from ingestd.sources.folder import Config

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from ingestd import ports


def takes(globs: Globs, path: str) -> bool:
    """Return whether a path is a document, its directories included."""
    *above, name = path.split("/")
    entered = all(globs.enters("/".join(above[: depth + 1]), part) for depth, part in enumerate(above))
    return entered and globs.takes(path, name)


@pytest.mark.parametrize(
    ("include", "path", "taken"),
    [
        ("*.md", "a.md", True),
        ("*.md", "x/y/a.md", True),
        ("*.md", "a.mdx", False),
        ("/*.md", "x/a.md", False),
        ("/*.md", "a.md", True),
        ("x/*.md", "x/a.md", True),
        ("x/*.md", "x/y/a.md", False),
        ("x/**/*.md", "x/a.md", True),
        ("x/**/*.md", "x/y/z/a.md", True),
        ("x/**", "x/y/a", True),
        ("x/", "x/y/a", True),
        ("**/x/*", "x/a", True),
        ("**/x/*", "y/x/a", True),
        ("**/x/*", "yx/a", False),
        ("?", "a", True),
        ("x?a", "x/a", False),
        ("[a-c].txt", "b.txt", True),
        ("[!a-c].txt", "b.txt", False),
        ("[!a]b", "/b", False),
        ("[]]", "]", True),
        ("[x", "[x", True),
        ("a.b", "axb", False),
        ("*\n", "a\n", True),
        ("**/*", "x/a", True),
        ("\udcff*", "\udcffa", True),
    ],
)
def test_what_an_include_takes(include: str, path: str, taken: bool) -> None:  # noqa: FBT001 - a table's column
    """As in a .gitignore: without a slash any depth, with one the whole path; wildcards stay within a name."""
    assert takes(Globs([include], []), path) is taken


@pytest.mark.parametrize(
    ("exclude", "path", "taken"),
    [
        (".*", "x/.git/config", False),
        (".*", "x/.hidden", False),
        ("*.tmp", "a.tmp", False),
        ("drafts/", "x/drafts/a", False),
        ("drafts/", "drafts", True),
        ("drafts/**", "drafts/x/a", False),
        ("drafts/**", "x/drafts/a", True),
        ("**/drafts/**", "x/drafts/a", False),
        ("x/drafts/", "x/drafts/a", False),
        ("x/drafts/", "y/x/drafts/a", True),
        ("x/*.md", "x/a.md", False),
        ("x/*.md", "x/a.txt", True),
    ],
)
def test_what_an_exclude_leaves(exclude: str, path: str, taken: bool) -> None:  # noqa: FBT001 - a table's column
    """A directory that is excluded takes all below it along."""
    assert takes(Globs(["**/*"], [exclude]), path) is taken


@pytest.mark.parametrize("pattern", ["", "/", "../x", "x//y", "./x", "[z-a]"])
def test_a_pattern_that_cannot_be_meant_is_refused(pattern: str) -> None:
    """With its own text in the message."""
    with pytest.raises(ValidationError, match="pattern"):
        Config.model_validate({"path": "x", "collection": "c", "include": [pattern]})


@pytest.mark.parametrize("pattern", ["{a,b}/*.md", "*.{md,txt}", "a}", "x/{", "{a,b}/"])
@pytest.mark.parametrize("also", [[], ["**/*"]])
def test_braces_are_refused_with_what_to_write(pattern: str, also: list[str]) -> None:
    """They would match next to nothing; a class stands for the character. Beside a pattern for everything, too."""
    with pytest.raises(ValueError, match=r"has braces.* a pattern for each alternative"):
        Globs([*also, pattern], [])
    with pytest.raises(ValueError, match="has braces"):
        Globs(["**/*"], [pattern])
    assert takes(Globs(["[{]a[}].md"], []), "{a}.md")


@pytest.mark.parametrize("pattern", ["", "/", "//", "x//", "./x", "x/../y", "x//y"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    """As an include, as an exclude, and beside a pattern for everything."""
    for include, exclude in (([pattern], []), (["**/*"], [pattern]), (["**/*", pattern], [])):
        with pytest.raises(ValueError, match="the pattern"):
            Globs(include, exclude)


def test_an_exclude_may_be_everything() -> None:
    """``/**`` is all there is."""
    globs = Globs(["**/*"], ["/**"])
    assert not takes(globs, "x/a")
    assert not takes(globs, "a")


def test_watch_false_is_poll() -> None:
    """TOML has a word for no."""
    assert Config.model_validate({"path": "x", "collection": "c", "watch": False}).watch == "poll"


def test_the_guard_lets_few_deletes_go() -> None:
    """Up to the share, and whatever the share where few documents are known."""
    assert DeleteGuard(0.2, 50, 60).allows(20, 100, 0)
    assert DeleteGuard(0.2, 50, 60).allows(49, 49, 0)
    assert not DeleteGuard(0.2, 50, 60).allows(50, 50, 0)


def test_the_guard_counts_over_its_window() -> None:
    """Deletes of the last minute count, those before do not."""
    guard = DeleteGuard(0.2, 50, 60)
    assert guard.allows(15, 100, 0)
    guard.let_go(15, 0)
    assert not guard.allows(10, 85, 59)
    guard = DeleteGuard(0.2, 50, 60)
    guard.let_go(15, 0)
    assert guard.allows(10, 85, 61)


def test_what_the_guard_holds_does_not_go_by_waiting() -> None:
    """Only fewer missing files, or a confirmation, end it."""
    guard = DeleteGuard(0.2, 50, 60)
    guard.let_go(15, 0)
    assert not guard.allows(10, 85, 1)
    assert not guard.allows(10, 85, 1_000)
    assert guard.allows(5, 85, 1_001)
    guard = DeleteGuard(0.2, 50, 60)
    assert not guard.allows(30, 100, 0)
    guard.confirmed()
    assert guard.allows(0, 70, 1)


def found(size: int = 1, newest: float = 0.0) -> Found:
    """Return what a look may find."""
    return Found(size, f"{size}", (size, 0), newest)


def test_an_old_file_is_settled_at_once() -> None:
    """Nobody has touched it for longer than it takes."""
    assert Settling(2).rests_at("a", found(newest=90), closed=False, wall=100, now=7) <= 7


def test_a_fresh_file_settles_by_keeping_still() -> None:
    """From when it was first seen so; a change begins anew, and so does an unknown."""
    settling = Settling(2)
    assert settling.rests_at("a", found(1, 100), closed=False, wall=100, now=10) == 12
    assert settling.rests_at("a", found(1, 100), closed=False, wall=101, now=11) == 12
    assert settling.rests_at("a", found(2, 101), closed=False, wall=101, now=11) == 13
    settling.forget("a")
    assert settling.rests_at("a", found(2, 101), closed=False, wall=101.5, now=11.5) == 13.5


def test_a_closed_file_settles_after_its_grace() -> None:
    """Until a change shows that somebody has it open again."""
    settling = Settling(2)
    assert settling.rests_at("a", found(1, 100), closed=True, wall=100, now=10) == pytest.approx(10 + GRACE)
    assert settling.rests_at("a", found(1, 100), closed=False, wall=100.1, now=10.1) <= 10.1
    assert settling.rests_at("a", found(2, 100.1), closed=False, wall=100.1, now=10.1) == pytest.approx(12.1)


def test_a_clock_that_is_off_neither_settles_nor_delays() -> None:
    """A time stamp in the future leaves it to how long the file has been seen."""
    settling = Settling(2)
    assert settling.rests_at("a", found(1, 9_999), closed=False, wall=100, now=10) == 12
    assert settling.rests_at("a", found(1, 9_999), closed=False, wall=102, now=12) == 12


def test_the_agenda_keeps_the_earliest_time() -> None:
    """Each document is due once, in the order of times, and never before."""
    agenda = Agenda()
    agenda.put("late", 9)
    agenda.put("late", 3)
    agenda.put("late", 5)
    agenda.put("early", 1)
    assert agenda.next() == 1
    assert list(agenda.due(0.5, 9)) == []
    assert list(agenda.due(100, 1)) == ["early"]
    assert list(agenda.due(100, 9)) == ["late"]
    assert (len(agenda), agenda.next()) == (0, None)


def test_ids_that_lead_out_of_the_root_lead_nowhere() -> None:
    """Ids come back from disk: only what ``document_id`` makes is taken."""
    for document in ("s/../a", "s//a", "s/", "s", "t/a", "s/a/./b", "s/a\0", "s/%C3%A4", "s/%25z", "s/\ud800"):
        assert path_of("s", document) is None
    assert path_of("s", "s/a/b") == b"a/b"
    assert document_id("s", b"100%/%20/%41/\xe4/%E4") == "s/100%/%20/%41/%E4/%25E4"


MOUNTS = b"""\
22 1 0:21 / / rw - ext4 /dev/sda rw
23 22 0:22 / /mnt/my\\040share rw,relatime shared:1 - nfs4 server:/x rw
24 22 0:23 / /mnt/hidden rw - nfs4 server:/y rw
25 22 0:24 / /mnt/hidden rw - tmpfs none rw
26 22 0:25 / /mnt/ssh rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        (b"/mnt", "ext4", False),
        (b"/mnt/my share/x", "nfs4", True),
        (b"/mnt/my sharex", "ext4", False),
        (b"/mnt/hidden", "tmpfs", False),
        (b"/mnt/ssh/x", "fuse.sshfs", True),
    ],
)
def test_the_file_system_of_a_path(tmp_path: Path, path: bytes, kind: str, network: bool) -> None:  # noqa: FBT001 - a table's column
    """The longest mount point above it counts, and of two on the same point the later."""
    table = tmp_path / "mountinfo"
    table.write_bytes(MOUNTS)
    assert file_system(path, table) == kind
    assert is_network(kind) is network


def test_a_kernel_that_does_not_say_is_no_network(tmp_path: Path) -> None:
    """Without a mount table the folder is watched like any other."""
    assert file_system(b"/", tmp_path / "nothing") is None
    assert not is_network(None)


class Past:
    """A clock, a scope and a store with one seen document for each number."""

    max_bytes = 1
    shared = False
    clock: ports.Clock

    def __init__(self, count: int) -> None:
        self.seen: ports.SeenStore = Remembered(count)

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the one fingerprint."""
        return "f"


class Remembered:
    """A store that makes up what it remembers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def seen(self, source: str, collection: str | None = None) -> Iterator[Seen]:
        """Yield as many documents as there are to be."""
        for number in range(self.count):
            signature = f"{number:x}.18a1b2c3d4e5f601.18a1b2c3d4e5f601.{number:x}"
            yield Seen(source, f"s/{number}", signature, Verdict.WRITTEN, "f")

    def documents(self, source: str, collection: str | None = None) -> Iterator[tuple[str, bool]]:
        """Yield them."""
        return ((f"s/{number}", True) for number in range(self.count))

    def waiting(self, owned: Collection[tuple[str, str]]) -> int:
        """See ``ports.SeenStore``."""
        return 0

    def letter(self, source: str, document_id: str, collection: str) -> DeadLetter | None:
        """See ``ports.SeenStore``."""
        return None

    def confirmed(self, source: str) -> frozenset[str]:
        """See ``ports.SeenStore``."""
        return frozenset()


def test_a_document_takes_few_bytes_of_memory() -> None:
    """At most 300 beside its id, with everything that a source keeps of an idle document."""
    scope = Past(20_000)
    tracemalloc.start()
    try:
        view = View.load("s", "c", scope)
        ids = sum(len(document) + 49 for document in view.files)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (taken - ids) / len(view.files) <= 300


def notice(op: Op, verdict: Verdict, *, first: bool = True) -> Notice:
    """Return an outcome's notice."""
    return Notice("s/0", op, verdict, "sent" if op is Op.UPSERT else None, "read", first)


def test_an_outcome_of_another_try_leaves_the_flight() -> None:
    """A parked event that came back ends beside the one that is in flight, and does not end it."""
    view = View.load("s", "c", Past(1))
    view.flights["s/0"] = Flight(Op.UPSERT, "sent")
    view.note(notice(Op.UPSERT, Verdict.WRITTEN, first=False))
    assert "s/0" in view.flights
    view.note(notice(Op.UPSERT, Verdict.WRITTEN))
    assert view.flights == {}
    assert view.files["s/0"].signature == "read"


def test_what_is_superseded_again_and_again_is_looked_at_less_and_less() -> None:
    """A file that never keeps still does not keep the source busy."""
    view = View.load("s", "c", Past(1))
    waits = [view.note(notice(Op.UPSERT, Verdict.SUPERSEDED)) for _ in range(20)]
    assert waits[:3] == [0.05, 0.1, 0.2]
    assert waits[-1] == waits[-2]
    view.note(notice(Op.UPSERT, Verdict.WRITTEN))
    assert view.note(notice(Op.UPSERT, Verdict.SUPERSEDED)) == 0.05
