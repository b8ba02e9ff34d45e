"""Fixtures for all tests: real Milvus servers and Kafka brokers, and daemons as a person runs them."""

from __future__ import annotations

pytest_plugins = (
    "tests.fixtures.milvus",
    "tests.fixtures.daemon",
    "tests.fixtures.lite_server",
    "tests.fixtures.brokers",
    "tests.fixtures.sasl_broker",
)
