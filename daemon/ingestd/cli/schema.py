"""``ingestd schema``: how the collections differ from what the configuration wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ingestd.cli.common import answer, config_option, ends, json_option, load
from ingestd.engine.runner import Exit
from ingestd.parts import is_shared, milvus, models, schema_of
from ingestd.sinks.milvus import MilvusSink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.config import Settings


@click.group()
def schema() -> None:
    """Compare collections with the configuration, and create what is absent."""


@schema.command()
@config_option
@json_option
@ends
def plan(config_file: Path | None, *, as_json: bool) -> Exit:
    """Print how the collections differ from the configuration; exit 5 when they do."""
    settings = load(config_file, level="warning")
    differences = [
        {
            "collection": sink.collection,
            "subject": difference.subject,
            "found": difference.found,
            "wanted": difference.wanted,
            "fixable": difference.fixable,
            "message": str(difference),
        }
        for sink in _sinks(settings)
        for difference in sink.plan()
    ]
    answer(differences, as_json=as_json, text=_text)
    return Exit.PLAN if differences else Exit.DONE


@schema.command()
@config_option
@json_option
@ends
def apply(config_file: Path | None, *, as_json: bool) -> None:
    """Create what is absent; refuse what cannot be changed in place."""
    settings = load(config_file, level="warning")
    done = []
    for sink in _sinks(settings):
        differences = sink.plan()
        sink.prepare()  # all that can be done in place is to create what is absent; anything else it refuses
        done += [
            {"collection": sink.collection, "message": f"created {difference.subject}: {difference.wanted}"}
            for difference in differences
        ]
    answer(done, as_json=as_json, text=lambda _value: _text(done, "nothing to do"))


def _sinks(settings: Settings) -> Iterator[MilvusSink]:
    with milvus(settings) as connection, models(settings) as embedders:
        infos = {name: embedder.info() for name, embedder in embedders.items()}
        for collection in settings.collections:
            yield MilvusSink(connection, schema_of(settings, collection, infos), shared=is_shared(settings, collection))


def _text(found: list[dict[str, Any]], none: str = "all is as configured") -> list[str]:
    return [one["message"] for one in found] or [none]
