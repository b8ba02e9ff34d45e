"""Breakers: an outage is held, a batch that only looks like one is suspected."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.fakes import QUICK
from tests.fixtures.daemon import wait_for

from ingestd.engine.breaker import STORM, SUSPECT_AFTER, Backoff, Breakers
from ingestd.errors import DocumentError, Stopped, Suspect, TransientError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 20.0
DOWN = UnavailableError("milvus", "no answer")


def failing(times: int, error: Exception = DOWN) -> Callable[[], str]:
    """Return a call that fails so many times, and then answers."""
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "answer"

    return call


def down() -> None:
    """Fail."""
    raise DOWN


def nothing() -> None:
    """Do nothing."""


def test_a_call_is_held_through_an_outage() -> None:
    """While call and probe fail the breaker is open, for the pipeline that found out alone; then it closes."""
    changes: list[tuple[str, bool]] = []
    breakers = Breakers(lambda name, is_open: changes.append((name, is_open)), QUICK)
    passing: list[tuple[bool, bool]] = []

    def beat() -> None:
        passing.append((breakers.passes("articles"), breakers.passes("notes")))

    assert breakers.hold(failing(10), down, beat=beat, scope="articles") == "answer"
    assert set(passing) == {(False, True)}
    assert changes == [("milvus", True), ("milvus", False)]
    assert breakers.passes("articles")


def test_an_answer_that_is_an_error_ends_the_outage() -> None:
    """A dependency that comes back and refuses the batch is back: its breaker does not stay open for ever."""
    breakers = Breakers(backoff=QUICK)
    answers: list[Exception] = [DOWN, DOWN, DocumentError("this text")]

    def call() -> None:
        raise answers.pop(0)

    with pytest.raises(DocumentError):
        breakers.hold(call, down, beat=nothing, scope="articles")
    assert breakers.passes("articles")


def test_a_probe_that_is_refused_is_no_answer() -> None:
    """A probe is no document: when it fails, whatever the error, the dependency is not well and the batch is held."""
    breakers = Breakers(backoff=QUICK)

    def refused() -> None:
        raise DocumentError("code 65535")

    assert breakers.hold(failing(10), refused, beat=nothing) == "answer"


def test_suspects_in_a_row_are_an_outage_that_is_seen() -> None:
    """When batch after batch fails beside a good probe, readiness says so; the next success clears it."""
    breakers = Breakers(backoff=QUICK)
    for _ in range(STORM):
        with pytest.raises(Suspect):
            breakers.hold(failing(SUSPECT_AFTER), nothing, beat=nothing, scope="articles")
    assert not breakers.passes("articles")
    breakers.reset("milvus", "articles")
    assert breakers.hold(lambda: "answer", nothing, beat=nothing, scope="articles") == "answer"
    with pytest.raises(Suspect):
        breakers.hold(failing(SUSPECT_AFTER), nothing, beat=nothing, scope="articles")
    assert breakers.passes("articles")


def _storm(breakers: Breakers) -> None:
    for _ in range(STORM):
        with pytest.raises(Suspect):
            breakers.hold(failing(SUSPECT_AFTER), nothing, beat=nothing, scope="articles")


def test_a_storm_ends_with_the_next_batch_that_gets_through() -> None:
    """On the thread that had it: what other stages do says nothing of it. Nothing else would open the intake again."""
    changes: list[tuple[str, bool]] = []
    breakers = Breakers(lambda name, is_open: changes.append((name, is_open)), QUICK)
    _storm(breakers)
    assert breakers.unheld() == ["milvus"]
    other = threading.Thread(
        target=breakers.hold, args=(lambda: "answer", nothing), kwargs={"beat": nothing, "scope": "articles"}
    )
    other.start()
    other.join()
    breakers.hold(lambda: "answer", nothing, beat=nothing, scope="notes")
    assert not breakers.passes("articles")
    breakers.hold(lambda: "answer", nothing, beat=nothing, scope="articles")
    assert breakers.passes("articles")
    assert changes == [("milvus", True), ("milvus", False)]
    assert breakers.unheld() == []


def test_a_storm_that_nothing_follows_ends_with_a_probe() -> None:
    """The last batches were the bad ones: intake is paused, and no batch will come."""
    breakers = Breakers(backoff=QUICK)
    _storm(breakers)
    breakers.forgive("milvus")
    assert breakers.passes("articles")
    breakers.forgive("milvus")  # of what is well


def test_an_outage_that_a_call_is_held_for_is_not_forgiven() -> None:
    """A probe that passes says nothing about the writes of a call that is held."""
    breakers = Breakers(backoff=Backoff(first=30.0, most=30.0, pace=0.0))

    def hold() -> None:
        with pytest.raises(Stopped):
            breakers.hold(failing(10**6), None, beat=nothing, scope="articles")

    held = threading.Thread(target=hold, daemon=True)
    held.start()
    wait_for(lambda: not breakers.passes("articles"), "the breaker is open")
    assert breakers.unheld() == []
    breakers.forgive("milvus")
    assert not breakers.passes("articles")
    breakers.stop()
    held.join(10)


def test_each_call_may_take_its_time() -> None:
    """The thread says that it is busy before every call and probe, and that it waits in between."""
    said: list[str] = []
    breakers = Breakers(backoff=QUICK)
    breakers.hold(failing(1), down, beat=lambda: said.append("waits"), calling=lambda: said.append("calls"))
    assert said[:3] == ["calls", "calls", "waits"]
    assert said[-1] == "calls"


def test_stopping_passes_every_handler_of_errors() -> None:
    """Code between a signal and the main thread that catches exceptions does not swallow the stop."""
    assert not issubclass(Stopped, Exception)


def test_a_batch_that_fails_three_times_beside_a_good_probe_is_suspected() -> None:
    """The dependency answers: the breaker stays closed, and the caller is told to halve."""
    changes: list[tuple[str, bool]] = []
    breakers = Breakers(lambda name, is_open: changes.append((name, is_open)), QUICK)
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        raise DOWN

    with pytest.raises(Suspect, match="no answer"):
        breakers.hold(call, nothing, beat=nothing)
    assert (calls, changes) == (3, [])


def test_what_the_dependency_itself_refuses_is_never_suspected() -> None:
    """A server that is out of disk answers reads and deletes, and so the probe: the batch is held as in any outage."""
    changes: list[tuple[str, bool]] = []
    breakers = Breakers(lambda name, is_open: changes.append((name, is_open)), QUICK)
    refused = UnavailableError("milvus", "out of quota", refused=True)
    assert breakers.hold(failing(10, refused), nothing, beat=nothing, scope="articles") == "answer"
    assert changes == [("milvus", True), ("milvus", False)]


def test_a_probe_that_passes_does_not_speak_for_a_call_that_is_held() -> None:
    """Intake stays paused while a pipeline's write is refused, though its probe passes; the call's success ends it."""
    breakers = Breakers(backoff=QUICK)
    passing: set[bool] = set()

    def beat() -> None:
        breakers.reset("milvus", "articles")
        passing.add(breakers.passes("articles"))

    assert breakers.hold(failing(10), None, beat=beat, scope="articles") == "answer"
    assert passing == {False}
    assert breakers.passes("articles")


@pytest.mark.parametrize("prober", ["articles", None])
def test_a_probe_that_passes_wakes_what_is_held(prober: str | None) -> None:
    """The way back is no longer than a probe's round, however long the outage has made the delay."""
    breakers = Breakers(backoff=Backoff(first=DEADLINE, most=DEADLINE, pace=0.0))
    began = time.monotonic()
    answer = breakers.hold(failing(1), None, beat=lambda: breakers.reset("milvus", prober), scope="articles")
    assert (answer, time.monotonic() - began < DEADLINE / 4) == ("answer", True)


def test_a_probe_that_passes_does_not_hasten_what_was_told_to_wait() -> None:
    """A server that asked for time gets it, whatever it answers meanwhile."""
    breakers = Breakers(backoff=Backoff(first=DEADLINE, most=DEADLINE, pace=0.0))
    asked = UnavailableError("milvus", "out of quota", wait=0.3, refused=True)

    def beat() -> None:
        breakers.reset("milvus", "articles")

    began = time.monotonic()
    breakers.hold(failing(1, asked), None, beat=beat, scope="articles")
    assert 0.3 <= time.monotonic() - began < DEADLINE / 4


def test_what_is_known_to_be_down_is_asked_at_a_pace() -> None:
    """However many wait for it: all of them together make one request at a time, calls and probes alike."""
    pace, threads = 0.05, 5
    breakers = Breakers(backoff=Backoff(first=0.001, most=0.002, pace=pace))
    breakers.trip(DOWN)
    asked: list[float] = []
    begun: set[int] = set()

    def call() -> None:
        # A thread does not know at its first call what it depends on. From there on each is one pace after another.
        if threading.get_ident() in begun:
            asked.append(time.monotonic())
        begun.add(threading.get_ident())
        if len(asked) < 35:
            raise DOWN

    with ThreadPoolExecutor(threads) as pool:
        held = [pool.submit(breakers.hold, call, call, beat=nothing, scope=f"c{at}") for at in range(threads)]
        for one in held:
            one.result(DEADLINE)
    assert asked[34] - asked[0] > 0.95 * pace * 34


def test_an_outage_between_two_suspicions_clears_the_batch() -> None:
    """Only failures in a row count: a probe that failed says that it was the dependency."""
    probes = [False, False, True, False, False, True]

    def probe() -> None:
        if probes and probes.pop():
            raise DOWN

    assert Breakers(backoff=QUICK).hold(failing(6), probe, beat=nothing) == "answer"


def test_without_a_probe_nothing_is_suspected() -> None:
    """A call that no document can be blamed for is held as long as it takes."""
    assert Breakers(backoff=QUICK).hold(failing(20), None, beat=nothing) == "answer"


@pytest.mark.parametrize("error", [DocumentError("bad"), TransientError("later"), ValueError("who knows")])
def test_other_errors_pass_through(error: Exception) -> None:
    """What is about a document, or about nothing we know, is the caller's."""
    breakers = Breakers(backoff=QUICK)
    with pytest.raises(type(error)):
        breakers.hold(failing(1, error), nothing, beat=nothing)
    assert breakers.passes("articles")


def test_a_dependency_is_back_when_all_say_so_who_said_it_was_not() -> None:
    """One pipeline's success does not open intake for another that still fails."""
    breakers = Breakers(backoff=QUICK)
    breakers.trip(DOWN, "articles")
    breakers.trip(DOWN, "notes")
    breakers.reset("milvus", "articles")
    assert (breakers.passes("articles"), breakers.passes("notes")) == (True, False)
    breakers.reset("milvus", "notes")
    assert breakers.passes("notes")


def test_what_everything_stands_on_stops_everything() -> None:
    """An outage without a scope (the state) is behind every pipeline."""
    breakers = Breakers(backoff=QUICK)
    breakers.trip(UnavailableError("state", "the disk is full"))
    assert not breakers.passes("articles")
    assert [(check.name, check.ok, check.detail) for check in breakers.checks()] == [
        ("state", False, "the disk is full")
    ]


def test_checks_name_what_is_well_too() -> None:
    """A registered dependency is in the answer before it ever failed; one that is down says why and what happens."""
    breakers = Breakers(backoff=QUICK)
    breakers.register("milvus")
    assert [(check.name, check.ok) for check in breakers.checks()] == [("milvus", True)]
    breakers.trip(DOWN, "articles")
    [check] = breakers.checks()
    assert (check.ok, check.detail) == (False, "no answer")
    assert "goes on by itself" in check.cure


def test_stop_ends_a_held_call() -> None:
    """The daemon does not wait for an outage to end before it ends."""
    breakers = Breakers(backoff=Backoff(first=DEADLINE, most=DEADLINE))
    beaten = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(breakers.hold, down, None, beat=beaten.set)
        assert beaten.wait(DEADLINE)
        breakers.stop()
        assert isinstance(held.exception(DEADLINE / 2), Stopped)


def test_the_other_side_may_ask_for_more_time() -> None:
    """The wait that a provider asks for is kept, however short our own delay."""
    began = time.monotonic()
    Breakers(backoff=QUICK).hold(failing(1, UnavailableError("provider", "429", wait=0.2)), None, beat=nothing)
    assert time.monotonic() - began >= 0.2


def test_delays_double_up_to_their_bound() -> None:
    """Each is drawn between half of its ceiling and all of it, also after a thousand failures."""
    backoff = Backoff(first=0.5, most=30.0)
    for failures, ceiling in ((1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (1000, 30.0)):
        delays = [backoff.delay(failures) for _ in range(100)]
        assert ceiling / 2 <= min(delays) <= max(delays) <= ceiling
        assert len(set(delays)) > 1
