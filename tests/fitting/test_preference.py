"""Fits on pairs of answers: the preferred one becomes likelier than the other."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

import fusetune as ft
from fusetune.data.table import Table
from fusetune.deploy.tuned import read_examples
from fusetune.errors import ConfigError
from fusetune.inference.token_loss import answer_scores

QUICK = ["trainer.checkpoint_minutes=null", "report.bootstrap=20", "generation.val_rows=0"]


@contextmanager
def adapters_off(model):
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert layers
    for layer in layers:
        layer.enable_adapters(False)
    yield
    for layer in layers:
        layer.enable_adapters(True)


def rows(num: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    words = [" ".join(f"w{number}" for number in rng.integers(1, 9, 3)) for _ in range(num)]
    return [{"source": text, "out": f"w21 {text}", "worse": f"w22 {text}"} for text in words]


@pytest.fixture(scope="module", params=["llama_writer", "t5_writer"])
def run(request, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "pairs.jsonl"
    table = [*rows(80), {"source": "w1", "out": "w2", "worse": "w2"}]
    path.write_text("\n".join(map(json.dumps, table)))
    settings = [f"text={tiny(request.param)}", "tasks.out=preference", "tasks.out.rejected=worse", "tasks.out.beta=0.5"]
    settings += ["trainer.epochs=4", "trainer.batch_size=8", "trainer.backbone_lr=1e-2", "text.adapter=lora"]
    return ft.fit(str(path), target="out", out=str(folder / "run"), overrides=[*settings, *QUICK]), folder


def section(folder, key):
    report = json.loads((folder / "run" / "report.json").read_text())
    return next(part["figures"] for part in report["tasks"][0]["sections"] if part["key"] == key)


def test_the_chosen_answer_is_preferred_after_tuning(run):
    tuned, folder = run
    figures = section(folder, "preference")
    assert figures["tuned_preference_accuracy"] >= max(0.9, figures["before_preference_accuracy"])
    assert figures["tuned_reward_margin"] > 0.1 and figures["before_reward_margin"] == 0
    assert figures["before_reward_accuracy"] == 0.5  # no margin: all are ties
    assert tuned.predict([{"source": "w1 w2"}]).table.num_rows == 1


def test_the_reference_is_the_model_before_tuning(run, tiny):
    """Without its adapter the tuned model gives the log-probabilities that the rewards are measured from."""
    tuned, folder = run
    model, task = tuned.bundle.model, tuned.bundle.tasks["out"]
    examples = read_examples(tuned.bundle, str(folder / "pairs.jsonl"), targets=True)
    after = torch.from_numpy(answer_scores(model, "out", examples, examples.used[:16])[0]).float()
    with adapters_off(model):
        before = torch.from_numpy(answer_scores(model, "out", examples, examples.used[:16])[0]).float()
    rewards = task.rewards(after, before)
    assert (rewards[:, 0] > rewards[:, 1]).float().mean() > 0.8


def test_equal_answers_are_rejected_with_the_reason_and_margins_are_logged(run):
    _, folder = run
    (line,) = (folder / "run" / "rejected.jsonl").read_text().splitlines()
    assert "nothing to prefer" in line and json.loads(line)["column"] == "worse"
    logged = b"".join(path.read_bytes() for path in (folder / "run" / "logs").rglob("*") if path.is_file())
    assert b"out/reward_margin" in logged and b"preference_accuracy" in logged


def test_a_table_without_rejected_answers_is_measured_by_what_is_written(run):
    tuned, _ = run
    found = tuned.evaluate([{"source": row["source"], "out": row["out"]} for row in rows(8)])
    assert found.tasks[0].rows == 8


def test_pairs_need_their_column_and_prompts_of_words(run, tiny, tmp_path):
    _, folder = run
    path, model = str(folder / "pairs.jsonl"), f"text={tiny('llama_writer')}"
    with pytest.raises(ConfigError, match="worse"):
        ft.fit(path, target="out", overrides=[model, "tasks.out=preference", "tasks.out.rejected=wors"])
    table = [{**row, "size": number % 7 / 2} for number, row in enumerate(rows(40))]
    soft = ["tasks.out=preference", "tasks.out.rejected=worse", "prompt.soft=[size]", "trainer.trackers=[]"]
    with pytest.raises(ConfigError, match="vectors"):
        ft.fit(Table.from_records(table), target="out", overrides=[model, *soft])
