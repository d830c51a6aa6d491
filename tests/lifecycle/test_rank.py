"""Ranking pretrained models: figures, verdicts, resuming, mistakes, and the verb."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import fusetune as ft
from fusetune.backbones.load import load_backbone
from fusetune.backbones.passes.layer_mean import LayerMean
from fusetune.cli.main import app
from fusetune.errors import ConfigError
from fusetune.lifecycle import rank as module
from fusetune.lifecycle.frozen_features import probe_answers
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.testing.objectives import make_parts
from fusetune.testing.tiny_models import WORDS, make
from fusetune.training.probes.probe import SplitRows
from fusetune.types import Tokens

OPTIONS = {"rows": 200, "folds": 3, "progress": False, "overrides": ["data.cache=none"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank")
    rng = np.random.default_rng(0)
    words = rng.choice(WORDS, (160, 5))
    labels = np.where([row[0] in WORDS[:20] for row in words], "a", "b")
    pd.DataFrame({"text": [" ".join(row) for row in words], "label": labels}).to_csv(folder / "t.csv", index=False)
    for name in ("bert", "roberta"):
        make(name, folder / "models" / name)
    make("vit", folder / "vit")
    return folder


@pytest.fixture(scope="module")
def ranking(home):
    return ft.rank(home / "t.csv", "label", backbones=[home / "models"], out=home / "out", **OPTIONS)


def test_candidates_of_a_folder_are_listed_with_the_best_first(home, ranking):
    (ranked,) = ranking.kinds
    assert (ranked.kind, ranked.columns, ranked.target, ranked.metric) == ("text", ["text"], "label", "accuracy")
    assert {one.name for one in ranked.backbones} == {str(home / "models" / name) for name in ("bert", "roberta")}
    assert ranked.rows == 128  # the train rows of the split
    first, second = ranked.backbones
    assert first.probe.value >= second.probe.value and first.behind.value == 0
    assert first.probe.low <= first.probe.value <= first.probe.high
    assert second.behind.value == pytest.approx(first.probe.value - second.probe.value)
    assert second.as_good == (second.behind.low <= 0)
    assert all(
        one.layers == 2 and one.dim == 16 and one.rows_per_second > 0 and one.megabytes > 0 for one in (first, second)
    )
    assert all(np.isfinite([one.log_me, one.h_score]).all() for one in (first, second))


def test_the_files_hold_the_ranking(home, ranking):
    content = json.loads((home / "out" / "rank.json").read_text())
    assert [one["name"] for one in content["kinds"][0]["backbones"]] == [one.name for one in ranking.kinds[0].backbones]
    assert ranking.kinds[0].headline in (home / "out" / "rank.html").read_text()


def test_a_finished_candidate_is_not_computed_again(home, ranking, monkeypatch):
    def refuse(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_compute", refuse)
    again = ft.rank(home / "t.csv", "label", backbones=[home / "models"], out=home / "out", **OPTIONS)
    assert again.to_json() == ranking.to_json()
    with pytest.raises(AssertionError):  # other folds give other figures
        ft.rank(home / "t.csv", "label", backbones=[home / "models"], out=home / "out", **{**OPTIONS, "folds": 4})


def test_the_mean_over_layers_is_that_of_the_hidden_states(home):
    encoder = load_backbone(str(home / "models" / "bert"), "text", pool="mean").eval()
    inputs = encoder.collate_text([encoder.tokenize("w1 w2 w3"), encoder.tokenize("w4")])
    with torch.no_grad():
        states = encoder.model(**inputs, output_hidden_states=True).hidden_states[1:]
        mean, mask = torch.stack(states).mean(0), inputs["attention_mask"].unsqueeze(-1)
        result = LayerMean(encoder)(**inputs)
    torch.testing.assert_close(result.values[:, 0], (mean * mask).sum(1) / mask.sum(1))


def test_mistakes_are_named(home):
    with pytest.raises(ConfigError, match="reads no column"):
        ft.rank(home / "t.csv", "label", backbones=[home / "vit"], **OPTIONS)
    with pytest.raises(ConfigError, match="no candidate"):
        ft.rank(home / "t.csv", "label", backbones=[], **OPTIONS)
    with pytest.raises(ConfigError, match="out of range"):
        ft.rank(home / "t.csv", "label", backbones=["minilm"], **{**OPTIONS, "folds": 2})


def test_the_verb_prints_the_ranking(home, ranking):
    given = ["rank", str(home / "t.csv"), "data.cache=none", "-t", "label", "-b", str(home / "models"), "--rows", "200"]
    done = CliRunner().invoke(app, [*given, "--folds", "3", "--out", str(home / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["kinds"][0]["target"] == "label"


def test_each_row_is_predicted_by_a_probe_that_did_not_learn_on_it():
    """With as many features as rows and random labels, a probe that learned on the rows would know most of them."""
    _, tasks, examples = make_parts(200)
    key, task = next((key, task) for key, task in tasks.items() if isinstance(task, MulticlassTask))
    name, column = next(iter(examples.columns.items()))
    values = torch.randn(int(column.codes.max()) + 1, 1, 300, generator=torch.Generator().manual_seed(0))
    rows = examples.labelled(key)
    features = {name: Tokens(values, torch.ones(len(values), 1, dtype=torch.bool))}
    truth = np.random.default_rng(0).integers(len(task.labels), size=len(rows))
    answers = probe_answers(task, SplitRows(examples, features, rows, truth), folds=3, seed=0)
    assert np.mean(answers.argmax(1) == truth) < 0.6


def test_a_candidate_that_is_worse_beyond_chance_is_not_as_good(home, tmp_path):
    """An encoder whose word embeddings are all zero tells nothing of a label that every word tells."""
    rng = np.random.default_rng(1)
    labels = rng.choice(["a", "b"], 160)
    texts = [" ".join(rng.choice(WORDS[:20] if label == "a" else WORDS[20:], 5)) for label in labels]
    pd.DataFrame({"text": texts, "label": labels}).to_csv(tmp_path / "t.csv", index=False)
    make("bert", tmp_path / "blind")
    weights = load_file(tmp_path / "blind" / "model.safetensors")
    blind = {name: value * ("word_embeddings" not in name) for name, value in weights.items()}
    save_file(blind, tmp_path / "blind" / "model.safetensors", metadata={"format": "pt"})
    backbones = [tmp_path / "blind", home / "models" / "bert"]
    (ranked,) = ft.rank(tmp_path / "t.csv", "label", backbones=backbones, **OPTIONS).kinds
    best, worse = ranked.backbones
    assert best.name == str(home / "models" / "bert") and best.as_good
    assert worse.behind.low > 0 and not worse.as_good and worse not in ranked.cheaper
    assert "worse beyond chance" in ranked.headline
