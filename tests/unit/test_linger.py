"""How long an incomplete window waits: hardly at all for a model of this machine, longer where requests are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ingestd import config
from ingestd.parts import API_LINGER, LINGER, linger_of

if TYPE_CHECKING:
    from pathlib import Path

BASE = """
state_dir = "state"
milvus.uri = "milvus"
embedders.local = { type = "hashing" }
embedders.far = { type = "openai", model = "text-embedding-3-small", api_key = "k" }
sources.inbox = { type = "folder", path = "inbox", collection = "articles" }
"""


@pytest.mark.parametrize(
    ("vectors", "said", "seconds"),
    [
        ({"dense": "local"}, None, LINGER),
        ({"dense": "far"}, None, API_LINGER),
        ({"dense": "far", "sparse": "local"}, None, API_LINGER),
        ({"dense": "far"}, 0, 0.0),
        ({"dense": "local"}, 0.5, 0.5),
    ],
)
def test_windows_for_an_api_wait_longer(
    tmp_path: Path, vectors: dict[str, str], said: float | None, seconds: float
) -> None:
    """Unless the configuration says otherwise; of two embedders the one behind an API counts."""
    fields = ", ".join(f'{field} = {{ embedder = "{embedder}" }}' for field, embedder in vectors.items())
    text = f"{BASE}collections.articles.vectors = {{ {fields} }}\n"
    file = tmp_path / "ingestd.toml"
    file.write_text(text if said is None else f"{text}embedding.linger_seconds = {said}\n")
    assert linger_of(config.load(file, {}), "articles") == seconds


def test_a_collection_without_a_model_waits_for_nothing_long(tmp_path: Path) -> None:
    """Full text alone: Milvus makes its vectors."""
    file = tmp_path / "ingestd.toml"
    file.write_text(f'{BASE}collections.articles.vectors = {{ words = {{ function = "bm25" }} }}\n')
    assert linger_of(config.load(file, {}), "articles") == LINGER
