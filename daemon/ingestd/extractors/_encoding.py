"""Bytes to clean text: which encoding they are in, and what of the result is kept.

The order in which encodings are tried was measured. A byte order mark decides, as in the WHATWG's Encoding Standard;
then what the source, or the document itself, declares, if the bytes really are that; then strict UTF-8, which text in
any other encoding hardly ever passes; then UTF-8 with a few broken bytes (logs cut in the middle of a character).
What is left and is nearly all ASCII (or short, and mostly ASCII) is Windows-1252: charset-normalizer takes a lone
pound sign for Japanese. Only what has many non-ASCII bytes is left to charset-normalizer, whose statistics need them.

UTF-16 without a byte order mark is read where it is declared; undeclared it is full of NULs and counts as binary.
"""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

from ingestd.errors import DocumentError

SAMPLE = 64 * 1024
"""Bytes that are looked at where a look at all of them would cost too much."""

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NO_CHARSETS = frozenset({"idna", "mbcs", "oem", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"})
"""Codecs of Python's that are no encodings of documents."""

_CONTROL_BYTES = bytes(set(range(0x20)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"
_CONTROL_SHARE = 0.05
"""Text has next to no control characters; the share in random bytes is about 0.1, in executables more."""
_ASCII = bytes(range(0x80))
_ASCII_SHARE_OF_WESTERN = 0.9
_SHORT = 200
"""Bytes below which statistics have too little to go by: they read "Straße" as UTF-16, "crème" as Central European."""
_ASCII_SHARE_OF_SHORT_WESTERN = 0.5
"""In Western languages hardly every fifth letter has an accent; in Cyrillic or Japanese most bytes are not ASCII."""
_BROKEN_SHARE = 0.1

_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def decode(data: bytes, *, charset: str | None = None) -> str:
    r"""Return the text that the bytes hold, tidied.

    Args:
        data: The bytes of a document.
        charset: The encoding that the source or the document declares. It is believed if the bytes decode by it.

    Raises:
        DocumentError: The bytes are binary, or in no encoding that is known.
    """
    text = _declared(data, charset)
    return tidy(text if text is not None else _detected(data))


def tidy(text: str) -> str:
    r"""Return the text with ``\n`` as its only line end, without control characters, and encodable as UTF-8.

    Tabs stay. Vertical tabs, form feeds and NEL end lines. A lone surrogate (JSON can escape one) becomes U+FFFD.
    """
    text = text.removeprefix("\ufeff")
    if _ODD.search(text) is None:
        return text
    text = _LINE_ENDS.sub("\n", text)
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))


def looks_binary(data: bytes) -> bool:
    """Return whether the beginning of the data is no text in any encoding that needs no byte order mark."""
    head = data[:SAMPLE]
    if any(head.startswith(mark) for mark, _ in _BOMS):
        return False
    controls = len(head) - len(head.translate(None, _CONTROL_BYTES))
    return b"\0" in head or controls > len(head) * _CONTROL_SHARE


def _declared(data: bytes, charset: str | None) -> str | None:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            text = _strictly(data[len(mark) :], encoding)
            if text is not None:
                return text
    if charset is None:
        return None
    try:
        encoding = codecs.lookup(charset).name
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        return None
    if encoding.replace("-", "_") in _NO_CHARSETS:
        return None
    if encoding == "iso8859-1":  # on the web the label means Windows-1252, which is the same but for controls
        text = _strictly(data, "cp1252")
        if text is not None:
            return text
    return _strictly(data, encoding)


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (LookupError, ValueError):  # LookupError: a codec from bytes to bytes
        return None


def _detected(data: bytes) -> str:
    if b"\0" in data or looks_binary(data):
        raise DocumentError("binary content where text was expected (it has NULs or control characters)")
    text = _strictly(data, "utf-8")
    if text is not None:
        return text
    text = _nearly_utf8(data)
    if text is not None:
        return text
    western = _ASCII_SHARE_OF_SHORT_WESTERN if len(data) < _SHORT else _ASCII_SHARE_OF_WESTERN
    if len(data) - len(data.translate(None, _ASCII)) >= len(data) * western:
        text = _strictly(data, "cp1252")
        if text is not None:
            return text
    return _guessed(data)


def _nearly_utf8(data: bytes) -> str | None:
    """Return UTF-8 with a few broken characters as U+FFFD; None where too many are, so that it is something else."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd") - data.count("\ufffd".encode())
    whole = len(text) - len(text.encode("ascii", "ignore")) - broken
    return text if broken <= whole * _BROKEN_SHARE else None


def _guessed(data: bytes) -> str:
    sample = data[:SAMPLE]
    if len(data) > SAMPLE and b"\n" in sample:
        sample = sample[: sample.rindex(b"\n") + 1]  # not in the middle of a character
    best = from_bytes(sample, enable_fallback=False).best()
    if best is None:
        raise DocumentError("binary content, or text in an encoding that cannot be told; save it as UTF-8")
    text = _strictly(data, best.encoding)
    if text is None:
        raise DocumentError(f"its beginning looks like {best.encoding}, but not all of it is; save it as UTF-8")
    return text
