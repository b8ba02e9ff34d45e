"""A process that replaces its own image: what the next one has, and what it has not.

The images are small programs that say what they find; each begins again in the same process until it has been told so
often that it ends.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from ingestd.ops.image import Image, Reloads

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import json, os, signal, sys
from ingestd.ops.image import Image, Reloads
from ingestd.ops.signals import hold
hold()
image = Image.now(os.environ)
MORE
print(json.dumps({
    "pid": os.getpid(), "reloads": [image.reloads.applied, image.reloads.refused], "argv": sys.argv[1:],
    "options": [sys.flags.dev_mode, sys.warnoptions], "environment": os.environ.get("SAID"),
    "seen": "_INGESTD_RELOADS" in os.environ, "open": sorted(map(int, os.listdir("/proc/self/fd"))),
}), flush=True)
LEAK
if image.reloads.applied < 3:
    image.replace(Reloads(image.reloads.applied + 1, 7))
"""


def program(folder: Path, *, more: str = "", leak: str = "") -> Path:
    """Write the program; return its file."""
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("MORE", more).replace("LEAK", leak))
    return path


def said(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return what each image said."""
    assert (0, "") == (done.returncode, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_next_image_is_the_same_program_in_the_same_process(tmp_path: Path) -> None:
    """Same id, arguments and interpreter's options; the environment as it was before anything was taken out of it."""
    path = program(tmp_path, more='os.environ.pop("SAID_NOTHING"); os.environ["SAID_NOTHING_ELSE"] = "1"')
    command = [sys.executable, "-X", "dev", "-W", "error", str(path), "run", "--config", "a b"]
    environment = {**os.environ, "SAID": "as before", "SAID_NOTHING": ""}
    images = said(subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120))
    assert len(images) == 4
    assert len({image["pid"] for image in images}) == 1
    assert [[0, 0], [1, 7], [2, 7], [3, 7]] == [image["reloads"] for image in images]
    for image in images:
        assert image["argv"] == ["run", "--config", "a b"]
        assert image["options"] == [True, ["default", "error"]]
        assert image["environment"] == "as before"
        assert not image["seen"]


def test_no_descriptor_is_left_open_but_what_the_starter_left_open(tmp_path: Path) -> None:
    """Also where a library opens one without saying that it is to be closed."""
    path = program(tmp_path, leak='kept = [os.dup2(0, 50), os.open("/", os.O_RDONLY)]; os.set_inheritable(50, True)')
    read, write = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, str(path)], pass_fds=[write], capture_output=True, text=True, check=False, timeout=120
        )
    finally:
        os.close(read)
        os.close(write)
    images = said(done)
    assert len(images) == 4
    for image in images:
        assert image["open"] == images[0]["open"]
        assert write in image["open"]
        assert 50 not in image["open"]


def test_a_signal_at_any_moment_is_heard_once(tmp_path: Path) -> None:
    """Images that take each other's place without end, with threads of libraries in them: SIGTERM reaches one of them.

    It neither kills the process nor gets lost, whenever it comes.
    """
    path = program(tmp_path, more="import numpy")
    again = "not {signal.SIGTERM} & signal.sigpending()"
    path.write_text(path.read_text().replace("image.reloads.applied < 3", again))
    draw = random.Random(7)
    for _ in range(12):
        with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()  # the first image holds its signals
            reader = threading.Thread(target=process.stdout.read)
            reader.start()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.0, 1.0))
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(60) == 0
            finally:
                process.kill()
                reader.join()


@pytest.fixture
def here() -> Image:
    """How this process was started."""
    return Image.now(dict(os.environ))


def test_what_can_be_started_again_has_no_fault(here: Image) -> None:
    """As it is."""
    assert not here.faults()


def test_what_is_gone_is_told(here: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter, the program, and the working directory."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "ingestd")])
    (tmp_path / "gone").rmdir()
    image = Image((str(tmp_path / "python"), *here.command[1:]), {}, frozenset())
    directory, interpreter, script = image.faults()
    assert "working directory" in directory
    assert str(tmp_path / "python") in interpreter
    assert f"{tmp_path / 'bin' / 'ingestd'} is gone" in script


def test_what_cannot_be_started_again_says_so(tmp_path: Path) -> None:
    """And returns, for the process to end with a failure."""
    descriptors = frozenset(range(10_000))
    with structlog.testing.capture_logs() as logged:
        Image((str(tmp_path / "python"), "-c", "pass"), {}, descriptors).replace(Reloads())
    (line,) = logged
    assert "cannot be started again" in line["event"]
    assert "No such file" in line["error"]


def test_another_versions_word_is_taken_as_far_as_it_goes() -> None:
    """The next image may be of a later version, or of an earlier one."""
    environment = {"_INGESTD_RELOADS": '{"applied": 2, "refused_by": "the cat"}', "HOME": "/"}
    assert Image.now(environment).reloads == Reloads(applied=2)
    assert environment == {"HOME": "/"}
