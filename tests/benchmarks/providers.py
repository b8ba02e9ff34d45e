"""Models behind an API: how much of a limit that nobody told is used, and how light the daemon is without local models.

    python -m tests.benchmarks.providers --seconds 60 --out benchmarks-out/providers.json

A stand-in for a provider lets so many requests a second through and answers the others with 429. What is measured is
the share of the limit that got through, how many were refused, and how many of those twice in a row: by an embedder
alone, for texts that never end. Then a daemon with that provider alone: the seconds to its first readiness, and memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fixtures.daemon import COLLECTION, workplace_in
from tests.fixtures.provider import Answer, Provider, provider

from ingestd.embedders.openai import Config
from ingestd.errors import Stopped
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from tests.fixtures.provider import Asked

LIMIT = 3
BATCH = 8
WARM_UP = 10.0
"""Seconds until the limit is known, left out of the share: told beside it."""


class Limiter:
    """Lets so many requests through in any second, and counts.

    Args:
        wait: What it says in Retry-After; None: it says nothing.
    """

    def __init__(self, wait: str | None) -> None:
        self._headers = {} if wait is None else {"Retry-After": wait}
        self._lock = threading.Lock()
        self._recent: deque[float] = deque()
        self.passed: list[float] = []
        self.refused: Counter[str] = Counter()
        """How often in a row, by the request's first text."""
        self.refusals = self.twice = 0

    def __call__(self, asked: Asked) -> Answer | None:
        """Return how a request is answered; None: well."""
        now = time.monotonic()
        first = asked.payload["input"][0]
        with self._lock:
            while self._recent and self._recent[0] <= now - 1:
                self._recent.popleft()
            if len(self._recent) < LIMIT:
                self._recent.append(now)
                self.passed.append(now)
                self.refused.pop(first, None)
                return None
            self.refusals += 1
            self.refused[first] += 1
            self.twice += self.refused[first] > 1
        return Answer(429, {"error": {"message": "slow down"}}, self._headers)


def limited(seconds: float, wait: str | None) -> dict[str, Any]:
    """Return what an embedder makes of a limit, asked without end."""
    with provider("openai") as server:
        limiter = Limiter(wait)
        config = Config(model="a-model", base_url=f"{server.root}/v1", api_key=server.key, batch_texts=BATCH)
        embedder = config.build("far", None)  # type: ignore[arg-type]
        embedder.info()
        server.fault = limiter
        began = time.monotonic()
        threading.Timer(seconds, embedder.close).start()
        number = 0
        try:
            while True:
                texts = [f"text {number + at}" for at in range(BATCH * 16)]
                number += len(texts)
                embedder.embed(texts, Role.DOCUMENT, {VectorKind.DENSE})
        except Stopped:
            pass
        whole = len(limiter.passed) / seconds / LIMIT
        late = sum(at > began + WARM_UP for at in limiter.passed) / (seconds - WARM_UP) / LIMIT
        return {
            "retry_after": wait,
            "share_of_the_limit": round(late, 3),
            "with_the_first_seconds": round(whole, 3),
            "requests": len(limiter.passed),
            "refused": limiter.refusals,
            "refused_twice_in_a_row": limiter.twice,
        }


def light() -> dict[str, Any]:
    """Return how long a daemon without local models takes to be ready, and the memory that it has then."""
    with (
        provider("openai") as server,
        tempfile.TemporaryDirectory() as folder,
        workplace_in(Path(folder) / "w") as place,
    ):
        use(place.settings, server)
        place.environment["INGESTD_EMBEDDERS__FAR__API_KEY"] = server.key
        for number in range(50):
            place.write(f"{number}.txt", f"Document {number} is about the number {number}. " * 20)
        began = time.monotonic()
        with place.daemon() as daemon:
            daemon.until_said("ready")
            seconds = time.monotonic() - began
            daemon.until(lambda: len(place.documents()) == 50, "all is written")
            status = Path(f"/proc/{daemon.pid}/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        return {"seconds_to_ready": round(seconds, 2), "most_memory_mib": round(memory / 1024, 1)}


def use(settings: dict[str, Any], server: Provider) -> None:
    """Configure the provider as the collection's only embedder."""
    settings["embedders"] = {"far": {"type": "openai", "model": "a-model", "base_url": f"{server.root}/v1"}}
    settings["collections"][COLLECTION]["vectors"] = {"dense": {"embedder": "far"}}


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each kind of limit")
    parser.add_argument("--out", type=Path, default=Path("benchmarks-out/providers.json"))
    asked = parser.parse_args()
    figures = {"limited": [limited(asked.seconds, wait) for wait in (None, "1")], "daemon": light()}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
