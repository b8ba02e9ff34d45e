"""JSON and JSON Lines: the strings in them, each with the path of its key, or only those that are asked for.

Numbers, booleans and keys alone are no text: an embedding of them finds nothing. The standard library's parser gives
up on deep nesting by itself (RecursionError), but how deep differs between versions of Python: ``max_depth`` gives the
same bytes the same verdict everywhere.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, ClassVar, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from ingestd.errors import DocumentError
from ingestd.extractors._encoding import decode, tidy
from ingestd.extractors._media_type import media_type, parameter
from ingestd.model import Document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ingestd.model import Content, Json

LINES = "application/x-ndjson"


class Config(BaseModel):
    """JSON and JSON Lines. A path is keys with dots between them, and goes through lists: ``authors.name``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: ClassVar[tuple[str, ...]] = ("application/json", LINES)
    revision: ClassVar[int] = 1

    text_fields: tuple[str, ...] = Field(
        default=(),
        description="Paths whose values are the text, in this order. Empty: all strings in the document's own order, "
        "each after the path of its key.",
    )
    title_field: str = Field(default="title", description="Path of the title, where the document has it.")
    metadata_fields: tuple[str, ...] = Field(
        default=(), description="Paths whose values become metadata, under the path as their name."
    )
    max_depth: int = Field(
        default=200, ge=1, le=500, description="Levels of nesting beyond which a document is refused."
    )

    def build(self) -> JsonExtractor:
        """Return the extractor."""
        return JsonExtractor(self)


class JsonExtractor:
    """Reads application/json and application/x-ndjson.

    Args:
        config: The settings.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def extract(self, content: Content) -> Document:
        """Return the strings of the document.

        The values of one object stand on lines of their own; records of JSON Lines, or of a list that is the whole
        document, are set apart by blank lines.

        Raises:
            DocumentError: The bytes are no JSON, nested too deeply, or have none of the fields that are asked for.
        """
        text = decode(content.data, charset=parameter(content.content_type, "charset"))
        if not text.strip():
            return Document("")  # an empty file is one without text, of any kind
        value = list(_lines(text)) if media_type(content.content_type) == LINES else _parsed(text, "")
        _refuse_depth(value, self._config.max_depth)
        title = next((found for found in _lookup(value, self._config.title_field) if isinstance(found, str)), None)
        return Document(tidy(self._text(value)), title=title, metadata=self._metadata(value))

    def _text(self, value: Json) -> str:
        records = value if isinstance(value, list) else [value]
        if not self._config.text_fields:
            return _joined("\n".join(_labelled(record)) for record in records)
        found = [[_plain(part) for path in self._config.text_fields for part in _lookup(r, path)] for r in records]
        if records and not any(found):
            wanted = ", ".join(self._config.text_fields)
            raise DocumentError(f"none of the fields that are the text is in it (text_fields: {wanted})")
        return _joined(part for parts in found for part in parts)

    def _metadata(self, value: Json) -> dict[str, Json]:
        metadata: dict[str, Json] = {}
        for path in self._config.metadata_fields:
            found = list(_lookup(value, path))
            if found:
                metadata[path] = found[0] if len(found) == 1 else found
        return metadata


def _parsed(text: str, where: str) -> Json:
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise DocumentError(f"JSON that is nested too deeply{where}") from error
    except ValueError as error:
        raise DocumentError(f"not valid JSON{where}: {error}") from error
    return value


def _lines(text: str) -> Iterator[Json]:
    # splitlines() would also split inside strings, at U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parsed(line, f" in line {number}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:40]} is too large")
    return number


def _refuse_depth(value: Json, limit: int) -> None:
    level = _containers([value])
    for _ in range(limit):
        level = [
            inner for outer in level for inner in _containers(outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    if level:
        raise DocumentError(f"JSON that is nested more than {limit} levels deep (max_depth)")


def _containers(values: Iterable[Json]) -> list[list[Json] | dict[str, Json]]:
    return [value for value in values if isinstance(value, list | dict)]


def _labelled(value: Json, path: str = "") -> Iterator[str]:
    """Yield ``path: string`` for every string. Recursion is safe: the depth has been checked."""
    if isinstance(value, str):
        if value.strip():
            yield f"{path}: {value}" if path else value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _labelled(child, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for child in value:
            yield from _labelled(child, path)


def _lookup(value: Json, path: str) -> Iterator[Json]:
    """Yield what stands at a path, in every element where it leads through lists."""
    found = [value]
    for key in path.split("."):
        found = [child[key] for child in _elements(found) if isinstance(child, dict) and key in child]
    yield from found


def _elements(values: list[Json]) -> Iterator[Json]:
    for value in values:
        if isinstance(value, list):
            yield from _elements(value)
        else:
            yield value


def _plain(value: Json) -> str:
    """Return what a field that was asked for says: here a number counts, too."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        children = value.values() if isinstance(value, dict) else value
        return "\n".join(filter(None, map(_plain, children)))
    return "" if value is None else json.dumps(value)


def _joined(parts: Iterator[str]) -> str:
    return "\n\n".join(part for part in parts if part)
