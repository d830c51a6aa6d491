"""A fit of a model that writes: the same weights by the same seed, and where it ended and went on, bit by bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from stopping import weights
from test_resume import ends_at, killed

from fusetune import api
from fusetune.fitting.run_folder import FOLDER


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory) -> dict[str, Any]:
    """Settings with all that draws: dropout, noise, LoRA; with a column of vectors, so that there are two stages."""
    chance, path = np.random.default_rng(0), tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for number in range(50):
        words = [f"w{word}" for word in chance.integers(1, 30, 4)]
        lines.append(json.dumps({"source": " ".join(words), "size": number % 7 + 0.5, "out": " ".join(words[::-1])}))
    path.write_text("\n".join(lines))
    return {
        "train": str(path),
        "target": ["out"],
        "tasks": {"out": {"name": "generate", "label_smoothing": 0.1}},
        "text": {"name": tiny("llama_writer"), "adapter": {"name": "lora", "rank": 2, "targets": "linear"}},
        "columns": {"size": {"kind": "number"}},
        "prompt": {"template": "{size} {source} w39", "soft": ["size"], "soft_tokens": 2, "noise": 5.0},
        "trainer": {"epochs": 2, "batch_size": 10, "trackers": [], "checkpoint_minutes": 0},
        "generation": {"val_rows": 2},
        "report": {"bootstrap": 0, "zero_shot": False},
        "data": {"cache": "none"},
    }


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A fit that nothing ended, and its number of updates."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        begun = ends_at(patched, 0)
        api.fit(config=config, out=folder, progress=False)
    return folder, len(begun)


def test_a_fit_that_ended_goes_on_to_the_same_weights(config, whole, tmp_path, monkeypatch):
    folder, total = whole
    assert total >= 8
    for number in (total // 4, total // 2):  # in the head stage, and in what follows from there
        killed(monkeypatch, config, tmp_path / "parts", number)
    api.fit(config=config, out=tmp_path / "parts", resume=True, progress=False)
    assert weights(tmp_path / "parts") == weights(folder) != {}
    assert not (tmp_path / "parts" / FOLDER).exists()
    first, second = (json.loads((at / "report.json").read_text()) for at in (folder, tmp_path / "parts"))
    assert second["curve"] == first["curve"]


def test_the_seed_decides_the_weights(config, whole, tmp_path):
    folder, _ = whole
    api.fit(config=config, out=tmp_path / "again", progress=False)
    assert weights(tmp_path / "again") == weights(folder)
    api.fit(config={**config, "seed": 1}, out=tmp_path / "other", progress=False)
    assert weights(tmp_path / "other") != weights(folder)
