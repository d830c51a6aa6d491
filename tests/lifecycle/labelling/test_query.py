"""Query strategies beside their definitions: written out gradients, brute force covers, clusters that are known."""

from itertools import combinations

import numpy as np
import pytest

from fusetune.lifecycle.labelling import query
from fusetune.lifecycle.labelling.query import NEEDS_MODEL, STRATEGIES, Candidates, choose


def candidates(seed: int = 0, rows: int = 60, labels: int = 3, labelled: int = 6, dim: int = 5) -> Candidates:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    logits = rng.normal(size=(rows, labels))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = rng.permutation(rows)
    open_rows = np.sort(order[labelled:])
    return Candidates(vectors, open_rows, order[:labelled], probabilities, rng.normal(size=(rows, 4)))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("count", [1, 7, 54, 80])
def test_every_strategy_chooses_different_open_rows_and_repeats_itself(name, count):
    some = candidates()
    chosen = choose(name, some, count, seed=3)
    assert len(chosen) == len(set(chosen.tolist())) == min(count, 54)
    assert np.isin(chosen, some.open).all()
    np.testing.assert_array_equal(chosen, choose(name, some, count, seed=3))


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_that_are_all_the_same_are_chosen_without_a_fault(name):
    ones = np.ones((20, 2), dtype=np.float32)
    some = Candidates(ones, np.arange(20), np.zeros(0, dtype=np.int64), ones / 2, ones)
    assert len(set(choose(name, some, 8, seed=0).tolist())) == 8
    nothing = Candidates(ones, np.zeros(0, dtype=np.int64), np.arange(20), ones / 2, ones)
    assert len(choose(name, nothing, 8, seed=0)) == 0


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_a_model_or_a_label_rows_are_chosen_all_the_same(name):
    some = candidates(labelled=0)
    cold = Candidates(some.vectors, some.open, some.labelled)
    chosen = choose(name, cold, 9, seed=1)
    assert len(set(chosen.tolist())) == 9
    if name in NEEDS_MODEL:
        np.testing.assert_array_equal(chosen, choose("typical", cold, 9, seed=1))


def test_margin_and_entropy_are_the_lowest_and_the_highest():
    some = candidates()
    p = some.probabilities[some.open]
    ordered = np.sort(p, 1)
    np.testing.assert_allclose(query.margins(p), ordered[:, -1] - ordered[:, -2])
    expected = some.open[np.argsort(ordered[:, -1] - ordered[:, -2])[:10]]
    np.testing.assert_array_equal(choose("margin", some, 10, seed=0), expected)
    scipy = pytest.importorskip("scipy.stats")
    expected = some.open[np.argsort(-scipy.entropy(p, axis=1))[:10]]
    np.testing.assert_array_equal(choose("entropy", some, 10, seed=0), expected)


def test_badge_is_kmeans_plus_plus_on_written_out_gradients():
    some = candidates()
    p, with_bias = some.probabilities[some.open], np.c_[some.features[some.open], np.ones(54)]
    errors = p - np.eye(3)[p.argmax(1)]
    gradients = np.einsum("nc,nf->ncf", errors, with_bias).reshape(54, -1)
    rng, chosen = np.random.default_rng(5), [int((gradients**2).sum(1).argmax())]
    while len(chosen) < 12:
        away = ((gradients[:, None] - gradients[chosen]) ** 2).sum(2).min(1)
        away[chosen] = 0
        chosen.append(int(rng.choice(54, p=away / away.sum())))
    np.testing.assert_array_equal(choose("badge", some, 12, seed=5), some.open[chosen])


@pytest.mark.parametrize("seed", range(3))
def test_coreset_covers_within_twice_the_best_radius(seed):
    some = candidates(seed, rows=14, labelled=2)

    def radius(centres):
        away = np.linalg.norm(some.vectors[some.open][:, None] - some.vectors[centres], axis=2)
        return away.min(1).max()

    best = min(radius([*some.labelled, *more]) for more in combinations(some.open.tolist(), 3))
    chosen = choose("coreset", some, 3, seed=0)
    assert radius([*some.labelled, *chosen]) <= 2 * best + 1e-6
    from_labelled = np.linalg.norm(some.vectors[some.open][:, None] - some.vectors[some.labelled], axis=2).min(1)
    assert chosen[0] == some.open[from_labelled.argmax()]


def clusters(sizes=(40, 30, 20, 10), spread=0.05, seed=0):
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(len(sizes), 8)[of] + rng.normal(size=(len(of), 8)) * spread
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), of


def test_typical_rows_are_one_a_cluster_and_in_its_middle():
    vectors, of = clusters()
    some = Candidates(vectors, np.arange(100), np.zeros(0, dtype=np.int64))
    chosen = choose("typical", some, 4, seed=0)
    assert of[chosen].tolist() == [0, 1, 2, 3]  # from the largest
    for row in chosen:
        mine = vectors[of == of[row]]
        from_centre = np.linalg.norm(mine - mine.mean(0), axis=1)
        assert np.linalg.norm(vectors[row] - mine.mean(0)) < np.median(from_centre)


def test_typical_rows_come_first_from_clusters_without_a_label():
    vectors, of = clusters(sizes=(40, 40, 40, 40))
    labelled = np.array([0, 40])
    some = Candidates(vectors, np.setdiff1d(np.arange(160), labelled), labelled)
    assert sorted(of[choose("typical", some, 2, seed=0)].tolist()) == [2, 3]


def test_diverse_margin_takes_one_row_of_each_group_of_uncertain_rows():
    vectors, of = clusters(sizes=(40, 40, 40, 80))
    probabilities = np.full((200, 2), 0.5)
    probabilities[of == 3] = [0.99, 0.01]
    some = Candidates(vectors, np.arange(200), np.zeros(0, dtype=np.int64), probabilities, vectors)
    assert sorted(of[choose("diverse-margin", some, 3, seed=0)].tolist()) == [0, 1, 2]


def test_random_rows_are_spread_evenly():
    some = candidates(rows=30, labelled=0)
    counts = np.bincount(np.concatenate([choose("random", some, 10, seed=seed) for seed in range(300)]), minlength=30)
    assert counts.min() > 60 and counts.max() < 140
