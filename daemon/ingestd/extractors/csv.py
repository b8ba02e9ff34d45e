"""CSV tables: a paragraph a row, a line a cell, each after its column's name.

So a chunk that holds a few rows still says what their values mean. The standard library's Sniffer was turned down: its
patterns take quadratic time on long lines without quotes, and it takes letters for delimiters. Here the delimiter is
the one that gives the first rows the same, and the largest, number of cells.
"""

from __future__ import annotations

import csv
from collections import Counter
from io import StringIO
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ingestd.errors import DocumentError
from ingestd.extractors._encoding import decode
from ingestd.extractors._media_type import media_type, parameter
from ingestd.model import Document

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingestd.model import Content

TABS = "text/tab-separated-values"
_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED_CHARACTERS = 64 * 1024
_SNIFFED_ROWS = 50


class Config(BaseModel):
    """CSV and other tables of delimited text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: ClassVar[tuple[str, ...]] = ("text/csv", TABS)
    revision: ClassVar[int] = 1

    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        pattern=r'[^\r\n"]',
        description="What stands between cells; by default it is found out.",
    )
    header: bool = Field(default=True, description="The first row names the columns.")
    max_rows: int = Field(default=100_000, ge=1, description="Rows beyond which a table is refused.")
    max_columns: int = Field(default=1_000, ge=1, description="Cells of a row beyond which a table is refused.")
    max_field: int = Field(default=1_000_000, ge=1, description="Characters of a cell beyond which a table is refused.")

    def build(self) -> CsvExtractor:
        """Return the extractor."""
        return CsvExtractor(self)


class CsvExtractor:
    """Reads text/csv and text/tab-separated-values. One thread at a time: the csv module's field limit is global.

    Args:
        config: The settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def extract(self, content: Content) -> Document:
        """Return the table's cells as lines ``column: value``, and its rows as paragraphs. Empty cells are left out.

        Raises:
            DocumentError: The bytes are no text, or the table is beyond a limit.
        """
        text = decode(content.data, charset=parameter(content.content_type, "charset"))
        delimiter = self._config.delimiter
        if delimiter is None:
            delimiter = "\t" if media_type(content.content_type) == TABS else _sniff(text)
        previous = csv.field_size_limit(self._config.max_field)
        try:
            return Document("\n\n".join(self._paragraphs(text, delimiter)))
        finally:
            csv.field_size_limit(previous)

    def _paragraphs(self, text: str, delimiter: str) -> Iterator[str]:
        rows = self._rows(text, delimiter)
        names = [name.strip() for name in next(rows, [])] if self._config.header else []
        for row in rows:
            cells = [f"{_name(names, at)}{cell}" for at, value in enumerate(row) if (cell := value.strip())]
            if cells:
                yield "\n".join(cells)

    def _rows(self, text: str, delimiter: str) -> Iterator[Sequence[str]]:
        config = self._config
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
        try:
            for number, row in enumerate(reader, start=1):
                if number > config.max_rows + config.header:
                    raise DocumentError(f"a table of more than {config.max_rows} rows (max_rows)")
                if len(row) > config.max_columns:
                    where = f"line {reader.line_num}"
                    raise DocumentError(f"{where} has more than {config.max_columns} cells (max_columns)")
                yield row
        except csv.Error as error:
            where = f"line {reader.line_num + 1}"
            raise DocumentError(f"not a readable table at {where}: {error} (max_field = {config.max_field})") from error


def _name(names: Sequence[str], at: int) -> str:
    if not names:
        return ""
    name = names[at] if at < len(names) else ""
    return f"{name or f'column {at + 1}'}: "


def _sniff(text: str) -> str:
    """Return the delimiter by which the most of the first rows have equally many cells, the more the better."""

    def score(delimiter: str) -> tuple[float, int]:
        reader = csv.reader(StringIO(text[:_SNIFFED_CHARACTERS], newline=""), delimiter=delimiter)
        widths = Counter(len(row) for row in islice(reader, _SNIFFED_ROWS) if row)
        width, rows = max(widths.items(), key=lambda item: item[1], default=(1, 0))
        return (rows / widths.total(), width) if width > 1 else (0.0, 1)

    return max(_DELIMITERS, key=score)
