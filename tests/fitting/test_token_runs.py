"""Runs of tasks that answer by token, with a picture and a number beside the text: resumed, in two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import fusetune as ft
from fusetune.testing.token_tables import example_tables
from fusetune.training import loop

TABLES = {"entities": "spans of a text", "answer": "answers with starts"}
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2", "-m", "fusetune"]


@pytest.fixture(scope="module")
def home(tiny, shop, tmp_path_factory):
    """Per task a table and settings without dropout: a text, a picture and a number, each missing in some rows."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny("bert"), folder / "bert")
    config = json.loads((folder / "bert" / "config.json").read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
    (folder / "bert" / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    for task, name in TABLES.items():
        lines = []
        for place, record in enumerate(example_tables(72)[name].records()):
            if place % 4 == 2:  # a row without the text, and so without its target
                record = dict.fromkeys(record)
            photo = None if place % 5 == 1 else str(shop[0] / f"{('red', 'blue')[place % 2]}{place % 4}.png")
            more = {"photo": photo, "size": round(float(rng.normal()), 3), "mood": "ab"[int(rng.integers(2))]}
            lines.append(json.dumps({**record, **more}) + "\n")
        (folder / f"{task}.jsonl").write_text("".join(lines))
        settings = {
            "train": f"{task}.jsonl",
            "target": ["target", "mood"],
            "tasks": {"target": task},
            "columns": {"size": "number", "photo": "image"},
            "text": {"name": "./bert", "max_tokens": 12},
            "image": {"name": tiny("vit")},
            "fusion": {"name": "attention", "dim": 16, "dropout": 0, "modality_dropout": 0, "input_dropout": 0},
            "trainer": {
                **{"epochs": 2, "head_epochs": 1, "batch_size": 12, "accumulate": 2, "trackers": []},
                **{"patience": None, "precision": "no", "checkpoint_minutes": 0},
            },
            "report": {"bootstrap": 0, "alone": "none"},
            "data": {"cache": "none"},
        }
        (folder / f"{task}.yaml").write_text(json.dumps(settings))
        ft.fit(config=folder / f"{task}.yaml", out=folder / f"one-{task}", progress=False)
    return folder


def curve(folder):
    points = json.loads((folder / "report.json").read_text())["curve"]["points"]
    return [[point["step"], point["train_loss"] or 0.0, point["val_loss"]] for point in points]


@pytest.mark.parametrize("task", TABLES)
def test_rows_that_lack_the_text_or_the_picture_are_used(home, task):
    tuned = ft.load(home / f"one-{task}")
    table = tuned.predict(str(home / f"{task}.jsonl")).table
    assert len(table) == 72 and table["error"].to_pylist() == [None] * 72
    assert all(label in ("a", "b") for label in table["mood"].to_pylist())
    rows = [json.loads(line) for line in (home / f"{task}.jsonl").read_text().splitlines()]
    answers = table["target"].to_pylist()
    for row, answer in zip(rows, answers, strict=True):
        if row.get("text", row.get("context")) is None:
            assert not answer, "an answer about a text that is missing"


@pytest.mark.parametrize("task", TABLES)
def test_a_stopped_run_ends_with_the_same_weights(home, tmp_path, monkeypatch, task):
    begun, real = [], loop.update

    def update(*args, **kwargs):
        begun.append(len(begun))
        if len(begun) == 7:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", update)
        with pytest.raises(KeyboardInterrupt):
            ft.fit(config=home / f"{task}.yaml", out=tmp_path / "parts", progress=False)
    parts = ft.fit(config=home / f"{task}.yaml", out=tmp_path / "parts", resume=True, progress=False)
    assert any("and went on from" in warning for warning in parts.results.warnings)
    first, second = (
        load_file(next(folder.rglob("model.safetensors"))) for folder in (home / f"one-{task}", tmp_path / "parts")
    )
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
    assert curve(tmp_path / "parts") == curve(home / f"one-{task}")


@pytest.mark.slow
@pytest.mark.parametrize("task", TABLES)
def test_two_processes_learn_what_one_learns(home, tmp_path, task):
    words = [*TORCHRUN, "fit", str(home / f"{task}.yaml"), "-o", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "two")) > 2
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(home / f"one-{task}"), atol=1e-5, rtol=0)
