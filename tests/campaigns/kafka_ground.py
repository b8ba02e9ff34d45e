"""What the scenes of the Kafka campaign stand on: a broker with a topic, a Milvus, members, and their accounts."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client.parser import text_string_to_metric_families
from tests.campaigns.kafka_oracle import check_letters, check_rows, committed, read_back, stored
from tests.campaigns.kafka_stream import Stream
from tests.fixtures.brokers import Noida, Tansu, create_topic, produce
from tests.fixtures.daemon import COLLECTION, wait_for, workplace_in
from tests.fixtures.lite_server import LiteServer
from tests.fixtures.milvus import Server

from ingestd.milvus.lite import Lite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.campaigns.kafka_oracle import Expected
    from tests.fixtures.daemon import Daemon, Workplace

HOUR = 3600.0
SESSION_MS = 6000
"""Tansu has joins wait half of it."""
IN_FLIGHT = 1000
"""The default of limits.in_flight_events."""
POLLED = 500
"""The default of max_poll_records: what may wait for room beyond that."""
WITHOUT = {
    # A member writes whatever the group says.
    "leases": """\
from ingestd.sources._kafka.tenure import Tenure

Tenure.enter = lambda self: True
Tenure.leave = lambda self: None
Tenure.ended = property(lambda self: False)
""",
    # What was taken is committed, whether it is done or not.
    "watermarks": """\
from ingestd.sources._kafka.tracker import Tracker

Tracker.watermark = property(lambda self: self.next)
""",
}
"""What can be taken out of a daemon, and how. It has to fail then."""
SOURCE, TOPIC, GROUP = "cms", "documents", "ingestd"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a campaign is asked for."""

    events: int = 100_000
    documents: int = 20_000
    partitions: int = 8
    broker: Literal["tansu", "noida"] = "tansu"
    milvus: Literal["lite", "server"] = "lite"
    seed: int = 0
    log_level: str = "info"
    without: str | None = None
    """What is taken out of the daemons, to show that the campaign finds out; of ``WITHOUT``."""


@dataclass(slots=True)
class Accounts:
    """What was seen of all runs of all members."""

    accepted: int = 0
    """Events, each as often as it was accepted."""
    starts: int = 0
    kills: int = 0
    kills_at_work: int = 0
    """Those at which something was in flight."""
    stops: int = 0
    rebalances: int = 0
    returned: int = 0
    """Events that were given back because their lease had ended."""


class Member:
    """A member of the group: a daemon that comes and goes, with a state directory that stays.

    Args:
        workplace: Where it runs.
        accounts: Of all members.
        stack: Ends what it leaves. Not before the scene's end: what a killed one leaves has to end by itself.
    """

    def __init__(self, workplace: Workplace, accounts: Accounts, stack: ExitStack) -> None:
        self.workplace = workplace
        self.accounts = accounts
        self._stack = stack
        self._daemon: Daemon | None = None
        self._seen: dict[str, float] = {}

    @property
    def daemon(self) -> Daemon:
        """Its daemon, while it runs."""
        assert self._daemon is not None, "it does not run"
        return self._daemon

    @property
    def runs(self) -> bool:
        """Whether it was started and not ended."""
        return self._daemon is not None

    def start(self, *arguments: str) -> Daemon:
        """Start it."""
        self._daemon = self._stack.enter_context(self.workplace.daemon(*arguments))
        self.accounts.starts += 1
        self._seen = {}
        return self._daemon

    def is_up(self) -> bool:
        """Return whether it has come so far that it can be asked."""
        return bool(self.daemon.said("ready"))

    def look(self) -> dict[str, int]:
        """Take note of how far it is; return its totals, or nothing while it starts."""
        totals = self.daemon.totals
        if totals:
            ends = ("written", "deleted", "unchanged", "superseded", "dead_lettered", "retrying", "in_flight")
            assert totals["accepted"] == sum(totals[name] for name in ends), totals
            self._seen = {"accepted": totals["accepted"], **self._metrics()}
        return totals

    def holds(self) -> int:
        """Return the number of partitions that it holds."""
        return int(self._metrics()["partitions"]) if self.is_up() else 0

    def returned(self) -> int:
        """Return the number of events that it gave back since its start."""
        return int(self._metrics()["returned"])

    def kill(self) -> int:
        """Kill it; return what was in flight, as far as it could be asked."""
        totals = self.look()
        self.daemon.kill()
        self.accounts.kills += 1
        self.accounts.kills_at_work += bool(totals and totals["in_flight"])
        self._end()
        return totals["in_flight"] if totals else 0

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self.daemon.until_said("opening the state")  # before that the signal ends the interpreter
        self.look()
        self.daemon.send(signal.SIGTERM)
        self.join(code=0)
        self.accounts.stops += 1

    def join(self, code: int, seconds: float = HOUR) -> dict[str, int]:
        """Wait until it has ended by itself; return its totals."""
        daemon = self.daemon
        found = daemon.wait(seconds)
        assert found == code, f"exit {found}, not {code}:\n{daemon.log[-4000:]}"
        ended = daemon.said("ended")
        if ended:  # or it was still starting
            self._seen["accepted"] = ended[0]["accepted"]
        self._end()
        return ended[0] if ended else {}

    def _end(self) -> None:
        self.accounts.accepted += int(self._seen.get("accepted", 0))
        self.accounts.returned += int(self._seen.get("returned", 0))
        self.accounts.rebalances += len(self.daemon.said("partitions assigned"))
        self._daemon = None

    def _metrics(self) -> dict[str, float]:
        found = {"returned": 0.0, "partitions": 0.0}
        for family in text_string_to_metric_families(self.daemon.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == "ingestd_kafka_partitions":
                    found["partitions"] = sample.value
                if sample.name == "ingestd_events_settled_total" and sample.labels["verdict"] == "returned":
                    found["returned"] = sample.value
        return found


@dataclass(slots=True)
class Ground:
    """A broker, a topic, a Milvus, and members."""

    wish: Wish
    folder: Path
    bootstrap: str
    uri: str | None
    """Of a Milvus that all members share; None: each has a Lite of its own."""
    stream: Stream
    stack: ExitStack
    accounts: Accounts = field(default_factory=Accounts)
    members: list[Member] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)

    @property
    def produced(self) -> int:
        """The number of records that were acknowledged."""
        return sum(self.ends.values())

    def produce(self, count: int) -> None:
        """Produce the stream's next events, and wait until all are acknowledged."""
        for start in range(0, count, 10_000):
            records = list(self.stream.take(min(10_000, count - start)))
            for partition, offset in produce(self.bootstrap, TOPIC, records):
                self.ends[partition] = max(self.ends[partition], offset + 1)

    def member(self, name: str, **settings: object) -> Member:
        """Make a member; ``settings`` are keys of its configuration, with __ for dots."""
        workplace = self.stack.enter_context(workplace_in(self.folder / name))
        source: dict[str, Any] = {
            "type": "kafka",
            "bootstrap_servers": [self.bootstrap],
            "topics": [TOPIC],
            "group_id": GROUP,
            "collection": COLLECTION,
            "consumer": {"session_timeout_ms": SESSION_MS},
        }
        if self.wish.broker == "noida":
            # A dynamic member that is killed blocks its group there for good.
            source["group_instance_id"] = name
        workplace.settings["sources"] = {SOURCE: source}
        workplace.settings["collections"] = {
            COLLECTION: {"chunker": {"type": "whole"}, "vectors": {"dense": {"embedder": "hash"}}}
        }
        workplace.configure("embedders.hash.dimension", 16)
        workplace.configure("embedders.hash.kinds", ["dense"])
        workplace.configure("log.level", self.wish.log_level)
        if self.uri is not None:
            workplace.configure("milvus.uri", self.uri)
        if self.wish.without is not None:
            _take_out(workplace, self.wish.without)
        for key, value in settings.items():
            workplace.configure(key.replace("__", "."), value)
        made = Member(workplace, self.accounts, self.stack)
        self.members.append(made)
        return made

    def committed(self) -> dict[int, int]:
        """Return what the group has committed."""
        return committed(self.bootstrap, TOPIC, GROUP, self.ends)

    def until_worked_off(self, seconds: float = HOUR) -> None:
        """Wait until all that was produced is committed, while the members run."""

        def worked_off() -> bool:
            for member in self.members:
                if member.runs:
                    member.daemon.until(lambda: True, "it has not ended by itself")
            return self.committed() == self.ends

        wait_for(worked_off, "the group has committed everything", seconds)

    def expected(self) -> Expected:
        """Return what the topic says."""
        return read_back(self.bootstrap, TOPIC, self.ends)

    def check_rows(self, expected: Expected) -> None:
        """Check what Milvus holds. A member with a Lite of its own has to have ended."""
        if self.uri is not None:
            check_rows(expected, stored(self.uri))
            return
        lite = Lite(self.members[0].workplace.milvus, self.folder / "reader.json")
        try:
            check_rows(expected, stored(lite.start()))
        finally:
            lite.close()

    def check(self) -> dict[str, int]:
        """Check everything, once all members have ended; return the figures."""
        assert not any(member.runs for member in self.members)
        committed = self.committed()
        assert committed == self.ends, f"the group has committed {committed}, and the topic ends at {self.ends}"
        expected = self.expected()
        self.check_rows(expected)
        letters = [letter for member in self.members for letter in member.workplace.letters()]
        kept = check_letters(expected, letters)
        return {
            "records": expected.records,
            "documents": len(expected.documents),
            "poison": len(expected.poison),
            "kinds_of_poison": len(set(expected.poison.values())),
            "dead_letters": kept,
            "redone": self.accounts.accepted - expected.records,
            "starts": self.accounts.starts,
            "kills": self.accounts.kills,
            "kills_at_work": self.accounts.kills_at_work,
            "rebalances": self.accounts.rebalances,
            "returned": self.accounts.returned,
        }

    def most_redone(self, interruptions: int, rate: float) -> int:
        """Return the most records that so many kills can have had done again.

        That is what was accepted and not settled, what was settled since the last commit, which is a second or two
        ago, and what was settled in the seconds for which a record waited for others of its document.
        """
        return int(interruptions * (IN_FLIGHT + POLLED + 4 * rate))


@contextmanager
def ground(wish: Wish, folder: Path, *, shared: bool) -> Iterator[Ground]:
    """Make the ground of one scene.

    Args:
        wish: What is asked for.
        folder: For everything.
        shared: Whether several members write to one Milvus: then it is a server, whatever kind it is.
    """
    with ExitStack() as stack:
        folder.mkdir(parents=True)
        broker = {"tansu": Tansu, "noida": Noida}[wish.broker](folder / "broker")
        stack.callback(broker.kill)
        broker.start()
        create_topic(broker.bootstrap, TOPIC, wish.partitions)
        uri = None
        if wish.milvus == "server":
            server = Server(folder / "milvus")
            be_patient(folder / "milvus" / "configs" / "milvus.yaml")
            stack.callback(server.kill)
            server.start()
            uri = server.uri
        elif shared:
            lite = LiteServer(folder / "milvus")
            stack.callback(lite.kill)
            lite.start()
            uri = lite.uri
        stream = Stream(wish.seed, wish.documents, wish.partitions)
        ends = dict.fromkeys(range(wish.partitions), 0)
        yield Ground(wish, folder, broker.bootstrap, uri, stream, stack, ends=ends)


def be_patient(configuration: Path) -> None:
    """Let a server that gets no processor for some seconds live on: the fixture has it restart quickly instead."""
    quick = configuration.read_text()
    assert "    ttl: 3 " in quick
    configuration.write_text(quick.replace("    ttl: 3 ", "    ttl: 60 "))


def moment(seconds: float) -> float:
    """Return the time in so many seconds."""
    return time.monotonic() + seconds


def until_moment(at: float, members: list[Member]) -> None:
    """Wait for a time, while no member ends by itself."""

    def come() -> bool:
        for member in members:
            if member.runs:
                member.daemon.until(lambda: True, "it has not ended by itself")
        return time.monotonic() >= at

    wait_for(come, "the moment", max(0.0, at - time.monotonic()) + 30)


def rate(count: int, seconds: float) -> float:
    """Return events a second."""
    return round(count / seconds, 1)


def _take_out(workplace: Workplace, what: str) -> None:
    """Have a member's daemon do without something: Python imports ``sitecustomize`` when it starts."""
    folder = workplace.root / "without"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WITHOUT[what])
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    workplace.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
