"""Debezium's envelope: what happened to a row of a database, and the row before and after it.

A version can only come from the envelope (``$.source.lsn``): a delete's ``before`` has the version that the row had,
and would look like a replay of the last update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ingestd.model import Op
from ingestd.sources._values import said as parts
from ingestd.sources._values.decoded import RefusedError, shown
from ingestd.sources._values.paths import MISSING
from ingestd.sources._values.said import kind

if TYPE_CHECKING:
    from ingestd.sources._values.paths import Path

_OPS = {"c": Op.UPSERT, "r": Op.UPSERT, "u": Op.UPSERT, "d": Op.DELETE}
_REFUSED = {
    "t": "a truncated table: it names no document; delete the documents by their own events, or forget the source",
    "m": "a message that was written to the log: it is about no row; leave it out in the connector",
}


class Change(NamedTuple):
    """What happened."""

    op: Op
    row: Any
    """As it is, or for a delete as it was; None where that is not known."""
    version: int | None


class Envelope:
    """The envelope.

    Args:
        version: Where in it the event's version is; None: it has none.
    """

    def __init__(self, version: Path | None) -> None:
        self._version = version

    def change(self, tree: Any) -> Change | None:  # noqa: ANN401 - what stands in a record
        """Return what happened; None: it is a tombstone, as older converters write them.

        Raises:
            RefusedError: This is no such envelope, or about no row.
        """
        if isinstance(tree, dict) and tree.keys() == {"schema", "payload"}:
            tree = tree["payload"]
            if tree is None:
                return None
        if not isinstance(tree, dict) or "op" not in tree or not {"before", "after"} & tree.keys():
            raise RefusedError(
                "its value is no Debezium envelope with 'op', 'before' and 'after'; flattened rows "
                '(ExtractNewRecordState) are read as type = "json"'
            )
        word = tree["op"]
        op = _OPS.get(word) if isinstance(word, str) else None
        if op is None:
            why = _REFUSED.get(word) if isinstance(word, str) else None
            raise RefusedError(
                f"it is {why}"
                if why
                else f"its 'op' is {shown(word) if isinstance(word, str) else kind(word)}, and has to be c, r, u or d"
            )
        row = tree.get("before" if op is Op.DELETE else "after")
        if row is None and op is Op.UPSERT:
            raise RefusedError("its 'after' is empty, and it is no delete")
        if row is not None and not isinstance(row, dict):
            raise RefusedError(f"its row is {kind(row)}, and has to be an object")
        return Change(op, row, self._version_of(tree))

    def _version_of(self, tree: dict[str, Any]) -> int | None:
        if self._version is None:
            return None
        found = self._version.one(tree)
        if found is MISSING or found is None:
            raise RefusedError(f"there is nothing at {shown(self._version.text)}, which is to be its version")
        return parts.version(found, "version", loose=True)
