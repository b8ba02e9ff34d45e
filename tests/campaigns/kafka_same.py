"""Whether two collections hold the same, and answer the same: rows, vectors and hits, compared one by one.

Rows of one document have one key in both, because a key is made of the document's id and the chunk's text. Vectors are
equal but for the noise of 32-bit floats: a text goes through the model in a batch with others, padded to the longest of
them, and the order of the sums depends on the batch's shape. How large that is shows within one collection, where the
same text stands in several documents: up to 1.0e-7 in dense vectors and 4.4e-6 in sparse ones, and from way to way
1.3e-7 and 6.0e-6 (2,225 articles and 1,400 abstracts, float32 on a CPU). The bounds below are about ten times as wide.

Comparing answers as bare lists was turned down: hits of the same text have the same score, and which of them comes
first is the order in which they were written.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.fixtures.daemon import COLLECTION

from ingestd.milvus.client import import_pymilvus
from ingestd.milvus.lite import Lite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.fixtures.daemon import Workplace

Hit = dict[str, Any]
"""As ``ingestd search --json`` prints it."""

DENSE_NOISE = 1e-6
"""Of a component of a dense vector, whose length is 1."""
COSINE_NOISE = 1e-10
SPARSE_NOISE = 5e-5
"""Of a weight of a sparse vector; the largest weights are about 3."""
SCORE_NOISE = {"dense": 5e-6, "sparse": 2e-4}
"""Of a hit's score: a product of the vectors above with a query's."""
_ALIKE = ("id", "text", "metadata", "topic")
"""What has to be equal, beside the document and the chunk's index. Source, version and domain tell the ways apart."""
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Stored:
    """A row."""

    said: Mapping[str, Any]
    """The fields that are no vectors."""
    dense: np.ndarray[Any, np.dtype[np.float32]]
    sparse: Mapping[int, float]


Rows = dict[tuple[str, int], Stored]
"""By document and index of the chunk."""


def read(workplace: Workplace) -> Rows:
    """Return all rows that a daemon, which has ended, left in its Milvus Lite."""
    import_pymilvus()
    from pymilvus import MilvusClient  # noqa: PLC0415 - it may be imported only after its noise is turned off

    lite = Lite(workplace.milvus, workplace.root / "reader.json")
    try:
        client = MilvusClient(uri=lite.start(), timeout=60)
        try:
            client.load_collection(COLLECTION, timeout=60)
            count = client.query(COLLECTION, "", ["count(*)"], consistency_level="Strong", timeout=60)[0]["count(*)"]
            fields = ["document_id", "chunk_index", *_ALIKE, "source", "domain", "version", "dense", "sparse"]
            iterator = client.query_iterator(COLLECTION, batch_size=_PAGE, output_fields=fields, timeout=60)
            found: Rows = {}
            while page := iterator.next():
                for row in page:
                    dense, sparse = np.asarray(row.pop("dense"), np.float32), row.pop("sparse")
                    key = (row["document_id"], row["chunk_index"])
                    assert key not in found, f"twice: {key}"
                    assert np.isfinite([*dense, *sparse.values()]).all(), key
                    found[key] = Stored(row, dense, sparse)
            iterator.close()
        finally:
            client.close()
    finally:
        lite.close()
    assert count == len(found)
    return found


def compare(ours: Rows, theirs: Rows) -> dict[str, object]:
    """Check that the rows are the same; return how far their vectors are apart."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:10]
    for at, row in ours.items():
        for name in _ALIKE:
            assert row.said[name] == theirs[at].said[name], (at, name, row.said[name], theirs[at].said[name])
    dense, cosine, sparse, odd = _apart((row, theirs[at]) for at, row in ours.items())
    noise = _apart(_twins(ours))
    figures: dict[str, object] = {
        "documents": len({document for document, _ in ours}),
        "chunks": len(ours),
        "with_metadata": sum(bool(row.said["metadata"]) for row in ours.values()),
        "dense_identical": sum(np.array_equal(row.dense, theirs[at].dense) for at, row in ours.items()),
        "dense_largest_difference": dense,
        "dense_least_cosine": cosine,
        "sparse_identical": sum(row.sparse == theirs[at].sparse for at, row in ours.items()),
        "sparse_largest_difference": sparse,
        "sparse_weights_of_one_way_alone": odd,
        "same_texts_within_the_folder": {"dense": noise[0], "cosine": noise[1], "sparse": noise[2]},
    }
    assert dense <= DENSE_NOISE, figures
    assert cosine >= 1 - COSINE_NOISE, figures
    assert sparse <= SPARSE_NOISE, figures
    return figures


def agree(mode: str, ours: Sequence[Sequence[Hit]], theirs: Sequence[Sequence[Hit]]) -> float:
    """Check that answers are the same but for the order of equal scores; return how far scores are apart.

    That is so when the best scores are the same, rank by rank, and every hit has the same score in both. One that is in
    one answer alone was cut off in the other, where it has the score of the last.
    """
    worst = 0.0
    for one, two in zip(ours, theirs, strict=True):
        assert len(one) == len(two)
        worst = max([worst, *(abs(left["score"] - right["score"]) for left, right in zip(one, two, strict=True))])
        for hits, others in ((one, two), (two, one)):
            known = {hit["id"]: hit["score"] for hit in others}
            worst = max([worst, *(abs(hit["score"] - known.get(hit["id"], others[-1]["score"])) for hit in hits)])
    assert worst <= SCORE_NOISE[mode], worst
    return worst


def _apart(pairs: Iterable[tuple[Stored, Stored]]) -> tuple[float, float, float, int]:
    """Return the largest difference and the least cosine of dense vectors, the largest difference of sparse ones, and
    how many weights only one of a pair has.
    """  # noqa: D205 - one sentence
    dense, cosine, sparse, odd = 0.0, 1.0, 0.0, 0
    for one, two in pairs:
        left, right = one.dense.astype(np.float64), two.dense.astype(np.float64)
        dense = max(dense, float(np.abs(left - right).max()))
        cosine = min(cosine, float(left @ right / np.linalg.norm(left) / np.linalg.norm(right)))
        for index in one.sparse.keys() | two.sparse.keys():
            sparse = max(sparse, abs(one.sparse.get(index, 0.0) - two.sparse.get(index, 0.0)))
        odd += len(one.sparse.keys() ^ two.sparse.keys())
    return dense, cosine, sparse, odd


def _twins(rows: Rows) -> Iterable[tuple[Stored, Stored]]:
    """Yield neighbours of those rows that have the same text."""
    groups: defaultdict[str, list[Stored]] = defaultdict(list)
    for row in rows.values():
        groups[row.said["text"]].append(row)
    return itertools.chain.from_iterable(itertools.pairwise(group) for group in groups.values())
