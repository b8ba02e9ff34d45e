"""Records that wait for another try: what they hold up, and what ends that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.kafka.conftest import records, value, written

from ingestd.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.kafka.conftest import Engine, Rig

    from ingestd.model import Event

pytestmark = pytest.mark.kafka


def failing(*documents: str) -> Callable[[Event], Verdict | None]:
    """Return a script that has these documents tried again and again, and ends all others well."""
    return lambda event: Verdict.RETRYING if event.key.document_id in documents else Verdict.WRITTEN


def _tries(engine: Engine, document: str) -> list[Event]:
    return [event for event in engine.events if event.key.document_id == document]


def test_a_parked_record_is_not_committed_past(on_noida: Rig) -> None:
    """What is done behind it waits with it; each try is the same document, version and lease, counted on."""
    on_noida.make()
    on_noida.produce(*records(5))
    with on_noida.running(script=failing("d1")) as engine:
        engine.until_settled(4)
        engine.until(lambda: len(_tries(engine, "d1")) >= 3, "three tries")
        on_noida.until_committed(1)
        tries = _tries(engine, "d1")[:3]
        assert [1, 2, 3] == [event.attempt for event in tries]
        assert 1 == len({(event.key, event.op, event.version, event.lease, event.record) for event in tries})
        assert tries[0].first_failed_at is None
        assert tries[1].first_failed_at == tries[2].first_failed_at is not None
        engine.script = written
        engine.until_settled(5)
        on_noida.until_committed(5)
        assert (5, 5) == (engine.totals()["accepted"], engine.totals()["written"])


def test_a_newer_version_takes_the_place_of_a_parked_one(on_noida: Rig) -> None:
    """The parked record is superseded, and no longer holds the watermark."""
    on_noida.make()
    on_noida.produce(*records(3))
    with on_noida.running(script=failing("d0")) as engine:
        engine.until(lambda: len(_tries(engine, "d0")) >= 2, "two tries")
        on_noida.until_committed(0)
        engine.script = lambda event: Verdict.RETRYING if event.position.endswith("@0") else Verdict.WRITTEN
        on_noida.produce((b"d0", value("d0", title="newer"), [], 0))
        on_noida.until_committed(4)
        totals = engine.totals()
        assert (4, 3, 1, 0) == tuple(totals[name] for name in ("accepted", "written", "superseded", "retrying"))


@pytest.mark.parametrize("limit", [{"max_parked_seconds": 0.5}, {"max_lag": 4}])
def test_a_record_that_holds_up_too_much_becomes_a_dead_letter(on_noida: Rig, limit: dict[str, Any]) -> None:
    """By the time that it is parked, or by what is behind it; then all behind it is committed. Only the first is."""
    on_noida.make()
    on_noida.produce(*records(2))
    with on_noida.running(script=failing("d0", "d9"), **limit) as engine:
        engine.until(lambda: len(_tries(engine, "d0")) >= 2, "two tries")
        on_noida.produce(*records(5, start=2))
        engine.until_settled(7)
        on_noida.until_committed(7)
        assert (7, 6, 1) == tuple(engine.totals()[name] for name in ("accepted", "written", "dead_lettered"))
        (letter,) = engine.store.dead_letters()
        assert ("d0", "ScriptError", f"{on_noida.topic}/0@0") == (
            letter.key.document_id,
            letter.failure.error,
            letter.position,
        )
        assert letter.attempts == max(event.attempt for event in _tries(engine, "d0"))


def test_the_next_start_takes_parked_records_from_the_topic(on_noida: Rig) -> None:
    """The copies of an earlier run are withdrawn before anything is read: each record is accepted once, and done."""
    on_noida.make()
    on_noida.produce(*records(4))
    with on_noida.running(script=failing("d1"), state="kept") as engine:
        engine.until(lambda: len(_tries(engine, "d1")) >= 2, "two tries")
        engine.until_settled(3)
        on_noida.until_committed(1)
        engine.until(lambda: engine.totals()["in_flight"] == 0, "it is parked")
    with on_noida.running(state="kept") as engine:
        assert 1 == engine.totals()["accepted"]
        engine.until_settled(3)
        on_noida.until_committed(4)
        assert [] == list(engine.store.parked())
        assert [1, 1, 1] == [event.attempt for event in engine.events]
        totals = engine.totals()
        assert (3, 1, 2) == tuple(totals[name] for name in ("accepted", "written", "unchanged"))


def test_parked_records_move_with_their_partition(on_tansu: Rig) -> None:
    """At a revocation the copies of what moved are withdrawn, and the new owner gets those records from the topic."""
    on_tansu.make(2)
    on_tansu.produce(*records(3, partition=0), *records(3, partition=1, start=10))
    with on_tansu.running(script=failing("d1", "d11")) as first:
        first.until_settled(4)
        first.until(lambda: len(_tries(first, "d1")) and len(_tries(first, "d11")), "both were tried")
        with on_tansu.running() as second:
            second.until_settled(2)
            (stayed,), (moved,) = first.until_holds(1), second.until_holds(1)
            mine, theirs = ("d1", ["d11", "d12"]) if moved[1] else ("d11", ["d1", "d2"])
            assert theirs == second.documents()
            first.until(lambda: first.totals()["accepted"] == 5, "what moved is none of its own any more")
            on_tansu.until_committed(3, partition=moved[1])
            assert [mine] == [parked.key.document_id for parked in first.store.parked()]
            first.script = written
            first.until_settled(5)
            on_tansu.until_committed(3, partition=stayed[1])
            assert (5, 5) == (first.totals()["accepted"], first.totals()["written"])
            assert [] == list(first.store.parked())
