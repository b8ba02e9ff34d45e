"""A bounded queue between two stages, which hands out whole batches.

Back-pressure is a full channel: ``put`` blocks, and so its caller's own inbound channel fills, up to the sources.
``queue.Queue`` was turned down: it cannot be closed, it counts items where memory is bytes or chunks, and a reader
who wants a batch takes its lock once an item.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from ingestd.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


class Channel(Generic[T]):
    """A closable first-in-first-out queue, bounded by weight.

    Args:
        name: For metrics.
        capacity: The most weight that waits here; one item always fits. None: unbounded, where the items that
            exist are bounded elsewhere.
        weigh: An item's weight; None: 1.
    """

    def __init__(self, name: str, capacity: int | None, weigh: Callable[[T], int] | None = None) -> None:
        self._name = name
        self._capacity = capacity
        self._weigh = weigh
        self._items: deque[T] = deque()
        self._weight = 0
        self._closed = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._filled = threading.Condition(self._lock)
        self._line: deque[object] = deque()
        """Writers that wait for room, in the order in which they came: what is heavy is not overtaken for ever."""
        self._waiting: dict[int, int] = {}
        """The weight that each waiting reader waits for: to be woken for every item would cost more than the item."""
        self._wanted = 0
        """The least of them; 0: nobody waits."""

    @property
    def name(self) -> str:
        """The channel's name."""
        return self._name

    def __len__(self) -> int:
        """Return the number of items that wait."""
        return len(self._items)

    def put(self, item: T, beat: Callable[[], None] | None = None) -> None:
        """Add an item, when there is room.

        Args:
            item: The item.
            beat: Called again and again while there is none: a full channel is back-pressure, not a dead thread.

        Raises:
            Stopped: The channel was closed; the item was not added.
        """
        self.offer((item,), 0, beat)

    def extend(self, items: Sequence[T], beat: Callable[[], None] | None = None) -> None:
        """Add items in their order, each when there is room.

        Args:
            items: The items.
            beat: As for ``put``.

        Raises:
            Stopped: The channel was closed. Where there was room for all they were all added, or none.
        """
        done = 0
        while done < len(items):
            done = self.offer(items, done, beat)

    def offer(self, items: Sequence[T], done: int, beat: Callable[[], None] | None = None) -> int:
        """Add as many items as there is room for, under one lock; where there is for none, wait until there is for one.

        Who comes later waits behind who waits already.

        Args:
            items: The items, in their order.
            done: How many of them are in already; not all.
            beat: As for ``put``.

        Returns:
            How many are in now.

        Raises:
            Stopped: The channel was closed; no further one was added.
        """
        with self._lock:
            if self._closed:
                raise Stopped(self._name)
            fit = done if self._line else self._fit(items, done)
            if fit == done:
                fit = self._wait_for_room(items, done, beat)
            self._items.extend(items if fit - done == len(items) else items[done:fit])
            self._wake()
            return fit

    def take(self, limit: int, linger: float, patience: float) -> list[T] | None:
        """Return the next items: as many as the limit takes, waiting a little for more to come.

        Args:
            limit: The most weight to take; the first item is taken whatever it weighs.
            linger: Seconds to wait for more when there is something, but less than the limit.
            patience: Seconds to wait for the first item.

        Returns:
            A batch; an empty one when nothing came in time; None when the channel is closed and empty.
        """
        with self._lock:
            if not self._wait(1, patience):
                return None if self._closed else []
            # Whatever else is put meanwhile wakes nobody before the batch is full.
            while linger and self._weight < limit and not self._closed and self._wait(limit, linger):
                pass
            return self._remove(limit) if self._items else None if self._closed else []

    def clear(self) -> list[T]:
        """Take out all that waits."""
        with self._lock:
            items = list(self._items)
            self._items.clear()
            self._weight = 0
            self._room.notify_all()
            return items

    def close(self) -> None:
        """Let readers take what is there and then end; writers are refused from now on."""
        with self._lock:
            self._closed = True
            self._room.notify_all()
            self._filled.notify_all()

    def _wait_for_room(self, items: Sequence[T], done: int, beat: Callable[[], None] | None) -> int:
        me = object()
        self._line.append(me)
        try:
            while True:
                self._room.wait(1.0)
                if beat is not None:
                    beat()
                if self._closed:
                    raise Stopped(self._name)
                if self._line[0] is me and (fit := self._fit(items, done)) > done:
                    return fit
        finally:
            self._line.remove(me)
            self._room.notify_all()

    def _wait(self, weight: int, seconds: float) -> bool:
        """Wait until so much is there; return whether it came to be, in time and before the channel was closed."""
        deadline = time.monotonic() + seconds
        me = threading.get_ident()
        self._waiting[me] = weight
        self._wanted = min(self._waiting.values())
        try:
            while not self._has(weight):
                remaining = deadline - time.monotonic()
                if self._closed or remaining <= 0:
                    return False
                self._filled.wait(remaining)
            return True
        finally:
            del self._waiting[me]
            self._wanted = min(self._waiting.values(), default=0)

    def _has(self, weight: int) -> bool:
        # The first item counts whatever it weighs.
        return self._weight >= weight or (weight == 1 and bool(self._items))

    def _wake(self) -> None:
        if self._wanted and (self._weight >= self._wanted or self._wanted == 1):
            self._filled.notify_all()

    def _fit(self, items: Sequence[T], done: int) -> int:
        """Return up to which item there is room, and count their weight; one always fits into an empty channel."""
        fit, weight = done, self._weight
        if self._weigh is None:
            room = len(items) if self._capacity is None else max(self._capacity - weight, 0 if self._items else 1)
            fit = min(len(items), done + room)
            weight += fit - done
        else:
            while fit < len(items):
                heavier = weight + self._weigh(items[fit])
                if self._capacity is not None and heavier > self._capacity and (self._items or fit > done):
                    break
                fit, weight = fit + 1, heavier
        self._weight = weight
        return fit

    def _remove(self, limit: int) -> list[T]:
        if self._weigh is None and len(self._items) <= limit:
            batch, taken = list(self._items), len(self._items)
            self._items.clear()
        else:
            batch, taken = self._first(limit)
        self._weight -= taken
        self._room.notify_all()
        return batch

    def _first(self, limit: int) -> tuple[list[T], int]:
        """Take out as many items as weigh no more than the limit, or the first one, and return their weight too."""
        batch: list[T] = []
        taken = 0
        while self._items:
            weight = 1 if self._weigh is None else self._weigh(self._items[0])
            if batch and taken + weight > limit:
                break
            batch.append(self._items.popleft())
            taken += weight
        return batch, taken
