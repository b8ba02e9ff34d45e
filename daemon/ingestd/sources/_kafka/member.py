"""A member of a consumer group: the one thread that owns the consumer.

A turn of its loop polls, takes note of what was settled, hands in what there is room for, and commits watermarks. It
never waits for the pipeline: while that is full all partitions are paused and polling goes on, so that the group does
not take a slow model for a dead member. (Pausing some partitions only was turned down: the client can then keep back
records of the others for good.) It does wait for brokers, each time for seconds at most: for a poll; now and then for
where partitions end and how far they are; and, once for each partition that is new to the group, for where it begins.
Heartbeats go on meanwhile, on the client's own thread.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
from kafka.errors import FencedInstanceIdError, KafkaError, TopicAuthorizationFailedError
from kafka.structs import TopicPartition

from ingestd.errors import Stopped, UnavailableError
from ingestd.model import Verdict
from ingestd.sources._kafka.backlog import Backlog
from ingestd.sources._kafka.connection import (
    answered_at,
    connect,
    denied,
    drop_unreadable,
    give_back,
    partition_count,
)
from ingestd.sources._kafka.errors import raise_if_refused, told
from ingestd.sources._kafka.parking import Parking
from ingestd.sources._kafka.rebalance import Seat
from ingestd.sources._kafka.tenure import boot_time
from ingestd.sources._kafka.view import PartitionView, View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kafka import KafkaConsumer

    from ingestd.model import Event, Outcome
    from ingestd.ports import Clock, Intake
    from ingestd.sources._kafka.holdings import Holdings
    from ingestd.sources._kafka.tenure import Tenure
    from ingestd.sources.kafka import Config

IDLE_MS = 200.0
"""The longest poll with nothing to do: outcomes are taken note of between polls."""
BUSY_MS = 10.0
"""The longest poll while something waits for room."""
REBALANCE_MS = 1000.0
"""The longest poll during a rebalance: a join whose answer comes between two polls is begun again by the client."""
RETRY_SECONDS = 1.0
"""After a poll that failed, or a broker that did not answer."""
REBUILD_AFTER = 30
"""Polls that failed in a row, after which the consumer is made anew."""
STUCK_SECONDS, LONGEST_STUCK = 60.0, 3600.0
"""How long the view may say that it is stuck before the consumer is made anew: the first time, and at the most."""
SAID_SECONDS = 1.0
"""After a subscription: what brokers say of topics before that may answer what was asked before it."""
APPEARED_SECONDS = 10.0
"""How long a topic that appeared may be given to nobody here, the group being at rest, before that is asked anew."""

log = structlog.get_logger(__name__)


class Member:
    """A member of the group.

    Args:
        name: The source's name.
        config: The settings.
        clock: The daemon's.
        event_of: Makes an event of a record.
    """

    def __init__(self, name: str, config: Config, clock: Clock, event_of: Callable[[Any, Tenure], Event]) -> None:
        self._name = name
        self._config = config
        self._clock = clock
        self._backlog = Backlog(event_of)
        self._parking = Parking(name, config.max_lag, config.max_parked_seconds)
        self._notices: deque[Outcome] = deque()
        self._seat: Seat | None = None
        self.worked_off = False
        """Whether it has ended by itself, as ``once`` does."""
        self._over = False
        """Whether it has ended, and holds nothing for good."""
        self._silent_since: float | None = None
        """When the group last answered the consumers before this one, or was first asked; None: no broker answered."""
        self._subscribed_at = 0.0
        self._appeared_at: float | None = None
        """When the last topic that was waited for appeared; None: nothing waits for what the group gives of it."""
        self._again: set[TopicPartition] = set()
        self._paused = False
        self._failures = 0
        self._stuck_since: float | None = None
        """When it began that nothing goes on; None: something does."""
        self._patience = STUCK_SECONDS
        self._patient_until = 0.0
        self._rebalances = self._refused = 0
        """Of the consumers before this one: what is exported only grows."""
        self.view = View(since=clock.monotonic())

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of outcomes, for the consumer's thread. Safe to call from any thread."""
        self._notices.extend(outcomes)

    def tenure(self, tenure_id: str) -> Tenure | None:
        """Return a tenure that goes on. Safe to call from any thread."""
        seat = self._seat
        return None if seat is None else seat.holdings.known(tenure_id)

    def holder(self, topic: str, number: int) -> Tenure | None:
        """Return the tenure of a partition that is held here; None: it is not. Safe to call from any thread.

        Raises:
            UnavailableError: It cannot be said now: the group is deciding, or has lost sight of us.
        """
        seat = self._seat
        tenure = None if seat is None else seat.holdings.of(TopicPartition(topic, number))
        # Also of one that is held: nothing can be written under it while the group does not hear of us.
        if not self._over and (seat is None or not seat.gate.holds()):
            raise UnavailableError(f"kafka:{self._name}", f"whether {topic}/{number} is ours is not known now")
        return tenure

    def is_expired(self, position: str) -> bool:
        """Return whether a parked record gets no further try. Safe to call from any thread."""
        return position in self._parking.expired

    def silence(self) -> tuple[float, float] | None:
        """Return ``Group.silence`` over all consumers; None: no broker has answered yet. Safe from any thread.

        A consumer that is made anew has not heard anything, and that would look like an answer.
        """
        seat, since = self._seat, self._silent_since
        if since is None:
            return None
        if seat is None:
            return boot_time() - since, math.inf
        return boot_time() - max(since, seat.group.heard_at() or since), seat.group.silence()[1]

    def run(self, intake: Intake, *, once: bool) -> None:
        """Consume until ``intake`` raises Stopped, or, with ``once``, until what is there now is settled."""
        seat = None
        self.view = replace(self.view, since=self._clock.monotonic())
        try:
            seat = self._open(intake)
            while not (once and self._is_worked_off(seat)):
                seat = self._turn(seat, intake)
                intake.wait(0)
            self.worked_off = True
        except Stopped:
            if seat is not None:
                self._drain(seat, intake)
            raise
        finally:
            self._close(seat)
            self._over = True

    def _open(self, intake: Intake) -> Seat:
        """Reach the brokers, however long that takes, and ask for partitions."""
        consumer = self._reach(intake)
        if self._silent_since is None:
            self._silent_since = boot_time()
        seat = Seat(self._name, consumer, self._config, self._take_note)
        self._failures = 0
        self._well()
        seat.subscribe()
        self._subscribed_at = boot_time()
        self._seat = seat
        log.info("consuming", source=self._name, group=self._config.group_id, assignment=self._config.assignment)
        return seat

    def _reach(self, intake: Intake) -> KafkaConsumer:
        while True:
            try:
                return connect(self._name, self._config)
            except UnavailableError as error:
                self._trouble(str(error))
                self._parking.withdraw(intake, set())
                intake.wait(RETRY_SECONDS)

    def _turn(self, seat: Seat, intake: Intake) -> Seat:
        """Go round once; return the seat, which may be another one after failures without end."""
        # Before the poll: a partition that is read again is sought to its watermark, and what a poll has brought by
        # then is of the place that it was at. Taken under the new tenure, its offsets would be committed past the rest.
        self._take_note(seat.holdings)
        seat.look_at_topics()
        give_back(seat.consumer)
        try:
            records = seat.consumer.poll(timeout_ms=self._poll_ms(seat))
        except Exception as error:  # noqa: BLE001 - what the client chokes on is a record's fault, and no end of ours
            return self._failed(seat, error, intake)
        if seat.group.fenced():
            raise_if_refused(self._name, FencedInstanceIdError())
        hidden = denied(seat.consumer)
        if hidden:
            raise_if_refused(self._name, TopicAuthorizationFailedError(", ".join(sorted(hidden))))
        self._look_for_topics(seat)
        if seat.group.gone() or self._is_passed_over(seat) or self._stands_still():
            return self._anew(seat, intake)
        seat.group.see_through()
        if self._failures:
            self._failures = 0
            self._well()
        now = self._clock.monotonic()
        self._take(seat, records, now)
        self._parking.withdraw(intake, seat.holdings.ended)
        self._place(seat)
        self._backlog.hand_in(intake)
        self._steer(seat)
        if seat.gate.holds():
            seat.commits.when_due(now)
            if seat.commits.error is not None:
                raise_if_refused(self._name, seat.commits.error)
            seat.ends.look([tenure.partition for tenure in seat.holdings.tenures()], now)
            seat.progress.look(seat.holdings.tenures(), now, paused=self._paused)
        self._parking.unstick(seat.holdings.tenures(), intake, now)
        self._show(seat, now)
        return seat

    def _look_for_topics(self, seat: Seat) -> None:
        """Say which topics are waited for: without them the client asks the group for nothing, however long."""
        consumer, before = seat.consumer, frozenset(self.view.missing)
        if len(seat.holdings) and not before:
            return
        missing = frozenset(topic for topic in self._config.topics if partition_count(consumer, topic) is None)
        said = answered_at(consumer)
        if len(seat.holdings) or said < self._subscribed_at + SAID_SECONDS:
            missing &= before  # the client's picture can lack things for a while
        elif missing:
            seat.group.excuse(said)
            self._silent_since = max(said, self._silent_since or said)
        for topic in sorted(missing - before):
            log.warning("waiting for the topic", source=self._name, topic=topic)
        for topic in sorted(before - missing):
            log.info("the topic is there", source=self._name, topic=topic)
            self._appeared_at = boot_time()
        self.view = replace(self.view, missing=tuple(sorted(missing)))

    def _is_passed_over(self, seat: Seat) -> bool:
        """Whether the group gives nothing of a topic that appeared. Asked once a topic: others may rightly have it all.

        A member that joined while there was nothing to have, and joins again, gets the same nothing from some brokers
        (Tansu): only another member gets its part.
        """
        if len(seat.holdings):
            self._appeared_at = None
        if self._appeared_at is None or seat.group.rebalancing():
            return False
        if boot_time() - self._appeared_at < APPEARED_SECONDS:
            return False
        self._appeared_at = None
        return True

    def _stands_still(self) -> bool:
        """Whether it is time for another consumer, since nothing goes on with this one though the group answers.

        The client keeps most troubles of a fetch to itself. Where the trouble is not its own, another consumer does not
        help, and costs the group a rebalance: so it is twice as long each time, until all has been well for as long.
        """
        now = self._clock.monotonic()
        if self.view.stuck is None:
            self._stuck_since = None
            if now > self._patient_until:
                self._patience = STUCK_SECONDS
            return False
        if self._stuck_since is None:
            self._stuck_since = now
        if now - self._stuck_since < self._patience:
            return False
        self._stuck_since = None
        self._patience = min(2 * self._patience, LONGEST_STUCK)
        self._patient_until = now + 2 * self._patience
        return True

    def _poll_ms(self, seat: Seat) -> float:
        if seat.group.rebalancing():
            return REBALANCE_MS
        return BUSY_MS if len(self._backlog) else IDLE_MS

    def _failed(self, seat: Seat, error: Exception, intake: Intake) -> Seat:
        """Judge a poll that failed: end, or wait a little, or begin with another consumer."""
        if seat.failed is not None:
            raise seat.failed from error
        raise_if_refused(self._name, error)
        if not isinstance(error, KafkaError | OSError) and self.view.trouble is None:
            # A header's name that is no UTF-8, a value that its codec does not read: whoever may produce can send it,
            # and an end would come again at every start. It holds its own partition, and is said.
            log.error("the client cannot read a record", source=self._name, exc_info=error)
        drop_unreadable(seat.consumer)
        self._failures += 1
        self._trouble(f"reading fails: {told(error)}")
        self._take_note(seat.holdings)
        self._parking.withdraw(intake, seat.holdings.ended)
        intake.wait(RETRY_SECONDS)
        if self._failures < REBUILD_AFTER:
            return seat
        return self._anew(seat, intake)

    def _anew(self, seat: Seat, intake: Intake) -> Seat:
        """Go on with another consumer: this one does not find its way back by itself."""
        silent = round(seat.group.silence()[0])
        log.warning("the consumer is made anew", source=self._name, failures=self._failures, silent_seconds=silent)
        self._close(seat)
        self._parking.withdraw(intake, seat.holdings.ended)
        successor = self._open(intake)
        successor.holdings.ended |= seat.holdings.ended  # what could not be withdrawn: the state was away
        return successor

    def _take(self, seat: Seat, records: Mapping[TopicPartition, Sequence[Any]], now: float) -> None:
        for partition, found in records.items():
            tenure = seat.holdings.of(partition)
            if tenure is None:
                continue  # taken from us in this very poll
            seat.ends.moved(partition, now)
            for record in found:
                if seat.falls(tenure, record.offset) or not tenure.tracker.take(record.offset, now):
                    log.warning("a partition begins anew", partition=str(partition), offset=record.offset)
                    tenure = seat.fallen(partition)
                    tenure.tracker.take(record.offset, now)
                self._backlog.put(record, tenure)

    def _take_note(self, holdings: Holdings) -> None:
        """Bring the trackers up to date with what was settled."""
        while self._notices:
            self._note(self._notices.popleft(), holdings)
        for partition in self._again:
            if holdings.of(partition) is not None:
                log.info("read again from its watermark", source=self._name, partition=str(partition))
                holdings.again(partition)
        self._again.clear()

    def _note(self, outcome: Outcome, holdings: Holdings) -> None:
        event = outcome.event
        if event.record is None:  # it was parked, and another event took its place
            self._parking.done(event.position)
            return
        if event.lease is None or event.lease.lent:
            return
        tenure, offset = holdings.known(event.lease.id), event.record.offset
        if tenure is None:
            if outcome.verdict is Verdict.RETRYING:  # parked in the very moment in which its tenure ended
                holdings.ended.add(event.lease.id)
        elif outcome.verdict is Verdict.RETRYING:
            self._parking.park(event.position, tenure, offset)
        elif outcome.verdict is Verdict.RETURNED:
            self._again.add(tenure.partition)
        else:
            self._parking.done(event.position)
            tenure.tracker.done(offset)

    def _place(self, seat: Seat) -> None:
        """Seek to where partitions begin that are newly held, where that is not the earliest record."""
        if self._config.start == "earliest":
            seat.holdings.placed.clear()
            return
        for partition in list(seat.holdings.placed):
            try:
                offset = seat.placing.place(partition)
            except KafkaError as error:
                raise_if_refused(self._name, error)
                self._trouble(f"{partition.topic}/{partition.partition} cannot be placed: {told(error)}")
                self._failures += 1  # so that the next turn without one says that all is well
                return
            if offset is not None:
                log.info("begins", source=self._name, partition=str(partition), offset=offset)
            seat.holdings.placed.discard(partition)
        seat.placing.done()

    def _steer(self, seat: Seat) -> None:
        """Pause while something waits, or while nothing that is read could be written."""
        behind = any(tenure.tracker.lag > self._config.max_lag for tenure in seat.holdings.tenures())
        wait = bool(len(self._backlog) or seat.holdings.placed or behind or not seat.gate.holds())
        if wait:
            seat.consumer.pause(*seat.consumer.assignment())
        else:  # also what was paused when it was assigned, until it was placed
            seat.consumer.resume(*seat.consumer.paused())
        self._paused = wait

    def _is_worked_off(self, seat: Seat) -> bool:
        """Return whether all that was there when each partition was first looked at is settled, and committed."""
        if not len(seat.holdings):
            return self._is_surplus(seat)
        if seat.holdings.placed or len(self._backlog) or not seat.gate.holds():
            return False
        now = self._clock.monotonic()
        if not all(seat.ends.is_worked_off(tenure, now) for tenure in seat.holdings.tenures()):
            return False
        # What was there; where more keeps coming, there is always something that is not committed yet.
        return seat.commits.have(
            {
                tenure.partition: min(tenure.tracker.watermark, seat.ends.first(tenure.partition) or 0)
                for tenure in seat.holdings.tenures()
                if tenure.tracker.watermark is not None
            }
        )

    def _is_surplus(self, seat: Seat) -> bool:
        """Return whether the group has given us nothing for so long that whoever holds the partitions is alive."""
        waits = self.view.missing or self._failures or self._appeared_at is not None
        if waits or not seat.gate.holds() or not seat.group.has_decided():
            return False
        log.info("others hold all partitions: there is nothing to do here", source=self._name)
        return True

    def _show(self, seat: Seat, now: float) -> None:
        stuck = seat.progress.stuck() or seat.ends.unanswered(now) or seat.commits.unanswered(now)
        if stuck is not None and self.view.stuck is None:
            log.warning("the group answers, and yet it does not go on", source=self._name, reason=stuck)
        partitions = tuple(
            PartitionView(
                tenure.partition,
                seat.ends.of(tenure.partition),
                tenure.tracker.watermark,
                0.0 if tenure.tracker.oldest is None else now - tenure.tracker.oldest[1],
            )
            for tenure in seat.holdings.tenures()
        )
        self.view = replace(
            self.view,
            since=self.view.since if bool(partitions) == bool(self.view.partitions) else now,
            partitions=partitions,
            stuck=stuck,
            waits_for=self._backlog.waits_for,
            rebalances=self._rebalances + seat.rebalances,
            refused_commits=self._refused + seat.commits.refused,
            paused=self._paused,
        )

    def _trouble(self, reason: str) -> None:
        if self.view.trouble is None:
            log.warning("the brokers are away; trying again", source=self._name, reason=reason)
        self.view = replace(self.view, trouble=reason)

    def _well(self) -> None:
        if self.view.trouble is not None:
            log.info("the brokers are back", source=self._name)
        self.view = replace(self.view, trouble=None)

    def _drain(self, seat: Seat, intake: Intake) -> None:
        """Stay in the group until what was begun is settled, so that it counts."""
        with suppress(KafkaError, OSError):
            while not intake.drained(0.05):
                seat.consumer.pause(*seat.consumer.assignment())
                seat.consumer.poll(timeout_ms=0)
                seat.group.see_through()
                self._take_note(seat.holdings)
                if seat.gate.holds():
                    seat.commits.when_due(self._clock.monotonic())

    def _close(self, seat: Seat | None) -> None:
        self._seat = None
        if seat is not None:
            self._take_note(seat.holdings)
            seat.close()
            self._silent_since = max(seat.group.heard_at() or 0.0, self._silent_since or 0.0)
            self._rebalances += seat.rebalances
            self._refused += seat.commits.refused
            now = self._clock.monotonic()
            self.view = replace(self.view, partitions=(), since=now if self.view.partitions else self.view.since)
