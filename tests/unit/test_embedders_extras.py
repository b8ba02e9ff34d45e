"""Embedders whose libraries are extras: without them the set-up is refused, with the cure."""

from __future__ import annotations

import sys

import pytest

from ingestd.devices.worker import Load, Misconfigured, _load

LIBRARIES = {
    "bge_m3": "FlagEmbedding",
    "instructor": "sentence_transformers",
    "mgte": "transformers",
    "model2vec": "model2vec",
    "sentence_transformers": "sentence_transformers",
    "splade": "sentence_transformers",
}
"""By embedder: what it loads its model with."""


@pytest.mark.parametrize("embedder", LIBRARIES)
def test_missing_library(embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's answer names the embedder, the library, and the extra that brings it."""
    library = LIBRARIES[embedder]
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    reply = _load(Load(1, "mine", f"ingestd.embedders.{embedder}", {"model": "/nowhere"}, "cpu"), {})
    said = f"embedders.mine: the package {library} is missing: pip install 'milvus-ingestd[local]'"
    assert reply == Misconfigured([said])
