"""Who is asked about a new configuration, and for how long."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from ingestd import config
from ingestd.children import ChildDied
from ingestd.cli import reload
from ingestd.cli.reload import Reload, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingestd.children import Child
    from ingestd.ops.image import Image

SILENT = """
[http]
listen = "{listen}"
[milvus]
uri = "http://127.0.0.1:{port}"
connect_timeout_seconds = 600
[embedders.words]
type = "hashing"
[collections.articles]
vectors.dense = {{ embedder = "words", output = "dense" }}
[sources.inbox]
type = "folder"
path = "inbox"
collection = "articles"
"""

BROKEN = "it could not be looked at: new-configuration (process 7) ended with exit status 1; see its messages above"


class Heard:
    """Who is told, and the image that can be begun again."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.over = threading.Event()

    def reading_again(self) -> None:
        """Nothing is done with it."""

    def refuse(self, faults: Sequence[str]) -> None:
        """Take note."""
        self.refused += faults
        self.over.set()

    def faults(self) -> Sequence[str]:
        """Return nothing that speaks against beginning again."""
        return ()


class Scripted:
    """A process that looks, as far as it was written: what it says, and then that it died."""

    def __init__(self, *said: dict[str, object]) -> None:
        self._said = list(said)

    def send(self, message: object) -> None:
        """Take the question."""

    def receive(self, _timeout: float) -> object:
        """Return the next part."""
        if not self._said:
            raise ChildDied("new-configuration (process 7) ended with exit status 1")
        return self._said.pop(0)


FIRST: dict[str, object] = {"faults": [], "unknown": [], "over": False}
SECOND: dict[str, object] = {"faults": ["articles: another dimension"], "unknown": ["cms: away"], "over": False}


@pytest.mark.parametrize("seconds", [120.0, 0.0])
def test_what_was_found_counts_however_the_look_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """A process that breaks speaks against a configuration; one whose time is over does not, but what it found does."""
    monkeypatch.setattr(reload, "LOOK_SECONDS", seconds)
    file = tmp_path / "ingestd.toml"
    file.write_text(SILENT.format(port=1, listen="127.0.0.1:0"))
    heard = Heard()
    wish = Reload(file, config.load(file), cast("Image", heard), heard, heard.over.set)

    def answer(*said: dict[str, object]) -> Verdict:
        return wish._answer_of(cast("Child", Scripted(*said)))

    broken = [] if seconds == 0.0 else [BROKEN]
    assert list(answer(FIRST).faults) == broken
    assert list(answer(FIRST, SECOND).faults) == ["articles: another dimension", *broken]
    assert list(answer(FIRST, SECOND | {"over": True}).faults) == ["articles: another dimension"]
    assert list(answer().faults) == [BROKEN]


@pytest.mark.parametrize(("listen", "refused"), [("127.0.0.1:0", False), ("nowhere:0", True)])
def test_who_does_not_answer_in_time_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str, *, refused: bool
) -> None:
    """It speaks neither for nor against a configuration; what is wrong with that here is told all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reload, "LOOK_SECONDS", 8.0)
    Path("inbox").mkdir()
    heard = Heard()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, and nothing is ever said
        Path("ingestd.toml").write_text(SILENT.format(port=silent.getsockname()[1], listen=listen))
        settings = config.load(Path("ingestd.toml"))
        wish = Reload(Path("ingestd.toml"), settings, cast("Image", heard), heard, heard.over.set)
        wish.ask()
        assert heard.over.wait(60)
        wish.close()
    assert wish.accepted is not refused
    assert [fault.partition(":")[0] for fault in heard.refused] == ["http.listen"] * refused
