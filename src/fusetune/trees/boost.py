"""Gradient-boosted trees for a task, by LightGBM: its logits, in the form that the network's heads give.

| task | boosters | logits |
| --- | --- | --- |
| regression | one on the learned scale: squared, Huber or absolute loss, as the task's | (rows,) |
| two classes | one for the second class | (rows, 2): 0 and its log odds |
| more classes | one with a tree a class | (rows, classes) |
| levels in order | one for each "above level k" (Frank and Hall 2001) | (rows, levels - 1) |
| several labels | one a label | (rows, labels) |

Reference: Ke et al. 2017, "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 30.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusetune.config.fusion import StackConfig
from fusetune.tasks.base import Task
from fusetune.tasks.classification import ClassificationTask
from fusetune.tasks.multilabel import MultilabelTask
from fusetune.tasks.ordinal import OrdinalTask
from fusetune.tasks.regression import RegressionTask
from fusetune.trees.text import lightgbm, read_trees

PATIENCE = 50
"""A booster stops after so many rounds without a lower loss on validation rows, and keeps its best round."""
BLIND_ROUNDS = 100
"""The most rounds where there are no validation rows to stop by."""
MAX_TREES = 20_000
"""A task's boosters together make at most so many trees, so that hundreds of classes still end."""

LOSSES = {"mse": "regression", "huber": "huber", "mae": "regression_l1"}


@dataclass
class Rows:
    """Rows to learn from, or to stop by: `matrix` is (rows, features), `truth` as `Task.truth`, `weights` (rows,)."""

    matrix: np.ndarray
    truth: np.ndarray
    weights: np.ndarray


def outputs(task: Task) -> int | None:
    """How many boosters a task needs; None for a task that trees cannot be grown for."""
    if isinstance(task, RegressionTask | ClassificationTask):
        return 1
    if isinstance(task, OrdinalTask):
        return len(task.labels) - 1
    return len(task.labels) if isinstance(task, MultilabelTask) else None


def per_round(task: Task) -> int:
    """How many trees a booster makes a round: one, or one a class."""
    return len(task.labels) if isinstance(task, ClassificationTask) and len(task.labels) > 2 else 1


def grow(task: Task, train: Rows, val: Rows, categorical: list[int], settings: StackConfig, *, seed: int) -> list[Any]:
    """The boosters of a task.

    Args:
        task: one that `outputs` is not None for.
        train: labelled rows.
        val: labelled rows that choose the number of rounds; may be none.
        categorical: the features that are categories.
        settings: how large the trees are.
        seed: of LightGBM, which draws nothing with these settings.
    """
    library = lightgbm()
    grown = []
    num = outputs(task)
    assert num is not None
    rounds = max(1, min(settings.rounds, MAX_TREES // (num * per_round(task))))
    few = max(2, min(20, len(train.truth) // 20))
    shared = {
        "learning_rate": settings.rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": few,
        "min_data_per_group": few,
        "lambda_l2": 1.0,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": torch.get_num_threads(),
        "seed": seed % 2**31,
        "verbosity": -1,
    }
    for place in range(num):
        goal, labels = _goal(task, train.truth, place)
        _, val_labels = _goal(task, val.truth, place)
        options = {"categorical_feature": categorical, "free_raw_data": False}
        data = library.Dataset(train.matrix, labels, weight=train.weights, params={"verbosity": -1}, **options)
        watched, callbacks = [], []
        if len(val_labels):
            watched = [library.Dataset(val.matrix, val_labels, weight=val.weights, reference=data, **options)]
            callbacks = [library.early_stopping(PATIENCE, verbose=False)]
        most = rounds if watched else min(rounds, BLIND_ROUNDS)
        booster = library.train(shared | goal, data, most, valid_sets=watched, callbacks=callbacks)
        text = booster.model_to_string(num_iteration=booster.best_iteration if watched else -1)
        grown.append(read_trees(text, train.matrix.shape[1], per_round(task)))  # what a folder gives, and no more
    return grown


def _goal(task: Task, truth: np.ndarray, place: int) -> tuple[dict[str, Any], np.ndarray]:
    """What a booster minimises, and its labels."""
    if isinstance(task, RegressionTask):
        labels = task.transform.forward(truth) if len(truth) else truth
        return {"objective": LOSSES[task.loss_name], "alpha": task.delta}, labels
    if isinstance(task, OrdinalTask):
        return {"objective": "binary"}, (truth > place).astype(float)
    if isinstance(task, MultilabelTask):
        return {"objective": "binary"}, truth[:, place].astype(float)
    many = per_round(task)
    return ({"objective": "multiclass", "num_class": many} if many > 1 else {"objective": "binary"}), truth


def tree_scores(task: Task, boosters: list[Any], matrix: np.ndarray) -> np.ndarray:
    """The boosters' scores of (rows, features), as `Task.scores` gives them."""
    raw = [np.asarray(booster.predict(matrix, raw_score=True)) for booster in boosters]
    if isinstance(task, RegressionTask):
        logits = raw[0]
    elif isinstance(task, ClassificationTask):
        logits = raw[0] if raw[0].ndim == 2 else np.stack([np.zeros_like(raw[0]), raw[0]], axis=1)
    else:
        logits = np.stack(raw, axis=1)
    return task.scores(torch.from_numpy(np.ascontiguousarray(logits)))
