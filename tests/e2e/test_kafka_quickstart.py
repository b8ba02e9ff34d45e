"""``make run-kafka`` as README.md has it, on its own configuration and its real models."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemon import PATIENCE, wait_for
from tests.tools import run_kafka

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.models, pytest.mark.lite, pytest.mark.kafka]
ROOT = Path(__file__).parents[2]
SAMPLES = sum(not path.name.endswith(".meta.json") for path in (ROOT / "config" / "samples").iterdir())


class Running:
    """What ``make run-kafka`` starts, in a folder of its own and the head of a process group."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(ROOT / "config", folder / "config")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INGESTD_")}
        ours = {"PYTHONPATH": str(ROOT), "INGESTD_HTTP__LISTEN": "127.0.0.1:0", "HF_HUB_OFFLINE": "1"}
        self._environment = kept | ours
        with self.path("out").open("wb") as out, self.path("log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.tools.run_kafka"],
                cwd=folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    def path(self, name: str) -> Path:
        """Return where one of its outputs goes."""
        return self._folder / f"run-kafka.{name}"

    def ingestd(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run a command beside it, see that it ends with one of these codes, and return what it prints."""
        command = [sys.executable, "-m", "ingestd", *arguments]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode in codes, done.stderr
        return done.stdout

    def until_written(self, count: int) -> None:
        """Wait until the daemon has written so many documents."""

        def written() -> bool:
            assert self.process.poll() is None, self.path("log").read_text()[-4000:]
            # 1: the daemon does not run yet, or is not ready.
            status = self.ingestd("status", "--json", "--config", run_kafka.CONFIG, codes=(0, 1))
            return bool(json.loads(status)["totals"]["written"] >= count)

        wait_for(written, f"{count} documents are written", 2 * PATIENCE)  # with real models


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """It, and an end for what is left of it."""
    started = Running(tmp_path)
    yield started
    if started.process.poll() is None:
        os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait()


def test_documents_on_a_topic_are_found_by_meaning(running: Running, tmp_path: Path) -> None:
    """The samples are found; a document that is produced beside them is, too; Ctrl-C ends the daemon and the broker."""
    running.until_written(SAMPLES)
    assert 1 == len(_brokers(running.process.pid))
    search = ("search", run_kafka.COLLECTION, "--json", "--config", run_kafka.CONFIG)
    assert "watering-while-away.txt" == json.loads(running.ingestd(*search, run_kafka.QUERY))[0]["document_id"]

    (tmp_path / "ahab.txt").write_text("Captain Ahab hunts the white whale across all the oceans of the world.")
    (command,) = re.findall(r"ingestd (produce .*) FILE", running.path("out").read_text())
    running.ingestd(*command.split(), "ahab.txt")
    running.until_written(SAMPLES + 1)
    query = "a sailor who is obsessed with a sea monster"
    assert "ahab.txt" == json.loads(running.ingestd(*search, query))[0]["document_id"]

    os.killpg(running.process.pid, signal.SIGINT)
    assert 0 == running.process.wait(60), running.path("log").read_text()[-4000:]
    with pytest.raises(ProcessLookupError):
        os.killpg(running.process.pid, 0)
    assert not _brokers(running.process.pid), "the broker is still there"


def _brokers(starter: int) -> list[str]:
    """Return the command lines of the brokers that this process has started and that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended, or is somebody else's
                continue
            if f"run-kafka-{starter}-" in line:
                found.append(line)
    return found
