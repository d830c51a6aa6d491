"""Checkpoints are whole or not there, whatever fails while they are written; damage is found when they are read."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch

from fusetune.errors import FolderError, StorageError
from fusetune.training.checkpoints import checkpoint
from fusetune.training.checkpoints.checkpoint import MAX_CHECKPOINTS, Checkpoints


class Killed(BaseException):
    """The process ends here."""


def state(number: int = 0):
    weights = torch.arange(12.0).view(3, 4) + number
    return {
        "done": number,
        "weights": {"a": weights, "tied": weights, "row": weights[1], "half": weights.half().t()},
        "processes": [{"rng": torch.arange(5, dtype=torch.uint8), "python": (3, (1, 2, 3), None)}],
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 7: {}}, "betas": (0.9, 0.999)},
        "nan": math.nan,
        "inf": -math.inf,
        "empty": torch.zeros(0, 3),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "$odd": "a name of ours",
        "text": "naïve \ud800",
        "flag": True,
        "none": None,
    }


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(same(a, b) for a, b in zip(one, other, strict=True))
        )
    return type(one) is type(other) and (one == other or (one != one and other != other))


def test_a_state_comes_back_as_it_was(tmp_path):
    kept = Checkpoints(tmp_path / "c")
    assert kept.newest() is None and len(kept) == 0
    kept.save(state(5))
    assert same(Checkpoints(tmp_path / "c").newest(), state(5))


def test_equal_tensors_are_written_once(tmp_path):
    big = torch.zeros(100_000)
    path = Checkpoints(tmp_path).save({"a": big, "b": big, "c": big.view(-1)})
    assert (path / checkpoint.TENSORS).stat().st_size < 1.1 * big.nbytes


def test_only_the_newest_are_kept_and_the_newest_is_read(tmp_path):
    kept = Checkpoints(tmp_path)
    for number in range(5):
        kept.save(state(number))
    assert len(kept) == MAX_CHECKPOINTS == len(list(tmp_path.iterdir()))
    assert kept.newest()["done"] == 4


def test_what_json_and_safetensors_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a Generator"):
        Checkpoints(tmp_path).save({"rng": np.random.default_rng()})
    assert not list(tmp_path.iterdir())


def test_200_flipped_bits_are_200_found(tmp_path):
    kept = Checkpoints(tmp_path)
    older, newer = kept.save(state(1)), kept.save(state(2))
    sizes = {path: path.stat().st_size for path in sorted(newer.iterdir())}
    rng, ends = np.random.default_rng(0), np.cumsum(list(sizes.values()))
    for place in rng.integers(0, ends[-1], 200):
        at = int(np.searchsorted(ends, place, side="right"))
        path = list(sizes)[at]
        before = path.read_bytes()
        bytes_ = bytearray(before)
        bytes_[int(place - (ends[at - 1] if at else 0))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(bytes_))
        assert kept.newest()["done"] == 1
        assert len(kept.warnings) == 1 and str(newer) in kept.warnings[0] and "damaged" in kept.warnings[0]
        path.write_bytes(before)
    assert kept.newest()["done"] == 2 and not kept.warnings and older.exists()


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("harm", ["gone", "cut", "longer", "empty", "link"])
def test_a_damaged_file_makes_the_one_before_it_the_newest(tmp_path, name, harm):
    kept = Checkpoints(tmp_path / "c")
    kept.save(state(1))
    path = kept.save(state(2)) / name
    before = path.read_bytes()
    path.unlink()
    if harm == "link":
        (tmp_path / "elsewhere").write_bytes(before)
        path.symlink_to(tmp_path / "elsewhere")
    elif harm != "gone":
        path.write_bytes({"cut": before[:-3], "longer": before + b"\0", "empty": b""}[harm])
    assert kept.newest()["done"] == 1 and len(kept.warnings) == 1


def test_none_that_is_whole_is_an_error(tmp_path):
    kept = Checkpoints(tmp_path)
    for number in range(2):
        (kept.save(state(number)) / checkpoint.STATE).unlink()
    with pytest.raises(FolderError, match=r"(?s)no checkpoint is intact.*--no-resume"):
        kept.newest()


def test_a_later_version_s_is_passed_over(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    kept.save(state(2))
    monkeypatch.undo()
    assert kept.newest()["done"] == 1 and "later fusetune" in kept.warnings[0]


STEPS = {
    "mkdir": (os, "mkdir"),
    "save_file": (checkpoint, "save_file"),
    "open": (os, "open"),
    "fsync": (os, "fsync"),
    "rename": (os, "rename"),
    "rmtree": (shutil, "rmtree"),
    "close": (os, "close"),
}
"""What touches the disk while a checkpoint is written; texts are opened by Python's `open`, see below."""


def failing_at(monkeypatch, number: int, error: BaseException) -> list[str]:
    """Let the `number`-th file operation fail; gives the operations that were begun."""
    begun: list[str] = []

    def watched(name, real):
        def call(*args, **kwargs):
            begun.append(name)
            if len(begun) == number:
                raise error
            return real(*args, **kwargs)

        return call

    for name, (module, attribute) in STEPS.items():
        if name == "rmtree" and isinstance(error, OSError):
            continue  # it is told to go on
        monkeypatch.setattr(module, attribute, watched(name, getattr(module, attribute)))
    from pathlib import Path

    monkeypatch.setattr(Path, "write_text", watched("write_text", Path.write_text))
    monkeypatch.setattr(Path, "rename", watched("rename", Path.rename))
    return begun


@pytest.mark.parametrize("what", ["killed", "full"])
def test_each_file_operation_may_fail_and_a_whole_one_is_left(tmp_path, monkeypatch, what):
    number, seen = 0, set()
    while True:
        number += 1
        folder = tmp_path / f"{what}{number}"
        kept = Checkpoints(folder)
        for done in range(MAX_CHECKPOINTS):
            kept.save(state(done))
        error = Killed() if what == "killed" else OSError(errno.ENOSPC, "No space left on device")
        with monkeypatch.context() as patched:
            begun = failing_at(patched, number, error)
            try:
                kept.save(state(9))
                saved = True
            except (Killed, StorageError) as raised:
                saved = False
                if what == "full":
                    assert str(folder) in str(raised) and "bytes are free" in str(raised) and "Do:" in str(raised)
        if len(begun) < number:
            break
        seen.add(begun[number - 1])
        found = Checkpoints(folder)
        assert found.newest()["done"] in ({9} if saved else {MAX_CHECKPOINTS - 1, 9}) and not found.warnings
        found.save(state(10))  # and the run goes on
        assert found.newest()["done"] == 10
        assert not [path for path in folder.iterdir() if path.name.startswith(".partial")]
    assert saved and number > 8
    assert {"mkdir", "save_file", "write_text", "fsync", "rename"} <= seen


@pytest.mark.parametrize("where", ["a file", "read-only"])
def test_where_nothing_can_be_written_it_is_said(tmp_path, where, monkeypatch):
    if where == "a file":
        (tmp_path / "c").write_text("x")
    else:
        (tmp_path / "c").mkdir()
        monkeypatch.setattr(
            checkpoint.Path, "mkdir", lambda self, **_: (_ for _ in ()).throw(PermissionError(13, "no"))
        )
    with pytest.raises(
        StorageError, match=r"(?s)a checkpoint of [\d,]+ bytes cannot be written to .*/c:.*Do: make room"
    ):
        Checkpoints(tmp_path / "c").save(state())


def test_nothing_is_pickled(tmp_path):
    path = Checkpoints(tmp_path).save(state())
    assert {file.name for file in path.iterdir()} == {checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST}
    json.loads((path / checkpoint.STATE).read_text())
