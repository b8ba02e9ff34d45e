"""The status page in a real browser: what a person sees of it, with names that try to be something else."""

from __future__ import annotations

import os
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from ingestd.model import Check, Json, Totals
from ingestd.ops.http import HealthServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HOSTILE = "in\"box'</td></table><script>document.title='owned'</script><img src=x onerror=this.id=1>&lt;b&gt;"
OPTIONS = (
    "--headless",
    "--no-sandbox",  # tests may run as root, in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Ill:
    """A daemon with one thing that is not well, and a hostile name wherever a name can be."""

    def live(self) -> Sequence[Check]:
        """Return that its threads go round."""
        return [Check("threads", ok=True, detail="all beat")]

    def ready(self) -> Sequence[Check]:
        """Return what is not well: a document's name is in all its parts."""
        return [Check(HOSTILE, ok=False, detail=f"{HOSTILE} is away", cure=f"bring {HOSTILE} back")]

    def started(self) -> Sequence[Check]:
        """Return that the start is over."""
        return [Check("started", ok=True, detail="models loaded")]

    def totals(self) -> Totals:
        """Return recognisable numbers."""
        return Totals(accepted=12345, written=12000, dead_lettered=345)

    def overview(self) -> Mapping[str, Json]:
        """Return a line and a table with hostile names."""
        return {"milvus": HOSTILE, "sources": [{"name": HOSTILE, "type": "folder", "documents": 1400}]}


class Tree(HTMLParser):
    """What a browser made of the page: its elements, their attributes, and the text in each."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append(tag)
        self.attributes |= {name for name, _value in attrs}
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Note that it ends, with those in it that need no end."""
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Note a text, as one of all elements around it."""
        for tag in set(self._open):
            self.texts[tag] = self.texts.get(tag, "") + data


def rendered(url: str, profile: Path) -> str:
    """Return the elements of a page as Chromium has them once its scripts have run."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: .ci/run installs it with Debian's package chromium")
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    command = [chromium, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.fixture
def page(tmp_path: Path) -> Tree:
    """The page of the daemon that is not well."""
    server = HealthServer("127.0.0.1:0", Ill(), CollectorRegistry())
    server.start()
    try:
        return Tree(rendered(f"http://{server.address}/", tmp_path))
    finally:
        server.close()


def test_a_person_sees_what_is_wrong_first_and_no_name_becomes_markup(page: Tree) -> None:
    """The trouble and its cure stand above the totals; hostile names are text, to the letter, and nothing else."""
    seen = page.texts["body"]
    assert page.texts["title"] == "ingestd: 1 not well"  # no script has run
    cure = seen.index(f"What to do: bring {HOSTILE} back")
    assert seen.index(f"{HOSTILE} is away") < cure < seen.index("12,345")
    assert all(number in seen for number in ("12,000", "345", "1,400"))
    assert seen.count(HOSTILE) >= 5
    assert not {"script", "img", "b"} & set(page.elements)
    assert not any(name.startswith("on") for name in page.attributes)


def test_markup_would_be_seen(tmp_path: Path) -> None:
    """The test above can fail: in a page that does not escape the same name becomes elements, and its script runs."""
    bare = tmp_path / "bare.html"
    bare.write_text(f"<!doctype html><title>well</title><table><tr><td>{HOSTILE}</td></tr></table>")
    tree = Tree(rendered(bare.as_uri(), tmp_path / "profile"))
    assert tree.texts["title"] == "owned"
    assert {"script", "img"} <= set(tree.elements)
    assert "onerror" in tree.attributes
