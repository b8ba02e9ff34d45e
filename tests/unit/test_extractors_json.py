"""JSON becomes its strings, with the paths of their keys, or what the configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ingestd.errors import DocumentError
from ingestd.extractors.json import LINES, Config
from ingestd.model import Content, Document, canonical_json

if TYPE_CHECKING:
    from ingestd.model import Json

ARTICLE = '{"title": "T", "author": {"name": "Ann", "age": 7}, "tags": ["x", {"k": "y"}], "n": null, "e": " "}'


def read(text: str, config: Config | None = None, content_type: str | None = None) -> Document:
    """Return what the extractor makes of a text."""
    return (config or Config()).build().extract(Content(text.encode(), "data.json", content_type))


def test_all_strings() -> None:
    """By default the strings are the text, in their order, each after the path of its key; numbers are none."""
    document = read(ARTICLE)
    assert document.text == "title: T\nauthor.name: Ann\ntags: x\ntags.k: y"
    assert document.title == "T"


def test_chosen_fields() -> None:
    """Fields that are asked for make the text in the configured order, title and metadata."""
    config = Config(text_fields=("tags", "author"), title_field="author.name", metadata_fields=("author.age", "no"))
    document = read(ARTICLE, config)
    assert document == Document("x\ny\n\nAnn\n7", title="Ann", metadata={"author.age": 7})


def test_none_of_the_fields() -> None:
    """A document without any of the fields is refused, not taken for one without text."""
    with pytest.raises(DocumentError, match="text_fields: body, text"):
        read(ARTICLE, Config(text_fields=("body", "text")))


@pytest.mark.parametrize("data", ["", " \r\n\t", "\ufeff", "\ufeff\n"])
@pytest.mark.parametrize("content_type", [None, "application/json", LINES])
def test_nothing_is_a_document_without_text(data: str, content_type: str | None) -> None:
    """An empty file has no text, as an empty one of any other kind has none; it is no broken document."""
    assert read(data, content_type=content_type) == Document("")
    assert read(data, Config(text_fields=("body",)), content_type) == Document("")


def test_records() -> None:
    """Records of a list stand apart; metadata of many records are lists."""
    records = '[{"t": "a", "id": 1}, {"t": "b", "id": 2}]'
    document = read(records, Config(metadata_fields=("id",)))
    assert (document.text, document.metadata) == ("t: a\n\nt: b", {"id": [1, 2]})


def test_lines() -> None:
    """JSON Lines are records, blank lines are none, and U+2028 within a string ends no line."""
    assert read('{"t": "a"}\n\n{"t": "b\u2028c"}\r\n', content_type=LINES).text == "t: a\n\nt: b\u2028c"


def test_bad_line_is_named() -> None:
    """An error in JSON Lines says in which line."""
    with pytest.raises(DocumentError, match="in line 2"):
        read('{"t": "a"}\n{"t": ', content_type=LINES)


@pytest.mark.parametrize("text", ["{", "{'a': 1}", "[NaN]", "[1e999]", "[" + "9" * 5_000 + "]", '"a\nb"'])
def test_bad_json(text: str) -> None:
    """What is no JSON, or holds numbers that no JSON reader shares, is refused."""
    with pytest.raises(DocumentError, match="not valid JSON"):
        read(text)


@pytest.mark.parametrize("depth", [201, 500, 1_000_000])
def test_too_deep(depth: int) -> None:
    """Nesting beyond the limit is refused, whether the parser bears it or not."""
    with pytest.raises(DocumentError, match="nested"):
        read("[" * depth + "]" * depth)
    assert read("[" * 200 + '"x"' + "]" * 200).text == "x"


def test_escapes() -> None:
    """Escaped NULs and lone surrogates do not reach the text."""
    assert read(r'{"a": "x\u0000y \ud800 \ud83d\ude00"}').text == "a: xy \ufffd \U0001f600"


def test_configuration_is_checked() -> None:
    """An unknown setting and a depth that Python cannot recurse to are refused."""
    with pytest.raises(ValidationError):
        Config.model_validate({"max_depth": 10_000})
    with pytest.raises(ValidationError):
        Config.model_validate({"textfields": ["a"]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    lambda children: st.lists(children) | st.dictionaries(st.text(max_size=5), children),
    max_leaves=20,
)


@given(JSON)
def test_every_string_is_there(value: Json) -> None:
    """Each string of any document is in its text."""
    text = read(canonical_json(value).decode()).text

    def strings(part: Json) -> list[str]:
        if isinstance(part, str):
            return [part]
        children = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return [string for child in children for string in strings(child)]

    assert [string for string in strings(value) if string.strip() and string.removeprefix("\ufeff") not in text] == []
