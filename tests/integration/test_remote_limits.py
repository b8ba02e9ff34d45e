"""Models behind an API at their limits: texts that are too long, answers that are no vectors, and what those cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.fixtures.provider import DIMENSION, Answer, Provider, provider
from tests.integration.test_remote_embedders import TEXTS, built, configured, dense

from ingestd.embedders._remote import PROBE
from ingestd.errors import ConfigError, DocumentError, UnavailableError
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.provider import Asked

LONG = "word " * 60
CUTS: dict[str, Callable[[Any], bool]] = {
    "cohere": lambda payload: payload["truncate"] == "END",
    "voyage": lambda payload: bool(payload["truncation"]),
    "jina": lambda payload: bool(payload["truncate"]),
    "tei": lambda payload: bool(payload["truncate"]),
    "tei-sparse": lambda payload: bool(payload["truncate"]),
}
"""Whether a request says that too long texts are to be cut, where it can."""


def strict(server: Provider, name: str, characters: int = 110) -> None:
    """Let a provider refuse what is too long, unless it is told to cut it."""

    def refuse(asked: Asked) -> Answer | None:
        longest = max(map(len, server.dialect.texts(asked.payload)))
        cut = CUTS.get(name, lambda _payload: False)(asked.payload)
        return None if cut or longest <= characters else Answer(400, {"message": "too many tokens in a text"})

    server.fault = refuse


@pytest.mark.parametrize("name", CUTS)
def test_what_a_provider_cuts_is_counted(name: str) -> None:
    """It is told to refuse, for of what it cuts it says nothing; the text that it refuses is asked for alone, cut."""
    with provider(name) as server:
        strict(server, name)
        embedder = built(name, server, max_tokens=20)
        kind = VectorKind.SPARSE if name == "tei-sparse" else VectorKind.DENSE
        found = embedder.embed(["short", LONG, "brief"], Role.DOCUMENT, {kind})[kind]
        assert len(found) == 3
        assert embedder.texts_cut == 1
        cut = [server.dialect.texts(asked.payload) for asked in server.asked if CUTS[name](asked.payload)]
        assert cut == [[LONG]]
        with pytest.raises(DocumentError, match="too many tokens"):
            built(name, server, max_tokens=20, too_long="fail").embed([LONG], Role.DOCUMENT, {kind})


@pytest.mark.parametrize("name", ["nomic", "gemini"])
def test_what_a_provider_cuts_silently_is_counted_by_our_own_count(name: str) -> None:
    """It never says: the estimate is all that there is, and the text goes as it is."""
    with provider(name) as server:
        embedder = built(name, server, max_tokens=20)
        assert dense(embedder, ["short", LONG]).shape == (2, DIMENSION)
        assert embedder.texts_cut == 1
        assert any(text.endswith(LONG) for text in server.texts())
        failing = built(name, server, max_tokens=20, too_long="fail")
        failing.info()
        asked = len(server.asked)
        with pytest.raises(DocumentError, match="more than the"):
            dense(failing, [LONG])
        assert len(server.asked) == asked, "it is not paid for"


def test_an_estimate_that_is_too_long_still_is_halved() -> None:
    """Of a script with more tokens than we take it to have: less of it is asked for until it passes."""
    with provider("openai") as server:
        strict(server, "openai", characters=60)
        embedder = built("openai", server, max_tokens=20)
        assert dense(embedder, [LONG]).shape == (1, DIMENSION)
        assert embedder.texts_cut == 1
        assert 30 < len(server.texts()[-1]) <= 60


def test_a_refusal_that_is_not_about_the_length_is_no_reason_to_cut() -> None:
    """Half of a text might pass where the whole one is not allowed."""
    with provider("openai") as server:
        embedder = built("openai", server, max_tokens=50)
        embedder.info()
        text = "forbidden " + "fruit " * 10
        server.fault = lambda asked: (
            Answer(400, {"error": {"message": "content policy"}}) if "forbidden" in str(asked.payload) else None
        )
        with pytest.raises(DocumentError, match="content policy"):
            dense(embedder, [text])
        assert embedder.texts_cut == 0
        assert {text, PROBE} == set(server.texts())


def test_a_text_that_is_probably_refused_costs_no_other(server: Provider) -> None:
    """It goes alone: no batch is halved for it."""
    strict(server, "cohere")
    embedder = built("cohere", server, max_tokens=20)
    embedder.info()
    dense(embedder, [*TEXTS[:5], LONG, *TEXTS[5:10]])
    assert sorted(len(server.dialect.texts(asked.payload)) for asked in server.asked[1:]) == [1, 1, 10]


@pytest.fixture
def server() -> Any:
    """A provider that speaks as Cohere does."""
    with provider("cohere") as made:
        yield made


def wrong(server: Provider) -> Callable[[Asked], Answer]:
    """Return an answer for each request in which no vector has the right size; it says what it cost."""

    def answer(asked: Asked) -> Answer:
        texts = server.dialect.texts(asked.payload)
        return Answer(body=server.dialect.answer(server.vectors(texts, DIMENSION + 1), asked.payload))

    return answer


def nothing(server: Provider) -> Callable[[Asked], Answer]:
    """Return an answer with nothing but NaN."""

    def answer(asked: Asked) -> Answer:
        texts = server.dialect.texts(asked.payload)
        return Answer(body=server.dialect.answer(np.full((len(texts), DIMENSION), np.nan, np.float32), asked.payload))

    return answer


@pytest.mark.parametrize("fault", [wrong, nothing])
def test_answers_without_vectors_are_not_paid_for_again_and_again(
    server: Provider, fault: Callable[[Provider], Callable[[Asked], Answer]]
) -> None:
    """A plain sentence tells that it is the provider; from then on nothing else is asked until that passes."""
    embedder = built("cohere", server, concurrency=1)
    embedder.info()
    used = embedder.tokens_used
    server.asked.clear()
    server.fault = fault(server)
    with pytest.raises(UnavailableError, match="refuses every text") as caught:
        dense(embedder, TEXTS)
    assert caught.value.refused
    assert server.texts() == [*TEXTS, PROBE]
    assert embedder.tokens_used == used + 3 * (len(TEXTS) + 1), "what came was paid for"
    for _ in range(3):
        with pytest.raises(UnavailableError):
            dense(embedder, TEXTS)
    assert server.texts() == [*TEXTS, *4 * [PROBE]]
    server.fault = lambda _asked: None
    np.testing.assert_allclose(dense(embedder, TEXTS), server.vectors(TEXTS), atol=1e-6)
    assert server.texts() == [*TEXTS, *5 * [PROBE], *TEXTS]


def test_a_plain_sentence_that_has_to_wait_still_decides(server: Provider) -> None:
    """It is refused for being too fast, and asked again: as what it was, before anything else is paid for."""
    embedder = built("cohere", server, concurrency=1)
    embedder.info()
    bad = server.fault = wrong(server)
    with pytest.raises(UnavailableError):
        dense(embedder, TEXTS)
    server.asked.clear()
    refusals = [Answer(429, {"message": "slow down"}, {"Retry-After": "0.01"})]
    server.fault = lambda asked: refusals.pop() if refusals else bad(asked)
    with pytest.raises(UnavailableError, match="refuses every text"):
        dense(embedder, TEXTS)
    assert server.texts() == [PROBE, PROBE]


def test_what_was_asked_and_not_answered_is_counted(server: Provider) -> None:
    """It may be on the bill: else an outage of answers that do not come would pass any limit by the day."""
    embedder = built("cohere", server)
    embedder.info()
    used = embedder.tokens_used
    server.fault = lambda _asked: Answer(body={"embeddings": {}}, cut=True)
    with pytest.raises(UnavailableError, match="no answer"):
        dense(embedder, ["wing flow"])
    assert embedder.tokens_used > used
    used = embedder.tokens_used
    server.close()
    embedder.close()
    embedder = built("cohere", server)
    embedder._info = None
    with pytest.raises(UnavailableError):
        embedder.info()
    assert embedder.tokens_used == 0, "nobody was there to be asked"


def test_a_prompt_costs_too() -> None:
    """Where the provider does not count it is estimated: with what is put before each text."""
    with provider("gemini") as server:
        plain = built("gemini", server, model="gemini-embedding-001")
        prompted = built("gemini", server, model="gemini-embedding-001", document_prompt="ten words " * 5)
        for embedder in (plain, prompted):
            embedder.info()
            dense(embedder, ["oil"])
        assert prompted.tokens_used >= plain.tokens_used + 20


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://[::1", "no host, or a port"),
        ("http://host:99999/v1", "no host, or a port"),
        ("http:///v1", "no host, or a port"),
        ("https://", "no host, or a port"),
        ("ftp://host", "must begin"),
    ],
)
def test_an_address_that_is_none(server: Provider, address: str, said: str) -> None:
    """Told at the start: nobody waits for it."""
    with pytest.raises(ValidationError, match=said):
        configured("cohere", server, base_url=address)


@pytest.mark.parametrize("info", [[], None, "x", 7])
def test_a_server_that_is_no_tei(info: Any) -> None:
    """Told at the start."""
    with provider("tei") as server:
        server.info = info
        with pytest.raises(ConfigError, match="is it TEI"):
            built("tei", server).info()


def test_tei_says_itself_how_many_texts_it_takes() -> None:
    """No more are sent; what is configured goes first."""
    with provider("tei") as server:
        server.info["max_client_batch_size"] = 8
        dense(built("tei", server), TEXTS)
        assert max(len(server.dialect.texts(asked.payload)) for asked in server.asked) == 8
        server.asked.clear()
        dense(built("tei", server, batch_texts=5), TEXTS)
        assert max(len(server.dialect.texts(asked.payload)) for asked in server.asked) == 5


def test_one_model_has_one_name() -> None:
    """As Gemini lists it and as people write it: the space is the same."""
    with provider("gemini") as server:
        spaces = {built("gemini", server, model=model).info().space for model in ("models/a-model", "a-model")}
        assert len(spaces) == 1


@pytest.mark.parametrize(
    ("name", "options", "window"),
    [
        ("openai", {}, 4096),
        ("cohere", {}, 3 * 4 * 96),
        ("nomic", {}, 26 * 4 * 10),
        ("nomic", {"requests_per_minute": 20}, 200),
        ("voyage", {"concurrency": 16}, 4000),
        ("tei", {"batch_texts": 5000}, 5000),
    ],
)
def test_how_many_texts_a_call_should_have(server: Provider, name: str, options: dict[str, Any], window: int) -> None:
    """Full requests, several at a time, within what is kept in memory and what a minute allows."""
    assert configured(name, server, **options).window == window
