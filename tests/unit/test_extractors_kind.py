"""The kind of a document is found by signature, declaration, extension and content, in this order."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.extractors._kind import kind_of, readable_as
from ingestd.extractors._media_type import media_type, parameter, with_media_type
from ingestd.model import Content


def kind(name: str, data: bytes = b"some text", content_type: str | None = None) -> str:
    """Return the kind of a document."""
    return kind_of(Content(data, name, content_type))


def zipped(first: str, says: str) -> bytes:
    """Return a zip file with one stored entry, and another one after it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(first, says)
        archive.writestr("other", "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("notes.txt", "text/plain"),
        ("NOTES.TXT", "text/plain"),
        ("app.log", "text/plain"),
        ("main.py", "text/plain"),
        ("values.yaml", "text/plain"),
        ("Cargo.toml", "text/plain"),
        ("guide.rst", "text/plain"),
        ("a/b.md", "text/markdown"),
        ("page.html", "text/html"),
        ("data.json", "application/json"),
        ("data.jsonl", "application/x-ndjson"),
        ("table.csv", "text/csv"),
        ("table.tsv", "text/tab-separated-values"),
        ("feed.xml", "application/xml"),
        ("README", "text/plain"),
        ("v1.2", "text/plain"),
        ("orders/17", "text/plain"),
    ],
)
def test_extensions(name: str, expected: str) -> None:
    """Clean text is what its extension says, and plain text where that says nothing."""
    assert kind(name) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"%PDF-1.7\n", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
        (b"\x1f\x8b\x08\0", "application/gzip"),
        (b"\x7fELF\x02\x01", "application/x-elf"),
        (b"SQLite format 3\0", "application/vnd.sqlite3"),
        (b"{\\rtf1\\ansi}", "application/rtf"),
        (b"GIF89a\x01\0\x01\0", "image/gif"),
        (zipped("a.txt", "x"), "application/zip"),
        (b"\0" * 257 + b"ustar", "application/x-tar"),
    ],
)
@pytest.mark.parametrize("name", ["notes.txt", "page.html", "data.json", "thing"])
def test_signatures_win(name: str, data: bytes, expected: str) -> None:
    """A binary format is recognised under any name, and against any declaration."""
    assert kind(name, data) == expected
    assert kind(name, data, "text/plain") == expected


@pytest.mark.parametrize("text", [b"BM is a code", b"MZ", b"ID3 tags are old", b"GIF89a was a format", b"0123ftyp"])
def test_letters_are_no_signature(text: bytes) -> None:
    """Text that begins with the letters of a signature stays text."""
    assert kind("notes.txt", text) == "text/plain"


def test_zip_containers() -> None:
    """EPUB and OpenDocument say what they are; an Office file is told by its name; others are zip files."""
    epub = zipped("mimetype", "application/epub+zip")
    assert kind("book.bin", epub) == "application/epub+zip"
    assert kind("book.docx", epub) == "application/epub+zip"
    assert kind("a.odt", zipped("mimetype", "application/vnd.oasis.opendocument.text")).endswith("opendocument.text")
    assert kind("a.docx", zipped("[Content_Types].xml", "")).endswith("wordprocessingml.document")
    assert kind("a.txt", zipped("[Content_Types].xml", "")) == "application/zip"


def test_old_office_files() -> None:
    """Old Office formats share a signature, and are told by their names."""
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0"
    assert kind("a.doc", ole) == "application/msword"
    assert kind("a.txt", ole) == "application/x-ole-storage"


def test_content_type_is_more_than_an_extension() -> None:
    """What a source declares comes before the name, under its usual spelling and without parameters."""
    assert kind("a.txt", content_type="Text/HTML; charset=utf-8") == "text/html"
    assert kind("a.txt", content_type="text/x-markdown") == "text/markdown"
    assert kind("a.md", content_type="application/octet-stream") == "text/markdown"
    assert kind("a.md", content_type="nonsense") == "text/markdown"


def test_unknown_binary() -> None:
    """Bytes that are no text, under a name that says nothing, are binary."""
    assert kind("thing", b"\x01\x02\0\x03") == "application/octet-stream"
    assert kind("thing", "wide".encode("utf-16")) == "text/plain"


@pytest.mark.parametrize("start", [b"<!DOCTYPE html>", b"\xef\xbb\xbf \n<html lang=en>", b"<HTML>"])
def test_html_without_a_name(start: bytes) -> None:
    """A page is recognised by its beginning where nothing else says what it is, and only there."""
    assert kind("orders/17", start) == "text/html"
    assert kind("notes.txt", start) == "text/plain"


def test_readable_as() -> None:
    """Suffixes and unknown text types fall back as their RFCs say; other kinds are only themselves."""
    assert list(readable_as("application/geo+json")) == ["application/geo+json", "application/json"]
    assert list(readable_as("text/troff")) == ["text/troff", "text/plain"]
    assert list(readable_as("application/xml")) == ["application/xml"]


@given(st.binary(max_size=400), st.text(max_size=20), st.none() | st.text(max_size=40))
def test_always_an_answer(data: bytes, name: str, content_type: str | None) -> None:
    """Whatever a document looks like, it has a kind, and always the same one."""
    found = kind(name, data, content_type)
    assert "/" in found
    assert found == kind(name, data, content_type)


def test_media_types() -> None:
    """A content type is taken apart as people write it."""
    said = 'Text/HTML; Charset="UTF-8"; q=1'
    assert media_type(said) == "text/html"
    assert parameter(said, "charset") == "UTF-8"
    assert parameter(said, "boundary") is None
    assert parameter("text/html; charset=", "charset") is None
    assert media_type(None) is None
    assert with_media_type(said, "text/plain") == 'text/plain; Charset="UTF-8"; q=1'
    assert with_media_type(None, "text/plain") == "text/plain"
