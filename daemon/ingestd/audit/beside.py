"""The daemon that runs beside an audit, asked over its control socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ingestd.audit.mending import Done, Mended
from ingestd.errors import UnavailableError
from ingestd.milvus.expression import runs
from ingestd.ops.control import NotRunning, call

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from ingestd.model import Json

MOST = 500
"""Documents of one question. Their ids go twice, and as JSON in ASCII: six times what they are, at most a mebibyte."""
MENDED = 100
"""Documents that are mended at a time: their lanes are held meanwhile."""
SECONDS = 60.0
"""For an answer."""
LONGEST = 600.0
"""For mending: records are read again from their topics, one by one."""


class RunningDaemon:
    """The daemon (``looking.Beside``).

    Args:
        socket: Its control socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._looks: dict[str, Json] = {}

    def runs(self) -> bool:
        """Return whether there is one.

        Raises:
            IngestError: There is, and it does not answer as it should.
        """
        try:
            call(self._socket, "status", {}, SECONDS)
        except NotRunning:
            return False
        return True

    def look(self) -> None:
        """Have its sources look at all that is there."""
        self._looks = cast("dict[str, Json]", self._ask("look", {}))

    def unsettled(self, collection: str, documents: Sequence[str], files: Collection[str]) -> frozenset[str]:
        """Return the documents that something is under way for. See ``looking.Beside``."""
        found: set[str] = set()
        for run in runs(documents, MOST):
            arguments = {**_about(collection, run, files), "looks": self._looks}
            found.update(cast("list[str]", self._ask("unsettled", arguments)))
        return frozenset(found)

    def mend(self, collection: str, documents: Sequence[str], files: Collection[str]) -> Iterator[dict[str, Mended]]:
        """Have documents mended, some at a time; yield what became of them. See ``mending.Mender``."""
        for run in runs(documents, MENDED):
            answer = cast("dict[str, dict[str, Any]]", self._ask("mend", _about(collection, run, files), LONGEST))
            yield {document: Mended(Done(said["done"]), said["why"]) for document, said in answer.items()}

    def held(self) -> dict[str, str]:
        """Return which sources hold deletes back, and how to let them go."""
        checks = cast("dict[str, Any]", self._ask("status", {}))["checks"]
        return {
            check["name"].removesuffix(":deletes"): f"{check['detail']}; {check['cure']}"
            for check in checks
            if check["name"].endswith(":deletes") and not check["ok"]
        }

    def _ask(self, command: str, arguments: Mapping[str, Json], seconds: float = SECONDS) -> Json:
        try:
            return call(self._socket, command, arguments, seconds)
        except NotRunning as error:
            raise UnavailableError("daemon", "the daemon ended during the audit; audit again") from error


def _about(collection: str, documents: Sequence[str], files: Collection[str]) -> dict[str, Json]:
    """Return the arguments of a question about documents."""
    named: list[Json] = list(documents)
    return {"collection": collection, "documents": named, "files": [name for name in documents if name in files]}
