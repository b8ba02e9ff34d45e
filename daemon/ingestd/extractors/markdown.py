"""Markdown, by markdown-it-py: the text that a reader sees, with its structure as blank lines.

Headings, paragraphs, list items and code stay; marks of emphasis, link targets and fences go, since a model reads
``**word**`` as noise. A YAML block at the top is about the document and no text of it: only its ``title`` is used.
Regular expressions were turned down: what is code, and what a link, takes CommonMark's real rules.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from markdown_it import MarkdownIt
from pydantic import BaseModel, ConfigDict

from ingestd.errors import DocumentError
from ingestd.extractors._encoding import decode
from ingestd.extractors._html import INVISIBLE, parsed, text_of
from ingestd.extractors._media_type import parameter
from ingestd.model import Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.token import Token

    from ingestd.model import Content

_MAX_NESTING = 200
"""Open blocks at most (a list and its item are two). The parser leaves out, in silence, what is nested deeper: the
preset's 20 are reached by ten levels of lists. Python's own recursion limit allows about 400."""
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.{0,65536}?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_YAML_LINE = re.compile(r"""\s*$ | \s*\# | \s+\S | -(?:\s|$) | [\w"'][^:]*:(?:\s|$) | [\]}]""", re.VERBOSE)
_YAML_TITLE = re.compile(
    r"""^["']?title["']?[ \t]*:[ \t]+(?P<quote>["']?)(?P<title>[^\n]{1,1000}?)(?P=quote)[ \t]*$""", re.MULTILINE
)
_BR = re.compile(r"<br\b", re.IGNORECASE)


class Config(BaseModel):
    """Markdown (CommonMark with tables and strikethrough). It has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: ClassVar[tuple[str, ...]] = ("text/markdown",)
    revision: ClassVar[int] = 1

    def build(self) -> MarkdownExtractor:
        """Return the extractor."""
        return MarkdownExtractor()


class MarkdownExtractor:
    """Reads text/markdown."""

    def __init__(self) -> None:
        options = {"maxNesting": _MAX_NESTING}
        self._parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])

    def extract(self, content: Content) -> Document:
        """Return the text, and the title: the front matter's, or else the first heading of the first level.

        Raises:
            DocumentError: The bytes are binary, in no encoding that is known, or nest lists and quotes too deeply.
        """
        text = decode(content.data, charset=parameter(content.content_type, "charset"))
        title, body = _front_matter(text)
        tokens = self._parser.parse(body)
        if any(token.level >= _MAX_NESTING - 1 for token in tokens):
            raise DocumentError(f"lists and quotes that are nested too deeply (more than {_MAX_NESTING} open blocks)")
        page = _Page()
        page.read(tokens)
        return Document(page.text(), title=title or page.title)


def _front_matter(text: str) -> tuple[str | None, str]:
    """Return the title of a YAML block at the top, if there is one, and what follows the block."""
    block = _FRONT_MATTER.match(text)
    if block is None or not all(_YAML_LINE.match(line) for line in block[1].split("\n")):
        return None, text  # a horizontal rule, not front matter
    title = _YAML_TITLE.search(block[1])
    return (title["title"].strip() if title is not None else None), text[block.end() :]


class _Page:
    """The text as it grows, block by block."""

    def __init__(self) -> None:
        self.title: str | None = None
        self._blocks: list[str] = []
        self._heading = ""
        self._lists: list[str] = []
        self._item: str | None = None
        self._row: list[str] | None = None
        self._tight = False
        """Whether the next block follows the last one without a blank line."""
        self._starts_list = False

    def text(self) -> str:
        """Return all of it."""
        return "".join(self._blocks)

    def read(self, tokens: Sequence[Token]) -> None:
        """Add the blocks of a token stream, which is flat: what is open is kept in the fields above."""
        for token in tokens:
            match token.type:
                case "inline":
                    self._add_inline(_inline(token.children or ()))
                case "fence" | "code_block":
                    self._add(token.content.strip("\n"))
                case "html_block":
                    self._add(text_of(parsed(token.content), INVISIBLE))
                case "heading_open":
                    self._heading = token.tag
                case "paragraph_open":
                    self._tight = token.hidden
                case "tr_open" | "tr_close" | "table_close":
                    self._follow_table(token)
                case _:
                    self._follow_list(token)

    def _follow_table(self, token: Token) -> None:
        if token.type == "tr_open":
            self._row = []
        elif self._row is not None:
            row, self._row = self._row, None
            self._add(" | ".join(row))
            self._tight = True
        else:
            self._tight = False

    def _follow_list(self, token: Token) -> None:
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                self._starts_list = not self._lists
                self._lists.append(token.type)
            case "bullet_list_close" | "ordered_list_close":
                self._lists.pop()
                self._tight = False
            case "list_item_open":
                self._item = f"{token.info}{token.markup} " if token.info else "- "

    def _add_inline(self, text: str) -> None:
        if self._row is not None:
            self._row.append(text)
            return
        if self._heading:
            text = " ".join(text.split())
            if self._heading == "h1" and self.title is None:
                self.title = text or None
            self._heading = ""
        self._add(text)

    def _add(self, block: str) -> None:
        if not block.strip():
            return
        indent = "  " * max(0, len(self._lists) - 1)
        first = self._item if self._item is not None else "  " * bool(self._lists)
        following = "\n" + indent + " " * len(first)
        if self._blocks:
            self._blocks.append("\n" if self._tight and not self._starts_list else "\n\n")
        self._blocks.append(indent + first + block.replace("\n", following))
        self._item = None
        self._starts_list = False


def _inline(tokens: Sequence[Token]) -> str:
    parts = []
    for token in tokens:
        match token.type:
            case "text" | "text_special" | "code_inline":
                parts.append(token.content)
            case "softbreak" | "hardbreak":
                parts.append("\n")
            case "image":
                parts.append(_inline(token.children or ()))
            case "html_inline" if _BR.match(token.content):
                parts.append("\n")
    return "".join(parts).strip()
