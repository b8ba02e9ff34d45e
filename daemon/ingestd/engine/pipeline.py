"""A pipeline: the stages of one collection, joined by bounded channels."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from ingestd.engine.channel import Channel
from ingestd.engine.stage import Appetite, StageThread, Work
from ingestd.engine.workload import Workload
from ingestd.model import Abandoned, Extracted, Recalled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ingestd.engine.lanes import Lanes
    from ingestd.engine.pulse import Pulse
    from ingestd.engine.workload import Meter
    from ingestd.model import Chunked, Embedded, Event, Outcome
    from ingestd.ports import Sink

In = TypeVar("In")
Out = TypeVar("Out")
PassOn: TypeAlias = "Callable[[Sequence[Out]], None]"
Reading: TypeAlias = "Work[Recalled, Recalled | Extracted]"

RECALLED = 500
"""Events that are looked up at a time: where Milvus has to be asked, in one question."""
CHUNKED = 256_000
"""Weight of the documents that are cut at a time: of their texts in characters, and of their files in bytes."""
LINGER = 0.002
"""Seconds for a few more to come: threads that hand over one by one cost more than what they hand over."""
WAITING_DOCUMENTS = 64
"""Documents that wait to be extracted."""
WAITING_TEXT = 4_000_000
"""The same of what waits to be cut: a text can be far larger than the file that it came from, or far smaller."""
OVERHEAD = 256
"""The weight of a document by itself."""
MOST_CHUNKS = 2_048
"""Chunks that wait for the models, where two windows are not more."""
WRITE_BATCH = 1_000
"""Rows that a write takes at a time, many documents together."""
WRITE_LINGER = 0.02


class _Carrier(Protocol):
    @property
    def event(self) -> Event: ...


Carrier = TypeVar("Carrier", bound=_Carrier)


class _Closable(Protocol):
    @property
    def name(self) -> str: ...
    def close(self) -> None: ...
    def __len__(self) -> int: ...


class _Joinable(Protocol):
    @property
    def meter(self) -> Meter: ...
    def start(self) -> None: ...
    def join(self, timeout: float) -> bool: ...


class Pipeline:
    """The stages of one collection.

    Args:
        collection: Its name.
        sink: The collection itself.
        identity: Its random id when the daemon started.
        lanes: Feed the first stage.
        events: The channel between lanes and the first stage.
        recall: The first stage's work; what it has the text of already passes the second one by.
        extract: The second's; it hands on what takes long, so that nobody waits behind it.
        extract_long: Reads that, without hurry.
        readers: The number of threads that run each of the two.
        chunk: The third's.
        embed: The fourth's.
        devices: The number of threads that run it: one for each device that its models are on.
        window: The most chunks that one of them takes at a time.
        wants: Asked how many that should be now; None: as many.
        linger: Seconds that it waits for them.
        write: The last one's.
        silence: Seconds that a stage's call may take, by stage: its timeouts.
        settle: Takes outcomes.
        pulse: Takes heartbeats.
        fail: Called with the name of a stage and the exception that ended it.
    """

    def __init__(
        self,
        collection: str,
        *,
        sink: Sink,
        identity: str,
        lanes: Lanes,
        events: Channel[Event],
        recall: Work[Event, Recalled | Extracted],
        extract: Reading,
        extract_long: Reading,
        readers: int,
        chunk: Work[Extracted, Chunked],
        embed: Work[Chunked, Embedded | Abandoned],
        devices: int = 1,
        window: int,
        wants: Callable[[], int] | None = None,
        linger: float,
        write: Work[Embedded | Abandoned, object],
        silence: Mapping[str, float],
        settle: Callable[[Sequence[Outcome]], None],
        pulse: Pulse,
        fail: Callable[[str, BaseException], None],
    ) -> None:
        self.collection = collection
        self.sink = sink
        self.identity = identity
        self.lanes = lanes
        self._giving_up = threading.Event()
        self._dropped = 0
        self._reading = 0
        """Documents that are read, or wait for that: they may come at any time, and nobody waits for them."""
        self._lock = threading.Lock()
        recalled: Channel[Recalled] = Channel("extract", WAITING_DOCUMENTS, rank=_rank)
        # Bounded by the lanes' budget: to wait for room here is what nobody should have to.
        difficult: Channel[Recalled] = Channel("extract_long", None, rank=_rank)
        extracted: Channel[Extracted] = Channel("chunk", WAITING_TEXT, _weight, _rank)
        # Two windows for each, so that none waits for the cutting; of small ones four, as far as that is not many.
        waiting = max(2 * window * devices, min(4 * window, MOST_CHUNKS))
        chunked: Channel[Chunked] = Channel("embed", waiting, lambda item: max(1, len(item.new)), _rank)
        embedded: Channel[Embedded | Abandoned] = Channel("write", 4 * WRITE_BATCH, _rows, _rank)

        def stage(
            step: str,
            work: Work[In, Out],
            inbound: Channel[In],
            appetite: Appetite,
            pass_on: PassOn[Out],
            *targets: Channel[Any],
            settle: Callable[[Sequence[Outcome]], None] = settle,
        ) -> StageThread[In, Out]:
            """Return a stage that takes what there is room for in all channels that it may lead to."""

            def gate(rank: int) -> bool:
                return all(target.has_room(rank) for target in targets)

            for target in targets:
                target.tell(inbound.nudge)
            return StageThread(
                f"{collection}/{step}",
                work,
                inbound,
                # Where all that is under way waits here already, nothing more is waited for.
                replace(appetite, more=lambda: lanes.events - self._reading > len(inbound)),
                pass_on=pass_on,
                gate=gate,
                settle=settle,
                pulse=pulse,
                fail=fail,
            )

        to_extract, to_extract_long = self._forward(recalled), self._forward(difficult)
        to_chunk, to_embed = self._forward(extracted), self._forward(chunked)

        was_read, not_read = self._counting(to_chunk, -1), self._counting(settle, -1)
        read = _read_by(was_read, to_extract_long)
        reading = Appetite(1, silence=silence["extract"])
        extracting = [
            stage(f"extract-{number}", extract, recalled, reading, read, extracted, settle=not_read)
            for number in range(1, readers + 1)
        ]
        extracting_long = [
            stage(f"extract-long-{number}", extract_long, difficult, reading, read, extracted, settle=not_read)
            for number in range(1, readers + 1)
        ]

        recalling = stage(
            "recall",
            recall,
            events,
            Appetite(RECALLED, LINGER, silence["recall"]),
            _read_by(to_chunk, self._counting(to_extract, 1)),
            recalled,
            extracted,
        )
        chunking = stage("chunk", chunk, extracted, Appetite(CHUNKED, LINGER, silence["chunk"]), to_embed, chunked)
        embedding = [
            stage(
                step,
                embed,
                chunked,
                Appetite(window, linger, silence["embed"], wants=wants, gives_way=True),
                embedded.extend,
                embedded,
            )
            for step in (["embed"] if devices == 1 else [f"embed-{number}" for number in range(1, devices + 1)])
        ]
        writing = stage("write", write, embedded, Appetite(WRITE_BATCH, WRITE_LINGER, silence["write"]), _nothing_more)
        self._unbegun: tuple[Channel[Any], ...] = (recalled, difficult, extracted, chunked)
        self._steps: list[tuple[_Closable, Sequence[_Joinable]]] = [
            (events, [recalling]),
            (recalled, extracting),
            (difficult, extracting_long),
            (extracted, [chunking]),
            (chunked, embedding),
            (embedded, [writing]),
        ]

        self.workload = Workload(
            {channel.name: [thread.meter for thread in threads] for channel, threads in self._steps}
        )
        """Where the time goes."""

    def start(self) -> None:
        """Start all stages."""
        for _channel, threads in self._steps:
            for thread in threads:
                thread.start()

    def depths(self) -> dict[str, int]:
        """Return the number of items that wait before each stage."""
        return {channel.name: len(channel) for channel, _threads in self._steps}

    def give_up(self) -> None:
        """Drop what no model has begun: it waits for its text, for its chunks or for its vectors, or is about to.

        Begun means that the most expensive part would be done twice. A document that is being read or cut is dropped
        when it comes out of that, and one whose outcome is known gets it.
        """
        # In this order: from the flag on stages drop what they have, with their lanes, and those have to be at an end.
        self._note_dropped(self.lanes.stop())
        self._giving_up.set()
        for channel in self._unbegun:
            self._drop(channel.clear())

    @property
    def dropped(self) -> int:
        """The number of events that were given up."""
        return self._dropped

    def _forward(self, channel: Channel[Carrier]) -> PassOn[Carrier]:
        """Return what passes on to a channel, unless the pipeline gives up what is not begun."""

        def pass_on(items: Sequence[Carrier]) -> None:
            if self._giving_up.is_set():
                self._drop(items)
                return
            channel.extend(items)
            if self._giving_up.is_set():  # it came after the channel was cleared
                self._drop(channel.clear())

        return pass_on

    def _drop(self, items: Sequence[_Carrier]) -> None:
        if not items:
            return
        self.lanes.drop([item.event for item in items])
        self._note_dropped(len(items))

    def _counting(self, pass_on: PassOn[Out], each: int) -> PassOn[Out]:
        """Return what passes on documents that are to be read, or were, and counts them."""

        def counted(items: Sequence[Out]) -> None:
            with self._lock:
                self._reading += each * len(items)
            pass_on(items)

        return counted

    def _note_dropped(self, count: int) -> None:
        with self._lock:
            self._dropped += count

    def stop(self, timeout: float) -> bool:
        """Let each stage finish what is before it, first to last; return whether all ended in time."""
        deadline = time.monotonic() + timeout
        ended = True
        for channel, threads in self._steps:
            channel.close()
            for thread in threads:
                ended = thread.join(max(0.0, deadline - time.monotonic())) and ended
        return ended


def _read_by(
    to_chunk: PassOn[Extracted], to_read: PassOn[Recalled]
) -> Callable[[Sequence[Recalled | Extracted]], None]:
    """Return what passes on what was read, and what is to be read."""

    def pass_on(items: Sequence[Recalled | Extracted]) -> None:
        texts = [item for item in items if isinstance(item, Extracted)]
        if texts:
            to_chunk(texts)
        if len(texts) < len(items):
            to_read([item for item in items if isinstance(item, Recalled)])

    return pass_on


def _nothing_more(items: Sequence[object]) -> None:
    """Take what the last stage passes on: nothing; its outcomes go to settle."""
    raise AssertionError(items)


def _rank(item: _Carrier) -> int:
    return item.event.priority


def _weight(item: Extracted) -> int:
    """Return about how much memory a document takes that waits to be cut: its text, and the file that it came from."""
    text = 0 if item.document is None else len(item.document.text)
    return OVERHEAD + text + (0 if item.content is None else len(item.content.data))


def _rows(item: Embedded | Abandoned) -> int:
    """Return how many rows a window has written, rewritten and deleted."""
    if isinstance(item, Abandoned):
        return 1
    last = len(item.chunked.rewritten) + len(item.chunked.stale) if item.last else 0
    return max(1, len(item.rows) + last)
