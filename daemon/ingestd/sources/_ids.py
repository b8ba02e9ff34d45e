r"""Names of files as document ids, and back.

A file's id is ``<source name>/`` and its path below the root. A path is bytes, an id is text, and the way between them
has to be reversible and the same on every machine, so the process's locale has no say in it:

- what is UTF-8 stays as it is;
- a byte that is not becomes ``%`` and two upper-case hexadecimal digits (``%80`` to ``%FF``);
- a ``%`` that stands in the name itself becomes ``%25``, but only where it would be read as one of those two:
  ``100%.txt`` and ``a%20b.txt`` stay as they are, ``%E4.txt`` becomes ``%25E4.txt``.

``surrogateescape`` was turned down: lone surrogates are no UTF-8, and neither Milvus nor JSON takes them. Escaping
every ``%`` was too: it changes names that are in no danger.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(rb"%(25|[89A-F][0-9A-F])")
_TO_ESCAPE = re.compile("%(?=25|[89A-F][0-9A-F])|[\udc80-\udcff]")


def escape(name: bytes) -> str:
    """Return a file's name, or a whole path, as text that is valid UTF-8 whatever the bytes are."""
    text = name.decode("utf-8", "surrogateescape")
    if "%" not in text and text.isascii():
        return text
    return _TO_ESCAPE.sub(_escaped, text)


def unescape(text: str) -> bytes:
    """Return the bytes that ``escape`` made the text of.

    Raises:
        UnicodeEncodeError: The text is no valid UTF-8, so ``escape`` did not make it.
    """
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), text.encode())


def document_id(source: str, path: bytes) -> str:
    """Return the id of the file at a path below the root of a source."""
    return f"{source}/{escape(path)}"


def path_of(source: str, document: str) -> bytes | None:
    """Return the path below the root that an id stands for, or None if no file of the source can have that id.

    Ids come back from disk (ledger, retry queue, dead letters), so nothing that leads out of the root gets through.
    """
    prefix, slash, rest = document[: len(source)], document[len(source) : len(source) + 1], document[len(source) + 1 :]
    if prefix != source or slash != "/":
        return None
    try:
        path = unescape(rest)
    except UnicodeEncodeError:
        return None
    if b"\0" in path or any(part in {b"", b".", b".."} for part in path.split(b"/")):
        return None
    return path if escape(path) == rest else None


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return "%25" if character == "%" else f"%{ord(character) - 0xDC00:02X}"
