"""A fit launched by torchrun or accelerate in two processes learns what one process learns from the same batches."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusetune

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", "-m", "fusetune"],
    "accelerate": [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "2"],
}

OBJECTIVES = {
    "tasks": {},
    "contrastive": {"contrastive": {"weight": 0.3}, "supcon": {"weight": 0.1, "target": "plan"}},
    "semi": {"semi": {"noise": 0.0, "cutoff": 0.0}},
}


@pytest.fixture(scope="module")
def given(tiny, shop, write_csv, tmp_path_factory):
    """A table with missing cells and targets and with weights, and settings without a draw of dropout."""
    home = tmp_path_factory.mktemp("processes")
    shutil.copytree(tiny("bert"), home / "bert")
    config = json.loads((home / "bert" / "config.json").read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
    (home / "bert" / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    rows = [{key: row[key] for key in ("note", "price", "plan", "label")} for row in shop[1]]
    for place, row in enumerate(rows):
        row["weight"] = round(float(rng.uniform(0.1, 3)), 2)
        row["note"] = "" if place % 6 == 0 else row["note"]
        row["plan"] = "" if place % 5 == 0 or place % 6 == 3 else row["plan"]
        row["label"] = "" if place % 6 == 3 else row["label"]  # neither target: only contrastive learns from the row
    write_csv(home / "t.csv", rows)
    settings = {
        "train": "t.csv",
        "target": ["label", "plan"],
        "columns": {"weight": {"role": "weight"}},
        "text": {"name": "./bert"},
        "fusion": {"name": "attention", "dim": 16, "dropout": 0, "modality_dropout": 0, "input_dropout": 0},
        "trainer": {
            "epochs": 2,
            "head_epochs": 1,
            "batch_size": 12,
            "accumulate": 2,
            "trackers": [],
            "patience": None,
            "precision": "no",
        },
        "report": {"bootstrap": 0, "alone": "none"},
    }
    for name, objectives in OBJECTIVES.items():
        (home / f"{name}.yaml").write_text(json.dumps(settings | {"objectives": objectives}))
        if name != "semi":  # which only a slow test needs
            fusetune.fit(config=home / f"{name}.yaml", out=home / f"one-{name}", progress=False)
    return home


def curve(folder: Path) -> list[list[float]]:
    points = json.loads((folder / "report.json").read_text())["curve"]["points"]
    return [[point["step"], point["train_loss"] or 0.0, point["val_loss"], point["val_metric"]] for point in points]


@pytest.mark.slow
def test_thresholds_of_two_processes_are_those_of_one(given, tmp_path):
    fusetune.fit(config=given / "semi.yaml", out=given / "one-semi", progress=False)
    test_two_processes_learn_what_one_learns(given, "torchrun", "semi", tmp_path)


@pytest.mark.parametrize(("launcher", "objectives"), [("accelerate", "tasks"), ("torchrun", "contrastive")])
def test_two_processes_learn_what_one_learns(given, launcher, objectives, tmp_path):
    command = list(LAUNCHERS[launcher])
    if launcher == "accelerate":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command += ["--main_process_port", str(free.getsockname()[1]), "-m", "fusetune"]
    words = [*command, "fit", str(given / f"{objectives}.yaml"), "-o", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = curve(given / f"one-{objectives}"), curve(tmp_path / "two")
    assert len(one) > 4
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)
    assert done.stdout.count("report  ") == 1  # one process speaks
    table = given / "t.csv"
    first, second = (fusetune.load(folder).predict(table) for folder in (given / f"one-{objectives}", tmp_path / "two"))
    np.testing.assert_allclose(second["label_probability"], first["label_probability"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["trainer.ema=0.9", "trainer.gradient_checkpointing=true"]], ids=["plain", "more"]
)
def test_layers_spread_over_two_processes_learn_what_one_process_learns(given, tmp_path, more):
    """Two layers of the text encoder; some batches have no text. The folder is the same one, loaded by one process."""
    one = fusetune.fit(config=given / "tasks.yaml", overrides=more, out=tmp_path / "one", progress=False)
    words = [
        *LAUNCHERS["torchrun"],
        "fit",
        str(given / "tasks.yaml"),
        "-o",
        str(tmp_path / "two"),
        "trainer.shard=true",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, *more], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), atol=1e-5, rtol=0)
    two = fusetune.load(tmp_path / "two")
    state = two.bundle.model.state_dict()
    for name, value in one.bundle.model.state_dict().items():
        np.testing.assert_allclose(state[name], value, atol=2e-5, err_msg=name)
    assert two.results.trained == one.results.trained


def test_a_mistake_is_told_and_ends_all_processes(given, tmp_path):
    words = [*LAUNCHERS["torchrun"], "fit", str(given / "t.csv"), "-t", "labell", "-o", str(tmp_path / "m")]
    done = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "did you mean 'label'?" in done.stderr and 'fusetune/api.py"' not in done.stderr  # no traceback of ours
