"""The training loop: one stage from top to bottom.

A run is one or more stages, each with its own trainable parameters, learning rates and length; what watches them
(`callbacks`) is shared, so that the best step is the best of all stages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler

from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.errors import NonFiniteLoss
from fusetune.training.callbacks import Callback, Check, EarlyStopping
from fusetune.training.learner import Learner
from fusetune.training.optim import build_optimizer
from fusetune.types import Batch

Validate = Callable[[], tuple[float, float, dict[str, dict[str, float]]]]
"""Gives (loss, score, metrics by task) on the validation rows."""


@dataclass
class Stage:
    """What one stage does.

    Attributes:
        name: shown and logged.
        epochs: passes over the train rows; may be a fraction.
        groups: the optimiser's parameter groups with their peak `lr` and their `weight_decay`.
        evals_per_epoch: checks on validation rows an epoch.
        patience: checks without a better one before the stage stops; None for never.
        margin: what a score must gain to be better although the validation loss is higher.
    """

    name: str
    epochs: float
    groups: list[dict[str, Any]]
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = 1.0
    batch_size: int = 32
    accumulate: int = 1
    evals_per_epoch: int = 1
    patience: int | None = None
    margin: float = 0.0
    workers: int = 0
    seed: int = 0


def run_stage(
    learner: Learner,
    stage: Stage,
    train: Examples,
    validate: Validate,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    *,
    first_step: int = 0,
) -> int:
    """Train for one stage.

    Args:
        learner: on the accelerator's device.
        stage: what to do.
        train: prepared rows; those in `used` are trained on.
        validate: evaluates the learner's model.
        accelerator: devices, precision, gradient synchronisation, trackers.
        callbacks: called at every update and check.
        first_step: updates made in earlier stages.

    Returns:
        Updates made so far, this stage's included.

    Raises:
        NonFiniteLoss: the loss or the gradient became NaN or infinite; that update is not made.
    """
    set_seed(stage.seed)
    sampler = UpdateSampler(
        train.used,
        train.sizes(train.used),
        batch_size=stage.batch_size,
        accumulate=stage.accumulate,
        seed=stage.seed,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    num_updates = max(1, round(stage.epochs * sampler.num_updates))
    eval_every = max(1, sampler.num_updates // stage.evals_per_epoch)
    optimizer = build_optimizer(stage.optimizer, stage.groups, lr=stage.groups[0]["lr"])
    scheduler = get_scheduler(
        stage.schedule,
        optimizer,
        num_warmup_steps=round(stage.warmup * num_updates),
        num_training_steps=num_updates,
    )
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    stopping = EarlyStopping(stage.patience, margin=stage.margin)
    watchers = [*callbacks, stopping]
    for watcher in watchers:
        watcher.on_stage(stage.name, num_updates)

    loss_sum, loss_count = 0.0, 0
    updates = enumerate(_updates(train, sampler, stage), start=1)
    for done, micro_batches in itertools.islice(updates, num_updates):
        step = first_step + done
        wrapped.train()
        losses = _update(wrapped, micro_batches, optimizer, accelerator, stage, step)
        lr = max(group["lr"] for group in optimizer.param_groups)
        scheduler.step()
        loss_sum, loss_count = loss_sum + sum(losses.values()), loss_count + 1
        for watcher in watchers:
            watcher.on_update(step, losses, lr)
        if done % eval_every == 0 or done == num_updates:
            val_loss, score, metrics = validate()
            check = Check(
                stage.name, step, done / sampler.num_updates, loss_sum / loss_count, val_loss, score, metrics, lr
            )
            loss_sum, loss_count = 0.0, 0
            for watcher in watchers:
                watcher.on_check(check)
            if stopping.stop:
                break
    accelerator.free_memory()
    return step


class _Places(Dataset[int]):
    """Places in the table: what the sampler draws and `Examples.batch` takes."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, place: int) -> int:
        return place


def _updates(train: Examples, sampler: UpdateSampler, stage: Stage) -> Iterator[list[Batch]]:
    """The micro-batches of each update, epoch after epoch without end."""
    for epoch in itertools.count():
        sampler.epoch = epoch
        loader = DataLoader(
            _Places(len(train.rows)),
            batch_sampler=sampler,
            collate_fn=train.batch,
            num_workers=stage.workers,
        )
        batches = iter(loader)
        while micro_batches := list(itertools.islice(batches, stage.accumulate)):
            yield micro_batches


def loss_shares(micro_batches: Sequence[Batch]) -> list[dict[str, float]]:
    """What each micro-batch's mean losses count in the update's, so that they sum to the mean over all its rows.

    Returns:
        Per micro-batch, each task's share of the labelled rows' weight by the task's name, and under "" the share of
        the rows, for losses that are no task's.
    """
    sizes = [
        {name: float((batch.weights * target.labelled).sum()) for name, target in batch.targets.items()}
        | {"": float(len(batch))}
        for batch in micro_batches
    ]
    totals = {name: sum(size[name] for size in sizes) for name in sizes[0]}
    return [{name: value / totals[name] if totals[name] else 0.0 for name, value in size.items()} for size in sizes]


def _update(
    learner: torch.nn.Module,
    micro_batches: list[Batch],
    optimizer: Any,
    accelerator: Accelerator,
    stage: Stage,
    step: int,
) -> dict[str, float]:
    """One update of the weights from its micro-batches; gives the losses by name."""
    totals: dict[str, Tensor] = {}
    for position, (batch, shares) in enumerate(zip(micro_batches, loss_shares(micro_batches), strict=True)):
        last = position == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(learner), accelerator.autocast():
            _, parts, outputs = learner(batch.to(accelerator.device))
            scaled = {name: part * shares.get(name, shares[""]) for name, part in parts.items()}
            accelerator.backward(sum(scaled.values(), outputs.pooled.new_zeros(())))
        for name, part in scaled.items():
            totals[name] = totals.get(name, 0) + part.detach()
    norm = accelerator.clip_grad_norm_(learner.parameters(), stage.clip if stage.clip is not None else float("inf"))
    losses = {name: float(value) for name, value in totals.items()}
    finite = all(math.isfinite(value) for value in losses.values())
    if not finite or (norm is not None and not bool(torch.isfinite(norm)) and accelerator.scaler is None):
        ids = [int(row) for batch in micro_batches for row in batch.rows]
        optimizer.zero_grad()
        raise NonFiniteLoss(
            f"the {'gradient' if finite else 'loss'} became NaN or infinite at update {step} of stage "
            f"{stage.name!r}; losses {losses}; rows {ids[:64]}\n  Do: lower trainer.lr and trainer.backbone_lr, "
            "set trainer.clip, or look at these rows. No update was made from them."
        )
    optimizer.step()
    optimizer.zero_grad()
    return losses
