"""LangChain: ``add_documents`` of its Milvus store."""

from __future__ import annotations

from common import Job, Work, run
from langchain_core.documents import Document
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_milvus import Milvus
from langchain_text_splitters import RecursiveCharacterTextSplitter

SIZE = 1_000
"""Characters of a chunk: about as many as 250 tokens have."""


def prepare(job: Job) -> Work:
    """Load the model, make the store, and return the work."""
    embeddings = HuggingFaceEmbeddings(
        model_name=job.model, model_kwargs={"device": job.device, "model_kwargs": job.model_kwargs()}
    )
    embeddings.embed_query("A text to see that the model works.")
    store = Milvus(
        embedding_function=embeddings,
        connection_args={"uri": str(job.folder / "langchain.db")},
        collection_name="articles",
        index_params={"index_type": "AUTOINDEX", "metric_type": "COSINE"},
        auto_id=True,
    )
    splitter = RecursiveCharacterTextSplitter(chunk_size=SIZE, chunk_overlap=0)

    def ingest() -> int:
        documents = [Document(path.read_text("utf-8"), metadata={"source": str(path)}) for path in job.files]
        chunks = splitter.split_documents(documents)
        store.add_documents(chunks)
        return len(chunks)

    packages = ("langchain-core", "langchain-milvus", "langchain-huggingface", "pymilvus")
    return Work(ingest, embeddings._client, packages)


run(prepare)
