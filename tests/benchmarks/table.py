"""Lines of a benchmark: what was measured, its median, and whether that is what is wanted."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Line(NamedTuple):
    """One figure."""

    name: str
    rounds: Sequence[float]
    """As they were measured."""
    wanted: float
    at_most: bool = False
    """Whether less is better."""

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.rounds)

    @property
    def holds(self) -> bool:
        """Whether it is what is wanted."""
        return self.median <= self.wanted if self.at_most else self.median >= self.wanted


def show(lines: Sequence[Line]) -> str:
    """Return a table for a terminal."""
    width = max((len(line.name) for line in lines), default=0)
    rows = [f"{'':<{width}}  {'median':>9}  {'wanted':>9}  {'rounds':<24}"]
    for line in lines:
        wanted = f"{'<=' if line.at_most else '>='} {line.wanted:g}"
        rounds = ", ".join(f"{one:.3g}" for one in line.rounds)
        rows.append(
            f"{line.name:<{width}}  {line.median:>9.3g}  {wanted:>9}  {rounds}{'' if line.holds else '   NOT MET'}"
        )
    return "\n".join(rows)
