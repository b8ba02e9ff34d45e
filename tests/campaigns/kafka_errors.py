"""Every error that a broker may answer, to every request of a member of a group: what does the source make of it?

librdkafka's mock cluster answers chosen requests with chosen errors, once, six times in a row, or until it is told to
stop. Each case has a cluster, a topic, and a source of its own; what the source hands in is settled at once. There are
three good ends: it recovers by itself, and all records are settled and committed; it ends with its reason; or, while
the error lasts, it goes on all the same. Never is it silent: while an error lasts that keeps records back, the
source's checks say so within 30 s, and once it is over the source recovers.

    python -m tests.campaigns.kafka_errors [REQUEST…] [--at-a-time N] [--sample]
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import json
import logging
import sys
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from tests.fixtures.mock_cluster import MOCK_OPTIONS, Mock

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.errors import KafkaError, for_code
    from kafka.structs import TopicPartition

from ingestd.errors import ConfigError, Stopped
from ingestd.model import Event, Op, Outcome, Verdict
from ingestd.sources.kafka import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from ingestd import ports
    from ingestd.sources.kafka import KafkaSource

TOPIC, GROUP = "documents", "ingestd"
PARTITIONS, RECORDS = 2, 10
NOTICED = 30.0
"""Seconds within which checks say that records are kept back (promise 10)."""
RECOVERED = 45.0
"""Seconds that a recovery may take once nothing is wrong any more: a session and a few back-offs."""
MET = 3.0
"""Seconds within which a member has asked for everything that it asks for now and then."""
DROPPED = -195
"""librdkafka's own code: the connection is closed instead of an answer."""
NEVER = 3_600_000
"""Milliseconds: an answer that comes when nobody waits for it any more."""


class Times(enum.Enum):
    """How often an error is answered."""

    ONCE = 1
    SIX = 6
    ON_AND_ON = 100_000


@dataclass(frozen=True, slots=True)
class Request:
    """A kind of request, the errors that brokers answer to it, and what makes a member send it when it is settled."""

    api_key: int
    codes: tuple[int, ...]
    trigger: tuple[int, int] | None = None
    """API key and error code of an answer that leads to it; None: it is sent anyhow."""


FETCH, HEARTBEAT = 1, 12
REJOIN, OTHER_COORDINATOR, OTHER_LEADER = (HEARTBEAT, 27), (HEARTBEAT, 16), (FETCH, 6)
REQUESTS = {
    "Fetch": Request(
        FETCH, (-1, 1, 2, 3, 5, 6, 7, 9, 10, 13, 29, 35, 42, 56, 70, 71, 74, 75, 76, 78, 100, 103, 106, DROPPED)
    ),
    "ListOffsets": Request(2, (-1, 3, 5, 6, 7, 9, 13, 29, 35, 42, 43, 56, 74, 75, 78, DROPPED)),
    "Metadata": Request(3, (DROPPED,), OTHER_LEADER),  # the mock answers no errors to it, but about topics
    "OffsetCommit": Request(
        8, (-1, 3, 7, 12, 13, 14, 15, 16, 22, 24, 25, 27, 28, 29, 30, 35, 42, 82, 89, 111, DROPPED)
    ),
    "OffsetFetch": Request(9, (-1, 3, 7, 13, 14, 15, 16, 22, 24, 25, 29, 30, 35, 42, 88, DROPPED)),
    "FindCoordinator": Request(10, (-1, 7, 13, 14, 15, 16, 24, 30, 35, 42, DROPPED), OTHER_COORDINATOR),
    "JoinGroup": Request(
        11, (-1, 7, 13, 14, 15, 16, 22, 23, 24, 25, 26, 27, 30, 35, 42, 79, 81, 82, 111, DROPPED), REJOIN
    ),
    "Heartbeat": Request(HEARTBEAT, (-1, 7, 13, 14, 15, 16, 22, 25, 27, 30, 35, 42, 82, 111, DROPPED)),
    "SyncGroup": Request(14, (-1, 7, 13, 14, 15, 16, 22, 23, 24, 25, 27, 30, 35, 42, 82, DROPPED), REJOIN),
}
AT_START = frozenset({"ListOffsets", "Metadata", "OffsetFetch", "FindCoordinator", "JoinGroup", "SyncGroup", "Fetch"})
"""Requests that a start makes; those are asked with errors there, too."""
SETTLED_ONLY = frozenset(REQUESTS) - {"OffsetFetch"}
"""Requests that a member makes again once it is settled."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request, what is answered to it, when, and how often."""

    request: str
    what: str
    moment: str
    times: Times
    begin: Callable[[Mock], None]
    """Makes it so."""
    end: Callable[[Mock], None]
    """Makes it good again."""

    def __str__(self) -> str:
        """Return it for the table."""
        return f"{self.request}, {self.what}, {self.times.name.lower().replace('_', ' ')}, {self.moment}"


@dataclass(frozen=True, slots=True)
class Result:
    """How a case went."""

    case: Case
    verdict: str
    """recovered, went on, ended, or SILENT, STUCK, LOST: those must not be."""
    seconds: float
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether this may be."""
        return self.verdict.islower()


NOT_LATER = {("JoinGroup", 79)}
"""The mock cluster ends the whole process then: it has no id to hand out."""
ABOUT_A_TOPIC = (-1, 3, 5, 9, 29)
"""What Metadata may say of one topic."""


class Clock:
    """The machine's."""

    def time(self) -> float:
        """See ``ports.Clock``."""
        return time.time()

    def monotonic(self) -> float:
        """See ``ports.Clock``."""
        return time.monotonic()


@dataclass
class Scope:
    """See ``ports.SourceScope``. A Kafka source asks for no seens."""

    clock: ports.Clock = field(default_factory=Clock)
    seen: Any = None
    max_bytes: int = 1 << 20
    shared: bool = False

    def fingerprint(self, verdict: Verdict) -> str:
        """Return the one fingerprint."""
        return verdict.value


class Intake:
    """See ``ports.Intake``. Has room for everything, and settles it at once."""

    def __init__(self, source: KafkaSource) -> None:
        self.seen: dict[str, int] = {}
        """How often each document came."""
        self.stop = threading.Event()
        self._source = source

    def submit(self, event: Event) -> None:
        """See ``ports.Intake``."""
        self.offer([event])

    def offer(self, events: Sequence[Event]) -> int:
        """See ``ports.Intake``."""
        if self.stop.is_set():
            raise Stopped
        for event in events:
            self.seen[event.key.document_id] = self.seen.get(event.key.document_id, 0) + 1
            verdict = Verdict.WRITTEN if event.op is Op.UPSERT else Verdict.DELETED
            self._source.settled([Outcome(event, verdict)])
        return len(events)

    def skip(self, verdict: Verdict, count: int = 1) -> None:
        """See ``ports.Intake``."""

    def withdraw(self, tenures: Collection[str] | None = None) -> None:
        """See ``ports.Intake``."""

    def hasten(self, positions: Collection[str]) -> None:
        """See ``ports.Intake``."""

    def drained(self, seconds: float) -> bool:
        """See ``ports.Intake``."""
        return True

    def wait(self, seconds: float) -> None:
        """See ``ports.Intake``."""
        if self.stop.wait(seconds):
            raise Stopped


class Member:
    """A source on a thread of its own, and how it ended."""

    def __init__(self, bootstrap: str) -> None:
        config = Config(
            bootstrap_servers=(bootstrap,),
            collection="articles",
            topics=(TOPIC,),
            group_id=GROUP,
            commit_seconds=0.2,
            grace_seconds=20,
            consumer={**MOCK_OPTIONS, "session_timeout_ms": 6000, "heartbeat_interval_ms": 500},
        )
        self.source = config.build("cms", Scope())
        self.intake = Intake(self.source)
        self.ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def faults(self) -> list[str]:
        """Return what the source's checks find wrong."""
        return [f"{check.name}: {check.detail}" for check in self.source.checks() if not check.ok]

    def stop(self) -> bool:
        """Have it end; return whether it did."""
        self.intake.stop.set()
        self._thread.join(20)
        return not self.runs()

    def _run(self) -> None:
        try:
            self.source.run(self.intake, once=False)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - how it ended is what is looked at
            self.ended = error


class Ground:
    """A cluster, a topic, and a producer that knows both."""

    def __init__(self) -> None:
        self.mock = Mock()
        self.mock.create_topic(TOPIC, PARTITIONS)
        self.produced = 0
        self._producer = KafkaProducer(
            bootstrap_servers=self.mock.bootstrap,
            enable_idempotence=False,
            acks="all",
            metadata_max_age_ms=NEVER,
            **MOCK_OPTIONS,
        )

    def produce(self) -> None:
        """Produce some records."""
        sent = []
        for _ in range(RECORDS):
            value = json.dumps({"id": f"d{self.produced}", "text": "A text."}).encode()
            sent.append(self._producer.send(TOPIC, value, partition=self.produced % PARTITIONS))
            self.produced += 1
        for one in sent:
            one.get(20)

    def committed(self) -> bool:
        """Return whether the group has committed all."""
        partitions = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=self.mock.bootstrap, group_id=GROUP, enable_auto_commit=False, **MOCK_OPTIONS
            )
            with contextlib.closing(consumer):
                found = [consumer.committed(partition, timeout_ms=2000) for partition in partitions]
        except KafkaError:
            return False
        return sum(offset or 0 for offset in found) == self.produced

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(KafkaError):
            self._producer.close(timeout=1)
        self.mock.stop()


def run(case: Case) -> Result:
    """Run a case."""
    ground = Ground()
    member = None
    try:
        ground.produce()
        if case.moment == "at its start":
            began = time.monotonic()
            case.begin(ground.mock)
            member = Member(ground.mock.bootstrap)
        else:
            member = Member(ground.mock.bootstrap)
            if not _until(lambda: _has_all(member, ground), RECOVERED):
                return Result(case, "STUCK", 0.0, f"before anything: {member.ended!r} {member.faults()}")
            began = time.monotonic()
            case.begin(ground.mock)
            ground.produce()
        return _judged(case, ground, member, began)
    except Exception:  # noqa: BLE001 - a case that cannot be run is shown, and the others go on
        return Result(case, "BROKEN", 0.0, traceback.format_exc())
    finally:
        if member is not None and member.runs() and not member.stop():
            print(f"{case}: does not end", file=sys.stderr)  # noqa: T201 - it prints
        ground.close()


def _judged(case: Case, ground: Ground, member: Member, began: float) -> Result:
    lasts = case.times is Times.ON_AND_ON
    said: list[str] = []

    # The client says nothing of this answer to a heartbeat: it shows when the session is over.
    fenced = case.request == "Heartbeat" and case.what.startswith("82 ")

    def done() -> bool:
        said.extend(fault for fault in member.faults() if fault not in said)
        return not member.runs() or (not lasts and not fenced and _has_all(member, ground)) or bool(lasts and said)

    _until(done, NOTICED + 5 if lasts else RECOVERED)
    seconds = time.monotonic() - began
    if not member.runs():
        return _ended(case, member, seconds)
    if lasts and not said:
        if len(member.intake.seen) == ground.produced and (case.request == "Metadata" or ground.committed()):
            return Result(case, "went on", seconds)  # to ask what is committed needs Metadata
        case.end(ground.mock)
        return Result(case, "SILENT", seconds, f"{len(member.intake.seen)} of {ground.produced} came")
    noticed = f"said after {seconds:.1f} s: {said[0]}; " if lasts else ""
    case.end(ground.mock)
    if not lasts:  # it has been asked for by then, and answered so
        _until(lambda: time.monotonic() > began + MET, MET + 1)
    over = time.monotonic()
    ground.produce()
    if not _until(lambda: not member.runs() or (_has_all(member, ground) and not member.faults()), RECOVERED):
        missing = ground.produced - len(member.intake.seen)
        return Result(case, "STUCK", seconds, f"{noticed}{missing} did not come; {member.faults()}")
    if not member.runs():
        return _ended(case, member, seconds)
    again = sum(member.intake.seen.values()) - len(member.intake.seen)
    redone = f"{again} again; " if again else ""
    after = max(time.monotonic() - over, 0.0 if lasts else seconds)
    return Result(case, "recovered", after, f"{noticed}{redone}{said[0] if said and not lasts else ''}")


def _ended(case: Case, member: Member, seconds: float) -> Result:
    error = member.ended
    if error is None:
        return Result(case, "SILENT", seconds, "it ended without a word")
    code = 78 if isinstance(error, ConfigError) else 1
    return Result(case, "ended", seconds, f"exit {code}: {type(error).__name__}: {error}")


def _has_all(member: Member, ground: Ground) -> bool:
    return len(member.intake.seen) == ground.produced and ground.committed()


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    until, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > until:
            return False
        pause.wait(0.1)
    return True


def error_cases(names: Iterable[str] = REQUESTS, times: Iterable[Times] = Times) -> Iterator[Case]:
    """Yield the cases of errors that are answered."""
    for name in names:
        for code in REQUESTS[name].codes:
            for often in times:
                if name in AT_START:
                    yield error_case(name, code, "at its start", often)
                if name in SETTLED_ONLY and (name, code) not in NOT_LATER:
                    yield error_case(name, code, "later", often)


def error_case(name: str, code: int, moment: str, times: Times) -> Case:
    """Return the case of one error."""
    request = REQUESTS[name]

    def begin(mock: Mock) -> None:
        mock.push_errors(request.api_key, *[code] * times.value)
        if moment == "later" and request.trigger is not None:
            api_key, answer = request.trigger
            mock.push_errors(api_key, answer)

    what = "connection closed" if code == DROPPED else f"{code} {for_code(code).__name__.removesuffix('Error')}"
    return Case(name, what, moment, times, begin, lambda mock: mock.clear_errors(request.api_key))


def other_cases() -> Iterator[Case]:
    """Yield the cases of brokers that are slow, or away for a while."""
    for name, request in REQUESTS.items():
        for milliseconds, what in ((4_000, "answered after 4 s"), (12_000, "answered after 12 s")):

            def begin(mock: Mock, request: Request = request, milliseconds: int = milliseconds) -> None:
                mock.push_slow(1, request.api_key, 0, milliseconds)
                if request.trigger is not None:
                    mock.push_errors(*request.trigger)

            if name in SETTLED_ONLY:
                yield Case(name, what, "later", Times.ONCE, begin, lambda _mock: None)
    yield Case("all", "broker down", "at its start", Times.ON_AND_ON, lambda mock: mock.down(), lambda mock: mock.up())
    yield Case("all", "broker down", "later", Times.ONCE, _down_once_it_has_all, lambda mock: mock.up())
    yield Case("all", "2 s late", "later", Times.ONCE, lambda mock: mock.delay(2000), lambda mock: mock.delay(0))
    for code in ABOUT_A_TOPIC:
        for moment in ("at its start", "later"):

            def refuse(mock: Mock, code: int = code, moment: str = moment) -> None:
                mock.topic_error(TOPIC, code)
                if moment == "later":
                    mock.push_errors(*OTHER_LEADER)

            what = f"{code} {for_code(code).__name__.removesuffix('Error')} of the topic"
            yield Case("Metadata", what, moment, Times.ON_AND_ON, refuse, lambda mock: mock.topic_error(TOPIC, 0))
    yield Case("all", "no leader", "at its start", Times.ON_AND_ON, _without_leader, _with_leader)


def sample() -> dict[str, list[Case]]:
    """Return a few cases of each sort, by how they are to go."""
    later, start = "later", "at its start"
    return {
        "recovered": [
            error_case("Heartbeat", 22, later, Times.ONCE),
            error_case("Heartbeat", 25, later, Times.ONCE),
            error_case("SyncGroup", 16, later, Times.ONCE),
            error_case("OffsetFetch", 88, start, Times.SIX),
            error_case("OffsetCommit", 27, later, Times.SIX),
            # What lasts: it is said within 30 s, and goes on once it is over.
            error_case("Fetch", 56, later, Times.ON_AND_ON),
            error_case("ListOffsets", 78, start, Times.ON_AND_ON),
            error_case("OffsetFetch", 14, start, Times.ON_AND_ON),
            error_case("OffsetCommit", 7, later, Times.ON_AND_ON),
            error_case("JoinGroup", 15, start, Times.ON_AND_ON),
            error_case("JoinGroup", 16, later, Times.ON_AND_ON),
            *(case for case in other_cases() if case.what in {"broker down", "no leader"}),
        ],
        "ended": [
            error_case("OffsetCommit", 30, later, Times.ONCE),
            error_case("Heartbeat", 82, later, Times.ONCE),
            error_case("JoinGroup", 23, start, Times.ONCE),
        ],
    }


def _down_once_it_has_all(mock: Mock) -> None:
    # The case's records come after this: they are produced to a broker that is down for a moment.
    mock.down()
    threading.Timer(3.0, mock.up).start()


def _without_leader(mock: Mock) -> None:
    for partition in range(PARTITIONS):
        mock.lead(TOPIC, partition, -1)


def _with_leader(mock: Mock) -> None:
    for partition in range(PARTITIONS):
        mock.lead(TOPIC, partition, 1)


def run_all(
    cases: Iterable[Case], at_a_time: int, told: Callable[[Result], None] = lambda _result: None
) -> list[Result]:
    """Run cases side by side: they mostly wait. Returned in their order."""

    def one(case: Case) -> Result:
        result = run(case)
        told(result)
        return result

    with ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(one, cases))


def quiet() -> None:
    """Have neither the client nor the daemon's parts log."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def main() -> int:
    """Run what is asked for; return whether anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("requests", nargs="*", metavar="REQUEST", help=f"of {', '.join(REQUESTS)}, other; default: all")
    parser.add_argument("--at-a-time", type=int, default=12)
    parser.add_argument("--times", nargs="*", default=[one.name for one in Times], choices=[one.name for one in Times])
    parser.add_argument("--sample", action="store_true", help="a few cases of each sort, all at once")
    asked = parser.parse_args()
    quiet()
    expected: dict[Case, str] = {}
    if asked.sample:
        expected = {case: verdict for verdict, cases in sample().items() for case in cases}
        cases = list(expected)
    else:
        names = [name for name in REQUESTS if not asked.requests or name in asked.requests]
        cases = list(error_cases(names, [Times[name] for name in asked.times]))
        cases += other_cases() if not asked.requests or "other" in asked.requests else ()
    began = time.monotonic()
    results = run_all(cases, len(cases) if asked.sample else asked.at_a_time, _print)
    bad = [one for one in results if not one.good or one.verdict != expected.get(one.case, one.verdict)]
    print(f"\n{len(results)} cases in {time.monotonic() - began:.0f} s, {len(bad)} went wrong")  # noqa: T201
    for result in bad:
        _print(result)
    return bool(bad)


def _print(result: Result) -> None:
    print(f"{result.case} → {result.verdict}, {result.seconds:.1f} s  {result.detail}".rstrip(), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
