r"""Questions in Milvus's filter language: one column that is one of many texts.

A server reads a text in an expression as Go reads a string, Milvus Lite with a reader of its own that knows six
escapes, and both take every other character as it stands, control characters and the null character too (tried on
2.3.5 and Lite 3.2). So only what both must have escaped is. JSON's escapes were turned down: Lite knows none that is
written with ``\u``, and a server refuses the halves of characters that JSON makes of an emoji. Filter templates, which
need no quoting, are in neither of the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MOST_BYTES = 64 * 1024
"""Of the texts in one question: a server reads 4 microseconds at each byte that is not ASCII, 2 MB take it 8 s."""
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def quoted(text: str) -> str:
    """Return a text as it stands in an expression. Half a character (a lone surrogate) cannot be sent at all."""
    return f'"{text.translate(_ESCAPES)}"'


def one_of(column: str, texts: Iterable[str]) -> str:
    """Return the expression that a column is one of these texts."""
    return f"{column} in [{', '.join(map(quoted, texts))}]"


def runs(texts: Iterable[str], most: int, most_bytes: int = MOST_BYTES) -> Iterator[Sequence[str]]:
    """Cut texts into what one question can name. A text over ``most_bytes`` gets a question of its own.

    Args:
        texts: Without half characters.
        most: How many at once.
        most_bytes: Of UTF-8, at once.
    """
    run: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if run and (len(run) >= most or size + length > most_bytes):
            yield run
            run, size = [], 0
        run.append(text)
        size += length
    if run:
        yield run


def keepable(texts: Iterable[str], most_bytes: int) -> list[str]:
    """Return those that a column of that length can hold, each once: of the others there is nothing to ask for."""
    return [text for text in dict.fromkeys(texts) if _length(text) <= most_bytes]


def _length(text: str) -> float:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return float("inf")
