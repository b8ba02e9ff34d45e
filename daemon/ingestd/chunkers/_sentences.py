"""Where sentences begin and end, in any language, in one pass over the text.

Owns the rules; they need no language to be named, look at a few characters around a sign only (so that an edit moves
no boundary further off), and take time in proportion to the text, whatever stands in it: no pattern here can
backtrack. A boundary that is missed or one too many costs little, since chunks are made of several sentences.

Libraries that were turned down: pysbd and BlingFire (last released in 2021; pysbd reads 0.2 MB/s); sentencex (kept,
fast) wants one language a text, and its time is quadratic in the length of a paragraph (1 MB without a line break
0.13 s, 8 MB 5.6 s); ICU's bindings need a system library and split at every abbreviation and every wrapped line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ingestd.model import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLOSERS = "\"'”’»›)\\]}」』】）》〉"  # noqa: RUF001 - these signs are meant
# Signs that end a sentence whatever follows: CJK full stops, the danda, Arabic, Ethiopic, Khmer and Burmese signs.
_FULL = "。！？｡؟۔।॥።፧៕။"  # noqa: RUF001 - these signs are meant
_LINE_BREAKS = "\n\r\f\v\x1c\x1d\x1e\x85\u2028\u2029"
_CANDIDATE = re.compile(rf"(?P<stop>[.!?…{_FULL}]++[{_CLOSERS}]*+)|(?P<line>[{_LINE_BREAKS}]\s*+)")
_LAST_WORD = re.compile(r"[\w.]*+\Z")  # searched in a few characters only
_LIST_ITEM = re.compile(r"[-*+•‣·–—#>|]|\d{1,3}[.)]\s|\(\w\)\s|[a-z][.)]\s")  # noqa: RUF001 - dashes begin list items
_NUMBERING = re.compile(r"\s*(?:\d{1,3}|[A-Za-z])\Z")

_WRAPPED = 40
"""Characters: a line that is at least as long may have been wrapped; a shorter one ends where its author ended it."""
_REACH = 24
"""Characters looked at on each side of a sign: longer than any abbreviation."""

# Words that a name or number follows: their full stop never ends a sentence. The most frequent of some languages.
_TITLE = re.compile(
    r"adm|art|bros|capt|cf|cmdr|col|dr|e\.g|eg|eds?|eq|figs?|fr|frau|gen|gov|hon|hr|i\.e|ie|lt|maj|messrs|mlle|mme|mrs?"
    r"|ms|mt|mx|nos?|nr|op|pp?|pres|prof|ref|rep|rev|sec|sen|sgt|sra?|st|str|v|viz|vol|vs|z\.b|d\.h|u\.a|bzw|ca|abs|bd"
    r"|evtl|ggf|inkl|tel",
    re.IGNORECASE,
)


def sentences(text: str) -> list[Span]:
    """Return the sentences' places, trimmed of white space, in order; together they give the text but for white space.

    A sentence ends at its signs (with what closes behind them), at a blank line, and at a line break that ends a
    heading or a list's item. A text without any of these is one sentence, however long.
    """
    spans = []
    start = 0
    for end in _ends(text):
        if span := trimmed(text, start, end):
            spans.append(span)
        start = end
    return spans


def trimmed(text: str, start: int, end: int) -> Span | None:
    """Return ``text[start:end]``'s place without the white space at its ends; None where nothing else is there."""
    piece = text[start:end]
    bare = piece.lstrip()
    if not bare:
        return None
    start = end - len(bare)
    return Span(start, start + len(bare.rstrip()))


def _ends(text: str) -> Iterator[int]:
    line = 0  # where the present line starts
    for match in _CANDIDATE.finditer(text):
        if match.lastgroup == "stop":
            if _ends_sentence(text, line, match):
                yield match.end()
        else:
            if _ends_line(text, line, match):
                yield match.end()
            line = match.end()
    yield len(text)


def _ends_sentence(text: str, line: int, match: re.Match[str]) -> bool:
    """Say whether the signs end a sentence, by what stands on both sides of them."""
    signs = match.group()
    if any(sign in _FULL for sign in signs):
        return True
    after = text[match.end() : match.end() + _REACH]
    if not after:
        return True
    if not after[0].isspace():
        return False  # 3.14, example.com, a?b=c
    if after.lstrip()[:1].islower():
        return False  # "Why?" he asked; approx. half; e.g. this
    return signs[0] != "." or len(signs) > 1 or not _abbreviates(text, line, match.start())


def _abbreviates(text: str, line: int, stop: int) -> bool:
    """Say whether the full stop at ``stop`` belongs to the word in front of it."""
    found = _LAST_WORD.search(text[max(line, stop - _REACH) : stop])
    word = found.group() if found else ""
    if len(word) == 1 and word.isalpha():
        return True  # an initial: J. Smith
    if _TITLE.fullmatch(word):
        return True
    if "." in word and all(len(part) <= 1 for part in word.split(".")):
        return True  # U.S. Army, p.m.
    return bool(_NUMBERING.fullmatch(text, line, stop))  # 3. An item of a list


def _ends_line(text: str, line: int, match: re.Match[str]) -> bool:
    """Say whether the line break ends a sentence too, rather than wrapping it."""
    white = match.group()
    if sum(white.count(sign) for sign in "\n\u2029") > 1 or white.count("\r") > 1 or white[0] in "\f\u2029":
        return True  # a blank line
    if match.start() - line < _WRAPPED:
        return True
    following = text[match.end() : match.end() + 5]
    return not following[:1].islower() or bool(_LIST_ITEM.match(following))
