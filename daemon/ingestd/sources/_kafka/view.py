"""How a member is: what its thread shows to others, whole and frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kafka.structs import TopicPartition

PATIENCE = 18.0
"""Seconds in which something may not go on before the view says that it is stuck; promised: within 30."""


@dataclass(frozen=True, slots=True)
class PartitionView:
    """How far a partition is."""

    partition: TopicPartition
    end: int | None
    """The broker's own end offset; None: not known yet."""
    watermark: int | None
    """None: no record was received yet."""
    oldest_seconds: float
    """Since the first record that is not done was received; 0: all are done."""

    @property
    def lag(self) -> int | None:
        """Return the number of offsets that are not done; None: not known."""
        if self.end is None or self.watermark is None:
            return None
        return max(0, self.end - self.watermark)


@dataclass(frozen=True, slots=True)
class View:
    """How a member is."""

    since: float
    """When it began to hold partitions, or to hold none; of the monotonic clock."""
    partitions: tuple[PartitionView, ...] = ()
    trouble: str | None = None
    """Why the last poll failed, or no broker answers."""
    stuck: str | None = None
    """Why records that are there do not come, though the group answers."""
    missing: tuple[str, ...] = ()
    """Topics that are waited for: the brokers say that they are not there."""
    waits_for: str | None = None
    """Why records cannot be read now: the schema registry is away."""
    rebalances: int = 0
    refused_commits: int = 0
    paused: bool = False
