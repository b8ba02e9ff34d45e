"""A model by itself, in a process of its own: embeds what it is sent and says how long that took.

    python tests/benchmarks/bare_model.py FOLDER DEVICE DTYPE THREADS

Each line of its input is a JSON list of texts, and each line of its output the answer to one: the seconds that
``encode`` took, and the first text's vector.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Answer until there is no more input."""
    folder, device, dtype, threads = sys.argv[1:]
    if int(threads):
        torch.set_num_threads(int(threads))
    model = SentenceTransformer(folder, device=device, model_kwargs={"dtype": dtype})
    for line in sys.stdin:
        texts = json.loads(line)
        began = time.perf_counter()
        vectors = model.encode(texts, show_progress_bar=False)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "first": [float(value) for value in vectors[0]]}), flush=True)


if __name__ == "__main__":
    main()
