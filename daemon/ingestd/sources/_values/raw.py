"""Values that are files: what is known of them stands in the record's key and headers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingestd.model import Op
from ingestd.sources._values.decoded import Decoded, RefusedError
from ingestd.sources._values.headers import header
from ingestd.sources._values.said import Said

if TYPE_CHECKING:
    from ingestd.model import Json, Record
    from ingestd.sources._values.config import RawFormat
    from ingestd.sources._values.contents import Contents
    from ingestd.sources._values.identity import Identity


class Raw:
    """The format.

    Args:
        config: Which headers say what.
        identity: Says which document it is about.
        contents: Makes the payload.
    """

    def __init__(self, config: RawFormat, identity: Identity, contents: Contents) -> None:
        self._config = config
        self._identity = identity
        self._contents = contents

    def read(self, record: Record) -> Decoded:
        """Return what a record says (see ``Format``)."""
        document = self._identity.of_key(record) if record.value is None else self._identity.of(record, None)
        if record.value is None:
            return Decoded(document, Op.DELETE, None, None, 0)
        config = self._config
        try:
            metadata: dict[str, Json] = {}
            for key, name in config.metadata_headers.items():
                if (found := header(record, name)) is not None:
                    metadata[key] = found
            said = Said(
                Op.UPSERT,
                content=record.value,
                content_type=header(record, config.content_type_header) or config.content_type,
                title=header(record, config.title_header),
                metadata=metadata,
            )
            return self._contents.decoded(document, said, header(record, config.name_header))
        except RefusedError as refused:
            raise RefusedError(str(refused), document) from None

    def told(self, record: Record) -> str | None:
        """Return what the key alone tells."""
        return self._identity.told(record)

    def close(self) -> None:
        """Let go of connections."""
        self._contents.close()
