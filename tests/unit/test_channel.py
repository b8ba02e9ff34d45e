"""Channels: closable, handing out whole batches, the most urgent first, as far as there is room behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemon import wait_for

from ingestd.engine.channel import TURNS, Channel
from ingestd.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 20.0


def ranked(capacity: int | None = None) -> Channel[int]:
    """Return a channel of numbers: tens are the rank, ones the weight."""
    return Channel("c", capacity, lambda item: item % 10, lambda item: item // 10)


def test_items_come_out_in_order_and_by_weight() -> None:
    """A batch takes as many items as its limit, in the order in which they came; the first one whatever it weighs."""
    channel: Channel[int] = Channel("c", None, lambda item: item)
    for weight in (2, 2, 3, 9, 1):
        channel.put(weight)
    assert [channel.take(5, 0.0, 0.0) for _ in range(5)] == [[2, 2], [3], [9], [1], []]


def test_there_is_room_below_the_capacity_of_each_rank() -> None:
    """Writing never waits: whoever writes looks for room first, and what is urgent has its own."""
    channel = ranked(4)
    assert channel.has_room(2)
    channel.extend([23, 22])
    assert not channel.has_room(2)
    assert channel.has_room(0)
    channel.extend([23, 1])
    assert (len(channel), channel.take(9, 0.0, 0.0)) == (4, [1])


def test_what_is_urgent_goes_first_and_batches_do_not_mix() -> None:
    """In order within a rank; a batch says which it is of."""
    channel = ranked()
    channel.extend([21, 11, 1, 22, 12, 2])
    batches = [channel.take(99, 0.0, 0.0) for _ in range(4)]
    assert batches == [[1, 2], [11, 12], [21, 22], []]
    assert [batch.rank for batch in batches if batch] == [0, 1, 2]


def test_what_is_less_urgent_has_a_turn_now_and_then() -> None:
    """It delays what never ends by a batch, and does not wait for its end; both of the other ranks get theirs."""
    channel = ranked()
    channel.extend([11, 21, 12, 22])
    taken: list[int] = []
    for _ in range(5 * TURNS):
        channel.put(1)
        taken += channel.take(1, 0.0, 0.0) or []
    others = [at for at, item in enumerate(taken) if item != 1]
    assert [taken[at] for at in others] == [11, 21, 12, 22]
    assert others == [TURNS + number * (TURNS + 1) for number in range(4)]
    quiet = ranked()
    for _ in range(2 * TURNS):
        quiet.put(1)
        assert quiet.take(1, 0.0, 0.0) == [1]
    quiet.extend([21, 1])
    assert quiet.take(1, 0.0, 0.0) == [1]


def test_what_comes_for_an_empty_rank_is_noticed_beside_what_may_not_be_taken() -> None:
    """Whoever waits for room with live events takes a backfill that there is room for."""
    channel, blocked = ranked(), threading.Semaphore(0)
    channel.put(1)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(
            channel.take, 9, 0.0, DEADLINE, gate=lambda rank: rank == 2, waits=lambda _blocked: blocked.release()
        )
        assert blocked.acquire(timeout=DEADLINE)
        channel.put(21)
        assert taken.result(DEADLINE / 2) == [21]


def test_a_closed_channel_has_no_room() -> None:
    """Whoever waits for room ends."""
    channel = ranked(1)
    assert channel.has_room(2)
    channel.close()
    with pytest.raises(Stopped):
        channel.has_room(2)


def test_what_may_not_go_on_stays_and_keeps_nothing_else() -> None:
    """A reader takes what has room behind it, more urgent or less, and says what it waits for."""
    channel = ranked()
    channel.extend([21, 1])
    assert channel.take(9, 0.0, 0.0, gate=lambda rank: rank == 2) == [21]
    said: list[bool] = []
    assert channel.take(9, 0.0, 0.01, gate=lambda _rank: False, waits=said.append) == []
    channel.clear()
    assert channel.take(9, 0.0, 0.01, waits=said.append) == []
    assert said == [True, False]


def test_room_behind_wakes_who_waits_for_it() -> None:
    """What makes a full channel less than full, a reader or a clearing, has the stage before it look again."""
    first, second = ranked(), ranked(2)
    second.tell(first.nudge)
    first.extend([21, 22])
    for emptied in (lambda: second.take(9, 0.0, 0.0), second.clear):
        second.extend([22])
        said: list[bool] = []
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(first.take, 1, 0.0, DEADLINE, gate=second.has_room, waits=said.append)
            wait_for(said.copy, "it waits")
            assert said == [True]
            assert not taken.done()
            emptied()
            assert len(taken.result(DEADLINE / 2) or ()) == 1


def test_who_waits_for_room_takes_what_is_more_urgent() -> None:
    """It is woken by that alone: more of what it may not take is no reason to look."""
    channel, blocked = ranked(), threading.Semaphore(0)
    channel.put(21)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(
            channel.take, 9, 0.0, DEADLINE, gate=lambda rank: rank == 0, waits=lambda _blocked: blocked.release()
        )
        assert blocked.acquire(timeout=DEADLINE)
        channel.put(22)
        assert not blocked.acquire(timeout=0.05)
        channel.put(1)
        assert taken.result(DEADLINE / 2) == [1]


def test_amid_a_batch_what_is_more_urgent_can_be_taken() -> None:
    """And only that; then its end is waited for, and the room behind."""
    channel, is_open = ranked(), threading.Event()
    channel.extend([11, 21])
    assert channel.urgent(9, 1, lambda _rank: True) == []
    assert channel.urgent(9, 2, lambda _rank: False) == []
    assert channel.urgent(9, 2, lambda _rank: True) == [11]
    with ThreadPoolExecutor(1) as pool:

        def make_room() -> None:
            is_open.set()
            channel.nudge()

        wakers: list[Callable[[], None]] = [lambda: channel.put(1), make_room]
        for woken in wakers:
            waits = pool.submit(channel.wait, 2, lambda rank: rank == 0 or is_open.is_set(), DEADLINE)
            wait_for(lambda: bool(channel._wishes), "it waits")
            channel.put(22)
            assert not waits.done()
            woken()
            waits.result(DEADLINE / 2)
            channel.urgent(9, 2, lambda _rank: True)


def test_nobody_lingers_for_nothing() -> None:
    """Where no more can come, what is there is taken at once."""
    channel: Channel[int] = Channel("c", None)
    channel.put(1)
    assert channel.take(9, DEADLINE, DEADLINE, more=lambda: False) == [1]


def test_a_reader_lingers_for_a_full_batch() -> None:
    """A reader with something, but less than its limit, waits for more; a full batch it takes at once."""
    channel: Channel[int] = Channel("c", None)
    channel.put(1)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(channel.take, 3, DEADLINE, DEADLINE)
        channel.put(2)
        channel.put(3)
        assert taken.result(DEADLINE / 2) == [1, 2, 3]
    channel.put(4)
    assert channel.take(3, 0.001, 0.0) == [4]


def test_a_closed_channel_gives_what_it_holds_and_then_ends() -> None:
    """Readers finish what is there; an empty batch means "not yet", None means "never again"."""
    channel: Channel[int] = Channel("c", None)
    assert channel.take(1, 0.0, 0.0) == []
    channel.put(1)
    channel.close()
    assert channel.take(9, DEADLINE, DEADLINE) == [1]
    assert channel.take(9, DEADLINE, DEADLINE) is None
    with pytest.raises(Stopped):
        channel.put(2)


def test_closing_wakes_those_who_wait() -> None:
    """A reader that waits ends."""
    empty: Channel[int] = Channel("empty", 1)
    with ThreadPoolExecutor(1) as pool:
        take = pool.submit(empty.take, 1, 0.0, DEADLINE)
        empty.close()
        assert take.result(DEADLINE) is None


def test_clear_makes_room() -> None:
    """What was taken out no longer weighs."""
    channel: Channel[int] = Channel("c", 1)
    channel.put(1)
    assert (channel.clear(), len(channel)) == ([1], 0)
    channel.put(2)
    assert channel.take(1, 0.0, 0.0) == [2]
