"""Lines of a benchmark: what was measured, its median, and whether that is what is wanted."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Line(NamedTuple):
    """One figure."""

    name: str
    rounds: Sequence[float]
    """As they were measured; none: it could not be measured, and ``note`` says why."""
    wanted: float | None = None
    """None: it stands beside the others, and nothing is wanted of it."""
    at_most: bool = False
    """Whether less is better."""
    note: str = ""

    @property
    def median(self) -> float:
        """The figure; NaN where there is none."""
        return statistics.median(self.rounds) if self.rounds else math.nan

    @property
    def holds(self) -> bool:
        """Whether it was measured, and is what is wanted."""
        if not self.rounds or self.wanted is None:
            return bool(self.rounds)
        return self.median <= self.wanted if self.at_most else self.median >= self.wanted

    def plain(self) -> dict[str, object]:
        """Return all of it for JSON, which has no NaN."""
        return {**self._asdict(), "median": self.median if self.rounds else None, "holds": self.holds}


def show(lines: Sequence[Line]) -> str:
    """Return a table for a terminal."""
    width = max((len(line.name) for line in lines), default=0)
    rows = [f"{'':<{width}}  {'median':>9}  {'wanted':>9}  rounds"]
    for line in lines:
        wanted = "" if line.wanted is None else f"{'<=' if line.at_most else '>='} {line.wanted:g}"
        figure = f"{line.median:.3g}" if line.rounds else "none"
        said = [", ".join(f"{one:.3g}" for one in line.rounds), line.note, "" if line.holds else "NOT MET"]
        rows.append(f"{line.name:<{width}}  {figure:>9}  {wanted:>9}  {'   '.join(filter(None, said))}")
    return "\n".join(rows)
