"""Which files of a folder are documents: globs, as in a .gitignore.

A pattern without a slash is held against one name: ``*.md`` is every Markdown file at any depth, and as an exclusion
``.*`` is every dot file and every dot directory with all that is below it. A pattern with a slash is held against the
whole path below the root: ``articles/*.md``, ``**/drafts/**``. ``*`` and ``?`` stay within a name, ``**/`` stands for
any number of directories, none included, ``[a-z]`` and ``[!a-z]`` for one character, and a slash at the end means a
directory and all that is below it. Braces are refused: a .gitignore has no alternatives either.

``fnmatch`` was turned down because its ``*`` runs across slashes, ``PurePath.full_match`` because it begins with
Python 3.13 and cannot prune: a directory that is excluded is not even listed here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_EVERYTHING = frozenset({"*", "**", "**/*"})


class Globs:
    """Compiled patterns. Texts are paths decoded with ``surrogateescape``, so that each byte can be matched.

    Args:
        include: A file has to match one of these.
        exclude: No file, and no directory above it, may match one of these.

    Raises:
        ValueError: Which pattern cannot be read, and why.
    """

    __slots__ = ("_excluded_directories", "_excluded_files", "_included")

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        include, exclude = tuple(include), tuple(exclude)
        for pattern in (*include, *exclude):
            _refuse_unusable(pattern)
        included = _AnyOf([_below(pattern) for pattern in include])
        self._included = None if _EVERYTHING.intersection(include) else included
        self._excluded_files = _AnyOf([pattern for pattern in exclude if not pattern.endswith("/")])
        self._excluded_directories = _AnyOf([_directory(pattern) for pattern in exclude])

    def takes(self, path: str, name: str) -> bool:
        """Return whether a file is a document, as far as its own path goes (not the directories above it)."""
        if self._excluded_files.match(path, name):
            return False
        return self._included is None or self._included.match(path, name)

    def enters(self, path: str, name: str) -> bool:
        """Return whether what is below a directory can be documents."""
        return not self._excluded_directories.match(path, name)


class _AnyOf:
    """Whether any of some patterns matches: two regular expressions, however many patterns there are."""

    __slots__ = ("_names", "_paths")

    def __init__(self, patterns: list[str]) -> None:
        anchored = [pattern.removeprefix("/") for pattern in patterns if "/" in pattern]
        self._names = _compiled([pattern for pattern in patterns if "/" not in pattern])
        self._paths = _compiled(anchored)

    def match(self, path: str, name: str) -> bool:
        if self._names is not None and self._names.fullmatch(name):
            return True
        return self._paths is not None and self._paths.fullmatch(path) is not None


def _below(pattern: str) -> str:
    return pattern + "**" if pattern.endswith("/") else pattern


def _directory(pattern: str) -> str:
    """Return what excludes a directory with all that is below it: nobody has to list it to find that out."""
    if pattern.endswith("/**"):
        return "/" + pattern.removesuffix("/**").removeprefix("/")  # stays anchored to the root
    return pattern.rstrip("/")


def _refuse_unusable(pattern: str) -> None:
    if not pattern.strip("/"):
        raise ValueError(f"the pattern {pattern!r} matches nothing")
    if {"", ".", ".."}.intersection(pattern.removeprefix("/").removesuffix("/").split("/")):
        raise ValueError(f"the pattern {pattern!r} has an empty, '.' or '..' part: patterns are paths below the folder")


def _compiled(patterns: list[str]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    expressions = []
    for pattern in patterns:
        expression = _translated(pattern)
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"the pattern {pattern!r} cannot be read: {error}") from error
        expressions.append(expression)
    return re.compile("|".join(f"(?:{expression})" for expression in expressions), re.DOTALL)


def _translated(pattern: str) -> str:
    """Return the regular expression of a glob."""
    expression, at = "", 0
    while at < len(pattern):
        starts_part = at == 0 or pattern[at - 1] == "/"
        if starts_part and pattern.startswith("**/", at):
            expression, at = expression + "(?:[^/]+/)*", at + 3
        elif starts_part and pattern[at:] == "**":
            expression, at = expression + ".+", at + 2
        elif pattern[at] == "*":
            expression, at = expression + "[^/]*", at + 1
            while pattern.startswith("*", at):  # "a**b" means no more than "a*b", and would backtrack for ever
                at += 1
        elif pattern[at] == "?":
            expression, at = expression + "[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2 + pattern.startswith("[!", at))) > 0:
            expression, at = expression + _character_class(pattern[at + 1 : end]), end + 1
        elif pattern[at] in "{}":  # taken as they are they would match next to nothing, and nobody would be told
            raise ValueError(
                f"the pattern {pattern!r} has braces, which stand for nothing here: write a pattern for each "
                "alternative, and [{] or [}] for the character itself"
            )
        else:
            expression, at = expression + re.escape(pattern[at]), at + 1
    return expression


def _character_class(inside: str) -> str:
    negated = inside.startswith("!")
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[negated:])
    return f"(?!/)[{'^' if negated else ''}{escaped}]"
