"""Baselines of recommendation, and figures of known and new users and items, by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from fusetune.evaluation.measure.interactions import ItemKnn
from fusetune.evaluation.measure.recommended import GROUPS, Chosen, baselines, by_vectors, sections
from fusetune.tasks.match import Search
from fusetune.tasks.recommendation import recommendation_tasks

TASK = recommendation_tasks(["user_id"], ["item_id"])["user → item"]


def built(right, seen, train, queries=None):
    """A search of queries among all items, whose users chose `seen` in train rows."""
    num = len(right)
    rows, items = np.arange(num), np.arange(np.shape(right)[1])
    right, seen = (sparse.csr_array(np.asarray(values, float)) for values in (right, seen))
    search = Search(rows, rows, items, items, sparse.csr_array(right > 0), seen=sparse.csr_array(seen > 0))
    return search, Chosen(sparse.csr_array(np.asarray(train, float)), seen)


@pytest.fixture(scope="module")
def random():
    """30 users of 40 items, the last ten of which nobody chose in train rows; five users are new."""
    rng = np.random.default_rng(0)
    train = (rng.random((25, 40)) < 0.2).astype(float)
    train[:, 30:] = 0
    seen = np.vstack([train, np.zeros((5, 40))])
    right = (rng.random((30, 40)) < 0.15) & (seen == 0)
    right[~right.any(1), 39] = True
    return built(right, seen, train)


def test_baselines_are_popularity_and_item_knn(random):
    search, chosen = random
    systems = {candidate.name: (candidate, scorer) for candidate, scorer in baselines(TASK, search, chosen, random)}
    assert list(systems) == ["most popular", "item-kNN"]
    counts = chosen.train.toarray().sum(0)
    candidate, scorer = systems["most popular"]
    assert np.array_equal(scorer(slice(2, 4)), [counts, counts])
    assert set(candidate.answers["top"][~chosen.known_users].tolist()) == {int(counts.argmax())}
    best = 0.0
    for neighbours in (10, 50, 200):
        for shrinkage in (0.0, 20.0):
            knn = ItemKnn(chosen.train, neighbours=neighbours, shrinkage=shrinkage)
            answers = TASK.by_similarity(lambda part, knn=knn: knn.scores(chosen.history[part]), search)
            best = max(best, answers["ndcg@10"].mean())
    assert systems["item-kNN"][0].answers["ndcg@10"].mean() == pytest.approx(best)


def test_what_is_popular_lately_is_a_rule_of_its_own(random):
    search, chosen = random
    recent = np.random.default_rng(1).random(chosen.train.shape[1])
    rules = baselines(TASK, search, replace(chosen, recent=recent), None)
    assert [candidate.name for candidate, _ in rules] == ["most popular", "popular lately", "item-kNN"]
    assert np.array_equal(rules[1][1](slice(0, 2)), [recent, recent])
    assert not np.array_equal(rules[0][0].answers["rank"], rules[1][0].answers["rank"])


def test_without_train_choices_nothing_but_equal_scores_is_left():
    search, chosen = built(np.eye(3), np.zeros((3, 3)), np.zeros((0, 3)))
    (system,) = baselines(TASK, search, chosen, None)
    assert system[0].answers["rank"].tolist() == [2, 2, 2]


def reference(scores, right, left_out):
    """nDCG@10 and recall@10 of one query, from a sorted list."""
    order = [item for item in np.argsort(-scores, kind="stable") if item not in left_out][:10]
    gained = sum(1 / np.log2(2 + rank) for rank, item in enumerate(order) if item in right)
    best = sum(1 / np.log2(2 + rank) for rank in range(min(10, len(right))))
    return gained / best, len(right & set(order)) / len(right)


def test_known_and_new_are_measured_apart(random):
    search, chosen = random
    rng = np.random.default_rng(1)
    vectors = {name: rng.normal(size=(40, 8)) for name in ("user", "item")}
    scorer = by_vectors(TASK, search, vectors)
    (candidate, _), *_ = baselines(TASK, search, chosen, None)
    candidate.name, candidate.answers = "tuned", TASK.by_similarity(scorer, search)
    groups, shown = sections(search, chosen, [(candidate, scorer)])
    scores = vectors["user"][:30] @ vectors["item"].T
    right, seen = search.right.toarray(), search.seen.toarray()
    known_items = chosen.train.toarray().sum(0) > 0
    expected = {name: [] for name in GROUPS}
    for query in range(30):
        own, out = set(np.flatnonzero(right[query])), set(np.flatnonzero(seen[query]))
        expected[GROUPS[0 if seen[query].any() else 1]].append(reference(scores[query], own, out))
        for name, kind in zip(GROUPS[2:], (known_items, ~known_items), strict=True):
            if part := {item for item in own if kind[item]}:
                expected[name].append(reference(scores[query], part, out | (own - part)))
    for name, values in expected.items():
        ndcg, recall = np.mean(values, 0)
        assert groups.figures[f"tuned, {name}, ndcg@10"] == pytest.approx(ndcg)
        assert groups.figures[f"tuned, {name}, mean_recall@10"] == pytest.approx(recall)
    heads = [head.name for head in groups.panels[0].heads]
    assert heads[1:] == [f"{name} ({len(values)})" for name, values in expected.items()]
    top = [[item for item in np.argsort(-scores[q], kind="stable") if not seen[q, item]][:10] for q in range(30)]
    assert shown.figures["tuned, coverage"] == len(np.unique(top)) / 40
    assert shown.figures["tuned, popularity"] == pytest.approx(chosen.train.toarray().sum(0)[top].mean())


def test_a_group_that_nobody_is_in_has_no_figure():
    seen = [[1, 0, 0, 0], [0, 1, 0, 0]]
    search, chosen = built([[0, 0, 1, 0], [0, 0, 0, 1]], seen, [*seen, [0, 0, 1, 1]])
    groups, _ = sections(search, chosen, baselines(TASK, search, chosen, None))
    assert [row[2] for row in groups.panels[0].rows] == [None, None], "no user is new"
    assert [row[4] for row in groups.panels[0].rows] == [None, None], "no item is new"
    assert all(isinstance(row[1], str) for row in groups.panels[0].rows)
