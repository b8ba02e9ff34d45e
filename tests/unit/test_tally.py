"""The accounts of a run."""

from __future__ import annotations

from tests.fakes import COLLECTION, upsert

from ingestd.engine.tally import Tally
from ingestd.metrics import Metrics
from ingestd.model import Failure, Outcome, Stage, Totals, Verdict


def outcome(verdict: Verdict, *, embedded: int = 0, reused: int = 0) -> Outcome:
    """Return the outcome of some event."""
    failure = Failure(Stage.WRITE, "DocumentError", "bad") if verdict is Verdict.DEAD_LETTERED else None
    return Outcome(upsert("a", "x", 1), verdict, failure=failure, embedded=embedded, reused=reused)


def test_an_event_moves_from_in_flight_to_its_verdict() -> None:
    """It is in one column at a time, and its chunks are counted with it."""
    tally = Tally(Metrics("0"), parked=0)
    tally.accept("cms")
    assert tally.totals() == Totals(accepted=1, in_flight=1)
    tally.settle([outcome(Verdict.WRITTEN, embedded=3, reused=2)], superseded=0)
    assert tally.totals() == Totals(accepted=1, written=1, chunks_embedded=3, chunks_reused=2)


def test_an_event_that_is_tried_again_was_accepted_once() -> None:
    """Parked, revived and written: one event."""
    tally = Tally(Metrics("0"), parked=0)
    tally.accept("cms")
    tally.settle([outcome(Verdict.RETRYING)], superseded=0)
    assert tally.totals() == Totals(accepted=1, retrying=1)
    tally.revive()
    assert tally.totals() == Totals(accepted=1, in_flight=1)
    tally.settle([outcome(Verdict.WRITTEN)], superseded=0)
    assert tally.totals() == Totals(accepted=1, written=1)


def test_a_parked_event_that_a_newer_one_replaces_is_superseded() -> None:
    """It leaves the retry queue without having come back."""
    tally = Tally(Metrics("0"), parked=2)
    assert tally.totals() == Totals(accepted=2, retrying=2)
    tally.accept("cms")
    tally.settle([outcome(Verdict.WRITTEN)], superseded=1)
    assert tally.totals() == Totals(accepted=3, written=1, superseded=1, retrying=1)


def test_replayed_dead_letters_and_unchanged_documents_are_events_too() -> None:
    """What an operator puts back waits for its retry; what a source looked at and left alone has its verdict."""
    tally = Tally(Metrics("0"), parked=0)
    tally.requeue("cms", 2)
    tally.skip("inbox", Verdict.UNCHANGED, 40)
    tally.skip("inbox", Verdict.DEAD_LETTERED, 1)
    assert tally.totals() == Totals(accepted=43, retrying=2, unchanged=40, dead_lettered=1)


def test_an_event_that_is_returned_was_never_accepted() -> None:
    """In flight or parked when its partition went to another member: it is in no column, and its work still counts."""
    tally = Tally(Metrics("0"), parked=3)
    tally.accept("cms", 2)
    tally.settle([outcome(Verdict.RETURNED, embedded=2), outcome(Verdict.WRITTEN, embedded=1)], superseded=0)
    assert tally.totals() == Totals(accepted=4, written=1, retrying=3, chunks_embedded=3)
    tally.withdraw("cms", 2)
    assert tally.totals() == Totals(accepted=2, written=1, retrying=1, chunks_embedded=3)


def test_metrics_say_the_same() -> None:
    """Prometheus counts by source and by what ended an event; an empty document is counted as such."""
    metrics = Metrics("0")
    tally = Tally(metrics, parked=0)
    for verdict in (Verdict.WRITTEN, Verdict.WRITTEN, Verdict.DEAD_LETTERED):
        tally.accept("cms")
        tally.settle([outcome(verdict, embedded=int(verdict is Verdict.DEAD_LETTERED))], superseded=0)
    read = metrics.registry.get_sample_value
    assert read("ingestd_events_accepted_total", {"source": "cms"}) == 3
    assert read("ingestd_events_settled_total", {"source": "cms", "verdict": "written"}) == 2
    assert read("ingestd_documents_without_text_total", {"collection": COLLECTION}) == 2
    assert read("ingestd_dead_letters_total", {"stage": "write", "error": "DocumentError"}) == 1
