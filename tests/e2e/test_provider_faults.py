"""A provider that answers wrongly, refuses, or repeats the key: what the daemon makes of it, and what it shows."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.provider import DIMENSION, Answer, provider, use

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.fixtures.daemon import Daemon, Workplace
    from tests.fixtures.provider import Asked

    Change = Callable[[list[list[float | None]]], list[list[float | None]]]

pytestmark = pytest.mark.lite
KEY = "sk-nobody-may-see-this"
WRONG: dict[str, Change] = {
    "dimension": lambda rows: [row[:-1] for row in rows],
    "not-finite": lambda rows: [[None, *row[1:]] for row in rows],
    "count": lambda rows: rows[:-1],
}
"""What may be wrong with all vectors of an answer."""


def answered(texts: Sequence[str], change: Change) -> Answer:
    """Return an answer in OpenAI's form whose vectors are changed."""
    rows = change([[1.0] * DIMENSION for _ in texts])
    data = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
    return Answer(body={"object": "list", "data": data, "model": "a-model", "usage": {"total_tokens": 1}})


def write(workplace: Workplace, name: str, count: int = 4) -> set[str]:
    """Put some documents into the inbox; return their ids."""
    for number in range(count):
        workplace.write(f"{name}-{number}.txt", f"The {name} of number {number} is told here.")
    return {f"inbox/{name}-{number}.txt" for number in range(count)}


def until_paused(daemon: Daemon) -> dict[str, Any]:
    """Wait until /readyz says that the provider is away; return what it says of it."""

    def away() -> dict[str, Any] | None:
        check = daemon.check("provider:far")
        return check if check is not None and not check["ok"] else None

    found = daemon.until(away, "the provider is away")
    assert daemon.get("/readyz")[0] == 503
    return found


def until_through(workplace: Workplace, daemon: Daemon, documents: set[str]) -> None:
    """Wait until documents are written, and the daemon is ready again."""
    daemon.until(lambda: documents <= workplace.documents(), "what was held is written")
    daemon.until_ready()


def test_answers_that_are_all_wrong_are_an_outage(workplace: Workplace) -> None:
    """Whatever is wrong with them: intake pauses, no document is blamed, and all go through once they are right."""
    with provider("openai") as server:
        use(workplace, "openai", server)
        with workplace.daemon() as daemon:
            daemon.until_ready()
            for name, change in WRONG.items():
                server.fault = lambda asked, change=change: answered(asked.payload["input"], change)  # type: ignore[misc]
                documents = write(workplace, name)
                until_paused(daemon)
                assert not documents & workplace.documents()
                server.fault = lambda _asked: None
                until_through(workplace, daemon, documents)
            totals = daemon.until_settled(4 * len(WRONG))
            assert (totals["written"], totals["dead_lettered"]) == (4 * len(WRONG), 0)
        assert workplace.letters() == []


@pytest.mark.parametrize("wrong", WRONG)
def test_one_wrong_answer_among_many_fails_its_document_alone(workplace: Workplace, wrong: str) -> None:
    """Its neighbours are written: it is found by asking for fewer, whatever is wrong where it is asked for."""

    def change(texts: Sequence[str], rows: list[list[float | None]]) -> list[list[float | None]]:
        if wrong == "count":
            return rows[:-1]
        bad = [at for at, text in enumerate(texts) if "number 2 " in text]
        return [WRONG[wrong]([row])[0] if at in bad else row for at, row in enumerate(rows)]

    def spoil(asked: Asked) -> Answer | None:
        texts = asked.payload["input"]
        return answered(texts, partial(change, texts)) if any("number 2 " in text for text in texts) else None

    with provider("openai") as server:
        use(workplace, "openai", server)
        server.fault = spoil
        documents = write(workplace, "story", 8)
        totals = workplace.once(code=3)
        assert (totals["written"], totals["dead_lettered"]) == (7, 1)
        (letter,) = workplace.letters()
        assert (letter["document_id"], letter["stage"]) == ("inbox/story-2.txt", "embed")
        assert {"dimension": "shape", "not-finite": "not finite", "count": "shape"}[wrong] in letter["message"]
        assert workplace.documents() == documents - {"inbox/story-2.txt"}


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(401, {"error": {"message": "this key was revoked", "code": "invalid_api_key"}}),
        pytest.param(
            Answer(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}), marks=pytest.mark.long, id="timed"
        ),
        Answer(429, {"error": {"message": "slow down"}}),
    ],
    ids=["revoked", None, "storm"],
)
def test_a_refusal_that_comes_later_pauses_intake(workplace: Workplace, refusal: Answer) -> None:
    """Nothing is lost, and nobody has to do anything once the provider takes requests again."""
    with provider("openai") as server:
        use(workplace, "openai", server)
        with workplace.daemon() as daemon:
            daemon.until_ready()
            first = write(workplace, "first")
            until_through(workplace, daemon, first)
            server.fault = lambda _asked: refusal
            documents = write(workplace, "late")
            check = until_paused(daemon)
            assert str(refusal.body["error"]["message"]) in check["detail"]
            documents |= write(workplace, "later")
            assert workplace.documents() == first
            server.fault = lambda _asked: None
            until_through(workplace, daemon, documents)
            totals = daemon.until_settled(12)
            assert (totals["written"], totals["dead_lettered"]) == (12, 0)
        assert workplace.letters() == []


@pytest.mark.parametrize("name", ["openai", "gemini"])
def test_an_error_that_repeats_the_key_shows_it_nowhere(workplace: Workplace, name: str) -> None:
    """Neither a page, nor a metric, nor the log, nor a command: what else the error says is there."""
    with provider(name, KEY) as server:

        def repeat(asked: Asked) -> Answer:
            return Answer(500, {"error": {"message": f"no luck with {asked.header(server.dialect.key)}"}})

        use(workplace, name, server)
        with workplace.daemon() as daemon:
            daemon.until_ready()
            server.fault = repeat
            write(workplace, "late")
            assert "**********" in until_paused(daemon)["detail"]
            shown = {path: str(daemon.get(path)[1]) for path in ("/", "/metrics", "/readyz", "/livez", "/startupz")}
            commands = [["status"], ["status", "--json"], ["config", "show"], ["embed", "far", "a text"]]
            answers = [workplace.ask(*command) for command in commands]
            shown |= {" ".join(command): one.out + one.err for command, one in zip(commands, answers, strict=True)}
            shown |= {"control": json.dumps(daemon.status()), "log": daemon.log, "out": daemon.out}
        assert [where for where, text in shown.items() if KEY in text] == []
        assert {where for where, text in shown.items() if "no luck with" in text} >= {
            "/",
            "/readyz",
            "control",
            "embed far a text",
            "log",
            "status",
            "status --json",
        }
        assert 'embedder="far"' in shown["/metrics"]
