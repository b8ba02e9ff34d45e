"""What goes over the wire to a provider is what its own client sends for the same texts, and both read the same answer.

The stand-in for the providers is checked by the same means: their own clients take what it says.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.fixtures.provider import provider
from tests.tools.sdk_request import DIMENSION, KEY, NOMIC_DIMENSION, TEXTS

from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from tests.fixtures.provider import Asked, Provider

PACKAGES = {
    "openai": "openai",
    "voyage": "voyageai",
    "cohere": "cohere",
    "mistral": "mistralai",
    "gemini": "google/genai",
    "nomic": "nomic",
}
SDKS = Path(sys.prefix) / "sdks"
"""Where the clients are: they and what they need do not go together with the daemon's own libraries."""
BASES = {"cohere": "", "gemini": "/v1beta"}


@pytest.fixture(params=PACKAGES)
def name(request: pytest.FixtureRequest) -> str:
    """Each provider that has a client of its own."""
    package = PACKAGES[request.param]
    if not (SDKS / package).is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{package} is not in {SDKS}")
        pytest.skip(f"{package} is not in {SDKS}: make setup puts it there")
    return str(request.param)


def by_client(name: str, server: Provider, role: Role) -> tuple[list[list[float]], list[Asked]]:
    """Return the vectors that a provider's client has for the texts, and what it asked."""
    server.asked.clear()
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.sdk_request", name, server.root, role.value],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(SDKS)},  # what they need is theirs alone
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    vectors: list[list[float]] = json.loads(done.stdout.splitlines()[-1])
    return vectors, list(server.asked)


def by_us(name: str, server: Provider, role: Role) -> tuple[list[list[float]], list[Asked]]:
    """Return ours."""
    config = importlib.import_module(f"ingestd.embedders.{name}").Config(
        model="gemini-embedding-001" if name == "gemini" else "a-model",
        base_url=server.root + BASES.get(name, "/v1"),
        api_key=KEY,
        dimension=NOMIC_DIMENSION if name == "nomic" else DIMENSION,
    )
    embedder = config.build("far", None)
    embedder.info()
    server.asked.clear()
    found = embedder.embed(TEXTS, role, {VectorKind.DENSE})[VectorKind.DENSE]
    embedder.close()
    return found.tolist(), list(server.asked)


def said(asked: Asked) -> dict[str, Any]:
    """Return a request as the provider understands it: a key with null in it says as much as none."""
    payload = {key: value for key, value in asked.payload.items() if value is not None}
    keys = {key: asked.header(key) for key in ("authorization", "x-goog-api-key")}
    return {"method": asked.method, "path": asked.path, "payload": payload, "keys": keys}


def merged(asked: list[Asked]) -> dict[str, Any]:
    """Return requests for some texts each as one for all: Nomic's client asks for few at a time."""
    parts = sorted((said(one) for one in asked), key=lambda one: TEXTS.index(one["payload"]["texts"][0]))
    texts = [text for part in parts for text in part["payload"]["texts"]]
    for part in parts:
        part["payload"]["texts"] = texts
    assert all(part == parts[0] for part in parts)
    return parts[0]


@pytest.mark.parametrize("role", [Role.DOCUMENT, Role.QUERY])
def test_the_request_is_that_of_the_providers_own_client(name: str, role: Role) -> None:
    """Path, key, texts, model, role, size and form; and the answer means the same to both."""
    with provider(name) as server:
        server.orderly = True
        theirs, client = by_client(name, server, role)
        ours, asked = by_us(name, server, role)
    if name == "nomic":
        assert merged(client) == merged(asked)
    else:
        assert [said(one) for one in client] == [said(one) for one in asked]
    lengths = np.linalg.norm(theirs, axis=1, keepdims=True) if name == "gemini" else 1.0  # ours have length 1
    np.testing.assert_allclose(np.asarray(theirs) / lengths, ours, atol=1e-6)
