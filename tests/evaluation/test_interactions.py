"""Popular items and item-kNN, against dense computations by scikit-learn."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics.pairwise import cosine_similarity

from fusetune.evaluation.measure import interactions
from fusetune.evaluation.measure.interactions import ItemKnn, item_similarity, popularity


@pytest.fixture
def train():
    rng = np.random.default_rng(0)
    values = (rng.random((40, 25)) < 0.2) * rng.uniform(0.5, 5, (40, 25))
    values[:, 7] = 0  # an item that nobody chose
    return sparse.csr_array(values)


def dense_similarity(train, neighbours):
    """Cosines of the columns, the largest of each row; no item is its own neighbour."""
    similar = cosine_similarity(train.toarray().T)
    np.fill_diagonal(similar, 0)
    least = -np.sort(-similar, axis=1)[:, neighbours - 1 : neighbours]
    return np.where((similar >= least) & (similar > 0), similar, 0)


def test_popularity_counts_users(train):
    assert popularity(train) == pytest.approx((train.toarray() > 0).sum(0))


@pytest.mark.parametrize("neighbours", [1, 3, 24, 100])
def test_similarities_are_the_largest_cosines(train, neighbours, monkeypatch):
    expected = dense_similarity(train, min(neighbours, 25))
    assert item_similarity(train, neighbours=neighbours).toarray() == pytest.approx(expected)
    monkeypatch.setattr(interactions, "BLOCK", 80)  # three items at once
    assert item_similarity(train, neighbours=neighbours).toarray() == pytest.approx(expected)


def test_shrinkage_lowers_similarities_of_few_common_users():
    many, few = np.ones((30, 2)), np.ones((2, 2))
    train = sparse.csr_array(np.block([[many, np.zeros((30, 2))], [np.zeros((2, 2)), few]]))
    plain, shrunk = (item_similarity(train, neighbours=3, shrinkage=value).toarray() for value in (0, 10))
    assert plain[0, 1] == pytest.approx(1) == plain[2, 3]
    assert (shrunk[0, 1], shrunk[2, 3]) == pytest.approx((30 / 40, 2 / 12))


def test_scores_sum_the_similarities_of_a_history_and_popular_items_come_after(train):
    history = sparse.csr_array((np.random.default_rng(1).random((6, 25)) < 0.1).astype(float))
    history = sparse.csr_array(sparse.vstack([history, sparse.csr_array((1, 25))]))
    expected = history.toarray() @ dense_similarity(train, 4)
    scores = ItemKnn(train, neighbours=4).scores(history)
    near = expected > 0
    assert near[:-1].any() and not near[-1].any()
    assert scores[near] == pytest.approx(expected[near]) and (scores[~near] < 0).all()
    popular = popularity(train)
    for own, others in zip(scores, ~near, strict=True):
        assert np.array_equal(np.unique(popular[others]), np.unique(popular[others][np.argsort(own[others])]))
        assert (np.diff(popular[others][np.argsort(own[others])]) >= 0).all()


def test_a_catalogue_without_interactions():
    knn = ItemKnn(sparse.csr_array((3, 4)))
    assert np.ptp(knn.scores(sparse.csr_array((2, 4)))) == 0
