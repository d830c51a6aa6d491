"""Tasks about pairs with a target: the contract, the metrics against scipy and scikit-learn, cells that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.registry import TASKS
from fusetune.tasks.pair_classification import PairClassificationTask
from fusetune.tasks.pair_metrics import best_f1_threshold
from fusetune.tasks.pairs import CosineHead, PairTask
from fusetune.tasks.similarity import SimilarityTask
from fusetune.testing.pairs import PairContract
from fusetune.testing.rules import broken_rules, rules_of
from fusetune.testing.targets import example_targets, usable_targets
from fusetune.testing.tasks import TaskContract

MAKES = {name: TASKS.get(name) for name in TASKS if issubclass(TASKS.get(name), PairTask)}
CASES = [
    pytest.param(make, cells, id=f"{name} of {kind}")
    for name, make in MAKES.items()
    for kind, cells in usable_targets(make).items()
]


@pytest.mark.parametrize(("make", "cells"), CASES)
class TestRegistered(PairContract):
    pass


class Homeless(SimilarityTask):
    family = "understand"


class TakesTheProduct(SimilarityTask):
    def build_head(self, dim):
        class Product(torch.nn.Module):
            def forward(self, vectors):
                first, second = vectors.float().chunk(2, 1)
                return (first * second).sum(1)

        return Product()


class DividesByZero(SimilarityTask):
    def build_head(self, dim):
        class Cosine(torch.nn.Module):
            def forward(self, vectors):
                first, second = vectors.float().chunk(2, 1)
                return (first * second).sum(1) / first.norm(dim=1) / second.norm(dim=1)

        return Cosine()


class StopsTheGradient(SimilarityTask):
    def build_head(self, dim):
        class Stopped(CosineHead):
            def forward(self, vectors):
                return super().forward(vectors.detach()) + 0 * vectors.sum()

        return Stopped()


class Inverted(SimilarityTask):
    def metrics(self, measured, truth, weights=None):
        return super().metrics(-measured, truth, weights)


class RewardsCollapse(PairClassificationTask):
    def metrics(self, measured, truth, weights=None):
        found = super().metrics(measured, truth, weights)
        return found | ({"average_precision": 1.0} if len(measured) and np.ptp(measured[:, 0]) == 0 else {})


class KeepsItsThreshold(PairClassificationTask):
    def tune(self, answers, truth):
        pass


FAULTS = [
    (Homeless, "it_is_about_two_sides"),
    (TakesTheProduct, "only_the_angle_counts"),
    (DividesByZero, "a_side_of_zeros_gives_0"),
    (StopsTheGradient, "the_head_learns"),
    (Inverted, "better_cosines_score_better"),
    (RewardsCollapse, "equal_cosines_are_no_better_than_chance"),
    (KeepsItsThreshold, "tuned_thresholds_improve_a_metric"),
]


@pytest.mark.parametrize(("broken", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(broken, rules):
    cells = example_targets()["two words" if issubclass(broken, PairClassificationTask) else "numbers"]
    found = broken_rules(PairContract, make=broken, cells=cells)
    assert {f"test_{rule}" for rule in rules.split()} <= set(found), found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == {name for name in rules_of(PairContract) if name in vars(PairContract)}
    assert set(rules_of(TaskContract)) < set(rules_of(PairContract))


def test_correlations_are_scipys():
    rng = np.random.default_rng(0)
    scores, cosines = rng.integers(0, 6, 200).astype(float), rng.normal(size=200).round(1)
    cosines += scores / 4
    task = SimilarityTask("score")
    task.fit(scores.tolist())
    metrics = task.evaluate(cosines, scores)
    assert metrics["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic, abs=1e-12)
    assert metrics["pearson"] == pytest.approx(pearsonr(cosines, scores).statistic, abs=1e-12)


def test_metrics_of_labels_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth = (rng.uniform(size=300) < 0.3).astype(int)
    cosines = (0.3 * truth + rng.normal(size=300) * 0.4).round(1)
    weights = rng.integers(1, 4, 300).astype(float)
    task = PairClassificationTask("same", threshold=0.25)
    task.fit(["0", "1"])
    metrics, decided = task.evaluate(cosines, truth, weights), (cosines >= 0.25).astype(int)
    assert metrics == {
        "average_precision": pytest.approx(average_precision_score(truth, cosines, sample_weight=weights)),
        "roc_auc": pytest.approx(roc_auc_score(truth, cosines, sample_weight=weights)),
        "f1": pytest.approx(f1_score(truth, decided, sample_weight=weights)),
        "accuracy": pytest.approx(accuracy_score(truth, decided, sample_weight=weights)),
    }


def test_the_threshold_is_that_of_the_best_f1():
    rng = np.random.default_rng(2)
    truth = (rng.uniform(size=200) < 0.4).astype(int)
    cosines = (0.4 * truth + rng.normal(size=200) * 0.4).round(2)
    precision, recall, _ = precision_recall_curve(truth, cosines)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    threshold = best_f1_threshold(cosines, truth)
    assert f1_score(truth, cosines >= threshold) == pytest.approx(best)
    assert threshold not in cosines  # halfway between two
    assert np.isnan(best_f1_threshold(cosines[truth == 1], truth[truth == 1]))


def test_scores_are_scaled_by_the_train_rows_alone():
    task = SimilarityTask("score")
    task.fit(["1", "3", None, "5"])
    target = task.encode(["5", "1", "2", None, "7"])
    assert target.values.tolist() == [1.0, 0.0, 0.25, 0.0, 1.5] and target.labelled.tolist() == [1, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("make", "cells", "said"),
    [
        (SimilarityTask, ["2", "2", "2.0"], "equal everywhere"),
        (SimilarityTask, ["no", "yes"], "no train row has a number"),
        (PairClassificationTask, ["a", "b", "c"], "3 distinct values"),
        (PairClassificationTask, ["a", "a"], "one class only"),
    ],
)
def test_targets_that_cannot_be_learned(make, cells, said):
    with pytest.raises(TableError, match=said):
        make("target").fit(cells)


def test_cells_that_are_refused():
    graded, labelled = SimilarityTask("t"), PairClassificationTask("t", related="b")
    graded.fit([1, 2])
    labelled.fit(["a", "b"])
    assert labelled.classes == ["a", "b"]
    for task, cell in ((graded, "high"), (graded, "inf"), (labelled, "c")):
        with pytest.raises(BadCell):
            task.check(cell, row=0)
    for threshold in (2, "best", True):
        with pytest.raises(ConfigError, match="threshold"):
            PairClassificationTask("t", threshold=threshold)
