"""Which first blocks of an encoder stay frozen with `freeze: auto`: those whose tuning promises little.

The first blocks of a convolutional encoder cost most of an update, as they see the largest maps, and tuning changes
them least: they have few weights, a small learning rate (`trainer.layer_decay`), and general features (Yosinski et al.
2014, arXiv 1411.1792). A trial on train rows decides: an update with Adam moves a weight by about its learning rate
against the sign of its gradient, so, to first order, an update computed on rows A lowers the loss of other rows B by

    gain(A, B) = Σ lr · sign(g_A) · g_B

over a block's weights, with g the mean gradient over the rows. As the rows differ, noise adds nothing on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.freeze import lr_scales
from fusetune.data.examples import Examples
from fusetune.inference.memory import retain_freed_memory, trim_memory
from fusetune.models.perturb import RngState
from fusetune.training.hardware.devices import processes
from fusetune.training.learner import Learner
from fusetune.training.plan import TrainingRows
from fusetune.training.recipe import Recipe
from fusetune.training.updates.update import Buffers

HALF_ROWS = 64
"""Rows of each of the two groups of the trial."""
PART_ROWS = 8
"""Rows of a pass."""
WORTHWHILE = 8
"""How many times the trial's rows the stage must see for the trial to be made."""
MAX_SHARE = 0.1
"""The most of an encoder's gain that its frozen blocks may have."""


def block_gains(
    learner: Learner, encoders: dict[str, Backbone], train: Examples, *, layer_decay: float
) -> dict[str, list[float]]:
    """Return what tuning each block gains, by encoder, from input to output, in units of the encoder's learning rate.

    Weights, gradients, buffers, mode and RNG state stay as they are.

    Args:
        learner: in the state in which the tune stage would begin.
        encoders: with the parameters trainable that the stage would train.
        train: rows as the stage would see them.
        layer_decay: see `lr_scales`.
    """
    used = train.used[np.unique(np.linspace(0, len(train.used) - 1, 2 * HALF_ROWS).astype(np.int64))]
    parameters = [p for encoder in encoders.values() for p in encoder.parameters() if p.requires_grad]
    was_training, buffers = learner.training, Buffers(learner)
    balance = learner.objective.balance
    balance_state = balance.process_state() if balance is not None else None
    rng_state = RngState(parameters[0].device)
    learner.eval()  # no dropout, no running statistics
    try:
        with retain_freed_memory():
            first, second = (_gradients(learner, train, used[start::2], parameters) for start in (0, 1))
    finally:
        learner.train(was_training)
        buffers.restore()
        rng_state.restore()
        if balance is not None:
            balance.load_process_state(balance_state)
    gains = {
        id(parameter): float((a * b.sign() + b * a.sign()).sum()) / 2
        for parameter, a, b in zip(parameters, first, second, strict=True)
    }
    found = {}
    for key, encoder in encoders.items():
        scales = {id(p): scale for scale, named in lr_scales(encoder, layer_decay) for _, p in named}
        found[key] = [
            sum(scales[id(p)] * gains[id(p)] for p in block.parameters() if id(p) in gains)
            for _, block in encoder.blocks()
        ]
    return found


def _gradients(learner: Learner, train: Examples, rows: np.ndarray, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean gradient of the loss over some rows, by parameter."""
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for start in range(0, len(rows), PART_ROWS):
        batch = train.batch(rows[start : start + PART_ROWS], epoch=0).to(parameters[0].device)
        total, _, _ = learner(batch)
        grads = torch.autograd.grad(total, list(parameters), allow_unused=True)
        for known, grad in zip(sums, grads, strict=True):
            if grad is not None:
                known.add_(grad, alpha=len(batch.rows) / len(rows))
        trim_memory()
    return sums


def num_frozen(gains: Sequence[float]) -> int:
    """Return how many first blocks stay frozen: as many as together have at most `MAX_SHARE` of the gain.

    A negative gain counts as none. Where nothing is gained at all, nothing is frozen: the trial tells nothing then.

    Example:
        >>> num_frozen([0.01, 0.02, 0.5, 1.0])
        2
    """
    positive = np.maximum(np.asarray(gains, dtype=float), 0.0)
    total = float(positive.sum())
    if not np.isfinite(total) or total <= 0:
        return 0
    return int((positive.cumsum() <= MAX_SHARE * total).sum())


def choose_frozen_blocks(recipe: Recipe, learner: Learner, rows: TrainingRows) -> None:
    """Choose which first blocks of encoders with `freeze: auto` stay frozen in the tune stage, and note it.

    It follows from weights and train rows alone, so that one seed gives one choice. All processes take the first one's.

    Args:
        recipe: has a tune stage; its `num_frozen` is set.
        learner: as the stage before left it.
        rows: of the training.
    """
    stage = recipe.tune_stage()
    encoders = recipe.undecided()
    if not encoders:
        return
    recipe.num_frozen = {}
    if len(rows.tuned) * stage.epochs < WORTHWHILE * 2 * HALF_ROWS:
        return
    still = [column for column, key in recipe.model.routes.items() if key not in recipe.moving()]
    train, _ = rows.given(still, augmented=bool(rows.train.augmentation.num_views))
    gains = block_gains(learner, encoders, train, layer_decay=recipe.settings.layer_decay)
    choice = [{key: num_frozen(values) for key, values in gains.items()}]
    recipe.num_frozen = broadcast_object_list(choice)[0] if processes().num_processes > 1 else choice[0]
    for key, count in recipe.num_frozen.items():
        if count:
            encoder = encoders[key]
            recipe.notes.append(
                f"The first {count} of {len(encoder.blocks())} blocks of {encoder.source} stay as pretrained: in a"
                f" trial on train rows they promised at most {MAX_SHARE:.0%} of what tuning it gains"
                f" ({encoder.kind}.freeze=none tunes all)."
            )
