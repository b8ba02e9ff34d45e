"""What a daemon asks a provider for under load: requests as full as they may be, and several at a time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemon import COLLECTION, workplace_in
from tests.fixtures.provider import provider

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.provider import Answer, Asked

pytestmark = pytest.mark.lite
LINES = 4_500


@pytest.mark.parametrize(("name", "full"), [("openai", 2048), ("cohere", 96)])
def test_requests_are_full_and_several_are_in_flight(tmp_path: Path, name: str, full: int) -> None:
    """With the default configuration: not the window of a local model, and not one request after the other."""
    lock = threading.Lock()
    flying = most = 0

    def slow(_asked: Asked) -> Answer | None:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        time.sleep(0.5)
        with lock:
            flying -= 1
        return None

    with workplace_in(tmp_path / "w") as workplace, provider(name) as server:
        server.fault = slow
        base = server.root + ("" if name == "cohere" else "/v1")
        far = {"type": name, "model": "a-model", "base_url": base}
        workplace.settings["embedders"] = {"far": far}
        collection = workplace.settings["collections"][COLLECTION]
        collection["vectors"] = {"dense": {"embedder": "far"}}
        collection["chunker"] = {"type": "stable", "max_tokens": 16}
        workplace.environment["INGESTD_EMBEDDERS__FAR__API_KEY"] = server.key
        for number in range(2):
            lines = (f"Line {line} of {number}, and what is said of it there." for line in range(LINES))
            workplace.write(f"{number}.txt", "\n\n".join(lines))
        chunks = workplace.once(timeout=400)["chunks_embedded"]
        assert chunks >= 3 * 2048
        sizes = sorted((len(server.dialect.texts(asked.payload)) for asked in server.asked), reverse=True)
        assert sizes[0] == full
        assert most >= 2
        assert sum(sizes) == chunks + 1  # and what the model is
        assert len(sizes) <= 1.2 * chunks / full + 5
