"""``ingestd produce``: files and JSON Lines onto a Kafka topic, for backfills and for trying things out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestd.cli.common import answer, config_option, ends, json_option, load, say
from ingestd.engine.runner import Exit
from ingestd.errors import ConfigError, IngestError
from ingestd.ops import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ingestd.sources._kafka.producing import Documents, Outgoing, Producer

STDIN = Path("-")
JSON_LINES = frozenset({".jsonl", ".ndjson"})


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
    """
    if not files and not deleted:
        raise click.UsageError("nothing to produce: name a FILE, - for standard input, or --delete ID")
    if partitions is not None and not create:
        raise click.UsageError("--partitions goes with --create")
    if bootstrap is not None and source is not None:
        raise click.UsageError("either --source or --bootstrap")
    servers, tls, sasl = _brokers(config_file, source, bootstrap)
    # Beyond the usage: the client takes a while to import, and no other command needs it.
    from ingestd.extractors._kind import kind_of  # noqa: PLC0415
    from ingestd.sources._kafka.producing import Documents, Producer, deletes, ensure_topic  # noqa: PLC0415
    from ingestd.sources._kafka.security import client_options  # noqa: PLC0415

    options = client_options(tls, sasl)
    ensure_topic(servers, options, topic, create=create, partitions=partitions or 1)
    documents = Documents(kind_of, id_prefix, content_type)
    producer = Producer(servers, options, topic)
    try:
        fault = _send(producer, [_outgoing(files, form, documents), deletes(deleted)])
    finally:
        producer.close()
    done = producer.produced
    found = {"produced": done.total, "topic": topic, "partitions": dict(sorted(done.partitions.items()))}
    answer(found, as_json=as_json, text=_text)
    if fault is not None:
        say(f"stopped: {fault}", err=True)
    if isinstance(fault, ConfigError):
        return Exit.CONFIG
    return Exit.DONE if fault is None else Exit.FAILURE


def _brokers(config_file: Path | None, source: str | None, bootstrap: str | None) -> tuple[tuple[str, ...], Any, Any]:
    """Return where the brokers are, and the settings of TLS and SASL."""
    if bootstrap is not None:
        log.configure("error")
        return tuple(bootstrap.split(",")), None, None
    sources = load(config_file, level="error").sources
    kafka = {name: plugin.config for name, plugin in sources.items() if plugin.type == "kafka"}
    names = ", ".join(sorted(kafka)) or "none"
    if source is not None and source not in kafka:
        raise click.UsageError(f"there is no Kafka source {source!r}; configured: {names}")
    if source is None and len(kafka) != 1:
        raise click.UsageError(f"say which brokers, by --source or --bootstrap; Kafka sources configured: {names}")
    config: Any = kafka[source or next(iter(kafka))]
    return config.bootstrap_servers, config.tls, config.sasl


def _outgoing(files: Iterable[Path], form: str, documents: Documents) -> Iterator[Outgoing]:
    from ingestd.sources._kafka.producing import lines  # noqa: PLC0415 - imports the client

    for path in files:
        if path == STDIN:
            yield from lines(sys.stdin.buffer, "standard input")
        elif form == "jsonl" or (form == "auto" and path.suffix.lower() in JSON_LINES and not path.is_dir()):
            with path.open("rb") as file:
                yield from lines(file, str(path))
        else:
            yield from documents.under(path)


def _send(producer: Producer, groups: Iterable[Iterator[Outgoing]]) -> IngestError | None:
    """Produce until something fails; return what. All that was handed in before is waited for."""
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
        fault = fault or error
    return fault


def _text(found: dict[str, Any]) -> list[str]:
    count, where = found["produced"], found["partitions"]
    spread = f" ({', '.join(f'partition {one}: {many}' for one, many in where.items())})" if where else ""
    return [f"produced {count} event{'' if count == 1 else 's'} to {found['topic']}{spread}"]
