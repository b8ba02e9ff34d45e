"""Values, and the digests and keys made of them: what is written in places has to stay the same for ever."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.immutable import value
from ingestd.model import (
    CHUNK_ID_SCHEME,
    ChunkKeys,
    Content,
    DocumentKey,
    Row,
    Version,
    canonical_json,
    chunk_ids,
    digests,
)

TEXT = st.text(st.characters(codec=None, categories=["L", "N", "P", "Z", "S", "C"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(TEXT, JSON, max_size=3)


@given(TEXT, st.binary(max_size=20), st.none() | TEXT, st.none() | TEXT, METADATA)
def test_a_content_is_digested_as_canonical_json(
    name: str, data: bytes, content_type: str | None, title: str | None, metadata: dict[str, Any]
) -> None:
    """The digest is that of the bytes' digest and of the list of all that is said, whatever the shorter way to it."""
    said = canonical_json([name, content_type, title, metadata])
    expected = hashlib.sha256(hashlib.sha256(data).digest() + said).hexdigest()
    assert Content(data, name, content_type, title, metadata).digest() == expected


@given(st.data(), TEXT, TEXT, TEXT)
def test_rows_are_digested_as_canonical_json(data: st.DataObject, document: str, domain: str, source: str) -> None:
    """One by one or a document's together, rows that share fields or not: each has the digest of its own list."""
    parts = st.lists(st.tuples(METADATA, METADATA), min_size=1, max_size=3)
    rows = [
        Row("id", document, 3 - at, domain, at % 3, f"text {at}", source, fields, metadata)
        for fields, metadata in data.draw(parts)
        for at in range(data.draw(st.integers(1, 3)))
    ]
    expected = []
    for row in rows:
        version = [row.version, domain] if row.chunk_index == 0 else []
        said = [document, row.chunk_index, source, row.fields, row.metadata, version]
        expected.append(hashlib.sha256(canonical_json(said)).digest()[:16])
    assert digests(rows) == expected == [row.digest() for row in rows]


@given(TEXT, st.lists(st.sampled_from(["a", "b", ""]) | TEXT, max_size=14))
def test_keys_hash_what_is_length_prefixed(document: str, texts: list[str]) -> None:
    """A key is the hash of the scheme, the document, the text, and which of its equals it is; the same one by one."""
    expected = []
    for at, text in enumerate(texts):
        hasher = hashlib.sha256()
        for part in (str(CHUNK_ID_SCHEME), document, text, str(texts[:at].count(text))):
            encoded = part.encode("utf-8", "surrogatepass")
            hasher.update(len(encoded).to_bytes(8, "big") + encoded)
        expected.append(hasher.hexdigest()[:32])
    assert chunk_ids(document, texts) == expected
    assert [ChunkKeys(document, text)[texts[:at].count(text)] for at, text in enumerate(texts)] == expected


def test_values_are_equal_and_hashed_by_what_they_hold() -> None:
    """They are keys of dictionaries, go to other processes, are ordered where they say so, and have no other fields."""
    key, version = DocumentKey("c", "a"), Version(1, "d")
    assert (key, hash(key)) == (DocumentKey("c", "a"), hash(DocumentKey("c", "a"))) != (replace(key, collection="x"), 0)
    assert sorted([Version(2, "a"), version, Version(1, "c")]) == [Version(1, "c"), version, Version(2, "a")]
    assert pickle.loads(pickle.dumps(Content(b"x", "n", text="x"))) == Content(b"x", "n", text="x")
    with pytest.raises(AttributeError):
        key.other = 1  # type: ignore[attr-defined]


def test_what_changes_is_no_value() -> None:
    """The decorator stands for immutability to whoever reads: it takes nothing else."""
    with pytest.raises(TypeError, match="frozen"):
        value(frozen=False, slots=True)
