"""The quick start as README.md has it, on its own configuration and its real models."""

from __future__ import annotations

import re
import shutil
import signal
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fixtures.daemon import Daemon, Workplace

pytestmark = [pytest.mark.models, pytest.mark.lite]
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "config" / "samples"
SECONDS = 10.0
"""Within which the search follows a change of a file."""


@pytest.fixture
def quickstart(workplace: Workplace) -> Workplace:
    """A folder such as ``make run`` makes; only the port is another."""
    workplace.settings = tomllib.loads((ROOT / "config" / "quickstart.toml").read_text())
    workplace.state = workplace.root / workplace.settings["state_dir"]
    workplace.milvus = workplace.root / workplace.settings["milvus"]["uri"]
    workplace.environment["INGESTD_HTTP__LISTEN"] = "127.0.0.1:0"
    shutil.copytree(SAMPLES, workplace.inbox, dirs_exist_ok=True)
    return workplace


def _query() -> str:
    (query,) = re.findall(r'ingestd search articles "([^"]+)" --config config/quickstart.toml', _readme())
    return str(query)


def _readme() -> str:
    return (ROOT / "README.md").read_text()


def test_a_new_user_finds_documents_by_meaning(quickstart: Workplace) -> None:
    """The README's query finds its document; edits and deletes are followed within seconds; Ctrl-C leaves nothing."""
    with quickstart.daemon() as daemon:
        daemon.until_ready()
        documents = sum(not path.name.endswith(".meta.json") for path in SAMPLES.iterdir())
        daemon.until_settled(documents)
        assert "inbox/watering-while-away.txt" == _best(quickstart, _query())

        edited = quickstart.inbox / "sourdough.md"
        edited.write_text("Captain Ahab hunts the white whale across all the oceans of the world.")
        (quickstart.inbox / "watering-while-away.txt").unlink()
        _until_settled_soon(daemon, documents + 2)
        assert "inbox/sourdough.md" == _best(quickstart, "a sailor who is obsessed with a sea monster")
        assert "inbox/watering-while-away.txt" not in _all(quickstart, _query())

        daemon.send_group(signal.SIGINT)
        assert daemon.wait() == 0
        quickstart.until_gone(1)


def _until_settled_soon(daemon: Daemon, count: int) -> None:
    changed = time.monotonic()
    daemon.until_settled(count)
    assert time.monotonic() - changed < SECONDS


def _best(workplace: Workplace, query: str) -> str:
    return _all(workplace, query)[0]


def _all(workplace: Workplace, query: str) -> list[str]:
    answer = workplace.ask("search", "articles", query, "--json")
    assert answer.code == 0, answer.err
    return [hit["document_id"] for hit in answer.json]


def test_sigterm_while_the_models_load_ends_at_once(quickstart: Workplace) -> None:
    """Not after the models: exit 0 within seconds, and no worker is left behind."""
    with quickstart.daemon() as daemon:
        daemon.until_said("loading the models")
        asked = time.monotonic()
        assert daemon.stop() == 0, daemon.log
        assert time.monotonic() - asked < 15
        quickstart.until_gone(1)
        assert not daemon.said("comparing the collection articles"), "the models were loaded before the signal came"
