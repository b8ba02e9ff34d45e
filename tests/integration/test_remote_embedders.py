"""Models behind an API: what they are asked, what they answer, and what becomes of every way in which that fails."""

from __future__ import annotations

import base64
import importlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.fixtures.daemon import wait_for
from tests.fixtures.provider import BASES as ODD_BASES
from tests.fixtures.provider import DIALECTS, DIMENSION, SHA, Answer, Provider, provider

from ingestd.embedders import _remote
from ingestd.errors import ConfigError, DocumentError, Stopped, UnavailableError
from ingestd.model import Role, SparseVectors, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.fixtures.provider import Asked

    from ingestd.embedders._remote import RemoteConfig, RemoteEmbedder
    from ingestd.model import DenseVectors

BASES = {name: ODD_BASES.get(name, "/v1") for name in DIALECTS}
"""What of the address is the base."""
DENSE = [name for name in BASES if name != "tei-sparse"]
LIMITS = {
    "openai": 2048,
    "voyage": 1000,
    "jina": 512,
    "mistral": 256,
    "cohere": 96,
    "nomic": 10,
    "gemini": 100,
    "tei": 32,
}
"""The most texts of a request, by the providers' own words."""
TEXTS = [f"text {number} about apples and their {number * 7} worms" for number in range(20)]
BAD = "text 13 about apples and their 91 worms"


def configured(name: str, server: Provider, **options: Any) -> RemoteConfig:
    """Return a provider's options for a server."""
    module = importlib.import_module(f"ingestd.embedders.{name.partition('-')[0]}")
    said: dict[str, Any] = {"model": "a-model", "base_url": server.root + BASES[name], "api_key": server.key}
    if name == "tei-sparse":
        said["kind"] = "sparse"
    config: RemoteConfig = module.Config(**said | options)
    return config


def built(name: str, server: Provider, **options: Any) -> RemoteEmbedder:
    """Return a provider's embedder for a server."""
    embedder: RemoteEmbedder = configured(name, server, **options).build("far", None)  # type: ignore[attr-defined]
    return embedder


def dense(embedder: RemoteEmbedder, texts: Sequence[str], role: Role = Role.DOCUMENT) -> DenseVectors:
    """Return the vectors of texts."""
    found = embedder.embed(texts, role, {VectorKind.DENSE})[VectorKind.DENSE]
    assert isinstance(found, np.ndarray)
    return found


@pytest.fixture
def server() -> Iterator[Provider]:
    """A provider that speaks as Cohere does: 96 texts a request."""
    with provider("cohere") as made:
        yield made


@pytest.fixture(params=BASES)
def each(request: pytest.FixtureRequest) -> Iterator[tuple[str, Provider]]:
    """Each provider."""
    with provider(request.param) as made:
        yield request.param, made


def test_vectors_come_in_the_order_of_the_texts_and_full_batches_go(each: tuple[str, Provider]) -> None:
    """Whatever order a provider answers in; and never more texts a request than it takes, nor fewer where it could."""
    name, server = each
    limit = LIMITS[name.partition("-")[0]]
    texts = [f"number {number}" for number in range(2 * limit + 1)]
    embedder = built(name, server)
    info = embedder.info()
    asked = len(server.asked)
    (kind,) = info.kinds
    found = embedder.embed(texts, Role.DOCUMENT, {kind})[kind]
    prompt = configured(name, server).prompt(Role.DOCUMENT)
    far = server.vectors([prompt + text for text in texts])
    if isinstance(found, SparseVectors):
        strongest = [found[at].indices[int(found[at].values.argmax())] for at in range(len(texts))]
        assert np.abs(far).argmax(axis=1).tolist() == strongest
    else:
        assert (len(texts), DIMENSION) == found.shape
        assert info.dimension == DIMENSION
        assert np.float32 == found.dtype
        np.testing.assert_allclose(far, found, atol=1e-6)
    sizes = sorted(len(DIALECTS[name].texts(request.payload)) for request in server.asked[asked:])
    assert [1, limit, limit] == sizes


def test_documents_and_queries_are_different_inputs() -> None:
    """Each provider has its own word for it; where it has none, the configured prompts tell them apart."""
    words = {
        "voyage": ("input_type", "document", "query"),
        "jina": ("task", "retrieval.passage", "retrieval.query"),
        "cohere": ("input_type", "search_document", "search_query"),
        "nomic": ("task_type", "search_document", "search_query"),
    }
    for name, (key, document, query) in words.items():
        with provider(name) as server:
            embedder = built(name, server)
            dense(embedder, ["a"], Role.DOCUMENT)
            dense(embedder, ["a"], Role.QUERY)
            assert [document, query] == [asked.payload[key] for asked in server.asked[-2:]], name
    with provider("openai") as server:
        embedder = built("openai", server, document_prompt="passage: ", query_prompt="query: ")
        dense(embedder, ["a"], Role.DOCUMENT)
        dense(embedder, ["a"], Role.QUERY)
        assert ["passage: a", "query: a"] == server.texts()[-2:]


def test_gemini_takes_the_role_as_a_task_or_in_front_of_the_text() -> None:
    """The first model has tasks; later ones ignore them."""
    with provider("gemini") as server:
        for model, roles in (("gemini-embedding-001", [None, None]), ("gemini-embedding-2", ["title", "task"])):
            embedder = built("gemini", server, model=model)
            for role, front in zip((Role.DOCUMENT, Role.QUERY), roles, strict=True):
                dense(embedder, ["apples"], role)
                (request,) = server.asked[-1].payload["requests"]
                text = request["content"]["parts"][0]["text"]
                assert ("taskType" in request) == (front is None)
                assert text == "apples" if front is None else text.startswith(front)
                assert text.endswith("apples")


def test_no_more_tokens_a_request_than_are_allowed(server: Provider) -> None:
    """By an estimate of ours, or by the model's own tokenizer where it is here."""
    embedder = built("cohere", server, batch_tokens=40)
    embedder.info()
    server.asked.clear()
    dense(embedder, TEXTS)
    sizes = [len(asked.payload["texts"]) for asked in server.asked]
    assert sum(sizes) == len(TEXTS)
    assert 1 < max(sizes) < 5


def known(embedder: RemoteEmbedder) -> None:
    """Have some good answers, so that several requests may be in flight: the first ones go one by one."""
    for _ in range(4):
        dense(embedder, ["a sentence that comes nowhere else"])


def test_several_requests_are_in_flight_and_no_more_than_asked_for(server: Provider) -> None:
    """Three wait for each other: one at a time would wait for ever."""
    meeting = threading.Barrier(3, timeout=30)
    most = now = 0

    def meet(asked: Asked) -> None:
        nonlocal most, now
        if len(asked.payload["texts"]) == 2:
            with server.lock:
                now += 1
                most = max(most, now)
            meeting.wait()
            with server.lock:
                now -= 1

    embedder = built("cohere", server, batch_texts=2, concurrency=3)
    known(embedder)
    server.fault = meet
    dense(embedder, TEXTS[:18])
    assert most == 3


def test_equal_texts_are_asked_for_once(server: Provider) -> None:
    """A licence at the end of each document costs one text a window."""
    embedder = built("cohere", server)
    embedder.info()
    server.asked.clear()
    found = dense(embedder, ["a", "b", "a", "a"])
    assert ["a", "b"] == server.texts()
    assert (found[0] == found[2]).all()


def test_one_refused_text_among_96_is_found_and_nothing_else_is_paid_for_twice(server: Provider) -> None:
    """The others have their vectors when the caller comes back for them: they are not asked for again."""
    texts = [f"good {number}" for number in range(95)]
    texts.insert(60, BAD)

    def refuse(asked: Asked) -> Answer | None:
        return Answer(400, {"message": "invalid text"}) if BAD in asked.payload["texts"] else None

    embedder = built("cohere", server)
    embedder.info()
    server.fault = refuse
    with pytest.raises(DocumentError, match="invalid text"):
        dense(embedder, texts)
    served = [text for asked in server.asked if BAD not in asked.payload["texts"] for text in asked.payload["texts"]]
    assert sorted(set(served)) == sorted({*texts, _remote.PROBE} - {BAD})
    asked = len(server.asked)
    assert dense(embedder, texts[:60]).shape == (60, DIMENSION)
    assert dense(embedder, texts[61:]).shape == (35, DIMENSION)
    with pytest.raises(DocumentError, match="invalid text"):
        dense(embedder, [BAD])
    assert len(server.asked) == asked


def test_a_provider_that_refuses_every_text_is_no_bad_document(server: Provider) -> None:
    """The model was retired under the daemon: its documents wait."""
    embedder = built("cohere", server)
    embedder.info()
    server.fault = lambda _asked: Answer(400, {"message": "model 'a-model' was removed"})
    with pytest.raises(UnavailableError, match=r"refuses every text.*was removed"):
        dense(embedder, TEXTS)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_is_a_fault_of_the_configuration_at_the_start_and_an_outage_later(
    server: Provider, status: int
) -> None:
    """What comes after a key was revoked must not suffer from it. The key is in no message."""
    embedder = built("cohere", server)
    embedder.info()
    server.fault = lambda _asked: Answer(status, {"message": f"the key {server.key} is not known"})
    with pytest.raises(UnavailableError) as later:
        dense(embedder, TEXTS)
    assert not later.value.refused  # a probe tells: to what stands before a provider one text may look like an attack
    with pytest.raises(ConfigError) as first:
        built("cohere", server).info()
    for said in (str(first.value), str(later.value)):
        assert "is not known" in said
        assert server.key not in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(500, {"message": "oops"}), "answers 500: oops"),
        (Answer(503, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"}), "answers 503"),
        (Answer(200, b"<html>Login</html>", {"Content-Type": "text/html"}), "no JSON: <html>Login"),
        (Answer(200, {"id": "1", "embeddings": {"float": [[0.1] * 32]}}, cut=True), "no answer"),
        (Answer(200, {"nothing": "here"}), "something else than vectors"),
        (Answer(200, {"embeddings": {"float": "abc"}}), "something else than vectors"),
        (Answer(200, [1, 2, 3]), "something else than vectors"),
        (Answer(301, b"", {"Location": "http://127.0.0.1:1/"}), "answers 301"),
    ],
)
def test_what_is_no_answer_is_an_outage(server: Provider, answer: Answer, said: str) -> None:
    """And what was answered well beside it is kept for when the provider is back."""
    embedder = built("cohere", server, batch_texts=5, concurrency=1)
    embedder.info()
    server.asked.clear()
    server.fault = lambda asked: answer if BAD in asked.payload["texts"] else None
    with pytest.raises(UnavailableError, match=said) as caught:
        dense(embedder, TEXTS)
    assert caught.value.dependency == "provider:far"
    server.fault = lambda _asked: None
    np.testing.assert_allclose(server.vectors(TEXTS), dense(embedder, TEXTS), atol=1e-6)
    answered = [text for asked in server.asked for text in asked.payload["texts"]]
    assert max(answered.count(text) for text in TEXTS[:10]) == 1


def test_nobody_there_is_an_outage() -> None:
    """A closed port, at once; and it says whose."""
    with provider("cohere") as server:
        embedder = built("cohere", server)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:\d+: no answer: .*refused"):
        embedder.info()


def test_an_answer_that_drips_is_given_up(server: Provider) -> None:
    """A byte now and then is no answer: the whole has a time-out."""
    release = threading.Event()

    def hang(_asked: Asked) -> None:
        release.wait(30)

    embedder = built("cohere", server, timeout_seconds=0.3)
    embedder.info()
    server.fault = hang
    with pytest.raises(UnavailableError, match="no answer"):
        dense(embedder, TEXTS)
    release.set()


def tampered(change: Callable[[list[list[float]]], object]) -> Callable[[Asked], Answer | None]:
    """Return a fault that changes the vectors of answers with the bad text in them."""

    def fault(asked: Asked) -> Answer | None:
        texts = asked.payload["texts"]
        if BAD not in texts:
            return None
        rows = [[1.0] * DIMENSION for _ in texts]
        changed = change(rows)
        return Answer(body={"embeddings": {"float": rows if changed is None else changed}})

    return fault


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "shape"),
        (lambda rows: [*rows, rows[0]], "shape"),
        (lambda rows: [row[:-1] for row in rows], "shape"),
        (lambda rows: [[0.0] * DIMENSION for _ in rows], "is zero"),
        (lambda rows: [[None, *row[1:]] for row in rows], "is not finite"),
        (lambda rows: [[1e39, *row[1:]] for row in rows], "is not finite"),
    ],
    ids=["too-few", "too-many", "shorter", "zero", "null", "too-large"],
)
def test_vectors_that_are_no_good_fail_the_one_text_that_they_follow(
    server: Provider, change: Callable[[list[list[float]]], object], said: str
) -> None:
    """The text that has them again when it is asked for alone, while a plain sentence has good ones."""
    embedder = built("cohere", server)
    embedder.info()
    server.fault = tampered(change)
    with pytest.raises(DocumentError, match=said):
        dense(embedder, TEXTS)
    good = [text for text in TEXTS if text != BAD]
    assert dense(embedder, good).shape == (len(good), DIMENSION)
    with pytest.raises(DocumentError, match=said):
        dense(embedder, [BAD])


def test_indices_that_are_missing_or_there_twice_are_no_answer() -> None:
    """Order is by index, and a vector with another text's index would be stored under that text."""
    with provider("openai") as server:
        embedder = built("openai", server)
        embedder.info()
        rows = [{"index": 0, "embedding": [1.0] * DIMENSION}, {"index": 0, "embedding": [0.5] * DIMENSION}]
        server.fault = lambda _asked: Answer(body={"data": rows})
        with pytest.raises(UnavailableError, match="indices"):
            dense(embedder, ["a", "b"])


def _with(answer: Answer, _asked: Asked) -> Answer:
    return answer


def test_numbers_are_read_where_base64_was_asked_for() -> None:
    """Servers that know only half of the API send numbers."""
    with provider("openai") as server:
        plain = {"data": [{"index": 0, "embedding": [0.5] * DIMENSION}]}
        packed = {
            "data": [{"index": 0, "embedding": base64.b64encode(np.full(DIMENSION, 0.5, "<f4").tobytes()).decode()}]
        }
        embedder = built("openai", server)
        found = []
        for body in (plain, packed):
            server.fault = partial(_with, Answer(body=body))
            found.append(dense(embedder, ["a"]).tolist())
        assert [[[0.5] * DIMENSION]] * 2 == found


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("1.5", 1.5), ("soon", None), ("", None), ("-1", None)])
def test_how_long_to_wait_is_read_in_seconds_and_fractions(server: Provider, said: str, seconds: float | None) -> None:
    """Fractions are none of HTTP's, and some providers send them."""
    embedder = built("cohere", server)
    embedder.info()
    server.fault = lambda _asked: Answer(503, {"message": "busy"}, {"Retry-After": said})
    with pytest.raises(UnavailableError) as caught:
        dense(embedder, ["a"])
    assert caught.value.wait == seconds


def test_a_refusal_waits_as_it_is_told_and_nothing_is_lost(server: Provider) -> None:
    """429 with Retry-After: the request goes again, once, and everything has its vector."""
    refused: list[Sequence[str]] = []

    def refuse(asked: Asked) -> Answer | None:
        texts = asked.payload["texts"]
        if BAD in texts and not refused:
            refused.append(texts)
            return Answer(429, {"message": "slow down"}, {"Retry-After": "1"})
        return None

    embedder = built("cohere", server, batch_texts=5)
    embedder.info()
    server.asked.clear()
    server.fault = refuse
    np.testing.assert_allclose(server.vectors(TEXTS), dense(embedder, TEXTS), atol=1e-6)
    assert len(server.asked) == 5


@pytest.mark.parametrize("headers", [{"Retry-After": "600"}, {}])
def test_a_provider_that_goes_on_refusing_is_an_outage(
    server: Provider, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own word for how long, and then without a second request; else after some, further and further apart."""
    monkeypatch.setattr("ingestd.embedders._pace.FIRST_REST", 0.01)
    embedder = built("cohere", server)
    embedder.info()
    server.asked.clear()
    server.fault = lambda _asked: Answer(429, {"message": "slow down"}, headers)
    with pytest.raises(UnavailableError, match="slow down") as caught:
        dense(embedder, TEXTS)
    assert caught.value.refused
    assert caught.value.wait is not None
    assert (len(server.asked), caught.value.wait > 500) == ((1, True) if headers else (_remote.TRIES, False))


def test_an_outage_beside_a_refusal_leaves_nobody_waiting(server: Provider) -> None:
    """One request of a call is refused for now while another finds the provider down: later calls get their turns."""
    down, embedder = threading.Event(), built("cohere", server, batch_texts=1, concurrency=2)
    embedder.info()

    def overload(asked: Asked) -> Answer:
        if asked.payload["texts"] == ["first"]:
            down.wait(10)
            time.sleep(0.3)  # until the call has ended with the other's answer
            return Answer(429, {"message": "slow down"})
        down.set()
        return Answer(503, {"message": "overloaded"})

    server.fault = overload
    with pytest.raises(UnavailableError, match="overloaded"):
        dense(embedder, ["first", "second"])
    wait_for(lambda: len(server.asked) >= 3, "both were answered")
    server.fault = lambda _asked: None
    began = time.monotonic()
    assert dense(embedder, ["later"]).shape == (1, DIMENSION)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("status", "raised"), [(429, None), (403, UnavailableError)])
def test_whatever_comes_while_a_bad_text_is_judged_is_no_end(
    server: Provider, status: int, raised: type[Exception] | None
) -> None:
    """The plain sentence that a refused text is held against may be refused itself: for now, or for good."""
    probes = 0

    def refuse(asked: Asked) -> Answer | None:
        nonlocal probes
        if asked.payload["texts"] == [BAD]:
            return Answer(400, {"message": "invalid text"})
        if asked.payload["texts"] == [_remote.PROBE]:
            probes += 1
            return Answer(status, {"message": "not now"}) if probes == 1 else None
        return None

    embedder = built("cohere", server)
    embedder.info()
    server.fault = refuse
    with pytest.raises(raised or DocumentError, match="not now" if raised else "invalid text"):
        dense(embedder, [BAD])
    assert probes == (1 if raised else 2)


def test_a_request_that_is_too_large_for_a_minute_is_halved() -> None:
    """OpenAI says so with 429, and would say it for ever."""

    def limit(asked: Asked) -> Answer | None:
        said = {"error": {"message": "Request too large on tokens per min (TPM): Limit 100, Requested 260"}}
        return Answer(429, said) if len(asked.payload["input"]) > 5 else None

    with provider("openai") as server:
        embedder = built("openai", server)
        embedder.info()
        server.fault = limit
        np.testing.assert_allclose(server.vectors(TEXTS), dense(embedder, TEXTS), atol=1e-6)
    with provider("openai") as server:
        embedder = built("openai", server, tokens_per_minute=60)
        batches = list(embedder._batches(TEXTS, Role.DOCUMENT))
        assert len(batches) > 1


def test_what_is_answered_after_an_error_is_kept(server: Provider) -> None:
    """Four requests are in flight when the first fails: the other three are paid for, and not asked again."""
    failed, embedder = threading.Event(), built("cohere", server, batch_texts=1)
    known(embedder)
    meeting = threading.Barrier(4, timeout=20)

    def fail_first(asked: Asked) -> Answer | None:
        meeting.wait()
        if asked.payload["texts"] == ["a"]:
            failed.set()
            return Answer(500, {"message": "on fire"})
        failed.wait(20)
        time.sleep(0.3)
        return None

    server.fault = fail_first
    with pytest.raises(UnavailableError, match="on fire"):
        dense(embedder, ["a", "b", "c", "d"])
    wait_for(lambda: len(embedder._kept._vectors) == 3, "the others were kept")
    server.fault = lambda _asked: None
    asked = len(server.asked)
    assert dense(embedder, ["a", "b", "c", "d"]).shape == (4, DIMENSION)
    assert len(server.asked) == asked + 1


def test_requests_in_flight_are_bounded_over_all_calls(server: Provider) -> None:
    """Several pipelines share an embedder, and its provider."""
    now = most = 0

    def note(_asked: Asked) -> None:
        nonlocal now, most
        with server.lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with server.lock:
            now -= 1

    embedder = built("cohere", server, batch_texts=1, concurrency=2)
    embedder.info()
    server.fault = note
    with ThreadPoolExecutor(4) as callers:
        for made in callers.map(lambda at: dense(embedder, [f"{at} {number}" for number in range(5)]), range(4)):
            assert made.shape == (5, DIMENSION)
    assert most == 2


@pytest.mark.parametrize("key", ["sk-good\n", "  sk-good "])
def test_white_space_around_a_key_is_none_of_it(server: Provider, key: str) -> None:
    """Secrets that were made with echo end with a line end."""
    assert dense(built("cohere", server, api_key=key), ["a"]).shape == (1, DIMENSION)


def test_a_key_that_no_header_carries_is_refused_without_being_shown(server: Provider) -> None:
    """At the configuration, not in a traceback of an HTTP library."""
    with pytest.raises(ValidationError) as caught:
        configured("cohere", server, api_key="sk-sécret")
    assert "no header can carry" in str(caught.value)
    assert "sk-s" not in str(caught.value)


def test_an_empty_sparse_query_meets_nothing() -> None:
    """A document's empty vector is marked, so that it can be stored; a query's is not: it would meet all of those."""
    with provider("tei-sparse") as server:
        embedder = built("tei-sparse", server)
        embedder.info()
        server.fault = lambda asked: Answer(body=[[] for _ in asked.payload["inputs"]])
        kinds = {VectorKind.SPARSE}
        document = embedder.embed(["?"], Role.DOCUMENT, kinds)[VectorKind.SPARSE]
        query = embedder.embed(["?"], Role.QUERY, kinds)[VectorKind.SPARSE]
    assert isinstance(document, SparseVectors)
    assert isinstance(query, SparseVectors)
    assert (len(document.indices), len(query.indices)) == (1, 0)


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_is_used_as_other_clients_use_it(
    server: Provider, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """With or without a scheme, and its password decoded."""
    where = server.root.removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"{scheme}us%40er:p%40w@{where}")
    monkeypatch.setenv("no_proxy", "")
    config = configured("cohere", server, base_url="http://api.example.org")
    with pytest.raises(ConfigError):  # what it is asked for there is no path of this server's
        config.build("far", None).info()  # type: ignore[attr-defined]
    (asked,) = server.asked
    assert asked.path == "http://api.example.org/v2/embed"
    assert asked.header("proxy-authorization") == f"Basic {base64.b64encode(b'us@er:p@w').decode()}"


def test_a_spent_quota_is_asked_once() -> None:
    """OpenAI's 429 for an empty account is no call for patience."""
    with provider("openai") as server:
        embedder = built("openai", server)
        embedder.info()
        server.asked.clear()
        spent = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
        server.fault = lambda _asked: Answer(429, spent)
        with pytest.raises(UnavailableError, match="exceeded your current quota") as caught:
            dense(embedder, TEXTS)
        assert caught.value.refused
        assert len(server.asked) == 1


def test_closing_ends_a_call_that_waits(server: Provider) -> None:
    """A stop does not wait for a provider: neither for its answer nor for its leave."""
    release, began = threading.Event(), threading.Event()

    def hang(_asked: Asked) -> None:
        began.set()
        release.wait(30)

    embedder = built("cohere", server)
    embedder.info()
    server.fault = hang
    raised: list[BaseException] = []

    def call() -> None:
        try:
            dense(embedder, TEXTS)
        except Stopped as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert began.wait(10)
    embedder.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(raised) == 1
    release.set()


def test_a_model_of_a_configured_dimension_need_not_be_there() -> None:
    """The daemon starts, and holds what comes; the space is the same as with the provider there."""
    with provider("cohere") as server:
        here = built("cohere", server, dimension=16).info()
        assert here.dimension == 16
        config = configured("cohere", server, dimension=16)
    away = config.build("far", None)  # type: ignore[attr-defined]
    assert here.space == away.info().space
    with pytest.raises(UnavailableError):
        dense(away, TEXTS)


def test_spaces_differ_where_vectors_do(server: Provider) -> None:
    """Model, dimension and prompts; not where it is, nor how it is asked."""
    spaces = [
        built("cohere", server, **options).info().space
        for options in ({}, {"model": "another"}, {"dimension": 16}, {"document_prompt": "passage: "})
    ]
    assert len(set(spaces)) == 4
    same = built("cohere", server, batch_texts=3, concurrency=1, requests_per_minute=6000, timeout_seconds=5).info()
    assert spaces[0] == same.space


def test_a_dimension_that_the_provider_does_not_give_is_refused_at_the_start() -> None:
    """A server that ignores the wish would fill a collection of another size."""
    with provider("cohere") as server:
        server.fault = lambda asked: Answer(body={"embeddings": {"float": [[1.0] * 8 for _ in asked.payload["texts"]]}})
        with pytest.raises(ConfigError, match="dimension: 16 is set, and the provider's vectors have 8"):
            built("cohere", server, dimension=16).info()


def test_a_tei_server_says_itself_what_it_runs() -> None:
    """Another model behind the same address is another space; one that was not asked for is refused."""
    with provider("tei") as server:
        first = built("tei", server).info()
        server.info = server.info | {"model_sha": SHA.replace("a", "b")}
        assert first.space != built("tei", server).info().space
        with pytest.raises(ConfigError, match="runs 'a-model'"):
            built("tei", server, model="another-model").info()


def test_a_missing_key_is_told_with_where_it_goes() -> None:
    """Before anything is asked; a server of one's own needs none."""
    with provider("openai") as server, pytest.raises(ConfigError, match="INGESTD_EMBEDDERS__FAR__API_KEY"):
        importlib.import_module("ingestd.embedders.openai").Config(model="m").build("far", None)
    with provider("cohere") as server, pytest.raises(ConfigError, match="INGESTD_EMBEDDERS__FAR__API_KEY"):
        built("cohere", server, api_key=None)
    with provider("openai") as server:
        built("openai", server, api_key=None)


@pytest.mark.parametrize("text", ["half a \ud800 pair"])
def test_text_that_no_encoding_can_write_is_refused_here(server: Provider, text: str) -> None:
    """It would come back as a 400 or a 500, by the provider's mood."""
    embedder = built("cohere", server)
    embedder.info()
    asked = len(server.asked)
    with pytest.raises(DocumentError, match="surrogate"):
        dense(embedder, [text])
    assert len(server.asked) == asked


def test_nul_passes(server: Provider) -> None:
    """It is a character, and JSON has a way to write it."""
    dense(built("cohere", server), ["a\0b"])
    assert server.texts()[-1] == "a\0b"


def test_a_text_that_is_too_long_is_cut_or_fails_as_configured() -> None:
    """Where the provider refuses it, its beginning is asked for; counted, so that one can see it."""
    long = "word " * 60

    def refuse(asked: Asked) -> Answer | None:
        longest = max(len(text) for text in asked.payload["input"])
        return Answer(400, {"error": {"message": "maximum context length is 20 tokens"}}) if longest > 110 else None

    with provider("openai") as server:
        server.fault = refuse
        embedder = built("openai", server, max_tokens=20)
        found = dense(embedder, ["short", long])
        assert found.shape == (2, DIMENSION)
        assert embedder.texts_cut == 1
        assert any(long.startswith(text) for text in server.texts() if text not in {"short", long})
        with pytest.raises(DocumentError, match="maximum context length"):
            dense(built("openai", server, max_tokens=20, too_long="fail"), [long])


def test_what_was_used_is_counted(server: Provider) -> None:
    """By the provider's own count."""
    embedder = built("cohere", server)
    dense(embedder, TEXTS)
    assert embedder.tokens_used == 3 * (len(TEXTS) + 1)


def test_what_a_provider_says_is_left_is_kept_to_before_it_refuses() -> None:
    """Nothing is left for a while, says its first answer, and the next request waits for so long."""
    said = [("0", "2.5s"), ("9", "60s")]

    def rates() -> dict[str, str]:
        left, renewed = said.pop(0) if len(said) > 1 else said[0]
        return {
            "x-ratelimit-limit-requests": "10",
            "x-ratelimit-remaining-requests": left,
            "x-ratelimit-reset-requests": renewed,
        }

    with provider("openai") as server:
        server.rates = rates
        embedder = built("openai", server)
        embedder.info()
        told = time.monotonic()
        assert dense(embedder, ["a"]).shape == (1, DIMENSION)
        assert time.monotonic() - told > 2.3


@pytest.mark.parametrize(
    ("name", "headers", "details"),
    [
        ("openai", {"retry-after-ms": "600000"}, []),
        ("openai", {"retry-after-ms": "600000", "Retry-After": "1"}, []),
        ("openai", {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "10m0s"}, []),
        ("openai", {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "600", "Retry-After": "0"}, []),
        ("gemini", {}, [{"@type": "type.googleapis.com/google.rpc.Help"}, {"retryDelay": "600.5s"}]),
    ],
    ids=["milliseconds", "milliseconds-first", "requests", "tokens", "body"],
)
@pytest.mark.parametrize("status", [429, 503])
def test_how_long_to_wait_is_read_wherever_it_is_said(
    name: str, headers: dict[str, str], details: list[dict[str, str]], status: int
) -> None:
    """Each provider has a place of its own for it; what is longer than a call is an outage, and is asked once."""
    with provider(name) as server:
        embedder = built(name, server)
        embedder.info()
        server.asked.clear()
        server.fault = lambda _asked: Answer(status, {"error": {"message": "later", "details": details}}, headers)
        with pytest.raises(UnavailableError, match="later") as caught:
            dense(embedder, ["a"])
        assert caught.value.wait is not None
        assert 590 < caught.value.wait < 610
        assert len(server.asked) == 1
