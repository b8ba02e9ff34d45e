"""The formats whose values are trees: JSON, Debezium's envelope around it, Avro, JSON Schema.

They differ in how bytes become a tree and in how a key becomes an id; what is made of the tree is the same for all. A
class per format was turned down: Debezium over Avro would then have been one of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from ingestd.model import Op
from ingestd.sources._values.decoded import Decoded, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.model import Record
    from ingestd.sources._values.contents import Contents
    from ingestd.sources._values.debezium import Envelope
    from ingestd.sources._values.identity import Identity
    from ingestd.sources._values.mapping import Mapping

    Reader: TypeAlias = Callable[[bytes], Any]


class Trees:
    """One such format.

    Args:
        reader: Turns a value's bytes into a tree.
        mapping: Says where in the tree things are.
        identity: Says which document it is about.
        contents: Makes the payload.
        envelope: What is around the tree; None: nothing.
    """

    def __init__(
        self, reader: Reader, mapping: Mapping, identity: Identity, contents: Contents, envelope: Envelope | None = None
    ) -> None:
        self._reader = reader
        self._mapping = mapping
        self._identity = identity
        self._contents = contents
        self._envelope = envelope

    def read(self, record: Record) -> Decoded:
        """Return what a record says (see ``Format``)."""
        if record.value is None:
            return Decoded(self._identity.of_key(record), Op.DELETE, None, None, 0)
        tree = self._reader(record.value)
        if self._envelope is None:
            return self._decoded(record, tree, None, None)
        change = self._envelope.change(tree)
        if change is None:
            return Decoded(self._identity.of_key(record), Op.DELETE, None, None, 0)
        if change.op is Op.DELETE:
            # A table without a replica identity tells no more of a deleted row than its key.
            said = self._mapping.id(change.row) if self._identity.by_value and change.row is not None else None
            return Decoded(self._identity.of(record, said), Op.DELETE, None, change.version, 0)
        return self._decoded(record, change.row, change.op, change.version)

    def told(self, record: Record) -> str | None:
        """Return what the key alone tells."""
        return self._identity.told(record)

    def close(self) -> None:
        """Let go of connections."""
        self._contents.close()

    def _decoded(self, record: Record, tree: Any, op: Op | None, version: int | None) -> Decoded:  # noqa: ANN401 - a tree
        said_id = self._mapping.id(tree) if self._identity.by_value else None
        document = self._identity.of(record, said_id)
        try:
            said = self._mapping.said(tree, op)
            return self._contents.decoded(document, said if version is None else said._replace(version=version))
        except RefusedError as refused:
            raise RefusedError(str(refused), document) from None
