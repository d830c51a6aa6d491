"""Models that earlier versions saved load, and predict what they predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fusetune

HOME = Path(__file__).parents[1] / "golden"
GOLDEN = sorted(path.parent for path in HOME.rglob("predictions.json"))


def test_there_is_one_of_this_version():
    there = [folder.relative_to(HOME).as_posix() for folder in GOLDEN]
    for part in ("", "/adapter", "/stack"):
        assert fusetune.__version__ + part in there, "make it: python tests/golden/make.py"


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.relative_to(HOME).as_posix())
def test_predictions_stay(folder, monkeypatch):
    monkeypatch.chdir(folder)  # the backbone of an adapter is named from there
    expected = json.loads((folder / "predictions.json").read_text())
    found = fusetune.load(folder / "model").predict(folder / "t.jsonl").table.to_pylist()
    assert len(found) == len(expected) == 12
    for row, old in zip(found, expected, strict=True):
        assert row.keys() == old.keys()
        for name, value in old.items():
            assert row[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), name
