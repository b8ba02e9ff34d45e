"""A folder of 2,225 real articles from its first run through edits, deletes and renames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.corpus import ARTICLES, copy_articles, fold

if TYPE_CHECKING:
    from tests.fixtures.daemon import Workplace

NOTHING = dict.fromkeys(("written", "deleted", "unchanged", "superseded", "dead_lettered", "retrying", "in_flight"), 0)


@pytest.mark.long
def test_a_folder_of_articles_is_kept_equal_to_its_collection(workplace: Workplace) -> None:
    """All are written once; an edit embeds at most two chunks; what was deleted or renamed leaves nothing behind."""
    files = copy_articles(workplace.inbox)
    first = workplace.once()
    assert {"accepted": ARTICLES, **NOTHING, "written": ARTICLES} == _events(first)
    rows = workplace.rows()
    assert fold(workplace.inbox, workplace.config_file) == rows
    assert len({row.document_id for row in rows}) == ARTICLES
    assert first["chunks_embedded"] == len(rows)

    again = workplace.once()
    assert {"accepted": ARTICLES, **NOTHING, "unchanged": ARTICLES} == _events(again)
    assert again["chunks_embedded"] == 0

    longest = max(files, key=lambda path: path.stat().st_size)
    for place in ("top", "end"):
        text = longest.read_text()
        line = f"A line that was added at the {place}."
        longest.write_text(f"{line}\n{text}" if place == "top" else f"{text}\n{line}\n")
        edited = workplace.once()
        assert {"accepted": ARTICLES, **NOTHING, "written": 1, "unchanged": ARTICLES - 1} == _events(edited)
        assert 1 <= edited["chunks_embedded"] <= 2
        assert edited["chunks_reused"] > 10

    others = [path for path in files if path != longest]
    for path in others[:10]:
        path.unlink()
    for number, path in enumerate(others[-10:]):
        path.rename(workplace.inbox / f"renamed-{number}.txt")
    changed = workplace.once()
    assert changed["deleted"] == 20
    assert changed["written"] == 10
    assert changed["unchanged"] == ARTICLES - 20
    assert fold(workplace.inbox, workplace.config_file) == workplace.rows()


def _events(totals: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in totals.items() if not name.startswith("chunks")}
