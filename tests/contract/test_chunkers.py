"""What every chunker keeps, the built-in ones and a third party's that is defined here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Protocol

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from ingestd.chunkers import sentences, stable, whole
from ingestd.embedders._tokenizer import WhitespaceTokenizer
from ingestd.errors import DocumentError
from ingestd.model import Span
from ingestd.ports import Chunker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestd.ports import Tokenizer

MAX_BYTES = 65_535


class Paragraphs(BaseModel):
    """A third party's plug-in: paragraphs, whatever their length. It imports nothing of ours but the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    revision: ClassVar[int] = 1

    def build(self, tokenizer: Tokenizer) -> Chunker:
        """Return the chunker."""
        return self.Splitter()

    class Splitter:
        """Splits at blank lines."""

        def split(self, text: str) -> Sequence[Span]:
            """Return the paragraphs' places."""
            return [Span(*match.span()) for match in re.finditer(r"\S(?:.*?\S)??(?=\s*\n\s*\n|\s*\Z)", text, re.DOTALL)]


class Plugin(Protocol):
    """A configuration, as ``ports.Chunker`` describes it."""

    revision: ClassVar[int]

    def build(self, tokenizer: Tokenizer) -> Chunker:
        """Return the chunker."""
        ...


CONFIGS: dict[str, Callable[[], Plugin]] = {
    "stable": lambda: stable.Config(max_tokens=16),
    "sentences": lambda: sentences.Config(max_tokens=16),
    "whole": whole.Config,
    "third party": Paragraphs,
}

TEXTS = {
    "prose": "Mr. Smith came. He left at 5 p.m. on Monday! Why?\n\nNobody knows, e.g. his wife.\n\n\tThe end.",
    "heading and list": "Title\n\n- one\n- two\n- three\n\nA paragraph of some more words that go on and on.  ",
    "chinese": "今天天气很好。我们去公园吧！你来吗？",  # noqa: RUF001 - Chinese has its own signs
    "no white space": "a" * 500,
    "one sign": ".",
    "white space around": "\n \u3000 text \u2003\n",
    "marks": "e\u0301" * 40 + " \u200b",
}


@pytest.fixture(params=CONFIGS)
def chunker(request: pytest.FixtureRequest) -> Chunker:
    """Every chunker in turn."""
    return CONFIGS[request.param]().build(WhitespaceTokenizer())


@pytest.mark.parametrize("kind", TEXTS)
def test_chunks_give_the_text_again(chunker: Chunker, kind: str) -> None:
    """In order, without overlap, trimmed, none empty; between them is nothing but white space."""
    text = TEXTS[kind]
    spans = chunker.split(text)
    rest, end = "", 0
    for span in spans:
        piece = text[span.start : span.end]
        assert piece
        assert piece == piece.strip()
        assert span.start >= end
        rest, end = rest + text[end : span.start], span.end
    assert not (rest + text[end:]).strip()


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000\u2028"])
def test_no_text_has_no_chunks(chunker: Chunker, text: str) -> None:
    """White space alone makes no chunk."""
    assert len(chunker.split(text)) == 0


@pytest.mark.parametrize("name", ["stable", "sentences"])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_certainly_has_more_chunks_has_more(name: str, kind: str) -> None:
    """What is refused without being cut would have been refused."""
    chunker, text = CONFIGS[name]().build(WhitespaceTokenizer()), (TEXTS[kind] + "\n\n") * 50
    count = len(chunker.split(text))
    exceeded = [chunks for chunks in range(1, count + 2) if chunker.exceeds(text, chunks)]  # type: ignore[attr-defined]
    assert all(chunks < count for chunks in exceeded)
    if kind == "prose":
        assert len(exceeded) > count / 4


@pytest.mark.parametrize("kind", TEXTS)
def test_the_same_text_has_the_same_chunks(chunker: Chunker, kind: str) -> None:
    """A chunker holds nothing from one text to the next."""
    before = list(chunker.split(TEXTS[kind]))
    chunker.split("Another text. It has two sentences.")
    assert list(chunker.split(TEXTS[kind])) == before


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_frozen_and_knows_its_keys(name: str) -> None:
    """An unknown key is refused, and a revision is there for the fingerprint."""
    config = CONFIGS[name]()
    assert isinstance(config, BaseModel)
    assert config.revision >= 1
    assert config.model_config.get("frozen")
    with pytest.raises(ValidationError):
        type(config).model_validate({"no_such_key": 1})
    assert isinstance(config.build(WhitespaceTokenizer()), Chunker)


@pytest.mark.parametrize("name", ["stable", "sentences"])
@pytest.mark.parametrize("text", ["x" * 200_000, "é😀" * 60_000, "a" + " " * 200_000 + "b.", "\u0301" * 99_000])
def test_no_chunk_is_longer_than_a_field_of_milvus(name: str, text: str) -> None:
    """One token can be of any length, and so can the white space between two: chunks stay within 65,535 bytes."""
    spans = CONFIGS[name]().build(WhitespaceTokenizer()).split(text)
    assert max(len(text[start:end].encode()) for start, end in spans) <= MAX_BYTES
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())


def test_whole_refuses_what_the_model_would_not_see() -> None:
    """Over the limit of tokens or bytes: the document's fault, with the cure."""
    with pytest.raises(DocumentError, match=r"9 tokens, and the embedder's model sees 8: .* `stable`"):
        whole.Config().build(WhitespaceTokenizer(limit=8)).split("a b c d e f g h i")
    with pytest.raises(DocumentError, match="65536 bytes"):
        whole.Config().build(WhitespaceTokenizer()).split("x" * 65_536)
