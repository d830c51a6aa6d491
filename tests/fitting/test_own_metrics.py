"""`trainer.metric` as a function: it decides, is the headline, and is asked for again where it is not there."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

import fusetune as ft
from fusetune import api
from fusetune.config.config import Config
from fusetune.data.table import Table
from fusetune.errors import ConfigError


def profit(y_true, y_pred):
    """Money earned a row."""
    return float(np.mean(np.where(y_pred == "yes", np.where(y_true == "yes", 10.0, -1.0), 0.0)))


def pinball(y_true, y_pred, sample_weight=None):
    return float(np.average(np.maximum(0.9 * (y_true - y_pred), 0.1 * (y_pred - y_true)), weights=sample_weight))


PINBALL = ft.Metric("pinball", greater_is_better=False, function=pinball)


@pytest.fixture(scope="module")
def run(shop, quick, tmp_path_factory):
    def fit(metric, *targets, out=None, **options):
        names = ("price", "plan", *targets)
        table = Table.from_records([{name: row[name] for name in names} for row in shop[1]])
        trainer = {"trainer": {"metric": metric, "head_epochs": 4}}
        config = Config.build(quick)
        out = tmp_path_factory.mktemp("own") / "m" if out is None else out
        return api.fit(table, list(targets), config=config, overrides=trainer, out=out, progress=False, **options)

    return fit


@pytest.mark.parametrize(("metric", "target", "greater"), [(profit, "label", True), (PINBALL, "rating", False)])
def test_it_decides_and_is_the_headline(run, shop, metric, target, greater):
    tuned = run(metric, target)
    (task,) = tuned.results.tasks
    name = "profit" if greater else "pinball"
    assert (task.metric, task.greater_is_better) == (name, greater)
    curve = tuned.results.curve
    sign = 1 if greater else -1
    values = [sign * point.val_metric for point in curve.points]
    best = next(sign * point.val_metric for point in curve.points if point.step == curve.best_step)
    assert best >= max(values) - curve.margin

    rows = shop[1][:40]
    predicted = tuned.predict(Table.from_records(rows))[target]
    truth = np.asarray([row[target] for row in rows])
    truth = truth if target == "label" else truth.astype(float)
    expected = (profit if greater else pinball)(truth, np.asarray(predicted))
    assert tuned.evaluate(Table.from_records(rows)).metrics()[target][name] == pytest.approx(expected)


def test_a_folder_asks_for_the_function(run, shop, tmp_path):
    tuned = run(profit, "label", out=tmp_path / "m")
    table = Table.from_records(shop[1][:40])
    with_function = tuned.evaluate(table).tasks[0].systems[0].metrics["profit"].value
    entry = json.loads((tmp_path / "m" / "bundle.json").read_text())["tasks"]["label"]["metric"]
    assert entry == {"name": "profit", "greater_is_better": True, "function": True}

    loaded = api.load(tmp_path / "m")
    evaluation = loaded.evaluate(table)
    assert evaluation.tasks[0].metric == "accuracy"
    assert any("profit" in note for note in evaluation.notes) and "profit" in str(evaluation)
    loaded.save(tmp_path / "copy")
    again = api.load(tmp_path / "copy", metric=profit).evaluate(table)
    assert again.tasks[0].systems[0].metrics["profit"].value == with_function
    assert not again.notes
    with pytest.raises(ConfigError, match="did you mean 'label'"):
        api.load(tmp_path / "m", metric={"lable": profit})

    with pytest.raises(ConfigError, match=r"profit\(\) is a function"):
        api.fit(config=tmp_path / "m" / "config.yaml", out=tmp_path / "new", progress=False)


def test_a_stopped_run_goes_on_with_it(run, tmp_path, monkeypatch):
    """The model is saved and its report fails: the resumed run measures by the function that is given again."""
    out = tmp_path / "m"
    with monkeypatch.context() as patched:
        patched.setattr("fusetune.fitting.findings.Findings.results", lambda *_: 1 / 0)
        with pytest.raises(ft.errors.ReportError):
            run(profit, "label", out=out)
    with pytest.raises(ConfigError, match="other settings"):
        run(None, "label", out=out, resume=True)
    tuned = run(profit, "label", out=out, resume=True)
    assert tuned.results.tasks[0].metric == "profit"
    assert tuned.bundle.tasks["label"].main.function is profit


def test_each_target_may_have_its_own(run):
    tuned = run({"rating": PINBALL, "label": "mcc"}, "label", "rating")
    assert {task.target: task.metric for task in tuned.results.tasks} == {"label": "mcc", "rating": "pinball"}


def test_probabilities(run):
    """As scikit-learn's scorers pass them: of a binary target the positive class's."""
    seen = []

    def confidence(y_true, y_pred):
        seen.append(y_pred.shape[1:])
        sure = y_pred if y_pred.ndim == 1 else y_pred.max(1)
        return float(np.mean(np.where(y_true == "yes", sure, 1 - sure)))

    metric = ft.Metric("confidence", function=confidence, response_method="predict_proba")
    assert run(metric, "label").results.tasks[0].metric == "confidence"
    assert set(seen) == {()}
    seen.clear()
    other = ft.Metric("sure", function=lambda t, p: float(p[:, 0].mean() + 1), response_method="predict_proba")
    run(other, "stars")
    with pytest.raises(ConfigError, match="takes probabilities"):
        run(metric, "rating")


def test_row_weights(shop):
    """They reach a function that takes them; of one that does not, the report says so."""
    records = [{"price": row["price"], "w": 1 + place % 3, "label": row["label"]} for place, row in enumerate(shop[1])]
    got = []

    def weighted(y_true, y_pred, weights=None):
        got.append(weights)
        return float(np.average(y_true == y_pred, weights=weights))

    config = {"columns": {"w": {"role": "weight"}}, "trainer": {"epochs": 0, "head_epochs": 2, "trackers": []}}
    config["report"] = {"bootstrap": 0}
    for function, warned in ((weighted, False), (profit, True)):
        trainer = {**config["trainer"], "metric": function}
        tuned = api.fit(Table.from_records(records), "label", config={**config, "trainer": trainer}, progress=False)
        assert any("sample_weight" in warning for warning in tuned.results.warnings) == warned
    assert any(weights is not None and len(set(weights)) == 3 for weights in got)


def failing(y_true, y_pred):
    raise RuntimeError("no price list")


@pytest.mark.parametrize(
    ("metric", "target", "told"),
    [
        (pinball, "rating", r"(?s)worse for the true answers.*greater_is_better=False"),
        (ft.Metric("accuracy", function=profit), "label", "has a metric called 'accuracy'"),
        (failing, "label", r"(?s)failing failed on \d+ rows.*RuntimeError: no price list"),
        (lambda y_true, y_pred: y_true, "rating", "gives no number"),
        (lambda y_true: 0.0, "label", r"(?s)own_metric failed.*TypeError"),
        ({"label": lambda t, p: 1.0, "rating": lambda t, p: 2.0}, "label", "two functions are called 'own_metric'"),
    ],
)
def test_what_cannot_decide_is_refused_before_training(run, metric, target, told):
    with pytest.raises(ConfigError, match=told):
        run(metric, target)


def test_names():
    assert ft.Metric.of(partial(pinball, sample_weight=None)).name == "pinball"
    assert ft.Metric.of(profit).meaning == "Money earned a row"
    with pytest.raises(ConfigError, match="response_method"):
        ft.Metric("x", function=profit, response_method="proba")
    with pytest.raises(ConfigError, match="cannot be called"):
        ft.Metric("x", function=3)


def test_undefined_is_nan_and_functions_get_copies():
    def spoils(y_true, y_pred):
        y_true[:] = 0
        raise ValueError("one class only")

    truth = np.ones(3)
    assert np.isnan(ft.Metric.of(spoils).value(truth, truth, None))
    assert truth.tolist() == [1, 1, 1]
