"""Label errors: the formulas beside cleanlab, injected errors that are found, the page, the files, and mistakes."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import fusetune as ft
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.load import load_backbone
from fusetune.cli.main import app
from fusetune.errors import ConfigError, TableError
from fusetune.lifecycle import confident, frozen
from fusetune.lifecycle.label_errors import task_of
from fusetune.tasks.classes.multilabel import MultilabelTask


def labels(seed: int, num: int = 400, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(classes, size=num)
    given = np.where(rng.random(num) < 0.15, rng.integers(classes, size=num), true)
    logits = rng.normal(size=(num, classes)) + 2.5 * np.eye(classes)[true]
    return true, given, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_formulas_agree_with_cleanlab(seed):
    count, rank = pytest.importorskip("cleanlab.count"), pytest.importorskip("cleanlab.rank")
    _, given, probabilities = labels(seed)
    joint = count.compute_confident_joint(given, probabilities, calibrate=True)
    assert np.abs(confident.confident_joint(given, probabilities) - joint).max() <= 1  # cleanlab's are whole numbers
    np.testing.assert_allclose(
        confident.self_confidence(given, probabilities),
        rank.get_label_quality_scores(given, probabilities, method="self_confidence"),
    )


def test_the_number_of_wrong_labels_and_its_interval():
    true, given, probabilities = labels(3, num=3000)
    wrong = confident.wrong_labels(given, probabilities)
    assert wrong.low < wrong.value < wrong.high
    assert wrong.value == pytest.approx(np.sum(true != given), rel=0.35)
    sure = np.eye(4)[given] * 0.9 + 0.025
    assert confident.wrong_labels(given, sure).value == 0


def frame() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=300)
    table = pd.DataFrame({"size": true + 0.1 * rng.normal(size=300), "plan": np.array(list("abc"))[true]})
    wrong = rng.choice(300, 30, replace=False)
    true[wrong] = (true[wrong] + 1) % 3
    return table.assign(kind=np.array(["low", "middle", "high"])[true], price=rng.normal(size=300)), wrong


SETTINGS = ["trainer.epochs=1", "report.bootstrap=20", "trainer.trackers=[]", "trainer.head_epochs=1"]
SETTINGS += ["report.alone=none", "report.single=false", "data.split=[0.7,0.15,0.15]"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    frame()[0].to_csv(folder / "train.csv", index=False)
    return ft.fit(folder / "train.csv", ["kind", "price"], out=folder / "run", overrides=SETTINGS, progress=False)


@pytest.fixture(scope="module")
def found(tuned):
    return ft.label_errors(tuned.folder, target="kind", max_share=0.02)


def test_injected_errors_are_found_in_train_and_validation_rows(found):
    table, wrong = frame()
    assert found.num_rows == 255 and found.alarm
    assert found.wrong.low < found.wrong.value < found.wrong.high
    named = [row.row for row in found.rows]
    assert np.mean(np.isin(named, wrong)) > 0.9 and len(named) >= 15
    for row in found.rows:
        assert row.given == table["kind"][row.row] and row.given != row.suggested
        assert {cell.column for cell in row.cells} == {"size", "plan"}
    assert [row.score for row in found.rows] == sorted(row.score for row in found.rows)


def test_labels_do_not_leak_into_their_own_predictions(tuned):
    """With random labels, probes that saw them would agree with them more often than by chance."""
    table = frame()[0].assign(kind=np.random.default_rng(1).choice(["low", "middle", "high"], 300))
    assert ft.label_errors(tuned, table, target="kind").accuracy < 0.45


def test_the_files(found, tmp_path):
    found.save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "label_errors.json").read_text())
    assert content["alarm"] is True and len(content["rows"]) == len(found.rows)
    lines = list(csv.DictReader((tmp_path / "out" / "label_errors.csv").open()))
    assert list(lines[0]) == ["file", "row", "given", "suggested", "score"]
    assert [int(line["row"]) for line in lines] == [row.row for row in found.rows]
    page = (tmp_path / "out" / "label_errors.html").read_text()
    assert "<script" not in page and found.rows[0].given in page


def test_the_verb_exits_with_3_above_the_accepted_share(tuned, tmp_path):
    run = CliRunner().invoke
    verb = ["label-errors", str(tuned.folder), "-t", "kind"]
    done = run(app, [*verb, "--max-share", "0.02", "--out", str(tmp_path / "out")])
    assert done.exit_code == 3 and (tmp_path / "out" / "label_errors.html").is_file()
    done = run(app, [*verb, "--count", "4", "--json"])
    assert done.exit_code == 0 and len(json.loads(done.stdout)["rows"]) == 4


def test_encoders_that_an_earlier_run_tuned_are_not_read(tmp_path):
    """A run on a run's encoder, as a retuned version is, goes back to the encoder that the first one began with."""
    for name, source in (("a", "pretrained"), ("b", str(tmp_path / "a"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_text("{}")
        (tmp_path / name / "config.yaml").write_text(f"text: {{name: {source}}}\n")
    assert frozen.first_source(str(tmp_path / "b"), "text") == "pretrained"
    assert frozen.first_source("minilm", "text") == "minilm" and frozen.first_source(None, "image") is None


def test_several_labels_a_row_are_refused():
    task = MultilabelTask("tags")
    task.fit([["a"], ["a", "b"], ["b", "c"]])
    with pytest.raises(ConfigError, match="one of several labels"):
        task_of({"tags": task}, None)


def test_mistakes(tuned):
    with pytest.raises(ConfigError, match="one of several labels"):
        ft.label_errors(tuned, target="price")
    with pytest.raises(ConfigError, match="predicts no 'knd'"):
        ft.label_errors(tuned, target="knd")
    with pytest.raises(ConfigError, match="out of range"):
        ft.label_errors(tuned, folds=1)
    with pytest.raises(TableError, match="too few"):
        ft.label_errors(tuned, frame()[0][:20], target="kind")


def test_encoders_are_read_as_before_tuning(fitted, shop_tables, monkeypatch):
    """The tuned encoder has learned the labels; the vectors are those of the pretrained one."""
    table = ft.Table.read(shop_tables["test"])
    rows = frozen.read_frozen(fitted.bundle, table, targets=True)
    tuned, fresh = (
        next(part for part in bundle.model.encoders.values() if isinstance(part, Backbone) and part.kind == "text")
        for bundle in (fitted.bundle, frozen.untuned(fitted.bundle))
    )
    pretrained = load_backbone(fitted.bundle.config.text.name, "text")
    weights = pretrained.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in fresh.model.state_dict().items())
    assert not all(torch.equal(value, weights[name]) for name, value in tuned.model.state_dict().items())
    monkeypatch.setattr(frozen, "untuned", lambda bundle: bundle)
    learned = frozen.read_frozen(fitted.bundle, table, targets=True)
    assert not np.allclose(rows.features["note"].values, learned.features["note"].values, atol=1e-4)


def test_rows_of_a_group_are_predicted_by_probes_of_other_groups(tmp_path):
    """Only the customer tells the label: a probe that has seen other rows of the customer would know it."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"customer": np.repeat(np.arange(60), 5), "size": np.repeat(rng.normal(size=60), 5)})
    table["kind"] = np.repeat(rng.choice(["a", "b"], 60), 5)
    table["plan"] = [f"p{customer}" for customer in table["customer"]]
    table.to_csv(tmp_path / "t.csv", index=False)
    settings = [*SETTINGS, "columns.customer.role=group", "columns.plan={kind: category, role: input}"]
    tuned = ft.fit(tmp_path / "t.csv", "kind", out=tmp_path / "run", overrides=settings, progress=False)
    assert ft.label_errors(tuned, table).accuracy < 0.7
