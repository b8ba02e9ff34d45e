"""``ingestd search``: what is in a collection, by meaning."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ingestd.cli.common import answer, config_option, ends, json_option, load
from ingestd.search import Mode, searcher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.model import Hit
    from ingestd.search import Searcher

QUERIES = 64
"""Queries that are asked at a time, with ``-``."""
WIDTH = 300
"""Characters of a hit's text that are shown to a person."""


@click.command()
@click.argument("collection")
@click.argument("query")
@click.option("--mode", type=click.Choice([mode.value for mode in Mode]), default=None, help="Default: hybrid.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=10, show_default=True, help="The most hits.")
@config_option
@json_option
@ends
def search(
    collection: str, query: str, mode: str | None, limit: int, config_file: Path | None, *, as_json: bool
) -> None:
    """Search COLLECTION for QUERY; with - as QUERY, for each line of standard input."""
    if not query.strip():
        raise click.UsageError("QUERY is blank: nothing to look for")
    settings = load(config_file, level="warning")
    wish = Mode(mode) if mode else None
    with searcher(settings, collection) as found:
        if query != "-":
            _print(found, [query], wish, limit, as_json=as_json)
            return
        batch: list[str] = []
        for line in sys.stdin:
            batch.append(line.rstrip("\n"))
            if len(batch) == QUERIES or sys.stdin.isatty():
                _print(found, batch, wish, limit, as_json=as_json)
                batch = []
        if batch:
            _print(found, batch, wish, limit, as_json=as_json)


def _print(found: Searcher, queries: list[str], mode: Mode | None, limit: int, *, as_json: bool) -> None:
    for hits in found.search(queries, mode, limit):
        answer([asdict(hit) for hit in hits], as_json=as_json, text=lambda _value, hits=hits: _text(hits))  # type: ignore[misc]
    sys.stdout.flush()


def _text(hits: list[Hit]) -> Iterator[str]:
    if not hits:
        yield "nothing found"
    for rank, hit in enumerate(hits, start=1):
        shown = " ".join(hit.text.split())
        shown = shown if len(shown) <= WIDTH else shown[: WIDTH - 1] + "…"
        yield f"{rank:>3}. {hit.document_id}  #{hit.chunk_index}  {hit.score:.4f}"
        yield f"     {shown}"
