"""scikit-learn (and SciPy) as the oracle of every metric."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from fusetune.tasks import metrics as ours

ROWS = 200


@pytest.fixture(params=[0, 1, 2])
def rng(request):
    return np.random.default_rng(request.param)


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def weights(request, rng):
    return rng.uniform(0.1, 3, ROWS) if request.param else None


def probabilities(rng, classes, rows=ROWS):
    raw = rng.integers(1, 6, size=(rows, classes)).astype(float)  # few distinct scores, so that there are ties
    return raw / raw.sum(1, keepdims=True)


def test_multiclass(rng, weights):
    scores, truth = probabilities(rng, 4), rng.integers(0, 4, ROWS)
    decided = scores.argmax(1)
    found = ours.classification(scores, truth, weights)
    given = {"sample_weight": weights}
    one_hot = np.eye(4)[truth]
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, decided, **given),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, decided, **given),
            "f1_macro": sk.f1_score(truth, decided, average="macro", **given),
            "f1_micro": sk.f1_score(truth, decided, average="micro", **given),
            "f1_weighted": sk.f1_score(truth, decided, average="weighted", **given),
            "mcc": sk.matthews_corrcoef(truth, decided, **given),
            "log_loss": sk.log_loss(truth, scores, labels=range(4), **given),
            "roc_auc": sk.roc_auc_score(truth, scores, multi_class="ovr", average="macro", **given),
            "average_precision": sk.average_precision_score(one_hot, scores, average="macro", **given),
            "brier": float(np.average(((scores - one_hot) ** 2).sum(1), weights=weights)),
        },
        abs=1e-12,
    )


def test_binary(rng, weights):
    scores, truth = probabilities(rng, 2), rng.integers(0, 2, ROWS)
    decided, positive = scores.argmax(1), scores[:, 1]
    found = ours.classification(scores, truth, weights, positive=1)
    given = {"sample_weight": weights}
    for name, expected in {
        "f1": sk.f1_score(truth, decided, **given),
        "precision": sk.precision_score(truth, decided, **given),
        "recall": sk.recall_score(truth, decided, **given),
        "roc_auc": sk.roc_auc_score(truth, positive, **given),
        "average_precision": sk.average_precision_score(truth, positive, **given),
        "brier": sk.brier_score_loss(truth, positive, **given),
        "log_loss": sk.log_loss(truth, positive, **given),
        "mcc": sk.matthews_corrcoef(truth, decided, **given),
        "accuracy": sk.accuracy_score(truth, decided, **given),
        "f1_macro": sk.f1_score(truth, decided, average="macro", **given),
    }.items():
        assert found[name] == pytest.approx(expected, abs=1e-12), name


def test_multilabel(rng, weights):
    scores = rng.integers(0, 8, size=(ROWS, 5)) / 8
    truth = (rng.random((ROWS, 5)) < 0.3).astype(int)
    decided = (scores >= 0.5).astype(int)
    given = {"sample_weight": weights, "zero_division": 0}
    found = ours.multilabel(scores, decided, truth, weights)
    assert found == pytest.approx(
        {
            "map_macro": sk.average_precision_score(truth, scores, average="macro", sample_weight=weights),
            "map_micro": sk.average_precision_score(truth, scores, average="micro", sample_weight=weights),
            "f1_macro": sk.f1_score(truth, decided, average="macro", **given),
            "f1_micro": sk.f1_score(truth, decided, average="micro", **given),
            "f1_samples": sk.f1_score(truth, decided, average="samples", **given),
            "subset_accuracy": sk.accuracy_score(truth, decided, sample_weight=weights),
            "hamming_loss": sk.hamming_loss(truth, decided, sample_weight=weights),
            "roc_auc_macro": sk.roc_auc_score(truth, scores, average="macro", sample_weight=weights),
        },
        abs=1e-12,
    )


def test_regression(rng, weights):
    truth = rng.normal(size=ROWS).round(1)
    scores = (truth + rng.normal(size=ROWS)).round(1)
    found = ours.regression(scores, truth, weights)
    given = {"sample_weight": weights}
    assert found["r2"] == pytest.approx(sk.r2_score(truth, scores, **given))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, scores, **given))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, scores, **given))
    if weights is None:
        assert found["pearson"] == pytest.approx(stats.pearsonr(scores, truth).statistic)
        assert found["spearman"] == pytest.approx(stats.spearmanr(scores, truth).statistic)
    else:
        covariance = np.cov(scores, truth, aweights=weights)
        assert found["pearson"] == pytest.approx(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))


def test_quadratic_kappa(rng, weights):
    truth, decided = rng.integers(0, 5, ROWS), rng.integers(0, 5, ROWS)
    expected = sk.cohen_kappa_score(truth, decided, weights="quadratic", sample_weight=weights)
    assert ours.quadratic_kappa(decided, truth, 5, weights) == pytest.approx(expected)


def test_ranks_agree_with_scipy(rng):
    values = rng.integers(0, 20, 100)
    assert np.array_equal(ours.ranks(values), stats.rankdata(values))


def test_what_is_undefined_is_nan_and_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = ours.classification(np.array([[0.3, 0.7]] * 3), np.array([1, 1, 1]), None, positive=1)
        assert np.isnan(one["roc_auc"]) and one["average_precision"] == 1 and one["accuracy"] == 1
        assert one["mcc"] == 0 and np.isfinite(one["log_loss"])
        none = ours.classification(np.array([[0.3, 0.7]] * 3), np.array([0, 0, 0]), None, positive=1)
        assert np.isnan(none["average_precision"]) and none["f1"] == 0
        sets = ours.multilabel(np.full((3, 2), 0.5), np.zeros((3, 2)), np.zeros((3, 2)), None)
        assert np.isnan(sets["map_macro"]) and np.isnan(sets["roc_auc_macro"]) and sets["subset_accuracy"] == 1
        flat = ours.regression(np.ones(4), np.arange(4.0), None)
        assert np.isnan(flat["pearson"]) and np.isnan(flat["spearman"]) and flat["r2"] <= 0
        assert np.isnan(ours.regression(np.arange(4.0), np.ones(4), None)["r2"])
        assert np.isnan(ours.quadratic_kappa(np.zeros(3), np.zeros(3), 3))


def test_classes_without_rows_are_left_out_of_means():
    scores = probabilities(np.random.default_rng(0), 3)
    truth = np.arange(ROWS) % 2  # class 2 has no row
    found = ours.classification(scores, truth, None)
    each = [sk.roc_auc_score(truth == c, scores[:, c]) for c in range(2)]
    assert found["roc_auc"] == pytest.approx(np.mean(each))
    assert found["balanced_accuracy"] == pytest.approx(
        np.mean([(scores.argmax(1) == c)[truth == c].mean() for c in range(2)])
    )


def test_a_log_loss_of_a_sure_mistake_is_finite():
    assert 30 < ours.log_loss(np.array([[1.0, 0.0]]), np.array([1])) < 40


def test_better_knows_which_way_is_up():
    assert ours.better("accuracy", 0.6, 0.5) and not ours.better("rmse", 0.6, 0.5)
    assert ours.better("rmse", 0.4, 0.5) and ours.better("r2", -3.0, float("nan"))
    assert not ours.better("r2", float("nan"), -3.0)
