"""Retrieval: ranks by hand, ties, equal cells and groups, and the field's metrics by another library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalMRR, RetrievalRecall

from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.tasks.match import Side
from fusetune.tasks.metrics import retrieval, weighted_median
from fusetune.tasks.panels.kinds import Evidence
from fusetune.tasks.retrieval import RetrievalTask, alignment_tasks, pair_tasks

IMAGE, TEXT = Side("image", ("photo",)), Side("text", ("note",))
THERE, BACK = RetrievalTask(IMAGE, TEXT), RetrievalTask(TEXT, IMAGE)


def unit(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def search_of(task, photo, note, groups=None):
    photo, note = np.asarray(photo), np.asarray(note)
    return task.search({"photo": photo, "note": note}, ids=np.arange(len(photo)) + 100, groups=groups)


def ranks(task, search, vectors):
    return task.answers(vectors, search)["rank"].tolist()


def test_sides_are_modalities_or_else_columns():
    tasks = alignment_tasks({"a": "text", "c": "image", "b": "text"})
    assert list(tasks) == ["text → image", "image → text"]
    assert tasks["text → image"].query == Side("text", ("a", "b"))
    assert tasks["text → image"].columns == ("a", "b", "c")
    assert list(alignment_tasks({"a": "text", "b": "text"})) == ["a → b", "b → a"]


def test_every_direction_asks_among_distinct_answers():
    photo, note = [0, 1, 2, -1, 3], [0, 1, 1, 2, -1]
    there, back = (search_of(task, photo, note) for task in (THERE, BACK))
    assert there.rows.tolist() == back.rows.tolist() == [0, 1, 2]  # rows 3 and 4 lack a side
    assert there.ids.tolist() == [100, 101, 102]
    assert there.answer_ids.tolist() == [100, 101] and back.answer_ids.tolist() == [100, 101, 102]
    # Rows 1 and 2 ask with one note: either photo is right.
    assert back.right.toarray().sum(1).tolist() == [1, 2, 2]


def test_rows_of_a_group_are_right_answers_of_each_other():
    alone = search_of(THERE, range(4), range(4))
    grouped = search_of(THERE, range(4), range(4), np.array([7, 7, -1, -1]))
    assert alone.right.toarray().sum(1).tolist() == [1, 1, 1, 1]
    assert grouped.right.toarray().sum(1).tolist() == [2, 2, 1, 1]
    assert not grouped.right[2, 3]  # rows of no group are no group together


def test_nobody_can_ask_where_no_two_rows_have_both_sides():
    assert search_of(THERE, [0, -1, 1], [0, 1, -1]) is None


def test_ranks_by_hand():
    search = search_of(THERE, range(3), range(3))
    vectors = {"photo": unit([[1, 0], [1, 0.9], [1, 0.2]]), "note": unit([[1, 0], [0, 1], [1, 0.1]])}
    answers = THERE.answers(vectors, search)
    assert answers["rank"].tolist() == [1, 3, 1]
    assert answers["top"].tolist() == [100, 102, 102] and set(answers["catalogue"]) == {3}


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    search = search_of(THERE, rng.integers(0, 20, 50), rng.integers(0, 20, 50))
    vectors = {name: unit(rng.normal(size=(50, 4))) for name in ("photo", "note")}
    whole = THERE.answers(vectors, search)
    monkeypatch.setattr("fusetune.tasks.retrieval.CHUNK", 7)
    assert THERE.answers(vectors, search).tolist() == whole.tolist()


def test_equal_vectors_rank_in_the_middle_not_first():
    search = search_of(THERE, range(5), range(5))
    same = np.tile(unit([[1.0, 2.0]]), (5, 1))
    assert ranks(THERE, search, {"photo": same, "note": same}) == [3.0] * 5
    assert THERE.constant(THERE.truth(search), 5)["rank"].tolist() == [3.0] * 5


def test_other_right_answers_do_not_push_one_back():
    search = search_of(THERE, [0, 0, 1], range(3))
    vectors = {"photo": unit([[1, 0], [1, 0], [0, 1]]), "note": unit([[1, 0], [1, 0.5], [0, 1]])}
    assert ranks(THERE, search, vectors) == [1, 1, 1]  # row 1's own note is second, but row 0's is right, too


def test_a_side_is_the_mean_of_its_present_columns():
    vectors = {"a": unit([[1, 0], [1, 0], [0, 0]]), "b": unit([[0, 1], [0, 0], [0, 0]])}
    assert np.allclose(Side("text", ("a", "b")).vectors(vectors), [[0.5**0.5, 0.5**0.5], [1, 0], [0, 0]])


def test_metrics_are_those_of_torchmetrics():
    rng = np.random.default_rng(0)
    num = 40
    search = search_of(THERE, range(num), range(num))
    vectors = {name: unit(rng.normal(size=(num, 4))) for name in ("photo", "note")}
    vectors["note"] = unit(vectors["note"] + vectors["photo"])
    found = THERE.evaluate(THERE.answers(vectors, search), THERE.truth(search))
    near = torch.from_numpy(vectors["photo"] @ vectors["note"].T)
    asks = torch.arange(num).repeat_interleave(num)
    target = torch.eye(num, dtype=torch.bool).flatten()
    assert found["mrr"] == pytest.approx(float(RetrievalMRR()(near.flatten(), target, asks)))
    for k in (1, 5, 10):
        oracle = RetrievalRecall(top_k=k)(near.flatten(), target, asks)
        assert found[f"recall@{k}"] == pytest.approx(float(oracle))


def test_weights_and_no_query():
    assert retrieval(np.array([1.0, 4.0]), np.array([3.0, 1.0]))["mrr"] == pytest.approx((3 + 0.25) / 4)
    assert all(np.isnan(value) for value in retrieval(np.empty(0)).values())
    assert all(np.isnan(value) for value in retrieval(np.ones(3), np.zeros(3)).values())


def test_the_weighted_median_is_the_median_of_repeated_values():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, weights = rng.integers(1, 9, 11).astype(float), rng.integers(0, 4, 11)
        if weights.sum():
            assert weighted_median(values, weights) == np.median(np.repeat(values, weights))
    assert np.isnan(weighted_median(np.ones(2), np.zeros(2)))


def test_judged_against_chance_with_intervals_and_panels():
    rng = np.random.default_rng(1)
    search = search_of(THERE, range(60), range(60))
    good = {"photo": unit(np.eye(60)), "note": unit(np.eye(60) + 0.05 * rng.normal(size=(60, 60)))}
    good["note"][2] = good["note"][7]
    chance = {name: unit(rng.normal(size=(60, 8))) for name in good}
    systems = [
        Candidate("random order", "baseline", "by chance", THERE.answers(chance, search)),
        Candidate("tuned", "after", "tuned", THERE.answers(good, search)),
    ]
    rows = EvaluatedRows(THERE.truth(search), search.ids, slices={"half": ["a"] * 30 + ["b"] * 30})
    judged = judge(THERE, systems, rows, num=200, num_errors=3)
    assert judged.name == "retrieval" and judged.target == "image → text" and judged.rows == 60
    before, after = judged.systems
    assert after.metrics["mrr"].value > 0.9 > before.metrics["mrr"].value
    assert before.difference["mrr"].low > 0 and after.difference == {}
    assert [error.row for error in judged.errors] == [102, 107] and "top answer" in judged.errors[0].prediction
    assert {part.value for part in judged.slices} == {"a", "b"}
    (histogram,) = judged.sections[0].panels
    assert sum(histogram.counts) == 60 and histogram.counts[0] >= 58


def test_panels_of_the_smallest_catalogue():
    search = search_of(THERE, range(2), range(2))
    answers = THERE.answers({"photo": np.eye(2), "note": np.eye(2)}, search)
    (section,) = THERE.panels(Evidence(answers, THERE.truth(search)))
    assert section.panels[0].counts == [2, 0]


def test_the_state_is_json():
    again = RetrievalTask.from_state("", json.loads(json.dumps(THERE.state())))
    assert (again.target, again.query, again.answer) == (THERE.target, IMAGE, TEXT)


def test_the_catalogue_of_pairs_holds_answers_that_no_row_asks_for():
    (there, back) = pair_tasks(["q"], ["d"]).values()
    codes = {"q": np.array([0, 0, 1, -1, -1, 2]), "d": np.array([0, 1, 2, 3, 2, -1])}
    search, other = (task.search(codes, ids=np.arange(6)) for task in (there, back))
    assert search.rows.tolist() == [0, 1, 2] and search.answer_ids.tolist() == [0, 1, 2, 3]
    assert search.right.toarray().astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]
    assert other.rows.tolist() == [0, 1, 2] and other.answer_ids.tolist() == [0, 2, 5]
    vectors = {"query": np.eye(6, 4), "document": unit(np.eye(6, 4) + 1e-3)}
    assert there.answers(vectors, search)["catalogue"].tolist() == [4, 4, 4]
    assert RetrievalTask.from_state("", there.state()).sides == {"query": ("q",), "document": ("d",)}
