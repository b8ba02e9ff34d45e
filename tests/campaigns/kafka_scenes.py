"""The scenes of the Kafka campaign. Each ends in the same claims (``Ground.check``), and fails if too little happened.

``plain``: one member works a topic off. ``kills``: it is killed again and again while it does. ``members``: three of
them come and go while events keep coming. ``stopped``: one is stopped for longer than the group waits for it, the
others do its work, and then it goes on where it was.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from tests.campaigns.kafka_ground import HOUR, SESSION_MS, ground, moment, rate, until_moment
from tests.fixtures.kills import START_UP

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaigns.kafka_ground import Ground, Member, Wish

DEAD_LETTERS = 3
"""The exit code of a run that left dead letters."""


class Report(Protocol):
    """Takes what a step says."""

    def __call__(self, step: str, **said: object) -> None:
        """Take it."""
        ...


def plain(wish: Wish, folder: Path, report: Report, times: int = 1) -> dict[str, Any]:
    """One member works a topic off, and a second run finds nothing to do.

    Args:
        wish: What is asked for.
        folder: For everything.
        report: Takes the steps.
        times: How many more such topics' worth of events it gets afterwards.
    """
    with ground(wish, folder, shared=False) as place:
        member = place.member("one")
        seconds = 0.0
        for _ in range(times):
            began = time.monotonic()
            place.produce(wish.events)
            report("produced", events=wish.events, events_a_second=rate(wish.events, time.monotonic() - began))
            began = time.monotonic()
            totals = _once(member, DEAD_LETTERS)
            seconds += time.monotonic() - began
            assert totals["accepted"] == wish.events, totals
        figures = place.check()
        assert figures["redone"] == 0, figures
        again = _once(member, 0)
        assert again["accepted"] == 0, again
        return {**figures, "seconds": round(seconds, 1), "events_a_second": rate(place.produced, seconds)}


def kills(wish: Wish, folder: Path, report: Report, times: int = 20) -> dict[str, Any]:
    """One member is killed at random moments of its work, and started again at once."""
    draw = random.Random(wish.seed)
    with ground(wish, folder, shared=False) as place:
        place.produce(wish.events)
        member = place.member("one")
        fastest = 0.0
        for number in range(times):
            member.start()
            left = place.produced - sum(place.committed().values())
            assert left, "the work ended before the kills did"
            if number % 4 == 3:
                seconds = draw.uniform(0.1, 1.5) * START_UP
                until_moment(moment(seconds), [member])
                at = f"{seconds:.1f} s after its start"
            else:
                # In the mean, what is left is done in equal parts: the work does not end before the kills do.
                share = draw.uniform(0.02, min(0.95, 2 / (times - number)))
                fastest = max(fastest, _until_share(member, share * left))
                at = f"at {share:.0%} of {left} records"
            accepted = place.accounts.accepted
            in_flight = member.kill()
            accepted = place.accounts.accepted - accepted
            uncommitted = accepted - left + place.produced - sum(place.committed().values())
            report("kill", at=at, accepted=accepted, in_flight=in_flight, uncommitted=uncommitted)
        member.start("--once", "--json")
        last = member.join(DEAD_LETTERS)
        figures = place.check()
        accounts = place.accounts
        planned = times - times // 4
        assert accounts.kills_at_work >= 0.8 * planned, f"too few kills at work for {planned}: {accounts}"
        most = place.most_redone(times, fastest)
        assert 0 <= figures["redone"] <= most, f"{figures['redone']} records were done again; the most is {most}"
        return {**figures, "most_redone": most, "last_run": last["accepted"]}


def members(wish: Wish, folder: Path, report: Report, times: int = 30, every: float = 10.0) -> dict[str, Any]:
    """Three members come and go every so many seconds, while events keep coming."""
    draw = random.Random(wish.seed)
    with ground(wish, folder, shared=True) as place:
        # Slow enough that there is always something in flight, and quick enough that one of them could do it alone.
        delay = min(0.005, 0.5 * times * every / wish.events)
        crew = [
            place.member(name, embedders__hash__delay_seconds_per_text=delay, embedding__window=64)
            for name in ("one", "two", "three")
        ]
        for member in crew:
            member.start()
        crew[0].daemon.until(lambda: any(member.holds() for member in crew), "the group has begun")
        began = time.monotonic()
        with _producing(place, wish.events, times * every):
            for number in range(times):
                until_moment(began + (number + 1) * every, crew)
                report(
                    "change",
                    what=_change(crew, draw, every / 2),
                    behind=place.produced - sum(place.committed().values()),
                )
        for member in crew:
            if not member.runs:
                member.start()
        assert place.produced == wish.events
        place.until_worked_off()
        seconds = time.monotonic() - began
        for member in crew:
            member.stop()
        figures = place.check()
        accounts = place.accounts
        assert accounts.rebalances >= times, f"too few rebalances for {times} changes: {accounts}"
        assert accounts.kills_at_work >= max(1, times // 10), f"too few kills at work for {times} changes: {accounts}"
        most = place.most_redone(times, wish.events / (times * every))
        assert 0 <= figures["redone"] <= most, f"{figures['redone']} records were done again; the most is {most}"
        return {**figures, "most_redone": most, "seconds": round(seconds, 1)}


def stopped(wish: Wish, folder: Path, report: Report, times: int = 5) -> dict[str, Any]:
    """A member with work in flight is stopped until the other has done all of it, and then goes on.

    Few documents with many edits each: what it goes on with is old by then. noida-db never times a member out: there it
    is stopped for twice its session time-out, and the other does its own share.
    """
    draw = random.Random(wish.seed)
    batch = min(2000, wish.events // times)
    with ground(replace(wish, documents=min(wish.documents, 300)), folder, shared=True) as place:
        slow = {"embedders__hash__delay_seconds_per_text": 0.01, "embedding__window": 32}
        crew = [place.member(name, **slow) for name in ("one", "two")]
        for member in crew:
            member.start()
        for number in range(times):
            _until_shared(crew)
            victim, other = draw.sample(crew, 2)
            before = victim.returned()
            place.produce(batch)
            _until(victim, lambda victim=victim: victim.look().get("in_flight", 0) > 50, "it is at work")
            in_flight = victim.look()["in_flight"]
            victim.daemon.send(signal.SIGSTOP)
            stopped_at = time.monotonic()
            if wish.broker == "noida":
                until_moment(moment(2 * SESSION_MS / 1000), [other])
            else:
                _until(other, lambda other=other: other.holds() == wish.partitions, "the other has all partitions")
                _until(other, lambda: place.committed() == place.ends, "the other has done everything")
            seconds = time.monotonic() - stopped_at
            victim.daemon.send(signal.SIGCONT)
            _until_shared(crew)
            _until(victim, lambda victim=victim: not victim.look()["in_flight"], "it has nothing in flight")
            _until(other, lambda other=other: not other.look()["in_flight"], "it has nothing in flight")
            place.until_worked_off()
            returned = victim.returned() - before
            report("stop", number=number, seconds=round(seconds, 1), in_flight=in_flight, returned=returned)
            place.check_rows(place.expected())  # each time: later edits would hide what this did
            assert in_flight, "it had nothing in flight"
            assert returned or wish.without or wish.broker == "noida", "it gave nothing back"
        for member in crew:
            member.stop()
        return place.check()


SCENES = {"plain": plain, "kills": kills, "members": members, "stopped": stopped}


def _once(member: Member, code: int) -> dict[str, int]:
    member.start("--once", "--json")
    return member.join(code)


def _until_share(member: Member, count: float) -> float:
    """Wait until a member has settled so many events; return how many a second it settled."""
    member.daemon.until_said("ready", 120)
    seen: list[tuple[float, int]] = []

    def reached() -> bool:
        totals = member.daemon.totals
        settled = totals["accepted"] - totals["in_flight"] if totals else 0
        if settled:
            seen.append((time.monotonic(), settled))
        return settled >= max(1, count)

    member.daemon.until(reached, f"{count:.0f} events are settled", HOUR)
    (first, few), (last, many) = seen[0], seen[-1]
    # Of a burst that takes less than a second all may be done again.
    return (many - few) / (last - first) if last - first > 1 else float(many)


def _change(crew: list[Member], draw: random.Random, patience: float) -> str:
    """Have one member come or go; at least one stays. Those that go are killed and stopped in turn."""
    member = draw.choice(crew)
    if member.runs and sum(one.runs for one in crew) == 1:
        member = draw.choice([one for one in crew if not one.runs])
    if not member.runs:
        member.start()
        return "start"
    if member.accounts.kills > member.accounts.stops:
        member.stop()
        return "stop"
    until = moment(patience)
    member.daemon.until(lambda: member.look().get("in_flight") or time.monotonic() > until, "something is in flight")
    return f"kill, {member.kill()} in flight"


class _producing:  # noqa: N801 - reads as what it does
    """Produces events at a steady pace while the body runs, and the rest at its end."""

    def __init__(self, place: Ground, events: int, seconds: float) -> None:
        self._place = place
        self._events = events
        self._seconds = seconds
        self._over = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="producer")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        began = time.monotonic()
        left = self._events
        try:
            while left and not self._over.wait(0.5):
                due = self._events * min(1.0, (time.monotonic() - began) / self._seconds)
                count = min(left, int(due) - (self._events - left))
                self._place.produce(count)
                left -= count
            self._place.produce(left)
        except BaseException as error:  # noqa: BLE001 - raised where it is joined
            self._failed = error


def _until(member: Member, condition: Any, what: str) -> None:
    member.daemon.until(condition, what, 600)


def _until_shared(crew: list[Member]) -> None:
    """Wait until every member holds partitions."""
    for member in crew:
        _until(member, lambda: all(one.holds() for one in crew), "each holds partitions")
