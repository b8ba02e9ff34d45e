"""Fixtures for all tests: real Milvus servers and Kafka brokers, and daemons as a person runs them."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.fixture(autouse=True)
def _levels_of_loggers() -> Iterator[None]:
    """Take back the levels that a test's commands set: they are the process's, and hide what later tests look for."""
    root = logging.getLogger()
    before = {name: one.level for name, one in root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    level = root.level
    yield
    root.setLevel(level)
    for name, one in root.manager.loggerDict.items():
        if isinstance(one, logging.Logger) and one.level != before.get(name, logging.NOTSET):
            one.setLevel(before.get(name, logging.NOTSET))
