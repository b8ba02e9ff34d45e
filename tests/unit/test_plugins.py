"""From a name to a plug-in."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from ingestd.errors import ConfigError
from ingestd.plugins import Plugin, faults, known, nearest, parse

IDENTITY = """
from ingestd.plugins import parse
print(parse("embedders", "embedders.words", {"type": "hashing"}).identity().hex())
"""


def test_known_are_the_files_without_an_underscore() -> None:
    """A file in the folder is a plug-in; ``_name.py`` is shared code."""
    assert known("chunkers") == ["sentences", "stable", "whole"]
    assert {"csv", "html", "json", "markdown", "text"} <= set(known("extractors"))


def test_a_table_becomes_its_plug_ins_settings() -> None:
    """``type`` picks the module, the rest is its ``Config``; where a type goes without saying, it may be left out."""
    plugin = parse("chunkers", "x", {"type": "sentences", "max_tokens": 99})
    assert (plugin.kind, plugin.type, plugin.module) == ("chunkers", "sentences", "ingestd.chunkers.sentences")
    assert plugin.config.model_dump()["max_tokens"] == 99
    assert parse("chunkers", "x", {}, default="stable").type == "stable"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "x.type: missing; one of sentences, stable, whole"),
        ({"type": 3}, "x.type: missing; one of sentences, stable, whole"),
        ({"type": "stabel"}, "x.type: there is no 'stabel'; did you mean 'stable'?"),
        ({"type": "zzz"}, "x.type: there is no 'zzz'; known: sentences, stable, whole"),
        ({"type": "stable", "max_tokens": "many"}, "x.max_tokens: Input should be a valid integer"),
        ({"type": "stable", "max_tokens": 32, "min_tokens": 20}, "x: min_tokens = 20 is more than half"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(settings: dict[str, object], said: str) -> None:
    """One line a fault, for people."""
    with pytest.raises(ConfigError) as caught:
        parse("chunkers", "x", settings)
    [fault] = caught.value.faults
    assert fault.startswith(said)
    assert "\n" not in fault


def test_the_identity_tells_settings_apart() -> None:
    """Type, revision and every setting count: rows made otherwise are made again."""
    plain = parse("chunkers", "x", {"type": "stable"})
    assert plain.identity() == parse("chunkers", "y", {"type": "stable", "max_tokens": 256}).identity()
    others = [
        parse("chunkers", "x", {"type": "stable", "max_tokens": 255}),
        parse("chunkers", "x", {"type": "sentences"}),
        Plugin("chunkers", "stable", "m", Revised()),
    ]
    assert len({plain.identity(), *(other.identity() for other in others)}) == 4


class Revised(BaseModel):
    """Settings of a plug-in that cuts otherwise than it did."""

    model_config = ConfigDict(frozen=True)
    revision: ClassVar[int] = 2


def test_a_key_called_revision_is_a_setting_like_others() -> None:
    """A model on a hub has revisions of its own: they count as settings, also where none is named."""
    plain = parse("embedders", "x", {"type": "sentence_transformers", "model": "a/b"})
    other = parse("embedders", "x", {"type": "sentence_transformers", "model": "a/b", "revision": "v2"})
    assert (plain.revision, other.revision) == (0, 0)
    assert plain.identity() != other.identity()


def test_the_identity_is_the_same_in_every_process() -> None:
    """A set has another order in each: rows would be made again at each start."""
    found = {
        subprocess.run(
            [sys.executable, "-c", IDENTITY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_the_nearest_name_is_hinted_at() -> None:
    """Or all of them, where none is near; or nothing, where there is none."""
    assert nearest("paht", ["path", "include"]) == "; did you mean 'path'?"
    assert nearest("qqq", ["path", "include"]) == "; known: path, include"
    assert nearest("qqq", []) == ""


class Inner(BaseModel):
    """A table inside a table."""

    model_config = ConfigDict(extra="forbid")
    depth: int = 0


class Outer(BaseModel):
    """Tables in every place that they can be in."""

    model_config = ConfigDict(extra="forbid")
    one: Inner = Inner()
    maybe: Inner | None = None
    by_name: dict[str, Inner] = {}
    deep: dict[str, dict[str, Inner]] = {}
    several: list[Inner] = []
    fixed: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"one": {"dept": 1}}, "t.one.dept: unknown key; did you mean 'depth'?"),
        ({"maybe": {"dept": 1}}, "t.maybe.dept: unknown key; did you mean 'depth'?"),
        ({"by_name": {"a": {"dept": 1}}}, "t.by_name.a.dept: unknown key; did you mean 'depth'?"),
        ({"deep": {"a": {"b": {"dept": 1}}}}, "t.deep.a.b.dept: unknown key; did you mean 'depth'?"),
        ({"several": [{"dept": 1}]}, "t.several.0.dept: unknown key; did you mean 'depth'?"),
        ({"fixed": [{}, {"dept": 1}]}, "t.fixed.1.dept: unknown key; did you mean 'depth'?"),
        ({"on": {}}, "t.on: unknown key; did you mean 'one'?"),
    ],
)
def test_an_unknown_key_has_the_nearest_one_of_its_own_table(settings: dict[str, object], said: str) -> None:
    """However deep the table lies."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(settings)
    assert faults(caught.value, "t", Outer) == [said]
