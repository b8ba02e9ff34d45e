"""A chunker of a third party: a package with an entry point, or a module on the path, and no file of ours is touched.

Everything that it takes is in this one file, as an author would write it.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

from ingestd import config
from ingestd.errors import ConfigError
from ingestd.model import Span
from ingestd.parts import tokenizer_of
from ingestd.ports import Chunker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = '''
"""Chunks of so many words."""

import re
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ingestd.model import Span


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    revision: ClassVar[int] = 1

    words: int = Field(3, ge=1, description="The most words of a chunk.")
    marks: frozenset[str] = Field(frozenset({"a", "b", "c", "d"}), description="Of no use: a set has no order.")

    def build(self, tokenizer):
        return Words(self.words)


class Words:
    def __init__(self, words):
        self._words = words

    def split(self, text):
        found = list(re.finditer(r"\\\\S+", text))
        return [
            Span(found[at].start(), found[min(at + self._words, len(found)) - 1].end())
            for at in range(0, len(found), self._words)
        ]
'''.replace("\\\\", "\\")
SETTINGS = """
[embedders.words]
type = "hashing"

[collections.articles]
vectors.dense = { embedder = "words", output = "dense" }
chunker = { type = "%s", words = 2 }
"""
TEXT = "  One two three\nfour five.  "


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a distribution with an entry point, as a package manager would; nothing of it is imported yet."""
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").write_text("")
    (tmp_path / "their_package" / "words.py").write_text(SOURCE)
    (tmp_path / "their_package" / "broken.py").write_text("raise RuntimeError('needs a licence')\n")
    (tmp_path / "their_package" / "empty.py").write_text("")
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ingestd.chunkers]\nby-words = their_package.words\nstable = their_package.words\n"
        "broken = their_package.broken\nempty = their_package.empty\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_package"]:
        del sys.modules[name]


def load(folder: Path, chunker: str) -> config.Settings:
    """Load a configuration that names a chunker."""
    path = folder / "ingestd.toml"
    path.write_text(SETTINGS % chunker)
    return config.load(path)


@pytest.mark.parametrize("name", ["by-words", "their_package.words"])
def test_it_is_configured_by_name_and_used(installed: Path, name: str) -> None:
    """By its entry point's name, or by its module's: its options are checked, and it cuts texts."""
    settings = load(installed, name)
    plugin = settings.chunkers["articles"]
    assert (plugin.type, plugin.module, plugin.revision) == (name, "their_package.words", 1)
    chunker = plugin.build(tokenizer_of(settings, "articles"))
    assert isinstance(chunker, Chunker)
    spans = chunker.split(TEXT)
    assert spans == [Span(2, 9), Span(10, 20), Span(21, 26)]
    assert [TEXT[start:end] for start, end in spans] == ["One two", "three\nfour", "five."]
    assert config.shown(settings)["collections"]["articles"]["chunker"]["words"] == 2


def test_its_settings_are_checked_like_ours(installed: Path) -> None:
    """An unknown option has its path and the nearest name, a wrong one its reason."""
    path = installed / "ingestd.toml"
    path.write_text((SETTINGS % "by-words").replace("words = 2", "word = 2"))
    with pytest.raises(
        ConfigError, match=r"^collections\.articles\.chunker\.word: unknown key; did you mean 'words'\?$"
    ):
        config.load(path)
    path.write_text((SETTINGS % "by-words").replace("words = 2", "words = 0"))
    with pytest.raises(ConfigError, match=r"^collections\.articles\.chunker\.words: "):
        config.load(path)


def test_nothing_is_imported_before_it_is_named(installed: Path) -> None:
    """Being installed is not being run."""
    load(installed, "by-words")
    assert "their_package.words" in sys.modules
    assert "their_package.broken" not in sys.modules


def test_built_in_names_win(installed: Path) -> None:
    """Installing a package cannot change what an existing configuration means."""
    path = installed / "ingestd.toml"
    path.write_text((SETTINGS % "stable").replace(", words = 2", ""))
    assert config.load(path).chunkers["articles"].module == "ingestd.chunkers.stable"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "'broken' cannot be imported: RuntimeError: needs a licence"),
        ("empty", "their_package.empty is no plug-in: it has no Config"),
        ("by-word", "there is no 'by-word'; did you mean 'by-words'?"),
        ("their_package.nothing", "'their_package.nothing' cannot be imported: ModuleNotFoundError"),
        (".words", "'.words' cannot be imported: TypeError"),
        ("_units", "there is no '_units'"),
    ],
)
def test_one_that_cannot_be_had_is_a_fault_of_the_configuration(installed: Path, name: str, said: str) -> None:
    """Whatever its import does: one line, with the key's path."""
    with pytest.raises(ConfigError) as caught:
        load(installed, name)
    [fault] = caught.value.faults
    assert fault.startswith(f"collections.articles.chunker.type: {said}")
