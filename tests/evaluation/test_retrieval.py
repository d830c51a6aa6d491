"""Retrieval: ranks by hand, ties, equal cells and groups, and the field's metrics by another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalMRR, RetrievalRecall

from fusetune.evaluation.measure.retrieval import (
    Side,
    first_answers,
    judge_search,
    mean_score,
    metrics,
    ranks,
    searches,
    side_vectors,
    sides,
)
from fusetune.evaluation.results import SystemResult

IMAGE, TEXT = Side("image", ("photo",)), Side("text", ("note",))


def unit(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def test_sides_are_sorts_of_signal_or_else_columns():
    assert sides({"text": ["a", "b"], "image": ["c"]}) == [Side("text", ("a", "b")), Side("image", ("c",))]
    assert sides({"text": ["a", "b"]}) == [Side("a", ("a",)), Side("b", ("b",))]


def test_every_direction_asks_among_distinct_answers():
    codes = {"photo": np.array([0, 1, 2, -1, 3]), "note": np.array([0, 1, 1, 2, -1])}
    there, back = searches([IMAGE, TEXT], codes)
    assert [there.name, back.name] == ["image → text", "text → image"]
    assert there.rows.tolist() == back.rows.tolist() == [0, 1, 2]  # rows 3 and 4 lack a side
    assert len(there.answer_rows) == 2 and len(back.answer_rows) == 3
    # Rows 1 and 2 ask with one note: either photo is right.
    assert back.right[1].sum() == back.right[2].sum() == 2 and back.right[0].sum() == 1


def test_rows_of_a_group_are_right_answers_of_each_other():
    codes = {"photo": np.arange(4), "note": np.arange(4)}
    alone = searches([IMAGE, TEXT], codes)[0]
    grouped = searches([IMAGE, TEXT], codes, np.array([7, 7, -1, -1]))[0]
    assert alone.right.sum(1).tolist() == [1, 1, 1, 1]
    assert grouped.right.sum(1).tolist() == [2, 2, 1, 1]
    assert not grouped.right[2, 3]  # rows of no group are no group together


def test_nobody_can_ask_where_no_two_rows_have_both_sides():
    assert searches([IMAGE, TEXT], {"photo": np.array([0, -1, 1]), "note": np.array([0, 1, -1])}) == []


def test_ranks_by_hand():
    codes = {"photo": np.arange(3), "note": np.arange(3)}
    search = searches([IMAGE, TEXT], codes)[0]
    vectors = {"photo": unit([[1, 0], [1, 0.9], [1, 0.2]]), "note": unit([[1, 0], [0, 1], [1, 0.1]])}
    assert ranks(search, vectors).tolist() == [1, 3, 1]
    assert first_answers(search, vectors, np.arange(3)).tolist() == [0, 2, 2]


def test_equal_vectors_rank_in_the_middle_not_first():
    search = searches([IMAGE, TEXT], {"photo": np.arange(5), "note": np.arange(5)})[0]
    same = np.tile(unit([[1.0, 2.0]]), (5, 1))
    assert ranks(search, {"photo": same, "note": same}).tolist() == [3.0] * 5


def test_other_right_answers_do_not_push_one_back():
    search = searches([IMAGE, TEXT], {"photo": np.array([0, 0, 1]), "note": np.arange(3)})[0]
    vectors = {"photo": unit([[1, 0], [1, 0], [0, 1]]), "note": unit([[1, 0], [1, 0.5], [0, 1]])}
    assert ranks(search, vectors).tolist() == [1, 1, 1]  # row 1's own note is second, but row 0's is right, too


def test_a_side_is_the_mean_of_its_present_columns():
    both = Side("text", ("a", "b"))
    vectors = {"a": unit([[1, 0], [1, 0], [0, 0]]), "b": unit([[0, 1], [0, 0], [0, 0]])}
    assert np.allclose(side_vectors(both, vectors), [[0.5**0.5, 0.5**0.5], [1, 0], [0, 0]])


def test_metrics_are_those_of_torchmetrics():
    rng = np.random.default_rng(0)
    num = 40
    search = searches([IMAGE, TEXT], {"photo": np.arange(num), "note": np.arange(num)})[0]
    vectors = {name: unit(rng.normal(size=(num, 4))) for name in ("photo", "note")}
    vectors["note"] = unit(vectors["note"] + vectors["photo"])
    found = metrics(ranks(search, vectors), np.empty(0))
    near = torch.from_numpy(vectors["photo"] @ vectors["note"].T)
    asks = torch.arange(num).repeat_interleave(num)
    target = torch.eye(num, dtype=torch.bool).flatten()
    assert found["mrr"] == pytest.approx(float(RetrievalMRR()(near.flatten(), target, asks)))
    for k in (1, 5, 10):
        oracle = RetrievalRecall(top_k=k)(near.flatten(), target, asks)
        assert found[f"recall@{k}"] == pytest.approx(float(oracle))
    assert mean_score([search])(vectors) == found["mrr"]


def test_weights_and_no_query():
    assert metrics(np.array([1.0, 4.0]), np.empty(0), np.array([3.0, 1.0]))["mrr"] == pytest.approx((3 + 0.25) / 4)
    assert all(np.isnan(value) for value in metrics(np.empty(0), np.empty(0)).values())


def test_judged_against_chance_with_intervals():
    rng = np.random.default_rng(1)
    search = searches([IMAGE, TEXT], {"photo": np.arange(60), "note": np.arange(60)})[0]
    good = {"photo": unit(np.eye(60)), "note": unit(np.eye(60) + 0.05 * rng.normal(size=(60, 60)))}
    chance = {name: unit(rng.normal(size=(60, 8))) for name in good}
    systems = [
        (SystemResult("random order", "baseline", "by chance", {}), ranks(search, chance)),
        (SystemResult("tuned", "after", "tuned", {}), ranks(search, good)),
    ]
    judged = judge_search(search, systems, np.arange(60), worst=[(2, 7, [])], num=200)
    assert judged.name == "retrieval" and judged.target == "image → text" and judged.rows == 60
    before, after = judged.systems
    assert after.metrics["mrr"].value > 0.9 > before.metrics["mrr"].value
    assert before.difference["mrr"].low > 0 and after.difference == {}
    assert judged.errors[0].row == 2 and "row 7" in judged.errors[0].prediction
