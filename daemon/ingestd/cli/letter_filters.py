"""Which dead letters a command is about: by source, collection, stage, error and age."""

from __future__ import annotations

import functools
import re
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from ingestd.model import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingestd.model import DeadLetter

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


class _Age(click.ParamType):  # type: ignore[type-arg]  # generic since 8.4 alone
    name = "age"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return an age in seconds."""
        found = _DURATION.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no age: write a number and s, m, h, d or w, as in 90m or 2d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, slots=True)
class Filters:
    """What a letter has to be; None: anything."""

    source: str | None
    collection: str | None
    stage: str | None
    error: str | None
    older_than: float | None
    """Seconds since it failed last, at least."""
    newer_than: float | None
    """Seconds since it failed last, less than that."""

    def __bool__(self) -> bool:
        """Return whether anything is asked for."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def fit(self, letter: DeadLetter) -> bool:
        """Return whether a letter is what is asked for."""
        age = time.time() - letter.last_failed_at
        return (
            self.source in {None, letter.source}
            and self.collection in {None, letter.key.collection}
            and self.stage in {None, letter.failure.stage.value}
            and self.error in {None, letter.failure.error}
            and (self.older_than is None or age >= self.older_than)
            and (self.newer_than is None or age < self.newer_than)
        )


def letter_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose dead letters; the command gets them as one argument, ``filters``."""

    @functools.wraps(command)
    def filtered(*arguments: object, **options: Any) -> object:  # noqa: ANN401 - whatever the command takes
        chosen = {field.name: options.pop(field.name) for field in fields(Filters)}
        return command(*arguments, filters=Filters(**chosen), **options)

    filtering: Callable[..., Any] = filtered
    for option in reversed(
        [
            click.option("--source", default=None, help="Only of this source."),
            click.option("--collection", default=None, help="Only of this collection."),
            click.option(
                "--stage",
                type=click.Choice([stage.value for stage in Stage]),
                default=None,
                help="Only those that failed in this stage.",
            ),
            click.option("--error", default=None, help="Only of this class of error."),
            click.option(
                "--older-than", type=_Age(), default=None, help="Only those that failed so long ago: 90m, 2d."
            ),
            click.option("--newer-than", type=_Age(), default=None, help="Only those that failed since: 90m, 2d."),
        ]
    ):
        filtering = option(filtering)
    return filtering
