"""SIGKILL of the daemon, at named points and at random moments."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.campaigns.faults.ground import Figures, Report, Scene, Wish, ground

if TYPE_CHECKING:
    import random
    from pathlib import Path


def frame(wish: Wish, folder: Path, draw: random.Random, report: Report) -> Figures:
    """Kill once at a random moment: the smallest scene there is."""
    with ground(wish, folder, draw, kafka=True) as place:
        place.work(40)
        place.start()
        place.daemon.until_said("ready")
        place.work(20)
        place.kill()
        place.faults += 1
        since = time.monotonic()
        place.start()
        report("recovered", seconds=place.until_whole(since), letters=place.check_letters())
        place.work(10)
        place.until_whole(time.monotonic())
        return place.finish(faults=1, events=70)


SCENES: dict[str, Scene] = {"frame": frame}
