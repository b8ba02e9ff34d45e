"""What the connection makes of a server in trouble: one request for each of ours, a verdict at once, and back again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.fixtures.faulty_milvus import Fault, FaultyMilvus, faulty
from tests.fixtures.lite_server import LiteServer
from tests.fixtures.milvus import articles, sample

from ingestd.errors import UnavailableError
from ingestd.milvus.client import Config, Connection
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.lite
TIMEOUT = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiteServer]:
    """A server behind the proxy."""
    server = LiteServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: LiteServer) -> Iterator[FaultyMilvus]:
    """What the connection is connected to."""
    with faulty(server.uri) as made:
        yield made


def _sink(uri: str) -> MilvusSink:
    config = Config(uri=uri, timeout_seconds=TIMEOUT, connect_timeout_seconds=TIMEOUT)
    sink = MilvusSink(Connection(config), articles("faults"))
    sink.prepare()
    return sink


@pytest.mark.parametrize("status", ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "ABORTED"])
def test_a_broken_request_is_one_request(proxy: FaultyMilvus, status: str) -> None:
    """The client's own retries would fill the call's timeout, with a new connection each time: nobody would know."""
    sink = _sink(proxy.uri)
    sink.upsert([sample(1)])
    with proxy.fault(Fault(status=grpc.StatusCode[status])):
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            sink.upsert([sample(2)])
        assert time.monotonic() - began < TIMEOUT / 4
        assert proxy.kinds(began) == {"Upsert": 1}
    sink.upsert([sample(3)])
    assert sink.existing([sample(number).id for number in (1, 2, 3)]) == {sample(1).id, sample(3).id}
