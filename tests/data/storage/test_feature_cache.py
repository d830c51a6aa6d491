"""Stored rows come back as they were, from any process, and nothing half-written, foreign or stale is ever used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.data.storage.feature_cache import ENDING, FeatureCache

KEY = {"weights": "abc"}


def test_rows_of_another_memory_layout_come_back(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1)
    maps = torch.randn(3, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    store = cache.store(KEY, torch.float32)
    for place in range(3):
        store.add(digest(place), maps[place : place + 1])
    store.flush()
    again = cache.store(KEY, torch.float32)
    assert not again.broken
    for place in range(3):
        assert torch.equal(again.rows(digest(place)), maps[place : place + 1])


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rows_come_back(tmp_path_factory: pytest.TempPathFactory, runs: list[list[int]], dtype: torch.dtype) -> None:
    cache = FeatureCache(tmp_path_factory.mktemp("cache"), 1)
    expected: dict[bytes, torch.Tensor] = {}
    for number, counts in enumerate(runs):
        store = cache.store(KEY, dtype)
        for place, count in enumerate(counts):
            name = digest(10 * (number // 2) + place)  # the second run of two brings cells that are there
            rows = torch.randn(count, 3).to(dtype)
            store.add(name, rows)
            expected.setdefault(name, rows)
            assert torch.equal(store.rows(name), expected[name])
        store.flush()
    store = cache.store(KEY, dtype)
    assert len(store) == len(expected) and not store.broken
    for name, rows in expected.items():
        assert name in store and torch.equal(store.rows(name), rows)
    asked = np.frombuffer(b"".join([digest(999), *expected]), dtype=np.uint8).reshape(-1, 16)
    assert store.has(asked).tolist() == [False] + [True] * len(expected)


def test_many_rows_come_back_from_files_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusetune.data.storage.mapped.LARGE", 1)
    monkeypatch.setattr("fusetune.data.storage.mapped.PIECE_ROWS", 3)
    cache = FeatureCache(tmp_path, 1)
    writers = cache.store(KEY, torch.float32), cache.store(KEY, torch.float32)  # neither sees what the other writes
    for store, numbers in zip(writers, (range(20, 5, -1), range(10, 30)), strict=True):
        for number in numbers:
            store.add(digest(number), torch.full((number % 3 + 1, 2), float(number)))
        store.flush()
    asked = np.frombuffer(b"".join(map(digest, range(40))), dtype=np.uint8).reshape(-1, 16)
    store = cache.store(KEY, torch.float32)
    assert np.flatnonzero(store.has(asked)).tolist() == list(range(6, 30)) and len(store) == 24
    assert store.lengths(asked[6:30]).tolist() == [number % 3 + 1 for number in range(6, 30)]
    assert all(store.rows(digest(number))[0, 0] == number for number in range(6, 30))


def test_keys_and_formats_are_kept_apart(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1)
    store = cache.store(KEY, torch.float32)
    store.add(digest(1), torch.ones(1, 2))
    store.flush()
    assert digest(1) in cache.store(KEY, torch.float32)
    assert digest(1) not in cache.store({"weights": "abd"}, torch.float32)
    assert digest(1) not in cache.store(KEY, torch.bfloat16)


def filled(cache: FeatureCache, number: int, rows: int = 1000) -> Path:
    store = cache.store(KEY, torch.float32)
    store.add(digest(number), torch.full((rows, 4), float(number)))
    before = set(cache.folder.glob(f"*/*{ENDING}"))
    store.flush()
    (made,) = set(cache.folder.glob(f"*/*{ENDING}")) - before
    return made


def test_broken_and_foreign_segments_are_not_used(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1)
    whole, cut, foreign = filled(cache, 1), filled(cache, 2), filled(cache, 3)
    cut.write_bytes(cut.read_bytes()[:-100])
    other = cache.store({"weights": "other"}, torch.float32)
    other.add(digest(4), torch.zeros(1, 4))
    other.flush()
    (foreign_one,) = other.folder.glob(f"*{ENDING}")
    foreign.write_bytes(foreign_one.read_bytes())
    store = cache.store(KEY, torch.float32)
    assert [digest(number) in store for number in (1, 2, 3, 4)] == [True, False, False, False]
    assert len(store.broken) == 2 and any("another key" in reason for reason in store.broken)
    store.add(digest(2), torch.full((1000, 4), 2.0))  # and can be filled again
    store.flush()
    assert digest(2) in cache.store(KEY, torch.float32) and whole.exists()


def test_bounded_by_what_was_used_last(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1)
    oldest, used, new = (filled(cache, number) for number in range(3))
    for age, path in ((300, used), (200, oldest), (100, new)):
        os.utime(path, (os.stat(path).st_atime, os.stat(path).st_mtime - age))
    os.utime(used)
    cache.limit = 2 * new.stat().st_size + 1
    store = cache.store({"weights": "other"}, torch.float32)
    cache.prune(set())
    assert not oldest.exists() and used.exists() and new.exists()
    cache.limit = 1
    store.add(digest(7), torch.zeros(1000, 4))
    store.flush()
    assert digest(7) in store and torch.equal(store.rows(digest(7)), torch.zeros(1000, 4))
    assert not used.exists() and len(list(tmp_path.glob(f"*/*{ENDING}"))) == 1  # never what is in use here


def test_a_reader_keeps_what_another_process_deletes(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1)
    path = filled(cache, 1)
    store = cache.store(KEY, torch.float32)
    path.unlink()
    assert torch.equal(store.rows(digest(1)), torch.ones(1000, 4))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path, 1)
    store = cache.store(KEY, torch.float32)
    store.add(digest(1), torch.ones(1, 4))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        store.flush()
    assert not list(tmp_path.glob(f"*/*{ENDING}*"))


def test_abandoned_files_go_and_young_ones_stay(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1)
    folder = filled(cache, 1).parent
    old, young = folder / f"a{ENDING}.77", folder / f"b{ENDING}.78"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))
    cache.prune(set())
    assert not old.exists() and young.exists()


WRITER = """
import sys, torch
from fusetune.data.storage.feature_cache import FeatureCache
store = FeatureCache(sys.argv[1], 1).store({"weights": "abc"}, torch.float32)
for number in range(60):
    store.add(number.to_bytes(16, "big"), torch.full((3, 4), float(number)))
    if number % 7 == 0:
        store.flush()
store.flush()
"""


def test_several_writers_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    store = FeatureCache(tmp_path, 1).store(KEY, torch.float32)
    assert len(store) == 60 and not store.broken
    assert all(torch.equal(store.rows(digest(n)), torch.full((3, 4), float(n))) for n in range(60))


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FUSETUNE_CACHE", "none")
    assert FeatureCache.of(None, 10) is None
    named = FeatureCache.of(str(tmp_path), 2)
    assert named is not None and named.folder == tmp_path and named.limit == 2 * 2**30
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path / "env"))
    found = FeatureCache.of(None, 10)
    assert found is not None and found.folder == tmp_path / "env"
    monkeypatch.delenv("FUSETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = FeatureCache.of(None, 10)
    assert found is not None and found.folder == tmp_path / "xdg" / "fusetune"
    assert FeatureCache.of("none", 10) is None and FeatureCache.of(None, 0) is None
