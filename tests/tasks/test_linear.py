import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from fusetune.tasks.linear import PENALTIES, RIDGE_PENALTIES, logistic_path, ridge_path, softmax_scores, solve_logistic


def data(rows, width, outputs, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, width)).astype(np.float32) * rng.uniform(0.1, 10, width) + 3
    logits = ((features - 3) @ rng.normal(size=(width, outputs))) / np.sqrt(width)
    return features.astype(np.float32), logits + rng.normal(size=(rows, outputs))


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_softmax_regression_is_scikit_learns(penalty):
    features, logits = data(200, 5, 3)
    truth = logits.argmax(1)
    scaled = StandardScaler().fit_transform(features).astype(np.float32)
    both = solve_logistic(scaled, np.eye(3)[truth], penalty, np.zeros((6, 3)), exclusive=True, steps=1000)
    oracle = LogisticRegression(C=1 / (penalty * 200), max_iter=5000, tol=1e-8).fit(scaled, truth)
    assert np.allclose(softmax_scores(scaled @ both[:-1] + both[-1]), oracle.predict_proba(scaled), atol=2e-3)


def test_sigmoid_regression_is_scikit_learns_one_label_at_a_time():
    features, logits = data(200, 5, 2)
    truth = (logits > 1).astype(int)
    scaled = StandardScaler().fit_transform(features).astype(np.float32)
    both = solve_logistic(scaled, truth, 1e-2, np.zeros((6, 2)), exclusive=False, steps=1000)
    for place in range(2):
        oracle = LogisticRegression(C=1 / (1e-2 * 200), max_iter=5000, tol=1e-8).fit(scaled, truth[:, place])
        assert np.allclose(scaled @ both[:-1, place] + both[-1, place], oracle.decision_function(scaled), atol=2e-2)


@pytest.mark.parametrize(("rows", "width"), [(100, 8), (30, 80)])
def test_ridge_is_scikit_learns(rows, width):
    features, logits = data(rows, width, 1)
    targets = logits[:, 0]
    model = ridge_path(features, targets, lambda out: out[:, 0]).at(8)
    oracle = Ridge(alpha=RIDGE_PENALTIES[8] * rows).fit(features, targets)
    expected = oracle.predict(features)
    assert np.allclose(model.scores(features), expected, atol=1e-4)


def test_more_features_than_rows_give_the_same_as_the_plain_problem():
    features, logits = data(40, 100, 2)
    truth = np.eye(2)[logits.argmax(1)]
    path = logistic_path(features, truth, exclusive=True)
    model = path.at(path.default)
    scaled = features - features.mean(0)
    middle = PENALTIES[len(PENALTIES) // 2]
    plain = solve_logistic(scaled, truth, middle, np.zeros((101, 2)), exclusive=True, steps=1000)
    assert np.allclose(model.scores(features), softmax_scores(scaled @ plain[:-1] + plain[-1]), atol=2e-3)


def test_the_penalty_is_chosen_on_validation_rows():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(60, 50)).astype(np.float32)
    truth = rng.integers(0, 2, 60)
    noise[:, 0] += truth  # one weak signal among fifty columns of noise
    seen = []

    def score(model):
        seen.append(-float(np.mean((model.scores(noise[30:])[:, 1] - truth[30:]) ** 2)))
        return seen[-1], 0.0

    model = logistic_path(noise[:30], np.eye(2)[truth[:30]], exclusive=True).best(score)
    reached = -float(np.mean((model.scores(noise[30:])[:, 1] - truth[30:]) ** 2))
    assert reached == max(seen) and len(set(seen)) > 2


def test_a_constant_feature_and_an_absent_class_do_no_harm():
    features, logits = data(80, 4, 3)
    features[:, 2] = 7.0
    truth = np.minimum(logits.argmax(1), 1)  # class 2 has no row
    path = logistic_path(features, np.eye(3)[truth], exclusive=True)
    model = path.best(lambda model: (float((model.scores(features).argmax(1) == truth).mean()), 0.0))
    scores = model.scores(features + np.array([0, 0, 1e6, 0], dtype=np.float32))
    assert np.isfinite(scores).all() and scores[:, 2].max() < 0.05
    assert (scores.argmax(1) == truth).mean() > 0.7


def test_a_row_of_weight_three_counts_as_three_rows():
    features, logits = data(60, 6, 2)
    counts = np.random.default_rng(1).integers(1, 4, 60)
    many = np.repeat(np.arange(60), counts)
    truth = np.eye(2)[logits.argmax(1)]
    for fit, targets in (
        (lambda x, y, w: logistic_path(x, y, exclusive=True, weights=w).at(6), truth),
        (lambda x, y, w: ridge_path(x, y, lambda out: out[:, 0], weights=w).at(6), logits[:, 0]),
    ):
        weighed, repeated = fit(features, targets, counts.astype(float)), fit(features[many], targets[many], None)
        assert np.allclose(weighed.scores(features), repeated.scores(features), atol=2e-3)
        assert not np.allclose(weighed.scores(features), fit(features, targets, None).scores(features), atol=2e-3)
