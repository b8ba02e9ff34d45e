"""A bad document kills at most its own worker: every death is survived, named, and felt by no other document."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from ingestd.errors import ConfigError, Difficult, DocumentError, Stopped, TransientError, UnavailableError
from ingestd.extractors import csv, html, json, markdown, text
from ingestd.extractors._isolated import IsolatedExtraction
from ingestd.extractors._slots import LONG, SHORT_SECONDS, ExtractorFailed, Pace
from ingestd.model import Content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel

HERE = Path(__file__).parent
MIB = 2**20
ALL: tuple[tuple[str, BaseModel], ...] = (
    ("text", text.Config()),
    ("markdown", markdown.Config()),
    ("html", html.Config()),
    ("json", json.Config()),
    ("csv", csv.Config(max_field=100_000)),
)
GOOD = (
    (Content(b"plain", "a.txt"), "plain"),
    (Content(b"# marked\n\n*down*", "a.md"), "marked\n\ndown"),
    (Content(b"<p>hyper<p>text", "a.html"), "hyper\n\ntext"),
    (Content(b'{"object": "notation"}', "a.json"), "object: notation"),
    (Content(b"comma,separated\n1,2", "a.csv"), "comma: 1\nseparated: 2"),
)


@pytest.fixture(scope="module")
def bombs() -> Iterator[Any]:
    """The module ``bomb_extractors``, importable here and in the workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
        patch.syspath_prepend(HERE)
        yield import_module("bomb_extractors")


def make(*configs: tuple[str, BaseModel], **limits: Any) -> IsolatedExtraction:
    """Return a pool with small limits."""
    defaults = {
        "workers": 1,
        "memory_bytes": 256 * MIB,
        "cpu_seconds": 1.0,
        "wall_seconds": 30.0,
        "max_bytes": 8 * MIB,
        "max_text": 1_000_000,
    }
    return IsolatedExtraction(configs or ALL, **{**defaults, **limits})


@pytest.fixture(scope="module")
def extraction(bombs: Any) -> Iterator[IsolatedExtraction]:
    """A pool of one worker that has the bomb beside the real extractors."""
    with closing(make(*ALL, ("bomb", bombs.Config()))) as made:
        yield made


def workers() -> list[int]:
    """Return the process ids of this process's extraction workers."""
    return [worker.pid for nursery in nurseries() for worker in nursery.children()]


def nurseries() -> list[psutil.Process]:
    """Return what they are forked from."""
    return [child for child in psutil.Process().children() if "ingestd.nursery:serve" in child.cmdline()]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


def gone(pid: int) -> bool:
    """Return whether a process has ended; whoever takes it in may not have noticed yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("abort", "signal 6"),
        ("segfault", "signal 11"),
        ("exit", "exit status 3"),
        ("allocate", "out of memory"),
    ],
)
def test_deaths(extraction: IsolatedExtraction, bombs: Any, action: str, reason: str) -> None:
    """A document that kills its worker is refused with what it did, and the next document is read."""
    with pytest.raises(DocumentError, match=f"killed the extraction worker twice: {reason}"):
        extraction.extract(bombs.bomb(action))
    content, expected = GOOD[0]
    assert extraction.extract(content).text == expected


def test_a_worker_that_somebody_else_kills_is_no_documents_fault(
    extraction: IsolatedExtraction, bombs: Any, tmp_path: Path
) -> None:
    """The machine runs out of memory and the kernel takes the worker, twice: the document is tried again later."""
    marker = tmp_path / "reading"
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(extraction.extract, bombs.bomb("sleep", str(marker)))
        for _ in range(2):
            until(lambda: marker.exists() and marker.read_text())
            pid = int(marker.read_text())
            marker.unlink()
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(TransientError, match=r"killed from outside, twice \(signal 9"):
            reading.result(30)
    content, expected = GOOD[0]
    assert extraction.extract(content).text == expected


def test_who_waits_for_a_worker_says_so(bombs: Any, tmp_path: Path) -> None:
    """All collections share the workers: a thread behind others is not taken for dead."""
    marker = tmp_path / "reading"
    waited = threading.Event()
    times = 0

    def waiting() -> None:
        nonlocal times
        times += 1
        if times > 2:
            waited.set()

    with closing(make(*ALL, ("bomb", bombs.Config()))) as extraction, ThreadPoolExecutor(2) as readers:
        first = readers.submit(extraction.extract, bombs.bomb("sleep", str(marker)))
        until(lambda: marker.exists() and marker.read_text())
        content, _ = GOOD[0]
        second = readers.submit(extraction.extract, content, waiting=waiting)
        assert waited.wait(20)
        extraction.close()
        for blocked in (first, second):
            with pytest.raises(Stopped):
                blocked.result(20)


@pytest.mark.parametrize(
    "content",
    [Content(b"<p>x<b>y</b>" * 400_000, "a.html"), Content(b'[{"a": "b"}, 0' + b", {}" * 900_000 + b"]", "a.json")],
)
def test_memory_of_real_parsers(content: Content) -> None:
    """A document that needs more memory than it may have is refused for that, also by a parser in C."""
    with closing(make(memory_bytes=48 * MIB, cpu_seconds=20)) as extraction:
        with pytest.raises(DocumentError, match="out of memory"):
            extraction.extract(content)
        assert [extraction.extract(content).text for content, _ in GOOD] == [text for _, text in GOOD]


@pytest.mark.parametrize(("action", "tries"), [("loop", 1), ("loop-in-c", 1), ("abort", 2)])
def test_processor_time(bombs: Any, tmp_path: Path, action: str, tries: int) -> None:
    """An endless loop ends at its processor time, also in C, and at the first try; other deaths get a second."""
    note = tmp_path / "note"
    reason = "processor time" if tries == 1 else "twice"
    with (
        closing(make(("bomb", bombs.Config(note=str(note))))) as extraction,
        pytest.raises(DocumentError, match=reason),
    ):
        extraction.extract(bombs.bomb(action))
    assert len(note.read_bytes()) == tries


def test_processor_time_is_per_document(extraction: IsolatedExtraction) -> None:
    """A worker may use more processor time than a document may, over many documents."""
    page = b"<p>x" * 20_000
    began = time.monotonic()
    before = set(workers())
    while time.monotonic() - began < 2.5:
        assert extraction.extract(Content(page, "a.html")).text
    assert before <= set(workers())


def test_wall_clock(bombs: Any) -> None:
    """A document that uses no processor time and never ends is ended by the wall clock."""
    with closing(make(("bomb", bombs.Config()), wall_seconds=0.5)) as extraction:
        with pytest.raises(DocumentError, match=r"twice: no answer within 0\.5 s"):
            extraction.extract(bombs.bomb("sleep"))
        assert extraction.extract(bombs.bomb("text", "3")).text == "xxx"


def test_second_try(extraction: IsolatedExtraction, bombs: Any, tmp_path: Path) -> None:
    """A document whose worker died of something else is read by the next one."""
    assert extraction.extract(bombs.bomb("die-once", str(tmp_path / "marker"))).text == "survived"


def test_bombs_beside_good_documents(bombs: Any) -> None:
    """Four threads read good documents beside real bombs, and every good one is right."""
    evil = (
        Content(b"<div>" * 500_000, "a.html"),
        Content(b"[" * 1_000_000, "a.json"),
        Content(b'a,b\n"' + b"x" * 1_000_000, "a.csv"),
        Content(b"> " * 100_000, "a.md"),
        bombs.bomb("abort"),
        bombs.bomb("allocate"),
    )
    with closing(make(*ALL, ("bomb", bombs.Config()), workers=2)) as extraction:

        def refused(content: Content) -> str:
            with pytest.raises(DocumentError) as caught:
                extraction.extract(content)
            return str(caught.value)

        def read(_: int) -> list[str]:
            return [extraction.extract(content).text for content, _ in GOOD]

        with ThreadPoolExecutor(4) as threads:
            refusals = [threads.submit(refused, content) for content in evil]
            readings = [threads.submit(read, at) for at in range(40)]
            reasons = [refusal.result() for refusal in refusals]
            assert {tuple(reading.result()) for reading in readings} == {tuple(text for _, text in GOOD)}
    for reason, expected in zip(
        reasons, ("processor time", "nested", "max_field", "nested", "signal 6", "out of memory"), strict=True
    ):
        assert expected in reason


@pytest.mark.parametrize(("action", "error"), [("raise", "LookupError: 'odd'"), ("panic", "Panic: odd")])
def test_unforeseen_errors(extraction: IsolatedExtraction, bombs: Any, action: str, error: str) -> None:
    """An extractor's own failure is the document's, says what it was, brings its traceback, and spares the worker."""
    extraction.extract(bombs.bomb("pid"))
    before = workers()
    with pytest.raises(ExtractorFailed) as caught:
        extraction.extract(bombs.bomb(action, "odd"))
    assert str(caught.value).replace("'", "") == error.replace("'", "")
    assert f"in _{action}" in caught.value.traceback
    assert workers() == before


def test_text_is_clean(extraction: IsolatedExtraction, bombs: Any) -> None:
    """Whatever an extractor returns, NULs and lone surrogates do not come through."""
    assert extraction.extract(bombs.bomb("dirty")).text == "a\nb\ufffd"


def test_sizes(extraction: IsolatedExtraction, bombs: Any) -> None:
    """Too many bytes, and too long a text, are refused by the limit's name."""
    with pytest.raises(DocumentError, match=r"8,388,609 bytes, more than max_bytes = 8,388,608"):
        extraction.extract(Content(b"x" * (8 * MIB + 1), "a.txt"))
    with pytest.raises(DocumentError, match="max_text"):
        extraction.extract(bombs.bomb("text", "1000001"))
    assert len(extraction.extract(Content(b"x" * 1_000_000, "a.txt")).text) == 1_000_000


def test_no_extractor(extraction: IsolatedExtraction) -> None:
    """A kind that nothing reads is refused by its name, whatever the file calls itself."""
    with pytest.raises(DocumentError, match="no extractor for application/pdf"):
        extraction.extract(Content(b"%PDF-1.7", "notes.txt"))


def test_worker_is_small_and_confined(extraction: IsolatedExtraction, bombs: Any) -> None:
    """A worker imports nothing of what the daemon needs beside extraction, and writes no core files."""
    modules = set(extraction.extract(bombs.bomb("modules")).text.split())
    assert modules.isdisjoint({"torch", "transformers", "pymilvus", "grpc", "kafka", "tokenizers", "structlog"})
    assert extraction.extract(bombs.bomb("limits")).text == "0"


def test_recycling(bombs: Any) -> None:
    """A worker is replaced after its number of documents, and the old one is gone."""
    with closing(make(("bomb", bombs.Config()), recycle=2)) as extraction:
        pids = [int(extraction.extract(bombs.bomb("pid")).text) for _ in range(5)]
        assert [pids[0], pids[2]] == [pids[1], pids[3]]
        assert len({pids[0], pids[2], pids[4]}) == 3
        assert gone(pids[0])


def test_workers_start_when_needed(bombs: Any) -> None:
    """No worker runs before the first document, and one alone while one document at a time is read."""
    before = set(workers())
    with closing(make(("bomb", bombs.Config()), workers=3)) as extraction:
        assert set(workers()) == before
        pids = {extraction.extract(bombs.bomb("pid")).text for _ in range(5)}
        assert {str(pid) for pid in set(workers()) - before} == pids
        assert len(pids) == 1


def test_worker_that_dies_idle(extraction: IsolatedExtraction, bombs: Any, tmp_path: Path) -> None:
    """A worker that is killed between documents costs no document a try."""
    pid = int(extraction.extract(bombs.bomb("pid")).text)
    os.kill(pid, signal.SIGKILL)
    until(partial(gone, pid))
    assert extraction.extract(bombs.bomb("die-once", str(tmp_path / "marker"))).text == "survived"


def test_worker_that_does_not_start(bombs: Any) -> None:
    """Where no worker can be started, that is no document's fault, and the reason is said."""
    with closing(make(("bomb", bombs.Config(builds=False)))) as extraction:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="RuntimeError: the bomb does not build"):
                extraction.extract(bombs.bomb("pid"))
    assert extraction.fingerprint


def test_close_during_calls(bombs: Any, tmp_path: Path) -> None:
    """Closing ends the call that is being worked on and those that wait for a worker, and leaves no process."""
    marker = tmp_path / "pid"
    extraction = make(("bomb", bombs.Config()))
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(extraction.extract, bombs.bomb("sleep", str(marker))) for _ in range(3)]
        until(lambda: marker.exists() and marker.read_text())
        extraction.close()
        for call in calls:
            with pytest.raises(Stopped):
                call.result(timeout=10)
    assert gone(int(marker.read_text()))
    with pytest.raises(Stopped):
        extraction.extract(bombs.bomb("pid"))
    extraction.close()


PARENT = """
import sys, threading, bomb_extractors as bombs
from ingestd.extractors._isolated import IsolatedExtraction
extraction = IsolatedExtraction([("bomb", bombs.Config())], workers=2, memory_bytes=2**28, cpu_seconds=1.0,
    wall_seconds=60.0, max_bytes=1000, max_text=1000)
for action, marker in zip(sys.argv[1::2], sys.argv[2::2]):
    threading.Thread(target=extraction.extract, args=(bombs.bomb(action, marker),)).start()
"""


def test_parent_is_killed(bombs: Any, tmp_path: Path) -> None:
    """No worker outlives a daemon that is killed; one that holds the interpreter's lock ends at its processor time."""
    markers = {action: tmp_path / action for action in ("sleep", "spin")}
    arguments = [str(part) for pair in markers.items() for part in pair]
    with subprocess.Popen([sys.executable, "-c", PARENT, *arguments]) as parent:
        until(lambda: all(marker.exists() and marker.read_text() for marker in markers.values()))
        parent.kill()
    for action, seconds in (("sleep", 10), ("spin", 60)):  # processor time is slow where others want it, too
        pid = int(markers[action].read_text())
        until(partial(gone, pid), seconds)


def test_fingerprint() -> None:
    """The fingerprint follows the extractors and their settings, not their order and not the limits."""
    plain = make().fingerprint
    assert make(*reversed(ALL), max_text=5, workers=7, recycle=1).fingerprint == plain
    assert make(*ALL[:-1]).fingerprint != plain
    assert make(*ALL[:-1], ("csv", csv.Config(header=False))).fingerprint != plain


def test_wrong_set_up() -> None:
    """Two extractors for a kind, something that is no extractor, and no workers are refused when the pool is made."""
    with pytest.raises(ConfigError, match=r"extractors\.notes: text/plain is read by the extractor 'text' already"):
        make(("text", text.Config()), ("notes", text.Config()))
    with pytest.raises(ConfigError, match="at least one worker"):
        make(workers=0)


@pytest.mark.parametrize("action", ["sleep", "loop-in-c", "abort"])
def test_a_difficult_document_is_given_back_to_those_in_a_hurry(bombs: Any, action: str) -> None:
    """It is given up long before its time-out, and others are read while it has its time elsewhere."""
    evil = bombs.bomb(action)
    with closing(make(*ALL, ("bomb", bombs.Config()), cpu_seconds=20.0, wall_seconds=20.0)) as extraction:
        extraction.extract(GOOD[0][0], hurried=True)
        began = time.monotonic()
        with pytest.raises(Difficult):
            extraction.extract(evil, hurried=True)
        assert time.monotonic() - began < 10
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(extraction.extract, evil)
            assert [extraction.extract(content, hurried=True).text for content, _ in GOOD] == [text for _, text in GOOD]
            assert action == "abort" or not reading.done()
            if action == "abort":
                assert isinstance(reading.exception(), DocumentError)
            else:
                extraction.close()
                assert isinstance(reading.exception(), Stopped)


def test_a_worker_that_is_lost_costs_no_interpreter(bombs: Any) -> None:
    """All workers, those in place of lost ones too, are forked from one process, and none of them is left behind."""
    before = {nursery.pid for nursery in nurseries()}
    with closing(make(("bomb", bombs.Config()))) as extraction:
        seen, pid = set(), 0
        for _ in range(3):
            with pytest.raises(Difficult):
                extraction.extract(bombs.bomb("abort"), hurried=True)
            with pytest.raises(DocumentError):
                extraction.extract(bombs.bomb("abort"))
            pid = int(extraction.extract(bombs.bomb("pid"), hurried=True).text)
            (nursery,) = (one for one in nurseries() if one.pid not in before)
            assert [child.pid for child in nursery.children()] == [pid]
            seen.add((nursery.pid, pid))
        assert len(seen) == 3
        assert len({nursery for nursery, _ in seen}) == 1
    assert {nursery.pid for nursery in nurseries()} == before
    assert gone(pid)


def test_a_nursery_that_is_killed_costs_no_document_a_try(bombs: Any, tmp_path: Path) -> None:
    """Its workers end with it, and another one takes its place."""
    before = {nursery.pid for nursery in nurseries()}
    with closing(make(("bomb", bombs.Config()))) as extraction:
        pid = int(extraction.extract(bombs.bomb("pid")).text)
        (nursery,) = (one for one in nurseries() if one.pid not in before)
        os.kill(nursery.pid, signal.SIGKILL)
        until(partial(gone, pid))
        assert extraction.extract(bombs.bomb("die-once", str(tmp_path / "marker"))).text == "survived"


def test_a_plug_in_that_starts_threads_when_imported_is_refused(tmp_path: Path) -> None:
    """A fork would take its locks and not its threads; nothing is read, and the reason is said."""
    (tmp_path / "threaded.py").write_text(
        "import threading\nfrom bomb_extractors import *\nfrom bomb_extractors import Config as Base\n"
        "class Config(Base):\n    pass\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(HERE), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(HERE)
        patch.syspath_prepend(tmp_path)
        threaded = import_module("threaded")
        with (
            closing(make(("threaded", threaded.Config()))) as extraction,
            pytest.raises(UnavailableError, match="importing threaded started 1 thread"),
        ):
            extraction.extract(threaded.bomb("pid"))


def test_where_all_take_long_none_is_difficult() -> None:
    """Long is what others are not: at least a second, and then ten times their mean."""
    pace = Pace()
    assert pace.long == SHORT_SECONDS
    pace.note(2.0)
    assert pace.long == 2.0 * LONG
    for _ in range(1000):
        pace.note(0.001)
    assert pace.long == SHORT_SECONDS
