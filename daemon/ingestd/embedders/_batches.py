"""Which texts go through a model together.

Texts of like length share a batch, and a batch is filled up to a number of padded tokens (its longest text times
its texts): time and memory follow that number, whatever the texts are. A fixed number of texts a batch, as
``encode`` has it, wastes up to half of the work on padding or runs out of memory on long ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return batches of places in ``lengths``, the longest texts first: what runs out of memory does so at once.

    Args:
        lengths: Each text's tokens.
        budget: The most padded tokens of a batch. A text that is longer by itself has a batch of its own.
    """
    batches: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        if room < 1:
            batches.append([])
            room = budget // max(lengths[place], 1)  # the first of a batch is its longest
        batches[-1].append(place)
        room -= 1
    return batches


def halves(batch: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Return a batch of two or more texts as two."""
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
