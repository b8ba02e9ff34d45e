"""Have a provider's own client embed two texts, at an address of ours: what it sends is how the provider wants it.

    python -m tests.tools.sdk_request openai http://127.0.0.1:8000 document

Run as a process of its own: the clients import half of the world, and read their keys from files and variables.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KEY = "sk-good"
TEXTS = ["The first text.", "Ein zweiter Text, ganz ohne Zweck."]
DIMENSION = 16
NOMIC_DIMENSION = 64
"""Its client refuses less."""


def openai(root: str, role: str) -> Sequence[Sequence[float]]:
    """OpenAI knows no roles."""
    del role
    from openai import OpenAI  # noqa: PLC0415

    client = OpenAI(api_key=KEY, base_url=f"{root}/v1", max_retries=0)
    answer = client.embeddings.create(input=TEXTS, model="a-model", dimensions=DIMENSION)
    return [row.embedding for row in answer.data]


def voyage(root: str, role: str) -> Sequence[Sequence[float]]:
    """Voyage's input types."""
    import voyageai  # noqa: PLC0415

    client = voyageai.Client(api_key=KEY, base_url=f"{root}/v1", max_retries=0)
    answer = client.embed(TEXTS, model="a-model", input_type=role, truncation=False, output_dimension=DIMENSION)
    return list(answer.embeddings)


def cohere(root: str, role: str) -> Sequence[Sequence[float]]:
    """Cohere's input types."""
    import cohere as sdk  # noqa: PLC0415

    client = sdk.ClientV2(api_key=KEY, base_url=root)
    answer = client.embed(
        texts=TEXTS,
        model="a-model",
        input_type=f"search_{role}",
        embedding_types=["float"],
        truncate="NONE",
        output_dimension=DIMENSION,
    )
    return list(answer.embeddings.float_)


def mistral(root: str, role: str) -> Sequence[Sequence[float]]:
    """Mistral knows no roles."""
    del role
    from mistralai.client import Mistral  # noqa: PLC0415

    client = Mistral(api_key=KEY, server_url=root)
    answer = client.embeddings.create(model="a-model", inputs=TEXTS, output_dimension=DIMENSION)
    return [row.embedding for row in answer.data]


def gemini(root: str, role: str) -> Sequence[Sequence[float]]:
    """Gemini's task types."""
    from google import genai  # noqa: PLC0415
    from google.genai import types  # noqa: PLC0415

    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=root, api_version="v1beta"))
    wishes = types.EmbedContentConfig(task_type=f"RETRIEVAL_{role.upper()}", output_dimensionality=DIMENSION)
    answer = client.models.embed_content(model="gemini-embedding-001", contents=TEXTS, config=wishes)
    return [row.values for row in answer.embeddings]


def nomic(root: str, role: str) -> Sequence[Sequence[float]]:
    """Nomic's tasks. Its client reads its key from the home directory."""
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"HOME": home, "ATLAS_API_PATH": root}
        folder = Path(home) / ".nomic"
        folder.mkdir()
        (folder / "credentials").write_text(json.dumps({"token": KEY, "tenant": "production", "expires": None}))
        from nomic import embed  # noqa: PLC0415

        answer = embed.text(
            TEXTS, model="a-model", task_type=f"search_{role}", dimensionality=NOMIC_DIMENSION, inference_mode="remote"
        )
    return list(answer["embeddings"])


CLIENTS: dict[str, Callable[[str, str], Sequence[Sequence[float]]]] = {
    "openai": openai,
    "voyage": voyage,
    "cohere": cohere,
    "mistral": mistral,
    "gemini": gemini,
    "nomic": nomic,
}
"""Jina has none of its own, and Text Embeddings Inference is asked with the hub's for one text at a time."""


def main() -> None:
    """Print the vectors that the client makes of the answer."""
    name, root, role = sys.argv[1:]
    sys.stdout.write(json.dumps([[float(number) for number in vector] for vector in CLIENTS[name](root, role)]) + "\n")


if __name__ == "__main__":
    main()
