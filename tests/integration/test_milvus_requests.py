"""What a sink sends, and what it makes of a server that refuses requests which hold nothing to refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.milvus import articles, sample

from ingestd.errors import DocumentError, Stopped, UnavailableError
from ingestd.milvus.client import Config, Connection, import_pymilvus
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.milvus.lite import Lite
    from ingestd.model import Row

pytestmark = pytest.mark.lite


class Refusals:
    """A Milvus Lite in this process that answers with a code of its own, while there is one."""

    def __init__(self, folder: Path) -> None:
        import_pymilvus()
        import grpc  # noqa: PLC0415 - after the import that keeps it quiet
        from milvus_lite.adapter.grpc.servicer import MilvusServicer  # noqa: PLC0415
        from milvus_lite.db import MilvusLite  # noqa: PLC0415
        from pymilvus.grpc_gen import milvus_pb2  # noqa: PLC0415
        from pymilvus.grpc_gen.milvus_pb2_grpc import add_MilvusServiceServicer_to_server  # noqa: PLC0415

        refusals = self

        class Servicer(MilvusServicer):  # type: ignore[misc]  # the package has no types
            """Refuses."""

            def Upsert(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
                """Refuse, or write."""
                return refusals.mutation(milvus_pb2) if refusals.code else super().Upsert(request, context)

            def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
                """Refuse, or delete."""
                return refusals.mutation(milvus_pb2) if refusals.code else super().Delete(request, context)

            def Query(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
                """Refuse, or look up."""
                if not refusals.code or refusals.writes_alone:
                    return super().Query(request, context)
                answer = milvus_pb2.QueryResults()
                answer.status.code, answer.status.reason = refusals.code, "refused"
                return answer

        self.code = 0
        self.writes_alone = False
        """A server that is out of disk answers reads."""
        self._database = MilvusLite(str(folder))
        self._server = grpc.server(ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
        add_MilvusServiceServicer_to_server(Servicer(self._database), self._server)
        self.uri = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def mutation(self, messages: Any) -> Any:
        """Return the answer to a write."""
        answer = messages.MutationResult()
        answer.status.code, answer.status.reason = self.code, "refused"
        return answer

    def close(self) -> None:
        """End it."""
        self._server.stop(None).wait()
        self._database.close()


@pytest.fixture
def refusals(tmp_path: Path) -> Iterator[Refusals]:
    """A server for one test."""
    server = Refusals(tmp_path / "data")
    yield server
    server.close()


@pytest.mark.parametrize("code", [1, 1100, 65535])
def test_requests_of_keys_alone_are_no_documents_fault(refusals: Refusals, code: int) -> None:
    """A server that answers everything with a catch-all is away: a probe that blamed a document would bury it."""
    connection = Connection(Config(uri=refusals.uri))
    sink = MilvusSink(connection, articles("refused"))
    sink.prepare()
    sink.upsert([sample(1)])
    refusals.code = code
    calls = (
        sink.probe,
        sink.count,
        lambda: sink.delete(["a"]),
        lambda: sink.existing(["a"]),
        lambda: next(sink.stored()),
    )
    for call in calls:
        with pytest.raises(UnavailableError):
            call()
    refusals.writes_alone = True
    for call in (sink.probe, lambda: sink.delete(["a"])):
        with pytest.raises(UnavailableError, match="deleting"):
            call()
    if code != 1:
        with pytest.raises(DocumentError):
            sink.upsert([sample(1)])
    refusals.code = 0
    sink.probe()
    connection.close()


class Rows(list["Row"]):
    """Rows that know how many of them the last loop over them has taken."""

    taken = 0

    def __iter__(self) -> Iterator[Row]:
        """Count."""
        self.taken = 0
        for row in super().__iter__():
            self.taken += 1
            yield row


def test_rows_are_encoded_a_request_at_a_time(shared_lite: Lite) -> None:
    """A call with very many rows holds one request of them in the client's form, and not all."""
    rows = Rows(sample(n) for n in range(35))
    taken: list[int] = []

    def observe(operation: str, _seconds: float) -> None:
        if operation == "upsert":
            taken.append(rows.taken)

    config = Config(batch_rows=10)
    connection = Connection(config, uri_of=shared_lite.ensure, observe=observe)
    sink = MilvusSink(connection, articles("lazily"))
    sink.prepare()
    sink.upsert(rows)
    assert taken == [11, 21, 31, 35]
    taken.clear()
    assert sink.rewrite(rows) == frozenset()
    assert taken == [11, 21, 31, 35]
    assert sink.count() == 35
    connection.close()


def test_rewrite_names_what_is_missing_over_several_requests(shared_lite: Lite) -> None:
    """Rows that are not there are found in whichever request they were, and the others are written."""
    connection = Connection(Config(batch_rows=10), uri_of=shared_lite.ensure)
    sink = MilvusSink(connection, articles("missing_over"))
    sink.prepare()
    rows = [sample(n) for n in range(35)]
    gone = {rows[at].id for at in (3, 17, 34)}
    sink.upsert([row for row in rows if row.id not in gone])
    assert sink.rewrite([sample(n, version=7) for n in range(35)]) == gone
    assert {row.version.number for row in sink.stored()} == {7}
    assert sink.count() == 32
    connection.close()


def test_the_end_of_the_daemon_is_no_outage() -> None:
    """What unwinds a thread at the end passes through a call as it is."""

    def stopping() -> str:
        raise Stopped("the end")

    connection = Connection(Config(), uri_of=stopping)
    with pytest.raises(Stopped):
        connection.capabilities()
    connection.close()
