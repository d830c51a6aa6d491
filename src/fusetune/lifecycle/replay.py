"""The old rows that a model sees again while it is tuned on new ones."""

from __future__ import annotations

import numpy as np

from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.tuned import read_examples
from fusetune.inference.scores import predict_scores
from fusetune.tasks.abilities import Boosted, Labelled


def replayed(bundle: Bundle, table: Table, share: float, *, seed: int) -> np.ndarray | None:
    """Choose old train rows by class and difficulty.

    Of each class, or of all rows of a target without classes, a share is taken: half of them those with the largest
    loss under the old model, half at random. A class has at least one row: a label that no train row has is not known.

    Args:
        bundle: the old model.
        table: its train rows.
        share: of the rows, in [0, 1].
        seed: of the random half.

    Returns:
        Positions in the table, (rows,) int64 and ascending; None for all rows.
    """
    if share >= 1:
        return None
    (key, task), *_ = bundle.targets.items()
    examples = read_examples(bundle, table, targets=True)
    examples.check_targets()
    rows = examples.labelled(key)
    truth = examples.truth(key, rows)
    losses = np.zeros(len(rows))
    if isinstance(task, Boosted):
        scores = predict_scores(bundle.model, bundle.targets, examples, stack=bundle.stack)[key]
        losses = task.row_losses(scores[examples.positions(rows)], truth)
    classes = truth if isinstance(task, Labelled) and truth.ndim == 1 else np.zeros(len(rows), dtype=np.int64)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for value in np.unique(classes):
        own = np.flatnonzero(classes == value)
        num = max(round(share * len(own)), 1 if isinstance(task, Labelled) else 0)
        hard = own[np.argsort(-losses[own], kind="stable")][: num // 2]
        rest = np.setdiff1d(own, hard)
        chosen += [*hard, *rng.choice(rest, num - len(hard), replace=False)]
    return np.sort(rows[chosen])
