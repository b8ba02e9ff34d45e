"""Milvus in trouble: refusing, wrong, stopped, killed, dying after it has done what was asked; Lite and a real server.

The server stands behind a proxy of the tests' (``faulty_milvus``), which counts what comes in and answers what a scene
wants. The comparison reads the server itself. What is claimed of every outage: /readyz and the metrics name Milvus, it
is asked once a second at most, no document's retries are spent, the daemon does not grow, and once it is over the
breaker closes by itself and Milvus holds what the events say, those of the outage too.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from pymilvus.exceptions import MilvusException
from tests.campaigns.faults import clock, soak, state
from tests.campaigns.faults.gauges import MIB, look, metric
from tests.campaigns.faults.ground import Figures, Ground, Report, Scene, Wish, ground, pause
from tests.campaigns.faults.oracle import stored
from tests.campaigns.kafka_ground import be_patient
from tests.fixtures import faulty_milvus as bad
from tests.fixtures.daemon import COLLECTION, wait_for
from tests.fixtures.faulty_milvus import Fault, FaultyMilvus, faulty
from tests.fixtures.lite_server import LiteServer
from tests.fixtures.milvus import Server

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

NOTICED = 30.0
"""Seconds within which /readyz has to say that Milvus is away."""
A_SECOND = 1.0
"""Requests to a server that is down, at most."""
BURST = 4
"""Those in flight when it goes down, and each thread's first: they find it out."""
GROWTH = 96 * MIB
"""What an outage may cost in memory: events that wait are bounded by the lanes' budgets."""
KEPT = 0.9
"""The share of the throughput before an outage that has to be there after it."""
DELAY = 0.02
"""Seconds of embedding a text, where throughput is compared: a machine that is busy otherwise then hardly shows."""

DENSE: dict[str, object] = {
    f"collections.{COLLECTION}.vectors": {"dense": {"embedder": "hash"}},
    "embedders.hash.kinds": ["dense"],
}
"""What Milvus 2.3.5 can hold."""

REFUSALS: dict[str, Callable[[], Fault]] = {
    "rate limit on upserts": lambda: Fault(bad.UPSERTS, code=bad.RATE_LIMIT),
    "quota on upserts": lambda: Fault(bad.UPSERTS, code=bad.QUOTA),
    "disk on upserts": lambda: Fault(bad.UPSERTS, code=bad.DISK),
    "memory on writes": lambda: Fault(bad.WRITES, code=bad.MEMORY),
    "writes denied by an old server": lambda: Fault(bad.WRITES, code=bad.DENY_WRITE),
    "too many requests": lambda: Fault(code=bad.REQUESTS),
    "not ready": lambda: Fault(code=bad.NOT_READY, reason="service not ready[standby]"),
    "a code that nobody knows": lambda: Fault(code=bad.UNKNOWN_CODE),
    "unavailable": lambda: Fault(status=grpc.StatusCode.UNAVAILABLE),
    "internal": lambda: Fault(status=grpc.StatusCode.INTERNAL),
    "answers that are no messages": lambda: Fault(garble=bad.garbled),
    "no answer": lambda: Fault(delay=3600.0),
}
"""What a server that is up may say for a while. Where writes alone are refused the server is not down: those count."""

WITHOUT = {
    # Whoever meets an outage blames the document at once.
    "breaker": """\
from ingestd.engine.breaker import Breakers
from ingestd.errors import Suspect, UnavailableError

def hold(self, call, probe=None, *, beat, calling=lambda: None, scope=None):
    while True:
        try:
            return call()
        except UnavailableError as error:
            if probe is not None:
                raise Suspect(str(error)) from error

Breakers.hold = hold
""",
    # Every thread that waits for a dependency asks when its own delay is over, and that never grows.
    "pace": """\
from ingestd.engine.breaker import Backoff, Breakers

Breakers.turn = lambda self, dependency, beat: None
Backoff.delay = lambda self, failures: 0.1
""",
    # A refusal that the server itself words is suspected like anything else.
    "refusals": """\
from ingestd import errors

made = errors.UnavailableError.__init__
errors.UnavailableError.__init__ = lambda self, *args, refused=False, **rest: made(self, *args, **rest)
""",
    **state.WITHOUT,
}
TEETH = {"breaker": "refused", "pace": "refused", "refusals": "refused", **state.TEETH}


class _Process(Protocol):
    """A Milvus that can be stopped and killed."""

    @property
    def uri(self) -> str: ...
    def start(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(slots=True)
class _Behind:
    """A daemon whose Milvus is behind a proxy."""

    place: Ground
    server: Any
    proxy: FaultyMilvus
    report: Report
    slowest: float = 0.0
    """Requests a second to a server that was down: the most of any outage."""
    noticed: float = 0.0
    """Seconds until /readyz said so: the most of any outage."""
    grown: int = 0

    def up(self, events: int) -> None:
        """Start the daemon, and let it do so many events."""
        self.place.work(events)
        self.place.start()
        self.place.daemon.until_ready()
        self.place.until_whole(time.monotonic())
        self.place.recoveries.clear()

    def outage(
        self,
        name: str,
        seconds: float,
        begin: Callable[[], object],
        end: Callable[[], object],
        kinds: frozenset[str] | None = None,
    ) -> None:
        """Have an outage under traffic, and see what is claimed of each.

        Args:
            name: For messages.
            seconds: How long it lasts from when it was noticed.
            begin: Begins it.
            end: Ends it; returns when it is over.
            kinds: The requests that count; None: all. What a server still answers is no request to one that is down.
        """
        place, daemon = self.place, self.place.daemon
        before = look(place.workplace, daemon)
        spent = len(daemon.said("will be tried again"))
        openings = metric(daemon, "ingestd_breaker_openings_total", dependency="milvus")
        place.work(12)
        began = time.monotonic()
        begin()
        place.work(12)
        daemon.until(self._says_so, f"{name}: /readyz says that Milvus is away", NOTICED * place.wish.patience)
        noticed = time.monotonic() - began
        known = time.monotonic()
        assert metric(daemon, "ingestd_breaker_open", dependency="milvus") == 1
        while (left := known + seconds - time.monotonic()) > 0:
            place.work(2)
            pause(min(1.0, left), place)
            assert daemon.get("/livez")[0] == 200
            # Each event of an outage is work for later; the server's word is not to be forgotten in between.
            assert self._says_so(), f"{name}: /readyz says that all is well, {time.monotonic() - began:.1f} s into it"
        count = sum(kinds is None or kind in kinds for _, kind in self.proxy.came(known))
        lasted = time.monotonic() - known
        during = look(place.workplace, daemon)
        end()
        since = time.monotonic()
        took = place.until_whole(since)
        daemon.until_ready()
        place.faults += 1
        assert metric(daemon, "ingestd_breaker_open", dependency="milvus") == 0
        assert metric(daemon, "ingestd_breaker_openings_total", dependency="milvus") > openings
        tried = daemon.said("will be tried again")[spent:]
        assert not tried, f"{name}: retries were spent on an outage: {tried[:3]}"
        a_second = max(0, count - BURST) / lasted
        assert a_second <= A_SECOND, f"{name}: {count} requests in {lasted:.1f} s: {self.proxy.kinds(known, since)}"
        grown = during.memory - before.memory
        assert grown < GROWTH, f"{name}: {before} before, {during} during it"
        self.slowest, self.noticed = max(self.slowest, count / lasted), max(self.noticed, noticed)
        self.grown = max(self.grown, grown)
        self.report(
            "outage",
            what=name,
            noticed_seconds=round(noticed, 1),
            lasted_seconds=round(lasted, 1),
            requests=count,
            grown_mib=round(grown / MIB, 1),
            recovery_seconds=round(took, 1),
        )

    def note(self) -> str:
        """Return what the outages showed, for the table."""
        return (
            f"not ready after {self.noticed:.1f} s, {self.slowest:.2f} requests/s while down, "
            f"+{self.grown / MIB:.0f} MiB, no retry spent"
        )

    def _says_so(self) -> bool:
        check = self.place.daemon.check("milvus")
        return check is not None and not check["ok"] and self.place.daemon.get("/readyz")[0] == 503


@contextmanager
def _behind(
    wish: Wish,
    folder: Path,
    draw: random.Random,
    report: Report,
    *,
    server: _Process | None = None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[_Behind]:
    """Make a daemon before a proxy before a server, which is started: a Lite, if none is given."""
    server = server or LiteServer(folder / "server")
    try:
        server.start()
        with (
            faulty(server.uri) as proxy,
            ground(wish, folder, draw, uri=server.uri, settings=settings) as place,
        ):
            place.workplace.configure("milvus.uri", proxy.uri)
            place.workplace.configure("milvus.timeout_seconds", 5)
            place.workplace.configure("milvus.connect_timeout_seconds", 5)
            yield _Behind(place, server, proxy, report)
    finally:
        server.kill()


def refused(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """A server that is up, and for a while refuses, fails, garbles or does not answer: every kind, for some seconds."""
    return refusals(wish, folder, draw, report, list(REFUSALS))


def refusals(wish: Wish, folder: Path, draw: random.Random, report: Report, names: list[str]) -> Figures:
    """Have some of ``REFUSALS``, one after the other."""
    with _behind(wish, folder, draw, report) as behind:
        behind.up(30)
        for name in names:
            _refuse(behind, name, REFUSALS[name](), wish.count(10, least=6))
        return behind.place.finish(faults=len(names), events=24 * len(names), note=behind.note())


def _refuse(behind: _Behind, name: str, fault: Fault, seconds: float) -> None:
    behind.outage(name, seconds, lambda: behind.proxy.inject(fault), behind.proxy.lift, fault.kinds)


def away(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """A server that is killed, or stopped, for a while: once briefly, once for a minute (``--times``: for longer)."""
    with _behind(wish, folder, draw, report) as behind:
        server = behind.server
        behind.up(30)
        for seconds in (8.0, 60.0 * wish.times):
            behind.outage(f"killed, {seconds:g} s", seconds, server.kill, server.start)
            behind.outage(f"stopped, {seconds:g} s", seconds, server.pause, server.go_on)
        return behind.place.finish(faults=4, events=100, note=behind.note())


def applied(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """A server that does what it was asked and dies before it says so: upserts, rewrites and deletes, in turn."""
    times = wish.count(8, least=2)
    with _behind(wish, folder, draw, report) as behind:
        place, server = behind.place, behind.server
        behind.up(20)
        for number in range(times):
            kind = ("Upsert", "Delete")[number % 2]
            fault = Fault(
                frozenset({kind}), status=grpc.StatusCode.UNAVAILABLE, applied=True, then=server.kill, count=1
            )
            with behind.proxy.fault(fault):
                _make(place, kind)
                place.daemon.until(partial(_happened, fault, 1), f"a {kind} comes")
                place.work(3)
                wait_for(lambda: not server.runs, "the server is dead")
            server.start()
            took = place.until_whole(time.monotonic())
            place.faults += 1
            report("died after it was done", request=kind, recovery_seconds=round(took, 1))
        return place.finish(faults=times, events=20 + 3 * times)


def _happened(fault: Fault, times: int) -> bool:
    return fault.happened >= times


def _make(place: Ground, kind: str) -> None:
    """Have the daemon send such a request about a document: probes delete too, a key that nobody has."""
    if kind == "Delete":
        place.documents.delete()
    else:
        place.documents.edit()


def wrong(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """A server that says what is not so: counts, empty answers, and that the collection is gone."""
    with _behind(wish, folder, draw, report) as behind:
        place, proxy = behind.place, behind.proxy
        behind.up(20)
        answers = {
            "writes are miscounted": Fault(bad.WRITES, garble=bad.miscounted),
            "writes are confirmed by an empty answer": Fault(bad.WRITES, garble=bad.empty),
            "questions are answered by nothing": Fault(frozenset({"Query"}), garble=bad.empty),
        }
        for name, fault in answers.items():
            happened = time.monotonic()
            with proxy.fault(fault):
                place.work(10)
                place.daemon.until(partial(_happened, fault, 2), f"{name}: it happens")
                place.work(5)
            place.until_whole(time.monotonic())
            place.faults += 1
            report("wrong", what=name, answers=fault.happened, seconds=round(time.monotonic() - happened, 1))
        # The one wrong answer that it must believe: it ends, rather than write to what it does not know.
        gone = Fault(frozenset({"DescribeCollection"}), code=bad.NO_COLLECTION, reason="collection not found")
        with proxy.fault(gone):
            wait_for(lambda: not place.daemon.runs, "it ends, for its collection is said to be gone", 60)
        assert place.daemon.wait() == 1
        assert "dropped or made again" in place.daemon.log
        place.work(10)
        place.faults += 1
        since = time.monotonic()
        place.start()
        place.until_whole(since)
        return place.finish(faults=4, events=75)


def throughput(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """As many documents a second after an outage as before it: medians of bursts, in one run."""
    bursts, size = wish.count(5, least=3), 40
    settings: dict[str, object] = {"embedders.hash.delay_seconds_per_text": DELAY}
    with _behind(wish, folder, draw, report, settings=settings) as behind:
        behind.up(20)
        before = [_burst(behind.place, size) for _ in range(bursts)]
        behind.outage(
            "quota", 15.0, lambda: behind.proxy.inject(REFUSALS["quota on upserts"]()), behind.proxy.lift, bad.UPSERTS
        )
        behind.outage("killed", 15.0, behind.server.kill, behind.server.start)
        after = [_burst(behind.place, size) for _ in range(bursts)]
        kept = statistics.median(after) / statistics.median(before)
        report("throughput", before=before, after=after, kept=round(kept, 3))
        assert kept >= KEPT, f"{before} chunks a second before, {after} after it"
        note = f"{kept:.0%} of the throughput before ({statistics.median(before):.1f} chunks/s), {behind.note()}"
        return behind.place.finish(faults=2, events=2 * bursts * size, note=note)


def _burst(place: Ground, size: int) -> float:
    """Have so many new documents done; return the chunks a second, from the first of them to the last."""
    before = place.daemon.totals["chunks_embedded"]
    issued = time.monotonic()
    for _ in range(size):
        place.documents.create()
    seen: list[tuple[float, int]] = []

    def done() -> bool:
        totals = place.look()
        embedded = totals["chunks_embedded"] - before if totals else 0
        if embedded and (not seen or embedded > seen[-1][1]):
            seen.append((time.monotonic(), embedded))
        return bool(seen) and not totals["in_flight"] and time.monotonic() - seen[-1][0] > 2

    place.daemon.until(done, f"{size} documents are done", 300)
    place.until_whole(issued, 300)
    (first, few), (last, many) = seen[0], seen[-1]
    return round((many - few) / max(last - first, 0.1), 2)


def child(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The daemon's own Milvus Lite is killed, and stopped, while documents flow."""
    times = wish.count(6, least=2)
    with ground(wish, folder, draw, settings={"milvus.timeout_seconds": 5}) as place:
        place.work(30)
        place.start()
        place.daemon.until_ready()
        for number in range(times):
            place.work(10)
            way = ("killed", "stopped")[number % 2]
            if way == "killed":
                pid = soak.kill_lite(place)
                since = time.monotonic()
                soak.until_another_lite(place, pid)
            else:
                pid = json.loads((place.workplace.state / "milvus.json").read_text())["pid"]
                os.kill(pid, signal.SIGSTOP)
                place.work(5)
                place.daemon.until(lambda: place.daemon.get("/readyz")[0] == 503, "/readyz says so", NOTICED)
                assert not (place.daemon.check("milvus") or {"ok": True})["ok"]
                os.kill(pid, signal.SIGCONT)
                since = time.monotonic()
            took = place.until_whole(since)
            place.faults += 1
            report("Lite", way=way, recovery_seconds=round(took, 1))
        assert not place.daemon.said("will be tried again")
        return place.finish(faults=times, events=30 + 10 * times, note="no retry spent")


def server(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """A real Milvus 2.3.5: killed and restarted, and stopped."""
    times = wish.count(2)
    figures = []
    for way in ("killed", "stopped"):
        real = Server(folder / way)
        if way == "stopped":
            # By the fixture's wish it gives itself up after three seconds without a processor.
            be_patient(folder / way / "configs" / "milvus.yaml")
        with _behind(wish, folder / f"with-{way}", draw, report, server=real, settings=DENSE) as behind:
            behind.up(20)
            for _ in range(times):
                if way == "killed":
                    behind.outage(way, 8.0, real.kill, partial(_serves, real))
                else:
                    behind.outage(way, 8.0, partial(real.send, signal.SIGSTOP), partial(real.send, signal.SIGCONT))
            figures.append(behind.place.finish(faults=times, events=24 * times, note=f"{way}: {behind.note()}"))
    return Figures(
        faults=sum(one.faults for one in figures),
        events=sum(one.events for one in figures),
        recovery_seconds=max(one.recovery_seconds for one in figures),
        note="; ".join(one.note for one in figures),
    )


def _serves(real: Server) -> None:
    """Start it again, and wait until it answers for the collection: until then its outage is not over."""
    real.start(120)

    def answers() -> bool:
        try:
            stored(real.uri, [COLLECTION])
        except (MilvusException, grpc.RpcError):
            return False
        return True

    wait_for(answers, "the real server answers", 120)


SCENES: dict[str, Scene] = {
    "refused": refused,
    "away": away,
    "applied": applied,
    "wrong": wrong,
    "throughput": throughput,
    "child": child,
    "server": server,
    **state.SCENES,
    **clock.SCENES,
    **soak.SCENES,
}
