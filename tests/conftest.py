"""Fixtures for all tests: real Milvus servers and Kafka brokers, and daemons as a person runs them."""

from __future__ import annotations

import signal

pytest_plugins = (
    "tests.fixtures.milvus",
    "tests.fixtures.daemon",
    "tests.fixtures.lite_server",
    "tests.fixtures.models",
    "tests.fixtures.brokers",
    "tests.fixtures.sasl_broker",
)

# Under nohup a hang-up is ignored, in every child too; the daemons of the tests are to hear one.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
