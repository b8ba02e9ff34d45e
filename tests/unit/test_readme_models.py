"""README's table of models says what the classes say: each row is read as the daemon reads it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ingestd import config

if TYPE_CHECKING:
    from pydantic import BaseModel

README = Path(__file__).parents[2] / "README.md"
COLUMNS = ["model", "configuration", "outputs", "dimension", "batches"]


class Row(NamedTuple):
    """A row of the table, a cell a column."""

    model: str
    configuration: str
    outputs: str
    dimension: str
    batches: str


def rows() -> list[Row]:
    """Return the rows of the table under the heading Models."""
    (section,) = re.findall(r"^## Models\n(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    head, rule, *lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, rule, *lines)]
    assert cells[0] == COLUMNS
    assert set("".join(cells[1])) == {"-"}
    return [Row(*row) for row in cells[2:]]


ROWS = {row.model.split(",")[0]: row for row in rows()}


def loaded(row: Row, folder: Path) -> BaseModel:
    """Return the options of a row's embedder, read from a whole configuration that uses each of its outputs."""
    lines = re.findall(r"`([^`]+)`", row.configuration)
    assert lines, row
    assert tomllib.loads("\n".join(lines)).keys() >= {"type", "model"}
    fields = [f'vectors.{kind} = {{ embedder = "shown", output = "{kind}" }}' for kind in row.outputs.split(", ")]
    path = folder / "ingestd.toml"
    path.write_text("\n".join(["[embedders.shown]", *lines, "[collections.articles]", *fields]))
    return config.load(path, {}).embedders["shown"].config


def test_the_thirteen_are_there() -> None:
    """Each model once, and each type once."""
    types = [match for row in ROWS.values() for match in re.findall(r'`type = "(\w+)"`', row.configuration)]
    assert sorted(types) == [
        "bge_m3",
        "cohere",
        "gemini",
        "instructor",
        "jina",
        "mgte",
        "mistral",
        "model2vec",
        "nomic",
        "openai",
        "sentence_transformers",
        "splade",
        "voyage",
    ]
    assert len(rows()) == len(ROWS) == len(types)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_read_and_says_what_its_class_says(name: str, tmp_path: Path) -> None:
    """Its configuration is taken as it stands; its outputs, its dimension and its batches are those of the class."""
    row = ROWS[name]
    options = loaded(row, tmp_path)
    kind: Any = type(options)
    assert row.outputs.split(", ") == list(kind.outputs)
    said = {
        "": "dense" not in kind.outputs,
        "the model's": "dense" in kind.outputs and "dimension" not in kind.model_fields,
        "the model's, or `dimension`": "dense" in kind.outputs and "dimension" in kind.model_fields,
    }
    assert said[row.dimension], row
    limits = {word: int(number.replace(",", "")) for number, word in re.findall(r"(\d[\d,]*) (\w+)", row.batches)}
    if limits:
        assert "texts" in limits
        assert limits == {word: {"texts": kind.inputs, "tokens": kind.tokens}[word] for word in limits}
    else:
        assert row.batches == ("by tokens, for the device" if "device" in kind.model_fields else "by tokens")
        assert "batch_tokens" in kind.model_fields
        assert not hasattr(kind, "inputs")
