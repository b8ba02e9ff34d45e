"""Halts: which streaks of dead letters stop a source, and what is said of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.fakes import COLLECTION, ListSource, ManualClock, open_store, upsert

from ingestd.engine import halts as module
from ingestd.engine.channel import Channel
from ingestd.engine.halts import HaltRule, Halts
from ingestd.engine.lanes import Lanes
from ingestd.engine.pulse import Pulse
from ingestd.engine.sources import RetryQueue, SourceThread
from ingestd.engine.tally import Tally
from ingestd.errors import Stopped
from ingestd.metrics import Metrics
from ingestd.model import Failure, Outcome, Stage, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ingestd.model import Event

FAILURE = Failure(Stage.EXTRACT, "DocumentError", "no text in it")
DEAD = Verdict.DEAD_LETTERED


class Bench:
    """Halts of two sources: by default for 4 letters of 5 events."""

    def __init__(self, letters: int = 4, share: float = 0.8) -> None:
        self.told: list[str] = []
        self.halts = Halts(["cms", "inbox"], HaltRule(letters, share), on_halt=self.told.append)
        self.count = 0

    def accept(self, count: int, source: str = "cms") -> list[Event]:
        """Have a source hand in so many events."""
        events = [upsert(f"d{n}", "x", n, source=source) for n in range(self.count, self.count + count)]
        self.count += count
        self.halts.accepted(source, events)
        return events

    def end(self, events: Sequence[Event], verdict: Verdict = DEAD, failure: Failure = FAILURE) -> bool:
        """End events; return whether the first source is halted then."""
        self.halts.note([Outcome(event, verdict, failure=failure) for event in events])
        return self.halts.halted("cms")


def test_the_rule_with_the_defaults() -> None:
    """200 dead letters of 222 documents: of one more they would be less than nine tenths."""
    assert (HaltRule().letters, HaltRule().window) == (200, 222)
    assert [HaltRule(*rule).window for rule in ((9, 0.9), (1, 1.0), (3, 0.3), (7, 0.7))] == [10, 1, 10, 10]


def test_a_streak_halts_its_source_and_no_other() -> None:
    """At the very letter that fills the number, and not for another source's letters."""
    bench = Bench()
    assert not bench.end([*bench.accept(3), *bench.accept(3, "inbox")])
    assert bench.end(bench.accept(1))
    assert (bench.halts.halted("inbox"), bench.halts.halted("nobody"), bench.told) == (False, False, ["cms"])


@pytest.mark.parametrize("verdict", [Verdict.WRITTEN, Verdict.DELETED, Verdict.UNCHANGED, Verdict.SUPERSEDED])
def test_good_ends_break_a_streak(verdict: Verdict) -> None:
    """One good document of five is within the share, two are not, however often."""
    bench = Bench()
    for _ in range(50):
        assert not bench.end(bench.accept(2))
        assert not bench.end(bench.accept(2), verdict)
    assert not bench.end(bench.accept(2))
    assert not bench.end(bench.accept(1), verdict)
    assert bench.end(bench.accept(2))


def test_it_is_the_order_of_handing_in_that_counts() -> None:
    """Bad documents end long before the good ones between them: that is no streak. Nor do letters need an order."""
    bench = Bench()
    events = bench.accept(1000)
    assert not bench.end(events[::5] + events[1::5])
    assert not bench.end(events[2::5], Verdict.WRITTEN)
    assert not bench.end([events[903]])
    assert bench.end([events[904]])


@pytest.mark.parametrize("verdict", [Verdict.RETRYING, Verdict.RETURNED])
def test_what_is_no_end_is_no_letter(verdict: Verdict) -> None:
    """A try that failed and is made again counts when it ends; what another member makes does not."""
    bench = Bench()
    events = bench.accept(4)
    assert not bench.end(events, verdict)
    assert bench.end(events) is (verdict is Verdict.RETRYING)


def test_what_its_source_did_not_hand_in_counts_on_neither_side() -> None:
    """Replays, and what an earlier run had parked: of old letters many may fail again, whatever the source brings."""
    bench = Bench()
    events = bench.accept(3)
    assert not bench.end(events)
    for _ in range(5):
        assert not bench.end(events)  # replayed
        assert not bench.end([upsert("z", "x", 99_999)])  # parked by an earlier run
        assert not bench.end([replace(event, again=True) for event in bench.accept(1)])  # by way of its topic
    assert bench.end(bench.accept(1)) is False  # those came in between
    assert bench.end(bench.accept(3)) is True


def test_without_a_number_nothing_is_halted() -> None:
    """0 turns it off."""
    bench = Bench(letters=0)
    assert not bench.end(bench.accept(10_000))
    assert bench.halts.checks() == []


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of events whose end is never told (withdrawn ones), and of letters; what is older than that ends unnoticed."""
    monkeypatch.setattr(module, "REMEMBERED", 100)
    bench = Bench()
    first = bench.accept(1000)
    events = bench.halts._events["cms"]
    assert (len(events.numbers), next(iter(events.numbers.values()))) == (100, 901)
    assert not bench.end(first[:900])
    assert not bench.end(first[900::3])
    for _ in range(100):
        assert not bench.end(bench.accept(3)[:1])
    assert (len(events.letters), events.letters[0].number) == (33, 1202)


def test_the_check_says_why_and_what_to_do() -> None:
    """Of what failed it names the most frequent error, whatever else did, and the log says the same once."""
    bench = Bench(5, 0.5)
    assert [(check.name, check.ok) for check in bench.halts.checks()] == [("cms:intake", True), ("inbox:intake", True)]
    events = bench.accept(10)
    bench.end(events[:1], Verdict.WRITTEN)
    bench.end(events[1:2])
    bench.end(events[2:3], failure=Failure(Stage.CHUNK, "ValueError", "a bug"))
    for number, event in enumerate(events[3:6]):
        message = f"{event.key.document_id} is {11**number} bytes; the most is 10"
        bench.end([event], failure=Failure(Stage.EXTRACT, "DocumentError", message))
    bench.end(events[6:])  # what was in flight changes nothing any more
    assert bench.told == ["cms"]
    check, other = bench.halts.checks()
    assert (check.ok, other.ok) == (False, True)
    assert check.detail == (
        "halted: of 5 documents in a row 5 became dead letters, 3 of them in extract with DocumentError: "
        "d5 is 121 bytes; the most is 10"
    )
    assert "ingestd dead-letters list --source cms" in check.cure
    assert "halt_letters" in check.cure


def test_a_halted_source_hands_in_nothing(tmp_path: Path) -> None:
    """An offer takes none, a submit waits, alive, until the daemon stops."""
    bench, stop, pulse = Bench(), threading.Event(), Pulse(ManualClock())
    lanes = Lanes(Channel("recall", None), max_events=100, max_bytes=10_000)
    tally = Tally(Metrics("0"), parked=0)
    with open_store(tmp_path / "state") as store:
        retries = RetryQueue(
            store,
            sources={},
            lanes={COLLECTION: lanes},
            tally=tally,
            pulse=pulse,
            clock=ManualClock(),
            stop=stop,
            fail=lambda _name, _error: None,
        )
        thread = SourceThread(
            ListSource([]),
            lanes,
            tally,
            pulse,
            stop,
            retries=retries,
            once=False,
            fail=lambda _name, _error: None,
            on_accept=lambda events: bench.halts.accepted("cms", events),
            is_halted=lambda: bench.halts.halted("cms"),
        )
        events = [upsert(f"d{n}", "x", n) for n in range(4)]
        assert thread.offer(events[:3]) == 3
        thread.submit(events[3])
        assert [thread.halted, bench.end(events), thread.halted] == [False, True, True]
        assert thread.offer([upsert("e", "x", 5)]) == 0
        ended = []

        def submit() -> None:
            try:
                thread.submit(upsert("f", "x", 6))
            except Stopped:
                ended.append(True)

        waiting = threading.Thread(target=submit)
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive()
        assert "source/cms" in pulse.ages()
        stop.set()
        lanes.stop()
        waiting.join(20)
        assert ended == [True]
        with pytest.raises(Stopped):
            thread.offer([upsert("e", "x", 5)])
        assert tally.totals().accepted == 4
