"""The cache of vectors on its own file: what was put comes back, bit for bit, or not at all."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ingestd.model import SparseVector, VectorKind
from ingestd.store import vectors
from ingestd.store.vectors import VectorCache

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ingestd.model import DenseVector

DIMENSION = 8
MUCH = 1_000_000
ENTRY = vectors.OVERHEAD + 8 + 4 * DIMENSION
"""Bytes that one takes."""


def dense(text: str) -> DenseVector:
    """Return a vector of its own for a text."""
    return np.random.default_rng(list(text.encode())).random(DIMENSION, np.float32)


def texts(prefix: str, count: int) -> dict[str, DenseVector]:
    """Return so many texts with their vectors."""
    return {text: dense(text) for text in (f"{prefix}{number}" for number in range(count))}


def known(cache: VectorCache, made: Mapping[str, DenseVector], space: str = "s") -> set[str]:
    """Return which of the texts are there, having seen that each has its own vector."""
    found = cache.get(space, VectorKind.DENSE, list(made))
    for text, vector in found.items():
        np.testing.assert_array_equal(np.asarray(vector), made[text])
    return set(found)


def test_what_was_put_comes_back_over_a_restart(tmp_path: Path) -> None:
    """Dense and sparse ones, as they were, in other processes' files only their owner's to read."""
    path = tmp_path / "vectors.db"
    made = texts("t", 1200)
    sparse = SparseVector(np.array([3, 70_000, 2**32 - 2], np.uint32), np.array([0.5, 1e-30, 3e38], np.float32))
    with closing(VectorCache.open(path, MUCH)) as cache:
        cache.put("s", VectorKind.DENSE, made)
        cache.put("s", VectorKind.SPARSE, {"a": sparse})
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(VectorCache.open(path, MUCH)) as cache:
        assert known(cache, made | texts("u", 3)) == made.keys()
        found = cache.get("s", VectorKind.SPARSE, ["a", "t1"])
    assert found.keys() == {"a"}
    (back,) = found.values()
    assert isinstance(back, SparseVector)
    np.testing.assert_array_equal(back.indices, sparse.indices)
    np.testing.assert_array_equal(back.values, sparse.values)
    assert (back.indices.dtype.name, back.values.dtype.name) == ("uint32", "float32")


def test_another_space_kind_or_text_is_another_vector(tmp_path: Path) -> None:
    """Also where their names run together."""
    with closing(VectorCache.open(tmp_path / "vectors.db", MUCH)) as cache:
        cache.put("ab", VectorKind.DENSE, {"c": dense("c")})
        assert cache.get("a", VectorKind.DENSE, ["bc", "c"]) == {}
        assert cache.get("ab", VectorKind.SPARSE, ["c"]) == {}
        assert cache.get("ab", VectorKind.DENSE, ["c"]).keys() == {"c"}


def test_it_is_bounded_and_keeps_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, but not what was asked for since; the limit holds over a restart, and when it is lowered."""
    path = tmp_path / "vectors.db"
    day = 20_000
    monkeypatch.setattr(vectors, "_today", lambda: day)
    monkeypatch.setattr(vectors, "_EVICTED", 10)
    old, wanted = texts("old", 60), texts("wanted", 30)
    with closing(VectorCache.open(path, 100 * ENTRY)) as cache:
        cache.put("s", VectorKind.DENSE, wanted)
        cache.put("s", VectorKind.DENSE, old)
        day += 1
        assert known(cache, wanted) == wanted.keys()
        cache.put("s", VectorKind.DENSE, texts("new", 30))
        assert known(cache, wanted) == wanted.keys()
        assert known(cache, texts("new", 30)) == texts("new", 30).keys()
        assert 10 <= len(known(cache, old)) <= 40
    assert _count(path) <= 100
    with closing(VectorCache.open(path, 50 * ENTRY)):
        pass
    assert 20 <= _count(path) <= 50


def test_what_is_larger_than_all_is_not_kept(tmp_path: Path) -> None:
    """And throws nothing out."""
    with closing(VectorCache.open(tmp_path / "vectors.db", 10 * ENTRY)) as cache:
        cache.put("s", VectorKind.DENSE, texts("a", 5))
        cache.put("s", VectorKind.DENSE, texts("b", 11))
        assert len(known(cache, texts("a", 5))) == 5


def test_a_damaged_value_is_none(tmp_path: Path) -> None:
    """It is made anew, and good again; its neighbours stay."""
    path = tmp_path / "vectors.db"
    made = texts("t", 3)
    with closing(VectorCache.open(path, MUCH)) as cache:
        cache.put("s", VectorKind.DENSE, made)
    with closing(sqlite3.connect(path)) as file, file:
        (value,) = file.execute("SELECT value FROM vectors LIMIT 1").fetchone()
        bad = bytes([*value[:-1], value[-1] ^ 1])
        file.execute("UPDATE vectors SET value = ? WHERE value = ?", (bad, value))
    with closing(VectorCache.open(path, MUCH)) as cache:
        assert len(known(cache, made)) == 2
        cache.put("s", VectorKind.DENSE, made)
        assert known(cache, made) == made.keys()


@pytest.mark.parametrize("harm", ["no database", "another version", "a table that is another"])
def test_a_damaged_file_begins_anew(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a word in the log: it costs the models' time and nothing else."""
    path = tmp_path / "vectors.db"
    with closing(VectorCache.open(path, MUCH)) as cache:
        cache.put("s", VectorKind.DENSE, texts("t", 3))
    if harm == "no database":
        path.write_bytes(b"no database " * 1000)
    else:
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("PRAGMA user_version = 99" if harm == "another version" else "DROP TABLE vectors")
    with closing(VectorCache.open(path, MUCH)) as cache:
        assert known(cache, texts("t", 3)) == set()
        cache.put("s", VectorKind.DENSE, texts("t", 3))
        assert len(known(cache, texts("t", 3))) == 3
    assert ("begins anew" in caplog.text) == (harm != "a table that is another")


def test_a_disk_that_fails_costs_the_cache_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said once; from then on nothing is found, and nothing is raised."""
    path = tmp_path / "vectors.db"
    made = texts("t", 3)
    with closing(VectorCache.open(path, MUCH)) as cache:
        cache.put("s", VectorKind.DENSE, made)
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("DROP TABLE vectors")
        for _ in range(3):
            cache.put("s", VectorKind.DENSE, made)
            assert known(cache, made) == set()
    assert caplog.text.count("is not used until the next start") == 1


def test_a_folder_that_is_not_there_costs_the_cache_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon starts."""
    with closing(VectorCache.open(tmp_path / "nowhere" / "vectors.db", MUCH)) as cache:
        cache.put("s", VectorKind.DENSE, texts("t", 1))
        assert known(cache, texts("t", 1)) == set()
    assert "is not used until the next start" in caplog.text


def test_threads_share_it(tmp_path: Path) -> None:
    """Several stages put and get at a time; the size is counted right."""
    path = tmp_path / "vectors.db"
    with closing(VectorCache.open(path, MUCH)) as cache:

        def work(number: int) -> int:
            made = texts(f"{number}-", 50) | texts("shared", 20)
            cache.put("s", VectorKind.DENSE, made)
            return len(known(cache, made))

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(work, range(16))) == [70] * 16
    assert _count(path) == 16 * 50 + 20


def test_it_is_removed_with_all_its_files(tmp_path: Path) -> None:
    """Once nobody wants it, it takes no disk; where there is none, nothing happens."""
    path = tmp_path / "vectors.db"
    cache = VectorCache.open(path, MUCH)
    cache.put("s", VectorKind.DENSE, texts("t", 3))
    assert len(list(tmp_path.iterdir())) == 3
    cache.close()
    for _ in range(2):
        vectors.remove(path)
        assert list(tmp_path.iterdir()) == []


def _count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as file:
        (count,) = file.execute("SELECT count(*) FROM vectors").fetchone()
    return int(count)
