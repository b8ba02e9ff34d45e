"""A page becomes the text that a reader sees, with its blocks set apart."""

from __future__ import annotations

import pytest

from ingestd.extractors.html import Config
from ingestd.model import Content, Document


def read(page: str | bytes, content_type: str | None = None, *, boilerplate: bool = False) -> Document:
    """Return what the extractor makes of a page."""
    data = page if isinstance(page, bytes) else page.encode()
    return Config(boilerplate=boilerplate).build().extract(Content(data, "page.html", content_type))


def test_blocks() -> None:
    """Blocks stand between blank lines, inline elements run on, and white space collapses."""
    page = "<h1>Head</h1><p>One <a href=x>two</a>,\n  <b>three</b>.<p>Four<br>five<div>six<div>seven</div></div>eight"
    assert read(page).text == "Head\n\nOne two, three.\n\nFour\nfive\n\nsix\n\nseven\n\neight"


def test_words_stay_whole() -> None:
    """An element within a word does not split it, and a space around one is kept once."""
    assert read("<p>un<b>believ</b>able<i> thing </i> here").text == "unbelievable thing here"


def test_lists_and_tables() -> None:
    """Items and rows stand on lines of their own, and cells are set apart."""
    page = "<ul><li>a<li>b</ul><table><tr><th>x<th>y<tr><td>1<td>2</table>"
    assert read(page).text == "a\nb\n\nx | y\n1 | 2"


def test_preformatted() -> None:
    """What keeps its white space in a browser keeps it here, and nothing after it does."""
    assert read("<p>a<pre>\n  x\n    y\n\n</pre><p>b   c").text == "a\n\n  x\n    y\n\nb c"


def test_invisible() -> None:
    """Scripts, styles, templates, comments and hidden elements are no text."""
    page = """<head><style>s</style></head><body hidden>seen<script>x()</script><template><p>t</p></template>
        <noscript>n</noscript><!-- c --><p hidden>h</p><svg><text>v</text></svg></body>"""
    assert read(page).text == "seen"


def test_boilerplate() -> None:
    """Navigation and footers are left out unless they are asked for; a header's headline stays."""
    page = "<nav>menu</nav><header><h1>Head</h1></header><p>text</p><button>ok</button><footer>foot</footer>"
    assert read(page).text == "Head\n\ntext"
    assert read(page, boilerplate=True).text == "menu\n\nHead\n\ntext\n\nok\n\nfoot"


def test_entities_and_images() -> None:
    """Entities are decoded, and an image says what its author wrote for those who cannot see it."""
    assert read("<p>&eacute; &lt;b&gt; &#8212;<img src=x alt='a cat'>sat").text == "é <b> — a cat sat"


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("<title> A &amp;\n B </title><h1>C</h1>", "A & B"),
        ("<svg><title>icon</title></svg><h1>C <i>d</i></h1>", "C d"),
        ("<title></title><p>x", None),
    ],
)
def test_title(page: str, title: str | None) -> None:
    """The title is the page's own, or else its first heading; an icon's is neither."""
    assert read(page).title == title


@pytest.mark.parametrize(
    "declaration",
    [
        '<meta charset="koi8-r">',
        '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">',
        '<?xml version="1.0" encoding="koi8-r"?>',
    ],
)
def test_declared_encoding(declaration: str) -> None:
    """A page's own declaration of its encoding is honoured, and the source's goes before it."""
    page = f"<html><head>{declaration}</head><p>мир</p>"
    assert read(page.encode("koi8-r")).text == "мир"
    assert read(page.encode("cp1251"), "text/html; charset=windows-1251").text == "мир"


def test_declaration_that_cannot_be() -> None:
    """A page that declares UTF-16 in ASCII letters is not in UTF-16."""
    assert read("<meta charset=utf-16><p>é — even number").text == "é — even number"


@pytest.mark.parametrize("page", ["", "<frameset><frame src=a></frameset>", "<!-- -->"])
def test_empty(page: str) -> None:
    """A page without text has an empty text."""
    assert read(page).text == ""


def test_deep_nesting_is_walked() -> None:
    """A page may be nested deeper than Python's own recursion goes."""
    assert read("<div>" * 3_000 + "x" + "<span>" * 3_000 + "y").text == "xy"
