"""JSON values: our own document, anybody's by paths, whose document it is, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ingestd.model import Content, Op, Record
from ingestd.sources._values.config import Fields, JsonFormat, OpValues, decoder
from ingestd.sources._values.decoded import Decoded, UnreadableError, ValueLimits

if TYPE_CHECKING:
    from ingestd.sources._values.decoded import Decoder

LIMITS = ValueLimits(max_value_bytes=1024 * 1024, max_bytes=1024 * 1024)
IdFrom = Literal["auto", "value", "key"]


def record(value: object, key: bytes | None = b"a") -> Record:
    """Return a record; a value that is no bytes is sent as JSON."""
    data = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return Record("documents", 3, 17, 0, key, data)


def ours(id_from: IdFrom = "auto", limits: ValueLimits = LIMITS, **settings: Any) -> Decoder:
    """Return a decoder of JSON."""
    return decoder(JsonFormat(**settings), id_from=id_from, source="cms", limits=limits)


def content(decoded: Decoded) -> Content:
    """Return what an upsert brings."""
    assert decoded.payload is not None
    assert decoded.payload.at_hand == decoded.payload.read()
    return decoded.payload.read()


def refusal(decode: Decoder, one: Record) -> UnreadableError:
    """Return why a record is refused."""
    with pytest.raises(UnreadableError) as caught:
        decode.decode(one)
    assert str(caught.value).startswith("documents/3@17: ")
    return caught.value


def test_a_document() -> None:
    """All keys arrive where they belong, and a text is handed on as text."""
    value = {
        "id": "a",
        "op": "upsert",
        "text": "Grüße",
        "content_type": "text/plain",
        "title": "T",
        "metadata": {"lang": "de", "n": [1, {"x": None}]},
        "version": 7,
    }
    found = ours().decode(record(value))
    assert (found.document_id, found.op, found.version) == ("a", Op.UPSERT, 7)
    assert found.size >= len("Grüße".encode())
    assert content(found) == Content(
        "Grüße".encode(), "a", "text/plain", "T", {"lang": "de", "n": [1, {"x": None}]}, None, "Grüße"
    )


def test_nulls_are_absent() -> None:
    """Serializers write null for what is not there; an upsert is the default."""
    keys = ("op", "content", "uri", "content_type", "title", "metadata", "version")
    found = ours().decode(record({"id": None, "text": "x", **dict.fromkeys(keys)}))
    assert (found.document_id, found.op, found.version) == ("a", Op.UPSERT, None)
    assert content(found) == Content(b"x", "a", text="x")


def test_text_of_another_type_is_bytes_to_extract() -> None:
    """A text that is HTML has to be extracted, in the charset that its bytes now have."""
    found = content(ours().decode(record({"text": "<p>ü", "content_type": "text/html; charset=latin-1; x=y"})))
    assert (found.data, found.content_type, found.text) == ("<p>ü".encode(), "text/html; x=y; charset=utf-8", None)


def test_content_is_base64() -> None:
    """Bytes come in base64, and nothing is text."""
    data = bytes(range(256))
    found = content(ours().decode(record({"content": base64.b64encode(data).decode(), "content_type": "image/x"})))
    assert (found.data, found.content_type, found.text) == (data, "image/x", None)


@pytest.mark.parametrize("value", [None, {"op": "delete"}, {"id": "a", "op": "delete", "version": 1}])
def test_deletes(value: object) -> None:
    """A tombstone, and a delete with or without an id, delete the document and bring nothing."""
    found = ours().decode(record(value))
    version = value.get("version") if isinstance(value, dict) else None
    assert found == Decoded("a", Op.DELETE, None, version, 0)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "empty; a tombstone has no value"),
        (b"null", "null, and has to be an object; a tombstone"),
        (b"[1]", "an array"),
        (b'"SECRET"', "a string"),
        (b"SECRET", "no JSON"),
        (b'{"text": NaN}', "NaN"),
        (b'{"text": "SECRET", "version": Infinity}', "Infinity"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "SECRET"} {}', "no JSON"),
        (b'{"text": "SECRET", "text": "x"}', "'text' twice"),
        (b'{"text": "x", "metadata": {"a": {"b": 1, "b": 2}}}', "'b' twice"),
        (b'{"text": "x", "version": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[" * 100_000, "64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "64 levels"),
        ({}, "exactly one of .* none"),
        ({"text": "SECRET", "uri": "SECRET"}, "'text' and 'uri'"),
        ({"text": "SECRET", "titel": "x"}, "unknown key 'titel'; did you mean 'title'"),
        ({"text": "SECRET", "zzzzzz": "x"}, "unknown key 'zzzzzz'; known: id"),
        ({"text": 1}, "'text' is a number"),
        ({"text": ["SECRET"]}, "'text' is an array"),
        ({"text": "\ud800"}, "half a character"),
        ({"text": "x", "title": "\udfff"}, "'title' has half a character"),
        ({"text": "x", "title": 1}, "'title' is a number"),
        ({"text": "x", "content_type": {}}, "'content_type' is an object"),
        ({"text": "x", "metadata": []}, "'metadata' is an array"),
        ({"text": "x", "metadata": {"a": "\ud800"}}, "half a character"),
        ({"text": "x", "metadata": {"\ud800": 1}}, "half a character"),
        (b'{"text": "x", "metadata": {"a": 1e999}}', "infinite"),
        (b'{"text": "x", "metadata": ' + b'{"a":' * 33 + b"1" + b"}" * 34, "32 levels"),
        ({"text": "x", "version": True}, "'version' is a boolean"),
        ({"text": "x", "version": 1.0}, "'version' is a number"),
        ({"text": "x", "version": "1"}, "'version' is a string"),
        ({"text": "x", "version": 2**63}, "64 bits"),
        ({"text": "x", "version": -(2**63) - 1}, "64 bits"),
        ({"text": "x", "op": "remove"}, "'op' is 'remove'; known: 'upsert', 'delete'"),
        ({"text": "x", "op": 1}, "'op' is '1'"),
        ({"text": "x", "op": []}, "'op' is an array"),
        ({"op": "delete", "text": "SECRET"}, "a delete, and has 'text'"),
        ({"content": "SECRET!"}, "no base64"),
        ({"content": "YQ==YQ=="}, "no base64"),
        ({"content": "YQ"}, "no base64"),
        ({"content": "ü"}, "no base64"),
        ({"content": 5}, "base64 in a string"),
        ({"uri": "https://example.com/SECRETS"}, "uris"),
    ],
)
def test_what_is_refused(value: object, why: str) -> None:
    """It says where, what and why, tells the document by the key, and never quotes the text."""
    error = refusal(ours(), record(value))
    assert error.document_id == "a"
    with pytest.raises(UnreadableError, match=why):
        raise error
    assert "SECRET" not in str(error).replace("https://example.com/SECRETS", "")


@pytest.mark.parametrize("version", [-(2**63), -1, 0, 2**63 - 1])
def test_versions_at_the_bounds(version: int) -> None:
    """Every signed integer of 64 bits is a version."""
    assert ours().decode(record({"text": "x", "version": version})).version == version


def test_as_deep_as_allowed() -> None:
    """32 levels of metadata are taken."""
    nested = b'{"a":' * 32 + b"1" + b"}" * 32
    found = content(ours().decode(record(b'{"text": "x", "metadata": ' + nested + b"}")))
    assert found.metadata == json.loads(nested)


def test_a_byte_order_mark() -> None:
    """It is no fault of a document."""
    assert content(ours().decode(record(b'\xef\xbb\xbf{"text": "x"}'))).text == "x"


def test_emoji_in_escapes() -> None:
    """Two escapes that are one character are no half ones."""
    value = b'{"text": "\\ud83d\\ude00", "metadata": {"m": "\\ud83d\\ude00"}}'
    found = content(ours().decode(record(value)))
    assert (found.text, found.metadata) == ("\U0001f600", {"m": "\U0001f600"})


@pytest.mark.parametrize(
    ("id_from", "value", "key", "document"),
    [
        ("auto", {"id": "a", "text": "x"}, b"a", "a"),
        ("auto", {"id": "a", "text": "x"}, None, "a"),
        ("auto", {"id": "a", "text": "x"}, b"", "a"),
        ("auto", {"text": "x"}, "ä".encode(), "ä"),
        ("auto", None, b"b", "b"),
        ("value", {"id": "a", "text": "x"}, b"b", "a"),
        ("value", {"id": "a", "text": "x"}, b"\xff", "a"),
        ("key", {"id": "a", "text": "x"}, b"b", "b"),
        ("key", {"id": 5, "text": "x"}, b"b", "b"),
        ("key", None, b"b", "b"),
        ("auto", {"id": "x" * 4096, "text": "x"}, None, "x" * 4096),
    ],
)
def test_whose_document_it_is(id_from: IdFrom, value: object, key: bytes | None, document: str) -> None:
    """By the value, or else by the key, unless one of them is said to count."""
    assert ours(id_from).decode(record(value, key)).document_id == document


@pytest.mark.parametrize(
    ("id_from", "value", "key", "document", "why"),
    [
        ("auto", {"id": "a", "text": "x"}, b"b", "b", "says that it is 'a', its key 'b'; set id_from"),
        ("auto", {"id": "a", "text": "x"}, b"\xff", "a", 'key is none .*UTF-8.*id_from = "value"'),
        ("auto", {"text": "x"}, b"\xff", None, "no UTF-8"),
        ("auto", {"text": "x"}, None, None, "neither in its value nor as its key"),
        ("auto", {"text": "x"}, b"", None, "neither in its value nor as its key"),
        ("auto", None, None, None, "tombstone without a key"),
        ("auto", None, b"\xff", None, "no UTF-8"),
        ("auto", {"id": "", "text": "x"}, b"a", "a", "its id is empty"),
        ("auto", {"id": "a\0", "text": "x"}, None, None, "NUL"),
        ("auto", {"text": "x"}, b"a\0b", None, "NUL"),
        ("auto", {"id": "x" * 4097, "text": "x"}, None, None, "4097 bytes, the most is 4096"),
        ("auto", {"id": "ü" * 2049, "text": "x"}, None, None, "4098 bytes"),
        ("auto", {"id": "\ud800", "text": "x"}, None, None, "half a character"),
        ("auto", {"id": 5, "text": "x"}, b"a", "a", "'id' is a number"),
        ("value", {"text": "x"}, b"a", None, 'id_from = "value"'),
        ("value", None, b"a", None, "tombstone.*ignores keys"),
        ("key", {"id": "a", "text": "x"}, None, None, "no key, and id_from"),
        ("auto", {"id": "a", "txt": "x"}, None, "a", "unknown key"),
    ],
)
def test_whose_document_it_cannot_be(
    id_from: IdFrom, value: object, key: bytes | None, document: str | None, why: str
) -> None:
    """Two ids, none, or one that is none: refused, with the document as far as it can be told."""
    error = refusal(ours(id_from), record(value, key))
    assert error.document_id == document
    with pytest.raises(UnreadableError, match=why):
        raise error


def test_long_ids_are_cut_and_escaped() -> None:
    """A message shows 80 characters of an id at most, and no control character."""
    error = refusal(ours(), record({"id": "\x1b[31m" + "x" * 5000, "text": "x"}, None))
    assert "\x1b" not in str(error)
    assert len(str(error)) < 250


def test_large_values_are_refused_unread() -> None:
    """By the option that can be raised, and the document by its key."""
    error = refusal(ours(limits=ValueLimits(10, 100)), record(b"{" * 11))
    assert ("11 bytes, the most is 10; raise max_value_bytes" in str(error), error.document_id) == (True, "a")


def test_large_documents_are_refused() -> None:
    """A document has a limit of its own."""
    with pytest.raises(UnreadableError, match=r"6 bytes, the most is 5; raise \[limits\] max_bytes"):
        ours(limits=ValueLimits(100, 5)).decode(record({"text": "äöü"}))


THEIRS = Fields(
    id="$.doc.key",
    op="$.deleted",
    text="$.body",
    title="$.names[-1]",
    version="$.at",
    metadata={"lang": "$.lang", "tags": "$.tags[*].name", "none": "$.none"},
)
WORDS = OpValues(upsert=(False,), delete=(True, "gone", 2))


def test_anybodys_value() -> None:
    """Paths say where things are; keys that are not named stay alone."""
    value = {
        "doc": {"key": 12},
        "deleted": False,
        "body": "x",
        "names": ["a", "b"],
        "at": "1700000000123",
        "lang": None,
        "tags": [{"name": "p"}, {}, {"name": "q"}],
        "else": {"\ud800": ["\ud800"]},
    }
    found = ours(fields=THEIRS, op_values=WORDS).decode(record(value, b"12"))
    assert (found.document_id, found.op, found.version) == ("12", Op.UPSERT, 1_700_000_000_123)
    assert content(found) == Content(b"x", "12", None, "b", {"lang": None, "tags": ["p", "q"]}, None, "x")


@pytest.mark.parametrize("word", [True, "gone", 2])
def test_their_words_for_a_delete(word: object) -> None:
    """A row with a flag is deleted although it still has a body."""
    found = ours(fields=THEIRS, op_values=WORDS).decode(record({"deleted": word, "body": "x", "at": 3}))
    assert found == Decoded("a", Op.DELETE, None, 3, 0)


@pytest.mark.parametrize("word", [1, 0, "false", "upsert", 2.0])
def test_words_that_are_not_theirs(word: object) -> None:
    """1 is not true: what is not listed is refused."""
    assert "'op' is" in str(refusal(ours(fields=THEIRS, op_values=WORDS), record({"deleted": word, "body": "x"})))


def test_the_rest_is_metadata() -> None:
    """With ``rest``, keys of the top level that no path goes through are metadata; what is named wins."""
    fields = Fields(text="$.body.text", title="$.title", metadata={"more": "$.deep.er"}, rest=True)
    value = {"body": {"text": "x"}, "title": "t", "deep": {"er": 1}, "more": 2, "left": [3]}
    assert content(ours(fields=fields).decode(record(value))).metadata == {"more": 1, "left": [3]}


def test_several_strings_are_paragraphs() -> None:
    """A path to many strings, or to a list of them, is the text in paragraphs."""
    value = {"parts": [{"t": "a"}, {"t": None}, {"t": "b"}], "list": ["c", "d"]}
    assert content(ours(fields=Fields(text="$.parts[*].t")).decode(record(value))).text == "a\n\nb"
    assert content(ours(fields=Fields(text="$.list")).decode(record(value))).text == "c\n\nd"


@pytest.mark.parametrize(
    ("fields", "value", "why"),
    [
        (Fields(text="$.a"), {"b": "x"}, r"exactly one of text = \$\.a; this has none"),
        (Fields(text="$.a", uri="$.b"), {"a": "x", "b": "y"}, "'text' and 'uri'"),
        (Fields(text="$.a"), {"a": 5}, "'text' is a number"),
        (Fields(text="$.a[*]"), {"a": ["SECRET", 5]}, "something else than strings"),
        (Fields(text="$.a", title="$..t"), {"a": "x", "t": "SECRET", "b": {"t": "SECRET"}}, "matches 2 values"),
        (Fields(text="$.a", id="$.id"), {"a": "x", "id": 1.5}, "its id is a number"),
        (Fields(text="$.a", id="$.id"), {"a": "x", "id": True}, "its id is a boolean"),
        (Fields(text="$.a", version="$.v"), {"a": "x", "v": "1.5"}, "'version' is a string"),
        (Fields(text="$.a", version="$.v"), {"a": "x", "v": "9" * 19}, "64 bits"),
        (Fields(text="$.a", rest=True), ["x"], "exactly one"),
    ],
)
def test_values_that_their_paths_do_not_fit(fields: Fields, value: object, why: str) -> None:
    """What is not where it should be, or not what it should be, is said by its path."""
    with pytest.raises(UnreadableError, match=why) as caught:
        ours(fields=fields).decode(record(value))
    assert "SECRET" not in str(caught.value)
