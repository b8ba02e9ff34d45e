"""The accounts add up, whatever happens in whatever order."""

from __future__ import annotations

from dataclasses import asdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.fakes import upsert

from ingestd.engine.tally import Tally
from ingestd.metrics import Metrics
from ingestd.model import Outcome, Verdict

ENDS = [verdict for verdict in Verdict if verdict not in {Verdict.RETRYING, Verdict.RETURNED}]


class Accounts(RuleBasedStateMachine):
    """A tally beside a plain count of what is in flight, parked, and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.flying = 0
        self.parked = 2
        self.ended = 0
        self.tally = Tally(Metrics("0"), self.parked)

    @rule(count=st.integers(1, 4))
    def accept(self, count: int) -> None:
        """A source hands events in: one submitted, or many offered."""
        self.tally.accept("cms", count)
        self.flying += count

    @precondition(lambda self: self.parked)
    @rule()
    def revive(self) -> None:
        """An event comes back from the retry queue."""
        self.tally.revive()
        self.parked -= 1
        self.flying += 1

    @rule(count=st.integers(1, 3))
    def requeue(self, count: int) -> None:
        """An operator replays dead letters."""
        self.tally.requeue("cms", count)
        self.parked += count

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """Leases of parked events end: they are another member's."""
        count = data.draw(st.integers(1, self.parked))
        self.tally.withdraw("cms", count)
        self.parked -= count

    @rule(verdict=st.sampled_from(ENDS), count=st.integers(1, 5))
    def skip(self, verdict: Verdict, count: int) -> None:
        """A source looks at documents that are as they were."""
        self.tally.skip("cms", verdict, count)
        self.ended += count

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Some of what is in flight ends, and takes the place of parked events."""
        verdicts = data.draw(st.lists(st.sampled_from(Verdict), min_size=1, max_size=self.flying))
        superseded = data.draw(st.integers(0, self.parked))
        self.tally.settle([Outcome(upsert("a", "x"), verdict) for verdict in verdicts], superseded=superseded)
        again, returned = verdicts.count(Verdict.RETRYING), verdicts.count(Verdict.RETURNED)
        self.flying -= len(verdicts)
        self.parked += again - superseded
        self.ended += len(verdicts) - again - returned + superseded

    @invariant()
    def adds_up(self) -> None:
        """Every accepted event is in exactly one column, and no column is below zero."""
        totals = asdict(self.tally.totals())
        accepted = totals.pop("accepted")
        for chunks in ("chunks_embedded", "chunks_reused"):
            totals.pop(chunks)
        assert min(totals.values()) >= 0
        assert accepted == sum(totals.values()) == self.flying + self.parked + self.ended
        assert (totals["in_flight"], totals["retrying"]) == (self.flying, self.parked)


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
