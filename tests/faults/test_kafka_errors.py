"""A sample of what ``tests.campaigns.kafka_errors`` asks: what the source makes of errors that brokers answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fixtures.mock_cluster import Mock

pytestmark = pytest.mark.kafka


@pytest.mark.long
def test_errors_of_brokers_are_seen_through_or_said(mock_cluster: Mock) -> None:
    """All at once, each on a cluster of its own, in another process: some requests end the mock's process with it."""
    mock_cluster.stop()  # it is here only to say whether its package is
    command = [sys.executable, "-m", "tests.campaigns.kafka_errors", "--sample"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    assert done.stdout.count("exit 78: ConfigError: sources.cms") == 3, done.stdout
