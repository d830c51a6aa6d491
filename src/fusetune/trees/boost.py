"""Gradient-boosted trees for a task, trained by LightGBM; they give logits in the form of the network's heads.

The number of boosters and their objectives are the task's (`fusetune.tasks.abilities.Boosted`):

| task | boosters | logits |
| --- | --- | --- |
| regression | one on the transformed scale, with the task's squared, Huber or absolute loss | (rows,) |
| two classes | one for the second class | (rows, 2): 0 and its log odds |
| more classes | one, with a tree per class | (rows, classes) |
| ordered levels | one for each "above level k" (Frank and Hall 2001) | (rows, levels - 1) |
| several labels | one per label | (rows, labels) |

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
from fusetune.trees.text import lightgbm, load_booster

PATIENCE = 50
"""Early stopping: rounds without a lower loss on validation rows; a booster is cut to its best round."""
BLIND_ROUNDS = 100
"""Maximum number of rounds without validation rows."""
MAX_TREES = 20_000
"""Maximum number of trees of all boosters of a task, which bounds the time for hundreds of classes."""


@dataclass
class Rows:
    """Labelled rows for training or early stopping.

    Attributes:
        matrix: (rows, features).
        truth: (rows, ...) from `TargetTask.truth`.
        weights: (rows,) row weights.
    """

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
    """Train the boosters of a task.

    Args:
        task: fitted.
        train: the train rows.
        val: the validation rows that choose the number of rounds; may be empty.
        categorical: indices of the features that are categories.
        settings: the trees' size and learning rate.
        seed: LightGBM's seed.
        late: called once a round; True stops training after that round.
    """
    library = lightgbm()
    boosters = []
    num, per_round = task.num_boosters, task.trees_per_round
    rounds = max(1, min(settings.rounds, MAX_TREES // (num * per_round)))
    min_rows = max(2, min(20, len(train.truth) // 20))
    shared = {
        "learning_rate": settings.rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": min_rows,
        "min_data_per_group": min_rows,
        "lambda_l2": 1.0,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": torch.get_num_threads(),
        "seed": seed % 2**31,
        "verbosity": -1,
    }
    for index in range(num):
        objective, labels = task.boosting(train.truth, index)
        _, val_labels = task.boosting(val.truth, index)
        options = {"categorical_feature": categorical, "free_raw_data": False}
        data = library.Dataset(train.matrix, labels, weight=train.weights, params={"verbosity": -1}, **options)
        valid_sets, callbacks = [], [_stop_when(late)]
        if len(val_labels):
            valid_sets = [library.Dataset(val.matrix, val_labels, weight=val.weights, reference=data, **options)]
            callbacks += [library.early_stopping(PATIENCE, verbose=False)]
        max_rounds = rounds if valid_sets else min(rounds, BLIND_ROUNDS)
        booster = library.train(shared | objective, data, max_rounds, valid_sets=valid_sets, callbacks=callbacks)
        text = booster.model_to_string(num_iteration=booster.best_iteration if valid_sets else -1)
        boosters.append(load_booster(text, train.matrix.shape[1], per_round))  # as it is after saving and loading
    return boosters


def _stop_when(late: Callable[[], bool]) -> Callable[[Any], None]:
    """Return a LightGBM callback that ends training, at the best round so far, when `late` returns True."""
    losses: list[float] = []

    def stop(env: Any) -> None:
        losses.extend(result[2] for result in env.evaluation_result_list[:1])  # (rows, metric, value, ...)
        if late():
            best = int(np.argmin(losses)) if losses else env.iteration
            raise lightgbm().callback.EarlyStopException(best, env.evaluation_result_list)

    return stop


def tree_scores(task: Boosted, boosters: list[Any], matrix: np.ndarray) -> np.ndarray:
    """Return the boosters' answers for (rows, features), in the form of `TargetTask.answers`."""
    raw = [np.asarray(booster.predict(matrix, raw_score=True)) for booster in boosters]
    return task.answers(torch.from_numpy(np.ascontiguousarray(task.boosted_logits(raw))))
