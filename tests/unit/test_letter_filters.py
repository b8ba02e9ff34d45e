"""Which dead letters a command is about."""

from __future__ import annotations

import time

import click
import pytest
from click.testing import CliRunner

from ingestd.cli.letter_filters import Filters, letter_filters
from ingestd.model import DeadLetter, DocumentKey, Failure, Op, Stage

DAY = 86_400.0


def letter(age: float = 0.0) -> DeadLetter:
    """Return a letter that failed last so many seconds ago."""
    failure = Failure(Stage.CHUNK, "DocumentError", "too many chunks")
    key = DocumentKey("articles", "inbox/a")
    return DeadLetter(1, key, Op.UPSERT, "inbox", "/a", failure, 1, 0.0, time.time() - age, None, "f")


def chosen(*options: str) -> Filters:
    """Return what a command gets."""
    found: list[Filters] = []

    @click.command()
    @letter_filters
    def command(filters: Filters) -> None:
        found.append(filters)

    answer = CliRunner().invoke(command, list(options))
    if answer.exit_code:
        raise click.UsageError(answer.output)
    return found[0]


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ("", True),
        ("--source inbox --collection articles --stage chunk --error DocumentError", True),
        ("--source cms", False),
        ("--collection notes", False),
        ("--stage embed", False),
        ("--error TransientError", False),
        ("--older-than 1d", True),
        ("--older-than 23.5h --newer-than 1w", True),
        ("--older-than 0s", True),
        ("--newer-than 86500s", True),
        ("--newer-than 1439m", False),
        ("--older-than 2d", False),
    ],
)
def test_a_letter_has_to_fit_every_filter(options: str, *, fits: bool) -> None:
    """It failed a day ago."""
    filters = chosen(*options.split())
    assert filters.fit(letter(DAY)) is fits
    assert bool(filters) is bool(options)


@pytest.mark.parametrize("options", ["--older-than 2", "--newer-than soon", "--newer-than -1d", "--stage chunks"])
def test_what_is_no_age_and_no_stage_is_refused(options: str) -> None:
    """With what would be one."""
    with pytest.raises(click.UsageError, match=r"as in 90m or 2d|is not one of"):
        chosen(*options.split())
