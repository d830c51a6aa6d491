"""The log-likelihoods of rows' targets by a language model, without gradients."""

from __future__ import annotations

import numpy as np
import torch

from fusetune.data.examples import Examples
from fusetune.inference.memory import retain_freed_memory, trim_memory
from fusetune.inference.predict import evaluating, model_device
from fusetune.models.generate import Generate

ROWS = 32
"""Rows a batch."""


def answer_scores(model: Generate, name: str, examples: Examples, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-likelihood of each row's answers and their numbers of tokens, (rows, answers) float64 each.

    A target is one answer, or two of pairs: the chosen and the rejected one.

    Args:
        model: in any mode.
        name: the task's name in the model.
        examples: prepared rows.
        rows: positions in the table, labelled.
    """
    order = np.argsort(-examples.sizes(rows), kind="stable")
    parts: list[torch.Tensor] = []
    with evaluating(model), retain_freed_memory():
        for start in range(0, len(order), ROWS):
            batch = examples.batch(rows[order[start : start + ROWS]]).to(model_device(model))
            scores, values = model(batch).logits[name][..., 0].sum(-1).double(), batch.targets[name].values
            parts.append(torch.stack([scores, (values >= 0).sum(-1)], -1).view(len(scores), -1, 2).cpu())
            trim_memory()
    if not parts:
        return np.zeros((0, 1)), np.zeros((0, 1))
    sums = np.concatenate([part.numpy() for part in parts])
    sums = sums[np.argsort(order, kind="stable")]
    return sums[..., 0], sums[..., 1]


def token_losses(model: Generate, name: str, examples: Examples, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's −log-likelihood of its target and its number of tokens, (rows,) float64 each.

    Of pairs of answers it is that of the chosen ones. For the arguments see `answer_scores`.
    """
    scores, sizes = answer_scores(model, name, examples, rows)
    return -scores[:, 0], sizes[:, 0]
