"""``dead-letters``: what failed for good, in the state and on topics that keep letters, looked at and tried again."""

from __future__ import annotations

import base64
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from ingestd import operations
from ingestd.cli.common import (
    answer,
    ask,
    config_option,
    ends,
    json_option,
    load,
    own_store,
    read_store,
    table,
)
from ingestd.cli.letter_filters import Filters, letter_filters
from ingestd.errors import ConfigError, IngestError
from ingestd.flow import Scope
from ingestd.model import Fingerprints
from ingestd.parts import NoPast, SystemClock, feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ingestd.config import Settings
    from ingestd.model import DeadLetter, Json
    from ingestd.ports import LetterTopic


SHOWN = 2_000
"""The most characters of an original that people are shown."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A letter, and where it is."""

    letter: DeadLetter
    topic: LetterTopic | None
    """None: in the state."""

    @property
    def id(self) -> str:
        """What it is called: a number in the state, its record's position on a topic."""
        return str(self.letter.id) if self.topic is None else self.letter.position

    def listed(self) -> dict[str, Any]:
        """Return what ``list`` says of it."""
        row = next(operations.listed([self.letter]))
        return row if self.topic is None else {**row, "id": self.id}


@click.group("dead-letters")
def dead_letters() -> None:
    """What failed for good, and why."""


@dead_letters.command("list")
@letter_filters
@config_option
@json_option
@ends
def list_letters(config_file: Path | None, *, as_json: bool, filters: Filters) -> None:
    """List dead letters, oldest first; those of the state before those of topics."""
    settings = load(config_file, level="warning")
    rows, sources = [], set(settings.sources)
    with _kept(settings, filters.source) as kept:
        for one in kept:
            sources.add(one.letter.source)
            if filters.fit(one.letter):
                rows.append(one.listed())
    if filters.source is not None and filters.source not in sources:
        raise click.UsageError(f"there is no source {filters.source!r}, nor a dead letter of one; see ingestd status")
    columns = ["id", "document_id", "stage", "error", "attempts", "message"]
    answer(rows, as_json=as_json, text=lambda _rows: table(rows, columns) if rows else ["no dead letters"])


@dead_letters.command("show")
@click.argument("letter_id", metavar="ID")
@config_option
@json_option
@ends
def show_letter(letter_id: str, config_file: Path | None, *, as_json: bool) -> None:
    """Show a dead letter with its original and its traceback."""
    settings = load(config_file, level="warning")
    if letter_id.isdigit():
        with read_store(settings) as store:
            found = None if store is None else next(iter(store.dead_letters([int(letter_id)])), None)
        one = None if found is None else _Kept(found, None)
    else:
        with _kept(settings, None, state=False, values=True) as kept:
            one = next((one for one in kept if one.id == letter_id), None)
    if one is None:
        raise click.UsageError(f"there is no dead letter {letter_id}; see ingestd dead-letters list")
    answer(_whole(one), as_json=as_json, text=_letter_text)


@dead_letters.command("replay")
@click.argument("ids", metavar="[ID]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the filters leave.")
@click.option("--dry-run", is_flag=True, help="Only say which.")
@letter_filters
@config_option
@json_option
@ends
def replay_letters(
    ids: tuple[str, ...],
    config_file: Path | None,
    *,
    everything: bool,
    dry_run: bool,
    as_json: bool,
    filters: Filters,
) -> None:
    """Try dead letters again: in the running daemon at once, otherwise when one next runs.

    One that a topic keeps is written to its own topic again, as the version that it was.
    """
    settings = load(config_file, level="warning")
    with _named(settings, ids, filters, everything=everything) as wanted:
        numbers, on_topics = _numbers(wanted), [(one.letter.source, one.id) for one in wanted if one.topic is not None]
    if dry_run:
        would = [*numbers, *(position for _source, position in on_topics)]
        answer({"would_replay": would}, as_json=as_json, text=lambda _found: [f"would replay: {_list(would)}"])
        return

    def otherwise() -> Json:
        with own_store(settings) as store:
            return operations.replay(store, feeds(settings), numbers).said()

    found: dict[str, Any] = {"replayed": 0, "left": []}
    if numbers:
        found = cast("dict[str, Any]", ask(settings, "replay", {"ids": cast("Json", numbers)}, otherwise=otherwise))
    # Last: one of a topic's letters that cannot be tried again is an error, and holds no other back.
    found = {**found, "replayed": found["replayed"] + _replay_on_topics(settings, on_topics)}
    answer(found, as_json=as_json, text=_replay_text)


def _replay_on_topics(settings: Settings, wanted: Iterable[tuple[str, str]]) -> int:
    """Have letters of sources tried again, read one after the other: together they may be more than fits into memory.

    Raises:
        ConfigError: Some cannot be, and why; all others are.
    """
    by_source: dict[str, set[str]] = {}
    for source, position in wanted:
        by_source.setdefault(source, set()).add(position)
    done = 0
    faults: list[str] = []
    for source, positions in by_source.items():
        for topic in _topics(settings, source):
            with closing(topic):
                try:
                    done += topic.replay(one for one in topic.letters(values=True) if one.position in positions)
                except ConfigError as error:
                    faults.extend(error.faults)
    if faults:
        raise ConfigError(*faults)
    return done


@dead_letters.command("discard")
@click.argument("ids", metavar="[ID]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the filters leave.")
@letter_filters
@config_option
@json_option
@ends
def discard_letters(
    ids: tuple[str, ...], config_file: Path | None, *, everything: bool, as_json: bool, filters: Filters
) -> None:
    """Throw dead letters away. The documents stay as they are in Milvus. A topic's letters leave by its retention."""
    settings = load(config_file, level="warning")
    if any(not one.isdigit() for one in ids):
        raise click.UsageError("a topic's letters cannot be discarded one by one: its retention removes them")
    with _named(settings, ids, filters, everything=everything, topics=False) as wanted:
        numbers = _numbers(wanted)

    def otherwise() -> Json:
        with own_store(settings) as store:
            return {"discarded": store.discard(numbers)}

    found: dict[str, Any] = {"discarded": 0}
    if numbers:  # a member without a state has none, and cannot be asked
        found = cast("dict[str, Any]", ask(settings, "discard", {"ids": cast("Json", numbers)}, otherwise=otherwise))
    # Afterwards: brokers that are away keep nobody from throwing away what is in the state.
    stay, fault = (0, None) if ids else _count_on_topics(settings, filters)
    answer({**found, "on_topics": stay}, as_json=as_json, text=partial(_discard_text, fault=fault))


def _count_on_topics(settings: Settings, filters: Filters) -> tuple[int | None, str | None]:
    """Return how many letters on topics the filters leave; None, and why, where that cannot be found out."""
    try:
        with _kept(settings, filters.source, state=False) as kept:
            return sum(1 for one in kept if filters.fit(one.letter)), None
    except IngestError as error:
        return None, str(error)


@contextmanager
def _kept(
    settings: Settings, source: str | None, *, state: bool = True, topics: bool = True, values: bool = False
) -> Iterator[Iterable[_Kept]]:
    """Open what keeps letters, and give all of them, without their originals.

    Args:
        settings: The configuration.
        source: Of this source only, as far as topics go; None: of all.
        state: Whether those in the state are wanted.
        topics: Whether those on topics are.
        values: Whether the originals of those on topics are.
    """
    opened = list(_topics(settings, source)) if topics else []
    try:
        with read_store(settings) as store:

            def each() -> Iterator[_Kept]:
                if state and store is not None:
                    for letter in store.dead_letters(data=False):
                        yield _Kept(letter, None)
                for topic in opened:
                    for letter in topic.letters(values=values):
                        yield _Kept(letter, topic)

            yield each()
    finally:
        for topic in opened:
            topic.close()


def _topics(settings: Settings, source: str | None) -> Iterator[LetterTopic]:
    scope = Scope(SystemClock(), NoPast(), settings.limits.max_bytes, Fingerprints("", ""))
    for name, plugin in settings.sources.items():
        if source in {None, name} and getattr(plugin.config, "dead_letter_topic", None) is not None:
            topic = plugin.build(name, scope).letter_topic()
            if topic is not None:
                yield topic


@contextmanager
def _named(
    settings: Settings,
    ids: tuple[str, ...],
    filters: Filters,
    *,
    everything: bool,
    topics: bool = True,
) -> Iterator[list[_Kept]]:
    """Give the letters that a command is about."""
    if not ids and not everything and not filters:
        raise click.UsageError("name dead letters by ID, by a filter, or with --all")
    state = not ids or any(one.isdigit() for one in ids)
    topics = topics and (not ids or any(not one.isdigit() for one in ids))
    with _kept(settings, filters.source, state=state, topics=topics) as kept:
        found = list(kept)
        unknown = sorted(set(ids) - {one.id for one in found})
        if unknown:
            raise click.UsageError(f"there is no dead letter {_list(unknown)}; see ingestd dead-letters list")
        yield [one for one in found if filters.fit(one.letter) and (not ids or one.id in ids)]


def _numbers(kept: Iterable[_Kept]) -> list[int]:
    return [one.letter.id for one in kept if one.topic is None]


def _whole(one: _Kept) -> dict[str, Any]:
    letter = one.letter
    record = letter.record
    return {
        **one.listed(),
        "collection": letter.key.collection,
        "op": letter.op.value,
        "version": None if letter.version is None else asdict(letter.version),
        "fingerprint": letter.fingerprint,
        "name": letter.name,
        "content_type": letter.content_type,
        "metadata": dict(letter.metadata),
        "size": letter.size,
        "key": None if record is None or record.key is None else _base64(record.key),
        "headers": [] if record is None else [[name, value and _base64(value)] for name, value in record.headers],
        "timestamp": None if record is None else record.timestamp,
        "traceback": letter.failure.traceback,
        "content": None if letter.data is None else _base64(letter.data),
        "tombstone": record is not None and record.value is None,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _letter_text(letter: dict[str, Any]) -> Iterator[str]:
    trace = letter.pop("traceback")
    content = letter.pop("content")
    key = letter.pop("key")
    headers = letter.pop("headers")
    tombstone = letter.pop("tombstone")
    for name in ("first_failed_at", "last_failed_at"):
        letter[name] = _time(letter[name])
    letter["timestamp"] = _record_time(letter["timestamp"])
    if letter["version"] is not None:
        letter["version"] = " of ".join(str(part) for part in letter["version"].values() if part != "")
    for name, value in letter.items():
        if value not in (None, {}, ""):
            yield f"{name.replace('_', ' '):>16}: {value}"
    if key is not None:
        yield f"{'key':>16}: {base64.b64decode(key).decode('utf-8', 'backslashreplace')}"
    for name, value in headers:
        yield f"{'header':>16}: {name} = {base64.b64decode(value or '').decode('utf-8', 'backslashreplace')}"
    original = "null (a tombstone)" if tombstone else _original(None if content is None else base64.b64decode(content))
    yield f"{'original':>16}: {original}"
    if trace:
        yield ""
        yield from trace.split("\n")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")


def _record_time(milliseconds: int | None) -> str | int | None:
    """Return a record's time for people. Producers set it as they like: what is no date is shown as it came."""
    if milliseconds is None or milliseconds == -1:
        return None
    try:
        return _time(milliseconds / 1000)
    except (ValueError, OverflowError, OSError):
        return milliseconds


def _original(data: bytes | None) -> str:
    """Return an original as people can read it, on one line (``say`` escapes line ends and the like)."""
    if data is None:
        return "not kept"
    if not data:
        return "empty"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"{len(data)} bytes that are no UTF-8; --json shows them in base64"
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}… (the first {SHOWN} of {len(text)} characters; --json has all of them in base64)"


def _discard_text(found: dict[str, Any], *, fault: str | None) -> Iterator[str]:
    yield f"{found['discarded']} discarded"
    stay = found["on_topics"]
    if fault is not None:
        yield f"letters on topics stay until the topic's retention removes them; how many cannot be said: {fault}"
    elif stay:
        yield f"{stay} {'letter' if stay == 1 else 'letters'} on topics stay until the topic's retention removes them"


def _replay_text(found: dict[str, Any]) -> list[str]:
    text = f"{found['replayed']} to be tried again"
    if found["left"]:
        text += f"; left, since no configured source feeds their collection any more: {_list(found['left'])}"
    return [text]


def _list(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
