"""Arrays in files: as arrays in memory are, gone without a trace, and refused where the disk is full."""

from __future__ import annotations

import errno
import hashlib
import os

import numpy as np
import pytest

from fusetune import api
from fusetune.data import scratch
from fusetune.data.scratch import pieces, room
from fusetune.errors import StorageError
from fusetune.tasks.linear import fit_logistic, fit_ridge


def test_a_large_array_lies_in_a_file_without_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "LARGE", 1000)
    small, large = room((3, 4), np.int32), room((300, 4), np.int32)
    assert small.base is None and type(large) is np.ndarray and large.base is not None
    assert large.shape == (300, 4) and large.dtype == np.int32 and not large.any()
    large[:] = np.arange(1200).reshape(300, 4)
    assert large[299].tolist() == [1196, 1197, 1198, 1199] and not list(tmp_path.iterdir())
    assert room((0, 4)).shape == (0, 4)


def test_a_full_disk_is_said_before_anything_is_computed(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scratch, "LARGE", 1)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"(?s)GiB cannot be laid out there.*No space left.*TMPDIR"):
        room((10, 10))


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
        logistic = fit_logistic(
            x, label, x[:50], lambda s: (float((np.log(s) * label[:50]).sum()), 0.0), exclusive=True, weights=weights
        )
        ridge = fit_ridge(x, y, x[:50], lambda s: (-float(((s - y[:50]) ** 2).sum()), 0.0), np.ravel, weights=weights)
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
