"""What kind of document some bytes are: by signature, by what the source says, by extension, by looking at them.

A signature of a binary format wins, whatever name and content type say: a PDF called ``notes.txt`` is not to be read
as text. Then a content type is more than an extension, and what has neither is text if it looks like it. libmagic was
turned down (a C library that parses untrusted bytes in the daemon), puremagic too (it called every EPUB a DOCX): the
formats that matter are in the tables below.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ingestd.extractors._encoding import looks_binary
from ingestd.extractors._media_type import media_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingestd.model import Content

PLAIN = "text/plain"
BINARY = "application/octet-stream"

_ZIP = "application/zip"
_OLE = "application/x-ole-storage"

_SIGNATURES = (
    # offset, bytes, kind
    (0, b"%PDF-", "application/pdf"),
    (0, b"{\\rtf", "application/rtf"),
    (0, b"PK\x03\x04", _ZIP),
    (0, b"PK\x05\x06", _ZIP),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OLE),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x7fELF", "application/x-elf"),
    (0, b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (0, b"\x00asm", "application/wasm"),
)
_WEAK_SIGNATURES = (
    # Letters that a text could begin with too: they count where a NUL shows that it is none.
    (0, b"GIF8", "image/gif"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"RIFF", "application/x-riff"),
    (0, b"OggS", "application/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"BM", "image/bmp"),
    (0, b"MZ", "application/vnd.microsoft.portable-executable"),
    (0, b"PAR1", "application/vnd.apache.parquet"),
    (4, b"ftyp", "video/mp4"),
    (257, b"ustar", "application/x-tar"),
)

# Read as they stand: prose, logs, settings, source code.
_PLAIN_EXTENSIONS = """.adoc .asc .bash .bat .bib .c .cc .cfg .clj .cmake .conf .cpp .cs .css .dart .diff .env .erl .ex
    .f90 .go .gradle .graphql .h .hcl .hpp .hs .ini .java .jl .js .jsx .kt .less .lisp .log .lua .m .mjs .ml .nix .org
    .patch .php .pl .po .pod .properties .proto .ps1 .py .pyi .r .rb .rs .rst .scala .scss .sh .sql .srt .swift .tcl
    .tex .text .textile .tf .toml .ts .tsx .txt .vim .vtt .vue .yaml .yml .zig .zsh"""
_EXTENSIONS = {
    ".csv": "text/csv",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".doc": "application/msword",
    ".eml": "message/rfc822",
    ".epub": "application/epub+zip",
    ".geojson": "application/geo+json",
    ".htm": "text/html",
    ".html": "text/html",
    ".ipynb": "application/x-ipynb+json",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".jsonld": "application/ld+json",
    ".markdown": "text/markdown",
    ".mbox": "application/mbox",
    ".md": "text/markdown",
    ".mdown": "text/markdown",
    ".mhtml": "multipart/related",
    ".ndjson": "application/x-ndjson",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".pdf": "application/pdf",
    ".ppt": "application/vnd.ms-powerpoint",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".rss": "application/xml",
    ".rtf": "application/rtf",
    ".svg": "image/svg+xml",
    ".tab": "text/tab-separated-values",
    ".tsv": "text/tab-separated-values",
    ".xht": "text/html",
    ".xhtml": "text/html",
    ".xls": "application/vnd.ms-excel",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".xml": "application/xml",
    **dict.fromkeys(_PLAIN_EXTENSIONS.split(), PLAIN),
}

_ALIASES = {
    "application/csv": "text/csv",
    "application/javascript": PLAIN,
    "application/jsonl": "application/x-ndjson",
    "application/jsonlines": "application/x-ndjson",
    "application/json-seq": "application/x-ndjson",
    "application/ndjson": "application/x-ndjson",
    "application/sql": PLAIN,
    "application/toml": PLAIN,
    "application/x-json": "application/json",
    "application/x-jsonlines": "application/x-ndjson",
    "application/x-pdf": "application/pdf",
    "application/x-sh": PLAIN,
    "application/x-yaml": PLAIN,
    "application/xhtml+xml": "text/html",
    "application/yaml": PLAIN,
    "text/json": "application/json",
    "text/jsonl": "application/x-ndjson",
    "text/rtf": "application/rtf",
    "text/tsv": "text/tab-separated-values",
    "text/x-csv": "text/csv",
    "text/x-markdown": "text/markdown",
    "text/x-ndjson": "application/x-ndjson",
    "text/xml": "application/xml",
}
_SAYS_NOTHING = frozenset({BINARY, "application/unknown", "application/x-unknown", "binary/octet-stream"})
_HTML_START = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE)
_OOXML_OR_ODF = re.compile(r"openxmlformats|opendocument|epub\+zip")


def kind_of(content: Content) -> str:
    """Return the media type of a document, in lower case, without parameters and under its usual name.

    The content is not parsed: only its first kilobytes are looked at.
    """
    by_extension = _EXTENSIONS.get(PurePosixPath(content.name).suffix.lower())
    signed = _signed(content.data, by_extension)
    if signed is not None:
        return signed
    said = media_type(content.content_type)
    if said is not None and said not in _SAYS_NOTHING:
        return _ALIASES.get(said, said)
    if by_extension is not None:
        return by_extension
    if looks_binary(content.data):
        return BINARY
    return "text/html" if _HTML_START.match(content.data[:1024].removeprefix(BOM_UTF8)) else PLAIN


def readable_as(kind: str) -> Iterator[str]:
    """Yield the kinds that a document can be read as, the best first.

    RFC 6839 makes everything that ends in ``+json`` JSON, and RFC 2046 (4.1.4) has a ``text`` type that nobody knows
    shown as plain text.
    """
    yield kind
    if kind.endswith("+json"):
        yield "application/json"
    if kind.startswith("text/"):
        yield PLAIN


def _signed(data: bytes, by_extension: str | None) -> str | None:
    kind = _match(data, _SIGNATURES)
    if kind is None and b"\0" in data[:4096]:
        kind = _match(data, _WEAK_SIGNATURES)
    if kind == _ZIP:
        return _zipped(data, by_extension)
    if kind == _OLE and by_extension is not None and by_extension.startswith("application/"):
        return by_extension
    return kind


def _match(data: bytes, table: tuple[tuple[int, bytes, str], ...]) -> str | None:
    return next((kind for offset, mark, kind in table if data.startswith(mark, offset)), None)


def _zipped(data: bytes, by_extension: str | None) -> str:
    """Return what a zip file is: EPUB and OpenDocument say it in their first entry, OOXML only in its name."""
    if data[30:38] == b"mimetype":
        said = re.match(rb"[a-z]+/[a-z0-9.+-]{1,100}", data[38:140])
        if said is not None:
            return said[0].decode("ascii")  # ends before the next entry's header, which is in capitals
    if by_extension is not None and _OOXML_OR_ODF.search(by_extension):
        return by_extension
    return _ZIP
