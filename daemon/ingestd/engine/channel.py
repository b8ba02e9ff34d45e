"""A queue between two stages, which hands out whole batches, the most urgent first.

What is less urgent gets one batch in ``TURNS`` while what is more urgent never ends: it delays that by a batch, and
waits for no end itself. An edit of a document whose backfill is under way waits for that, and so does an offset.

Back-pressure is a full channel: a stage takes no more of a rank than goes on, and so its own inbound channel fills, up
to the sources. Writing never blocks. A thread that waited for room with backfill in its hands would stand before live
events, and those before the whole backfill; so a stage looks for room before it takes something (``Gate``), and what it
makes of one batch is the most that a channel is ever over its capacity.

``queue.Queue`` was turned down: it cannot be closed, it counts items where memory is bytes or chunks, and a reader
who wants a batch takes its lock once an item.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

from ingestd.errors import Stopped
from ingestd.model import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

Gate: TypeAlias = "Callable[[int], bool]"
"""Says whether what is of this rank may be taken: whether there is room for what becomes of it."""

RANKS = len(Priority)
TURNS = 8
"""Batches in a row that go before something less urgent."""


def always_open(_rank: int) -> bool:
    """Let everything through."""
    return True


class Batch(list[T]):
    """Items of one rank."""

    rank: int = 0
    weight: int = 0


class _Wish(NamedTuple):
    """What a reader waits for."""

    weight: int
    """To be woken for every item would cost more than the item."""
    ranks: frozenset[int]
    """Of which ranks: what is there already, and may not be taken, is no news."""


class Channel(Generic[T]):
    """A closable queue, first in first out within each rank, with a capacity by weight.

    Args:
        name: For metrics.
        capacity: The weight from which on there is no room, for each rank. None: there is always room, where the items
            that exist are bounded elsewhere.
        weigh: An item's weight; None: 1.
        rank: An item's rank, from 0, the most urgent, to ``RANKS`` - 1; None: all are equal.
    """

    def __init__(
        self,
        name: str,
        capacity: int | None,
        weigh: Callable[[T], int] | None = None,
        rank: Callable[[T], int] | None = None,
    ) -> None:
        self._name = name
        self._capacity = capacity
        self._weigh = weigh
        self._rank = rank
        self._items: tuple[deque[T], ...] = tuple(deque() for _ in range(1 if rank is None else RANKS))
        self._weights = [0] * len(self._items)
        self._closed = False
        self._filled = threading.Condition()
        self._wishes: dict[int, _Wish] = {}
        """By thread."""
        self._passed = 0
        """Batches taken in a row while something less urgent might have been."""
        self._turns = 0
        """How often something less urgent had its turn."""
        self._on_room: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        """The channel's name."""
        return self._name

    def __len__(self) -> int:
        """Return the number of items that wait."""
        return sum(map(len, self._items))

    def has_room(self, rank: int = 0) -> bool:
        """Return whether there is room for more of a rank.

        Raises:
            Stopped: The channel was closed: nothing more will go on.
        """
        if self._closed:
            raise Stopped(self._name)
        return self._capacity is None or self._weights[rank] < self._capacity

    def tell(self, on_room: Callable[[], None]) -> None:
        """Have a function called whenever there is room again."""
        self._on_room.append(on_room)

    def put(self, item: T) -> None:
        """Add an item. Never blocks.

        Raises:
            Stopped: The channel was closed; the item was not added.
        """
        self.extend((item,))

    def extend(self, items: Sequence[T]) -> None:
        """Add items, in their order. Never blocks.

        Raises:
            Stopped: The channel was closed; none was added.
        """
        if not items:
            return
        rank_of, weigh = self._rank, self._weigh
        with self._filled:
            if self._closed:
                raise Stopped(self._name)
            if rank_of is None:
                self._items[0].extend(items)
                self._weights[0] += len(items) if weigh is None else sum(map(weigh, items))
                added = {0}
            else:
                added = set()
                for item in items:
                    rank = rank_of(item)
                    self._items[rank].append(item)
                    self._weights[rank] += 1 if weigh is None else weigh(item)
                    added.add(rank)
            for weight, ranks in self._wishes.values():
                if any(rank in ranks and (weight == 1 or self._weights[rank] >= weight) for rank in added):
                    self._filled.notify_all()
                    break

    def take(
        self,
        limit: int,
        linger: float,
        patience: float,
        *,
        gate: Gate = always_open,
        more: Callable[[], bool] = lambda: True,
        waits: Callable[[bool], None] = lambda _blocked: None,
    ) -> Batch[T] | None:
        """Return the next items of the most urgent rank that may be taken: as many as the limit takes.

        Args:
            limit: The most weight to take; the first item is taken whatever it weighs.
            linger: Seconds to wait for more when there is something, but less than the limit.
            patience: Seconds to wait for something.
            gate: Says which ranks may be taken. What lets one through again has to call ``nudge``.
            more: Asked before lingering whether more can be expected.
            waits: Called before each wait: whether something is there that may not be taken.

        Returns:
            The items; none after the patience; None when the channel is closed and empty.
        """
        deadline = time.monotonic() + patience
        with self._filled:
            while (rank := self._whose_turn(gate)) is None:
                empty = self._empty()
                blocked = len(empty) < len(self._items)
                if self._closed and not blocked:
                    return None
                waits(blocked)
                if not self._wait(_Wish(1, empty), deadline):
                    return Batch()
            if linger and self._weights[rank] < limit and not self._closed and more():
                deadline = time.monotonic() + linger
                waits(False)
                wish = _Wish(limit, frozenset(range(rank + 1)))
                # Whatever else is put meanwhile wakes nobody before the batch is full.
                while self._weights[rank] < limit and not self._closed and self._wait(wish, deadline):
                    pass
                if not self._items[rank] or not gate(rank):  # another reader has it, or has filled what is behind
                    return Batch()
            batch = self._remove(rank, limit)
            self._note_turn(rank)
            made_room = self._made_room(batch)
        if made_room:
            self._tell()
        return batch

    def urgent(self, limit: int, below: int, gate: Gate) -> Batch[T]:
        """Return what is more urgent than a rank and may be taken now; none if there is nothing. Never waits."""
        if not any(self._items[:below]):
            return Batch()
        with self._filled:
            rank = self._next(gate, below)
            if rank is None:
                return Batch()
            batch = self._remove(rank, limit)
            made_room = self._made_room(batch)
        if made_room:
            self._tell()
        return batch

    def wait(self, rank: int, gate: Gate, seconds: float) -> None:
        """Wait until a rank is let through, or something may be taken that is more urgent."""
        with self._filled:
            if self._next(gate, rank) is None and not gate(rank):
                self._wait(_Wish(1, self._empty() & frozenset(range(rank))), time.monotonic() + seconds)

    def nudge(self) -> None:
        """Have readers ask their gates again."""
        with self._filled:
            if self._wishes:
                self._filled.notify_all()

    def clear(self) -> list[T]:
        """Take out all that waits."""
        with self._filled:
            items = [item for queue in self._items for item in queue]
            for rank, queue in enumerate(self._items):
                queue.clear()
                self._weights[rank] = 0
        self._tell()
        return items

    def close(self) -> None:
        """Let readers take what is there and then end; writers are refused from now on."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()

    def _next(self, gate: Gate, below: int) -> int | None:
        """Return the most urgent rank that has something, and may be taken."""
        for rank, queue in enumerate(self._items[:below]):
            if queue and gate(rank):
                return rank
        return None

    def _whose_turn(self, gate: Gate) -> int | None:
        """Return the rank that is taken next."""
        rank = self._next(gate, RANKS)
        if rank is None or self._passed < TURNS:
            return rank
        others = [other for other in range(rank + 1, len(self._items)) if self._items[other] and gate(other)]
        return others[self._turns % len(others)] if others else rank

    def _note_turn(self, rank: int) -> None:
        if any(self._items[:rank]):
            self._turns += 1
            self._passed = 0
        else:
            self._passed = self._passed + 1 if any(self._items[rank + 1 :]) else 0

    def _empty(self) -> frozenset[int]:
        """Return the ranks that have nothing."""
        return frozenset(rank for rank, queue in enumerate(self._items) if not queue)

    def _made_room(self, batch: Batch[T]) -> bool:
        """Return whether there is room of a rank, and was none before a batch was taken out."""
        after = self._weights[batch.rank]
        return self._capacity is not None and after < self._capacity <= after + batch.weight

    def _wait(self, wish: _Wish, deadline: float) -> bool:
        """Wait until something happens; return False when it is too late for that."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        me = threading.get_ident()
        self._wishes[me] = wish
        try:
            return self._filled.wait(remaining)
        finally:
            del self._wishes[me]

    def _tell(self) -> None:
        for on_room in self._on_room:
            on_room()

    def _remove(self, rank: int, limit: int) -> Batch[T]:
        """Take out as many items as weigh no more than the limit, or the first one."""
        queue, weigh = self._items[rank], self._weigh
        batch: Batch[T] = Batch()
        batch.rank = rank
        if weigh is None:
            if len(queue) <= limit:
                batch.extend(queue)
                queue.clear()
            else:
                batch.extend(queue.popleft() for _ in range(limit))
            batch.weight = len(batch)
            self._weights[rank] -= batch.weight
            return batch
        taken = 0
        while queue:
            weight = weigh(queue[0])
            if batch and taken + weight > limit:
                break
            batch.append(queue.popleft())
            taken += weight
        batch.weight = taken
        self._weights[rank] -= taken
        return batch
