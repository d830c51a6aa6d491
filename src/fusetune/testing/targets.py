"""Target columns of several kinds with features that predict them, for tests of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.errors import UserError
from fusetune.tasks.base import TargetTask

ROWS = 120
DIM = 8
MakeTask = Callable[[str], TargetTask]
"""`make(target)`: the class, or a `functools.partial` of it."""


def example_targets(rows: int = ROWS) -> dict[str, list[Any]]:
    """Return target columns of several kinds, learnable from `example_features`.

    Args:
        rows: number of cells of each column.
    """
    hidden = example_features(rows)[:, :3].sum(1)
    ranks = hidden.argsort().argsort()
    thirds = ranks * 3 // rows
    return {
        "two words": ["yes" if rank * 2 >= rows else "no" for rank in ranks],
        "three words": [("NA", "null", "00501")[third] for third in thirds],
        "levels": [str(third + 1) for third in thirds],
        "label sets": [("a|b", "[]", "b|c|d")[third] for third in thirds],
        "lists": [(["a", "b"], [], ["b", "c"])[third] for third in thirds],
        "numbers": [f"{value:.3f}" for value in hidden],
        "skewed numbers": [math.exp(2 * float(value)) for value in hidden],
    }


def example_features(rows: int = ROWS, *, seed: int = 0) -> np.ndarray:
    """Return (rows, 8) float32 features that `example_targets` depend on."""
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def usable_targets(make: MakeTask) -> dict[str, list[Any]]:
    """Return the `example_targets` that a task can be fitted on and whose labels repeat.

    Args:
        make: `make(target)` builds a task.
    """
    usable = {}
    for name, cells in example_targets().items():
        try:
            task = fitted(make, cells)
        except UserError:
            continue
        if len(task.labels) * 4 <= len(cells):  # numbers read as labels have too few rows a label
            usable[name] = cells
    return usable


def fitted(make: MakeTask, cells: Sequence[Any]) -> TargetTask:
    """Return a task for the column "target", fitted on cells."""
    task = make("target")
    task.fit(cells)
    return task


def head_logits(task: TargetTask, *, seed: int = 0, rows: int = ROWS) -> Tensor:
    """Return the logits of an untrained head for `example_features`, (rows, ...).

    Args:
        task: fitted.
        seed: of the head's weights.
        rows: number of rows.
    """
    torch.manual_seed(seed)
    logits: Tensor = task.build_head(DIM)(torch.from_numpy(example_features(rows)))
    return logits
