"""Verdicts on Milvus's errors: each line of the table, and the two that look like something else."""

from __future__ import annotations

import grpc
import pytest

from ingestd.errors import ConfigError, DocumentError, FatalError, IngestError, UnavailableError
from ingestd.milvus.client import Capabilities, import_pymilvus
from ingestd.milvus.verdict import Mend, Request, TooLargeError, remedy, verdict

import_pymilvus()

from pymilvus.exceptions import (  # noqa: E402 - after the import that keeps it quiet
    DataNotMatchException,
    MilvusException,
    ParamError,
    SchemaMismatchRetryableException,
)


class _Rpc(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """A gRPC error as a channel raises it: the class is the library's, the answers are the server's."""

    def __init__(self, status: grpc.StatusCode, details: str = "") -> None:
        super().__init__()
        self._status, self._details = status, details

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._details


def _raised(error: BaseException, cause: BaseException) -> BaseException:
    """Return the error as ``raise error from cause`` leaves it."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("code", [2, 4, 8, 12, 103, 106, 110, 202, 505, 507, 1002, 1003, 1807, 2200, 4711])
def test_a_server_in_trouble_is_unavailable(code: int) -> None:
    """An outage is nobody's document; what is not in the table counts as one."""
    found = verdict(MilvusException(code, "busy"), doing="writing 3 rows to articles")
    assert isinstance(found, UnavailableError)
    assert found.dependency == "milvus"
    assert str(found) == f"writing 3 rows to articles: busy [code {code}]"


@pytest.mark.parametrize("code", [3, 7, 9, 11, 53])
def test_out_of_quota_asks_for_a_longer_wait(code: int) -> None:
    """Memory, disk and quota do not come back at once."""
    found = verdict(MilvusException(code, "denied"), doing="writing")
    assert isinstance(found, UnavailableError)
    assert found.wait is not None


@pytest.mark.parametrize("code", [3, 4, 7, 8, 9, 11, 53])
def test_a_refusal_is_told_from_a_batch_that_looks_like_an_outage(code: int) -> None:
    """Where the server says that it takes nothing now, no document is to be found out by halving."""
    found = verdict(MilvusException(code, "denied"), doing="writing")
    other = verdict(MilvusException(2, "unavailable"), doing="writing")
    assert [isinstance(error, UnavailableError) and error.refused for error in (found, other)] == [True, False]


@pytest.mark.parametrize("code", [100, 105, 200, 700, 800, 1400, 1401])
def test_a_missing_collection_is_a_configuration(code: int) -> None:
    """What is not there, or not allowed, does not come by waiting."""
    found = verdict(MilvusException(code, "not found"), doing="preparing", request=Request.SETUP)
    assert isinstance(found, ConfigError)


@pytest.mark.parametrize(
    "error",
    [
        MilvusException(1100, "the length exceeds max length"),
        MilvusException(1101, "bad field"),
        MilvusException(6, "vector field 'dense' missing or None"),
        MilvusException(65535, "value 'NaN' is not a number or infinity"),
        DataNotMatchException(message="field should be a varchar"),
        ParamError(message="invalid input"),
    ],
)
@pytest.mark.parametrize(
    ("request_kind", "expected"),
    [(Request.WRITE, DocumentError), (Request.SETUP, ConfigError), (Request.READ, ConfigError)],
)
def test_bad_input_is_the_fault_of_who_sent_it(
    error: MilvusException, request_kind: Request, expected: type[IngestError]
) -> None:
    """Of a write it is the document's fault, of anything else the configuration's."""
    assert isinstance(verdict(error, doing="asking", request=request_kind), expected)


@pytest.mark.parametrize("code", [1, 6, 1100, 1101, 1102, 65535, 4711])
def test_keys_alone_are_nobodys_fault(code: int) -> None:
    """A delete, a question by key, a load: there is nothing in them for a server to refuse."""
    found = verdict(MilvusException(code, "failed"), doing="deleting", request=Request.KEYS)
    assert isinstance(found, UnavailableError)


@pytest.mark.parametrize(
    "error",
    [
        MilvusException(700, "index not found"),
        _Rpc(grpc.StatusCode.UNAUTHENTICATED),
        _Rpc(grpc.StatusCode.PERMISSION_DENIED),
        _Rpc(grpc.StatusCode.UNIMPLEMENTED),
        ParamError(message="invalid name"),
    ],
)
def test_keys_alone_meet_a_wrong_set_up(error: Exception) -> None:
    """What a wrong set-up is for any request is one for these too, and what the client itself does not send."""
    assert isinstance(verdict(error, doing="deleting", request=Request.KEYS), ConfigError)


@pytest.mark.parametrize("request_kind", [Request.WRITE, Request.KEYS])
def test_a_collection_that_goes_under_a_running_daemon_is_its_end(request_kind: Request) -> None:
    """It was there at the start: the set-up is right, what is known of it is void, and another start makes it anew."""
    found = verdict(MilvusException(100, "collection not found"), doing="writing", request=request_kind)
    assert isinstance(found, FatalError)


def test_a_full_disk_is_no_set_up() -> None:
    """Lite answers 1 for a definition that it cannot have, and for a disk that has no room for it."""
    full = MilvusException(1, "[Errno 28] No space left on device")
    assert isinstance(verdict(full, doing="creating", request=Request.SETUP), UnavailableError)
    wrong = MilvusException(1, "unsupported index")
    assert isinstance(verdict(wrong, doing="creating", request=Request.SETUP), ConfigError)


@pytest.mark.parametrize(
    "error",
    [
        MilvusException(1100, "channel distribution changed", retriable=True),
        MilvusException(65535, "node not ready"),
        MilvusException(65535, "context deadline exceeded"),
        MilvusException(1, "[Errno 28] No space left on device"),
    ],
)
def test_a_catch_all_that_means_an_outage(error: MilvusException) -> None:
    """Old servers answer 65535 for their own troubles too, and Lite answers 1 for a full disk."""
    assert isinstance(verdict(error, doing="writing"), UnavailableError)


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    ],
)
def test_raw_grpc_errors_are_outages(status: grpc.StatusCode) -> None:
    """Deadlines and broken connections come as gRPC errors, also as the code of a Milvus error."""
    assert isinstance(verdict(_Rpc(status, "gone"), doing="writing"), UnavailableError)
    assert isinstance(verdict(MilvusException(status, "gone"), doing="writing"), UnavailableError)


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_refused_login_is_no_outage(status: grpc.StatusCode) -> None:
    """A wrong token is reported as a failed connection, code 2: its cause tells."""
    error = _raised(MilvusException(2, "Fail connecting to server"), _Rpc(status, "auth check failure"))
    found = verdict(error, doing="connecting")
    assert isinstance(found, ConfigError)
    assert "milvus.token" in str(found)


def test_a_proxy_without_a_backend_is_an_outage() -> None:
    """An ingress answers 404 while its server is away, and gRPC makes UNIMPLEMENTED of it."""
    away = _Rpc(grpc.StatusCode.UNIMPLEMENTED, "Received http2 header with status: 404")
    assert isinstance(verdict(_raised(MilvusException(1, "old server?"), away), doing="asking"), UnavailableError)
    assert isinstance(verdict(_Rpc(grpc.StatusCode.UNIMPLEMENTED, "unknown method"), doing="asking"), ConfigError)


def test_too_large_is_told_apart_from_too_much() -> None:
    """A message over the limit is to be split; a rate limit of a gateway is to be waited out."""
    large = _Rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (69 vs. 67)")
    assert isinstance(verdict(large, doing="writing"), TooLargeError)
    for answer in (Request.KEYS, Request.READ, Request.SETUP):
        found = verdict(large, doing="asking", request=answer)
        assert isinstance(found, UnavailableError)
        assert not found.refused
    busy = _Rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests")
    found = verdict(busy, doing="writing")
    assert isinstance(found, UnavailableError)
    assert found.refused


def test_an_error_raised_from_itself_ends() -> None:
    """Pymilvus raises errors from themselves: the chain of causes is a ring."""
    error = MilvusException(8, "rate limit")
    assert isinstance(verdict(_raised(error, error), doing="writing"), UnavailableError)


def test_a_verdict_stays() -> None:
    """What has a verdict already is not judged again."""
    error = DocumentError("bad")
    assert verdict(error, doing="writing") is error


def test_what_can_be_mended() -> None:
    """Not loaded: load. An old schema: ask again. Anything else: nothing."""
    assert remedy(MilvusException(101, "not loaded")) is Mend.LOAD
    assert remedy(MilvusException(109, "schema mismatch")) is Mend.REFRESH
    assert remedy(SchemaMismatchRetryableException("old")) is Mend.REFRESH
    assert remedy(MilvusException(100, "not found")) is None
    assert remedy(_Rpc(grpc.StatusCode.UNAVAILABLE)) is None
    assert remedy(DocumentError("bad")) is None


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("v2.3.5-lite", Capabilities("v2.3.5-lite", False, False, False, False, False, False)),
        ("2.4.13", Capabilities("2.4.13", False, True, False, False, False, True)),
        ("v2.5.1", Capabilities("v2.5.1", False, True, True, False, True, True)),
        ("2.6.2", Capabilities("2.6.2", False, True, True, True, True, True)),
        ("master", Capabilities("master", False, True, True, True, True, True)),
        ("milvus_lite-3.2.2", Capabilities("milvus_lite-3.2.2", True, True, True, True, True, False)),
    ],
)
def test_capabilities_follow_the_version(version: str, expected: Capabilities) -> None:
    """The real server's package calls itself lite and is not; a version without numbers is taken for a new one."""
    assert Capabilities.of(version) == expected
