"""Channels: bounded, closable, handing out whole batches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from tests.fixtures.daemon import wait_for

from ingestd.engine.channel import Channel
from ingestd.errors import Stopped

DEADLINE = 20.0


def test_items_come_out_in_order_and_by_weight() -> None:
    """A batch takes as many items as its limit, in the order in which they came; the first one whatever it weighs."""
    channel: Channel[int] = Channel("c", None, lambda item: item)
    for weight in (2, 2, 3, 9, 1):
        channel.put(weight)
    assert [channel.take(5, 0.0, 0.0) for _ in range(5)] == [[2, 2], [3], [9], [1], []]


def test_a_full_channel_blocks_its_writer_and_lets_it_beat() -> None:
    """Back-pressure: ``put`` waits until there is room, and says meanwhile that its thread is alive."""
    channel: Channel[int] = Channel("c", 2)
    channel.put(1)
    channel.put(2)
    beaten = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(channel.put, 3, beaten.set)
        assert beaten.wait(DEADLINE)
        assert not put.done()
        assert channel.take(1, 0.0, 0.0) == [1]
        put.result(DEADLINE)
    assert channel.take(9, 0.0, 0.0) == [2, 3]


def test_a_writer_beats_though_readers_keep_waking_it() -> None:
    """A heavy item may wait until many light ones are gone: its thread is not taken for dead."""
    channel: Channel[int] = Channel("c", 10, lambda item: item)
    channel.extend([1] * 8)
    beats = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(channel.put, 10, beats.release)
        assert beats.acquire(timeout=DEADLINE)
        for _ in range(7):
            assert channel.take(1, 0.0, 0.0)
            assert beats.acquire(timeout=DEADLINE)
            assert not put.done()
        assert channel.take(1, 0.0, 0.0) == [1]
        put.result(DEADLINE)


def test_a_heavy_item_gets_in_while_light_ones_keep_coming() -> None:
    """Who waits for room gets it in turn: nobody is overtaken for ever."""
    channel: Channel[int] = Channel("c", 100, lambda item: item)
    over = threading.Event()

    def lightly() -> None:
        with suppress(Stopped):
            while not over.is_set():
                channel.extend([5] * 50)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(lightly)
        wait_for(lambda: len(channel) == 20, "it is full")
        pool.submit(channel.put, 60)
        try:
            wait_for(lambda: 60 in (channel.take(10, 0.0, DEADLINE) or ()), "the heavy one comes")
        finally:
            over.set()
            channel.close()


def test_who_is_refused_leaves_the_line() -> None:
    """Those behind it are refused too, and nobody waits for ever."""
    channel: Channel[int] = Channel("c", 1)
    channel.put(1)
    with ThreadPoolExecutor(3) as pool:
        puts = [pool.submit(channel.put, number) for number in (2, 3, 4)]
        wait_for(lambda: len(channel._line) == 3, "all wait")
        channel.close()
        assert all(isinstance(put.exception(DEADLINE), Stopped) for put in puts)
    assert not channel._line


def test_one_item_always_fits() -> None:
    """An item that is heavier than the channel passes when the channel is empty."""
    channel: Channel[int] = Channel("c", 3, lambda item: item)
    channel.put(100)
    assert channel.take(1, 0.0, 0.0) == [100]


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
    """A blocked writer is refused, and a blocked reader ends."""
    full: Channel[int] = Channel("full", 1)
    full.put(1)
    empty: Channel[int] = Channel("empty", 1)
    with ThreadPoolExecutor(2) as pool:
        put = pool.submit(full.put, 2)
        take = pool.submit(empty.take, 1, 0.0, DEADLINE)
        full.close()
        empty.close()
        assert isinstance(put.exception(DEADLINE), Stopped)
        assert take.result(DEADLINE) is None
    assert len(full) == 1


def test_clear_makes_room() -> None:
    """What was taken out no longer weighs."""
    channel: Channel[int] = Channel("c", 1)
    channel.put(1)
    assert (channel.clear(), len(channel)) == ([1], 0)
    channel.put(2)
    assert channel.take(1, 0.0, 0.0) == [2]


def test_many_items_go_in_as_room_comes() -> None:
    """A list fills what room there is, in its order, and waits for the rest; each part can be taken meanwhile."""
    channel: Channel[int] = Channel("c", 5, lambda item: item)
    beats = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(channel.extend, [2, 3, 9, 1, 1], beats.release)
        assert beats.acquire(timeout=DEADLINE)
        assert (len(channel), channel.take(5, 0.0, 0.0)) == (2, [2, 3])
        # It is heavier than the channel, so it is there alone.
        assert channel.take(5, 0.0, DEADLINE) == [9]
        put.result(DEADLINE)
    assert channel.take(5, 0.0, 0.0) == [1, 1]
    assert channel.take(5, 0.0, 0.0) == []


def test_an_offer_says_how_far_it_came() -> None:
    """A writer may decide between two parts of a list whether it goes on."""
    channel: Channel[str] = Channel("c", 2)
    assert channel.offer("abcd", 0) == 2
    assert channel.take(9, 0.0, 0.0) == ["a", "b"]
    assert channel.offer("abcd", 2) == 4
    assert channel.take(9, 0.0, 0.0) == ["c", "d"]


def test_a_list_that_waits_is_refused_when_the_channel_closes() -> None:
    """What was in by then is taken, and nothing comes behind it."""
    channel: Channel[int] = Channel("c", 2)
    beaten = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(channel.extend, [1, 2, 3], beaten.set)
        assert beaten.wait(DEADLINE)
        channel.close()
        assert isinstance(put.exception(DEADLINE), Stopped)
    assert (channel.take(9, 0.0, 0.0), channel.take(9, 0.0, 0.0)) == ([1, 2], None)
