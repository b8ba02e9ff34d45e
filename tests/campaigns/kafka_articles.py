"""The campaign of two ways: the same documents from a folder and from a topic give the same rows and the same answers.

2,225 news articles and the 1,400 abstracts of the Cranfield test set are ingested twice by the quick start's models:
as files of a folder, and as the events that ``ingestd produce`` makes of these files, from a real broker. Then
everything is compared: texts, keys, metadata, dense and sparse vectors, and what ``ingestd search`` answers. Prints one
JSON object a step; ends with 0 when every claim held, and with a traceback at the first that did not.

What both ways share could be wrong in both, so the folder's rows are held against an independent fold of its files too.
Comparing with answers that were kept from an earlier run was turned down: they age with every model and every index.

    python -m tests.campaigns.kafka_articles --articles 2225 --cranfield ../shared/data/cranfield
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import tomllib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks import cranfield
from tests.campaigns.kafka_same import agree, compare, read
from tests.fixtures.brokers import Tansu
from tests.fixtures.corpus import ARTICLES, articles, fold
from tests.fixtures.daemon import COLLECTION, workplace_in

from ingestd.ops import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.campaigns.kafka_same import Hit
    from tests.fixtures.daemon import Workplace

ROOT = Path(__file__).parents[2]
HOURS = 4 * 3600.0
SOURCE = "inbox"
"""The folder's; its documents' ids begin with it, and so do those that are produced."""
PARTITIONS = 4
LATIN = "sports/199.txt"
"""The one article that is not UTF-8: it goes out in base64."""
EVERY = 3
"""Each so many-th article has a sidecar, and the one above."""
DEPTH = 100
"""The hits that are asked for: as many as a hybrid answer is made of."""
SHOWN = 10
"""The hits that a person looks at."""
MODES = ("dense", "sparse", "hybrid")
QUERIES = (
    "which film was nominated for the most Academy Awards",
    "Greek sprinters missed a drugs test before the Olympics",
    "takeover bid for a football club by an American tycoon",
    "why are oil prices rising",
    "the Japanese economy slips back into recession",
    "will identity cards be compulsory in Britain",
    "tax promises in the general election campaign",
    "how to get rid of spyware and viruses on a computer",
    "people play games and watch video on mobile phones",
    "legal music downloads outsell singles",
    "Wales win the grand slam in the Six Nations",
    "the dollar falls against the euro because of the trade deficit",
)


class Ways(NamedTuple):
    """The same documents, ingested both ways."""

    folder: Workplace
    kafka: Workplace


def main() -> None:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=ARTICLES, metavar="N", help="how many, spread; 0: none")
    parser.add_argument(
        "--cranfield", type=Path, default=None, metavar="FOLDER", help="the test set's; default: it is left out"
    )
    parser.add_argument("--folder", type=Path, default=None, help="where to work, kept; default: a passing one")
    wish = parser.parse_args()
    log.configure("warning", json=True)  # of what is called here in place: the daemons have logs of their own
    with tempfile.TemporaryDirectory(prefix="campaign-") as passing, ExitStack() as stack:
        folder = wish.folder or Path(passing)
        broker = Tansu(folder / "broker")
        stack.callback(broker.kill)
        broker.start()
        if wish.articles:
            with _both_ways("articles", folder, broker, lambda inbox: _articles(inbox, wish.articles)) as ways:
                _compare_rows("articles", ways)
                _compare_answers("articles", ways, QUERIES)
        if wish.cranfield is not None:
            documents = wish.cranfield / "documents.jsonl"
            with _both_ways("cranfield", folder, broker, lambda inbox: _abstracts(documents, inbox)) as ways:
                _compare_rows("cranfield", ways)
                _judge(wish.cranfield, ways)
    _report("done")


def _articles(inbox: Path, count: int) -> None:
    """Copy so many articles that are spread over all of them; the one that is not UTF-8 is always there."""
    known = articles()
    root = known[0].parents[1]
    chosen = {known[at * len(known) // count] for at in range(min(count, len(known)))} | {root / LATIN}
    for source in sorted(chosen):
        copy = inbox / source.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def _sidecars(inbox: Path) -> None:
    """Give articles titles and metadata, for their column and for what is left."""
    for path in {*sorted(inbox.rglob("*.txt"))[::EVERY], inbox / LATIN}:
        title = path.read_text(errors="replace").partition("\n")[0].strip()
        said = {
            "title": title,
            "topic": path.parent.name,
            "words": len(path.read_bytes().split()),
            "tags": ["bbc", "£"],
        }
        path.with_name(f"{path.name}.meta.json").write_text(json.dumps(said))


def _abstracts(documents: Path, inbox: Path) -> None:
    inbox.rmdir()
    cranfield._files(documents, inbox)


@contextmanager
def _both_ways(name: str, folder: Path, broker: Tansu, fill: Callable[[Path], None]) -> Iterator[Ways]:
    """Ingest what ``fill`` puts into a folder, from the folder and from a topic."""
    with workplace_in(folder / name / "folder") as ours, workplace_in(folder / name / "kafka") as theirs:
        for workplace in (ours, theirs):
            _use_real_models(workplace)
        theirs.settings["sources"] = {"cms": _source(broker, name)}
        fill(ours.inbox)
        ours.command(())  # writes the configuration, which the fold reads
        expected = fold(ours.inbox, ours.config_file, SOURCE)
        # More than have rows: two abstracts are empty.
        documents = sum(path.is_file() for path in ours.inbox.rglob("*"))
        if name == "articles":
            _sidecars(ours.inbox)

        totals = _timed(f"{name}: from the folder", ours)
        assert documents == totals["accepted"] == totals["written"], totals
        assert expected == ours.rows(), "the folder's rows are not those that its files should have"

        _produce(name, ours.inbox, theirs)
        totals = _timed(f"{name}: from the topic", theirs)
        assert documents == totals["accepted"] == totals["written"], totals
        _produce(name, ours.inbox, theirs)
        totals = _timed(f"{name}: from the topic, produced again", theirs)
        assert (documents, documents, 0) == (totals["accepted"], totals["unchanged"], totals["chunks_embedded"]), totals
        assert [] == theirs.letters()
        yield Ways(ours, theirs)


def _use_real_models(workplace: Workplace) -> None:
    settings = tomllib.loads((ROOT / "config" / "quickstart.toml").read_text())
    for table in ("embedders", "collections"):
        workplace.settings[table] = settings[table]
    for embedder in settings["embedders"]:
        # What "auto" takes depends on the machine, and may have 16 bits: the bounds below are those of 32.
        workplace.configure(f"embedders.{embedder}.dtype", "float32")
    workplace.configure(f"collections.{COLLECTION}.fields.topic", {"type": "VARCHAR", "max_length": 32})


def _source(broker: Tansu, topic: str) -> dict[str, Any]:
    source = tomllib.loads((ROOT / "config" / "kafka-quickstart.toml").read_text())["sources"]["cms"]
    return {**source, "bootstrap_servers": [broker.bootstrap], "topics": [topic], "group_id": topic}


def _produce(topic: str, files: Path, workplace: Workplace) -> None:
    began = time.monotonic()
    prefix = ("--id-prefix", f"{SOURCE}/")
    options = ("--topic", topic, "--create", "--partitions", str(PARTITIONS), "--json")
    answer = workplace.ask("produce", *options, *prefix, str(files), timeout=HOURS)
    assert answer.code == 0, answer.err
    _report(f"{topic}: produced", seconds=round(time.monotonic() - began, 1), **answer.json)


def _timed(step: str, workplace: Workplace) -> Mapping[str, int]:
    began = time.monotonic()
    totals = workplace.once(timeout=HOURS)
    _report(step, seconds=round(time.monotonic() - began, 1), totals=totals)
    return totals


def _compare_rows(name: str, ways: Ways) -> None:
    ours, theirs = read(ways.folder), read(ways.kafka)
    _report(f"{name}: rows", **compare(ours, theirs))


def _compare_answers(name: str, ways: Ways, queries: Sequence[str]) -> dict[str, list[list[list[Hit]]]]:
    """Compare the best hits of each query in each mode; return all hits: by mode, for each way, for each query."""
    answers = {mode: [_ask(workplace, queries, mode) for workplace in ways] for mode in MODES}
    known = [
        all(_ids(lists[0][at]) == _ids(lists[1][at]) for lists in (answers["dense"], answers["sparse"]))
        for at in range(len(queries))
    ]
    for mode, (ours, theirs) in answers.items():
        assert all(ours), f"{mode}: nothing is found"
        same = [_ids(one)[:SHOWN] == _ids(two)[:SHOWN] for one, two in zip(ours, theirs, strict=True)]
        alike = [_texts(one)[:SHOWN] == _texts(two)[:SHOWN] for one, two in zip(ours, theirs, strict=True)]
        said: dict[str, object] = {
            "queries": len(queries),
            "identical_top_10": round(sum(same) / len(same), 4),
            # Articles that are there twice have equal scores, in either order.
            "identical_top_10_by_text": round(sum(alike) / len(alike), 4),
        }
        if mode == "hybrid":
            # It is made of the other two by their ranks alone: where those are the same, it has to be.
            said["both_lists_identical"] = sum(known)
            assert all(one for one, both in zip(same, known, strict=True) if both)
        else:
            said["largest_difference_of_scores"] = agree(mode, ours, theirs)
        _report(f"{name}: answers, {mode}", **said)
    return answers


def _ask(workplace: Workplace, queries: Sequence[str], mode: str) -> list[list[Hit]]:
    questions = "".join(" ".join(query.split()) + "\n" for query in queries)
    asked = ("search", COLLECTION, "-", "--mode", mode, "--limit", str(DEPTH), "--json")
    answer = workplace.ask(*asked, stdin=questions, timeout=HOURS)
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


def _ids(hits: Sequence[Hit]) -> list[str]:
    return [hit["id"] for hit in hits]


def _texts(hits: Sequence[Hit]) -> list[str]:
    return [hit["text"] for hit in hits]


def _judge(data: Path, ways: Ways) -> None:
    """Compare the answers to the test set's queries, and how good they are."""
    queries = [json.loads(line) for line in (data / "queries.jsonl").open()]
    gains = cranfield._gains(data / "qrels.tsv")
    answers = _compare_answers("cranfield", ways, [query["text"] for query in queries])
    for mode, lists in answers.items():
        ranked = [
            [cranfield._documents([hit["document_id"] for hit in hits[: cranfield.CHUNKS]]) for hits in answered]
            for answered in lists
        ]
        folder, kafka = (cranfield._mean(queries, found, gains) for found in ranked)
        _report(f"cranfield: nDCG@10, {mode}", folder=round(folder, 4), kafka=round(kafka, 4))
        assert abs(folder - kafka) < 0.001


def _report(step: str, **said: object) -> None:
    sys.stdout.write(json.dumps({"step": step, **said}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
