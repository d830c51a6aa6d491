"""The old rows that a model sees again while it is tuned on new ones."""

from __future__ import annotations

import numpy as np

from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.tuned import read_examples
from fusetune.inference.scores import predict_scores
from fusetune.tasks.abilities import Boosted, Labelled


def replayed(bundle: Bundle, table: Table, share: float, *, seed: int) -> np.ndarray | None:
    """Choose old train rows by class and difficulty.

    Of each class of the first target, or of all rows if it has no classes, a share is chosen: half of them those with
    the largest loss under the old model, half at random. A class of any target has at least one row: a label that no
    train row has is not known.

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
    examples = read_examples(bundle, table, targets=True)
    examples.check_targets()
    key = next(iter(bundle.targets))
    rows = examples.labelled(key)
    classes, losses = _classes(examples, key, rows), _losses(bundle, examples, key, rows)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for value in np.unique(classes):
        own = np.flatnonzero(classes == value)
        num = max(round(share * len(own)), 1 if value >= 0 else 0)
        hard = own[np.argsort(-losses[own], kind="stable")][: num // 2]
        rest = np.setdiff1d(own, hard)
        chosen += [*rows[hard], *rows[rng.choice(rest, num - len(hard), replace=False)]]
    for key in bundle.targets:
        rows = examples.labelled(key)
        classes = _classes(examples, key, rows)
        lost = np.setdiff1d(classes[classes >= 0], classes[np.isin(rows, chosen)])
        chosen += [rng.choice(rows[classes == value]) for value in lost]
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _classes(examples: Examples, key: str, rows: np.ndarray) -> np.ndarray:
    """Return the class index of each row's target, (rows,) int64; -1 for a target without classes."""
    truth = examples.truth(key, rows)
    has_classes = isinstance(examples.tasks[key], Labelled) and truth.ndim == 1
    return truth if has_classes else np.full(len(rows), -1)


def _losses(bundle: Bundle, examples: Examples, key: str, rows: np.ndarray) -> np.ndarray:
    """Return the losses of rows under a model, (rows,); zeros for a task without losses by row."""
    task = bundle.targets[key]
    if not isinstance(task, Boosted):
        return np.zeros(len(rows))
    scores = predict_scores(bundle.model, bundle.targets, examples, stack=bundle.stack)[key]
    return task.row_losses(scores[examples.positions(rows)], examples.truth(key, rows))
