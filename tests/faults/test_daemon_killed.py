"""SIGKILL and the rest: whatever ends the daemon, nothing of it stays, nothing is lost, and the next start works."""

from __future__ import annotations

import random
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.corpus import copy_articles, fold
from tests.fixtures.daemon import wait_for
from tests.fixtures.kills import check_whole, kill_and_change

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.daemon import Daemon, Workplace
    from tests.fixtures.lite_server import LiteServer

SLOW = 0.005
"""Seconds a chunk, so that there is a middle to be killed in."""


@pytest.mark.long
def test_rows_are_the_same_whenever_the_daemon_is_killed(workplace: Workplace, tmp_path: Path) -> None:
    """SIGKILL at random moments while files change: nothing is left, and the rows are those of an unkilled run."""
    seed = random.randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")  # shown when the test fails
    workplace.configure("embedders.hash.delay_seconds_per_text", SLOW)
    workplace.configure("embedding.window", 16)  # so that articles are settled a few at a time
    copy_articles(workplace.inbox, every=15)
    for kill in kill_and_change(workplace, 3, random.Random(seed)):
        sys.stdout.write(f"{kill}\n")
    workplace.configure("embedders.hash.delay_seconds_per_text", 0)
    check_whole(workplace, tmp_path / "unkilled")


@pytest.fixture
def loaded(workplace: Workplace) -> Workplace:
    """A workplace with work for some ten seconds."""
    workplace.configure("embedders.hash.delay_seconds_per_text", 0.02)
    workplace.configure("embedding.window", 32)
    copy_articles(workplace.inbox, every=12)
    return workplace


def _busy(daemon: Daemon) -> None:
    daemon.until_said("ready")
    daemon.until(lambda: daemon.totals.get("in_flight", 0) > 50, "it is in the middle of its work")


def _at_the_model(daemon: Daemon) -> bool:
    """Return whether a batch is at the model: it is slow, and others wait for it. One may have ended just now."""
    (collection,) = daemon.status().get("collections") or [{}]
    return collection.get("waits_for_embed", 0) > 0 and daemon.totals["written"] > 0


def test_sigterm_to_the_process_group_drains(loaded: Workplace) -> None:
    """The children survive the group's signal until what was begun is written; then nothing is left."""
    with loaded.daemon("--json") as daemon:
        _busy(daemon)
        daemon.send_group(signal.SIGTERM)
        assert daemon.wait(35) == 0
        loaded.until_gone(1)
        assert not daemon.said("not drained in time: begun documents are begun again after the next start")
        left = daemon.said("drained")[0]["left_for_the_next_start"]
        assert daemon.said("ended")[0]["in_flight"] == left
    _next_start_finishes(loaded)


def test_a_second_ctrl_c_ends_at_once(loaded: Workplace) -> None:
    """A second SIGINT a second later does not wait for the drain; nothing is left, and the next start finishes."""
    loaded.configure("embedders.hash.delay_seconds_per_text", 0.2)
    with loaded.daemon() as daemon:
        daemon.until(lambda: _at_the_model(daemon), "a batch is at the model, and takes six seconds")
        daemon.send_group(signal.SIGINT)
        first = time.monotonic()
        daemon.until(lambda: time.monotonic() - first > 1.1, "a second has gone by")
        daemon.send_group(signal.SIGINT)
        asked = time.monotonic()
        assert daemon.wait() == 1
        assert time.monotonic() - asked < 2
        loaded.until_gone()
    _next_start_finishes(loaded)


def test_two_interrupts_within_a_second_count_as_one(loaded: Workplace) -> None:
    """A terminal and ``make`` both pass a Ctrl-C on: the daemon still drains and exits 0."""
    loaded.configure("embedders.hash.delay_seconds_per_text", 0.1)
    with loaded.daemon() as daemon:
        daemon.until(lambda: _at_the_model(daemon), "a batch is at the model, and takes three seconds")
        daemon.send_group(signal.SIGINT)
        first = time.monotonic()
        # Signals of one kind that wait for the process are one: the second is sent once the first was taken.
        daemon.until_said("draining")
        daemon.send(signal.SIGINT)
        if time.monotonic() - first >= 1:
            pytest.skip("this machine took a second to act on the first signal: the two are no pair any more")
        assert daemon.wait(35) == 0
        assert daemon.said("ended")
        loaded.until_gone(1)


def test_a_signal_at_the_very_end_changes_nothing(workplace: Workplace) -> None:
    """All is done and said, and the interpreter is taking itself apart: a further Ctrl-C does not make it a failure."""
    delivered = 0
    for _ in range(5):  # now and then it is gone before the line is seen
        with workplace.daemon() as daemon:
            daemon.until_ready()
            daemon.send(signal.SIGINT)
            while not daemon.said("ended"):  # in a hurry: what is left of it is over within milliseconds
                assert daemon.runs or daemon.said("ended"), daemon.log
            if daemon.runs:
                daemon.send(signal.SIGINT)
                delivered += 1
            assert daemon.wait() == 0
        if delivered:
            return
    raise AssertionError("it was always gone before the signal")


def test_a_drain_that_takes_too_long_is_given_up(loaded: Workplace) -> None:
    """SIGTERM ends within the drain's deadline, with exit 0, however long what was begun would take."""
    loaded.configure("embedders.hash.delay_seconds_per_text", 0.5)
    loaded.configure("shutdown.drain_seconds", 2)
    with loaded.daemon() as daemon:
        daemon.until(lambda: _at_the_model(daemon), "a batch is at the model, and takes sixteen seconds")
        asked = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - asked < 15
        assert daemon.said("not drained in time: begun documents are begun again after the next start")
        loaded.until_gone(1)
    _next_start_finishes(loaded)


def _next_start_finishes(workplace: Workplace) -> None:
    workplace.configure("embedders.hash.delay_seconds_per_text", 0)
    workplace.once()
    assert fold(workplace.inbox, workplace.config_file) == workplace.rows()


def test_a_stopped_start_ends_at_once(workplace: Workplace) -> None:
    """SIGTERM in any step of the start exits 0, and leaves nothing."""
    for step in ("opening the state", "starting Milvus", "comparing the collection articles"):
        with workplace.daemon() as daemon:
            daemon.until_said(step)
            asked = time.monotonic()
            assert daemon.stop() == 0, daemon.log
            assert time.monotonic() - asked < 15
            wait_for(lambda: not workplace.processes(), "nothing is left", 1)


@pytest.mark.parametrize("request_", ["Upsert", "Delete"])
def test_a_kill_between_a_write_and_its_answer_leaves_no_orphan(
    workplace: Workplace, lite_server: LiteServer, request_: str
) -> None:
    """Rows that Milvus has and the daemon never knew of are found by the next one, whatever the files say by then."""
    workplace.configure("milvus.uri", lite_server.uri)
    files = [workplace.write(f"{number:02}.txt", f"The first text, number {number}.") for number in range(20)]
    lite_server.start()
    assert workplace.once()["written"] == 20
    lite_server.hold(request_)
    with workplace.daemon() as daemon:
        daemon.until_said("ready")
        for number, path in enumerate(files):
            path.write_text(f"The second text, number {number}.")
        workplace.write("new.txt", "A text that the next daemon does not find.")
        lite_server.until_held(request_)
        daemon.kill()
        lite_server.release(request_)
    assert any("second" in row.text for row in workplace.rows(lite_server.uri))
    (workplace.inbox / "new.txt").unlink()
    for number, path in enumerate(files[:10]):
        path.write_text(f"The third text, number {number}.")
    for path in files[10:14]:
        path.unlink()
    workplace.once()
    assert fold(workplace.inbox, workplace.config_file) == workplace.rows(lite_server.uri)
