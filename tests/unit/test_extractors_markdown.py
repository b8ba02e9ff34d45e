"""Markdown becomes the text that a reader sees."""

from __future__ import annotations

import pytest

from ingestd.errors import DocumentError
from ingestd.extractors.markdown import Config
from ingestd.model import Content, Document


def read(text: str) -> Document:
    """Return what the extractor makes of a text."""
    return Config().build().extract(Content(text.encode(), "page.md"))


def test_inline() -> None:
    """Emphasis and link targets go; link texts, code, images' descriptions and entities stay."""
    source = "Some **bold** [link *text*](http://x) ![a cat](c.png), `co*de`, ~~old~~ &copy; <b>raw</b> <br>end"
    assert read(source).text == "Some bold link text a cat, co*de, old © raw \nend"


def test_blocks() -> None:
    """Headings and code are paragraphs of their own; a quote is its text."""
    source = "# Head *one*\nText\nruns on\n\n```python\ndef f():\n    return 1\n```\n\n> said\n\n***\n\n    code"
    assert read(source).text == "Head one\n\nText\nruns on\n\ndef f():\n    return 1\n\nsaid\n\ncode"


def test_lists() -> None:
    """Items keep their marks and their nesting; loose items stay apart."""
    source = "Intro\n- a\n- b\n  - c\n    more\n\nMid\n\n3. x\n\n   y\n4. z"
    assert read(source).text == "Intro\n\n- a\n- b\n  - c\n    more\n\nMid\n\n3. x\n\n  y\n\n4. z"


def test_table() -> None:
    """A table's rows are lines."""
    assert read("before\n\n| a | b |\n|---|---|\n| 1 | *2* |\n\nafter").text == "before\n\na | b\n1 | 2\n\nafter"


def test_html_in_markdown() -> None:
    """HTML blocks are read as HTML, and comments are no text."""
    assert read("<div align=center>\n<img alt='Logo'> <b>Name</b>\n</div>\n\n<!-- c -->\n\ntext").text == (
        "Logo Name\n\ntext"
    )


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("title: My: Title", "My: Title"),
        ('tags: [a,\n  b]\ntitle: "Quoted"\n# comment', "Quoted"),
        ("date: 2024-01-01\n- x", "Head"),
    ],
)
def test_front_matter(front: str, title: str) -> None:
    """A YAML block at the top is no text, and its title goes before the first heading."""
    document = read(f"---\n{front}\n---\n# Head\n\ntext")
    assert (document.title, document.text) == (title, "Head\n\ntext")


def test_rule_is_no_front_matter() -> None:
    """Prose between two horizontal rules at the top stays."""
    assert read("---\nJust prose here\n---\n\ntext").text == "Just prose here\n\ntext"


def test_title() -> None:
    """The title is the first heading of the first level; a document may have none."""
    assert read("## Two\n\nOne *and*\nonly\n===\n\n# Other").title == "One and only"
    assert read("## Two").title is None


def test_nesting_is_read_or_refused() -> None:
    """Deep lists are read to their ends; what the parser would leave out in silence is refused."""
    deep = "\n".join("  " * level + f"- item {level}" for level in range(60))
    assert read(deep).text == deep
    with pytest.raises(DocumentError, match="nested too deeply"):
        read("> " * 5_000 + "end")
