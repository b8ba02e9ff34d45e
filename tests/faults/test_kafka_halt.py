"""A topic whose records are written in another form than is configured: the source is halted, and stays a member."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from tests.faults.kafka_place import SESSION_MS, SOURCE, Place, metric
from tests.fixtures.daemon import wait_for

if TYPE_CHECKING:
    from tests.fixtures.brokers import Record, Tansu
    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = [pytest.mark.lite, pytest.mark.kafka]

RECORDS = 1_500
"""More than a poll brings, so that the consumer has something to pause for."""
LETTERS = 50
IN_FLIGHT = 20
FORMAT = {"type": "json", "fields": {"id": "$.doc.key", "text": "$.body"}}


def _record(number: int, partition: int) -> Record:
    value = {"doc": {"key": f"d{number}"}, "body": f"The text of d{number}."}
    return None, json.dumps(value).encode(), (), partition


def _halted(daemon: Daemon) -> bool:
    check = daemon.check(f"{SOURCE}:intake")
    return check is not None and not check["ok"]


def test_a_halted_source_stays_a_member_of_its_group(workplace: Workplace, tansu: Tansu) -> None:
    """Nothing more is read and the partitions are kept, far beyond the session; mended, all records are written."""
    workplace.configure("dead_letters.halt_letters", LETTERS)
    workplace.configure("limits.in_flight_events", IN_FLIGHT)
    place = Place(workplace, tansu.bootstrap, 2)
    place.produce_records([_record(number, number % 2) for number in range(RECORDS)])
    with workplace.daemon() as daemon:
        daemon.until_said("ready")
        daemon.until(lambda: _halted(daemon), "the source is halted")
        daemon.until(lambda: not daemon.totals["in_flight"], "what was in flight has ended")
        dead = daemon.totals["dead_lettered"]
        assert LETTERS <= dead <= LETTERS + IN_FLIGHT
        since = time.monotonic()
        daemon.until(lambda: time.monotonic() - since > 3 * SESSION_MS / 1000, "three sessions have gone by")
        assert metric(daemon, "ingestd_kafka_partitions") == 2
        assert metric(daemon, "ingestd_kafka_rebalances_total") == 1
        assert metric(daemon, "ingestd_kafka_paused") == 1
        assert metric(daemon, "ingestd_source_halted") == 1
        assert daemon.totals["dead_lettered"] == dead == daemon.totals["accepted"]
        checks = {check["name"] for check in daemon.get("/readyz")[1]["checks"] if not check["ok"]}
        assert checks == {f"{SOURCE}:intake"}
        wait_for(lambda: place.committed() == dead, "what ended is committed")
        assert daemon.stop() == 0

    workplace.configure(f"sources.{SOURCE}.format", FORMAT)
    with workplace.daemon() as daemon:
        daemon.until_settled(RECORDS - dead)
        replayed = workplace.ask("dead-letters", "replay", "--all", "--source", SOURCE, "--json").json
        assert replayed == {"replayed": dead, "left": []}
        assert daemon.until_settled(RECORDS)["written"] == RECORDS
        daemon.until_ready()
        place.until_committed()
    assert {f"d{number}" for number in range(RECORDS)} == workplace.documents()
    assert workplace.letters() == []


def test_once_says_so_and_fails(workplace: Workplace, tansu: Tansu) -> None:
    """It ends in time, with what has ended committed."""
    workplace.configure("dead_letters.halt_letters", LETTERS)
    workplace.configure("limits.in_flight_events", IN_FLIGHT)
    place = Place(workplace, tansu.bootstrap)
    place.produce_records([_record(number, 0) for number in range(RECORDS)])
    answer = workplace.ask("run", "--once", "--json", timeout=120)
    assert answer.code == 1, answer.err[-4000:]
    dead = answer.totals["dead_lettered"]
    assert LETTERS <= dead <= LETTERS + IN_FLIGHT
    assert f'"{SOURCE}:intake"' in answer.err
    assert place.committed() == dead
