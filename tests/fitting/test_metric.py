"""`trainer.metric`: another metric decides, and is the headline."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune import api
from fusetune.config.config import Config
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.regression import RegressionTask


@pytest.fixture(scope="module")
def fit(shop, quick, tmp_path_factory):
    """A fit on price and plan, with these targets and this metric."""

    def run(metric, *targets, **trainer):
        names = ("price", "plan", *targets)
        table = Table.from_records([{name: row[name] for name in names} for row in shop[1]])
        config = Config.build(quick).with_overrides({"trainer": {"metric": metric, "head_epochs": 4, **trainer}})
        out = tmp_path_factory.mktemp("metric") / "m"
        return api.fit(table, list(targets), config=config, out=out, progress=False)

    return run


@pytest.mark.parametrize(
    ("metric", "target", "greater"), [("log_loss", "label", False), ("mcc", "label", True), ("mae", "rating", False)]
)
def test_it_chooses_the_step_and_is_the_headline(fit, metric, target, greater):
    tuned = fit(metric, target)
    (task,) = tuned.results.tasks
    assert (task.metric, task.greater_is_better) == (metric, greater)
    best = tuned.results.curve
    values = {point.step: point.val_metric for point in best.points}
    assert best.metric == (metric if greater else f"-{metric}")
    assert values[best.best_step] >= values[0]
    loaded = api.load(tuned.folder)
    assert loaded.bundle.config.trainer.metric == metric
    table = Table.from_records([{"price": "3", "plan": "pro", "label": "yes", "rating": "9"}] * 2)
    assert loaded.evaluate(table).tasks[0].metric == metric


def test_each_target_may_have_its_own(fit):
    tuned = fit({"rating": "mae"}, "label", "rating")
    assert {task.target: task.metric for task in tuned.results.tasks} == {"label": "accuracy", "rating": "mae"}


def test_unknown_ones_are_named_together(fit):
    with pytest.raises(ConfigError, match=r"(?s)binary has no metric called 'f1_mcro'.*did you mean 'f1_macro'"):
        fit("f1_mcro", "label")
    with pytest.raises(ConfigError, match=r"(?s)trainer\.metric\.labl is the metric of no target.*'label'"):
        fit({"labl": "mcc"}, "label")
    with pytest.raises(ConfigError) as raised:
        fit({"label": "mae", "rating": "mcc"}, "label", "rating")
    assert len(raised.value.problems) == 2


def test_the_classs_own_metric_stays():
    task = MulticlassTask("y")
    task.fit(["a", "b", "c"] * 4)
    task.measure_by("log_loss", np.array([0, 1, 2]))
    assert (task.main.name, task.main.greater_is_better) == ("log_loss", False)
    assert MulticlassTask.main.name == MulticlassTask("y").main.name == "accuracy"
    scores = np.eye(3)[[0, 1, 1]] * 0.9 + 0.05
    truth = np.array([0, 1, 2])
    assert task.main_value(scores, truth) == pytest.approx(task.evaluate(scores, truth)["log_loss"])
    number = RegressionTask("y")
    number.fit([1.0, 2.0, 5.0])
    with pytest.raises(ConfigError, match="has no metric called 'accuracy'"):
        number.measure_by("accuracy", np.array([1.0, 2.0]))
