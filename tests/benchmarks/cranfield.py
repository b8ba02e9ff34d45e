"""How well what was ingested can be found: the Cranfield test set through the daemon and ``ingestd search``.

The 1,400 abstracts become files; ``ingestd run --once`` ingests them with the configuration of the quick start;
``ingestd search`` answers the 225 queries in each mode. nDCG@10 is over documents (a document counts at its best
chunk), with linear gains and the ideal ranking over all judged documents. The dense figure is held against an
exhaustive search in numpy over the very vectors that are in Milvus: what is lost between them is the index's.

    python tests/benchmarks/cranfield.py DATA [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ingestd import config
from ingestd.model import Role, VectorKind
from ingestd.parts import milvus, models

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEPTH = 10
CHUNKS = 60
"""Chunks that are asked for, so that ten documents are among them."""
CONFIGURATION = Path(__file__).parents[2] / "config" / "quickstart.toml"


def main() -> None:
    """Ingest, search, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="the folder with documents.jsonl, queries.jsonl and qrels.tsv")
    parser.add_argument("--out", type=Path, default=None, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    queries = [json.loads(line) for line in (arguments.data / "queries.jsonl").open()]
    gains = _gains(arguments.data / "qrels.tsv")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _files(arguments.data / "documents.jsonl", place / "inbox")
        began = time.monotonic()
        totals = _ingest(place)
        seconds = time.monotonic() - began
        figures: dict[str, Any] = {"totals": totals, "ingest_seconds": round(seconds, 1), "ndcg_at_10": {}}
        for mode in ("dense", "sparse", "hybrid"):
            ranked = _search(place, [query["text"] for query in queries], mode)
            figures["ndcg_at_10"][mode] = round(_mean(queries, ranked, gains), 4)
        figures["ndcg_at_10"]["dense, exhaustive"] = round(_mean(queries, _exhaustive(place, queries), gains), 4)
    print(f"{totals['written']} documents, {totals['chunks_embedded']} chunks, {seconds:.0f} s with start-up")
    for mode, figure in figures["ndcg_at_10"].items():
        print(f"nDCG@10  {mode:<18} {figure:.4f}")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def _files(documents: Path, inbox: Path) -> None:
    inbox.mkdir()
    for line in documents.open():
        document = json.loads(line)
        # The title is the first sentence of the text, where there is a text.
        (inbox / f"{document['id']}.txt").write_text((document["text"] or document["title"]) + "\n")


def _ingestd(place: Path, *arguments: str, questions: str | None = None) -> str:
    command = [sys.executable, "-m", "ingestd", *arguments, "--config", str(CONFIGURATION), "--json"]
    environment = {**os.environ, "INGESTD_HTTP__LISTEN": "127.0.0.1:0"}
    done = subprocess.run(
        command, cwd=place, input=questions, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def _ingest(place: Path) -> dict[str, int]:
    totals: dict[str, int] = json.loads(_ingestd(place, "run", "--once").splitlines()[-1])["totals"]
    return totals


def _search(place: Path, queries: Sequence[str], mode: str) -> list[list[str]]:
    questions = "".join(" ".join(query.split()) + "\n" for query in queries)
    answers = _ingestd(place, "search", "articles", "-", "--mode", mode, "--limit", str(CHUNKS), questions=questions)
    return [_documents([hit["document_id"] for hit in json.loads(line)]) for line in answers.splitlines()]


def _documents(ids: Sequence[str]) -> list[str]:
    """Return the documents of ranked chunks, each at its best place, as the test set names them."""
    return [name.removeprefix("inbox/").removesuffix(".txt") for name in dict.fromkeys(ids)][:DEPTH]


def _exhaustive(place: Path, queries: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Rank by numpy, over the dense vectors that are in Milvus."""
    os.chdir(place)
    settings = config.load(CONFIGURATION)
    with milvus(settings) as connection, models(settings) as embedders:
        connection.load("articles")
        ids: list[str] = []
        vectors: list[Any] = []
        last = ""
        while True:
            page = connection.call(
                "query",
                "articles",
                doing="reading all rows",
                filter=f'id > "{last}"',
                output_fields=["id", "document_id", "dense"],
                limit=2_000,
            )
            if not page:
                break
            page = sorted(page, key=lambda row: row["id"])
            last = page[-1]["id"]
            ids += [row["document_id"] for row in page]
            vectors += [row["dense"] for row in page]
        matrix = np.asarray(vectors, dtype=np.float32)
        texts = [" ".join(query["text"].split()) for query in queries]
        asked = np.asarray(
            embedders["minilm"].embed(texts, Role.QUERY, frozenset({VectorKind.DENSE}))[VectorKind.DENSE]
        )
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    order = np.argsort(-(asked @ matrix.T), axis=1, kind="stable")[:, :CHUNKS]
    return [_documents([ids[at] for at in row]) for row in order]


def _gains(path: Path) -> dict[str, dict[str, int]]:
    gains: dict[str, dict[str, int]] = defaultdict(dict)
    for line in path.read_text().splitlines()[1:]:
        query, document, gain = line.split("\t")
        gains[query][document] = int(gain)
    return gains


def _mean(
    queries: Sequence[Mapping[str, Any]], ranked: Sequence[Sequence[str]], gains: Mapping[str, Mapping[str, int]]
) -> float:
    judged = [
        (gains[str(query["id"])], found)
        for query, found in zip(queries, ranked, strict=True)
        if gains[str(query["id"])]
    ]
    return sum(_ndcg(gain, found) for gain, found in judged) / len(judged)


def _ndcg(gain: Mapping[str, int], found: Sequence[str]) -> float:
    best = sorted(gain.values(), reverse=True)[:DEPTH]
    return _dcg([gain.get(document, 0) for document in found]) / _dcg(best)


def _dcg(values: Sequence[int]) -> float:
    return sum(value / math.log2(rank + 1) for rank, value in enumerate(values, start=1))


if __name__ == "__main__":
    main()
