"""The difference of two schemas, for any two."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ingestd.milvus.schema import (
    RESERVED,
    Column,
    FieldConfig,
    Found,
    Index,
    ScalarType,
    VectorConfig,
    VectorSpec,
    Wanted,
    difference,
    wanted,
)
from ingestd.model import VectorKind

_names = st.from_regex(r"[a-z_][a-z0-9_]{0,7}", fullmatch=True).filter(lambda name: name not in RESERVED)


@st.composite
def _field(draw: st.DrawFn) -> FieldConfig:
    kind = draw(st.sampled_from(ScalarType))
    length = draw(st.integers(1, 65535)) if kind is ScalarType.VARCHAR else None
    return FieldConfig(
        type=kind,
        max_length=length,
        nullable=draw(st.booleans()),
        index=draw(st.sampled_from(["INVERTED", None])),
    )


@st.composite
def _vector(draw: st.DrawFn) -> VectorSpec:
    kind = draw(st.sampled_from(VectorKind))
    dimension = draw(st.integers(2, 4096)) if kind is VectorKind.DENSE else None
    return VectorSpec(VectorConfig(embedder="e"), kind, dimension, draw(st.text("abc123", min_size=1, max_size=4)))


@st.composite
def _target(draw: st.DrawFn) -> Wanted:
    names = draw(st.lists(_names, min_size=1, max_size=8, unique=True))
    cut = draw(st.integers(1, len(names)))
    vectors = {name: draw(_vector()) for name in names[:cut]}
    return wanted("articles", vectors, {name: draw(_field()) for name in names[cut:]})


def _made(target: Wanted) -> Found:
    return Found(target.columns, target.indexes, target.properties("a"))


@given(_target(), st.randoms(use_true_random=False))
def test_a_collection_that_was_made_as_wanted_does_not_differ(target: Wanted, random: object) -> None:
    """In whatever order the server names columns and indexes."""
    columns, indexes = list(target.columns), list(target.indexes)
    random.shuffle(columns)  # type: ignore[attr-defined]  # hypothesis's own Random
    random.shuffle(indexes)  # type: ignore[attr-defined]
    assert difference(target, replace(_made(target), columns=tuple(columns), indexes=tuple(indexes))) == ()


@given(_target(), _target())
def test_two_targets_differ_exactly_if_they_are_not_the_same(one: Wanted, other: Wanted) -> None:
    """No difference between unequal schemas goes unnoticed, and none is made up."""
    same = (
        set(one.columns) == set(other.columns)
        and set(one.indexes) <= set(other.indexes)
        and dict(one.spaces).items() <= dict(other.spaces).items()
    )
    assert (difference(one, _made(other)) == ()) == same


@given(_target(), st.data())
def test_a_column_that_changed_is_named_and_cannot_be_fixed(target: Wanted, data: st.DataObject) -> None:
    """Whichever column it is, and whatever changed of it."""
    column = data.draw(st.sampled_from(target.columns))
    change = data.draw(
        st.sampled_from(
            [
                replace(column, type="ARRAY"),
                replace(column, key=not column.key),
                replace(column, nullable=not column.nullable),
                replace(column, max_length=(column.max_length or 0) + 1),
                replace(column, dimension=(column.dimension or 0) + 1),
                None,
            ]
        )
    )
    columns = tuple(one for one in (change if c == column else c for c in target.columns) if one is not None)
    (line,) = difference(target, replace(_made(target), columns=columns))
    assert line.subject == f"field {column.name} of articles"
    assert not line.fixable


@given(_target(), st.data())
def test_only_what_is_absent_is_fixable(target: Wanted, data: st.DataObject) -> None:
    """Leaving indexes out makes fixable differences, one each; changing one does not."""
    kept = tuple(index for index in target.indexes if data.draw(st.booleans()))
    lines = difference(target, replace(_made(target), indexes=kept))
    assert len(lines) == len(target.indexes) - len(kept)
    assert all(line.fixable for line in lines)
    changed = tuple(Index(index.column, "FLAT", index.metric) for index in target.indexes)
    assert not any(line.fixable for line in difference(target, replace(_made(target), indexes=changed)))


@given(_target(), _names)
def test_a_column_too_many_is_a_difference(target: Wanted, name: str) -> None:
    """A column that nobody wants is named too: its values would go stale."""
    taken = {column.name for column in target.columns}
    surplus = next(one for one in (name, name + "x", name + "xx") if one not in taken)
    lines = difference(target, replace(_made(target), columns=(*target.columns, Column(surplus, "BOOL"))))
    assert [line.subject for line in lines] == [f"field {surplus} of articles"]
