"""What every extractor keeps to, as the port says."""

from __future__ import annotations

import json
import pickle
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ingestd.errors import DocumentError
from ingestd.extractors._worker import ExtractorConfig
from ingestd.model import Content, Document
from ingestd.ports import Extractor

if TYPE_CHECKING:
    from collections.abc import Callable

TYPES = ("text", "markdown", "html", "json", "csv")
SAMPLES = {
    "text": b"Hello.\r\nWorld.",
    "markdown": b"# Hello\n\nWorld",
    "html": b"<title>Hello</title><p>World",
    "json": b'{"title": "Hello", "text": "World"}',
    "csv": b"a,b\nHello,World",
}


def config_of(name: str) -> ExtractorConfig:
    """Return an extractor's default configuration."""
    config = import_module(f"ingestd.extractors.{name}").Config()
    assert isinstance(config, ExtractorConfig)
    return config


@pytest.fixture(params=TYPES)
def name(request: pytest.FixtureRequest) -> str:
    """Each extractor's type."""
    return str(request.param)


def test_configuration(name: str) -> None:
    """A configuration is frozen, refuses what it does not know, travels to a child, and describes its settings."""
    config = config_of(name)
    assert isinstance(config, BaseModel)
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.revision >= 1
    assert config.kinds
    assert all("/" in kind and kind == kind.lower() for kind in config.kinds)
    assert all(field.description for field in type(config).model_fields.values())
    assert type(config).model_config.get("frozen") is True
    with pytest.raises(ValidationError):
        type(config).model_validate({"no_such_setting": 1})


def test_document(name: str) -> None:
    """The same bytes give the same text, and neither name nor metadata of the source changes it."""
    extractor = config_of(name).build()
    assert isinstance(extractor, Extractor)
    document = extractor.extract(Content(SAMPLES[name], "a"))
    assert isinstance(document, Document)
    assert "World" in document.text
    assert document == extractor.extract(Content(SAMPLES[name], "b.bin", metadata={"k": "v"}))


def test_encodings(name: str) -> None:
    """Text in UTF-16 with a byte order mark, or in a declared encoding, is read."""
    extractor = config_of(name).build()
    sample = SAMPLES[name].decode().replace("World", "Wörld")
    assert "Wörld" in extractor.extract(Content(sample.encode("utf-16"), "a")).text
    declared = f"{config_of(name).kinds[0]}; charset=iso-8859-15"
    assert "Wörld" in extractor.extract(Content(sample.encode("latin-1"), "a", declared)).text


def test_binary(name: str) -> None:
    """Binary content is refused with a reason."""
    with pytest.raises(DocumentError, match="binary"):
        config_of(name).build().extract(Content(b"\0\x01\x02" * 100, "a"))


def shuffled(sample: bytes) -> st.SearchStrategy[bytes]:
    """Return pieces of the kind's own syntax in any order: they reach further into a parser than noise does."""
    pieces = st.sampled_from([bytes([byte]) for byte in sample] + [b"\xff", b"\0", b"\\ud800", b"<pre>", b"- ", b'"'])
    return st.lists(pieces, max_size=60).map(b"".join)


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes(name: str, data: st.DataObject) -> None:
    """Any bytes give a text that can be encoded, without NULs, or a DocumentError with a reason; nothing else."""
    content = Content(data.draw(st.binary(max_size=200) | shuffled(SAMPLES[name])), "a")
    read: Callable[[Content], Document] = config_of(name).build().extract
    try:
        document = read(content)
    except DocumentError as error:
        assert str(error)  # noqa: PT017 - either is right; an error has to say why
        return
    document.text.encode("utf-8")
    assert "\0" not in document.text
    json.dumps(dict(document.metadata), allow_nan=False)
