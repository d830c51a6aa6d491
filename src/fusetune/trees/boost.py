"""Gradient-boosted trees for a task, by LightGBM: its logits, in the form that the network's heads give.

How many boosters there are, and what each learns, is the task's (`fusetune.tasks.abilities.Boosted`):

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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusetune.config.fusion import StackConfig
from fusetune.tasks.abilities import Boosted
from fusetune.trees.text import lightgbm, read_trees

PATIENCE = 50
"""A booster stops after so many rounds without a lower loss on validation rows, and keeps its best round."""
BLIND_ROUNDS = 100
"""The most rounds where there are no validation rows to stop by."""
MAX_TREES = 20_000
"""A task's boosters together make at most so many trees, so that hundreds of classes still end."""


@dataclass
class Rows:
    """Rows to learn from or to stop by: `matrix` (rows, features), `truth` as `TargetTask.truth`, `weights` (rows,)."""

    matrix: np.ndarray
    truth: np.ndarray
    weights: np.ndarray


def grow(
    task: Boosted,
    train: Rows,
    val: Rows,
    categorical: list[int],
    settings: StackConfig,
    *,
    seed: int,
    late: Callable[[], bool] = lambda: False,
) -> list[Any]:
    """The boosters of a task.

    Args:
        task: fitted.
        train: labelled rows.
        val: labelled rows that choose the number of rounds; may be none.
        categorical: the features that are categories.
        settings: how large the trees are.
        seed: of LightGBM, which draws nothing with these settings.
        late: whether to stop after the present round; asked once a round.
    """
    library = lightgbm()
    grown = []
    num, per_round = task.num_boosters, task.trees_per_round
    rounds = max(1, min(settings.rounds, MAX_TREES // (num * per_round)))
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
        goal, labels = task.boosting(train.truth, place)
        _, val_labels = task.boosting(val.truth, place)
        options = {"categorical_feature": categorical, "free_raw_data": False}
        data = library.Dataset(train.matrix, labels, weight=train.weights, params={"verbosity": -1}, **options)
        watched, callbacks = [], [_stop_when(late)]
        if len(val_labels):
            watched = [library.Dataset(val.matrix, val_labels, weight=val.weights, reference=data, **options)]
            callbacks += [library.early_stopping(PATIENCE, verbose=False)]
        most = rounds if watched else min(rounds, BLIND_ROUNDS)
        booster = library.train(shared | goal, data, most, valid_sets=watched, callbacks=callbacks)
        text = booster.model_to_string(num_iteration=booster.best_iteration if watched else -1)
        grown.append(read_trees(text, train.matrix.shape[1], per_round))  # what a folder gives, and no more
    return grown


def _stop_when(late: Callable[[], bool]) -> Callable[[Any], None]:
    """Return a callback of LightGBM's that ends a booster's training at its best round so far."""
    losses: list[float] = []

    def stop(env: Any) -> None:
        losses.extend(result[2] for result in env.evaluation_result_list[:1])  # (rows, metric, value, ...)
        if late():
            best = int(np.argmin(losses)) if losses else env.iteration
            raise lightgbm().callback.EarlyStopException(best, env.evaluation_result_list)

    return stop


def tree_scores(task: Boosted, boosters: list[Any], matrix: np.ndarray) -> np.ndarray:
    """The boosters' answers for (rows, features), as `TargetTask.answers` gives them."""
    raw = [np.asarray(booster.predict(matrix, raw_score=True)) for booster in boosters]
    return task.answers(torch.from_numpy(np.ascontiguousarray(task.boosted_logits(raw))))
