"""What a collection should look like, what it looks like, and the difference in words.

``wanted`` builds the one from the configuration and the models, ``Found`` (read by ``collections``) is the other, and
``difference`` compares them as normalised sets: name, type, dimension, key, nullable, greatest length; index type,
metric and parameters; and the properties that the daemon leaves on every collection it makes. Comparing whole
descriptions was turned down: Milvus Lite loses descriptions and consistency levels, and servers add to them.

Everything here is pure; nothing talks to a server.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ingestd.errors import ConfigError
from ingestd.model import VectorKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ingestd.milvus.client import Capabilities

SCHEME = "1"
"""Of the columns below. A collection of another scheme is refused: raise it knowingly."""
PROPERTY_ID = "ingestd.id"
"""The random id that a ledger is bound to."""
PROPERTY_SCHEME = "ingestd.scheme"
PROPERTY_SPACE = "ingestd.space."
"""With the vector field's name after it: the fingerprint of the space that its vectors lie in."""

TOMBSTONES = "ingestd_tombstones"
"""The collection in which the members of a group note deletes (``tombstones``)."""

LONGEST_VARCHAR = 65535
"""Bytes; the most that Milvus takes."""
LONGEST_DOCUMENT_ID = 4096
"""Bytes."""
LARGEST_JSON = 65536
"""Bytes of the metadata, encoded; the most that Milvus takes."""
MOST_FIELDS = 64
LARGEST_DIMENSION = 32768

Parameter = str | bool | int | float


class ScalarType(StrEnum):
    """The types that a declared field can have."""

    VARCHAR = "VARCHAR"
    BOOL = "BOOL"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FLOAT = "FLOAT"
    DOUBLE = "DOUBLE"


class FieldConfig(BaseModel):
    """A field that is declared for a collection: metadata of that name goes into a column of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ScalarType = Field(description="The column's type.")
    max_length: int | None = Field(
        default=None, ge=1, le=LONGEST_VARCHAR, description="The most bytes of UTF-8 that a VARCHAR takes."
    )
    nullable: bool = Field(
        default=True,
        description="Whether a document may lack it. Servers before 2.5 need false, and every document must have it.",
    )
    index: Literal["INVERTED"] | None = Field(
        default=None, description="A scalar index, for filters; left out on servers that have none (before 2.4, Lite)."
    )

    @model_validator(mode="after")
    def _length(self) -> FieldConfig:
        if (self.type is ScalarType.VARCHAR) != (self.max_length is not None):
            raise ValueError("max_length belongs to VARCHAR, and every VARCHAR has one")
        return self


class IndexConfig(BaseModel):
    """A vector index: its type, and the parameters that Milvus documents for it (M, efConstruction, nlist, …)."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Parameter]

    type: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$", description="HNSW, IVF_FLAT, SPARSE_INVERTED_INDEX, AUTOINDEX, …")


class VectorConfig(BaseModel):
    """A vector field of a collection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedder: str | None = Field(default=None, description="The name of the embedder that fills it.")
    function: Literal["bm25"] | None = Field(
        default=None,
        description="bm25: Milvus itself fills it from the text, for full-text search (2.5 and later, Lite).",
    )
    analyzer: dict[str, Any] | None = Field(
        default=None,
        description="How Milvus finds the words for bm25, in its own terms; not set: by spaces and signs, lower case.",
    )
    output: VectorKind | None = Field(
        default=None, description="dense or sparse; needed only where the embedder makes both."
    )
    metric: Literal["COSINE", "IP", "L2", "BM25"] | None = Field(
        default=None, description="Dense: COSINE (the default), IP or L2. Sparse: IP. bm25: BM25."
    )
    index: IndexConfig | None = Field(
        default=None, description="Dense: HNSW with M = 16 and efConstruction = 200. Sparse: SPARSE_INVERTED_INDEX."
    )
    search: dict[str, Parameter] = Field(
        default_factory=dict, description="Search parameters of the index, such as ef for HNSW or nprobe for IVF."
    )

    @field_validator("output", mode="before")
    @classmethod
    def _one_vector_a_chunk(cls, output: object) -> object:
        if output in {"multi", "multi_vector", "colbert"}:
            # Servers keep them as arrays of structs from 2.6.4 on, and take no partial update of a row with one until
            # well after it: what a rewrite leaves of such a row depends on versions that nobody tried this with.
            raise ValueError("a chunk has one vector in a field: a vector a token is not written; dense and sparse are")
        return output

    @model_validator(mode="after")
    def _filled_by_one(self) -> VectorConfig:
        if (self.embedder is None) == (self.function is None):
            raise ValueError('name what fills it: embedder = "…", or function = "bm25"')
        if self.function is None and self.analyzer is not None:
            raise ValueError("analyzer is for bm25")
        if self.function is not None and self.output is not None:
            raise ValueError("output is an embedder's")
        return self


class VectorSpec(NamedTuple):
    """A vector field and what its model says of itself."""

    config: VectorConfig
    kind: VectorKind
    dimension: int | None
    """None for sparse vectors."""
    space: str
    """``ModelInfo.space``; of full text, how its words are found."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, as far as two schemas are compared."""

    name: str
    type: str
    """Milvus's name of the type."""
    key: bool = False
    nullable: bool = False
    max_length: int | None = None
    dimension: int | None = None
    function: str = ""
    """What Milvus fills it with itself: ``BM25``."""

    def __str__(self) -> str:
        """Return it as a person would write it: ``lang VARCHAR(16) nullable``."""
        size = self.max_length if self.max_length is not None else self.dimension
        text = f"{self.name} {self.type}" + (f"({size})" if size is not None else "")
        made = f" by {self.function}" if self.function else ""
        return text + made + (" primary key" if self.key else "") + (" nullable" if self.nullable else "")


@dataclass(frozen=True, slots=True)
class Index:
    """An index of one column."""

    column: str
    type: str
    metric: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    """Sorted; the values as text, which is what servers answer."""

    def __str__(self) -> str:
        """Return it as a person would write it: ``HNSW COSINE M=16``."""
        return " ".join(
            [self.type, *filter(None, [self.metric]), *(f"{name}={value}" for name, value in self.parameters)]
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A collection as the configuration and the models want it."""

    collection: str
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    spaces: Mapping[str, str]
    """The space's fingerprint, by vector field."""
    search: Mapping[str, Mapping[str, Parameter]] = field(default_factory=dict)
    """Search parameters, by vector field."""
    left_open: frozenset[str] = frozenset()
    """Vector fields whose index the configuration does not name."""
    analyzer: str = ""
    """How Milvus finds the words of the text, as JSON; empty: it need not."""

    def column(self, name: str) -> Column:
        """Return the column of that name."""
        return next(column for column in self.columns if column.name == name)

    def index(self, name: str) -> Index:
        """Return the index of the column of that name."""
        return next(index for index in self.indexes if index.column == name)

    @property
    def vectors(self) -> tuple[Column, ...]:
        """The vector fields that rows bring vectors for."""
        return tuple(column for column in self.columns if column.name in self.spaces and not column.function)

    @property
    def functions(self) -> tuple[Column, ...]:
        """The vector fields that Milvus fills itself."""
        return tuple(column for column in self.columns if column.function)

    @property
    def declared(self) -> tuple[Column, ...]:
        """The declared fields."""
        return tuple(c for c in self.columns if c.name not in RESERVED and c.name not in self.spaces)

    def properties(self, identity: str) -> dict[str, str]:
        """Return the properties that the collection is made with."""
        spaces = {PROPERTY_SPACE + name: space for name, space in self.spaces.items()}
        return {PROPERTY_ID: identity, PROPERTY_SCHEME: SCHEME, **spaces}


@dataclass(frozen=True, slots=True)
class Found:
    """A collection as the server describes it."""

    columns: tuple[Column, ...]
    indexes: tuple[Index, ...]
    properties: Mapping[str, str]
    dynamic: bool = False
    """Whether it takes fields that nobody declared."""
    auto_id: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    subject: str
    """``collection articles``, ``field lang of articles``, …"""
    found: str
    wanted: str
    fixable: bool
    """Whether it can be put right while the collection is in use, by creating what is absent."""
    cure: str = ""

    def __str__(self) -> str:
        """Return it as a line for people."""
        cure = self.cure or ("`ingestd schema apply` does it" if self.fixable else _NEW_COLLECTION)
        return f"{self.subject}: is {self.found}, should be {self.wanted}; {cure}"


COLUMNS = (
    Column("id", "VARCHAR", key=True, max_length=32),
    Column("document_id", "VARCHAR", max_length=LONGEST_DOCUMENT_ID),
    Column("version", "INT64"),
    Column("domain", "VARCHAR", max_length=512),
    Column("chunk_index", "INT64"),
    Column("text", "VARCHAR", max_length=LONGEST_VARCHAR),
    Column("source", "VARCHAR", max_length=256),
    Column("metadata", "JSON"),
)
"""The columns of every collection; lengths in bytes."""
TEXT = "text"
"""The column that full text is filled from."""
RESERVED = frozenset(column.name for column in COLUMNS)

_ABSENT = "absent"
_NEW_COLLECTION = "this cannot be changed in place: change the configuration back, or name a new collection"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_DENSE_INDEX = IndexConfig.model_validate({"type": "HNSW", "M": 16, "efConstruction": 200})
_ANALYZER = {"tokenizer": "standard", "filter": ["lowercase"]}
"""Milvus's own default, written out: Lite has no analyzers of other names."""
_SPARSE_INDEX = IndexConfig.model_validate({"type": "SPARSE_INVERTED_INDEX"})


def wanted(collection: str, vectors: Mapping[str, VectorSpec], fields: Mapping[str, FieldConfig]) -> Wanted:
    """Return what a collection should look like.

    Args:
        collection: Its name.
        vectors: The vector fields, by name.
        fields: The declared fields, by name.

    Raises:
        ConfigError: One line per fault.
    """
    where = f"collections.{collection}"
    faults = [*name_faults(where, collection, vectors, fields)]
    if not vectors:
        faults.append(f"{where}.vectors: a collection needs at least one vector field")
    for name, spec in vectors.items():
        faults += _vector_faults(f"{where}.vectors.{name}", VectorSpec(*spec))
    analyzers = {
        analyzer_of(VectorSpec(*spec).config) for spec in vectors.values() if VectorSpec(*spec).config.function
    }
    if len(analyzers) > 1:
        faults.append(f"{where}.vectors: the text has one analyzer, whatever number of fields it fills")
    if faults:
        raise ConfigError(*faults)
    declared = tuple(
        Column(name, config.type.value, nullable=config.nullable, max_length=config.max_length)
        for name, config in fields.items()
    )
    specs = {name: VectorSpec(*spec) for name, spec in vectors.items()}
    scalar = ["document_id", *(name for name, config in fields.items() if config.index)]
    return Wanted(
        collection=collection,
        columns=(*COLUMNS, *declared, *(_vector_column(name, spec) for name, spec in specs.items())),
        indexes=(
            *(_vector_index(name, spec) for name, spec in specs.items()),
            *(Index(name, "INVERTED") for name in scalar),
        ),
        spaces={name: spec.space for name, spec in specs.items()},
        search={name: spec.config.search for name, spec in specs.items()},
        left_open=frozenset(name for name, spec in specs.items() if spec.config.index is None),
        analyzer=next(iter(analyzers), ""),
    )


def possible(target: Wanted, capabilities: Capabilities) -> Wanted:
    """Return what is wanted, less the scalar indexes that this server has no use for.

    On Milvus Lite a dense index that nobody named is FLAT. Its HNSW keeps deleted rows in the graph and takes them out
    of the answer afterwards: after a large delete few rows, or none, are left of it (measured, 3.2.2).

    Raises:
        ConfigError: The server lacks something that is more than a speed-up; one line each.
    """
    server = f"this server ({capabilities.name})"
    where = f"collections.{target.collection}"
    faults = []
    if not capabilities.sparse:
        sparse = [column.name for column in target.vectors if column.type == "SPARSE_FLOAT_VECTOR"]
        faults += [f"{where}.vectors.{name}: {server} has no sparse vectors, 2.4 and later do" for name in sparse]
        if len(target.vectors) + len(target.functions) > 1:
            faults.append(f"{where}.vectors: {server} takes one vector field a collection, 2.4 and later take more")
    if not capabilities.full_text:
        faults += [
            f"{where}.vectors.{column.name}: {server} has no full-text search, 2.5 and later do"
            for column in target.functions
        ]
    if not capabilities.nullable:
        faults += [
            f"{where}.fields.{column.name}: {server} has no nullable fields, 2.5 and later do; "
            "set nullable = false, and every document must have it"
            for column in target.declared
            if column.nullable
        ]
    if faults:
        raise ConfigError(*faults)
    if capabilities.inverted:
        return target
    kept = [index for index in target.indexes if index.type != "INVERTED"]
    if capabilities.lite:
        kept = [_exact(index) if index.column in target.left_open else index for index in kept]
    return replace(target, indexes=tuple(kept))


def difference(target: Wanted, found: Found | None) -> tuple[Difference, ...]:
    """Return what has to change for ``found`` to become what is wanted. Empty: nothing.

    Args:
        target: As ``possible`` left it.
        found: None when there is no collection of that name.
    """
    name = target.collection
    if found is None:
        columns = ", ".join(str(column) for column in target.columns)
        return (Difference(f"collection {name}", _ABSENT, columns, fixable=True),)
    if PROPERTY_ID not in found.properties:
        cure = "ingestd did not make it and leaves it alone: name another collection, or drop this one"
        return (Difference(f"collection {name}", "a stranger's", "made by ingestd", fixable=False, cure=cure),)
    return (*_flags(target, found), *_columns(target, found), *_spaces(target, found), *_indexes(target, found))


def _flags(target: Wanted, found: Found) -> Iterator[Difference]:
    subject = f"collection {target.collection}"
    scheme = found.properties.get(PROPERTY_SCHEME, _ABSENT)
    if scheme != SCHEME:
        yield Difference(subject, f"of scheme {scheme}", f"of scheme {SCHEME}", fixable=False)
    if found.dynamic:
        yield Difference(subject, "open to undeclared fields", "closed to them", fixable=False)
    if found.auto_id:
        yield Difference(subject, "one that makes its own ids", "one that takes ours", fixable=False)


def _columns(target: Wanted, found: Found) -> Iterator[Difference]:
    have = {column.name: column for column in found.columns}
    want = {column.name: column for column in target.columns}
    for name in [*want, *sorted(have.keys() - want.keys())]:
        if have.get(name) != want.get(name):
            yield Difference(
                f"field {name} of {target.collection}",
                str(have.get(name, _ABSENT)),
                str(want.get(name, _ABSENT)),
                fixable=False,
            )


def _spaces(target: Wanted, found: Found) -> Iterator[Difference]:
    for name, space in target.spaces.items():
        known = found.properties.get(PROPERTY_SPACE + name, _ABSENT)
        if known != space:
            what = "words that were found in two ways" if target.column(name).function else "vectors of two models"
            cure = f"{what} do not compare: change it back, or name a new collection for this one"
            yield Difference(f"vector space of {name} in {target.collection}", known, space, fixable=False, cure=cure)


def _indexes(target: Wanted, found: Found) -> Iterator[Difference]:
    have = {index.column: index for index in found.indexes}
    for index in target.indexes:
        known = have.get(index.column)
        if known is None:
            yield Difference(f"index on {index.column} of {target.collection}", _ABSENT, str(index), fixable=True)
        elif not _same(index, known):
            cure = "drop the index by hand and run `ingestd schema apply`: searches fail until it is built again"
            yield Difference(
                f"index on {index.column} of {target.collection}", str(known), str(index), fixable=False, cure=cure
            )


def _same(index: Index, known: Index) -> bool:
    """Compare an index with a found one, which may say more than was asked for."""
    return (index.type, index.metric) == (known.type, known.metric) and set(index.parameters) <= set(known.parameters)


def analyzer_of(config: VectorConfig) -> str:
    """Return how the words of a full-text field are found, as JSON."""
    return json.dumps(config.analyzer or _ANALYZER, sort_keys=True)


def full_text(config: VectorConfig) -> VectorSpec:
    """Return what a field is that Milvus fills itself. Its space is how the words are found: others do not compare."""
    return VectorSpec(config, VectorKind.SPARSE, None, f"bm25 {analyzer_of(config)}")


def _vector_column(name: str, spec: VectorSpec) -> Column:
    if spec.config.function is not None:
        return Column(name, "SPARSE_FLOAT_VECTOR", function=spec.config.function.upper())
    if spec.kind is VectorKind.SPARSE:
        return Column(name, "SPARSE_FLOAT_VECTOR")
    return Column(name, "FLOAT_VECTOR", dimension=spec.dimension)


def _vector_index(name: str, spec: VectorSpec) -> Index:
    dense = spec.kind is VectorKind.DENSE
    config = spec.config.index or (_DENSE_INDEX if dense else _SPARSE_INDEX)
    metric = spec.config.metric or ("COSINE" if dense else "BM25" if spec.config.function else "IP")
    parameters = sorted((key, parameter_text(value)) for key, value in (config.model_extra or {}).items())
    return Index(name, config.type, metric, tuple(parameters))


def _exact(index: Index) -> Index:
    """Return a dense index that looks at every row in place of an approximate one."""
    return Index(index.column, "FLAT", index.metric) if index.type == _DENSE_INDEX.type else index


def parameter_text(value: object) -> str:
    """Return an index parameter as servers answer it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def name_faults(
    where: str, collection: str, vectors: Mapping[str, object], fields: Mapping[str, object]
) -> Iterator[str]:
    """Yield a line for each name that Milvus would not take, or that is taken; no model is needed to tell."""
    rule = "letters, digits and underscores, at most 255, no digit first"
    if not _NAME.fullmatch(collection):
        yield f"{where}: a collection's name has {rule}"
    if collection == TOMBSTONES:
        yield f"{where}: the name is taken, members of a consumer group note deletes in that collection"
    if len(COLUMNS) + len(vectors) + len(fields) > MOST_FIELDS:
        yield f"{where}: {len(vectors)} vectors and {len(fields)} fields make more than Milvus's {MOST_FIELDS} columns"
    for section, names in (("vectors", vectors), ("fields", fields)):
        for name in names:
            if name in RESERVED:
                yield f"{where}.{section}.{name}: the name is taken, every row has {', '.join(sorted(RESERVED))}"
            elif not _NAME.fullmatch(name):
                yield f"{where}.{section}.{name}: a field's name has {rule}"
    for name in sorted(vectors.keys() & fields.keys()):
        yield f"{where}.fields.{name}: a vector has that name"


def _vector_faults(where: str, spec: VectorSpec) -> Iterable[str]:
    if spec.config.function is not None:
        if spec.config.metric not in {None, "BM25"}:
            yield f"{where}.metric: full text is compared by BM25, not {spec.config.metric}"
        return
    if spec.config.metric == "BM25":
        yield f'{where}.metric: BM25 is for full text: function = "bm25" in place of the embedder'
    elif spec.kind is VectorKind.SPARSE:
        if spec.config.metric not in {None, "IP"}:
            yield f"{where}.metric: sparse vectors are compared by IP, not {spec.config.metric}"
    elif spec.dimension is None or not 1 < spec.dimension <= LARGEST_DIMENSION:
        yield f"{where}: Milvus takes 2 to {LARGEST_DIMENSION} dimensions, the model has {spec.dimension}"
    if not spec.space:
        yield f"{where}: the model of {spec.config.embedder} names no vector space"
