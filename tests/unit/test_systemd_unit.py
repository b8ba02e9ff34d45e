"""The systemd unit and its drop-in for GPUs, as systemd itself reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ingestd.config import ShutdownSettings

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = "ingestd.service"
CLOSING = 15
"""Seconds that a stop may take beyond its drain."""
EXPOSURE_LIMIT = 30
"""Tenths: systemd calls 2.0 and below "safe", and 4.0 "ok"."""


def analyze(*arguments: str, units: Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze with a folder of units in front of the machine's own."""
    program = shutil.which("systemd-analyze")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is missing: it is part of Debian's package systemd")
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:", "SYSTEMD_COLORS": "0"}
    return subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(params=["cpu", "gpu"])
def units(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the unit, without or with the drop-in. The programs are one that is there."""
    text = (SYSTEMD / UNIT).read_text()
    for installed in ("/opt/ingestd/bin/ingestd", "/bin/kill"):
        assert installed in text
        text = text.replace(installed, "/bin/true")
    (tmp_path / UNIT).write_text(text)
    if request.param == "gpu":
        shutil.copytree(SYSTEMD / f"{UNIT}.d", tmp_path / f"{UNIT}.d")
    return tmp_path


def test_systemd_understands_every_line(units: Path) -> None:
    """Nothing is misspelt, out of place, or newer than the systemd that is installed."""
    verified = analyze("verify", "--man=no", str(units / UNIT), units=units)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_a_misspelt_line_would_be_seen(units: Path) -> None:
    """The check above can fail: a directive that does not exist makes systemd complain."""
    with (units / UNIT).open("a") as unit:
        unit.write("\n[Service]\nWatchdogSeconds=60\n")
    verified = analyze("verify", "--man=no", str(units / UNIT), units=units)
    assert "WatchdogSeconds" in verified.stdout + verified.stderr


def test_the_service_is_confined(units: Path) -> None:
    """By systemd's own measure the service can do little harm, with a GPU too."""
    arguments = ("security", "--offline=yes", f"--threshold={EXPOSURE_LIMIT}", str(units / UNIT))
    measured = analyze(*arguments, units=units)
    assert measured.returncode == 0, measured.stdout[-500:] + measured.stderr


def test_the_drop_in_is_what_is_measured(units: Path) -> None:
    """With the drop-in the devices of the GPU are in reach, and without it none is."""
    measured = analyze("security", "--offline=yes", "--no-pager", str(units / UNIT), units=units).stdout
    assert (units / f"{UNIT}.d").exists() == ("char-nvidia-uvm:rw" in measured)


def test_the_unit_fits_the_daemon() -> None:
    """What systemd waits for and reacts to is what the daemon does.

    A drain takes up to ``shutdown.drain_seconds``, what closes after it some more, and both have to end before SIGKILL;
    exit 78 is a wrong configuration, which a restart does not cure; the signal is for the daemon alone; a reload is
    SIGHUP; and PyTorch does not run without writable code pages.
    """
    said = dict(re.findall(r"^(\w+)=(.*)$", (SYSTEMD / UNIT).read_text(), re.MULTILINE))
    assert int(said["TimeoutStopSec"].removesuffix("s")) >= ShutdownSettings().drain_seconds + CLOSING
    assert said["RestartPreventExitStatus"] == "78"
    assert (said["Type"], said["KillMode"], said["Restart"]) == ("notify", "mixed", "on-failure")
    assert said["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert "MemoryDenyWriteExecute" not in said
