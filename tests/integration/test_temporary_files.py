"""Where temporary files lie that may be as large as the ledger: on the disk that is meant for it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fixtures.daemon import workplace_in

from ingestd import config, flow
from ingestd.errors import Stopped

if TYPE_CHECKING:
    from ingestd.engine.health import Health
    from ingestd.metrics import Metrics


def temporary_files() -> set[Path]:
    """Return the folders of this process's open files that have no name any more, as SQLite's temporary ones."""
    links = (str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return {Path(link).parent for link in links if "etilqs" in link}


def test_temporary_files_lie_in_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in /tmp, which is small, or memory: a ledger is rebuilt through them. Who has named a folder keeps it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SQLITE_TMPDIR", raising=False)
    found: list[set[Path]] = []

    def at(step: str, health: Health, metrics: Metrics) -> None:
        del health, metrics
        if step == flow.FIRST_STEP:
            return
        with closing(sqlite3.connect("", isolation_level=None)) as rows:
            rows.execute("PRAGMA cache_size = 1")
            rows.execute("CREATE TABLE rows (text)")
            rows.executemany("INSERT INTO rows VALUES (?)", (("a" * 1000,) for _ in range(5000)))
            found.append(temporary_files())
        raise Stopped

    with workplace_in(tmp_path / "w") as place:
        place.command(["run"])
        settings = config.load(place.config_file)
        with pytest.raises(Stopped), flow.daemon(settings, once=True, beginning=at):
            raise AssertionError("it began")
        assert [{settings.state_dir.absolute()}] == found
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("PRAGMA temp_store_directory = ''")
        # SQLite has read the variable long ago, so that it is only seen here that nothing else was set.
        monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
        with pytest.raises(Stopped), flow.daemon(settings, once=True, beginning=at):
            raise AssertionError("it began")
    assert settings.state_dir.absolute() not in found[1]
