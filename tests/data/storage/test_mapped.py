"""Arrays in files: as arrays in memory are, gone without a trace, and refused where the disk is full."""

from __future__ import annotations

import errno
import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fusetune import api
from fusetune.data.distinct import distinct
from fusetune.data.partition import partition
from fusetune.data.sampler import UpdateSampler
from fusetune.data.storage import mapped as scratch
from fusetune.data.storage.mapped import (
    index_type,
    mapped_arange,
    mapped_argsort,
    mapped_concatenate,
    mapped_flatnonzero,
    mapped_full,
    mapped_narrow,
    mapped_take,
    mapped_zeros,
    pieces,
)
from fusetune.data.table import Table
from fusetune.errors import StorageError
from fusetune.tasks.linear import logistic_path, ridge_path


def test_a_large_array_lies_in_a_file_without_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "LARGE", 1000)
    small, large = mapped_zeros((3, 4), np.int32), mapped_zeros((300, 4), np.int32)
    assert small.base is None and type(large) is np.ndarray and large.base is not None
    assert large.shape == (300, 4) and large.dtype == np.int32 and not large.any()
    large[:] = np.arange(1200).reshape(300, 4)
    assert large[299].tolist() == [1196, 1197, 1198, 1199] and not list(tmp_path.iterdir())
    assert mapped_zeros((0, 4)).shape == (0, 4)


def test_a_full_disk_is_said_before_anything_is_computed(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scratch, "LARGE", 1)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"(?s)GiB cannot be laid out there.*No space left.*TMPDIR"):
        mapped_zeros((10, 10))


def test_pieces_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(scratch, "PIECE_ROWS", 4)
    assert [list(range(10))[piece] for piece in pieces(10)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert pieces(0) == [slice(0, 0)]


def test_linear_models_in_pieces_are_those_of_all_rows_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    y = x @ rng.normal(size=5) + rng.normal(size=200)
    label, weights = np.eye(2, dtype=np.float32)[(y > 0).astype(int)], rng.uniform(0.5, 2, 200).astype(np.float32)

    def fitted():
        logistic = logistic_path(x, label, exclusive=True, weights=weights).at(6)
        ridge = ridge_path(x, y, np.ravel, weights=weights).at(10)
        return [*logistic.coefficients(), *ridge.coefficients(), logistic.scores(x), ridge.scores(x)]

    whole = fitted()
    monkeypatch.setattr(scratch, "PIECE_ROWS", 17)
    for one, other in zip(whole, fitted(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_a_fit_with_everything_in_files_gives_the_same_weights(monkeypatch, shop, write_csv, tiny, tmp_path, quick):
    path = write_csv(tmp_path / "rows.csv", shop[1], ["note", "price", "plan", "label"])

    def sums(name: str) -> str:
        settings = {**quick, "text": tiny("bert"), "data": {"memory": 0.0 if name == "files" else 1.0}}
        api.fit(str(path), target="label", out=tmp_path / name, config=settings, progress=False)
        return hashlib.sha256(
            b"".join(f.read_bytes() for f in sorted((tmp_path / name).rglob("*.safetensors")))
        ).hexdigest()

    whole = sums("memory")
    monkeypatch.setattr(scratch, "LARGE", 1)
    assert sums("files") == whole
    monkeypatch.setattr(scratch, "NARROW", 0)
    assert sums("wide") == whole


def test_large_arrays_keep_no_file_open(monkeypatch):
    monkeypatch.setattr(scratch, "LARGE", 1)
    several = [mapped_full(10, number, np.int32) for number in range(50)]
    assert [int(one[9]) for one in several] == list(range(50))
    opened = Path("/proc/self/fd")
    if opened.is_dir():
        assert not any("fusetune-" in str(os.readlink(one)) for one in opened.iterdir() if one.is_symlink())


def test_places_are_narrow_while_that_is_wide_enough(monkeypatch):
    assert index_type(2**31 - 1) == np.int32 and index_type(2**31) == np.int64
    table = Table.from_records([{"x": name} for name in "abba"])
    assert {part.dtype for part in table.distinct("x")} == {np.dtype(np.int32)}
    monkeypatch.setattr(scratch, "NARROW", 0)
    assert {part.dtype for part in table.distinct("x")} == {np.dtype(np.int64)}
    assert table.distinct("x")[0].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("large", [1, 10**9])
def test_what_is_done_in_pieces_is_what_numpy_does_at_once(monkeypatch, large):
    monkeypatch.setattr(scratch, "LARGE", large)
    monkeypatch.setattr(scratch, "PIECE_ROWS", 7)
    rng = np.random.default_rng(0)
    for rows in (0, 1, 7, 50):
        values, places = rng.normal(size=(60, 2)), rng.integers(0, 60, rows)
        np.testing.assert_array_equal(mapped_take(values, places), values[places])
        np.testing.assert_array_equal(mapped_narrow(places, 60), places)
        np.testing.assert_array_equal(mapped_arange(rows), np.arange(rows))
        np.testing.assert_array_equal(mapped_flatnonzero(places > 30), np.flatnonzero(places > 30))
        np.testing.assert_array_equal(mapped_concatenate(iter([places[:5], places[5:]]), rows), places)
        for numbers in (places, -places, places * 2**57, rng.integers(0, 3, rows).astype(np.int32), places == 4):
            np.testing.assert_array_equal(mapped_argsort(numbers), np.argsort(numbers, kind="stable"))


def test_splitting_and_drawing_take_no_memory_for_every_row(monkeypatch):
    monkeypatch.setattr(scratch, "LARGE", 2**16)
    monkeypatch.setattr(scratch, "PIECE_ROWS", 4096)
    rows = 400_000
    strata, units = mapped_full(rows, 1, np.int64), mapped_arange(rows)
    tracemalloc.start()
    try:
        which = partition(strata, units, [0.8, 0.1, 0.1], seed=0)
        train = mapped_flatnonzero(which == 0)
        sampler = UpdateSampler(train, mapped_take(strata, train), batch_size=64)
        drawn = sum(len(update) for update in sampler.updates())
        numbers, firsts = distinct((pa.array(units[piece]) for piece in pieces(rows)), False, rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert drawn == len(train) == 320_000
    assert np.array_equal(numbers, units) and np.array_equal(firsts, units)
    assert peak < 4 * rows
