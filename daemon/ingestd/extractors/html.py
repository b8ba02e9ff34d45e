"""HTML pages, by selectolax on the lexbor engine: the parser that browsers specify, at about 1,000 pages a second.

It repairs what is broken as browsers do, so hardly a page is refused. Its tree building is quadratic in the depth of
nesting (the HTML standard's own algorithm looks through all open elements), which is why it needs the processor time
limit that extraction has. lxml was turned down: it follows libxml2's older rules. So was readability-style guessing
at the main content: it loses text, and what it keeps changes with every version of the guess.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ingestd.extractors._encoding import decode
from ingestd.extractors._html import BOILERPLATE, INVISIBLE, parsed, text_of, title_of
from ingestd.extractors._media_type import parameter
from ingestd.model import Document

if TYPE_CHECKING:
    from ingestd.model import Content

_DECLARATION = re.compile(
    rb"""<(?:meta[^>]{1,500}?charset|\?xml[^>]{1,200}?encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
_PRESCAN = 4096
"""Bytes in which a declaration counts; the standard says 1,024, and pages overstep it."""


class Config(BaseModel):
    """HTML pages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: ClassVar[tuple[str, ...]] = ("text/html",)
    revision: ClassVar[int] = 1

    boilerplate: bool = Field(
        default=False,
        description="Keep what is about the site and not about the page: navigation, footers, menus, buttons.",
    )

    def build(self) -> HtmlExtractor:
        """Return the extractor."""
        return HtmlExtractor(INVISIBLE if self.boilerplate else INVISIBLE | BOILERPLATE)


class HtmlExtractor:
    """Reads text/html.

    Args:
        skipped: Names of the elements that are left out.
    """

    def __init__(self, skipped: frozenset[str]) -> None:
        self._skipped = skipped

    def extract(self, content: Content) -> Document:
        """Return the page's text, with its blocks between blank lines, and its title.

        Raises:
            DocumentError: The bytes are binary, or in no encoding that is known.
        """
        charset = parameter(content.content_type, "charset") or _declared_charset(content.data)
        tree = parsed(decode(content.data, charset=charset))
        return Document(text_of(tree, self._skipped), title=title_of(tree))


def _declared_charset(data: bytes) -> str | None:
    found = _DECLARATION.search(data[:_PRESCAN])
    if found is None:
        return None
    charset = found[1].decode("ascii", "replace").lower()
    # A declaration that can be read as ASCII does not stand in UTF-16, whatever it says (Encoding Standard, "prescan").
    return "utf-8" if charset.startswith(("utf-16", "utf16", "ucs-2", "utf-32")) else charset
