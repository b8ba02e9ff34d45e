"""Texts in Milvus's filter language, and how many of them make one question."""

from __future__ import annotations

import pytest

from ingestd.milvus.expression import keepable, one_of, quoted, runs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inbox/a.txt", '"inbox/a.txt"'),
        ('say "x"', r'"say \"x\""'),
        ("it's", '"it\'s"'),
        ("a\\", r'"a\\"'),
        ("\\u4e2d", r'"\\u4e2d"'),
        ("a\nb\r\tc", r'"a\nb\r\tc"'),
        ("\x00\x1f\x7f\u2028", '"\x00\x1f\x7f\u2028"'),
        ("😀 {x} 100%", '"😀 {x} 100%"'),
        ("", '""'),
    ],
)
def test_only_what_every_server_must_have_escaped_is(text: str, expected: str) -> None:
    """Five characters are escaped; Milvus Lite knows no escape for any other, and takes it as it stands."""
    assert quoted(text) == expected


def test_one_of_many() -> None:
    """The texts stand in a list, in their order."""
    assert one_of("document_id", ["a", 'b"']) == r'document_id in ["a", "b\""]'


def test_runs_end_by_number_and_by_bytes() -> None:
    """No run is over either limit, but for a text that is too long alone; order stays and nothing is lost."""
    texts = ["a", "b", "c", "é" * 5, "d", "e" * 20, "f"]
    assert list(runs(texts, 3, 11)) == [["a", "b", "c"], ["é" * 5, "d"], ["e" * 20], ["f"]]
    assert list(runs([], 3, 11)) == []
    assert [len(run) for run in runs(["é" * 2048] * 40, 1000)] == [16, 16, 8]


def test_what_no_column_can_hold_is_not_asked_for() -> None:
    """Half a character, and a text over the column's bytes; each of the others once, in order."""
    assert keepable(["b", "é" * 3, "half \udc80", "a", "b", "é" * 2], 4) == ["b", "a", "é" * 2]
