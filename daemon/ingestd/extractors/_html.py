"""A parsed HTML page to text with its blocks set apart: shared by HTML pages and the HTML inside Markdown.

The tree is walked by its links, never by recursion: a page can be nested as deeply as its author likes. selectolax's
own ``text()`` was turned down: it runs blocks together, or cuts sentences apart at every link.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from selectolax.lexbor import LexborHTMLParser, SelectolaxError

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_INVISIBLE = """area audio base canvas datalist embed head iframe link map meta noembed noframes noscript object param
    script source style svg template track video"""
_LINES_OF_THEIR_OWN = "caption dd dt li option tr"
_PARAGRAPHS = """address article aside blockquote body center details dialog dir div dl fieldset figcaption figure
    footer form frameset h1 h2 h3 h4 h5 h6 header hgroup hr html legend listing main menu nav ol optgroup p plaintext
    pre search section summary table tbody tfoot thead ul xmp"""

INVISIBLE = frozenset(_INVISIBLE.split())
"""Elements that show no text, or none that belongs to the page."""
BOILERPLATE = frozenset({"button", "dialog", "footer", "menu", "nav", "select"})
"""Elements that are about the site, not about the page. ``header`` and ``aside`` hold headlines and notes as well."""

_LINE, _PARAGRAPH = 1, 2
_BREAKS = {**dict.fromkeys(_LINES_OF_THEIR_OWN.split(), _LINE), **dict.fromkeys(_PARAGRAPHS.split(), _PARAGRAPH)}
_CELLS = frozenset({"td", "th"})
_VERBATIM = frozenset({"listing", "plaintext", "pre", "textarea", "xmp"})
_SPACE = re.compile("[ \t\n\f\r]+")


def parsed(page: str) -> LexborHTMLParser:
    """Return the tree of a page.

    Raises:
        MemoryError: There is too little memory for it.
    """
    try:
        return LexborHTMLParser(page)
    except SelectolaxError as error:  # there is no invalid HTML: what fails in lexbor is malloc
        raise MemoryError(str(error)) from error


def title_of(tree: LexborHTMLParser) -> str | None:
    """Return the page's title, or else its first heading; None where it has neither."""
    for selector in ("head > title", "h1"):
        node = tree.css_first(selector)
        title = _SPACE.sub(" ", node.text()).strip() if node is not None else ""
        if title:
            return title
    return None


def text_of(tree: LexborHTMLParser, skipped: frozenset[str]) -> str:
    """Return the text: paragraphs between blank lines, rows and list items on lines of their own.

    Args:
        tree: The page.
        skipped: Names of elements to leave out with all that is in them.
    """
    top = tree.body
    if top is None:  # a frameset
        return ""
    lines = _Lines()
    node: LexborNode = top
    depth = 0  # nodes are not compared: selectolax's == compares their HTML
    while True:
        inner = node.first_child if _enter(node, lines, skipped, is_top=depth == 0) else None
        if inner is not None:
            node = inner
            depth += 1
            continue
        following = node.next
        while depth > 0 and following is None and (parent := node.parent) is not None:
            node = parent
            depth -= 1
            _leave(node, lines)
            following = node.next
        if depth == 0 or following is None:
            return lines.text()
        node = following


def _enter(node: LexborNode, lines: _Lines, skipped: frozenset[str], *, is_top: bool) -> bool:
    """Take note of a node; return whether what is in it is to be read."""
    tag = node.tag or ""
    if tag == "-text":
        lines.add(node.text_content or "")
        return False
    lines.end(_BREAKS.get(tag, 0))
    if not is_top and (tag in skipped or "hidden" in node.attributes):
        return False
    if tag == "br":
        lines.end(_LINE)
    elif tag == "img":
        lines.add(f" {node.attributes.get('alt') or ''} ")
    elif tag in _VERBATIM and node.first_child is not None:
        lines.verbatim += 1
    return True


def _leave(node: LexborNode, lines: _Lines) -> None:
    """Take note of the end of a node that had something in it."""
    tag = node.tag or ""
    lines.end(_BREAKS.get(tag, 0))
    if tag in _CELLS:
        lines.end_cell()
    elif tag in _VERBATIM:
        lines.verbatim -= 1


class _Lines:
    """Text as it grows: white space is collapsed as a browser does, and breaks are made when text follows."""

    def __init__(self) -> None:
        self.verbatim = 0
        """How many elements that keep their white space are open."""
        self._parts: list[str] = []
        self._break = 0
        self._cell = False
        self._space = False

    def end(self, newlines: int) -> None:
        """End the line (1), or the paragraph (2), unless that was done already."""
        self._break = max(self._break, newlines)

    def end_cell(self) -> None:
        """End a table's cell: the next one on the same line is set apart."""
        self._cell = True

    def add(self, text: str) -> None:
        """Add what a text node says."""
        if not self.verbatim:
            text = _SPACE.sub(" ", text)
            if not text or text == " ":
                self._space = self._space or bool(text)
                return
            self._space = self._space or text[0] == " "
        elif not text:
            return
        self._parts.append(self._joint())
        self._parts.append(text if self.verbatim else text.strip(" "))
        self._space = not self.verbatim and text[-1] == " "
        self._break, self._cell = 0, False

    def text(self) -> str:
        """Return all of it."""
        return "".join(self._parts).strip("\n")

    def _joint(self) -> str:
        if not self._parts:
            return ""
        if self._break:
            self._parts[-1] = self._parts[-1].rstrip("\n")  # the end of what kept its white space
            return "\n" * self._break
        if self._cell:
            return " | "
        return " " if self._space else ""
