"""``ingestd produce``: files and JSON Lines onto a Kafka topic, for backfills and for trying things out."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestd.cli.common import answer, config_option, ends, json_option, load, say
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError, IngestError
from ingestd.ops import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ingestd.sources._kafka.producing import Documents, LineError, Outgoing, Producer

STDIN = Path("-")
STDIN_NAME = "standard input"
JSON_LINES = frozenset({".jsonl", ".ndjson"})
SHOWN = 10
"""The most ids that people are told."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the brokers are, and how they are spoken to."""

    servers: tuple[str, ...]
    tls: Any = None
    sasl: Any = None
    tombstones: bool = False
    """Whether deletes have no value: the source would not read ours."""


@click.command()
@click.argument("files", nargs=-1, metavar="FILE…", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@click.option("--topic", required=True, help="The topic.")
@click.option("--source", help="The Kafka source whose brokers these are; default: the only one configured.")
@click.option("--bootstrap", metavar="HOST:PORT", help="A broker, in place of a configuration.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "files", "jsonl"]),
    default="auto",
    show_default=True,
    help="auto: .jsonl and .ndjson hold an event a line, all else is a document.",
)
@click.option("--delete", "deleted", metavar="ID", multiple=True, help="Delete a document; can be given several times.")
@click.option("--id-prefix", default="", help="Put before the ids that files get.")
@click.option("--content-type", help="The files' media type; default: by content and name.")
@click.option("--create", is_flag=True, help="Make the topic if it is not there.")
@click.option("--partitions", type=click.IntRange(min=1), help="With --create: its partitions; default: 1.")
@config_option
@json_option
@ends
def produce(
    *,
    files: tuple[Path, ...],
    topic: str,
    source: str | None,
    bootstrap: str | None,
    form: str,
    deleted: tuple[str, ...],
    id_prefix: str,
    content_type: str | None,
    partitions: int | None,
    config_file: Path | None,
    create: bool,
    as_json: bool,
) -> Exit:
    """Put documents, or events about them, on a Kafka topic.

    FILE is a file of JSON Lines with an event each ({"id": …, "text": …}), any other file, a directory (all files below
    it, hidden ones left out), or - for JSON Lines from standard input. A file's id is its name, or its path below the
    directory that was named; NAME.meta.json beside it says its metadata. A record's key is its document's id.

    What is written is what a Kafka source reads by default (format = { type = "json" } without fields). For a source
    of another format FILEs are refused, and --delete sends a null value with the id as its key.
    """
    if not files and not deleted:
        raise click.UsageError("nothing to produce: name a FILE, - for standard input, or --delete ID")
    if partitions is not None and not create:
        raise click.UsageError("--partitions goes with --create")
    if bootstrap is not None and source is not None:
        raise click.UsageError("either --source or --bootstrap")
    target = _target(config_file, source, bootstrap, files=bool(files), deleted=bool(deleted))
    # Beyond the usage: the client takes a while to import, and no other command needs it.
    from ingestd.extractors._kind import kind_of  # noqa: PLC0415
    from ingestd.sources._kafka.producing import (  # noqa: PLC0415
        Documents,
        LineError,
        Producer,
        deletes,
        ensure_topic,
    )
    from ingestd.sources._kafka.security import client_options  # noqa: PLC0415

    options = client_options(target.tls, target.sasl)
    there = ensure_topic(target.servers, options, topic, create=create, partitions=partitions or 1)
    if partitions is not None and there not in {0, partitions}:
        say(f"the topic {topic} is there already, with {there} partitions: it keeps them", err=True)
    documents = Documents(kind_of, id_prefix, content_type)
    producer = Producer(target.servers, options, topic)
    try:
        groups = [_outgoing(files, form, documents), deletes(deleted, tombstones=target.tombstones)]
        fault, acknowledged = _send(producer, groups)
    finally:
        producer.close()
    done = producer.produced
    spread = dict(sorted(done.partitions.items()))
    found = {"produced": done.total, "topic": topic, "partitions": spread, "deletes": done.deletes}
    answer(found, as_json=as_json, text=_text)
    if fault is not None:
        say(f"stopped: {fault}", err=True)
    if acknowledged and isinstance(fault, LineError):
        say(_how_to_go_on(fault), err=True)
    if isinstance(fault, ConfigError):
        return Exit.CONFIG
    return Exit.DONE if fault is None else Exit.FAILURE


def _target(
    config_file: Path | None, source: str | None, bootstrap: str | None, *, files: bool, deleted: bool
) -> _Target:
    """Return where things go.

    Args:
        config_file: The configuration, if one is named.
        source: The source, if one is named.
        bootstrap: The brokers, in place of a configuration.
        files: Whether documents or events are to be written.
        deleted: Whether documents are to be deleted.

    Raises:
        ConfigError: The source would not read what is to be written.
    """
    if bootstrap is not None:
        log.configure("error")
        return _Target(tuple(bootstrap.split(",")))
    sources = load(config_file, level="error").sources
    kafka = {name: plugin.config for name, plugin in sources.items() if plugin.type == "kafka"}
    names = ", ".join(sorted(kafka)) or "none"
    if source is not None and source not in kafka:
        raise click.UsageError(f"there is no Kafka source {source!r}; configured: {names}")
    if source is None and len(kafka) != 1:
        raise click.UsageError(f"say which brokers, by --source or --bootstrap; Kafka sources configured: {names}")
    name = source or next(iter(kafka))
    config: Any = kafka[name]
    ours = config.format.type == "json" and config.format.fields is None
    if files and not ours:
        raise ConfigError(
            f"sources.{name}.format: the source reads another shape than ingestd produce writes; send documents with "
            'what writes them there, or to a topic of a source with format = { type = "json" } and no fields'
        )
    tombstones = deleted and not (ours and "delete" in config.format.op_values.delete)
    if tombstones:
        _refuse_tombstones(name, config)
    return _Target(config.bootstrap_servers, config.tls, config.sasl, tombstones)


def _refuse_tombstones(name: str, config: Any) -> None:  # noqa: ANN401 - a plug-in's settings
    """Refuse deletes by null values with ids as keys where the source does not read them.

    Raises:
        ConfigError: It does not.
    """
    if config.id_from == "value":
        raise ConfigError(
            f"sources.{name}.id_from: a delete for this format is a null value with the id as its key, and "
            'id_from = "value" ignores keys; delete with what writes the topic'
        )
    if getattr(config.format, "key_format", "text") != "text":
        # An id as a bare key would not be read, and one dressed up as JSON would go to another partition than the
        # connector's own key of the same row.
        raise ConfigError(
            f"sources.{name}.format.key_format: keys are {config.format.key_format} here, and ingestd produce writes "
            "ids as they are; delete with what writes the topic"
        )


def _outgoing(files: Iterable[Path], form: str, documents: Documents) -> Iterator[Outgoing]:
    from ingestd.sources._kafka.producing import lines  # noqa: PLC0415 - imports the client

    for path in files:
        if path == STDIN:
            yield from lines(sys.stdin.buffer, STDIN_NAME)
        elif form == "jsonl" or (form == "auto" and path.suffix.lower() in JSON_LINES and not path.is_dir()):
            with path.open("rb") as file:
                yield from lines(file, str(path))
        else:
            yield from documents.under(path)


def _send(producer: Producer, groups: Iterable[Iterator[Outgoing]]) -> tuple[IngestError | None, bool]:
    """Produce until something fails; return what, and whether all that was handed in before was acknowledged."""
    fault: IngestError | None = None
    try:
        for group in groups:
            for record in group:
                producer.send(record)
    except IngestError as error:
        fault = error
    try:
        producer.finish()
    except IngestError as error:
        return fault or error, False
    return fault, True


def _how_to_go_on(fault: LineError) -> str:
    """Say what was sent of a file with a bad line, and the command for the rest."""
    name, number = shlex.quote(fault.name), fault.number
    rest = f"tail -n +{number} {name} |" if fault.name != STDIN_NAME else f"… | tail -n +{number} |"
    return (
        f"the lines before line {number} were sent; this line, those after it, later FILEs and --delete were not. "
        f"Mend the line (or go on with {number + 1} to leave it out), then: {rest} ingestd produce … -"
    )


def _text(found: dict[str, Any]) -> list[str]:
    count, where = found["produced"], found["partitions"]
    spread = f" ({', '.join(f'partition {one}: {many}' for one, many in where.items())})" if where else ""
    told = [f"produced {count} event{'' if count == 1 else 's'} to {found['topic']}{spread}"]
    ids = found["deletes"]
    if ids:
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        told.append(f"among them deletes of {', '.join(ids[:SHOWN])}{more}")
    return told
