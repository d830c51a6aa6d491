"""From a model's logits to a task's answers and loss, for tasks that answer a row or its tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusetune.data.examples import PIECE, Examples
from fusetune.tasks.base import TargetTask


def answers_of(examples: Examples, task: TargetTask, logits: Tensor, rows: np.ndarray) -> np.ndarray:
    """Return a task's answers for some rows.

    Args:
        examples: prepared rows.
        task: fitted; it need not be one of the examples' own.
        logits: (rows, ...) on any device.
        rows: (rows,) positions in the table.
    """
    if task.reads is None:
        return task.answers(logits)
    parts = []
    for start in range(0, max(len(rows), 1), PIECE):
        some = slice(start, start + PIECE)
        tokens = examples.tokens(task.reads, rows[some])
        parts.append(task.answers(_of_length(logits[some], task.num_shared + tokens.real.shape[1]), tokens))
    return np.concatenate(parts)


def loss_of(examples: Examples, name: str, logits: Tensor, rows: np.ndarray) -> float:
    """Return a task's mean loss over labelled rows.

    Args:
        examples: prepared rows with the task.
        name: the task's name.
        logits: (rows, ...) on the CPU.
        rows: (rows,) positions in the table.
    """
    task, weights, target = examples.tasks[name], torch.from_numpy(examples.weights[rows]), examples.encode(name, rows)
    if task.reads is not None:
        logits = _of_length(logits, task.num_shared + target.values.shape[1])
    return float(task.loss(logits, target, weights))


def _of_length(logits: Tensor, num: int) -> Tensor:
    """Return (rows, tokens, logits) cut, or padded with zeros, to `num` tokens."""
    more = num - logits.shape[1]
    return logits[:, :num] if more <= 0 else F.pad(logits, (0, 0, 0, more))
