"""Values that are files: the key is the id, headers say the rest."""

from __future__ import annotations

import pytest

from ingestd.errors import ConfigError
from ingestd.model import Content, Op, Record
from ingestd.sources._values.config import RawFormat, decoder
from ingestd.sources._values.decoded import Decoded, UnreadableError, ValueLimits

LIMITS = ValueLimits(max_value_bytes=100, max_bytes=50)
HEADERS = (
    ("Content-Type", b"text/plain"),
    ("content-type", b"application/pdf"),
    ("x-title", "Ünder".encode()),
    ("x-lang", b"de"),
    ("x-null", None),
    ("file-name", b"report.pdf"),
)
FULL = RawFormat(title_header="x-title", metadata_headers={"lang": "X-Lang", "no": "x-no", "null": "x-null"})


def read(config: RawFormat, value: bytes | None, key: bytes | None = b"a", headers: tuple[object, ...] = ()) -> Decoded:
    """Return what a record says."""
    record = Record("files", 0, 5, 0, key, value, headers)  # type: ignore[arg-type]
    return decoder(config, id_from="auto", source="files", limits=LIMITS).decode(record)


def test_a_file_with_headers() -> None:
    """The last header of a name counts, in whatever case; the name is a hint at the kind."""
    found = read(FULL, b"%PDF", headers=HEADERS)
    assert (found.document_id, found.op, found.version, found.size) == ("a", Op.UPSERT, None, 4)
    assert found.payload is not None
    assert found.payload.read() == Content(b"%PDF", "report.pdf", "application/pdf", "Ünder", {"lang": "de"})


def test_a_file_without_headers() -> None:
    """The configured type counts where no header says one; an empty file is a file."""
    found = read(RawFormat(content_type="text/markdown"), b"", b"notes.md")
    assert found.payload is not None
    assert found.payload.read() == Content(b"", "notes.md", "text/markdown")


def test_no_value_deletes() -> None:
    """A tombstone deletes what its key names."""
    assert read(FULL, None) == Decoded("a", Op.DELETE, None, None, 0)


@pytest.mark.parametrize(
    ("value", "key", "headers", "why", "document"),
    [
        (b"x", None, (), "neither in its value nor as its key", None),
        (None, None, (), "tombstone without a key", None),
        (b"x", b"\xff", (), "no UTF-8", None),
        (b"x", b"a", (("content-type", b"\xff"),), "header 'content-type' is no UTF-8", "a"),
        (b"x" * 101, b"a", (), "max_value_bytes", "a"),
        (b"x" * 51, b"a", (), "max_bytes", "a"),
    ],
)
def test_what_is_refused(
    value: bytes | None, key: bytes | None, headers: tuple[object, ...], why: str, document: str | None
) -> None:
    """It says what is wrong, and which document it is where the key tells."""
    with pytest.raises(UnreadableError, match=f"^files/0@5: .*{why}") as caught:
        read(FULL, value, key, headers)
    assert caught.value.document_id == document


def test_ids_cannot_come_from_the_value() -> None:
    """A file names no document."""
    with pytest.raises(ConfigError, match="id_from"):
        decoder(FULL, id_from="value", source="files", limits=LIMITS)
