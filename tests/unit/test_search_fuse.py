"""Reciprocal rank fusion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.model import Hit
from ingestd.search import RANK_CONSTANT, fuse


def hits(*ids: str, score: float = 0.5) -> list[Hit]:
    """Return a ranked list."""
    return [Hit(chunk_id, f"doc {chunk_id}", 0, score, chunk_id, "inbox", {}) for chunk_id in ids]


def test_what_both_lists_have_comes_first() -> None:
    """A chunk's score is the sum of 1 / (60 + rank) over its lists, whatever the lists' own scores."""
    found = fuse([hits("a", "b", "c", score=100.0), hits("c", "d", "a", score=0.001)])
    assert [hit.id for hit in found] == ["a", "c", "b", "d"]
    scores = {hit.id: hit.score for hit in found}
    assert scores["a"] == pytest.approx(1 / 61 + 1 / 63)
    assert scores["c"] == pytest.approx(1 / 63 + 1 / 61)
    assert scores["b"] == scores["d"] == pytest.approx(1 / 62)


def test_one_list_keeps_its_order_and_an_empty_one_adds_nothing() -> None:
    """A query without a word of the sparse vectors is answered by the dense ones alone."""
    assert [hit.id for hit in fuse([hits("a", "b"), []])] == ["a", "b"]
    assert fuse([[], []]) == []


def test_equal_scores_keep_the_order_of_the_lists() -> None:
    """The same question has the same answer: of two firsts, the first list's."""
    assert [hit.id for hit in fuse([hits("x"), hits("a")])] == ["x", "a"]


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), min_size=1, max_size=4))
def test_every_hit_is_there_once_and_scores_fall(lists: list[list[str]]) -> None:
    """Nothing is lost or doubled; the score is the formula's."""
    found = fuse([hits(*ids) for ids in lists])
    assert sorted(hit.id for hit in found) == sorted({chunk_id for ids in lists for chunk_id in ids})
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    for hit in found:
        ranks = [ids.index(hit.id) + 1 for ids in lists if hit.id in ids]
        assert hit.score == pytest.approx(sum(1 / (RANK_CONSTANT + rank) for rank in ranks))
