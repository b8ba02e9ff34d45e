"""What becomes of a request when its device worker dies, hangs, or fails: real processes, killed for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from ingestd.devices.pool import Pool
from ingestd.errors import ConfigError, DeadlyError, DocumentError, FatalError, Stopped, UnavailableError
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestd.ports import Device

HERE = Path(__file__).parent
DENSE = frozenset({VectorKind.DENSE})


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the model notes its loads and deaths."""
    return tmp_path / "log"


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool that gives a hanging worker two seconds."""
    made = Pool(load_timeout=20, embed_timeout=2)
    yield made
    made.close()


@pytest.fixture
def device(pool: Pool, log: Path) -> Device:
    """A model in it."""
    return load(pool, log)


def load(pool: Pool, log: Path, **options: object) -> Device:
    """A handle on the model of ``worker_models``."""
    return pool.load("lengths", "worker_models", {"log": str(log), **options}, "cpu")


def lengths(device: Device, *texts: str) -> list[int]:
    """Embed the texts; each vector is its text's length."""
    vectors: Any = device.embed(texts, Role.DOCUMENT, DENSE)[VectorKind.DENSE]
    return [int(row[0]) for row in vectors]


def loads(log: Path) -> list[int]:
    """The processes that loaded the model, in order."""
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("loaded")]


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


def noted(log: Path, line: str) -> bool:
    """Whether the model noted it."""
    return log.exists() and line in log.read_text()


def gone(pid: int) -> bool:
    """Whether the process has ended."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run ``work`` in a thread; its result, or its exception, goes into the list."""
    said: list[object] = []

    def run() -> None:
        try:
            said.append(work())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            said.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, said


def test_starts_when_first_asked(pool: Pool, device: Device, log: Path) -> None:
    """A worker starts with its first request, and the model is loaded once for many."""
    assert not log.exists()
    assert [check.ok for check in pool.checks()] == [True]
    assert device.info().dimension == 2
    assert lengths(device, "a", "bb") == [1, 2]
    assert lengths(device) == []
    assert len(loads(log)) == 1


def test_models_of_a_device_share_a_worker(pool: Pool, log: Path) -> None:
    """Two models on one device live in one process, each with its own options."""
    (log.parent / "space").write_text("other")
    one, other = load(pool, log), load(pool, log, space=log.parent / "space")
    assert (one.info().space, other.info().space) == ("lengths", "other")
    assert len(set(loads(log))) == 1


def test_role_reaches_the_model(device: Device) -> None:
    """Documents and queries stay apart on the way through the pipe."""
    vectors = [device.embed(["x"], role, DENSE)[VectorKind.DENSE] for role in Role]
    assert [np.asarray(block[0])[1] for block in vectors] == [len("document"), len("query")]


def test_killed_between_requests(pool: Pool, device: Device, log: Path) -> None:
    """A worker that was killed while idle is reported, and the next request gets a new one."""
    device.info()
    (pid,) = loads(log)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not all(check.ok for check in pool.checks()))
    assert lengths(device, "abc") == [3]
    assert len(loads(log)) == 2
    assert all(check.ok for check in pool.checks())


def test_killed_in_a_request(device: Device, log: Path) -> None:
    """A worker that dies in a request is replaced, and the request gets its answer."""
    assert lengths(device, "a", "die once", "bb") == [1, 8, 2]
    assert len(loads(log)) == 2


def test_sigkill_from_outside_in_a_request(pool: Pool, device: Device, log: Path) -> None:
    """The same when somebody else (the kernel, short of memory) kills it; the worker's other models come back too."""
    other = load(pool, log)
    other.info()
    thread, said = in_thread(lambda: lengths(device, "a", "hang once"))
    until(lambda: noted(log, "hanging"))
    os.kill(loads(log)[0], signal.SIGKILL)
    thread.join(30)
    assert said == [[1, 9]]
    assert lengths(other, "abc") == [3]
    assert gone(loads(log)[0])


def test_texts_that_kill_twice_are_at_fault(device: Device, log: Path) -> None:
    """Texts that kill two workers, where a plain sentence kills none, are the document's fault."""
    with pytest.raises(DeadlyError, match="killed the device worker twice"):
        lengths(device, "a", "die")
    assert log.read_text().splitlines().count("died") == 2
    assert lengths(device, "a") == [1]


def test_device_that_kills_everything_is_unavailable(pool: Pool, log: Path) -> None:
    """A worker that dies on a plain sentence too is an outage: no document is blamed."""
    device = load(pool, log, deadly=True)
    with pytest.raises(UnavailableError) as caught:
        lengths(device, "a")
    assert caught.value.dependency == "device:cpu"
    assert not all(check.ok for check in pool.checks())


def test_hanging_worker_is_ended(device: Device, log: Path) -> None:
    """A worker that does not answer in time is ended and replaced."""
    start = time.monotonic()
    with pytest.raises(DocumentError, match="did not answer within 2 s"):
        lengths(device, "hang")
    assert time.monotonic() - start < 15
    assert lengths(device, "a") == [1]
    assert all(gone(pid) for pid in loads(log)[:-1])


def test_stopped_worker_that_reads_nothing_is_ended(device: Device, log: Path) -> None:
    """A worker that does not even read its request (it is suspended, and the pipe is full) is ended too."""
    device.info()
    (pid,) = loads(log)
    os.kill(pid, signal.SIGSTOP)
    assert lengths(device, "x" * 1_000_000) == [1_000_000]
    assert gone(pid)


def test_refused_text(device: Device, log: Path) -> None:
    """What the model refuses is the document's fault and costs no worker."""
    with pytest.raises(DocumentError, match="this text is refused"):
        lengths(device, "refuse")
    assert len(loads(log)) == 1


def test_unforeseen_exception_on_one_text(device: Device, log: Path) -> None:
    """An exception that only these texts raise is theirs; the worker stays."""
    with pytest.raises(DocumentError, match="IndexError: no such place"):
        lengths(device, "raise")
    assert lengths(device, "a") == [1]
    assert len(loads(log)) == 1


def test_broken_context_is_replaced(device: Device, log: Path) -> None:
    """A model that fails on every text after an error (CUDA) is worth a new process; then the texts are at fault."""
    with pytest.raises(DocumentError, match="illegal memory access"):
        lengths(device, "break")
    assert lengths(device, "a") == [1]
    assert len(loads(log)) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"missing": True}, "embedders.lengths: model: there is none of that name"),
        ({"package": True}, "pip install 'milvus-ingestd\\[local\\]'"),
        ({"dies_loading": True}, "embedders.lengths: the device worker ended while it loaded"),
    ],
)
def test_model_that_cannot_be_loaded(pool: Pool, log: Path, options: dict[str, object], said: str) -> None:
    """What fails at the first load is the set-up's fault, and the message names the embedder and the cure."""
    with pytest.raises(ConfigError, match=said):
        load(pool, log, **options).info()


def test_module_that_is_not_there(pool: Pool) -> None:
    """A module that does not exist is a ConfigError, not a dead worker."""
    with pytest.raises(ConfigError, match=r"embedders\.lost"):
        pool.load("lost", "no_such_module", {}, "cpu").info()


def test_model_that_cannot_be_loaded_again(pool: Pool, log: Path) -> None:
    """A model that was fine and cannot be loaded after its worker's death is an outage, and heals."""
    fault = log.parent / "fault"
    device = load(pool, log, fail_load_if=str(fault))
    assert lengths(device, "a") == [1]
    fault.touch()
    os.kill(loads(log)[0], signal.SIGKILL)
    with pytest.raises(UnavailableError, match="cannot be loaded again"):
        lengths(device, "a")
    fault.unlink()
    assert lengths(device, "a") == [1]


def test_model_that_changed_on_disk(pool: Pool, log: Path) -> None:
    """After a restart of the worker another vector space is fatal: its vectors must not join the old ones."""
    space = log.parent / "space"
    space.write_text("one")
    device = load(pool, log, space=str(space))
    device.info()
    space.write_text("two")
    os.kill(loads(log)[0], signal.SIGKILL)
    with pytest.raises(FatalError, match="changed under the running daemon"):
        lengths(device, "a")


def test_close_ends_a_request_in_flight(log: Path) -> None:
    """Closing does not wait for a model: the request in flight and the one behind it raise Stopped."""
    pool = Pool(embed_timeout=60)
    device = load(pool, log)
    first, said = in_thread(lambda: lengths(device, "hang"))
    until(lambda: noted(log, "hanging"))
    second, said_too = in_thread(lambda: lengths(device, "a"))
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5
    first.join(5)
    second.join(5)
    assert [type(said[0]), type(said_too[0])] == [Stopped, Stopped]
    assert all(gone(pid) for pid in loads(log))
    with pytest.raises(Stopped):
        lengths(device, "a")
    with pytest.raises(Stopped):
        load(pool, log)


def test_signals_to_the_group_are_not_the_workers(device: Device, log: Path) -> None:
    """A worker ignores SIGTERM and SIGINT: it is needed for the drain."""
    device.info()
    (pid,) = loads(log)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    assert lengths(device, "a") == [1]
    assert loads(log) == [pid]


def test_no_worker_outlives_its_daemon(log: Path) -> None:
    """After a SIGKILL of the parent, in the middle of a request, the worker ends."""
    script = (
        "import sys\n"
        "from ingestd.devices.pool import Pool\n"
        "from ingestd.model import Role, VectorKind\n"
        "pool = Pool()\n"
        "device = pool.load('lengths', 'worker_models', {'log': sys.argv[1]}, 'cpu')\n"
        "device.embed(['hang'], Role.DOCUMENT, {VectorKind.DENSE})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(log)])
    try:
        until(lambda: noted(log, "hanging"))
    finally:
        parent.kill()
        parent.wait()
    (pid,) = loads(log)
    until(lambda: gone(pid), 5)
