"""``ingestd check``: one line for each thing, none hidden by another, and nothing made by looking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingestd import config
from ingestd.cli.check import _checks
from ingestd.errors import ConfigError
from ingestd.milvus.lite import Lite
from ingestd.parts import ADDRESS_FILE, SystemClock, open_store, tokenizer_of

if TYPE_CHECKING:
    from ingestd.model import Check

EMBEDDERS = """
[embedders.words]
type = "hashing"
"""
COLLECTIONS = """
[collections.articles]
vectors.dense = { embedder = "words", output = "dense" }
"""
SOURCES = """
[sources.inbox]
type = "folder"
path = "inbox"
collection = "articles"
"""
NOWHERE = """
[embedders.other]
type = "sentence_transformers"
model = "package:nope/model"

[collections.notes]
vectors.dense = { embedder = "other" }
"""
TWO_KINDS = """
[collections.notes]
vectors.vector = { embedder = "words" }
"""


@pytest.fixture(autouse=True)
def _inbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a folder with an inbox and nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("inbox").mkdir()


def settings(*parts: str) -> config.Settings:
    """Return a configuration that consists of parts."""
    path = Path("ingestd.toml")
    path.write_text("\n".join(parts))
    return config.load(path)


def checked(*parts: str) -> dict[str, Check]:
    """Return what is said of a configuration, by name."""
    found = list(_checks(settings(*parts)))
    by_name = {check.name: check for check in found}
    assert len(by_name) == len(found)
    return by_name


def test_looking_makes_nothing() -> None:
    """Before the first start neither the state nor Milvus Lite is there, and they are not after it."""
    found = checked(EMBEDDERS, COLLECTIONS, SOURCES)
    assert all(check.ok for check in found.values()), found
    assert {"state", "inbox:root", "model:words", "milvus", "collection:articles"} <= found.keys()
    assert found["state"].detail == "var/state will be made"
    assert found["milvus"].detail == "var/milvus will be made"
    assert found["collection:articles"].detail == "will be created"
    assert {entry.name for entry in Path.cwd().iterdir()} == {"inbox", "ingestd.toml"}


def test_what_cannot_be_made_is_told_and_the_sources_are_looked_at_all_the_same() -> None:
    """A file in the place of a folder stops the state and Milvus, and each line has its cure."""
    Path("var").write_text("")
    found = checked(EMBEDDERS, COLLECTIONS, SOURCES)
    assert {name for name, check in found.items() if not check.ok} == {"state", "milvus"}
    assert found["state"].detail.endswith("/var is no folder")
    assert "state_dir" in found["state"].cure
    assert "milvus.uri" in found["milvus"].cure
    assert found["inbox:root"].ok


@pytest.mark.parametrize("damaged", [False, True])
def test_a_state_that_is_there_is_opened(*, damaged: bool) -> None:
    """One that cannot be used is told once, and the sources are looked at all the same."""
    now = settings(EMBEDDERS, COLLECTIONS, SOURCES)
    open_store(now, SystemClock()).close(clean=True)
    if damaged:
        (now.state_dir / "lock").unlink()
        (now.state_dir / "lock").mkdir()
    found = checked(EMBEDDERS, COLLECTIONS, SOURCES)
    assert found["state"].ok is not damaged
    assert found["inbox:root"].ok


def test_no_source_is_a_failure_with_a_cure() -> None:
    """The daemon would have nothing to do."""
    found = checked(EMBEDDERS, COLLECTIONS)
    assert {name for name, check in found.items() if not check.ok} == {"sources"}
    assert "[sources.NAME]" in found["sources"].cure


def test_a_model_that_is_not_there_stops_its_own_collection_alone() -> None:
    """With the embedder's path in the configuration."""
    found = checked(EMBEDDERS, COLLECTIONS, SOURCES, NOWHERE)
    assert {name for name, check in found.items() if not check.ok} == {"model:other", "collection:notes"}
    assert found["model:other"].detail.startswith("embedders.other")
    assert "model: the package nope is not installed" in found["model:other"].detail


@pytest.mark.lite
def test_a_fault_of_one_collection_is_its_own() -> None:
    """Not Milvus's, and the others are compared all the same."""
    now = settings(EMBEDDERS, TWO_KINDS, COLLECTIONS, SOURCES)
    path = now.milvus.path
    assert path is not None
    now.state_dir.mkdir(parents=True)
    for there in (False, True):
        if there:
            lite = Lite(path, now.state_dir / ADDRESS_FILE)
            lite.start()
            lite.close()
        found = checked(EMBEDDERS, TWO_KINDS, COLLECTIONS, SOURCES)
        assert {name for name, check in found.items() if not check.ok} == {"collection:notes"}
        assert found["collection:notes"].detail.startswith("collections.notes.vectors.vector.output: ")
        assert found["collection:notes"].cure == ""
        assert ("answers" in found["milvus"].detail) is there


def test_a_models_fault_names_its_key() -> None:
    """Where a collection's tokenizer is looked for in the daemon's own process."""
    with pytest.raises(ConfigError, match=r"^embedders\.other\.model: the package nope is not installed"):
        tokenizer_of(settings(EMBEDDERS, NOWHERE), "notes")
