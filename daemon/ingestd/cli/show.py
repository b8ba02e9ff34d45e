"""``ingestd config show``: the settings in force, with secrets masked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ingestd.cli.common import answer, config_option, ends, json_option, load
from ingestd.config import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@click.group("config")
def configuration() -> None:
    """The configuration."""


@configuration.command("show")
@config_option
@json_option
@ends
def show(config_file: Path | None, *, as_json: bool) -> None:
    """Print the settings in force, from file, secrets and environment, with secrets masked."""
    answer(shown(load(config_file, level="warning")), as_json=as_json, text=lambda tree: _lines("", tree))


def _lines(path: str, value: Any) -> Iterator[str]:  # noqa: ANN401 - walks plain values
    """Yield ``key.path = value`` for each setting, as TOML writes values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _lines(f"{path}.{key}" if path else key, inner)
    elif value is not None:
        yield f"{path} = {json.dumps(value, ensure_ascii=False)}"
