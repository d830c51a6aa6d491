"""The training loop: one stage from top to bottom.

A run is one or more stages, each with its own trainable parameters, learning rates and length; what watches them
(`callbacks`) is shared, so that the best step is the best of all stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler

from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.training.averaging import Average
from fusetune.training.callbacks import Callback, Check, EarlyStopping
from fusetune.training.learner import Learner
from fusetune.training.optim import build_optimizer
from fusetune.training.update import Gradients, plain, update
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
        gradients: how an update's gradients are computed.
        ema: the decay of the weights' moving average, which is then evaluated and kept in their place.
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
    gradients: Gradients = plain
    ema: float | None = None


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
        tables=train.table.parts()[train.used],
        mix=train.mix,
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
    average = Average(learner, stage.ema) if stage.ema is not None else None
    watchers = [*callbacks, stopping, *([average] if average is not None else [])]
    for watcher in watchers:
        watcher.on_stage(stage.name, num_updates)

    loss_sum, loss_count = 0.0, 0
    updates = enumerate(_updates(train, sampler, stage), start=1)
    for done, micro_batches in itertools.islice(updates, num_updates):
        step = first_step + done
        wrapped.train()
        where = f"update {step} of stage {stage.name!r}"
        losses = update(
            wrapped, micro_batches, optimizer, accelerator, gradients=stage.gradients, clip=stage.clip, where=where
        )
        lr = max(group["lr"] for group in optimizer.param_groups)
        scheduler.step()
        loss_sum, loss_count = loss_sum + sum(losses.values()), loss_count + 1
        for watcher in watchers:
            watcher.on_update(step, losses, lr, learner.figures())
        balance = learner.objective.balance
        if balance is not None and done % sampler.num_updates == 0:
            balance.end_epoch()
        if done % eval_every == 0 or done == num_updates:
            with average.swapped() if average is not None else nullcontext():
                val_loss, score, metrics = validate()
                check = Check(
                    stage.name, step, done / sampler.num_updates, loss_sum / loss_count, val_loss, score, metrics, lr
                )
                check.task_losses = balance.take() if balance is not None else {}
                for watcher in watchers:
                    watcher.on_check(check)
            loss_sum, loss_count = 0.0, 0
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
            collate_fn=partial(train.batch, epoch=epoch),
            num_workers=stage.workers,
        )
        batches = iter(loader)
        while micro_batches := list(itertools.islice(batches, stage.accumulate)):
            yield micro_batches
