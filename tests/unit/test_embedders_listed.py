"""``ingestd embedders``: what is not installed, or cannot be imported, is listed as such, and hides nothing else."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ingestd.cli.embedders import embedders

if TYPE_CHECKING:
    from pathlib import Path


def listed() -> dict[str, dict[str, Any]]:
    """Return what the command says of each type."""
    done = CliRunner().invoke(embedders, ["--json"])
    assert done.exit_code == 0, done.output
    return {one["type"]: one for one in json.loads(done.stdout)}


def line(name: str) -> str:
    """Return what the command says of a type to a person."""
    done = CliRunner().invoke(embedders, [])
    assert done.exit_code == 0, done.output
    (found,) = [line for line in done.stdout.splitlines() if line.split()[0] == name]
    return found


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("bge_m3", "FlagEmbedding"),
        ("instructor", "sentence_transformers"),
        ("mgte", "transformers"),
        ("model2vec", "model2vec"),
        ("sentence_transformers", "torch"),
        ("splade", "sentence_transformers"),
    ],
)
def test_a_missing_library_is_named(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type is listed, as not installed for want of this one; what needs no library is installed as before."""
    for module in {"torch", "transformers", "sentence_transformers", "FlagEmbedding", "model2vec"} - {library}:
        monkeypatch.setitem(sys.modules, module, sys)  # as if it were installed, wherever this runs
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not
    said = listed()[name]
    assert (said["installed"], said["missing"]) == (False, [library])
    assert library in said["requires"]
    assert line(name).endswith(f"no: {library}")
    assert listed()["openai"]["installed"]
    assert line("openai").endswith("yes")


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an installed embedder of somebody else's whose import fails."""
    (tmp_path / "their_embedder.py").write_text("import a_library_that_nobody_has\n")
    info = tmp_path / "their_embedder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-embedder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ingestd.embedders]\ntheirs = their_embedder\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return "theirs"


def test_one_that_cannot_be_imported_is_listed_with_why(theirs: str) -> None:
    """And all others are listed beside it."""
    said = listed()
    assert said[theirs] == {
        "type": theirs,
        "installed": False,
        "error": "ModuleNotFoundError: No module named 'a_library_that_nobody_has'",
    }
    assert said.keys() > {"hashing", "openai", "tei"}
    assert line(theirs).endswith("ModuleNotFoundError: No module named 'a_library_that_nobody_has'")
