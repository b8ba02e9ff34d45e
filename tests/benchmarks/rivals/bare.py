"""The model alone: ``SentenceTransformer.encode`` on all chunks at once. No pipeline can do better with its code."""

from __future__ import annotations

import json

from common import Job, Work, run


def prepare(job: Job) -> Work:
    """Load the model, and return its work."""
    model = job.sentence_transformer()
    chunks = json.loads(job.chunks.read_text("utf-8"))
    return Work(lambda: len(model.encode(chunks)), model)


run(prepare)
