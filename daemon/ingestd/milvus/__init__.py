"""Everything that knows Milvus: the connection, verdicts on its errors, Milvus Lite as a child, and schemas."""
