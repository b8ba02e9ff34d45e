"""LlamaIndex: its ingestion pipeline, with its Milvus store."""

from __future__ import annotations

from common import Job, Work, run
from llama_index.core import SimpleDirectoryReader
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.vector_stores.milvus import MilvusVectorStore

TOKENS = 250


def prepare(job: Job) -> Work:
    """Load the model, make the store, and return the pipeline's run."""
    embedding = HuggingFaceEmbedding(model_name=job.model, device=job.device, model_kwargs=job.model_kwargs())
    dimension = len(embedding.get_text_embedding("A text to see that the model works."))
    store = MilvusVectorStore(
        uri=str(job.folder / "llamaindex.db"), dim=dimension, collection_name="articles", overwrite=True
    )
    splitter = SentenceSplitter(chunk_size=TOKENS, chunk_overlap=0)
    splitter.split_text("It loads its tokenizer when it is first used.")
    pipeline = IngestionPipeline(transformations=[splitter, embedding], vector_store=store)

    def ingest() -> int:
        documents = SimpleDirectoryReader(input_files=list(map(str, job.files))).load_data()
        return len(pipeline.run(documents=documents))

    packages = (
        "llama-index-core",
        "llama-index-vector-stores-milvus",
        "llama-index-embeddings-huggingface",
        "pymilvus",
    )
    return Work(ingest, embedding._model, packages)


run(prepare)
