"""A daemon with ``embedding.cache_bytes``: a text that comes again is not embedded again, wherever it comes."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemon import COLLECTION

if TYPE_CHECKING:
    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = pytest.mark.lite
TEXT = "A text about volcanoes that several documents have."


def count(daemon: Daemon, name: str) -> int:
    """Return a metric of the embedder."""
    found = re.search(rf'^{name}{{embedder="hash"}} (\S+)$', str(daemon.get("/metrics")[1]), re.MULTILINE)
    return 0 if found is None else int(float(found[1]))


def test_a_text_that_comes_again_is_not_embedded_again(workplace: Workplace) -> None:
    """In another document, after a delete, after a restart, and in a collection that is made anew; and it is found."""
    workplace.configure("embedding.cache_bytes", 10_000_000)
    workplace.write("one.txt", TEXT)
    with workplace.daemon() as daemon:
        daemon.until_settled(1)
        assert count(daemon, "ingestd_embedded_texts_total") == 1
        workplace.write("two.txt", TEXT)
        daemon.until_settled(2)
        (workplace.inbox / "one.txt").unlink()
        daemon.until_settled(3)
        workplace.write("three.txt", TEXT)
        daemon.until_settled(4)
        assert count(daemon, "ingestd_embedded_texts_total") == 1
        assert count(daemon, "ingestd_embed_cached_texts_total") == 2
        assert daemon.stop() == 0
    before = {row.document_id: row.text for row in workplace.rows()}
    assert before == {"inbox/two.txt": TEXT, "inbox/three.txt": TEXT}
    shutil.rmtree(workplace.milvus)
    with workplace.daemon() as daemon:
        daemon.until_ready()
        daemon.until(lambda: len(workplace.rows()) == 2, "the collection is filled anew")
        assert count(daemon, "ingestd_embedded_texts_total") == 0
        hits = workplace.ask("search", COLLECTION, "volcanoes", "--json").json
        assert {hit["document_id"] for hit in hits} == before.keys()
        assert daemon.stop() == 0
    assert (workplace.state / "vectors.db").exists()
    workplace.configure("embedding.cache_bytes", 0)
    workplace.write("four.txt", TEXT)
    assert workplace.once()["written"] == 1
    assert not (workplace.state / "vectors.db").exists()
