"""From a value's tree to what it says: our own document, key by key, or anybody's, by paths.

Our own document is strict: a key that we do not know is a typo that would lose data. Where ``fields`` maps somebody
else's values, keys that are not named are theirs and stay alone.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from ingestd.model import Op
from ingestd.sources._values import said as parts
from ingestd.sources._values.decoded import RefusedError, shown
from ingestd.sources._values.identity import checked, scalar
from ingestd.sources._values.paths import MISSING, Path
from ingestd.sources._values.said import Said, kind

if TYPE_CHECKING:
    from ingestd.sources._values.config import Fields, OpValues

UNAVAILABLE = "__debezium_unavailable_value"
"""What Debezium sends for a large column that an update did not touch and the database did not log."""
_KEYS = ("id", "op", "text", "content", "uri", "content_type", "title", "metadata", "version")
_KNOWN = frozenset(_KEYS)
_BODIES = ("text", "content", "uri")


class Mapping(Protocol):
    """How a tree is read. The id comes first, so that what is wrong with the rest can be said of a document."""

    def id(self, tree: Any) -> str | None:  # noqa: ANN401 - what stands in a record
        """Return the id that the tree gives, checked; None: it gives none."""
        ...

    def said(self, tree: Any, op: Op | None = None) -> Said:  # noqa: ANN401 - what stands in a record
        """Return the rest.

        Args:
            tree: The value.
            op: What is known already of what it asks for. Of what a delete brings only the version counts.
        """
        ...


class Documents:
    """Our own document.

    Args:
        op_values: The words for what it asks for.
    """

    def __init__(self, op_values: OpValues) -> None:
        self._ops = _Ops(op_values)

    def id(self, tree: Any) -> str | None:  # noqa: ANN401 - what stands in a record
        """Return the id, or None."""
        found = _object(tree).get("id")
        if found is None:
            return None
        if isinstance(found, UUID):  # Avro's
            found = str(found)
        if not isinstance(found, str):
            raise RefusedError(f"'id' is {kind(found)}, and has to be a string")
        return checked(found, "its id")

    def said(self, tree: Any, op: Op | None = None) -> Said:  # noqa: ANN401 - what stands in a record
        """Return the rest."""
        get = _object(tree).get
        if op is Op.DELETE:
            return Said(op, version=parts.version(get("version"), "version"))
        if not tree.keys() <= _KNOWN:
            raise RefusedError(_unknown(tree))
        op = self._ops.of(get("op"), "op")
        text, content, uri = get("text"), get("content"), get("uri")
        bodies = (text is not None) + (content is not None) + (uri is not None)
        if bodies != (op is not Op.DELETE):
            raise RefusedError(_wrong_bodies(op, [name for name in _BODIES if get(name) is not None]))
        return Said(
            op,
            parts.string(text, "text"),
            parts.content(content, "content"),
            parts.string(uri, "uri"),
            parts.string(get("content_type"), "content_type"),
            parts.string(get("title"), "title"),
            parts.metadata(get("metadata"), "metadata"),
            parts.version(get("version"), "version"),
        )


class Mapped:
    """Somebody else's value.

    Args:
        fields: Where things are.
        op_values: The words for what it asks for.
        unavailable: Whether the values are a database's rows, in which a column can be left out by its placeholder.
    """

    def __init__(self, fields: Fields, op_values: OpValues, *, unavailable: bool = False) -> None:
        paths = {
            name: Path(text) for name in _KEYS if name != "metadata" and (text := getattr(fields, name)) is not None
        }
        self._id = paths.get("id")
        self._paths = paths
        self._metadata = {name: Path(text) for name, text in fields.metadata.items()}
        self._rest = fields.rest
        self._mapped = {path.first for path in (*paths.values(), *self._metadata.values())}
        self._ops = _Ops(op_values)
        self._unavailable = unavailable
        self._wanted = ", ".join(f"{name} = {paths[name].text}" for name in _BODIES if name in paths)

    def id(self, tree: Any) -> str | None:  # noqa: ANN401 - what stands in a record
        """Return the id, or None where nothing, or null, is at its path."""
        found = None if self._id is None else self._id.one(tree)
        return None if found is MISSING or found is None else scalar(found, "its id")

    def said(self, tree: Any, op: Op | None = None) -> Said:  # noqa: ANN401 - what stands in a record
        """Return the rest. A delete may have a body (a row with a flag): it is not looked at."""
        op = op if op is Op.DELETE else self._ops.of(self._one(tree, "op"), "op")
        version = parts.version(self._one(tree, "version"), "version", loose=True)
        if op is Op.DELETE:
            return Said(op, version=version)
        text, content, uri = self._text(tree), self._one(tree, "content"), self._one(tree, "uri")
        there = [name for name, body in zip(_BODIES, (text, content, uri), strict=True) if body is not None]
        if len(there) != 1:
            raise RefusedError(f"an upsert has exactly one of {self._wanted}; this has {_listed(there)}")
        title, metadata = self._one(tree, "title"), self._of_metadata(tree)
        if self._unavailable:
            self._refuse_unavailable({"text": text, "content": content, "uri": uri, "title": title, **metadata})
        return Said(
            op,
            text,
            parts.content(content, "content"),
            parts.string(uri, "uri"),
            parts.string(self._one(tree, "content_type"), "content_type"),
            parts.string(title, "title"),
            parts.metadata(metadata, "metadata"),
            version,
        )

    def _one(self, tree: Any, name: str) -> Any:  # noqa: ANN401 - what stands in a record
        path = self._paths.get(name)
        found = None if path is None else path.one(tree)
        return None if found is MISSING else found

    def _text(self, tree: Any) -> str | None:  # noqa: ANN401 - what stands in a record
        """Return the text; a list of strings is the text in paragraphs."""
        path = self._paths.get("text")
        found = None if path is None else path.all(tree)
        if found is MISSING or found is None:
            return None
        if isinstance(found, list):
            found = [part for part in found if part is not None]
            if not all(isinstance(part, str) for part in found):
                raise RefusedError(f"'text' has something else than strings at {shown(self._paths['text'].text)}")
            found = "\n\n".join(found)
        return parts.string(found, "text")

    def _of_metadata(self, tree: Any) -> dict[str, Any]:  # noqa: ANN401 - what stands in a record
        made = {}
        if self._rest:
            if not isinstance(tree, dict):
                raise RefusedError(f"its value is {kind(tree)}, and fields.rest wants the keys of an object")
            made = {key: value for key, value in tree.items() if key not in self._mapped}
        for name, path in self._metadata.items():
            found = path.all(tree)
            if found is not MISSING:
                made[name] = found
        return made

    def _refuse_unavailable(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if value in _PLACEHOLDERS:
                raise RefusedError(
                    f"{shown(name)} is Debezium's placeholder for a column that was not logged; have the database log "
                    "whole rows (PostgreSQL: REPLICA IDENTITY FULL), or the connector reselect such columns"
                )


_PLACEHOLDERS: tuple[object, ...] = (
    UNAVAILABLE,
    UNAVAILABLE.encode(),
    "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
)


class _Ops:
    def __init__(self, values: OpValues) -> None:
        # By type and value: True equals 1.
        self._known = {(type(word), word): Op.UPSERT for word in values.upsert}
        self._known |= {(type(word), word): Op.DELETE for word in values.delete}

    def of(self, word: object, name: str) -> Op:
        """Return what a word asks for; none at all asks for an upsert."""
        if word is None:
            return Op.UPSERT
        if not isinstance(word, str | int):
            raise RefusedError(f"{name!r} is {kind(word)}, and has to be a word")
        op = self._known.get((type(word), word))
        if op is None:
            known = ", ".join(shown(str(known)) for _, known in self._known)
            raise RefusedError(f"{name!r} is {shown(str(word)[:100])}; known: {known} (op_values maps other words)")
        return op


def _object(tree: Any) -> dict[Any, Any]:  # noqa: ANN401 - what stands in a record
    if not isinstance(tree, dict):
        why = "; a tombstone has no value at all" if tree is None else ""
        raise RefusedError(f"its value is {kind(tree)}, and has to be an object{why}")
    return tree


def _wrong_bodies(op: Op, bodies: list[str]) -> str:
    if op is Op.DELETE:
        return f"it is a delete, and has {bodies[0]!r}; leave that out, or make it an upsert"
    return f"an upsert has exactly one of 'text', 'content' and 'uri'; this has {_listed(bodies)}"


def _listed(names: list[str]) -> str:
    return " and ".join(map(repr, names)) if names else "none"


def _unknown(tree: dict[Any, Any]) -> str:
    key = str(next(key for key in tree if key not in _KNOWN))
    close = get_close_matches(key, _KEYS, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KEYS)}"
    return f"unknown key {shown(key)}; {hint} (what else is known goes into 'metadata'; `fields` maps other values)"
