"""The same seed, data, versions and threads give the same weights, bit by bit, in two processes of their own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stopping import CASES as RUNS

CASES: dict[str, dict[str, Any]] = {
    "augmented": {"augment": RUNS["augmented"]["augment"]},
    "attacked": {"trainer": {"adversarial": {"name": "freelb", "steps": 2}}},
    "vat, mixup and ema": {"objectives": {"vat": {}, "mixup": {}}, "trainer": {"ema": 0.9, "accumulate": 2}},
    "workers": {"augment": {"text": {"word_dropout": 0.2}}, "trainer": {"workers": 2}},
    "lora": {"text": {"adapter": "lora"}, "objectives": {"rdrop": {}}},
}


def fit(settings: dict[str, Any], out: Path, seed: int = 0, hash_seed: str = "random") -> str:
    """Tune in a fresh process; the SHA-256 of all its weights."""
    config = out.with_suffix(".yaml")
    config.write_text(json.dumps(settings | {"seed": seed}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "fusetune", "fit", str(config), "-o", str(out), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    sums = hashlib.sha256()
    files = sorted(out.rglob("*.safetensors"))
    assert files
    for file in files:
        sums.update(file.read_bytes())
    return sums.hexdigest()


@pytest.fixture
def base(tiny, shop_tables):
    return {
        **{name: str(path) for name, path in shop_tables.items()},
        "target": "label",
        "text": {"name": tiny("bert")},
        "image": {"name": tiny("vit")},
        "audio": {"name": tiny("wav2vec2")},
        "fusion": {"name": "attention", "dim": 16},
        "trainer": {"epochs": 1, "head_epochs": 2, "trackers": []},
        "report": {"bootstrap": 20, "alone": "none"},
    }


FAST = ("augmented",)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in FAST else pytest.mark.slow) for c in CASES])
def test_two_processes_give_the_same_weights(base, tmp_path, case):
    settings = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for key, value in CASES[case].items():
        settings[key] = {**settings.get(key, {}), **value}
    first, second = fit(settings, tmp_path / "a", hash_seed="1"), fit(settings, tmp_path / "b", hash_seed="2")
    assert first == second


@pytest.mark.slow
def test_another_seed_gives_other_weights(base, tmp_path):
    settings = base | {"image": {"name": base["image"]["name"], "freeze": "all"}}
    assert fit(settings, tmp_path / "a") != fit(settings, tmp_path / "b", seed=1)
