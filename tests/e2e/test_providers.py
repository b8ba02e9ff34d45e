"""A daemon whose models are behind an API: from its own configuration through the pipeline to a search that finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.daemon import COLLECTION, workplace_in
from tests.fixtures.provider import DIALECTS, Answer, Provider, provider

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.daemon import Daemon, Workplace
    from tests.fixtures.provider import Asked

pytestmark = pytest.mark.lite
BASES = {"cohere": "", "tei": "", "tei-sparse": "", "gemini": "/v1beta"}
"""What of the address is the base; else /v1."""
TEXTS = {
    "plants.txt": "Water the plants on the balcony every evening while we are away.",
    "engine.md": "# Engine\n\nThe turbine blades are inspected after five hundred hours.",
    "oil.txt": "Oil prices fell for the third day in a row.",
}
MEBIBYTE = 1024 * 1024
MOST_MEMORY = 220 * MEBIBYTE


def use(workplace: Workplace, name: str, server: Provider, **options: Any) -> None:
    """Configure a provider as the collection's only embedder; its key comes from the environment."""
    # Of Gemini's the one that has tasks: hashed words would find the others' prompts.
    model = "gemini-embedding-001" if name == "gemini" else "a-model"
    table = {"type": name.partition("-")[0], "model": model, "base_url": server.root + BASES.get(name, "/v1")}
    output = "dense"
    if name == "tei-sparse":
        table["kind"] = output = "sparse"
    workplace.settings["embedders"] = {"far": table | options}
    workplace.settings["collections"][COLLECTION]["vectors"] = {output: {"embedder": "far"}}
    workplace.environment["INGESTD_EMBEDDERS__FAR__API_KEY"] = server.key


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A workplace with three documents."""
    with workplace_in(tmp_path / "w") as made:
        for name, text in TEXTS.items():
            made.write(name, text)
        yield made


def found(workplace: Workplace, query: str) -> str:
    """Return the id of the best hit's document."""
    answer = workplace.ask("search", COLLECTION, query, "--json")
    assert answer.code == 0, answer.err
    return str(answer.json[0]["document_id"])


@pytest.mark.parametrize("name", DIALECTS)
def test_each_provider_from_a_file_to_a_hit(workplace: Workplace, name: str) -> None:
    """Written once, nothing the second time, and found by what it says. The key is in no log and no answer."""
    with provider(name) as server:
        use(workplace, name, server)
        first = workplace.ask("run", "--once", "--json")
        assert first.code == 0, first.err
        assert first.totals["written"] == len(TEXTS)
        asked = len(server.asked)
        again = workplace.once()
        assert (again["unchanged"], again["chunks_embedded"]) == (len(TEXTS), 0)
        assert len(server.asked) == asked + 1  # what the model is
        assert found(workplace, "turbine blades inspected") == "inbox/engine.md"
        assert found(workplace, "oil prices") == "inbox/oil.txt"
        shown = workplace.ask("config", "show", "--json")
        assert server.key not in first.out + first.err + shown.out
        assert "**********" in shown.out


def maps(pid: int) -> str:
    """Return what a process has mapped into its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


def resident(daemon: Daemon) -> int:
    """Return the bytes of memory that the daemon's process has."""
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_no_torch_and_little_memory_without_a_local_model(workplace: Workplace) -> None:
    """Neither in the daemon nor in any of its children."""
    with provider("openai") as server:
        use(workplace, "openai", server)
        with workplace.daemon() as daemon:
            daemon.until_said("ready")
            daemon.until(lambda: len(workplace.documents()) == len(TEXTS), "the documents are written")
            assert not [pid for pid in workplace.processes() if "libtorch" in maps(pid)]
            assert resident(daemon) < MOST_MEMORY


def test_a_provider_that_is_away_is_an_outage(workplace: Workplace) -> None:
    """At the start it is waited for; later intake pauses, /readyz says which, and everything goes on by itself."""
    with provider("openai") as server:
        server.fault = lambda _asked: Answer(503, {"error": {"message": "overloaded"}})
        use(workplace, "openai", server)
        with workplace.daemon() as daemon:
            daemon.until_said("dependency down, intake paused")
            assert not daemon.said("ready")
            server.fault = lambda _asked: None
            daemon.until_said("ready")
            daemon.until(lambda: len(workplace.documents()) == len(TEXTS), "the documents are written")
            server.fault = lambda _asked: Answer(500, {"error": {"message": "on fire"}})
            workplace.write("late.txt", "A late document about volcanoes.")
            daemon.until(lambda: daemon.get("/readyz")[0] == 503, "it is not ready")
            checks = {check["name"]: check for check in daemon.get("/readyz")[1]["checks"]}
            assert "on fire" in checks["provider:far"]["detail"]
            server.fault = lambda _asked: None
            daemon.until(lambda: "inbox/late.txt" in workplace.documents(), "the late one is written")
            daemon.until(lambda: daemon.get("/readyz")[0] == 200, "it is ready")
        assert workplace.letters() == []


def test_a_refused_key_ends_the_start_with_what_to_do(workplace: Workplace) -> None:
    """Before an event is read."""
    with provider("openai") as server:
        use(workplace, "openai", server)
        workplace.environment["INGESTD_EMBEDDERS__FAR__API_KEY"] = "sk-wrong-and-secret"
        answer = workplace.ask("run", "--once", "--json")
        assert answer.code == 78
        assert "embedders.far" in answer.err
        assert "api_key" in answer.err
        assert "sk-wrong-and-secret" not in answer.out + answer.err


def test_vectors_of_another_model_are_refused(workplace: Workplace) -> None:
    """Of equal dimension too: nothing is written, and it says what to do."""
    with provider("openai") as server:
        use(workplace, "openai", server)
        workplace.once()
        use(workplace, "openai", server, model="another-model")
        workplace.write("late.txt", "A late document about volcanoes.")
        answer = workplace.ask("run", "--once", "--json")
        assert answer.code == 78
        assert "space" in answer.err or "model" in answer.err
        assert "inbox/late.txt" not in workplace.documents()


def test_a_text_that_the_provider_refuses_fails_its_document_alone(workplace: Workplace) -> None:
    """Its neighbours in the same request are written."""
    bad = "a document about forbidden fruit"

    def refuse(asked: Asked) -> Answer | None:
        if any(bad in text for text in asked.payload["input"]):
            return Answer(400, {"error": {"message": "content policy"}})
        return None

    with provider("openai") as server:
        server.fault = refuse
        use(workplace, "openai", server)
        workplace.write("bad.txt", bad)
        totals = workplace.once(code=3)
        assert (totals["written"], totals["dead_lettered"]) == (len(TEXTS), 1)
        (letter,) = workplace.letters()
        assert letter["document_id"] == "inbox/bad.txt"
        assert letter["stage"] == "embed"
        assert "content policy" in letter["message"]


def test_a_days_limit_pauses_intake(workplace: Workplace) -> None:
    """And says until when; with a higher one it goes on."""
    with provider("openai") as server:
        # Three tokens a text, a thousandth each: the first window of three chunks costs 0.009 and what the model is.
        use(workplace, "openai", server, price_per_million_tokens=1000.0, max_cost_per_day=0.01)
        totals = workplace.once()
        assert totals["written"] == len(TEXTS)
        workplace.write("late.txt", "A late document about volcanoes.")
        answer = workplace.ask("run", "--once", "--json", "--timeout", "3")
        assert answer.code == 1
        assert answer.totals["written"] == 0
        assert "max_cost_per_day" in answer.err
        use(workplace, "openai", server, price_per_million_tokens=1000.0, max_cost_per_day=1.0)
        assert workplace.once()["written"] == 1


def test_embedders_are_listed_and_asked(workplace: Workplace) -> None:
    """What can be configured, with limits; and what a text's vector is, in either role."""
    answer = workplace.ask("embedders", "--json", configured=False)
    assert answer.code == 0, answer.err
    listed = {one["type"]: one for one in json.loads(answer.out)}
    assert {name.partition("-")[0] for name in DIALECTS} <= listed.keys()
    assert (listed["cohere"]["texts"], listed["cohere"]["outputs"]) == (96, ["dense"])
    assert listed["splade"]["outputs"] == ["sparse"]
    assert listed["hashing"]["installed"]
    with provider("cohere") as server:
        use(workplace, "cohere", server)
        for role, word in (("query", "search_query"), ("document", "search_document")):
            answer = workplace.ask("embed", "far", "volcanoes", "--as", role, "--json")
            assert answer.code == 0, answer.err
            assert answer.json["dense"] == pytest.approx(server.vectors(["volcanoes"])[0].tolist(), abs=1e-6)
            assert server.asked[-1].payload["input_type"] == word
        unknown = workplace.ask("embed", "fat", "volcanoes")
        assert unknown.code == 78
        assert "did you mean 'far'" in unknown.err
