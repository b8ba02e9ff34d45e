"""The Kafka campaign in short: whatever happens to the members of a group, nothing is lost and nothing is invented.

``make campaign-kafka`` is the long form; ``tests/campaigns/kafka_oracle.py`` says what is compared.
"""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.kafka import report
from tests.campaigns.kafka_ground import Wish
from tests.campaigns.kafka_scenes import kills, members, plain, stopped

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

pytestmark = [pytest.mark.kafka, pytest.mark.lite]


@pytest.fixture
def seed() -> int:
    """A new seed, shown when the test fails."""
    drawn = random.randrange(2**32)
    sys.stdout.write(f"seed {drawn}\n")
    return drawn


@pytest.mark.parametrize("broker", ["tansu", pytest.param("noida", marks=pytest.mark.long)])
def test_a_topic_is_worked_off(tmp_path: Path, seed: int, broker: Literal["tansu", "noida"]) -> None:
    """Rows are the fold of the topic, dead letters its bad records, commits its ends; a second run has nothing to do.

    A broker whose end offsets are wrong (Tansu) and one that gives topics no ids (noida-db) make no difference.
    """
    figures = plain(Wish(3000, 600, broker=broker, seed=seed), tmp_path / "plain", report)
    assert figures["kinds_of_poison"] > 5


@pytest.mark.parametrize(("broker", "times"), [("tansu", 2), pytest.param("noida", 5, marks=pytest.mark.long)])
def test_a_member_may_be_killed(tmp_path: Path, seed: int, broker: Literal["tansu", "noida"], times: int) -> None:
    """SIGKILL at random moments of the work: the same, and no more is done again than was not committed."""
    kills(Wish(6000, 6000, broker=broker, seed=seed), tmp_path / "kills", report, times=times)


@pytest.mark.long
def test_members_may_come_and_go(tmp_path: Path, seed: int) -> None:
    """Three members that are stopped, killed and started while events keep coming, and share a Milvus: the same."""
    members(Wish(2000, 400, seed=seed), tmp_path / "members", report, times=5, every=4.0)


@pytest.mark.long
def test_a_member_that_was_stopped_overwrites_nothing(tmp_path: Path, seed: int) -> None:
    """SIGSTOP with work in flight, until another member has done it and more; SIGCONT: what is old is given back."""
    stopped(Wish(1000, 100, seed=seed), tmp_path / "stopped", report, times=1)
