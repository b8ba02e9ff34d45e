"""A model on several devices: a process each, work for whichever is free, and what becomes of it when one goes down."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from ingestd.devices import replicas
from ingestd.devices.pool import Pool
from ingestd.embedders.sentence_transformers import Config
from ingestd.errors import ConfigError, UnavailableError
from ingestd.model import Role, VectorKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ingestd.ports import Device

HERE = Path(__file__).parent
DENSE = frozenset({VectorKind.DENSE})


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the model notes its loads and what it waits on."""
    return tmp_path / "log"


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool."""
    made = Pool(load_timeout=20, embed_timeout=20)
    yield made
    made.close()


def load(pool: Pool, log: Path, device: str | Sequence[str], **options: object) -> Device:
    """A handle on the model of ``worker_models``."""
    return pool.load("lengths", "worker_models", {"log": str(log), **options}, device)


def embed(device: Device, text: str) -> int:
    """Embed a text; its vector is its length."""
    vectors: Any = device.embed([text], Role.DOCUMENT, DENSE)[VectorKind.DENSE]
    return int(vectors[0][0])


def waited(log: Path) -> list[tuple[str, str]]:
    """Where texts were that waited for one another: devices and processes."""
    return re.findall(r"waits on (\S+) in (\d+)", log.read_text())


def test_two_on_the_cpu_work_at_once(pool: Pool, log: Path) -> None:
    """Each has a process of its own, and two requests are in both: neither text goes on before the other is there."""
    device = load(pool, log, ["cpu", "cpu"])
    assert device.info().replicas == 2
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: embed(device, "wait for 2"), range(2))) == [10, 10]
    assert len(set(waited(log))) == 2
    assert [check.name for check in pool.checks()] == ["device:cpu", "device:cpu#2"]


def test_models_share_workers_place_by_place(pool: Pool, log: Path) -> None:
    """Two models on two devices are two processes, and a model that is on one of them adds none."""
    first, second, third = (load(pool, log, device) for device in (["cpu", "cpu"], ("cpu", "cpu"), "cpu"))
    assert [device.info().replicas for device in (first, second, third)] == [2, 2, 1]
    assert len(pool.checks()) == 2
    processes = re.findall(r"loaded (\d+)", log.read_text())
    assert (len(processes), len(set(processes))) == (5, 2)


def test_auto_is_every_gpu(pool: Pool, log: Path) -> None:
    """What the first worker's libraries see decides how many more there are; all are loaded before it is ready."""
    device = load(pool, log, "auto", gpus=3)
    assert device.info().replicas == 3
    assert len(re.findall("loaded", log.read_text())) == 3
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: embed(device, "wait for 3"), range(3)))
    assert {name for name, _ in waited(log)} == {"auto", "cuda:1", "cuda:2"}


@pytest.mark.parametrize("gpus", [0, 1])
def test_auto_is_one_where_there_are_no_more(pool: Pool, log: Path, gpus: int) -> None:
    """No GPU, or one."""
    assert load(pool, log, "auto", gpus=gpus).info().replicas == 1
    assert len(pool.checks()) == 1


@pytest.mark.parametrize("device", ["auto", ["cpu", "cpu"]])
def test_a_question_needs_one(log: Path, device: str | list[str]) -> None:
    """A command that embeds a query does not load the model on every device."""
    pool = Pool(spread=False)
    try:
        assert load(pool, log, device, gpus=4).info().replicas == 1
        assert len(pool.checks()) == 1
    finally:
        pool.close()


def test_one_that_is_down_is_asked_last(pool: Pool, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do its work, and it is asked again after a rest."""
    (log.parent / "down").touch()
    device = load(pool, log, ["cpu", "cuda:1"], down="cpu")
    device.info()
    with pytest.raises(UnavailableError, match="every text"):
        embed(device, "first")  # whoever has nothing to do is asked in the order of the list
    assert [embed(device, "next") for _ in range(3)] == [4, 4, 4]
    (log.parent / "down").unlink()
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + replicas.REST)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: embed(device, "wait for 2"), range(2)))
    assert {name for name, _ in waited(log)} == {"cpu", "cuda:1"}


def test_another_model_on_one_of_them_is_refused(
    pool: Pool, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of two spaces would be mixed: its files were replaced between the first load and the others."""
    space = tmp_path / "space"
    space.write_text("one")
    first = replicas._info

    def info(replica: replicas.Replica) -> object:
        found = first(replica)
        space.write_text("another")
        return found

    monkeypatch.setattr(replicas, "_info", info)
    with pytest.raises(ConfigError, match=r"embedders\.lengths: on cpu it is another model"):
        load(pool, log, ["cpu", "cpu"], space=space).info()


class _Noting:
    """A pool that notes what it is asked to load (``ports.DevicePool``)."""

    def __init__(self) -> None:
        self.options: Mapping[str, object] = {}

    def load(self, name: str, module: str, options: Mapping[str, object], device: str | Sequence[str]) -> Any:
        """Note it."""
        del name, module, device
        self.options = options


@pytest.mark.parametrize(
    ("said", "threads"),
    [
        ({"device": ["cpu", "cpu"]}, 4),
        ({"device": ["cpu"] * 16}, 1),
        ({"device": ["cpu", "cpu"], "threads": 3}, 3),
        ({"device": "cpu"}, None),
        ({"device": ["cuda:0", "cuda:1"]}, None),
    ],
)
def test_workers_on_the_cpu_share_the_cores_out(
    said: dict[str, Any], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as it is not configured, and not for one alone: that is torch's own choice."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    pool: Any = _Noting()
    Config(model="a folder", **said).on(pool, "m", "a module")
    assert pool.options["threads"] == threads


@pytest.mark.parametrize("device", [["auto", "cpu"], [], ["gpu"], "gpu", ["cuda:x"]])
def test_what_is_no_device_is_refused(device: Any) -> None:
    """Also ``auto`` beside others, which is all there are by itself."""
    with pytest.raises(ValidationError):
        Config(model="a folder", device=device)


def test_a_list_of_auto_alone_is_auto() -> None:
    """Nobody meant anything else."""
    assert Config(model="a folder", device=["auto"]).device == "auto"
