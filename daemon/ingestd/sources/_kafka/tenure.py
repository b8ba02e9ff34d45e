"""The right to write what a partition's records are about, and how it ends.

A member of a consumer group owns a partition until the group says otherwise, or until the group no longer hears of the
member: then another one has it, and a write that comes late would put old over new. So every call that changes Milvus
is made under the tenure of the partition that it is for (``model.Lease``), which holds while

- the member is in the group, and had a heartbeat answered not long ago. Time is taken from a clock that runs on while
  the machine sleeps, and a process that was stopped finds its heartbeat old when it wakes;
- no rebalance is deciding who owns what. Calls wait for its end, and its beginning waits for calls that are on their
  way.

What remains is one call whose request is with Milvus already when the process is stopped. Fencing tokens, which
would close that as well, need a store that compares them; Milvus does not.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from kafka.structs import TopicPartition

    from ingestd.sources._kafka.tracker import Tracker

FRESH = 0.8
"""The share of the session time-out after which a heartbeat is too old: the group may have given up on us soon."""
_LOOK = 0.05
"""Seconds between two looks at a rebalance that somebody waits for."""


def boot_time() -> float:
    """Return seconds since the machine was started, those included in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Membership(Protocol):
    """What a consumer knows of its place in the group. Safe to call from any thread."""

    session_seconds: float

    def rebalancing(self) -> bool:
        """Return whether the group is deciding who owns what."""
        ...

    def heartbeat_age(self) -> float | None:
        """Return the seconds since a heartbeat was answered; None: we are not in the group."""
        ...


class Gate:
    """Where calls under the tenures of one source, and the rebalances of its group, wait for one another.

    Args:
        membership: Says whether we are in the group.
        clock: For waiting.
    """

    def __init__(self, membership: Membership, clock: Callable[[], float] = time.monotonic) -> None:
        self._membership = membership
        self._clock = clock
        self._changed = threading.Condition()
        self._deciding = False
        self._calls = 0

    @property
    def calls(self) -> int:
        """The number of calls that are on their way."""
        return self._calls

    def close(self) -> None:
        """Let no call begin: it is being decided who owns what."""
        with self._changed:
            self._deciding = True

    def open(self) -> None:
        """Let calls begin again, under the tenures that are left."""
        with self._changed:
            self._deciding = False
            self._changed.notify_all()

    def holds(self) -> bool:
        """Return whether the group still knows of us, and no rebalance is under way."""
        return not self._undecided() and self._fresh()

    def enter(self, tenure: Tenure) -> bool:
        """Begin a call. See ``model.Lease``."""
        with self._changed:
            deadline = self._clock() + self._membership.session_seconds
            while not tenure.ended and self._undecided():
                if self._clock() >= deadline:
                    return False
                self._changed.wait(_LOOK)
            if tenure.ended or not self._fresh():
                return False
            self._calls += 1
            return True

    def leave(self) -> None:
        """End a call."""
        with self._changed:
            self._calls -= 1
            self._changed.notify_all()

    def _undecided(self) -> bool:
        return self._deciding or self._membership.rebalancing()

    def _fresh(self) -> bool:
        age = self._membership.heartbeat_age()
        return age is not None and age < FRESH * self._membership.session_seconds


class Tenure:
    """One partition, held without a break (``model.Lease``).

    Args:
        partition: The partition.
        domain: What versions from it compare within.
        tracker: Its records.
        gate: The source's.
    """

    lent = False

    def __init__(self, partition: TopicPartition, domain: str, tracker: Tracker, gate: Gate) -> None:
        self.id = uuid.uuid4().hex
        self.partition = partition
        self.domain = domain
        self.tracker = tracker
        self._gate = gate
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the partition is not ours any more, or was begun anew."""
        return self._ended

    def end(self) -> None:
        """Give it up: no call begins under it any more."""
        self._ended = True

    def enter(self) -> bool:
        """Begin a call that changes Milvus. See ``model.Lease``."""
        return self._gate.enter(self)

    def leave(self) -> None:
        """End a call."""
        self._gate.leave()


class Borrowed:
    """A tenure, for a dead letter of its partition that an operator has tried again (``model.Lease``).

    The letter's offset was passed long ago, so it is in no tracker, and nothing would bring it again if it were given
    back: it waits on where it did.

    Args:
        tenure: The one under which its partition is held.
    """

    lent = True

    def __init__(self, tenure: Tenure) -> None:
        self.id = tenure.id
        self._tenure = tenure

    @property
    def ended(self) -> bool:
        """Whether the partition is not ours any more."""
        return self._tenure.ended

    def enter(self) -> bool:
        """Begin a call that changes Milvus. See ``model.Lease``."""
        return self._tenure.enter()

    def leave(self) -> None:
        """End a call."""
        self._tenure.leave()


class Loan:
    """The right to a single try, for a dead letter where nobody else writes (``model.Lease``).

    Its partition may not be held here, and nothing would bring the event again if it were given back. Its version
    still keeps it from replacing anything newer.
    """

    lent = True
    ended = False

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex

    def enter(self) -> bool:
        """Begin a call: always."""
        return True

    def leave(self) -> None:
        """End a call."""
