"""What a collection should look like, and the difference in words."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from pydantic import ValidationError

from ingestd.errors import ConfigError
from ingestd.milvus.client import Capabilities, Config
from ingestd.milvus.schema import (
    PROPERTY_ID,
    PROPERTY_SCHEME,
    Column,
    FieldConfig,
    Found,
    Index,
    VectorConfig,
    VectorSpec,
    Wanted,
    difference,
    possible,
    wanted,
)
from ingestd.model import VectorKind

OLD = Capabilities.of("v2.3.5")
NEW = Capabilities.of("2.6.4")


def _dense(**changes: object) -> VectorSpec:
    return VectorSpec(VectorConfig.model_validate({"embedder": "minilm", **changes}), VectorKind.DENSE, 384, "minilm@1")


def _sparse(**changes: object) -> VectorSpec:
    return VectorSpec(VectorConfig.model_validate({"embedder": "splade", **changes}), VectorKind.SPARSE, None, "spl@1")


def _articles() -> Wanted:
    lang = FieldConfig.model_validate({"type": "VARCHAR", "max_length": 16})
    return wanted("articles", {"dense": _dense(), "sparse": _sparse()}, {"lang": lang})


def _found(target: Wanted) -> Found:
    return Found(target.columns, target.indexes, target.properties("a1"))


def test_the_columns_of_a_collection() -> None:
    """Every collection has the columns of the row; declared fields may be null; vectors follow their models."""
    target = _articles()
    assert [str(column) for column in target.columns] == [
        "id VARCHAR(32) primary key",
        "document_id VARCHAR(4096)",
        "version INT64",
        "domain VARCHAR(512)",
        "chunk_index INT64",
        "text VARCHAR(65535)",
        "source VARCHAR(256)",
        "metadata JSON",
        "lang VARCHAR(16) nullable",
        "dense FLOAT_VECTOR(384)",
        "sparse SPARSE_FLOAT_VECTOR",
    ]
    assert [f"{index.column}: {index}" for index in target.indexes] == [
        "dense: HNSW COSINE M=16 efConstruction=200",
        "sparse: SPARSE_INVERTED_INDEX IP",
        "document_id: INVERTED",
    ]


def test_lite_gets_an_exact_index_unless_one_is_named() -> None:
    """Its HNSW loses rows after deletes, so only who asks for it gets it; other servers have HNSW."""
    lite = Capabilities.of("milvus_lite-3.2.2")
    assert str(possible(_articles(), lite).index("dense")) == "FLAT COSINE"
    assert str(possible(_articles(), NEW).index("dense")).startswith("HNSW")
    named = wanted("a", {"v": _dense(index={"type": "HNSW", "M": 16, "efConstruction": 200})}, {})
    assert str(possible(named, lite).index("v")).startswith("HNSW")


def test_an_index_of_ones_own() -> None:
    """Type, metric and parameters come from the configuration."""
    spec = _dense(metric="L2", index={"type": "IVF_FLAT", "nlist": 128})
    assert str(wanted("a", {"v": spec}, {}).index("v")) == "IVF_FLAT L2 nlist=128"


@pytest.mark.parametrize(
    ("collection", "vectors", "fields", "fault"),
    [
        ("1a", {"v": _dense()}, {}, "collections.1a: a collection's name has"),
        ("a", {}, {}, "collections.a.vectors: a collection needs at least one"),
        ("a", {"text": _dense()}, {}, "collections.a.vectors.text: the name is taken"),
        ("a", {"v": _dense()}, {"metadata": {"type": "BOOL"}}, "collections.a.fields.metadata: the name is taken"),
        ("a", {"v": _dense()}, {"v": {"type": "BOOL"}}, "collections.a.fields.v: a vector has that name"),
        ("a", {"v": _dense()}, {"a-b": {"type": "BOOL"}}, "collections.a.fields.a-b: a field's name has"),
        ("a", {"v": _sparse(metric="COSINE")}, {}, "collections.a.vectors.v.metric: sparse vectors are compared by IP"),
        ("a", {"v": _dense()._replace(dimension=40000)}, {}, "collections.a.vectors.v: Milvus takes 2 to 32768"),
        ("a", {"v": _dense()._replace(space="")}, {}, "names no vector space"),
        ("a", {"v": _dense()}, {f"f{n}": {"type": "BOOL"} for n in range(60)}, "more than Milvus's 64 columns"),
    ],
)
def test_a_set_up_that_milvus_would_refuse(
    collection: str, vectors: dict[str, VectorSpec], fields: dict[str, dict[str, object]], fault: str
) -> None:
    """Faults are found before a server is asked, each with the key's path."""
    with pytest.raises(ConfigError, match=re.escape(fault)):
        wanted(collection, vectors, {name: FieldConfig.model_validate(field) for name, field in fields.items()})


@pytest.mark.parametrize("field", [{"type": "VARCHAR"}, {"type": "BOOL", "max_length": 3}, {"type": "TEXT"}])
def test_a_field_that_is_none(field: dict[str, object]) -> None:
    """A length belongs to text, and text has one."""
    with pytest.raises(ValidationError):
        FieldConfig.model_validate(field)


def test_nothing_differs() -> None:
    """A collection as it was made is as it should be, also if the server says more of an index."""
    target = _articles()
    assert difference(target, _found(target)) == ()
    more = tuple(replace(index, parameters=(*index.parameters, ("mmap.enabled", "false"))) for index in target.indexes)
    assert difference(target, replace(_found(target), indexes=more)) == ()


def test_an_absent_collection_can_be_made() -> None:
    """The difference lists what would be made."""
    (line,) = difference(_articles(), None)
    assert line.fixable
    assert "collection articles: is absent, should be id VARCHAR(32) primary key," in str(line)


def test_a_strangers_collection_is_left_alone() -> None:
    """What the daemon did not make it neither adopts nor changes."""
    target = _articles()
    (line,) = difference(target, replace(_found(target), properties={}))
    assert not line.fixable
    assert "ingestd did not make it" in str(line)


def test_another_space_is_refused_at_equal_dimension() -> None:
    """Two models of one dimension do not mix; the message names both."""
    target = _articles()
    other = replace(target, spaces={**target.spaces, "dense": "e5@7"})
    (line,) = difference(other, _found(target))
    assert not line.fixable
    assert "vector space of dense in articles: is minilm@1, should be e5@7" in str(line)


def test_an_absent_index_can_be_made_and_another_one_cannot() -> None:
    """Indexes that are missing are created; one that exists is a person's decision."""
    target = _articles()
    found = replace(_found(target), indexes=(Index("dense", "HNSW", "COSINE", (("M", "32"),)),))
    lines = {line.subject: line for line in difference(target, found)}
    assert lines["index on sparse of articles"].fixable
    assert not lines["index on dense of articles"].fixable
    assert "is HNSW COSINE M=32, should be HNSW COSINE M=16 efConstruction=200" in str(
        lines["index on dense of articles"]
    )


def test_columns_that_differ_are_named() -> None:
    """A changed, a missing and a surplus column: each is a line, and none can be changed in place."""
    target = _articles()
    columns = (
        *(c for c in target.columns if c.name not in {"lang", "version"}),
        Column("lang", "VARCHAR", max_length=8),
    )
    lines = difference(target, replace(_found(target), columns=(*columns, Column("old", "BOOL"))))
    assert [(line.subject, line.found, line.wanted, line.fixable) for line in lines] == [
        ("field version of articles", "absent", "version INT64", False),
        ("field lang of articles", "lang VARCHAR(8)", "lang VARCHAR(16) nullable", False),
        ("field old of articles", "old BOOL", "absent", False),
    ]


def test_collections_that_behave_otherwise() -> None:
    """Another scheme, undeclared fields and ids of its own are refused."""
    target = _articles()
    found = replace(
        _found(target), properties={**target.properties("a"), PROPERTY_SCHEME: "0"}, dynamic=True, auto_id=True
    )
    assert [line.found for line in difference(target, found)] == [
        "of scheme 0",
        "open to undeclared fields",
        "one that makes its own ids",
    ]


def test_what_an_old_server_lacks_is_said_with_the_cure() -> None:
    """Sparse vectors, several vectors and nullable fields are named; a missing scalar index is no fault."""
    with pytest.raises(ConfigError) as caught:
        possible(_articles(), OLD)
    assert len(caught.value.faults) == 3
    assert "collections.articles.vectors.sparse: this server (v2.3.5) has no sparse vectors" in caught.value.faults[0]
    assert "set nullable = false" in caught.value.faults[2]
    alone = wanted("a", {"v": _dense()}, {"n": FieldConfig.model_validate({"type": "BOOL", "nullable": False})})
    assert [index.column for index in possible(alone, OLD).indexes] == ["v"]
    assert possible(_articles(), NEW) == _articles()


def test_properties_carry_identity_scheme_and_spaces() -> None:
    """They are what a collection is recognised by."""
    assert _articles().properties("abc") == {
        PROPERTY_ID: "abc",
        PROPERTY_SCHEME: "1",
        "ingestd.space.dense": "minilm@1",
        "ingestd.space.sparse": "spl@1",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"uri": ""},
        {"uri": "tcp://milvus:19530"},
        {"uri": "http://"},
        {"uri": "http://root:secret@milvus:19530"},
        {"uri": "http://milvus:19530/db"},
        {"user": "root"},
        {"user": "root", "password": "x", "token": "y"},
        {"uri": "http://milvus:19530", "tls": {"ca_file": "ca.pem"}},
        {"uri": "https://milvus:19530", "tls": {"cert_file": "c.pem"}},
        {"batch_bytes": 64 << 20},
        {"nonsense": 1},
    ],
)
def test_a_section_milvus_that_is_wrong(options: dict[str, object]) -> None:
    """What could only fail later, or would show a secret, is refused at once."""
    with pytest.raises(ValidationError):
        Config.model_validate(options)


def test_a_path_is_told_from_an_address() -> None:
    """A path is a data folder of Milvus Lite."""
    assert str(Config(uri="var/milvus").path) == "var/milvus"
    assert Config(uri="https://milvus.example:443").path is None
