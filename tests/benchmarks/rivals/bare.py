"""The model alone: ``SentenceTransformer.encode`` on all chunks at once. No pipeline can do better with its code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from common import Job, run

if TYPE_CHECKING:
    from collections.abc import Callable


def work(job: Job) -> tuple[Callable[[], int], tuple[str, ...]]:
    """Load the model, and return its work."""
    model = job.sentence_transformer()
    chunks = json.loads(job.chunks.read_text("utf-8"))
    return lambda: len(model.encode(chunks)), ()


run(work)
