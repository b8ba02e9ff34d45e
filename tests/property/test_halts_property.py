"""Halts against a plain reading of the rule, whatever the order in which events end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import upsert
from tests.unit.test_halts import FAILURE

from ingestd.engine.halts import HaltRule, Halts
from ingestd.model import Outcome, Verdict


@given(
    bad=st.lists(st.booleans(), max_size=60),
    letters=st.integers(1, 12),
    share=st.sampled_from([1.0, 0.95, 0.9, 0.75, 0.5, 0.3, 0.1]),
    draw=st.data(),
)
def test_a_source_is_halted_at_the_first_letter_for_which_the_rule_holds(
    bad: list[bool], letters: int, share: float, draw: st.DataObject
) -> None:
    """That is: when in some row of its events there are ``letters`` or more letters, and ``share`` of them or more."""
    halts = Halts(["cms"], HaltRule(letters, share))
    events = [upsert(f"d{n}", "x", n) for n in range(len(bad))]
    halts.accepted("cms", events)
    dead: set[int] = set()
    for at in draw.draw(st.permutations(range(len(bad)))):
        verdict = Verdict.DEAD_LETTERED if bad[at] else Verdict.WRITTEN
        halts.note([Outcome(events[at], verdict, failure=FAILURE)])
        if bad[at]:
            dead.add(at)
        assert halts.halted("cms") == _holds(dead, len(bad), letters, share)


def _holds(dead: set[int], count: int, letters: int, share: float) -> bool:
    """Return whether there is such a row."""
    for first in range(count):
        of_them = 0
        for last in range(first, count):
            of_them += last in dead
            if of_them >= letters and of_them >= share * (last - first + 1) - 1e-9:
                return True
    return False
