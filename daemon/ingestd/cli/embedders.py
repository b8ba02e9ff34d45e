"""``ingestd embedders`` and ``ingestd embed``: what turns texts into vectors here, and what the vectors are."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ingestd.cli.common import answer, config_option, ends, json_option, load, table
from ingestd.errors import ConfigError
from ingestd.model import Role, SparseVectors
from ingestd.parts import build_embedder, device_pool
from ingestd.plugins import known, nearest, where

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ingestd.model import Vectors

SHOWN = 8
"""Numbers of a vector that are shown to a person."""


@click.command()
@json_option
@ends
def embedders(*, as_json: bool) -> None:
    """List the types of embedders that can be configured here, with their limits, and whether they are installed."""
    answer([_described(name) for name in known("embedders")], as_json=as_json, text=_listed)


@click.command()
@click.argument("name")
@click.argument("text")
@click.option(
    "--as",
    "role",
    type=click.Choice([role.value for role in Role]),
    default=Role.QUERY.value,
    show_default=True,
    help="Many models embed documents and queries in different ways.",
)
@config_option
@json_option
@ends
def embed(name: str, text: str, role: str, config_file: Path | None, *, as_json: bool) -> None:
    """Print the vectors that the configured embedder NAME has for TEXT."""
    settings = load(config_file, level="warning")
    if name not in settings.embedders:
        raise ConfigError(f"embedders.{name}: there is none of this name{nearest(name, sorted(settings.embedders))}")
    with device_pool(settings) as pool:
        embedder = build_embedder(settings, name, pool)
        try:
            info = embedder.info()
            found = embedder.embed([text], Role(role), info.kinds)
        finally:
            embedder.close()
    vectors = {kind.value: _plain(found[kind]) for kind in sorted(found)}
    answer(vectors, as_json=as_json, text=_vectors)


def _described(name: str) -> dict[str, Any]:
    """Return what is said of a type of embedders, without loading what it needs."""
    try:
        config = import_module(str(where("embedders", name))).Config
    except Exception as error:  # noqa: BLE001 - importing runs a third party's code, or asks for what is not installed
        return {"type": name, "installed": False, "error": f"{type(error).__name__}: {error}"}
    needs = list(getattr(config, "requires", ()))
    missing = [module for module in needs if find_spec(module) is None]
    return {
        "type": name,
        "outputs": list(getattr(config, "outputs", ())),
        "dimension": getattr(config, "dimensions", "the model's"),
        "texts": getattr(config, "inputs", None),
        "tokens": getattr(config, "tokens", None),
        "runs": "at an API" if hasattr(config, "inputs") else "here",
        "requires": needs,
        "installed": not missing,
        "missing": missing,
    }


def _listed(found: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        {
            "type": one["type"],
            "outputs": ", ".join(one.get("outputs", ())),
            "dimension": one.get("dimension"),
            "texts_a_request": one.get("texts"),
            "tokens_a_request": one.get("tokens"),
            "runs": one.get("runs"),
            "installed": "yes" if one["installed"] else one.get("error") or f"no: {', '.join(one['missing'])}",
        }
        for one in found
    ]
    yield from table(rows, ("type", "outputs", "dimension", "texts_a_request", "tokens_a_request", "runs", "installed"))


def _plain(vectors: Vectors) -> Any:  # noqa: ANN401 - JSON
    """Return a text's vector: a list, or for a sparse one the weights by index."""
    if isinstance(vectors, SparseVectors):
        (vector,) = (vectors[at] for at in range(len(vectors)))
        return {str(index): value for index, value in zip(vector.indices.tolist(), vector.values.tolist(), strict=True)}
    return vectors[0].tolist()


def _vectors(found: dict[str, Any]) -> Iterator[str]:
    for kind, vector in found.items():
        if isinstance(vector, dict):
            best = sorted(vector.items(), key=lambda entry: -entry[1])[:SHOWN]
            said = ", ".join(f"{at}: {value:.4f}" for at, value in best)
            yield f"{kind}: {len(vector)} weights, the greatest: {said}"
        else:
            yield f"{kind}: {len(vector)} numbers: {', '.join(f'{value:.4f}' for value in vector[:SHOWN])}, …"
