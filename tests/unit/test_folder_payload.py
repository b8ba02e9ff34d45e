"""Reading a file: exactly what was seen, or the reason why not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from ingestd.errors import DocumentError, Superseded, TransientError
from ingestd.sources._globs import Globs
from ingestd.sources._payload import SIDECAR_BYTES, SIDECAR_DEPTH, FilePayload
from ingestd.sources._tree import RootGoneError, Tree


def descriptors() -> int:
    """Return how many are open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def payload(root: Path, name: str = "a", *, follow: bool = False, max_bytes: int = 1 << 20) -> FilePayload:
    """Return the payload of a file as it is now."""
    tree = Tree(os.fsencode(root), Globs(["**/*"], []), follow=follow)
    found = tree.look(name.encode())
    assert found is not None
    return FilePayload(tree, name.encode(), f"s/{name}", found.shape, max_bytes)


def test_a_file_is_read_with_its_name_and_signature(tmp_path: Path) -> None:
    """The signature is the one that the next scan will see."""
    (tmp_path / "a").write_bytes(b"\0text")
    content = payload(tmp_path).read()
    found = payload(tmp_path).tree.look(b"a")
    assert found is not None
    assert (content.data, content.name, content.signature) == (b"\0text", "a", found.signature)


def test_a_chmod_between_look_and_read_is_no_change_of_content(tmp_path: Path) -> None:
    """It is read, with the new signature: on some file systems inode and ctime change at every look."""
    (tmp_path / "a").write_text("x")
    reads = payload(tmp_path)
    (tmp_path / "a").chmod(0o600)
    found = reads.tree.look(b"a")
    assert found is not None
    assert reads.read().signature == found.signature


@pytest.mark.parametrize("what", ["grown", "gone", "directory", "fifo", "symlink", "root gone", "sidecar", "parent"])
def test_what_is_no_longer_as_it_was_seen_is_superseded(tmp_path: Path, what: str) -> None:
    """Never half of it, never another file's bytes, and a FIFO blocks nobody."""
    root = tmp_path / "root"
    path = root / "x" / "a"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    (tmp_path / "secret").write_text("s")
    for one in (path, tmp_path / "secret"):  # they look the same but for what they are
        os.utime(one, ns=(5, 5))
    reads = payload(root, "x/a")
    if what == "grown":
        path.write_text("xx")
    elif what == "sidecar":
        (root / "x" / "a.meta.json").write_text("{}")
    elif what == "root gone":
        root.rename(tmp_path / "elsewhere")
    elif what == "parent":
        path.parent.rename(tmp_path / "moved")
        path.parent.symlink_to(tmp_path / "moved")
    else:
        path.unlink()
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "symlink":
        path.symlink_to(tmp_path / "secret")
    with pytest.raises(Superseded):
        reads.read()


def test_a_file_that_changes_while_it_is_read_is_superseded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its size stays the same."""
    path = tmp_path / "a"
    path.write_text("before")
    reads, read = payload(tmp_path), os.read

    def slow(descriptor: int, length: int) -> bytes:
        data = read(descriptor, length)
        path.write_text("after!")
        os.utime(path, ns=(1, 1))
        return data

    monkeypatch.setattr(os, "read", slow)
    with pytest.raises(Superseded, match="changed while it was read"):
        reads.read()


def test_an_io_error_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's trouble is not the document's."""
    (tmp_path / "a").write_text("x")
    reads = payload(tmp_path)

    def broken(descriptor: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", broken)
    with pytest.raises(TransientError, match="s/a could not be read: Input/output error"):
        reads.read()


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    """The message has both numbers and the key to raise."""
    (tmp_path / "a").write_text("12345")
    with pytest.raises(DocumentError, match=r"s/a is 5 bytes; the most is 4; raise \[limits\] max_bytes"):
        payload(tmp_path, max_bytes=4).read()
    assert payload(tmp_path, max_bytes=5).read().data == b"12345"


@pytest.mark.parametrize(
    ("sidecar", "why"),
    [
        (b"{", "cannot be used as JSON"),
        (b"\xff", "cannot be used as JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\\ud800"}', "cannot be used as JSON"),
        (b"[" * 100_000, "cannot be used as JSON"),
        (b'{"a": ' + b"[" * SIDECAR_DEPTH + b"]" * SIDECAR_DEPTH + b"}", "nested more than 32 levels deep"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested more than 32 levels deep"),
        (b"1" * 10_000, "cannot be used as JSON"),
        (b"[]", "no JSON object"),
        (b'{"title": 1}', "'title'"),
        (b'{"content_type": []}', "'content_type'"),
        (b" " * (SIDECAR_BYTES + 1), "over 1048576 bytes"),
    ],
)
def test_a_bad_sidecar_is_named(tmp_path: Path, sidecar: bytes, why: str) -> None:
    """The document fails, with the sidecar's name and what is wrong with it."""
    (tmp_path / "a").write_text("x")
    (tmp_path / "a.meta.json").write_bytes(sidecar)
    with pytest.raises(DocumentError, match=r"s/a.*a\.meta\.json") as caught:
        payload(tmp_path).read()
    assert why in str(caught.value)


def test_a_sidecar_may_have_a_byte_order_mark_and_nulls(tmp_path: Path) -> None:
    """Editors write one; a title of null is none."""
    (tmp_path / "a").write_text("x")
    (tmp_path / "a.meta.json").write_bytes(b'\xef\xbb\xbf{"title": null, "b": 1}')
    content = payload(tmp_path).read()
    assert (content.title, content.metadata) == (None, {"b": 1})


def test_a_nested_sidecar_reaches_another_process(tmp_path: Path) -> None:
    """As deep as a sidecar may be, what it says can be pickled, as it is on the way to the extraction's process."""
    (tmp_path / "a").write_text("x")
    inner = b"[" * (SIDECAR_DEPTH - 1) + b"]" * (SIDECAR_DEPTH - 1)
    (tmp_path / "a.meta.json").write_bytes(b'{"a": ' + inner + b"}")
    content = payload(tmp_path).read()
    assert pickle.loads(pickle.dumps(content)) == content


def test_a_sidecar_that_is_no_regular_file_is_none(tmp_path: Path) -> None:
    """A directory or a FIFO of that name says nothing."""
    (tmp_path / "a").write_text("x")
    os.mkfifo(tmp_path / "a.meta.json")
    assert payload(tmp_path).read().metadata == {}


def test_a_followed_symlink_cannot_be_turned_outside(tmp_path: Path) -> None:
    """Between look and read it is pointed elsewhere: what is opened is what is judged."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "real").write_text("x")
    (tmp_path / "out").write_text("x")
    os.utime(tmp_path / "out", ns=(5, 5))
    os.utime(root / "real", ns=(5, 5))
    (root / "a").symlink_to("real")
    reads = payload(root, follow=True)
    assert reads.read().data == b"x"
    (root / "a").unlink()
    (root / "a").symlink_to(tmp_path / "out")
    with pytest.raises(Superseded):
        reads.read()


def test_a_look_without_a_root_is_not_an_absence(tmp_path: Path) -> None:
    """Whether a file exists cannot be said where its root does not."""
    tree = Tree(os.fsencode(tmp_path / "nowhere"), Globs(["**/*"], []))
    with pytest.raises(RootGoneError):
        tree.look(b"a")


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Whether a read ends well or not."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a").write_text("x")
    (tmp_path / "x/a.meta.json").write_text("[]")
    before = descriptors()
    for _ in range(5):
        with pytest.raises(DocumentError):
            payload(tmp_path, "x/a").read()
        with pytest.raises(DocumentError):
            payload(tmp_path, "x/a", follow=True).read()
    assert descriptors() == before
