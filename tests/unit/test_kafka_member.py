"""What a turn of the consumer's thread does first, on a consumer that says what a test wants."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kafka.errors import IllegalGenerationError, KafkaError, RebalanceInProgressError
from kafka.structs import TopicPartition
from structlog.testing import capture_logs
from tests.fakes import COLLECTION, ManualClock

from ingestd.errors import UnavailableError
from ingestd.model import DocumentKey, Event, Failure, Op, Outcome, Record, Stage, Verdict
from ingestd.sources._kafka.commits import Commits
from ingestd.sources._kafka.holdings import Holdings
from ingestd.sources._kafka.member import SAID_SECONDS, Member
from ingestd.sources._kafka.tenure import boot_time
from ingestd.sources._kafka.view import PATIENCE
from ingestd.sources.kafka import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.sources._kafka.tenure import Tenure

PARTITION = TopicPartition("documents", 0)


class Consumer:
    """A consumer of one partition, whose records go on from where it was last sought to."""

    def __init__(self) -> None:
        self.at = 0
        self.committed: list[int] = []
        self.answers: list[KafkaError | None] = []
        """To commits; after these all are well."""
        self.topics: dict[str, set[int]] = {}
        self._fetcher = SimpleNamespace(_next_partition_records=None)
        self._cluster = SimpleNamespace(
            unauthorized_topics=set(), partitions_for_topic=self.topics.get, _last_successful_refresh_ms=0.0
        )

    def describe(self, *topics: str) -> None:
        """Have brokers answer now what topics there are."""
        self.topics.clear()
        self.topics.update({topic: {0} for topic in topics})
        self._cluster._last_successful_refresh_ms = time.monotonic() * 1000

    def poll(self, timeout_ms: float) -> dict[TopicPartition, list[Any]]:
        """Return the next two records."""
        del timeout_ms
        found = [
            SimpleNamespace(topic="documents", partition=0, offset=self.at + n, timestamp=0, key=b"d", value=b"{}")
            for n in range(2)
        ]
        self.at += 2
        return {PARTITION: found}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go there."""
        assert partition == PARTITION
        self.at = offset

    def commit_async(self, offsets: dict[TopicPartition, Any], callback: Any = None) -> None:
        """Remember what was committed."""
        self.committed += [offset.offset for offset in offsets.values()]
        callback(offsets, self.answers.pop(0) if self.answers else None)

    def assignment(self) -> set[TopicPartition]:
        """Return the partition."""
        return {PARTITION}

    def paused(self) -> set[TopicPartition]:
        """Return nothing."""
        return set()

    def pause(self, *partitions: TopicPartition) -> None:
        """Do nothing."""

    def resume(self, *partitions: TopicPartition) -> None:
        """Do nothing."""

    def highwater(self, partition: TopicPartition) -> int:
        """Return a number."""
        del partition
        return 100


class Intake:
    """Takes everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.withdrawn: set[str] = set()
        self.away = False
        """Whether the state is."""

    def offer(self, events: Sequence[Event]) -> int:
        """Take all."""
        self.events += events
        return len(events)

    def withdraw(self, tenures: frozenset[str] | None) -> None:
        """Remember, if the state is there."""
        if self.away:
            raise UnavailableError("state", "the disk is full")
        self.withdrawn |= tenures or set()

    def hasten(self, positions: object) -> None:
        """Do nothing."""

    def wait(self, seconds: float) -> None:
        """Do nothing."""


class Quiet:
    """Has nothing to say, whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        """Return what answers nothing."""
        return lambda *_arguments, **_named: None


def event_of(found: Any, tenure: Tenure) -> Event:
    """Return an event of a record."""
    record = Record("documents", 0, found.offset, 0, found.key, found.value)
    key = DocumentKey(COLLECTION, f"d{found.offset}")
    return Event(key, Op.UPSERT, "cms", record.position, None, lease=tenure, record=record)


def seat_of(consumer: Consumer) -> Any:
    """Return a seat that holds the partition, with the real holdings and commits."""
    gate: Any = SimpleNamespace(holds=lambda: True)
    holdings = Holdings(gate, lambda _partition: "domain", consumer.seek)
    holdings.assigned([PARTITION], 1, all_at_once=True)
    return SimpleNamespace(
        consumer=consumer,
        gate=gate,
        group=Quiet(),
        holdings=holdings,
        commits=Commits("cms", consumer, holdings, 0.0),
        ends=Quiet(),
        progress=Quiet(),
        rebalances=1,
        failed=None,
        look_at_topics=lambda: None,
        falls=lambda _tenure, _offset: False,
    )


def member_of() -> Member:
    """Return a member."""
    config = Config(bootstrap_servers=("x:1",), topics=("documents",), group_id="g", collection=COLLECTION)
    return Member("cms", config, ManualClock(), event_of)


def test_what_was_given_back_is_never_committed_past() -> None:
    """A partition that is read again is sought before the next poll: what comes then is of its watermark, or after it.

    Taken note of after the poll, the records that it brought would be the first that the new tenure knows, and the
    offset before them would be committed, with all that was given back.
    """
    consumer, intake = Consumer(), Intake()
    member = member_of()
    seat: Any = seat_of(consumer)
    member._turn(seat, intake)  # type: ignore[arg-type]  # as much of an intake as a turn needs
    first, second = intake.events
    member.settled([Outcome(first, Verdict.WRITTEN), Outcome(second, Verdict.RETURNED)])
    for _ in range(3):
        member._turn(seat, intake)  # type: ignore[arg-type]  # as above
    assert [event.record.offset for event in intake.events if event.record] == [0, 1, 1, 2, 3, 4, 5, 6]
    assert max(consumer.committed) == 1


def test_what_was_read_to_its_end_makes_room_for_what_the_client_put_aside() -> None:
    """Before each poll, or records of partitions that were paused stay with the client; what is not read stays."""
    consumer, member = Consumer(), member_of()
    for left in ([], ["a record"]):
        consumer._fetcher._next_partition_records = left
        member._turn(seat_of(consumer), Intake())  # type: ignore[arg-type]  # as above
        assert consumer._fetcher._next_partition_records == (left or None)


def test_a_consumer_that_stands_still_is_made_anew_less_and_less_often() -> None:
    """After a minute, and after two more; it begins with one again when all has been well for long enough."""
    member, made = member_of(), 0
    clock: Any = member._clock
    seat: Any = seat_of(Consumer())
    stuck: list[str | None] = [None]
    seat.progress = SimpleNamespace(look=lambda *_tenures, **_named: None, stuck=lambda: stuck[0])

    def anew(_seat: Any, _intake: Any) -> Any:
        nonlocal made
        made += 1
        return seat

    member._anew = anew  # type: ignore[method-assign,assignment]

    def turn(seconds: float) -> int:
        clock.advance(seconds)
        member._turn(seat, Intake())  # type: ignore[arg-type]  # as above
        return made

    assert turn(1000.0) == 0
    stuck[0] = "records of documents/0 do not come"
    assert [turn(seconds) for seconds in (1.0, 1.0, 58.0, 3.0)] == [0, 0, 0, 1]
    assert [turn(seconds) for seconds in (1.0, 100.0, 21.0)] == [1, 1, 2]
    stuck[0] = None
    turn(1.0)
    stuck[0] = "again"
    assert [turn(seconds) for seconds in (1.0, 1.0, 200.0)] == [2, 2, 2]
    stuck[0] = None
    turn(1.0)
    turn(1000.0)
    stuck[0] = "and again"
    assert [turn(seconds) for seconds in (1.0, 1.0, 61.0)] == [2, 2, 3]


def test_what_cannot_be_withdrawn_while_the_consumer_is_made_anew_is_withdrawn_later() -> None:
    """The state is away in that moment: the parked events of the tenures that ended would stay in it for ever.

    Nobody would revive them (their tenure is nobody's), and their records come from the topic again.
    """
    intake, member, successor = Intake(), member_of(), seat_of(Consumer())
    seat: Any = seat_of(Consumer())
    member._open = lambda intake: successor  # type: ignore[method-assign]
    member._turn(seat, intake)  # type: ignore[arg-type]  # as above
    event = intake.events[0]
    assert event.lease is not None
    parked = Outcome(event, Verdict.RETRYING, failure=Failure(Stage.EMBED, "Error", "message"), wait=60.0)
    member.settled([parked])
    member._turn(seat, intake)  # type: ignore[arg-type]  # as above
    seat.close = seat.holdings.end_all
    seat.group = SimpleNamespace(silence=lambda: (99.0, 45.0), heard_at=lambda: None)
    intake.away = True
    assert member._anew(seat, intake) is successor  # type: ignore[arg-type]  # as above
    assert intake.withdrawn == set()
    intake.away = False
    member._turn(successor, intake)  # type: ignore[arg-type]  # as above
    assert event.lease.id in intake.withdrawn


def test_all_is_done_when_the_group_has_said_so() -> None:
    """What is done and not committed would be done again by the next run: a refused commit is no end of this one."""
    consumer, member, intake = Consumer(), member_of(), Intake()
    seat: Any = seat_of(consumer)
    seat.ends = SimpleNamespace(
        is_worked_off=lambda tenure, _now: not tenure.tracker.open,
        look=lambda *_: None,
        of=lambda _: 2,
        moved=lambda *_: None,
        first=lambda _: 2,
    )
    seat.ends.unanswered = lambda _now: None
    seat.commits._seconds = 1.0
    member._turn(seat, intake)  # type: ignore[arg-type]  # as above
    member.settled([Outcome(event, Verdict.WRITTEN) for event in intake.events])
    consumer.poll = lambda timeout_ms: {}  # type: ignore[method-assign]  # there is no more
    consumer.answers = [RebalanceInProgressError(), RebalanceInProgressError(), None]
    tried = 0
    while not member._is_worked_off(seat):
        member._turn(seat, intake)  # type: ignore[arg-type]  # as above
        member._clock.advance(1.0)  # type: ignore[attr-defined]  # a test's own clock
        tried += 1
        assert tried < 10
    assert consumer.committed == [0, 2, 2, 2]


class Mute(Quiet):
    """A group that answers nothing, and takes note of what excuses it."""

    def __init__(self) -> None:
        self.excused: list[float] = []

    def excuse(self, at: float) -> None:
        """Remember."""
        self.excused.append(at)

    def heard_at(self) -> None:
        """Return that it was never heard."""

    def silence(self) -> tuple[float, float]:
        """Return another number than the member has."""
        return 99.0, 45.0


def empty_handed(consumer: Consumer) -> Any:
    """Return a seat that holds nothing."""
    seat = seat_of(consumer)
    seat.holdings.end_all()
    seat.group = Mute()
    return seat


def test_a_group_that_refuses_each_commit_is_found_out_over_rejoins() -> None:
    """After each refusal the member joins again and begins from what is committed: that is no progress."""
    consumer = Consumer()
    seat: Any = seat_of(consumer)
    holdings, commits = seat.holdings, seat.commits

    def turn(now: float, *answers: KafkaError | None) -> None:
        """Begin from what is committed, do two records, and commit."""
        consumer.answers[:] = answers
        holdings.lost([PARTITION])
        holdings.assigned([PARTITION], 1, all_at_once=True)
        commits.forget(frozenset([PARTITION]))
        tracker = holdings.of(PARTITION).tracker
        tracker.passed(5)
        commits.when_due(now)
        for offset in (5, 6):
            tracker.take(offset, now)
            tracker.done(offset)
        commits.when_due(now)

    turn(0.0, None, IllegalGenerationError())
    for now in range(5, 20, 5):
        turn(now, IllegalGenerationError())
    assert commits.unanswered(PATIENCE - 1) is None
    assert "IllegalGeneration" in commits.unanswered(PATIENCE + 1)
    commits.when_due(PATIENCE + 2)  # is answered well
    assert (commits.unanswered(PATIENCE * 9), consumer.committed[-1]) == (None, 7)
    turn(PATIENCE * 10, IllegalGenerationError())
    commits.forget(frozenset())  # others do that by now
    assert commits.unanswered(PATIENCE * 19) is None


def test_a_topic_that_is_waited_for_is_said_once_and_excuses_the_group() -> None:
    """Brokers that say that a topic is not there have answered; what they say is told once, and taken back once."""
    consumer, member = Consumer(), member_of()
    seat = empty_handed(consumer)
    member._seat = seat
    consumer.describe("others")
    with capture_logs() as lines:
        for _ in range(3):
            member._look_for_topics(seat)
        assert list(member.view.missing) == ["documents"]
        silence = member.silence()
        assert silence is not None
        assert silence[0] < 5.0
        consumer.describe("documents")
        for _ in range(3):
            member._look_for_topics(seat)
    assert not member.view.missing
    assert [(line["event"], line["topic"]) for line in lines] == [
        ("waiting for the topic", "documents"),
        ("the topic is there", "documents"),
    ]
    assert len(seat.group.excused) == 3


def test_a_topic_is_not_missing_before_brokers_were_asked_for_it() -> None:
    """What they said before the subscription says nothing of our topics, and would be a false alarm at every start."""
    consumer, member = Consumer(), member_of()
    seat = empty_handed(consumer)
    consumer.describe()
    member._subscribed_at = boot_time() - SAID_SECONDS / 2
    member._look_for_topics(seat)
    assert (len(member.view.missing), seat.group.excused) == (0, [])
    member._subscribed_at -= SAID_SECONDS
    member._look_for_topics(seat)
    assert member.view.missing == ("documents",)


def test_a_picture_that_lacks_a_topic_that_is_held_is_no_alarm() -> None:
    """The client's picture of the brokers can lack things for a while."""
    consumer, member = Consumer(), member_of()
    consumer.describe()
    member._look_for_topics(seat_of(consumer))
    assert member.view.missing == ()


def test_silence_goes_on_over_a_consumer_that_is_made_anew() -> None:
    """The new one has heard nothing: that is no answer, and the clock does not begin again. Before all: no answer."""
    member = member_of()
    assert member.silence() is None
    seat = empty_handed(Consumer())
    heard = boot_time() - 300.0
    seat.group.heard_at = lambda: heard
    seat.close = lambda: None
    member._close(seat)
    between = member.silence()
    member._seat = empty_handed(Consumer())
    after = member.silence()
    assert between is not None
    assert after is not None
    assert min(between[0], after[0]) >= 300.0
    assert after[1] == 45.0


def test_whose_a_partition_is_cannot_be_said_while_the_group_does_not_hear_of_us() -> None:
    """Nothing could be written under a tenure that is held: a letter that is replayed now would fail at each try."""
    consumer, member = Consumer(), member_of()
    seat: Any = seat_of(consumer)
    member._seat = seat
    hears = True
    seat.gate = SimpleNamespace(holds=lambda: hears)
    assert member.holder("documents", 0) is seat.holdings.of(PARTITION)
    hears = False
    with pytest.raises(UnavailableError, match="documents/0 is ours is not known now"):
        member.holder("documents", 0)
    member._over = True  # the last run has ended: nobody will say so any more
    assert member.holder("documents", 0) is seat.holdings.of(PARTITION)
