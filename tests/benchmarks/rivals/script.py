"""The script that people write: a document at a time, split, encoded and upserted."""

from __future__ import annotations

import hashlib

from common import Job, Work, run
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pymilvus import DataType, MilvusClient

SIZE = 1_000
"""Characters of a chunk: about as many as 250 tokens have."""


def prepare(job: Job) -> Work:
    """Load the model, make the collection, and return the work."""
    model = job.sentence_transformer()
    dimension = len(model.encode(["x"])[0])
    client = MilvusClient(str(job.folder / "script.db"))
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=65_535)
    schema.add_field("source", DataType.VARCHAR, max_length=1_024)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    index = MilvusClient.prepare_index_params()
    index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
    client.create_collection("articles", schema=schema, index_params=index)
    splitter = RecursiveCharacterTextSplitter(chunk_size=SIZE, chunk_overlap=0)

    def ingest() -> int:
        count = 0
        for path in job.files:
            chunks = splitter.split_text(path.read_text("utf-8"))
            vectors = model.encode(chunks)
            rows = [
                {
                    "id": hashlib.sha256(f"{path}:{at}".encode()).hexdigest(),
                    "text": chunk,
                    "source": str(path),
                    "vector": vector.tolist(),
                }
                for at, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True))
            ]
            client.upsert("articles", rows)
            count += len(rows)
        return count

    return Work(ingest, model, ("pymilvus", "milvus-lite", "langchain-text-splitters"))


run(prepare)
