"""Ranks and figures of retrieval: by pytrec_eval, ties by hand, and metrics that are asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from fusetune.errors import ConfigError
from fusetune.tasks.match import Search, Side
from fusetune.tasks.ranking import Hits, parse, rank_hits
from fusetune.tasks.retrieval import FIGURES, RetrievalTask

TASK = RetrievalTask(Side("query", ("q",)), Side("answer", ("a",)))
TREC = {"ndcg": "ndcg_cut", "map": "map_cut", "precision": "P", "mean_recall": "recall", "recall": "success"}


def grades_of(rng, queries, answers, share=0.2):
    """Return grades 1 to 3 of about a share of the answers, one or more a query."""
    grades = rng.integers(1, 4, (queries, answers)) * (rng.random((queries, answers)) < share)
    grades[np.arange(queries), rng.integers(0, answers, queries)] = rng.integers(1, 4, queries)
    return sparse.csr_array(grades.astype(float))


def search_of(grades):
    queries, answers = (np.arange(size) for size in grades.shape)
    return Search(queries, queries, answers, answers, sparse.csr_array(grades > 0), grades)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_metrics_are_those_of_trec_eval(share):
    oracle = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(0)
    similarity, grades = rng.random((50, 30)), grades_of(rng, 50, 30, share)
    task = RetrievalTask(TASK.query, TASK.answer)
    asked = [f"{kind}@{k}" for kind in TREC for k in (1, 3, 10, 20)]
    for name in asked:
        task.measure_by(name, np.arange(9))
    answers = task.by_similarity(lambda part: similarity[part], search_of(grades))
    metrics = task.evaluate(answers, np.arange(50))
    qrels = {f"q{i}": {f"a{j}": int(g) for j, g in enumerate(row)} for i, row in enumerate(grades.toarray())}
    run = {f"q{i}": {f"a{j}": float(s) for j, s in enumerate(row)} for i, row in enumerate(similarity)}
    measures = {f"{TREC[kind]}.1,3,10,20" for kind in TREC} | {"recip_rank"}
    by_query = list(oracle.RelevanceEvaluator(qrels, measures).evaluate(run).values())
    for name in asked:
        kind, k = parse(name)
        assert metrics[name] == pytest.approx(np.mean([row[f"{TREC[kind]}_{k}"] for row in by_query])), name
    assert metrics["mrr"] == pytest.approx(np.mean([row["recip_rank"] for row in by_query]))
    firsts = np.array([row["recip_rank"] for row in by_query])
    assert metrics["mrr@10"] == pytest.approx(np.mean(firsts * (firsts > 0.0999)))


def test_graded_gains_are_those_of_scikit_learn():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(1)
    similarity, grades = rng.random((40, 25)), grades_of(rng, 40, 25)
    figures = rank_hits(similarity, grades).figures(["ndcg@5", "ndcg@25"])
    for k in (5, 25):
        assert figures[f"ndcg@{k}"].mean() == pytest.approx(ndcg_score(grades.toarray(), similarity, k=k))


def test_the_best_and_the_worst_order():
    grades = sparse.csr_array(np.array([[3.0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]))
    best, worst = (rank_hits(sign * grades.toarray(), grades).figures(FIGURES) for sign in (1, -1))
    assert {name: float(value[0]) for name, value in best.items()} == {
        "ndcg@10": 1.0,
        "map@10": 1.0,
        "mrr@10": 1.0,
        "precision@10": 0.2,
        "mean_recall@10": 1.0,
    }
    assert all(value[0] == 0 for value in worst.values())


def test_ties_rank_in_the_middle():
    grades = sparse.csr_array(np.array([[0.0, 2, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]))
    hits = rank_hits(np.zeros((2, 6)), grades)
    assert hits.rank.tolist() == [3, 4, 3.5] and hits.gain.tolist() == [1.5, 1.5, 1]
    near = np.array([[0.5, 0.9, 0.9, 0.1, 0.5, 0.5], [0.1, 0.2, 0.7, 0.7, 0.7, 0.9]])
    assert rank_hits(near, grades).rank.tolist() == [1.5, 4, 3]


def test_one_right_answer_ranks_as_among_several():
    rng = np.random.default_rng(2)
    similarity = np.round(rng.random((30, 40)), 1)
    single = sparse.csr_array(np.eye(30, 40))
    alone = rank_hits(similarity, single)
    both = sparse.csr_array(np.vstack([np.eye(30, 40), np.ones((1, 40))]))  # takes the general path for one query
    beside = rank_hits(np.vstack([similarity, similarity[:1]]), both)
    assert alone.rank.tolist() == beside.rank[:30].tolist() == alone.first.tolist()


def test_an_order_of_queries_and_answers_changes_nothing():
    rng = np.random.default_rng(3)
    similarity, grades = np.round(rng.random((20, 15)), 1), grades_of(rng, 20, 15)
    rows, columns = rng.permutation(20), rng.permutation(15)
    moved = sparse.csr_array(grades.toarray()[rows][:, columns])
    first, second = (
        rank_hits(*both).figures(FIGURES) for both in ((similarity, grades), (similarity[rows][:, columns], moved))
    )
    for name in FIGURES:
        assert np.allclose(first[name][rows], second[name]), name


def test_a_metric_with_another_cutoff_can_be_asked_for():
    task = RetrievalTask(TASK.query, TASK.answer)
    task.measure_by("ndcg@3", np.arange(5))
    assert task.main.name == "ndcg@3" and task.asked == ("ndcg@3",)
    task.measure_by("recall@20", np.arange(5))
    task.measure_by("recall@10", np.arange(5))
    answers = task.constant(np.arange(5), 5)
    assert {"ndcg@3", "recall@20"} <= task.evaluate(answers, np.arange(5)).keys()
    assert "first 3" in task.meanings["ndcg@3"]
    again = RetrievalTask.from_state("", task.state())
    assert again.dtype == task.dtype and again.evaluate(answers, np.arange(5)) == task.evaluate(answers, np.arange(5))
    for name in ("ndcg@0", "ndcg", "auc@3", "recall@-1"):
        with pytest.raises(ConfigError, match="recall@10"):
            task.measure_by(name, np.arange(5))


def test_a_cutoff_above_the_size_of_the_catalogue_is_told():
    few, many = (search_of(sparse.csr_array(np.eye(size))) for size in (7, 12))
    for search, told in ((few, "recall@10"), (many, "")):
        answers = TASK.by_similarity(lambda part, search=search: np.eye(len(search.rows))[part], search)
        warnings = TASK.warnings(answers, search.ids)
        assert bool(warnings) == bool(told) and told in "".join(warnings)


def test_hits_of_no_query():
    nothing = Hits(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), 0)
    assert all(len(values) == 0 for values in nothing.figures(FIGURES).values())
