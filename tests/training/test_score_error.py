"""A score's standard error, against closed forms, drawn samples and scipy's bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.regression import RegressionTask
from fusetune.training import finetune as module
from fusetune.training.score_error import ScoreError, bootstrap_error, mean_error, share_error
from fusetune.types import Target


def test_a_share_of_rows_has_half_the_width_of_agresti_and_coulls_interval() -> None:
    right, rows = 52, 60
    center, z = (right + 2) / (rows + 4), 2.0
    low = center - z * math.sqrt(center * (1 - center) / (rows + z**2))
    assert share_error(right / rows, np.ones(rows)) == pytest.approx((center - low) / z)
    assert 0 < share_error(1.0, np.ones(20)) < 0.1
    assert math.isnan(share_error(math.nan, np.ones(20)))


def test_weights_count_as_fewer_rows_and_a_common_factor_as_none() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 1, 500)
    plain = share_error(0.7, np.ones(500))
    assert share_error(0.7, np.full(500, 3.0)) == pytest.approx(plain)
    hits = rng.random((4000, 500)) < 0.7
    spread = np.std(hits @ weights / weights.sum())
    assert share_error(0.7, weights) == pytest.approx(spread, rel=0.05) and spread > 1.1 * plain


def test_the_bootstrap_agrees_with_scipys_and_is_equal_for_equal_seeds() -> None:
    rng = np.random.default_rng(1)
    task = RegressionTask("y")
    truth = rng.normal(size=200)
    task.fit(list(truth))
    scores = truth + rng.normal(size=200)

    def metric(rows: np.ndarray) -> float:
        return task.main_value(task.measured(scores, truth)[rows], truth[rows])

    ours = bootstrap_error(metric, 200, seed=3)
    theirs = stats.bootstrap((np.arange(200),), metric, n_resamples=2000, vectorized=False, method="basic", rng=0)
    assert ours == pytest.approx(theirs.standard_error, rel=0.25)
    assert ours == bootstrap_error(metric, 200, seed=3) != bootstrap_error(metric, 200, seed=4)
    assert math.isnan(bootstrap_error(lambda _: math.nan, 200, seed=0))


def test_the_mean_of_several_parts() -> None:
    error = ScoreError()
    assert not error.known and error.margin == 0
    error.add("accuracy", 0.75, lambda _: math.nan, np.ones(96))
    error.add("accuracy", 0.75, lambda _: math.nan, np.ones(96))
    error.close()
    assert error.value == pytest.approx(share_error(0.75, np.ones(96)) / math.sqrt(2))
    assert error.margin == pytest.approx(error.value / 4)
    assert mean_error([math.nan, math.nan]) == 0 and mean_error([0.3, math.nan]) == pytest.approx(0.15)


def test_the_first_evaluation_measures_it_and_later_ones_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:

    task = MulticlassTask("label")
    task.fit(["a", "b"] * 30)
    values = ["a", "b"] * 30

    class Rows:
        used = np.arange(60)
        weights = np.ones(60)

        def __init__(self) -> None:
            self.tasks = {"label": task}

        def __len__(self) -> int:
            return 60

        def labelled(self, name: str) -> np.ndarray:
            return self.used

        def positions(self, rows: np.ndarray) -> np.ndarray:
            return rows

        def truth(self, name: str, rows: np.ndarray) -> np.ndarray:
            return task.truth(values)

        def encode(self, name: str, rows: np.ndarray) -> Target:
            return task.encode(values)

    logits = task.encode(values).values
    right = torch.nn.functional.one_hot(logits.long(), 2).float()
    right[:12] = right[:12].flip(1)  # 48 of 60 right
    for name, answer in (
        ("predict_logits", lambda *_, **__: {"label": right}),
        ("model_device", lambda _: right.device),
    ):
        monkeypatch.setattr(module, name, answer)
    error = ScoreError()
    _, score, metrics = module.evaluate_loss(None, {"label": task}, Rows(), error=error)
    assert score == metrics["label"]["accuracy"] == pytest.approx(0.8)
    assert error.value == pytest.approx(share_error(0.8, np.ones(60)))
    right[:] = right.flip(1)
    known = error.value
    module.evaluate_loss(None, {"label": task}, Rows(), error=error)
    assert error.value == known
