"""One model for two fields: BGE-M3's dense and sparse vectors come from one pass, and each is searched for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures import counted_m3
from tests.fixtures.daemon import COLLECTION, workplace_in
from tests.fixtures.models import require
from tests.fixtures.tiny_models import save_bge_m3

from ingestd.milvus.client import import_pymilvus
from ingestd.milvus.lite import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fixtures.daemon import Workplace

pytestmark = [pytest.mark.lite, pytest.mark.models]
TEXTS = {
    "oil.txt": "the price of oil on the market",
    "wing.txt": "a flat plate; the boundary layer for the wing of an aircraft",
    "goal.txt": "the goal in the second half?!",
    "film.txt": "music film minister match speed body heat plate flow wing",
}
QUERIES = ("price oil", "wing of an aircraft", "film music")


@pytest.fixture
def workplace(tmp_path: Path, offline: None) -> Iterator[Workplace]:
    """A workplace with documents in the words of a tiny BGE-M3, whose two outputs its collection has."""
    require("FlagEmbedding", "torch")
    with workplace_in(tmp_path / "w") as made:
        made.know_the_tests_plug_ins()
        for name, text in TEXTS.items():
            made.write(name, text)
        model = {
            "type": "tests.fixtures.counted_m3",
            "model": str(save_bge_m3(tmp_path / "model")),
            "notes": str(tmp_path / "passes"),
            "dtype": "float32",
            "threads": 1,
        }
        made.settings["embedders"] = {"m3": model}
        made.settings["collections"][COLLECTION]["vectors"] = {
            kind: {"embedder": "m3", "output": kind} for kind in ("dense", "sparse")
        }
        yield made


def stored(uri: str) -> dict[str, tuple[list[float], dict[int, float]]]:
    """Return both vectors of each document as Milvus holds them."""
    import_pymilvus()
    from pymilvus import MilvusClient  # noqa: PLC0415 - it may be imported only after its noise is turned off

    client = MilvusClient(uri=uri, timeout=20)
    rows = client.query(COLLECTION, filter="id >= ''", output_fields=["document_id", "dense", "sparse"])
    client.close()
    return {row["document_id"]: (row["dense"], row["sparse"]) for row in rows}


def test_two_fields_of_one_pass(workplace: Workplace, tmp_path: Path) -> None:
    """Every chunk goes through the transformer once, both rows' vectors are the library's, and each mode finds."""
    from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - takes seconds

    with workplace.daemon() as daemon:
        daemon.until_settled(len(TEXTS))
        notes = tmp_path / "passes"
        assert sum(counted_m3.passes(notes)) == len(TEXTS)
        texts = TEXTS | {"oil.txt": TEXTS["oil.txt"] + " for two"}
        workplace.write("oil.txt", texts["oil.txt"])
        daemon.until_settled(len(TEXTS) + 1)
        assert sum(counted_m3.passes(notes)) == len(TEXTS) + 1

        library: Any = BGEM3FlagModel(str(tmp_path / "model"), use_fp16=False, devices=["cpu"])
        made = library.encode([*texts.values(), *QUERIES], return_dense=True, return_sparse=True)
        dense = np.asarray(made["dense_vecs"])
        sparse = [{int(token): float(weight) for token, weight in row.items()} for row in made["lexical_weights"]]
        uri = running(workplace.state / "milvus.json")
        assert uri is not None
        rows = stored(uri)
        names = [f"inbox/{name}" for name in texts]
        assert rows.keys() == set(names)
        for place, name in enumerate(names):
            np.testing.assert_allclose(rows[name][0], dense[place], atol=2e-6)
            assert rows[name][1] == pytest.approx(sparse[place], abs=1e-3)

        for query, meant, weighted in zip(QUERIES, dense[len(names) :], sparse[len(names) :], strict=True):
            by_words = [sum(weighted.get(token, 0.0) * w for token, w in row.items()) for row in sparse[: len(names)]]
            for mode, scores in (("dense", dense[: len(names)] @ meant), ("sparse", np.asarray(by_words))):
                answer = workplace.ask("search", COLLECTION, query, "--json", "--mode", mode)
                assert answer.code == 0, answer.err
                found = [hit["document_id"] for hit in answer.json]
                assert found == [names[p] for p in np.argsort(-scores) if mode == "dense" or scores[p] > 0]
        both = workplace.ask("search", COLLECTION, QUERIES[0], "--json").json
        assert sorted(hit["document_id"] for hit in both) == sorted(names)
