"""Commands as a person uses them, with a daemon and without: search, status, and what goes to which output."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.daemon import workplace_in

from ingestd.store.lock import StateLock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.daemon import Workplace

pytestmark = pytest.mark.lite
SAMPLES = Path(__file__).parents[2] / "config" / "samples"
DOCUMENTS = {f"inbox/{path.name}" for path in SAMPLES.iterdir() if not path.name.endswith(".meta.json")}
HIT = {"id", "document_id", "chunk_index", "score", "text", "source", "metadata"}
TOTALS = {
    "accepted",
    "written",
    "deleted",
    "unchanged",
    "superseded",
    "dead_lettered",
    "retrying",
    "in_flight",
    "chunks_embedded",
    "chunks_reused",
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A workplace whose inbox, the samples of the quick start, is worked off. No test changes it."""
    with workplace_in(tmp_path_factory.mktemp("samples") / "w") as made:
        made.configure("embedders.hash.dimension", 1024)  # with few, words of different texts meet
        shutil.copytree(SAMPLES, made.inbox, dirs_exist_ok=True)
        assert made.once()["written"] == len(DOCUMENTS)
        yield made


def test_once_ends_with_its_totals(samples: Workplace) -> None:
    """The last line of standard output is one object; logs are JSON lines on standard error, and nothing else is."""
    answer = samples.ask("run", "--once", "--json")
    assert answer.code == 0
    (line,) = answer.out.splitlines()
    assert {"totals"} == json.loads(line).keys()
    assert TOTALS == answer.totals.keys()
    assert len(DOCUMENTS) == answer.totals["accepted"] == answer.totals["unchanged"]
    logged = [json.loads(line) for line in answer.err.splitlines()]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in logged)
    assert "ready" in {line["event"] for line in logged}
    silent = samples.ask("run", "--once")
    assert (0, "") == (silent.code, silent.out)


def test_search_prints_hits_best_first(samples: Workplace) -> None:
    """Hybrid by default, with all that a hit has; the sidecar's metadata, too; logs do not get in between."""
    answer = samples.ask("search", "articles", "Ebbinghaus and his forgetting of syllables", "--json", "--limit", "5")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    hits = answer.json
    assert len(hits) == 5
    assert all(HIT == hit.keys() for hit in hits)
    assert hits[0]["document_id"] == "inbox/on-forgetting.txt"
    sidecar = json.loads((SAMPLES / "on-forgetting.txt.meta.json").read_text())
    assert sidecar.items() <= hits[0]["metadata"].items()
    assert "Ebbinghaus" in hits[0]["text"]
    scores = [hit["score"] for hit in hits]
    assert sorted(scores, reverse=True) == scores
    assert max(scores) <= 2 / 61  # reciprocal ranks, not distances
    text = samples.ask("search", "articles", "Ebbinghaus and his forgetting of syllables")
    assert text.out.startswith("  1. inbox/on-forgetting.txt  #0  ")


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_each_mode_reads_queries_line_by_line(samples: Workplace, mode: str) -> None:
    """With ``-`` each line of standard input has its line of answers, in order; a blank one too: nothing."""
    queries = ["a starter of flour and water and wild yeast", "", "the patch kit, the wheel and the tyre levers"]
    answer = samples.ask("search", "articles", "-", "--json", "--mode", mode, stdin="\n".join(queries) + "\n")
    assert answer.code == 0, answer.err
    first, nothing, last = (json.loads(line) for line in answer.out.splitlines())
    assert "inbox/sourdough.md" == first[0]["document_id"]
    assert "inbox/bicycle-repair.md" == last[0]["document_id"]
    assert nothing == []


def test_a_sparse_query_that_meets_nothing_finds_nothing(samples: Workplace) -> None:
    """No word in common: no hits, which is an answer and no failure."""
    answer = samples.ask("search", "articles", "xylophone", "--mode", "sparse", "--json")
    assert (0, []) == (answer.code, answer.json)
    assert samples.ask("search", "articles", "xylophone", "--mode", "sparse").out == "nothing found\n"


def test_what_cannot_be_searched_is_said(samples: Workplace) -> None:
    """An unknown collection is a fault of the configuration, an unknown mode one of usage."""
    unknown = samples.ask("search", "artikel", "text")
    assert unknown.code == 78
    assert "there is no collection 'artikel' in the configuration; there is articles" in unknown.err
    assert unknown.out == ""
    assert samples.ask("search", "articles", "text", "--mode", "both").code == 2
    assert samples.ask("search", "articles", " ").code == 2
    assert samples.ask("search", "articles", "text", "--limit", "0").code == 2
    assert samples.ask("run", "--timeout", "5").code == 2


def test_status_says_how_the_daemon_is(workplace: Workplace) -> None:
    """Running and ready: exit 0 and all there is to say; none running: exit 1 and what is known."""
    workplace.write("one.txt", "One text.")
    with workplace.daemon() as daemon:
        daemon.until_ready()
        daemon.until_settled(1)
        answer = workplace.ask("status", "--json")
        assert answer.code == 0, answer.err
        status = answer.json
        assert (True, True) == (status["running"], status["ready"])
        assert TOTALS == status["totals"].keys()
        assert status["totals"]["written"] == 1
        assert {"started", "threads", "milvus", "state", "inbox:root", "inbox:deletes"} <= {
            check["name"] for check in status["checks"]
        }
        assert [("inbox", 1)] == [(source["name"], source["documents"]) for source in status["sources"]]
        assert [("articles", 1)] == [(collection["name"], collection["rows"]) for collection in status["collections"]]
        assert "inbox" in workplace.ask("status").out
        assert daemon.stop() == 0
        assert daemon.out == ""
    answer = workplace.ask("status", "--json")
    assert answer.code == 1
    assert _keys(status) == _keys(answer.json)
    assert [("inbox", "folder", "articles")] == [
        (source["name"], source["type"], source["collection"]) for source in answer.json["sources"]
    ]
    assert [{**row, "limit": None} for row in status["collections"]] == answer.json["collections"]
    assert (False, 0) == (answer.json["running"], answer.json["totals"]["accepted"])
    assert [("inbox", 1)] == [(source["name"], source["documents"]) for source in answer.json["sources"]]


def _keys(status: dict[str, Any]) -> dict[str, list[str]]:
    """Return the keys of an answer, and those of the rows of each of its tables."""
    return {key: sorted(value[0]) if value and isinstance(value, list) else [] for key, value in status.items()} | {
        "checks": []  # a resting daemon has none
    }


def test_status_before_the_first_start_has_the_same_keys(workplace: Workplace) -> None:
    """Nothing is known of what was never there: null, and not nothing."""
    answer = workplace.ask("status", "--json")
    assert answer.code == 1, answer.err
    assert [None] == [collection["rows"] for collection in answer.json["collections"]]
    assert [0] == [source["documents"] for source in answer.json["sources"]]
    assert (None, "milvus") == (answer.json["uptime_seconds"], answer.json["milvus"])


def test_status_of_a_daemon_that_starts(workplace: Workplace) -> None:
    """Who loads models for a minute runs: it has the state, and no ear yet."""
    state = workplace.inbox.parent / "state"
    state.mkdir()
    lock = StateLock(state, 0.0)
    try:
        answer = workplace.ask("status", "--json")
        assert (answer.code, answer.json["running"], answer.json["ready"]) == (1, True, False)
        assert "a daemon starts or ends" in workplace.ask("status").out
    finally:
        lock.release()
    assert not workplace.ask("status", "--json").json["running"]


@pytest.mark.long
def test_what_documents_hold_cannot_steer_the_terminal(workplace: Workplace) -> None:
    """Escapes, line ends and turned directions in names and texts are printed as escapes, by every command."""
    good, bad = "good\x1b]0;owned\x07\n\x9b2J\u202e.txt", "bad\x1b[2J\r\u2066.json"
    workplace.write(good, "A text with \u202e a turn.")
    workplace.write(bad, "{")
    workplace.once(code=3)
    (letter,) = workplace.letters()
    assert f"inbox/{bad}" == letter["document_id"]
    number = str(letter["id"])
    commands = (
        ("dead-letters", "list"),
        ("dead-letters", "show", number),
        ("search", "articles", "A text with a turn"),
        ("status",),
        ("forget", "--source", "in\x1bbox"),
    )
    for command in commands:
        for form in ((), ("--json",)):
            answer = workplace.ask(*command, *form)
            said = answer.out + answer.err
            assert said.strip(), command
            assert not any(unicodedata.category(sign) in {"Cc", "Cf"} for sign in said.replace("\n", "")), (
                command,
                said,
            )
    (workplace.inbox / good).rename(workplace.root / "away")
    said = workplace.ask("audit").out
    assert "good\\x1b]0;owned" in said
    assert not any(unicodedata.category(sign) in {"Cc", "Cf"} for sign in said.replace("\n", ""))
    assert workplace.ask("audit", "--json").json["differences"][0]["document_id"] == f"inbox/{good}"
    (workplace.root / "away").rename(workplace.inbox / good)
    assert workplace.ask("dead-letters", "list").out.count("\n") == 2
    assert "\\u202e a turn" in workplace.ask("search", "articles", "A text with a turn").out
    assert workplace.ask("search", "articles", "A text with a turn", "--json").json[0]["document_id"] == f"inbox/{good}"


def test_search_goes_on_while_the_daemon_ingests(workplace: Workplace) -> None:
    """Through the daemon's own Milvus Lite: what was written, edited and deleted is found, and not found, at once."""
    with workplace.daemon() as daemon:
        daemon.until_ready()
        path = workplace.write("animals.txt", "The quick brown fox jumps over the lazy dog.")
        daemon.until_settled(1)
        assert {"inbox/animals.txt"} == _found(workplace, "fox")
        path.write_text("The quick brown cat jumps over the lazy dog.")
        daemon.until_settled(2)
        assert set() == _found(workplace, "fox")
        assert {"inbox/animals.txt"} == _found(workplace, "cat")
        path.unlink()
        daemon.until_settled(3)
        assert set() == _found(workplace, "cat")
        assert daemon.stop() == 0
    assert set() == _found(workplace, "cat")


def _found(workplace: Workplace, query: str) -> set[str]:
    answer = workplace.ask("search", "articles", query, "--mode", "sparse", "--json")
    assert answer.code == 0, answer.err
    return {hit["document_id"] for hit in answer.json}


def test_forget_deletes_what_a_removed_source_left(workplace: Workplace) -> None:
    """A source that is configured no more is named and keeps its rows, until it is forgotten; other rows stay."""
    other = workplace.root / "other"
    other.mkdir()
    (other / "theirs.txt").write_text("A text of the other source.")
    workplace.write("ours.txt", "A text of our own.")
    workplace.configure("sources.other", {"type": "folder", "path": "other", "collection": "articles"})
    assert workplace.once()["written"] == 2
    refused = workplace.ask("forget", "--source", "other")
    assert refused.code == 78
    del workplace.settings["sources"]["other"]
    assert workplace.once()["unchanged"] == 1
    assert {"inbox/ours.txt", "other/theirs.txt"} == workplace.documents()
    assert "source:other: does not feed articles any more; its 1 documents there stay" in workplace.ask("check").out
    forgotten = workplace.ask("forget", "--source", "other", "--json")
    assert {"source": "other", "documents": 1, "rows": 1} == forgotten.json
    assert {"inbox/ours.txt"} == workplace.documents()
