"""The loss of a language model on rows' targets, without gradients."""

from __future__ import annotations

import numpy as np
import torch

from fusetune.data.examples import Examples
from fusetune.inference.memory import retain_freed_memory, trim_memory
from fusetune.inference.predict import evaluating, model_device
from fusetune.models.generate import Generate
from fusetune.tasks.abilities import Writes

ROWS = 32
"""Rows a batch."""


def token_losses(
    model: Generate, name: str, task: Writes, examples: Examples, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's −log-likelihood of its target and its number of tokens, (rows,) float64 each.

    Args:
        model: in any mode.
        name: the task's name in the model.
        task: fitted.
        examples: prepared rows.
        rows: positions in the table, labelled.
    """
    order = np.argsort(-examples.sizes(rows), kind="stable")
    losses, sizes = np.zeros(len(rows)), np.zeros(len(rows))
    with evaluating(model), retain_freed_memory():
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            batch = examples.batch(rows[part]).to(model_device(model))
            target = batch.targets[name]
            scores = model(batch).logits[name]
            losses[part] = -scores[..., 0].sum(1).double().cpu().numpy()
            sizes[part] = (torch.ones(len(part)) if target.sizes is None else target.sizes).double().cpu().numpy()
            trim_memory()
    return losses, sizes
