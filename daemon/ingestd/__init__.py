"""ingestd: keeps Milvus collections equal to the documents behind them."""

__version__ = "0.1.0"
