"""A table becomes a paragraph a row, with the columns' names beside the values."""

from __future__ import annotations

import csv

import pytest
from pydantic import ValidationError

from ingestd.errors import DocumentError
from ingestd.extractors.csv import TABS, Config
from ingestd.model import Content


def read(text: str, config: Config | None = None, content_type: str | None = None) -> str:
    """Return the text that the extractor makes of a table."""
    return (config or Config()).build().extract(Content(text.encode(), "table.csv", content_type)).text


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_found(delimiter: str) -> None:
    """The delimiter is found, though others stand within the cells."""
    table = [["name", "note"], ["Ann, Bob", "a; b"], ["Eve", "x | y"], ["Tab", "c\td"]]
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in table)
    assert read(text) == "name: Ann, Bob\nnote: a; b\n\nname: Eve\nnote: x | y\n\nname: Tab\nnote: c\td"


def test_odd_rows() -> None:
    """Empty cells and rows are left out, and a cell beyond the header has its number."""
    assert read("a,b\n1,\n\n,2,3\n") == "a: 1\n\nb: 2\ncolumn 3: 3"


def test_quoted_line_end() -> None:
    """A cell may hold line ends and quotes."""
    assert read('a,b\r\n"x\r\ny","say ""hi"""\r\n') == 'a: x\ny\nb: say "hi"'


def test_without_header() -> None:
    """Without a header all rows are values."""
    assert read("1,2\n3,4", Config(header=False)) == "1\n2\n\n3\n4"


def test_single_column_and_nothing() -> None:
    """A table of one column is read whole; one with no rows has no text."""
    assert read("name\nAnn\nBob") == "name: Ann\n\nname: Bob"
    assert read("") == ""
    assert read("a,b\n") == ""


def test_tabs() -> None:
    """A table that is declared to be of tabs is read by tabs."""
    assert read("a,b\tc\n1,2\t3", content_type=TABS) == "a,b: 1,2\nc: 3"


@pytest.mark.parametrize(
    ("text", "config", "reason"),
    [
        ("a\n1\n2\n3", Config(max_rows=2), "max_rows"),
        ("a,b,c\n1,2,3", Config(max_columns=2), "max_columns"),
        ("a\n" + "x" * 11, Config(max_field=10), "max_field"),
        ('a\n"' + "x\n" * 1_000_000, Config(), "max_field"),
    ],
)
def test_limits(text: str, config: Config, reason: str) -> None:
    """A table beyond a limit is refused with the limit's name, not cut short."""
    with pytest.raises(DocumentError, match=reason):
        read(text, config)


def test_limit_is_not_left_behind() -> None:
    """The csv module's limit, which is the whole process's, is as it was afterwards."""
    before = csv.field_size_limit()
    read("a\n1", Config(max_field=10))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("delimiter", ["", "ab", "\n", '"'])
def test_configuration_is_checked(delimiter: str) -> None:
    """A delimiter is one character, and none that the format uses itself."""
    with pytest.raises(ValidationError):
        Config(delimiter=delimiter)
