"""What a provider was paid today, over restarts: a daily limit that a restart forgets is none.

One small file in the state directory, replaced whole. It was kept out of the SQLite file, which a damage sets aside and
rebuilds from Milvus and the sources: what was spent is in neither.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog

if TYPE_CHECKING:
    from pathlib import Path

    from ingestd.ports import Clock

FILE = "spending.json"
log = structlog.get_logger(__name__)


class _Spent(NamedTuple):
    day: str
    cost: float


class Spending:
    """What each embedder cost today, by UTC. Safe to call from several threads.

    Args:
        folder: The state directory.
        clock: Says what day it is.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._path = folder / FILE
        self._clock = clock
        self._lock = threading.Lock()
        self._spent = _read(self._path)
        self._told = False

    def today(self, embedder: str) -> float:
        """Return what it cost since midnight."""
        with self._lock:
            spent = self._spent.get(embedder)
            return spent.cost if spent is not None and spent.day == self._day() else 0.0

    def add(self, embedder: str, cost: float) -> None:
        """Note what it cost now."""
        with self._lock:
            spent, day = self._spent.get(embedder), self._day()
            before = spent.cost if spent is not None and spent.day == day else 0.0
            self._spent[embedder] = _Spent(day, before + cost)
            self._write()

    def until_tomorrow(self) -> float:
        """Return the seconds until midnight."""
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (midnight - now).total_seconds()

    def _day(self) -> str:
        return datetime.fromtimestamp(self._clock.time(), UTC).date().isoformat()

    def _write(self) -> None:
        text = json.dumps({name: {"day": spent.day, "cost": spent.cost} for name, spent in self._spent.items()})
        beside = self._path.with_suffix(".new")
        try:
            beside.write_text(text, "ascii")
            beside.replace(self._path)
        except OSError as error:
            # Known here all the same; a disk that takes nothing pauses intake by itself.
            if not self._told:
                log.warning("what a provider was paid cannot be kept", file=str(self._path), error=str(error))
            self._told = True


def _read(path: Path) -> dict[str, _Spent]:
    """Return what was kept; nothing where there is nothing, or nothing that can be read."""
    try:
        kept = json.loads(path.read_text("ascii"))
        return {str(name): _Spent(str(said["day"]), float(said["cost"])) for name, said in kept.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("what a provider was paid today is not known", file=str(path), error=str(error))
        return {}
