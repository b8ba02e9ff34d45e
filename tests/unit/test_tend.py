"""What is asked while nothing flows whether it is well again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ingestd import flow
from ingestd.engine.breaker import STORM, Backoff, Breakers
from ingestd.errors import DeadlyError, FatalError, Suspect, UnavailableError
from ingestd.model import Check


class Embedder:
    """Fails with an error, if it has one, and counts how often it is asked."""

    def __init__(self, error: Exception | None = None, *, is_remote: bool = False) -> None:
        self.error = error
        self.is_remote = is_remote
        self.asked = 0

    def embed(self, *_arguments: object) -> None:
        """Fail, or not."""
        self.asked += 1
        if self.error is not None:
            raise self.error


def ground(embedders: dict[str, Embedder], *, sick: bool = False) -> Any:
    """What ``_tend`` looks at."""
    check = Check("device:cpu", ok=not sick, detail="process 1 is gone")
    return SimpleNamespace(
        store=SimpleNamespace(failing=None),
        breakers=Breakers(backoff=Backoff(first=0.0, most=0.0, pace=0.0)),
        pool=SimpleNamespace(checks=lambda: [check]),
        embedders=embedders,
        infos={name: SimpleNamespace(kinds=frozenset()) for name in embedders},
    )


def storm(breakers: Breakers, dependency: str, scope: str) -> None:
    """Have batch after batch fail where a probe passes."""

    def fail() -> None:
        raise UnavailableError(dependency, "no")

    for _ in range(STORM):
        with pytest.raises(Suspect):
            breakers.hold(fail, lambda: None, beat=lambda: None, scope=scope)
    assert not breakers.passes(scope)


@pytest.mark.parametrize(
    ("dependency", "asked"),
    [("uri:files:443", (0, 0, 0)), ("provider:near", (0, 1, 0)), ("budget:near", (0, 1, 0)), ("device:cpu", (1, 0, 0))],
)
def test_a_storm_ends_whatever_else_is_away(dependency: str, asked: tuple[int, ...]) -> None:
    """Only what is behind it is asked: what another collection is embedded with may be away, and is paid for."""
    away = UnavailableError("provider:far", "503")
    embedders = {
        "local": Embedder(),
        "near": Embedder(is_remote=True),
        "far": Embedder(away, is_remote=True),
    }
    ground_ = ground(embedders)
    storm(ground_.breakers, dependency, "articles")
    flow._tend(ground_, {})
    assert ground_.breakers.passes("articles")
    assert tuple(embedder.asked for embedder in embedders.values()) == asked


def test_a_storm_lasts_while_its_own_probe_fails() -> None:
    """Until what is behind it answers."""
    far = Embedder(UnavailableError("provider:far", "503"), is_remote=True)
    ground_ = ground({"far": far})
    storm(ground_.breakers, "provider:far", "articles")
    flow._tend(ground_, {})
    assert not ground_.breakers.passes("articles")
    far.error = None
    flow._tend(ground_, {})
    assert ground_.breakers.passes("articles")


def test_a_probe_is_no_document() -> None:
    """Whatever a model says of it, that is no reason to end; but an unknown state is."""
    model = Embedder(DeadlyError("it killed its worker twice"))
    flow._tend(ground({"local": model}, sick=True), {})
    assert model.asked == 1
    model.error = FatalError("the model's files changed")
    with pytest.raises(FatalError):
        flow._tend(ground({"local": model}, sick=True), {})
